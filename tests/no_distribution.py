"""Hides the distribution of kernels/deep_gemm, for tests of what happens where no deep_gemm is installed."""

from __future__ import annotations

HIDE = """\
import importlib.machinery
import pathlib

_find = importlib.machinery.PathFinder.find_spec


def _hide(name, path=None, target=None):
    spec = _find(name, path, target)
    if name == "deep_gemm" and spec and spec.origin:
        if "gemm_ladder" in pathlib.Path(spec.origin).read_text():
            return None
    return spec


importlib.machinery.PathFinder.find_spec = staticmethod(_hide)
"""


def hide() -> None:
    """Hide it from this process."""
    exec(HIDE, {})
