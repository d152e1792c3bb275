"""How vLLM, SGLang and DeepGEMM's own tests call the products on Hopper: arguments, layouts and the settings
around calls, written anew. deep_gemm_names.py has the names of DeepGEMM's interface."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator

import gemm_ladder as deep_gemm
import numpy as np
import pytest
import torch
from gemm_ladder.errors import InputError
from gemm_ladder.testing import calc_diff
from grouped_cases import contiguous, psum
from no_distribution import HIDE

DIFFERENCE = 1e-3  # calc_diff of a right product: the error of the casts


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    yield
    deep_gemm.set_num_sms(0)
    deep_gemm.set_mk_alignment_for_contiguous_layout(128)


def weights(
    groups: int, n: int, k: int, device: str
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Experts in FP32, and their casts as checkpoints have them."""
    w = torch.from_numpy(np.random.default_rng(1).standard_normal((groups, n, k), np.float32)).to(device)
    b, sfb = zip(*(deep_gemm.utils.per_block_cast_to_fp8(one) for one in w), strict=True)
    return w, (torch.stack(b), torch.stack(sfb))


def tokens(m: int, k: int, device: str) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Activations in FP32, and their cast with row-major scales, as a caller's own kernel makes them."""
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((m, k), np.float32)).to(device)
    return x, deep_gemm.utils.per_token_cast_to_fp8(x)


def test_vllm_warms_up(device: str) -> None:
    """m = 1, 2, 3, ... in slices of one buffer, before anything else."""
    w, (b, sfb) = weights(1, 136, 256, device)
    x, (a, sfa) = tokens(9, 256, device)
    out = torch.empty(9, 136, dtype=torch.bfloat16, device=device)
    for m in range(1, 10):
        deep_gemm.fp8_gemm_nt((a[:m], sfa[:m]), (b[0], sfb[0]), out[:m], disable_ue8m0_cast=True)
    assert calc_diff(out, x @ w[0].T) < DIFFERENCE


@contextlib.contextmanager
def alignment_of(rows: int) -> Iterator[None]:
    before = deep_gemm.get_mk_alignment_for_contiguous_layout()
    deep_gemm.set_mk_alignment_for_contiguous_layout(rows)
    try:
        yield
    finally:
        deep_gemm.set_mk_alignment_for_contiguous_layout(before)


@pytest.mark.parametrize("alignment", [64, 128])
def test_vllm_mixture_of_experts(alignment: int, device: str) -> None:
    """Ends of groups, an alignment around the calls, more rows than there are tokens, no synchronisation."""
    counts, k = [70, 0, 3, 129], 384
    call = psum(counts, 136, k, device, alignment, behind=200)
    with alignment_of(alignment):
        assert deep_gemm.get_theoretical_mk_alignment_for_contiguous_layout(202, 4) in (64, 128)
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
            call.lhs, call.rhs, call.out, call.rows, disable_ue8m0_cast=True, use_psum_layout=True
        )
    call.check(exact=False)


def test_vllm_experts_in_any_order(device: str) -> None:
    """Its warm-up gives each block of rows a random expert."""
    w, rhs = weights(3, 136, 256, device)
    x, lhs = tokens(512, 256, device)
    experts = [2, 0, 2, 1]
    out = torch.empty(512, 136, dtype=torch.bfloat16, device=device)
    rows = torch.tensor(experts, dtype=torch.int32, device=device).repeat_interleave(128)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(lhs, rhs, out, rows, disable_ue8m0_cast=True)
    for block, expert in enumerate(experts):
        mine = slice(128 * block, 128 * (block + 1))
        assert calc_diff(out[mine], x[mine] @ w[expert].T) < DIFFERENCE


def test_vllm_batched_experts(device: str) -> None:
    w, rhs = weights(3, 136, 256, device)
    x, (a, sfa) = tokens(3 * 64, 256, device)
    out = torch.zeros(3, 64, 136, dtype=torch.bfloat16, device=device)
    counts = torch.tensor([5, 0, 64], dtype=torch.int32, device=device)
    lhs = (a.view(3, 64, 256), sfa.view(3, 64, 2))
    deep_gemm.fp8_m_grouped_gemm_nt_masked(lhs, rhs, out, counts, 64, disable_ue8m0_cast=True)
    for expert, count in enumerate(counts.tolist()):
        if count:
            assert (
                calc_diff(out[expert, :count], x.view(3, 64, 256)[expert, :count] @ w[expert].T) < DIFFERENCE
            )
        assert not out[expert, count:].any()


def test_sglang_sets_sms_around_calls(device: str) -> None:
    w, (b, sfb) = weights(1, 136, 256, device)
    x, (a, sfa) = tokens(5, 256, device)
    lhs = (a, deep_gemm.get_mn_major_tma_aligned_tensor(sfa))
    for num_sms in (20, 100):
        before = deep_gemm.get_num_sms()
        deep_gemm.set_num_sms(num_sms)
        out = torch.empty(5, 136, dtype=torch.bfloat16, device=device)
        try:
            deep_gemm.fp8_gemm_nt(lhs, (b[0], sfb[0]), out)
        finally:
            deep_gemm.set_num_sms(before)
        assert calc_diff(out, x @ w[0].T) < DIFFERENCE


def test_sglang_keywords(device: str) -> None:
    call = contiguous([128, 60], 136, 256, device)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.out, m_indices=call.rows)
    call.out[call.rows == -1] = 0
    call.check(exact=False)


