"""The contents of m_indices, masked_m and grouped_layout. Looking at them waits for their device."""

from __future__ import annotations

import torch
from gemm_ladder import settings
from gemm_ladder.arguments import Kind, align
from gemm_ladder.errors import InputError


def contents(kind: Kind, rows: torch.Tensor, m: int, groups: int, name: str = "grouped_layout") -> None:
    """Refuse an m_indices, masked_m or grouped_layout whose contents cannot be used. Waits for the tensor's
    device; does nothing while a CUDA graph is captured, which forbids that.

    Args:
        kind: the layout, which is not dense.
        rows: its tensor, checked but for the contents.
        m: rows of A; in the masked layout max_m.
        groups: of B.
        name: of the psum layout's tensor, in messages.

    Raises:
        InputError: the first row or group that is wrong.
    """
    if capturing(rows.device):
        return
    if kind == "contiguous":
        _indices(rows, groups)
    elif kind == "masked":
        _counts(rows, m)
    else:
        _ends(rows, m, name)


def _indices(m_indices: torch.Tensor, groups: int) -> None:
    """Refuse m_indices that hold what is no group, or a group that begins inside a block of rows.

    A block, of as many rows as settings.get_mk_alignment_for_contiguous_layout() says, belongs to one group,
    or to none (-1). Padding (-1) may also begin inside it.
    """
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


def _counts(masked_m: torch.Tensor, max_m: int) -> None:
    """Refuse a masked_m that counts less than 0 rows or more than max_m."""
    group = _first((masked_m < 0) | (masked_m > max_m))
    if group is not None:
        raise InputError(
            f"masked_m[{group}] is {masked_m[group]}; a number from 0 to max_m = {max_m} is needed"
        )


def _ends(ends: torch.Tensor, m: int, name: str) -> None:
    """Refuse ends of the psum layout of which a group ends before it begins, or after the last row."""
    alignment, begin = settings.get_mk_alignment_for_contiguous_layout(), 0
    for group, end in enumerate(ends.tolist()):
        if not begin <= end <= m:
            raise InputError(
                f"{name}[{group}] is {end}; a row from {begin}, where group {group} begins, to "
                f"m = {m} is needed"
            )
        begin = min(align(end, alignment), m)


def _first(wrong: torch.Tensor) -> int | None:
    """The index of the first element that is true."""
    found = wrong.nonzero()
    return int(found[0]) if len(found) else None


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on a GPU's current stream, which forbids looking at what tensors
    there hold, and loading a kernel."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
