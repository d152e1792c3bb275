"""Compiling before the first call: every kernel that calls of a product may need.

    gemm_ladder.precompile(7168, 2048)                                # for fp8_gemm_nt
    gemm_ladder.precompile(7168, 2048, groups=8, kind="k_grouped")    # for k_grouped_fp8_gemm_nt_contiguous

A product is named as its calls name it: by the layout and, where it is another than usual, the recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from gemm_ladder import build, calls, checks, launch
from gemm_ladder.arguments import KINDS, Kind
from gemm_ladder.build import background
from gemm_ladder.errors import InputError
from gemm_ladder.production import choice, fast_path, launching
from gemm_ladder.production.config import Config
from gemm_ladder.settings import num_sms_limit, whole_number
from gemm_ladder.training import candidates, products
from gemm_ladder.training import config as training_config
from gemm_ladder.training import launching as training_launching
from gemm_ladder.training.operands import RECIPE


def precompile(
    n: int,
    k: int,
    groups: int = 1,
    max_m: int = 8192,
    kind: Kind | Literal["k_grouped"] = "dense",
    device: torch.device | int | None = None,
    recipe: Sequence[int] | None = None,
) -> list[Config] | list[training_config.Config]:
    """Compile and load every kernel that calls with m from 1 to max_m need.

    These are few kernels, not one for every m. As many are built at the same time as there are CPUs; if
    another process is building one already, this one waits for it. The fast path is built as well. On a
    terminal a progress bar is shown.

    A training kernel is given all sizes when it is launched, so the same ones serve every m, n and k: six for
    one group, six more for up to 8 groups, and six more for more.

    Args:
        n, k: the sizes of B.
        groups: how many groups B has, in the grouped layouts.
        max_m: the largest m of a call; in the masked layout its max_m, or the largest expected_m.
        kind: the product. "dense": of `fp8_gemm_nt`. "contiguous", "masked" or "psum": of the calls that are
            grouped by rows. "k_grouped": of `k_grouped_fp8_gemm_nt_contiguous`.
        device: the GPU, a Hopper; None: the current one.
        recipe: as the calls have it: None, or for dense calls (1, 1, 128), which is also the product of
            `wgrad_gemm_fp8_fp8_fp32_nt`.

    Returns:
        The configurations, for the number of SMs that `set_num_sms` allows now.

    Raises:
        InputError: the arguments, or the GPU, cannot be used.
        gemm_ladder.build.ToolchainError, BuildError: a kernel could not be compiled.
    """
    for name, value in {"n": n, "k": k, "groups": groups, "max_m": max_m}.items():
        if whole_number(name, value) < 1:
            raise InputError(f"{name} is {value}; 1 or more is needed")
    trains = _trains(kind, recipe)
    gpu = gpu_of(device)
    if kind == "k_grouped":
        return _training(groups)
    if trains:
        return _training(1)
    choice.check(kind, max_m, n, k, groups, gpu.num_sms)
    needed = configurations(kind, n, k, groups, choice.steps_up_to(kind, max_m, groups), gpu)
    fast_path.start()
    build_all(needed, "cuda")
    fast_path.load()
    for config in needed:
        launching.library(config)
    return needed


class Gpu(NamedTuple):
    """What calls on a GPU choose their kernels by: its name, and how many of its SMs may be used now."""

    name: str
    num_sms: int


def gpu_of(device: torch.device | int | None) -> Gpu:
    """A GPU to precompile for; None: the current one.

    Raises:
        InputError: it is another device, there is none, or it is no Hopper.
    """
    index = device if device is None or isinstance(device, int) else _index(device)
    if not torch.cuda.is_available():
        raise InputError("there is no GPU to precompile for; a Hopper GPU is needed")
    index = torch.cuda.current_device() if index is None else index
    if not 0 <= index < (count := torch.cuda.device_count()):
        raise InputError(f"device is GPU {index}; less than {count}, the number of GPUs, is needed")
    checks.runs_on(torch.device("cuda", index))
    return Gpu(torch.cuda.get_device_name(index), launch.usable_sms(index, num_sms_limit()))


def _index(device: object) -> int | None:
    """The number of a GPU; None where its device does not say which."""
    try:
        found = torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type != "cuda":
        raise InputError(f"device is {device!s}; a GPU, which kernels are compiled for, is needed")
    index: int | None = found.index
    return index


def configurations(kind: Kind, n: int, k: int, groups: int, steps: Iterable[int], gpu: Gpu) -> list[Config]:
    """The configurations that a product gets for numbers of rows, of a group if there are groups, each one of
    choice.STEPS."""
    plan = launching.plan(kind, n, k, groups, gpu.num_sms, gpu.name)
    return list(dict.fromkeys(map(plan.at, steps)))


def _trains(kind: str, recipe: object) -> bool:
    """Whether this is a product of `gemm_ladder.training`. Raises InputError for a recipe of no such kind."""
    asked_for = products.asks_for_this(recipe, None, None)
    if kind == "k_grouped":
        if recipe is not None and not asked_for:
            raise InputError(f"recipe is {recipe!r}; {RECIPE} or None is needed for kind {kind!r}")
        return True
    if asked_for and kind != "dense":
        raise InputError(f"recipe is {recipe!r}; None is needed for kind {kind!r}")
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; one of {', '.join((*KINDS, 'k_grouped'))} is needed")
    if not asked_for:
        calls.check_options(None, recipe, None, None, None, None)
    return asked_for


def _training(groups: int) -> list[training_config.Config]:
    """Compile and load every kernel that a training call with so many groups may need."""
    needed = candidates.all_for(groups)
    build_all(needed, "cuda")
    for config in needed:
        training_launching.library(config)
    return needed


class Compiled(Protocol):
    """What has a kernel: a configuration of this package's, a cast, or a kernel of layers."""

    @property
    def name(self) -> str:
        """For people, and of the library."""

    def source(self) -> str:
        """The source text."""

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
