"""The CPUs that this process may use: how many, and which instructions a compiler may use for them."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


def cpus() -> int:
    """The number of CPUs, at least 1. A container that is given 2.5 CPUs counts as 3."""
    here = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(here, *(math.ceil(quota) for quota in _quotas()), 1 << 20))


@functools.cache
def vector_flags() -> tuple[str, ...]:
    """The compiler flags for vectors of 256 bits and multiply-adds, where the CPU has both; else none.

    An x86-64 compiler uses neither by itself, an aarch64 compiler all that it needs.
    """
    if platform.machine() != "x86_64":
        return ()
    with contextlib.suppress(OSError):
        has = next(
            (set(line.split()) for line in _CPUINFO.read_text().splitlines() if line.startswith("flags")),
            set(),
        )
        if has >= {"avx2", "fma"}:
            return ("-mavx2", "-mfma")
    return ()


def _quotas() -> Iterator[float]:
    """The CPUs that this process's cgroup and those around it may use; nothing where there is no limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # version 1, as a container sees it
        quota, period = (
            int((_CGROUPS / "cpu" / f"cpu.cfs_{of}_us").read_text()) for of in ("quota", "period")
        )
        if quota > 0:
            yield quota / period
    try:
        own = next(line[3:].strip() for line in _OWN.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    folder = _CGROUPS / own.lstrip("/")
    for path in (folder, *folder.parents):
        if not path.is_relative_to(_CGROUPS):
            return
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # "max 100000": no limit
            allowed, each = (path / "cpu.max").read_text().split()
            yield int(allowed) / int(each)
