"""A call of the products: all checks of its operands, and the conversion of scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from gemm_ladder import scales, settings
from gemm_ladder.arguments import Kind
from gemm_ladder.checks import grouped, rules
from gemm_ladder.checks.layouts import DIMENSIONS, DTYPES, ROWS, SCALES, agreeing_sizes, supported
from gemm_ladder.errors import InputError


class CheckedCall(NamedTuple):
    """A call that passed: its tensors, the scales in the layouts that kernels read, and its sizes.

    Attributes:
        rows: m_indices, masked_m or grouped_layout; None in the dense layout.
        m: rows of A and of `out`; in the masked layout those that each group has room for, max_m.
        groups: of B; 1 in the dense layout.
    """

    kind: Kind
    a: torch.Tensor
    sfa: torch.Tensor
    b: torch.Tensor
    sfb: torch.Tensor
    out: torch.Tensor
    rows: torch.Tensor | None
    m: int
    n: int
    k: int
    groups: int


def call(kind: Kind, lhs: object, rhs: object, out: object, rows: object = None) -> CheckedCall:
    """Check a call of the production kernels: `operands`, `supported` and, for tensors on the CPU or with
    GEMM_LADDER_CHECK=1, `grouped.contents`.

    Raises:
        InputError: the first thing found wrong.
    """
    checked = operands(kind, lhs, rhs, out, rows, general=True)
    size = dict(zip(DIMENSIONS[kind]["A"], checked.a.shape, strict=True))
    supported(kind, size | dict(zip(DIMENSIONS[kind]["B"], checked.b.shape, strict=True)))
    if checked.rows is not None and (settings.check_contents or not checked.a.is_cuda):
        grouped.contents(kind, checked.rows, checked.m, checked.groups)
    return checked


def operands(
    kind: Kind,
    lhs: object,
    rhs: object,
    out: object,
    rows: object = None,
    *,
    hopper: bool = True,
    general: bool = False,
) -> CheckedCall:
    """Check the metadata of a call's tensors, by the rules in the docstring of `gemm_ladder.checks`.

    Args:
        kind: the layout.
        lhs: the pair (A, sfa).
        rhs: the pair (B, sfb).
        out: the output.
        rows: m_indices, masked_m or grouped_layout; None in the dense layout.
        hopper: refuse a GPU that is not Hopper.
        general: accept what only the production kernels can do: rows with gaps between them, n = 0 and k = 0.

    Returns:
        The tensors, with the scales converted where they had to be. m may be 0.

    Raises:
        InputError: the first thing found wrong.
    """
    given = _tensors(kind, lhs, rhs, out, rows)
    device = rules.same_device(given)
    if hopper:
        rules.runs_on(device)
    for name, tensor in given.items():
        rules.has_memory(name, tensor)
    if general and kind == "dense":
        _as_matrices(given)
    _dtypes(given)
    size = agreeing_sizes(kind, given, 0 if general else 1)
    _memory(given, general)
    return CheckedCall(
        kind,
        a=given["A"].detach(),
        sfa=scales.mn_major(scales.as_float32(given["sfa"], "sfa")),
        b=given["B"].detach(),
        sfb=scales.row_major(scales.as_float32(given["sfb"], "sfb")),
        out=given["out"],
        rows=given.get(ROWS.get(kind, "")),
        m=size["max_m" if kind == "masked" else "m"],
        n=size["n"],
        k=size["k"],
        groups=size.get("groups", 1),
    )


def described(kind: Kind, lhs: object, rhs: object, out: object, rows: object = None) -> None:
    """Check what can be said about a call's tensors without their memory, which FakeTensors do not have:
    types, devices, dtypes and, unless torch traces with symbols for them, sizes. Arguments as for `call`.

    Raises:
        InputError: the first thing found wrong.
    """
    given = _tensors(kind, lhs, rhs, out, rows)
    rules.same_device(given)
    for name, tensor in given.items():
        rules.in_no_transform(name, tensor)
    if kind == "dense":
        _as_matrices(given)
    _dtypes(given)
    if all(type(size) is int for tensor in given.values() for size in tensor.shape):
        supported(kind, agreeing_sizes(kind, given, 0))


def _tensors(kind: Kind, lhs: object, rhs: object, out: object, rows: object) -> dict[str, torch.Tensor]:
    """The tensors of a call by their names."""
    a, sfa = rules.pair(lhs, "lhs", "(A, sfa)")
    b, sfb = rules.pair(rhs, "rhs", "(B, sfb)")
    named = {"A": a, "sfa": sfa, "B": b, "sfb": sfb, "out": out}
    if kind != "dense":
        named[ROWS[kind]] = rows
    return rules.tensors(named)


def _dtypes(given: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in given.items():
        if name not in SCALES or tensor.dtype not in scales.CONVERTED:
            rules.dtype(name, tensor, DTYPES[name])


def _as_matrices(given: dict[str, torch.Tensor]) -> None:
    """Make the leading dimensions of A, sfa and out one, if all three have more than one."""
    a, sfa, out = (given[name] for name in ("A", "sfa", "out"))
    if min(a.dim(), sfa.dim(), out.dim()) <= 2:
        return
    if not a.shape[:-1] == sfa.shape[:-1] == out.shape[:-1]:
        raise InputError(
            f"A has shape {list(a.shape)}, sfa {list(sfa.shape)} and out {list(out.shape)}; the same "
            "dimensions before the last one are needed"
        )
    rows = a.shape[:-1].numel()
    try:
        given["A"], given["out"] = a.view(rows, a.shape[-1]), out.view(rows, out.shape[-1])
    except RuntimeError:
        raise InputError(
            f"A has strides {a.stride()} and out {out.stride()}; leading dimensions that are one dimension "
            "of rows are needed"
        ) from None
    given["sfa"] = sfa.reshape(rows, sfa.shape[-1])


def _memory(given: Mapping[str, torch.Tensor], general: bool) -> None:
    """Check strides and addresses, and that `out` can be written."""
    for name, tensor in given.items():
        if name in SCALES:
            continue
        if general and name not in ROWS.values():
            rules.spaced(name, tensor)
        else:
            rules.gapless(name, tensor)
        if name not in ROWS.values():
            rules.aligned(name, tensor)
        rules.in_memory(name, tensor)
    _sfb_strides(given["sfb"])
    rules.disjoint("out", given)
    rules.no_gradients("out", given)


def _sfb_strides(sfb: torch.Tensor) -> None:
    if not (sfb.is_contiguous() or sfb.mT.is_contiguous()):
        rows, columns = rules.row_major_strides(sfb.shape), rules.row_major_strides(sfb.mT.shape)
        transposed = (*columns[:-2], columns[-1], columns[-2])
        raise InputError(f"sfb has strides {sfb.stride()}; {rows} or, transposed, {transposed} is needed")
