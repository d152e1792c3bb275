"""A call's operands, checked in a few microseconds where nothing is wrong with them.

`gemm_ladder.checks` says what is accepted, and takes 20 microseconds and more to find the sentence that says
what is wrong: as long as a small product takes. So a call first asks, with as few attribute reads as do,
whether its operands are plain, right and in need of no conversion; only the others go to `checks`, which
refuses or converts.

What the kernels multiply is less than what `checks` accepts: `supported`. The contents of m_indices and
masked_m are checked where that waits for no GPU, on the CPU; on a GPU, which waits, only with
GEMM_LADDER_CHECK=1 in the environment when this module is imported.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping

import torch
from gemm_ladder import checks, settings
from gemm_ladder.checks import DIMENSIONS
from gemm_ladder.errors import InputError
from gemm_ladder.rungs import MAX_SIZE

N_MULTIPLE = 8  # D is stored by TMA, to which a row must be a multiple of 16 bytes: of 8 BF16s
K_MULTIPLE = checks.BLOCK  # whole promotion blocks

check_contents = os.environ.get("GEMM_LADDER_CHECK") == "1"

_E4M3, _FLOAT32, _INT32, _BF16 = torch.float8_e4m3fn, torch.float32, torch.int32, torch.bfloat16
# By Tensor.get_device(): -1, the CPU (and "meta", whose addresses are 0), and the GPUs that passed runs_on().
_usable = {-1}


def dense(lhs: object, rhs: object, out: object) -> tuple:
    """The operands of out = lhs @ rhs.T as kernels read them: (a, sfa, b, sfb, out, m, n, k).

    Raises:
        InputError: `checks.dense` or `supported` refuses them.
    """
    operands = _plain("dense", lhs, rhs, out)
    return operands if operands is not None else _passed("dense", checks.dense(lhs, rhs, out))


def contiguous(lhs: object, rhs: object, out: object, m_indices: object) -> tuple:
    """The operands of out[i] = lhs[i] @ rhs[m_indices[i]].T as kernels read them:
    (a, sfa, b, sfb, out, m_indices, m, n, k, groups).

    Raises:
        InputError: `checks.contiguous_groups`, `supported` or `indices` refuses them.
    """
    operands = _plain("contiguous", lhs, rhs, out, m_indices)
    if operands is None:
        operands = _passed("contiguous", checks.contiguous_groups(lhs, rhs, out, m_indices))
    if check_contents or not operands[5].is_cuda:
        indices(operands[5], operands[9])
    return operands


def masked(lhs: object, rhs: object, out: object, masked_m: object) -> tuple:
    """The operands of out[g, :r] = lhs[g, :r] @ rhs[g].T with r = masked_m[g], as kernels read them:
    (a, sfa, b, sfb, out, masked_m, max_m, n, k, groups).

    Raises:
        InputError: `checks.masked_groups`, `supported` or `counts` refuses them.
    """
    operands = _plain("masked", lhs, rhs, out, masked_m)
    if operands is None:
        operands = _passed("masked", checks.masked_groups(lhs, rhs, out, masked_m))
    if check_contents or not operands[5].is_cuda:
        counts(operands[5], operands[6])
    return operands


def _plain(layout: str, lhs: object, rhs: object, out: object, rows: object = None) -> tuple | None:
    """The operands, or None where they are not all plain, which is no refusal yet.

    `rows` is m_indices or masked_m. Nobody asks for is_neg(): what PyTorch negates lazily is the imaginary
    part of complex numbers, whose strides are even, while both scales have a stride of 1.
    """
    try:
        (a, sfa), (b, sfb) = lhs, rhs
        plain = _plain_operands(layout, a.shape, b.shape)
        shapes_and_strides, rows_shape, sizes, a_bytes, sfa_bytes, b_bytes, sfb_bytes, out_bytes = plain
        begin, device = out.data_ptr(), out.get_device()
        end = begin + out_bytes
        if (
            (out.shape, sfa.shape, sfb.shape, sfa.stride(), sfb.stride()) == shapes_and_strides
            and a.dtype is b.dtype is _E4M3
            and sfa.dtype is sfb.dtype is _FLOAT32
            and out.dtype is _BF16
            and a.get_device() == sfa.get_device() == b.get_device() == sfb.get_device() == device
            and device in _usable
            and a.is_contiguous()
            and b.is_contiguous()
            and out.is_contiguous()
            and not out.requires_grad
            and begin
            and not begin % 16
            and not (first := a.data_ptr()) % 16
            and (first >= end or 0 < first <= begin - a_bytes)
            and not (first := sfa.data_ptr()) % 16
            and (first >= end or 0 < first <= begin - sfa_bytes)
            and not (first := b.data_ptr()) % 16
            and (first >= end or 0 < first <= begin - b_bytes)
            and not (first := sfb.data_ptr()) % 16
            and (first >= end or 0 < first <= begin - sfb_bytes)
        ):
            if rows_shape is None:
                return a, sfa, b, sfb, out, *sizes
            if (
                rows.shape == rows_shape
                and rows.dtype is _INT32
                and rows.get_device() == device
                and rows.is_contiguous()
                and ((first := rows.data_ptr()) >= end or 0 < first <= begin - 4 * rows_shape[0])
            ):
                return a, sfa, b, sfb, out, rows, *sizes
    except (AttributeError, RuntimeError, TypeError, ValueError):
        pass  # no pairs, no tensors, other dimensions, sizes that are not supported
    return None


@functools.lru_cache(maxsize=4096)
def _plain_operands(layout: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> tuple:
    """What the other operands of a plain call are like, given A and B, in the order in which _plain takes it.

    Raises:
        ValueError: A and B do not fit together, or `supported` refuses them.
    """
    names = DIMENSIONS[layout]
    of_a, of_b = (dict(zip(names[x], y, strict=True)) for x, y in (("A", a_shape), ("B", b_shape)))
    if any(of_a.get(name, size) != size for name, size in of_b.items()):
        raise ValueError("A and B do not fit together")
    size = of_a | of_b
    supported(layout, size)
    needed = {name: checks.needed_shape(name, layout, size) for name in names}
    sfa_strides = checks.mn_major_strides(needed["sfa"])
    sfb_strides = checks.row_major_strides(needed["sfb"])
    return (
        (needed["out"], needed["sfa"], needed["sfb"], sfa_strides, sfb_strides),
        next((needed[name] for name in checks.ROW_GROUPS if name in needed), None),
        tuple(size[name] for name in ("m", "max_m", "n", "k", "groups") if name in size),
        math.prod(a_shape),
        4 * math.prod((*needed["sfa"][:-2], needed["sfa"][-1], sfa_strides[-1])),
        math.prod(b_shape),
        4 * math.prod(needed["sfb"]),
        2 * math.prod(needed["out"]),
    )


def _passed(layout: str, gemm: checks.Gemm | checks.GroupedGemm) -> tuple:
    """The operands that `checks` has accepted and converted."""
    size = dict(zip(DIMENSIONS[layout]["A"], gemm.a.shape, strict=True))
    supported(layout, size | dict(zip(DIMENSIONS[layout]["B"], gemm.b.shape, strict=True)))
    if gemm.a.is_cuda:
        _usable.add(gemm.a.get_device())
    return tuple(gemm)


def supported(layout: str, size: Mapping[str, int]) -> None:
    """Refuse sizes, by the names of the layout's dimensions, that the kernels do not multiply.

    Raises:
        InputError: n is not a multiple of 8, k not of 128, or a tensor has 2^31 rows or columns.
    """
    for name, multiple in (("n", N_MULTIPLE), ("k", K_MULTIPLE)):
        if size[name] % multiple:
            raise InputError(f"{name} is {size[name]}; a multiple of {multiple} is needed")
    for tensor in ("A", "B"):
        *rows, k = DIMENSIONS[layout][tensor]
        for names in (rows, [k]):
            if (product := math.prod(size[name] for name in names)) > MAX_SIZE:
                raise InputError(f"{' * '.join(names)} is {product}; less than 2^31 is needed")


def indices(m_indices: torch.Tensor, groups: int) -> None:
    """Refuse m_indices that hold what is no group, or a group that begins inside a block of rows.

    A block, of as many rows as settings.get_mk_alignment_for_contiguous_layout() says, belongs to one group,
    or to none (-1), which may also begin inside it: rows of padding. Waits for the tensor's device; does
    nothing while a CUDA graph is captured.

    Raises:
        InputError: the first row that is wrong.
    """
    if _capturing(m_indices):
        return
    row = _first((m_indices < -1) | (m_indices >= groups))
    if row is not None:
        raise InputError(f"m_indices[{row}] is {m_indices[row]}; -1 or a group below {groups} is needed")
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    begins = (m_indices[1:] != m_indices[:-1]) & (m_indices[1:] != -1)
    begins[alignment - 1 :: alignment] = False
    row = _first(begins)
    if row is not None:
        raise InputError(
            f"m_indices[{row + 1}] is {m_indices[row + 1]} after {m_indices[row]}; "
            f"a group that begins at a multiple of {alignment} rows is needed"
        )


def counts(masked_m: torch.Tensor, max_m: int) -> None:
    """Refuse a masked_m that counts less than 0 rows or more than max_m. Waits as `indices` does.

    Raises:
        InputError: the first group that is wrong.
    """
    if _capturing(masked_m):
        return
    group = _first((masked_m < 0) | (masked_m > max_m))
    if group is not None:
        raise InputError(
            f"masked_m[{group}] is {masked_m[group]}; a number from 0 to max_m = {max_m} is needed"
        )


def _first(wrong: torch.Tensor) -> int | None:
    found = wrong.nonzero()
    return int(found[0]) if len(found) else None


def _capturing(tensor: torch.Tensor) -> bool:
    """Whether a CUDA graph is being captured, which forbids to look at a result."""
    if not tensor.is_cuda:
        return False
    with torch.cuda.device(tensor.device):
        return torch.cuda.is_current_stream_capturing()
