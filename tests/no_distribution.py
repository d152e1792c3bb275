"""Hides the distribution of kernels/deep_gemm, for tests of what happens where no deep_gemm is installed."""

from __future__ import annotations

HIDE = """\
import importlib.machinery
import pathlib
import sys

_find = importlib.machinery.PathFinder.find_spec


def _hide(name, path=None, target=None):
    spec = _find(name, path, target)
    if name == "deep_gemm" and spec and spec.origin:
        folder = pathlib.Path(spec.origin).parent
        if "gemm_ladder" in (folder / "__init__.py").read_text():
            others = [one for one in path or sys.path if pathlib.Path(one) != folder.parent]
            return _find(name, others, target)
    return spec


importlib.machinery.PathFinder.find_spec = staticmethod(_hide)
"""


def hide() -> None:
    """Hide it from this process."""
    exec(HIDE, {})
