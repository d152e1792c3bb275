"""A call's operands as kernels read them: checked, converted where they have to be.

`gemm_ladder.checks` says what is accepted, and finds the sentence that says what is wrong. That takes 50
microseconds, longer than a small product: a plain call that is not the first of its sizes does not come here,
but is launched by `gemm_ladder.queueing`.

What the kernels multiply is less than what `checks` accepts: `supported`. The contents of m_indices and
masked_m are checked where that waits for no GPU, on the CPU; on a GPU, which waits, only with
GEMM_LADDER_CHECK=1 in the environment when this module is imported.
"""

from __future__ import annotations

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


def dense(lhs: object, rhs: object, out: object) -> tuple:
    """The operands of out = lhs @ rhs.T as kernels read them: (a, sfa, b, sfb, out, m, n, k).

    Raises:
        InputError: `checks.dense` or `supported` refuses them.
    """
    return _passed("dense", checks.dense(lhs, rhs, out))


def contiguous(lhs: object, rhs: object, out: object, m_indices: object) -> tuple:
    """The operands of out[i] = lhs[i] @ rhs[m_indices[i]].T as kernels read them:
    (a, sfa, b, sfb, out, m_indices, m, n, k, groups).

    Raises:
        InputError: `checks.contiguous_groups`, `supported` or `indices` refuses them.
    """
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
    operands = _passed("masked", checks.masked_groups(lhs, rhs, out, masked_m))
    if check_contents or not operands[5].is_cuda:
        counts(operands[5], operands[6])
    return operands


def _passed(layout: str, gemm: checks.Gemm | checks.GroupedGemm) -> tuple:
    """The operands that `checks` has accepted and converted."""
    size = dict(zip(DIMENSIONS[layout]["A"], gemm.a.shape, strict=True))
    supported(layout, size | dict(zip(DIMENSIONS[layout]["B"], gemm.b.shape, strict=True)))
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
