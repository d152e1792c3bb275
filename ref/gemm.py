"""What the kernels compute, in float64: rung s0_numpy, and the reference of every test.

    D[m, n] = sum over k of A[m, k] * sfa[m, k / 128] * B[n, k] * sfb[n / 128, k / 128]

The operands are the quantised ones, as a kernel gets them (gemm_ladder.ref.fp8 describes the pairs). A
comparison with the product of the matrices before the cast would hide bugs as small as the error of the cast
itself, 7e-4 in `calc_diff`.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from . import fp8

BF16 = np.dtype(ml_dtypes.bfloat16)


def dense(a: np.ndarray, sfa: np.ndarray, b: np.ndarray, sfb: np.ndarray) -> np.ndarray:
    """D, float64 [m, n], unrounded.

    Args:
        a, sfa: E4M3 [m, k] (or its uint8 codes) and float32 [m, ceil(k / 128)].
        b, sfb: E4M3 [n, k] and float32 [ceil(n / 128), ceil(k / 128)].

    Raises:
        ValueError, TypeError: shapes that do not fit, other dtypes.
    """
    left, right = fp8.dequantize_lhs(a, sfa), fp8.dequantize_rhs(b, sfb)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"A {left.shape} and B {right.shape} were given; the same k is needed in both")
    return left @ right.T


def grouped_contiguous(
    a: np.ndarray, sfa: np.ndarray, b: np.ndarray, sfb: np.ndarray, m_indices: np.ndarray
) -> np.ndarray:
    """Mixture of experts, the rows of all experts in one matrix: row i of A is multiplied by B[m_indices[i]].

    Args:
        a, sfa: as for `dense`.
        b, sfb: E4M3 [groups, n, k] and float32 [groups, ceil(n / 128), ceil(k / 128)].
        m_indices: int32 [m]; -1 marks padding, whose rows of D are zeros. (A kernel also needs each 128 rows
            to have the same value; this reference does not.)

    Returns:
        D, float64 [m, n].

    Raises:
        ValueError, TypeError: as for `dense`; an index that is not a group.
    """
    _check_groups(b, sfb)
    m_indices = np.asarray(m_indices)
    if m_indices.shape != (len(a),):
        raise ValueError(
            f"m_indices of shape {m_indices.shape} were given for A {np.shape(a)}; one for each row is needed"
        )
    if wrong := sorted({int(g) for g in m_indices} - set(range(-1, len(b)))):
        raise ValueError(f"m_indices hold {wrong}; -1 or a group below {len(b)} is needed")
    d = np.zeros((len(a), b.shape[1]))
    for group in range(len(b)):
        rows = m_indices == group
        d[rows] = dense(a[rows], sfa[rows], b[group], sfb[group])
    return d


def grouped_masked(
    a: np.ndarray,
    sfa: np.ndarray,
    b: np.ndarray,
    sfb: np.ndarray,
    masked_m: np.ndarray,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Mixture of experts, one matrix for each expert, whose first masked_m[group] rows are valid.

    Args:
        a, sfa: E4M3 [groups, max_m, k] and float32 [groups, max_m, ceil(k / 128)]. Only valid rows are read.
        b, sfb: as for `grouped_contiguous`.
        masked_m: int32 [groups], each in [0, max_m].
        out: float64 [groups, max_m, n] to write into; only valid rows are written. None: a new array, with
            NaN in the other rows.

    Returns:
        D, float64 [groups, max_m, n]: `out`, where given.

    Raises:
        ValueError, TypeError: as for `dense`; a count that is not in [0, max_m].
    """
    _check_groups(b, sfb)
    groups, max_m = np.shape(a)[:2]
    masked_m = np.asarray(masked_m)
    if not groups == len(sfa) == len(b) == len(masked_m):
        given = f"{groups}, {len(sfa)}, {len(b)} and {len(masked_m)}"
        raise ValueError(f"A, sfa, B and masked_m have {given} groups; the same number is needed")
    if ((masked_m < 0) | (masked_m > max_m)).any():
        raise ValueError(
            f"masked_m {masked_m.tolist()} was given; each must be in [0, {max_m}], the rows of a group"
        )
    shape = (groups, max_m, b.shape[1])
    d = np.full(shape, np.nan) if out is None else out
    if d.shape != shape:
        raise ValueError(f"out of shape {d.shape} was given; {shape} is needed")
    for group, rows in enumerate(masked_m):
        d[group, :rows] = dense(a[group, :rows], sfa[group, :rows], b[group], sfb[group])
    return d


def grouped_psum(
    a: np.ndarray,
    sfa: np.ndarray,
    b: np.ndarray,
    sfb: np.ndarray,
    ends: np.ndarray,
    alignment: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Mixture of experts, the rows of all experts in one matrix, which a list of ends divides (`psum_rows`).

    Args:
        a, sfa: as for `dense`. Only rows of groups are read.
        b, sfb: as for `grouped_contiguous`.
        ends, alignment: as for `psum_rows`.
        out: float64 [m, n] to write into; only rows of groups and their padding are written. None: a new
            array, with NaN in the other rows.

    Returns:
        D, float64 [m, n]: `out`, where given. The rows of padding are zeros.

    Raises:
        ValueError, TypeError: as for `dense`; an end that lies before its group or behind A.
    """
    _check_groups(b, sfb)
    d = np.full((len(a), b.shape[1]), np.nan) if out is None else out
    for group, (begin, end, padded) in enumerate(psum_rows(ends, alignment, len(a))):
        d[begin:end] = dense(a[begin:end], sfa[begin:end], b[group], sfb[group])
        d[end:padded] = 0
    return d


def psum_rows(ends: np.ndarray, alignment: int, m: int) -> list[tuple[int, int, int]]:
    """Which rows of A belong to each group: (first row, row behind the last one, row behind the padding).

    Args:
        ends: int32 [groups], the row behind each group's last one. (DeepGEMM calls it a psum layout, as
            without alignment it would be the prefix sums of the groups' sizes.)
        alignment: a group begins at the first multiple of it that is not before the end of the one ahead.
        m: rows of A, where padding ends in any case.

    Raises:
        ValueError: an end that lies before its group or behind A.
    """
    found, begin = [], 0
    for end in np.asarray(ends).tolist():
        if not begin <= end <= m:
            raise ValueError(f"a group that begins at row {begin} and ends at {end} was given for m = {m}")
        padded = min(-(-end // alignment) * alignment, m)
        found.append((begin, end, padded))
        begin = padded
    return found


def to_bf16(x: np.ndarray) -> np.ndarray:
    """float64 or float32 -> BF16 (ml_dtypes), rounded once, to nearest, ties to even."""
    return fp8.narrow(x).astype(BF16)


def _check_groups(b: np.ndarray, sfb: np.ndarray) -> None:
    if np.ndim(b) != 3 or np.ndim(sfb) != 3 or len(b) != len(sfb):
        raise ValueError(
            f"B {np.shape(b)} and its scales {np.shape(sfb)} were given; [groups, n, k] and "
            "[groups, ceil(n / 128), ceil(k / 128)] are needed"
        )
