"""The production kernels: which one a call needs, loaded once, and launched.

`queue` is where a checked call of `gemm_ladder.api` on a GPU ends up. It picks the configuration, measured
(`tuned`) or expected (`choice`) to be the fastest, compiles or loads its kernel, launches it, and tells
`fast_path` about it, which launches later calls of the same weight, of this m and of those that get the same
configuration, without coming here.

When the first kernel of a weight has to be compiled, the weight's other kernels are compiled in the
background (`gemm_ladder.build.background`), because servers warm up by calls with m = 1, 2, 3, ...
`gemm_ladder.precompiling` compiles all of them before the first call.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import torch
from gemm_ladder import checks, settings
from gemm_ladder import launch as launches
from gemm_ladder.arguments import M_ALIGNMENT, Kind
from gemm_ladder.checks import CheckedCall, grouped
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.production import choice, fast_path, tuned
from gemm_ladder.production.config import WGMMA_M, Config

if TYPE_CHECKING:
    from gemm_ladder.build import Built

NAME = "the production kernel"  # in errors

_libraries: dict[Config, ctypes.CDLL] = {}
_ahead: set[choice.Plan] = set()  # the weights whose kernels were queued for the background


def queue(call: CheckedCall, expected_m: int = 0) -> None:
    """Queue a call on the current stream of its tensors' GPU.

    Args:
        call: with an m of 1 or more.
        expected_m: in the masked and the psum layout, about how many rows of a group count; 0: not known.

    Raises:
        LaunchError: the launch is refused, or the kernel is not loaded while a CUDA graph is captured.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    device = call.out.device
    now = settings.num_sms_limit(), settings.get_mk_alignment_for_contiguous_layout()
    weight, num_sms = _on_device(device, call.kind, call.n, call.k, call.groups, *now)
    rows = choice.rows_to_expect(call.kind, call.m, call.groups, expected_m)
    config = weight.at(rows)
    kernel = _libraries.get(config)
    if kernel is None:
        _refuse_capture(config, call)
        kernel = _libraries[config] = _built(weight, rows).lib
    ms = choice.same_rows(call.kind, call.m, call.groups, expected_m)
    sizes = (call.n, call.k, call.groups, expected_m)
    fast_path.add(device, call.kind, ms, *sizes, launches.launcher(kernel), num_sms, now)
    launches.on_gpu(NAME, kernel, call, num_sms)


@functools.lru_cache(maxsize=4096)
def _on_device(
    device: torch.device, kind: Kind, n: int, k: int, groups: int, num_sms: int, alignment: int
) -> tuple[choice.Plan, int]:
    """The kernels of a weight on a GPU, and how many of its SMs they use. It is kept until `forget`, as calls
    for the same weight ask for it again and again, while a server warms up with a new m each time.

    Args:
        num_sms, alignment: what is set now. `plan` reads the alignment from the settings itself.
    """
    usable = launches.usable_sms(device, num_sms)
    return plan(kind, n, k, groups, usable, torch.cuda.get_device_name(device)), usable


def _built(weight: choice.Plan, rows: int) -> Built:
    """The kernel of a weight for this number of rows. If it has to be compiled, so have probably the others:
    they and the fast path are queued for the background, and calls with other rows wait for their own kernel
    at most."""
    from gemm_ladder import build  # here: to import this module needs no compiler
    from gemm_ladder.build import background

    needed, *others = weight.from_rows(rows)

    def start_others() -> None:
        if settings.builds_in_background() and weight not in _ahead:
            _ahead.add(weight)
            fast_path.start()
            background.start(config.job("cuda") for config in others)

    job = needed.job("cuda")
    if found := build.find(job):
        return found
    built = build.make(job, start_others)
    start_others()  # another process has built this one
    return built


def _refuse_capture(config: Config, call: CheckedCall) -> None:
    """Raise LaunchError while a CUDA graph is being captured: loading a kernel would break the capture."""
    if grouped.capturing(call.out.device):
        raise LaunchError(
            f"a CUDA graph is being captured and {config.name} is not loaded; gemm_ladder.precompile("
            f"n={call.n}, k={call.k}, groups={call.groups}, max_m={call.m}, kind={call.kind!r}) is needed "
            "before"
        )


def configuration(
    kind: Kind, m: int, n: int, k: int, groups: int, expected_m: int | None, num_sms: int, gpu: str
) -> Config:
    """What a call runs: what was measured to be the fastest on this GPU model with so many SMs, or what is
    expected to be.

    Args: as `choice.choose`; gpu: the GPU's name.
    """
    return plan(kind, n, k, groups, num_sms, gpu).at(choice.rows_to_expect(kind, m, groups, expected_m))


def plan(kind: Kind, n: int, k: int, groups: int, num_sms: int, gpu: str) -> choice.Plan:
    """The kernels of a weight, those among them that were measured to be the fastest for a number of rows.

    Args: as `choice.choose`; gpu: the GPU's name.
    """
    alignment = _alignment(kind)
    measured = tuned.find(gpu, kind, n, k, groups, num_sms) if alignment == M_ALIGNMENT else ()
    return choice.plan(kind, n, k, groups, num_sms, gpu, measured, alignment)


def _alignment(kind: Kind) -> int:
    """The alignment that kernels are compiled for. In the contiguous layout, rows that are aligned to more
    than 128 are also aligned to 128."""
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    if kind == "psum":
        return alignment
    return M_ALIGNMENT if kind != "contiguous" or alignment % M_ALIGNMENT == 0 else WGMMA_M


def forget() -> None:
    """Choose anew from the next call on: what is known to be the fastest may have changed."""
    tuned.forget()
    _on_device.cache_clear()
    fast_path.forget()


def library(config: Config) -> ctypes.CDLL:
    """A configuration's kernel for the GPU, compiled if it is not in the cache, and loaded."""
    if config not in _libraries:
        _libraries[config] = config.compile("cuda").lib
    return _libraries[config]


@functools.lru_cache(maxsize=256)
def _emulated(config: Config) -> ctypes.CDLL:
    return config.compile("emulator").lib


def launch(
    config: Config,
    lhs: tuple[torch.Tensor, torch.Tensor],
    rhs: tuple[torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    rows: torch.Tensor | None = None,
    num_sms: int = 0,
) -> None:
    """Run one configuration where the tensors are: CPU tensors on the emulator, others on their GPU.

    Args:
        config: of the tensors' kind, n and k.
        lhs, rhs, out, rows: as `gemm_ladder.checks` describes them; rows: m_indices, masked_m or psum's ends.
        num_sms: how many SMs to use; 0: all of the GPU's, EMULATED_SMS of the emulator's.

    Raises:
        InputError: the tensors cannot be used, or are not of the configuration's kind, n and k.
        LaunchError: the launch was refused. EmulatorError: the emulator found the kernel at fault.
    """
    call = checks.operands(config.kind, lhs, rhs, out, rows, general=True)
    if (call.n, call.k) != (config.n, config.k):
        raise InputError(
            f"n is {call.n} and k is {call.k}; {config.n} and {config.k}, the configuration's, are needed"
        )
    if not call.m:
        return
    if call.a.is_cuda:
        launches.on_gpu(NAME, library(config), call, num_sms)
    else:
        launches.on_emulator(NAME, _emulated(config), call, num_sms)
