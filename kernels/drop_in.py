"""This package under the name `deep_gemm`, for programs that import that.

    gemm_ladder.install_as_deep_gemm()    # in this process, from now on
    pip install ./kernels/deep_gemm       # in every process of an environment, spawned ones too

There is one set of modules: `deep_gemm.utils` is the object `gemm_ladder.utils`, so what is set through one
name is seen through the other. A name that DeepGEMM has and this package has not, such as a BF16 product, is
taken from another DeepGEMM if one is installed: from its own package, or from the copy in vLLM's wheel.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gemm_ladder.errors import InputError

NAME, OURS = "deep_gemm", "gemm_ladder"
IN_VLLM = "vllm.third_party.deep_gemm"
ELSEWHERE = "_deep_gemm_elsewhere"  # what another DeepGEMM's own package is called in sys.modules


def install_as_deep_gemm() -> ModuleType:
    """Make `import deep_gemm`, and of its submodules, give this package in this process. Returns the package.

    Processes that are spawned later do not inherit it; the distribution in kernels/deep_gemm is for them.

    Raises:
        InputError: another deep_gemm has been imported already.
    """
    present = sys.modules.get(NAME)
    if present is not None and present.__name__ != OURS:
        where = getattr(present, "__file__", None) or "a place that it does not name"
        raise InputError(f"deep_gemm has been imported from {where}; this call is needed before that")
    return take_the_name()


def take_the_name() -> ModuleType:
    """As `install_as_deep_gemm`, whatever has been imported as deep_gemm: its distribution calls this when
    deep_gemm is imported, or looked for. The finder is the first one of sys.meta_path."""
    ours = importlib.import_module(OURS)
    if not installed():
        sys.meta_path.insert(0, _Finder())
    _alias_what_is_loaded()
    return ours


def _alias_what_is_loaded() -> None:
    """Give every module of this package its second name. To import it by that name would also replace an
    attribute of its parent, such as the function `bench` of `testing` by the module of that name."""
    for name, module in list(sys.modules.items()):
        if name == OURS or name.startswith(f"{OURS}."):
            sys.modules[NAME + name[len(OURS) :]] = module


def installed() -> bool:
    """Whether this process has this package as deep_gemm."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds deep_gemm.X where there is a gemm_ladder.X, and gives that module itself; else another DeepGEMM's
    X, such as `mega` or `utils.dist`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != NAME and not fullname.startswith(f"{NAME}."):
            return None
        inside = fullname[len(NAME) :]
        found = _spec(OURS + inside)
        if found is None and (other := another()):
            found = _spec(other.__name__ + inside)
        if found is None:
            return None
        package = found.submodule_search_locations is not None
        spec = importlib.util.spec_from_loader(fullname, self, origin=found.origin, is_package=package)
        assert spec is not None
        spec.loader_state = found.name
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.loader_state)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module has run already. The import has given it the alias's spec; it gets its own back."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
        _alias_what_is_loaded()


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a module, which is not imported; None where there is none."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of its parent
        return None


def elsewhere(module: str) -> Callable[[str], Any]:
    """A __getattr__ for one of this package's modules: it takes what the module does not have from another
    DeepGEMM, in a process that has this package as deep_gemm."""

    def getattr_(name: str) -> Any:
        if name.startswith("__") or not installed():
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        inside = module[len(OURS) :]
        other = another()
        if other is None:
            reason = "no other DeepGEMM is installed that could have it"
        else:
            try:
                return getattr(importlib.import_module(other.__name__ + inside), name)
            except (ImportError, AttributeError):
                reason = f"nor has the DeepGEMM in {getattr(other, '__file__', other.__name__)}"
        raise AttributeError(f"{NAME}{inside} is GEMM Ladder's here and has no {name}; {reason}")

    return getattr_


@functools.cache
def another() -> ModuleType | None:
    """Another DeepGEMM: the copy in vLLM's wheel if vLLM has imported it, else its own package, else vLLM's;
    None where there is none, or it cannot be imported."""
    for loaded in (IN_VLLM, ELSEWHERE):  # the second one while it is loading, if it imports deep_gemm itself
        if loaded in sys.modules:
            return sys.modules[loaded]
    own = importlib.machinery.PathFinder.find_spec(NAME)
    if own is not None and own.origin is not None and (found := _or_none(lambda: _load(str(own.origin)))):
        return found
    return _or_none(lambda: importlib.import_module(IN_VLLM)) if folder_in_vllm() else None


def _or_none(load: Callable[[], ModuleType]) -> ModuleType | None:
    """What is loaded; None where that fails, as for a DeepGEMM that was built for another torch."""
    try:
        return load()
    except Exception:
        sys.modules.pop(ELSEWHERE, None)
        return None


def folder_in_vllm() -> Path | None:
    """The folder of vLLM's wheel that has a copy of DeepGEMM, which this finds without importing vLLM."""
    vllm = importlib.util.find_spec("vllm")
    folders = (Path(one) / "third_party" for one in (vllm and vllm.submodule_search_locations) or ())
    return next((one for one in folders if (one / NAME).is_dir()), None)


def _load(file: str) -> ModuleType:
    """Another DeepGEMM's own package, under the name ELSEWHERE, as its own is taken."""
    spec = importlib.util.spec_from_file_location(
        ELSEWHERE, file, submodule_search_locations=[str(Path(file).parent)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[ELSEWHERE] = module
    spec.loader.exec_module(module)
    return module
