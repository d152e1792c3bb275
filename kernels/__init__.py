"""GEMM Ladder: the FP8 matrix product of DeepSeek-V3, written rung by rung for NVIDIA Hopper.

The top rung, to use in place of DeepGEMM, by the names of either generation (`gemm_ladder.api`):

    import gemm_ladder as deep_gemm
    deep_gemm.fp8_gemm_nt((a, sfa), (b, sfb), d)    # CPU tensors: the reference; Hopper tensors: the GPU

All rungs, to read and to compare:

    import gemm_ladder as gl
    rung = gl.rungs["s3_wgmma"]
    rung(lhs=(a, sfa), rhs=(b, sfb), out=d)     # CPU tensors: the emulator; Hopper tensors: the GPU
    with gl.emulator(seed=7, record=True) as run:
        rung((a, sfa), (b, sfb), d)
    run.events, run.steps

Importing this package compiles nothing, needs neither a GPU nor nvcc, and does not import torch: what a name
stands for is imported when the name is first used. The names are listed in __init__.pyi, and nowhere else.
"""

import lazy_loader
from gemm_ladder import drop_in

# Not lazily: the mapping has its module's name, so the module has to be imported before the mapping is bound.
from gemm_ladder.rungs import rungs  # noqa: F401

_own, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_elsewhere = drop_in.elsewhere(__name__)


def __getattr__(name: str) -> object:
    return _own(name) if name in __all__ else _elsewhere(name)


__version__ = "0.1.0"
