"""GEMM Ladder: the FP8 matrix product of DeepSeek-V3, written rung by rung for NVIDIA Hopper.

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
    from gemm_ladder import build, ref
    from gemm_ladder.ref.emulator import emulator

__all__ = ["EmulatorError", "GemmLadderError", "build", "emulator", "ref", "rungs"]


def __getattr__(name: str) -> object:
    """Import on first use what would make `import gemm_ladder` slow."""
    if name in ("build", "ref"):
        return importlib.import_module(f"{__name__}.{name}")
    if name == "emulator":
        return importlib.import_module(f"{__name__}.ref.emulator").emulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
