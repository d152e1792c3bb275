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
from families import DEVICE
from gemm_ladder.errors import InputError
from gemm_ladder.testing import calc_diff
from grouped_cases import contiguous, psum
from no_distribution import HIDE

DIFFERENCE = 1e-3  # calc_diff of a right product: the error of the casts


@pytest.fixture
def device(machine: str) -> str:
    """The API computes CPU tensors by the reference, so "emulator" stands for the CPU here."""
    return DEVICE[machine]


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

WRAPPERS = {
    "vllm": (
        "import vllm.utils.deep_gemm as wrapper\n"
        "wrapper._lazy_init()\n"
        "used = wrapper._fp8_gemm_nt_impl, wrapper._grouped_impl, wrapper._grouped_masked_impl\n"
    ),
    "sglang": (
        "import deep_gemm\n"
        "from sglang.srt.layers import deep_gemm_wrapper as wrapper\n"
        "used = deep_gemm.fp8_gemm_nt, deep_gemm.m_grouped_fp8_gemm_nt_contiguous\n"
        "assert callable(wrapper.gemm_nt_f8f8bf16)\n"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", WRAPPERS)
def test_a_real_caller(package: str) -> None:
    """It finds this package's functions under DeepGEMM's name."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, which is not installed")
    program = (
        f"{HIDE}import gemm_ladder\ngemm_ladder.install_as_deep_gemm()\n{WRAPPERS[package]}"
        "assert all(one.__module__ == 'gemm_ladder.api' for one in used), used\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
