"""Hides the distribution of kernels/deep_gemm, for tests of what happens where no deep_gemm is installed."""

from __future__ import annotations

HIDE = """\
import sys

sys.meta_path[:] = [one for one in sys.meta_path if one.__module__ != "gemm_ladder_as_deep_gemm"]
"""


def hide() -> None:
    """Hide it from this process."""
    exec(HIDE, {})
