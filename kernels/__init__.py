"""GEMM Ladder: the FP8 matrix product of DeepSeek-V3, written rung by rung for NVIDIA Hopper.

The top rung, to use, in place of DeepGEMM, by the names of either generation (`gemm_ladder.api`):

    import gemm_ladder as deep_gemm
    deep_gemm.fp8_gemm_nt((a, sfa), (b, sfb), d)    # CPU tensors: the reference; Hopper tensors: GPU

All rungs, to read and to compare:

    import gemm_ladder as gl
    rung = gl.rungs["s2_wgmma"]
    rung(lhs=(a, sfa), rhs=(b, sfb), out=d)     # CPU tensors: emulator; Hopper tensors: GPU
    with gl.emulator(seed=7, record=True) as run:
        rung((a, sfa), (b, sfb), d)
    run.events, run.steps

Importing this package compiles nothing, needs neither a GPU nor nvcc, and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING

from gemm_ladder.errors import EmulatorError, GemmLadderError

# Not lazily: the mapping has its module's name, so the module has to be imported before the mapping is bound.
from gemm_ladder.rungs import rungs

if TYPE_CHECKING:
    from gemm_ladder import build, ref, testing, utils
    from gemm_ladder.api import (
        fp8_gemm_nt,
        fp8_m_grouped_gemm_nt_masked,
        gemm_fp8_fp8_bf16_nt,
        m_grouped_fp8_gemm_nt_contiguous,
        m_grouped_fp8_gemm_nt_masked,
        m_grouped_gemm_fp8_fp8_bf16_nt_contiguous,
        m_grouped_gemm_fp8_fp8_bf16_nt_masked,
    )
    from gemm_ladder.config import Config
    from gemm_ladder.layout import (
        ceil_div,
        get_col_major_tma_aligned_tensor,
        get_mn_major_tma_aligned_tensor,
        get_tma_aligned_size,
        transform_sf_into_required_layout,
    )
    from gemm_ladder.precompiling import precompile
    from gemm_ladder.ref.emulator import emulator
    from gemm_ladder.settings import (
        get_m_alignment_for_contiguous_layout,
        get_mk_alignment_for_contiguous_layout,
        get_num_sms,
        get_theoretical_mk_alignment_for_contiguous_layout,
        set_mk_alignment_for_contiguous_layout,
        set_num_sms,
    )
    from gemm_ladder.testing import bench, bench_kineto, calc_diff
    from gemm_ladder.tuner import tune

# What is imported on first use, and so keeps `import gemm_ladder` fast: modules, and names by their module.
_MODULES = ("build", "ref", "testing", "utils")
_NAMES = {
    name: module
    for module, names in {
        "api": (
            "fp8_gemm_nt",
            "fp8_m_grouped_gemm_nt_masked",
            "gemm_fp8_fp8_bf16_nt",
            "m_grouped_fp8_gemm_nt_contiguous",
            "m_grouped_fp8_gemm_nt_masked",
            "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous",
            "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
        ),
        "layout": (
            "ceil_div",
            "get_col_major_tma_aligned_tensor",
            "get_mn_major_tma_aligned_tensor",
            "get_tma_aligned_size",
            "transform_sf_into_required_layout",
        ),
        "config": ("Config",),
        "precompiling": ("precompile",),
        "ref.emulator": ("emulator",),
        "settings": (
            "get_m_alignment_for_contiguous_layout",
            "get_mk_alignment_for_contiguous_layout",
            "get_num_sms",
            "get_theoretical_mk_alignment_for_contiguous_layout",
            "set_mk_alignment_for_contiguous_layout",
            "set_num_sms",
        ),
        "tuner": ("tune",),
        "testing": ("bench", "bench_kineto", "calc_diff"),
    }.items()
    for name in names
}
__all__ = [
    "Config",
    "EmulatorError",
    "GemmLadderError",
    "bench",
    "bench_kineto",
    "build",
    "calc_diff",
    "ceil_div",
    "emulator",
    "fp8_gemm_nt",
    "fp8_m_grouped_gemm_nt_masked",
    "gemm_fp8_fp8_bf16_nt",
    "get_col_major_tma_aligned_tensor",
    "get_m_alignment_for_contiguous_layout",
    "get_mk_alignment_for_contiguous_layout",
    "get_mn_major_tma_aligned_tensor",
    "get_num_sms",
    "get_theoretical_mk_alignment_for_contiguous_layout",
    "get_tma_aligned_size",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous",
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
    "precompile",
    "ref",
    "rungs",
    "set_mk_alignment_for_contiguous_layout",
    "set_num_sms",
    "testing",
    "transform_sf_into_required_layout",
    "tune",
    "utils",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
        globals()[name] = value  # the next use finds it without this function
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
