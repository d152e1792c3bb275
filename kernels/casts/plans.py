"""Plans of casts: what is found out at a cast's first launch, kept for those that differ by addresses alone.

A cast is known by its key: which it is, its options, the settings that it depends on, and of each tensor the
dtype, device, shape and strides. Only plain tensors have one (`fast_path.is_plain`). Whatever has no key, or
no plan under it, goes through `operands`, which refuses what cannot be cast, and `launching`; so a plan holds
for nothing that these would refuse. What may differ between tensors with one key is looked at in every call:
whether their storage still has their elements. Alignment decides nothing here, as the launchers look at
addresses themselves (cast_start.cuh). With GEMM_LADDER_CHECK=1 no call has a key, as the contents of index
tensors are looked at in each; otherwise kernels alone do that.

A call with a plan makes the results, fills in addresses and the stream, and launches.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Hashable
from typing import NamedTuple, TypeAlias

import torch
from gemm_ladder import launch as launches
from gemm_ladder import ops, settings
from gemm_ladder.casts.kernel import Before, Kind
from gemm_ladder.casts.operands import NAME, CheckedCast, Pair, Results
from gemm_ladder.production import fast_path

Key: TypeAlias = tuple[Hashable, ...]

MOST = 1024  # plans that are kept, of a kilobyte each
# The tensors of a call: their names in CheckedCast and launching.Params, their places among operands.check's
# arguments after the first two.
_PLACES = {"x": 0, "weight": 1, "rows": 4, "counts": 5, "ks": 6, "ends": 7}


class _Given(NamedTuple):
    """A tensor that a call is given: its field of Params, its place among the arguments, the elements from
    its first to its last one, and the bytes of each."""

    field: str
    place: int
    span: int
    itemsize: int


class _New(NamedTuple):
    """A tensor that a call returns."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


class Plan(NamedTuple):
    """How to do the casts of one key.

    Attributes:
        arguments: a launching.Args without addresses and stream; copied, never written.
        inverse_roots: of `operands.Results`, which nobody returns.
        device: of all tensors.
    """

    arguments: ctypes.Structure
    given: tuple[_Given, ...]
    codes: _New
    scales: _New
    inverse_roots: _New | None
    launcher: launches.Launcher
    device: torch.device


_plans: dict[Key, Plan] = {}  # the oldest first
_lock = threading.Lock()  # held to change it


def key_of(kind: Kind, before: Before, *given: object) -> Key | None:
    """What decides a cast but for addresses; None where a plan must not be used.

    Args:
        given: x, weight, eps, use_ue8m0, rows, masked_m, ks and, where it may be given, psum_m, as for
            `operands.check`, checked or not.
    """
    _, _, eps, use_ue8m0, *_ = given
    if type(eps) not in (float, int) or type(use_ue8m0) is not bool:
        return None
    if settings.check_contents or ops.transform() is not None:
        return None
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    key: list[Hashable] = [kind, before, eps, use_ue8m0, settings.num_sms_limit(), alignment]
    for field, place in _PLACES.items():
        one = given[place] if place < len(given) else None
        if one is None:
            key.append(None)
        # A weight with gaps is copied ahead of a launch, and an index tensor with gaps refused.
        elif (
            isinstance(one, torch.Tensor)
            and fast_path.is_plain(one)
            and (field == "x" or one.is_contiguous())
        ):
            key += (one.dtype, one.get_device(), one.shape, one.stride())
        else:
            return None
    return tuple(key)


def run(key: Key | None, *given: object) -> Pair | None:
    """Do a cast by its plan, if there is one.

    Args:
        key: of these arguments, or None.
        given: as for `key_of`.

    Returns:
        What the functions return; None if nothing was done.

    Raises:
        LaunchError: the launch is refused.
    """
    plan = _plans.get(key) if key is not None else None
    if plan is None:
        return None
    arguments = type(plan.arguments).from_buffer_copy(plan.arguments)
    params = arguments.params
    for field, place, span, itemsize in plan.given:
        tensor = given[place]
        assert isinstance(tensor, torch.Tensor)
        if (tensor.storage_offset() + span) * itemsize > tensor.untyped_storage().nbytes():
            return None  # it will be refused
        setattr(params, field, tensor.data_ptr())
    x = given[0]
    assert isinstance(x, torch.Tensor)
    codes, scales = (
        x.new_empty_strided(one.shape, one.strides, dtype=one.dtype) for one in (plan.codes, plan.scales)
    )
    params.codes, params.scales = codes.data_ptr(), scales.data_ptr()
    if (one := plan.inverse_roots) is not None:
        between = x.new_empty_strided(one.shape, one.strides, dtype=one.dtype)
        params.inverse_roots = between.data_ptr()
    launches.start(NAME, plan.launcher, arguments, plan.device)
    return codes, scales


def add(key: Key | None, call: CheckedCast, out: Results, returned: Pair) -> None:
    """Keep a plan for calls like one that was done, if its kernel does them.

    Args:
        key: of the call as it was given.
        out: its results; returned: the same as callers get them.
    """
    from gemm_ladder.casts import launching  # here: a cast on the CPU needs none of it

    device = call.x.device
    if key is None or launching.why_not(call.kernel, device):
        return
    # The padding of turned codes is written, too, and would be missing from a tensor that has just the codes.
    whole = all(_span(one) * one.itemsize == one.untyped_storage().nbytes() for one in returned)
    if not whole or not all(one.numel() for one in (*returned, *call.tensors.values())):
        return
    given = [(field, place, getattr(call, field)) for field, place in _PLACES.items()]
    codes, scales = map(_new, returned)
    plan = Plan(
        launching.arguments(call, out, launches.usable_sms(device, settings.num_sms_limit())),
        tuple(_Given(field, at, _span(one), one.itemsize) for field, at, one in given if one is not None),
        codes,
        scales,
        None if out.inverse_roots is None else _new(out.inverse_roots),
        launching.launcher(call.kernel),
        device,
    )
    with _lock:
        if len(_plans) >= MOST and key not in _plans:  # it is, where another thread was quicker
            del _plans[next(iter(_plans))]
        _plans[key] = plan


def _new(like: torch.Tensor) -> _New:
    return _New(like.shape, like.stride(), like.dtype)


def _span(tensor: torch.Tensor) -> int:
    """The elements from its first to its last one."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
