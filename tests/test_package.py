"""The package as `import gemm_ladder` gives it: its names, and that importing it stays cheap."""

from __future__ import annotations

import subprocess
import sys

import gemm_ladder as gl
import pytest


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light():
    """No torch, no Numba, nothing compiled; the table of rungs is there."""
    heavy = "{'torch', 'numpy', 'numba', 'matplotlib'}"
    code = f"import sys, gemm_ladder as gl; print(sorted({heavy} & set(sys.modules)), *gl.rungs)"
    assert python(code).split() == ["[]", *gl.rungs]


def test_public_names():
    code = "import gemm_ladder as gl; [getattr(gl, name) for name in gl.__all__]; print(*gl.__all__)"
    assert python(code).split() == [
        "Config",
        "EmulatorError",
        "GemmLadderError",
        "align",
        "bench",
        "bench_kineto",
        "build",
        "calc_diff",
        "cast_back_from_fp8",
        "ceil_div",
        "ceil_to_ue8m0",
        "emulator",
        "fp8_fp4_gemm_nn",
        "fp8_fp4_gemm_nt",
        "fp8_fp4_gemm_tn",
        "fp8_fp4_gemm_tt",
        "fp8_gemm_nn",
        "fp8_gemm_nt",
        "fp8_gemm_tn",
        "fp8_gemm_tt",
        "fp8_m_grouped_gemm_nt_masked",
        "gemm_fp8_fp8_bf16_nt",
        "get_col_major_tma_aligned_tensor",
        "get_k_alignment_for_contiguous_layout",
        "get_m_alignment_for_contiguous_layout",
        "get_mk_alignment_for_contiguous_layout",
        "get_mn_major_tma_aligned_packed_ue8m0_tensor",
        "get_mn_major_tma_aligned_tensor",
        "get_num_sms",
        "get_pdl",
        "get_tc_util",
        "get_theoretical_mk_alignment_for_contiguous_layout",
        "get_tma_aligned_size",
        "install_as_deep_gemm",
        "judge",
        "k_grouped_fp8_gemm_nt_contiguous",
        "k_grouped_wgrad_gemm_fp8_fp8_fp32_nt",
        "lab",
        "layers",
        "m_grouped_fp8_fp4_gemm_nn_contiguous",
        "m_grouped_fp8_fp4_gemm_nt_contiguous",
        "m_grouped_fp8_fp4_gemm_nt_masked",
        "m_grouped_fp8_gemm_nn_contiguous",
        "m_grouped_fp8_gemm_nt_contiguous",
        "m_grouped_fp8_gemm_nt_masked",
        "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous",
        "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
        "pack_ue8m0_to_int",
        "per_block_cast_to_fp8",
        "per_block_quant_fp8",
        "per_channel_cast_to_fp8",
        "per_channel_group_quant_fp8",
        "per_custom_dims_cast_to_fp8",
        "per_token_cast_to_fp8",
        "per_token_group_quant_fp8",
        "precompile",
        "ref",
        "rms_norm_per_block_quant_fp8",
        "rms_norm_per_channel_group_quant_fp8",
        "rms_norm_per_token_group_quant_fp8",
        "rungs",
        "set_block_size_multiple_of",
        "set_ignore_compile_dims",
        "set_mk_alignment_for_contiguous_layout",
        "set_num_sms",
        "set_pdl",
        "set_tc_util",
        "silu_and_mul_per_block_quant_fp8",
        "silu_and_mul_per_channel_group_quant_fp8",
        "silu_and_mul_per_token_group_quant_fp8",
        "testing",
        "transform_sf_into_required_layout",
        "tune",
        "unpack_ue8m0_from_int",
        "use_deterministic_algorithms",
        "utils",
        "wgrad_gemm_fp8_fp8_fp32_nt",
    ]
    with pytest.raises(AttributeError, match="module 'gemm_ladder' has no attribute 'nonsense'"):
        _ = gl.nonsense


def test_rungs_is_the_mapping_after_any_import():
    """The mapping and the module that defines it have one name."""
    code = "import gemm_ladder.rungs as r, gemm_ladder as gl; print(r is gl.rungs, type(r).__name__)"
    assert python(code).split() == ["True", "Rungs"]


def test_cpu_tensors_leave_cuda_alone():
    code = """if True:
        import torch, gemm_ladder as gl
        a = torch.zeros(1, 128).to(torch.float8_e4m3fn)
        one, out = torch.ones(1, 1), torch.empty(1, 1, dtype=torch.bfloat16)
        gl.rungs["s0_numpy"]((a, one), (a, one), out)
        print(out.item(), torch.cuda.is_initialized())
    """
    assert python(code).split() == ["0.0", "False"]
