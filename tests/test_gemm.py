"""The float64 reference, against exact rational sums, and its grouped forms against the dense one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from gemm_ladder.ref import fp8, gemm


def operands(rng, m, n, k, groups=None):
    """Casts of normal matrices, ((A, sfa), (B, sfb)); B gets a leading `groups` dimension if asked."""
    lhs = fp8.per_token_cast_to_fp8(rng.normal(size=(m, k)).astype(np.float32))
    if groups is None:
        return lhs, fp8.per_block_cast_to_fp8(rng.normal(size=(n, k)).astype(np.float32))
    rhs = [fp8.per_block_cast_to_fp8(rng.normal(size=(n, k)).astype(np.float32)) for _ in range(groups)]
    return lhs, (np.stack([b for b, _ in rhs]), np.stack([sfb for _, sfb in rhs]))


def exact_element(a, sfa, b, sfb, i, j) -> Fraction:
    def number(x) -> Fraction:
        return Fraction(float(x))

    return sum(
        number(a[i, k]) * number(sfa[i, k // 128]) * number(b[j, k]) * number(sfb[j // 128, k // 128])
        for k in range(a.shape[1])
    )


@pytest.mark.parametrize(("m", "n", "k"), [(3, 130, 257), (2, 8, 128), (1, 1, 1)])
def test_dense_is_the_formula(m, n, k):
    (a, sfa), (b, sfb) = operands(np.random.default_rng(0), m, n, k)
    d = gemm.dense(a, sfa, b, sfb)
    assert d.dtype == np.float64 and d.shape == (m, n)
    for i, j in {(0, 0), (m - 1, n - 1), (m // 2, n // 2), (0, n - 1)}:
        assert d[i, j] == pytest.approx(float(exact_element(a, sfa, b, sfb, i, j)), rel=1e-12, abs=1e-12)
    assert np.array_equal(d, gemm.dense(a.view(np.uint8), sfa, b.view(np.uint8), sfb))


def test_dense_of_no_rows():
    (a, sfa), (b, sfb) = operands(np.random.default_rng(0), 4, 16, 128)
    assert gemm.dense(a[:0], sfa[:0], b, sfb).shape == (0, 16)


def test_grouped_contiguous_multiplies_each_row_by_its_own_group():
    rng = np.random.default_rng(1)
    (a, sfa), (b, sfb) = operands(rng, 512, 24, 256, groups=3)
    m_indices = np.repeat(np.array([2, -1, 0, 2], np.int32), 128)  # group 1 is empty
    d = gemm.grouped_contiguous(a, sfa, b, sfb, m_indices)
    for row in (0, 127, 256, 383, 384, 511):
        group = m_indices[row]
        one = gemm.dense(a[row : row + 1], sfa[row : row + 1], b[group], sfb[group])
        np.testing.assert_allclose(d[row : row + 1], one, rtol=1e-12, atol=1e-12)
    assert (d[128:256] == 0).all()


def test_grouped_masked_reads_and_writes_valid_rows_only():
    rng = np.random.default_rng(2)
    (a, sfa), (b, sfb) = operands(rng, 3 * 10, 16, 130, groups=3)
    a, sfa = a.view(np.uint8).reshape(3, 10, 130).copy(), sfa.reshape(3, 10, 2).copy()
    masked_m = np.array([4, 0, 10], np.int32)
    for group, rows in enumerate(masked_m):
        a[group, rows:], sfa[group, rows:] = 0x7F, np.nan
    out = np.full((3, 10, 16), 7.0)
    assert gemm.grouped_masked(a, sfa, b, sfb, masked_m, out) is out
    fresh = gemm.grouped_masked(a, sfa, b, sfb, masked_m)
    for group, rows in enumerate(masked_m):
        needed = gemm.dense(a[group, :rows], sfa[group, :rows], b[group], sfb[group])
        assert np.array_equal(out[group, :rows], needed) and np.array_equal(fresh[group, :rows], needed)
        assert (out[group, rows:] == 7).all() and np.isnan(fresh[group, rows:]).all()


def exact_bf16(x: float) -> int:
    """BF16 bits of a finite float64 by exact rounding, ties to even."""
    magnitude = Fraction(abs(x))
    exponent = -126
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    count = round(
        magnitude / Fraction(2) ** (exponent - 7)
    )  # of units; Python rounds a Fraction's half to even
    bits = min((exponent + 126 << 7) + count, 0x7F80)  # a carry runs into the exponent, as it should
    return bits | (0x8000 if np.signbit(x) else 0)


def test_to_bf16_rounds_once():
    rng = np.random.default_rng(3)
    middles = 1 + (2 * np.arange(128) + 1) / 256
    hard = [middles * s * (1 + e) for s in (1, 2.0**-130, 2.0**100) for e in (0, 2.0**-45, -(2.0**-45))]
    spread = rng.normal(size=500) * np.exp2(rng.uniform(-140, 127, 500))
    edges = [0.0, -0.0, 3.4e38, 3.39e38, 1e39, -1e300, 2.0**-134, 2.0**-134 * (1 + 2.0**-50), 1e-300]
    x = np.concatenate([*hard, spread, edges])
    bits = gemm.to_bf16(x).view(np.uint16).tolist()
    assert bits == [exact_bf16(v) for v in x]
    with np.errstate(over="ignore"):
        twice = x.astype(np.float32).astype(gemm.BF16).view(np.uint16).tolist()
    assert bits != twice  # so these values distinguish one rounding from two


def test_to_bf16_of_special_values():
    x = np.array([np.inf, -np.inf, np.nan])
    assert gemm.to_bf16(x).astype(np.float32).tolist()[:2] == [np.inf, -np.inf]
    assert np.isnan(gemm.to_bf16(x).astype(np.float32)[2])
    assert np.array_equal(gemm.to_bf16(np.array([1.5], np.float32)).astype(np.float32), [1.5])


def refused(words, function, **changes):
    (a, sfa), (b, sfb) = operands(np.random.default_rng(4), 8, 16, 128, groups=2)
    arguments = {"a": a, "sfa": sfa, "b": b, "sfb": sfb, **changes}
    return pytest.param(function, arguments, words, id=words)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        refused("same k", gemm.dense, b=np.zeros((16, 256), np.uint8), sfb=np.ones((1, 2), np.float32)),
        refused("matrix", gemm.dense),
        refused("one for each row", gemm.grouped_contiguous, m_indices=np.zeros(7, np.int32)),
        refused("below 2", gemm.grouped_contiguous, m_indices=np.full(8, 2, np.int32)),
        refused(
            "groups, n, k", gemm.grouped_contiguous, b=np.zeros((16, 128)), m_indices=np.zeros(8, np.int32)
        ),
        refused(r"hold \[-2\]", gemm.grouped_contiguous, m_indices=np.full(8, -2, np.int32)),
        refused(
            r"scales \(2, 1\)",
            gemm.grouped_contiguous,
            sfb=np.ones((2, 1), np.float32),
            m_indices=np.zeros(8, np.int32),
        ),
        refused(
            r"scales \(3, 1, 1\)",
            gemm.grouped_contiguous,
            sfb=np.ones((3, 1, 1), np.float32),
            m_indices=np.zeros(8, np.int32),
        ),
        refused(
            r"out of shape \(2, 4, 8\)",
            gemm.grouped_masked,
            a=np.zeros((2, 4, 128), np.uint8),
            sfa=np.ones((2, 4, 1), np.float32),
            masked_m=np.array([1, 1]),
            out=np.zeros((2, 4, 8)),
        ),
        refused(
            "same number",
            gemm.grouped_masked,
            a=np.zeros((2, 4, 128), np.uint8),
            sfa=np.ones((2, 4, 1), np.float32),
            masked_m=np.array([1, 1, 1]),
        ),
        refused(
            "have 2, 3, 2 and 2 groups",
            gemm.grouped_masked,
            a=np.zeros((2, 4, 128), np.uint8),
            sfa=np.ones((3, 4, 1), np.float32),
            masked_m=np.array([1, 1]),
        ),
        refused(
            r"in \[0, 4\]",
            gemm.grouped_masked,
            a=np.zeros((2, 4, 128), np.uint8),
            sfa=np.ones((2, 4, 1), np.float32),
            masked_m=np.array([1, 5]),
        ),
        refused(
            r"\[-1, 0\] was given",
            gemm.grouped_masked,
            a=np.zeros((2, 4, 128), np.uint8),
            sfa=np.ones((2, 4, 1), np.float32),
            masked_m=np.array([-1, 0]),
        ),
    ],
)
def test_refusals_say_what_is_needed(function, arguments, words):
    with pytest.raises(ValueError, match=words):
        function(**arguments)
