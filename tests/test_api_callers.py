"""Calls as serving engines write them: these spellings have to work, on any machine.

The functions are found as the engines find them, by name in a module called deep_gemm, the second
generation's before the first's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import gemm_ladder as deep_gemm
import grouped_cases
import numpy as np
import pytest
import torch
from cases import place
from gemm_ladder.lab.operands import normal
from gemm_ladder.ref import gemm


def first_of(*names: str):
    return next(getattr(deep_gemm, name) for name in names if hasattr(deep_gemm, name))


@pytest.fixture
def dense():
    """(placed operands, the bits that are right)"""
    operands = normal(np.random.default_rng(1), 33, 136, 256)
    return place(operands), gemm.to_bf16(operands.exact()).view(np.uint16)


# vLLM wraps each function and always passes `disable_ue8m0_cast`, to first-generation names too.


@pytest.mark.parametrize("name", ["fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt"])
@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_vllm_dense(dense, name, use_ue8m0):
    placed, bits = dense
    implementation = first_of(name)

    def fp8_gemm_nt(*args, **kwargs):
        return implementation(*args, disable_ue8m0_cast=not use_ue8m0, **kwargs)

    fp8_gemm_nt(placed.lhs, placed.rhs, placed.out)
    np.testing.assert_array_equal(placed.bits(), bits)


@pytest.mark.parametrize(
    "name", ["m_grouped_fp8_gemm_nt_contiguous", "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous"]
)
def test_vllm_contiguous(name):
    """Tokens are scattered to experts. The indices start as -1, and rows after an expert's tokens keep it."""
    call = grouped_cases.contiguous([100, 0, 129], 136, 256)
    block_m = deep_gemm.get_mk_alignment_for_contiguous_layout()
    assert call.lhs[0].size(0) % block_m == 0 and (call.rows == -1).any()
    first_of(name)(call.lhs, call.rhs, call.out, call.rows, disable_ue8m0_cast=True)
    call.check(exact=True)


@pytest.mark.parametrize("name", ["fp8_m_grouped_gemm_nt_masked", "m_grouped_gemm_fp8_fp8_bf16_nt_masked"])
def test_vllm_masked(name):
    """Workspaces are slices of one buffer, viewed with the shape and type that is needed."""
    call = grouped_cases.masked([7, 0, 16], 16, 136, 256)
    workspace = torch.full((3 * 16 * 136 + 1000,), float("nan"), dtype=torch.bfloat16)
    out = workspace[: 3 * 16 * 136].view(3, 16, 136)
    first_of(name)(call.lhs, call.rhs, out, call.rows, max(7, 16), disable_ue8m0_cast=True)
    call.out.copy_(torch.where(torch.arange(16)[:, None] < call.rows[:, None, None], out, call.out))
    call.check(exact=True)
    assert workspace[3 * 16 * 136 :].isnan().all()


def test_vllm_weights_after_loading():
    """The scales of all weights go through transform_sf_into_required_layout once, with keywords."""
    call = grouped_cases.masked([3, 4], 4, 264, 384)
    b, sfb = call.rhs
    sfb = deep_gemm.transform_sf_into_required_layout(
        sf=sfb, mn=b.size(1), k=b.size(2), recipe=(1, 128, 128), num_groups=b.size(0), is_sfa=False
    )
    deep_gemm.m_grouped_fp8_gemm_nt_masked(call.lhs, (b, sfb), call.out, call.rows, 4)
    call.check(exact=True)


# SGLang uses other names for some arguments, limits the SMs around a region, and converts scales itself.


@contextlib.contextmanager
def configure_deep_gemm_num_sms(num_sms: int | None) -> Iterator[None]:
    if num_sms is None:
        yield
        return
    original = deep_gemm.get_num_sms()
    deep_gemm.set_num_sms(num_sms)
    try:
        yield
    finally:
        deep_gemm.set_num_sms(original)


def test_sglang_dense_inside_a_bracket(dense):
    placed, bits = dense
    before = deep_gemm.get_num_sms()
    with configure_deep_gemm_num_sms(100):
        assert deep_gemm.get_num_sms() == 100
        deep_gemm.fp8_gemm_nt(placed.lhs, placed.rhs, placed.out)
    with configure_deep_gemm_num_sms(None):
        assert deep_gemm.get_num_sms() == before
    np.testing.assert_array_equal(placed.bits(), bits)


@pytest.mark.parametrize("keyword", ["m_indices", "grouped_layout"])
@pytest.mark.parametrize(
    "name", ["m_grouped_fp8_gemm_nt_contiguous", "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous"]
)
def test_sglang_contiguous(name, keyword):
    call = grouped_cases.contiguous([128, 128, 0], 136, 256)
    a, sfa = call.lhs
    sfa = deep_gemm.get_col_major_tma_aligned_tensor(sfa.contiguous())
    first_of(name)((a, sfa), call.rhs, call.out, **{keyword: call.rows})
    call.check(exact=True)


@pytest.mark.parametrize("name", ["m_grouped_fp8_gemm_nt_masked", "m_grouped_gemm_fp8_fp8_bf16_nt_masked"])
def test_sglang_masked(name):
    """Scales that the dispatch left row-major inside each group; keywords for the counts."""
    call = grouped_cases.masked([5, 0, 12], 12, 136, 256)
    a, sfa = call.lhs
    sfa = deep_gemm.utils.layout.get_mn_major_tma_aligned_tensor(sfa.contiguous())
    first_of(name)((a, sfa), call.rhs, call.out, masked_m=call.rows, expected_m=6)
    call.check(exact=True)


@pytest.mark.parametrize("generation", [1, 2])
def test_all_by_keyword(dense, generation):
    placed, bits = dense
    names = ("lhs", "rhs", "out") if generation == 1 else ("a", "b", "d")
    function = deep_gemm.gemm_fp8_fp8_bf16_nt if generation == 1 else deep_gemm.fp8_gemm_nt
    function(**dict(zip(names, (placed.lhs, placed.rhs, placed.out), strict=True)))
    np.testing.assert_array_equal(placed.bits(), bits)


# DeepGEMM's first tests use casts, layouts and measures from the top level of the package.


def test_first_generation_script():
    m, n, k = 64, 136, 512
    x, y = torch.randn(m, k, dtype=torch.bfloat16), torch.randn(n, k, dtype=torch.bfloat16)
    lhs = deep_gemm.utils.per_token_cast_to_fp8(x, use_ue8m0=False)
    lhs = (lhs[0], deep_gemm.get_col_major_tma_aligned_tensor(lhs[1]))
    rhs = deep_gemm.utils.per_block_cast_to_fp8(y, use_ue8m0=False)
    assert rhs[1].shape == (deep_gemm.ceil_div(n, 128), deep_gemm.ceil_div(k, 128))
    out = torch.empty((m, n), dtype=torch.bfloat16)
    deep_gemm.gemm_fp8_fp8_bf16_nt(lhs, rhs, out)
    assert deep_gemm.testing.calc_diff(out, x.float() @ y.float().T) < 1e-3
