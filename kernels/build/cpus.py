"""How many CPUs this process may use: those that it may run on, and what its cgroup's quota pays for."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def cpus() -> int:
    """The number of CPUs, at least 1. A container that is given 2.5 CPUs counts as 3."""
    here = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(here, *(math.ceil(quota) for quota in _quotas()), 1 << 20))


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