def test_deep_gemm_recipes(device: str) -> None:
    """One recipe for both operands, one for each, or none, and names that may mean FP4."""
    w, (b, sfb) = weights(1, 136, 256, device)
    x, lhs = tokens(5, 256, device)
    for recipes in (
        {},
        {"recipe": (1, 128, 128), "recipe_a": None, "recipe_b": None, "alpha": None},
        {"recipe_a": (1, 128), "recipe_b": [128, 128]},
    ):
        out = torch.empty(5, 136, dtype=torch.bfloat16, device=device)
        deep_gemm.fp8_fp4_gemm_nt(lhs, (b[0], sfb[0]), out, c=None, disable_ue8m0_cast=True, **recipes)
        assert calc_diff(out, x @ w[0].T) < DIFFERENCE


def test_misuse_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError):
        deep_gemm.fp8_gemm_nt(None, None, None)
    assert issubclass(InputError, ValueError)


# The wrappers of the real packages, where they are installed.

OPERANDS = """
import torch
from deep_gemm.testing import calc_diff
from deep_gemm.utils import get_mn_major_tma_aligned_tensor, per_block_cast_to_fp8, per_token_cast_to_fp8

x, w = torch.randn(256, 256), torch.randn(2, 136, 256)
a, sfa = per_token_cast_to_fp8(x)
b, sfb = map(torch.stack, zip(*map(per_block_cast_to_fp8, w)))
lhs, indices = (a, get_mn_major_tma_aligned_tensor(sfa)), torch.tensor([1, 0], dtype=torch.int32)
indices, counts, ends = indices.repeat_interleave(128), torch.tensor([128, 128]), torch.tensor([128, 256])
batched = a.view(2, 128, 256), get_mn_major_tma_aligned_tensor(sfa.view(2, 128, 2))
turned = torch.cat([x[:128] @ w[1].T, x[128:] @ w[0].T])
straight = torch.cat([x[:128] @ w[0].T, x[128:] @ w[1].T])


def new():
    return torch.empty(256, 136, dtype=torch.bfloat16)


def check(out, expected):
    assert calc_diff(out.view(expected.shape), expected) < 1e-3
"""
WRAPPERS = {
    "vllm": """
import vllm.utils.deep_gemm as wrapper

wrapper.fp8_gemm_nt(lhs, (b[0], sfb[0]), out := new())
check(out, x @ w[0].T)
wrapper.m_grouped_fp8_gemm_nt_contiguous(lhs, (b, sfb), out := new(), indices)
check(out, turned)
with wrapper.mk_alignment_scope(64):
    assert wrapper.get_mk_alignment_for_contiguous_layout() == [64, 64]
    wrapper.m_grouped_fp8_gemm_nt_contiguous(lhs, (b, sfb), out := new(), ends.int(), use_psum_layout=True)
check(out, straight)
out = new().view(2, 128, 136)
wrapper.fp8_m_grouped_gemm_nt_masked(batched, (b, sfb), out, counts.int(), 128)
check(out, straight)
assert wrapper.get_col_major_tma_aligned_tensor(sfa).stride() == (1, 256)
layout = {"mn": 136, "k": 256, "recipe": (1, 128, 128), "num_groups": 2, "is_sfa": False}
assert torch.equal(wrapper.transform_sf_into_required_layout(sf=sfb, **layout), sfb)
assert wrapper.get_theoretical_mk_alignment_for_contiguous_layout(100, 4) == 128
wrapper.set_num_sms(20)
assert wrapper.get_num_sms() == 20
used = wrapper._fp8_gemm_nt_impl, wrapper._grouped_impl, wrapper._grouped_masked_impl
""",
    "sglang": """
import deep_gemm
import sglang.srt.utils as machine

machine.is_cuda, machine.get_device_sm = (lambda: True), (lambda: 90)  # it uses DeepGEMM on a Hopper alone
from sglang.srt.layers import deep_gemm_wrapper as wrapper
from sglang.srt.layers.deep_gemm_wrapper import entrypoint

assert wrapper.ENABLE_JIT_DEEPGEMM and wrapper.DEEPGEMM_NEED_TMA_ALIGNED_SCALES
entrypoint._ensure_cuda = tuple
for recipe in (None, (1, 128, 128)):
    wrapper.gemm_nt_f8f8bf16(lhs, (b[0], sfb[0]), out := new(), recipe)
    check(out, x @ w[0].T)
wrapper.grouped_gemm_nt_f8f8bf16_contig(lhs, (b, sfb), out := new(), indices)
check(out, turned)
out = new().view(2, 128, 136)
wrapper.grouped_gemm_nt_f8f8bf16_masked(batched, (b, sfb), out, counts.int(), 128)
check(out, straight)
assert wrapper.get_contiguous_layout_alignment(100, 4) == 128
with wrapper.contiguous_layout_alignment_scope(64):
    assert deep_gemm.get_mk_alignment_for_contiguous_layout() == 64
with wrapper.configure_deep_gemm_num_sms(20):
    assert deep_gemm.get_num_sms() == 20
assert wrapper.get_mn_major_tma_aligned_tensor(sfa).stride() == (1, 256)
used = (deep_gemm.fp8_gemm_nt,)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("package", WRAPPERS)
def test_a_real_caller(package: str) -> None:
    """Its module around DeepGEMM finds this package's functions, and calls of it compute. On the CPU."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, which is not installed")
    program = (
        f"{HIDE}import gemm_ladder\ngemm_ladder.install_as_deep_gemm()\n{OPERANDS}{WRAPPERS[package]}"
        "assert all(one.__module__ == 'gemm_ladder.api' for one in used), used\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
