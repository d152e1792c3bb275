"""Compiling before the first call: every kernel that calls for an n and a k may need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

import torch
from gemm_ladder import build, checks, launch
from gemm_ladder.arguments import Kind
from gemm_ladder.build import background
from gemm_ladder.errors import InputError
from gemm_ladder.production import choice, fast_path, launching
from gemm_ladder.production.config import Config
from gemm_ladder.settings import num_sms_limit, whole_number


def precompile(
    n: int,
    k: int,
    groups: int = 1,
    max_m: int = 8192,
    kind: Kind = "dense",
    device: torch.device | int | None = None,
) -> list[Config]:
    """Compile and load every kernel that calls with m from 1 to max_m need.

    These are few kernels, not one for every m. As many are built at the same time as there are CPUs; if
    another process is building one already, this one waits for it. The fast path is built as well. On a
    terminal a progress bar is shown.

    Args:
        n, k: the sizes of B.
        groups: how many groups B has, in the grouped layouts.
        max_m: the largest m of a call; in the masked layout its max_m, or the largest expected_m.
        kind: "dense", "contiguous" or "masked".
        device: the GPU, a Hopper; None: the current one.

    Returns:
        The configurations, for the number of SMs that `set_num_sms` allows now.

    Raises:
        InputError: the arguments, or the GPU, cannot be used.
        gemm_ladder.build.ToolchainError, BuildError: a kernel could not be compiled.
    """
    for name, value in {"n": n, "k": k, "groups": groups, "max_m": max_m}.items():
        if whole_number(name, value) < 1:
            raise InputError(f"{name} is {value}; 1 or more is needed")
    if not torch.cuda.is_available():
        raise InputError("there is no GPU to precompile for; a Hopper GPU is needed")
    index = None if device is None else torch.device(device).index
    device = torch.cuda.current_device() if index is None else index
    checks.runs_on(torch.device("cuda", device))
    num_sms, gpu = launch.usable_sms(device, num_sms_limit()), torch.cuda.get_device_name(device)
    choice.check(kind, max_m, n, k, groups, num_sms)
    plan = launching.plan(kind, n, k, groups, num_sms, gpu)
    needed = dict.fromkeys(map(plan.at, choice.steps_up_to(kind, max_m, groups)))
    fast_path.start()
    build_all(list(needed), "cuda")
    fast_path.load()
    for config in needed:
        launching.library(config)
    return list(needed)


class Compiled(Protocol):
    """What has a kernel: a configuration of this package's."""

    def job(self, target: build.Target) -> build.Job:
        """What compiles it."""


def build_all(needed: Sequence[Compiled], target: build.Target) -> list[build.Built]:
    """Compile configurations at the same time, with a progress bar on a terminal."""
    from tqdm import tqdm

    jobs = [config.job(target) for config in needed]
    background.start(jobs[1:])  # this thread begins with the first one
    try:
        # Each of these calls builds, waits for the one that builds, or finds what was built.
        bar = tqdm(jobs, "kernels", leave=False, disable=not sys.stderr.isatty())
        return [build.make(job) for job in bar]
    finally:
        background.drop(jobs)
