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

Operators of torch are found in the same way, when torch.ops.gemm_ladder is asked for one, as by
torch.export.load. What does not ask there, such as torch.jit.load, needs gemm_ladder.api and
gemm_ladder.layers, which register them, to be imported before.
"""

import functools
import importlib
import importlib.abc
import sys

import lazy_loader
from gemm_ladder import drop_in

# Not lazily: the mapping has its module's name, so the module has to be imported before the mapping is bound.
from gemm_ladder.rungs import rungs  # noqa: F401

_own, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_elsewhere = drop_in.elsewhere(__name__)


def __getattr__(name: str) -> object:
    return _own(name) if name in __all__ else _elsewhere(name)


def _operators_are_offered() -> bool:
    """Let torch.ops.gemm_ladder import the operators that it is asked for, if torch is there; else False."""
    ops = getattr(sys.modules.get("torch._ops"), "ops", None)
    if ops is None:
        return False
    namespace = getattr(ops, __name__, None)  # torch makes it if nobody has asked for it yet
    if namespace is None:  # something that is not torch
        return False
    vars(namespace)["__getattr__"] = functools.partial(_operator, namespace)
    return True


def _operator(namespace: object, name: str) -> object:
    """What torch.ops.gemm_ladder does not have yet, found by torch's own search."""
    search = type(namespace).__getattr__
    try:
        return search(namespace, name)
    except AttributeError:
        defining = getattr(sys.modules.get(f"{__name__}.ops"), "defining", None)
        if name.startswith("__") or (defining is not None and defining()):
            raise
    for module in ("api", "layers"):  # which import all modules that define operators
        importlib.import_module(f"{__name__}.{module}")
    return search(namespace, name)


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds no module. As it is asked for every one, it notices that torch is imported. It stays, since the
    import that asks it would leave out the next finder if sys.meta_path became shorter."""

    done = False

    def find_spec(self, fullname, path, target=None) -> None:  # type: ignore[no-untyped-def]
        self.done = self.done or _operators_are_offered()


if not _operators_are_offered() and not any(type(one).__name__ == "_Watcher" for one in sys.meta_path):
    sys.meta_path.insert(0, _Watcher())

__version__ = "0.1.0"
