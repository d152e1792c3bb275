"""The production kernels: which one a call needs, loaded once, launched in a few microseconds of host time.

`dense`, `contiguous` and `masked` queue a call of `gemm_ladder.api` whose tensors were checked. The first
call for a device, a kind and sizes makes a plan: the configuration, measured (`gemm_ladder.tuned`) or
expected (`gemm_ladder.config`) to be the best, and its kernel, compiled or found in the cache. Later ones,
where they are plain, are queued by `gemm_ladder.queueing`; the others look the plan up here.
`gemm_ladder.precompiling` compiles ahead.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from gemm_ladder import checks, queueing, tuned
from gemm_ladder import config as configs
from gemm_ladder.checks import align
from gemm_ladder.config import Config, Kind
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.rungs import EMULATED_SMS, GemmArgs
from gemm_ladder.settings import num_sms_limit

_MAX_PLANS = 1 << 16  # an entry for every m that was seen: forgotten all at once, as nobody needs so many

Launcher = Callable[[bytes], bytes | None]  # struct GroupedArgs -> None, or what went wrong


class GroupedArgs(GemmArgs):
    """struct GroupedArgs of include/args.cuh"""

    _fields_ = (
        ("layout", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        ("groups_a", ctypes.c_int64),
    )


_pack = struct.Struct("14q").pack  # GroupedArgs: a new one for each call costs less than one to be locked


class Plan(NamedTuple):
    """All of a launch that its tensors do not change."""

    launcher: Launcher
    num_sms: int
    sfa_stride: int


_plans: dict[tuple, Plan] = {}


def dense(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    out: torch.Tensor,
    m: int,
    n: int,
    k: int,
) -> None:
    """Queue out[m, n] = A[m, k] @ B[n, k].T; m is at least 1."""
    device = out.get_device()
    plan = _plan((device, num_sms_limit(), "dense", m, n, k, 1, 0))
    _queue(plan, device, a, sfa, b, sfb, out, m, n, k, 0, 1, 1)


def contiguous(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    out: torch.Tensor,
    m_indices: torch.Tensor,
    m: int,
    n: int,
    k: int,
    groups: int,
) -> None:
    """Queue out[i] = A[i] @ B[m_indices[i]].T for A [m, k] and B [groups, n, k]; zeros for a block of -1."""
    if not groups:  # so that every row is padding
        out.zero_()
        return
    device = out.get_device()
    plan = _plan((device, num_sms_limit(), "contiguous", m, n, k, groups, 0))
    _queue(plan, device, a, sfa, b, sfb, out, m, n, k, m_indices.data_ptr(), groups, 1)


def masked(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    out: torch.Tensor,
    masked_m: torch.Tensor,
    max_m: int,
    n: int,
    k: int,
    groups: int,
    expected_m: int,
) -> None:
    """Queue out[g, :r] = A[g, :r] @ B[g].T with r = masked_m[g]; out[g, r:] is left as it was."""
    if not groups:
        return
    device = out.get_device()
    plan = _plan((device, num_sms_limit(), "masked", max_m, n, k, groups, expected_m))
    _queue(plan, device, a, sfa, b, sfb, out, max_m, n, k, masked_m.data_ptr(), groups, groups)


def _queue(
    plan: Plan,
    device: int,
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    out: torch.Tensor,
    m: int,
    n: int,
    k: int,
    layout: int,
    groups: int,
    groups_a: int,
) -> None:
    launcher, num_sms, sfa_stride = plan
    arguments = _pack(
        a.data_ptr(),
        sfa.data_ptr(),
        b.data_ptr(),
        sfb.data_ptr(),
        out.data_ptr(),
        m,
        n,
        k,
        sfa_stride,
        num_sms,
        torch._C._cuda_getCurrentRawStream(device),  # current_stream() makes an object: a microsecond
        layout,
        groups,
        groups_a,
    )
    if torch.cuda.current_device() == device:
        error = launcher(arguments)
    else:
        with torch.cuda.device(device):
            error = launcher(arguments)
    if error is not None:
        raise LaunchError(f"the production kernel: {error.decode()}")


def _plan(key: tuple) -> Plan:
    """The plan of such calls. From now on `gemm_ladder.queueing` launches those that are plain."""
    plan = _plans.get(key) or _new_plan(key)
    device, _, *sizes = key
    queueing.add(torch.device("cuda", device), *sizes, plan.launcher, plan.num_sms)
    return plan


def _new_plan(key: tuple) -> Plan:
    device, limit, kind, m, n, k, groups, expected_m = key
    num_sms = usable_sms(device, limit)
    config = configuration(kind, m, n, k, groups, expected_m, num_sms, torch.cuda.get_device_name(device))
    if config not in _launchers:
        with torch.cuda.device(device):
            capturing = torch.cuda.is_current_stream_capturing()
        if capturing:
            raise LaunchError(
                f"a CUDA graph is being captured and {config.name} is not loaded; gemm_ladder.precompile("
                f"n={n}, k={k}, groups={groups}, max_m={m}, kind={kind!r}) is needed before"
            )
    if len(_plans) >= _MAX_PLANS:
        forget()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(queueing.load)  # builds something of its own, beside the kernel
        _plans[key] = plan = Plan(launcher(config), num_sms, align(m, 4))
    return plan


def usable_sms(device: int, limit: int) -> int:
    """How many SMs of a GPU to use: all, or `limit`, if that is not 0 and there are more."""
    total = torch.cuda.get_device_properties(device).multi_processor_count
    return min(limit or total, total)


def forget() -> None:
    """Make every plan anew, as what is known to be the best may have changed."""
    _plans.clear()
    queueing.forget()


def configuration(
    kind: Kind, m: int, n: int, k: int, groups: int, expected_m: int | None, num_sms: int, gpu: str
) -> Config:
    """What a call runs: what was measured to be the best on this GPU with so many SMs, or is expected to."""
    measured = tuned.find(
        gpu, kind, configs.rows_to_expect(kind, m, groups, expected_m), n, k, groups, num_sms
    )
    return measured or configs.choose(kind, m, n, k, groups, num_sms, expected_m)


_launchers: dict[Config, Launcher] = {}


def launcher(config: Config) -> Launcher:
    """The launcher of a configuration's kernel for the GPU, compiled if it is not in the cache."""
    if config not in _launchers:
        function = config.compile("cuda").lib.gemm_ladder_launch
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
        _launchers[config] = function
    return _launchers[config]


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
    """Run one configuration, where the tensors are: CPU tensors on the emulator, others on their GPU.

    Args:
        config: of the tensors' kind, n and k.
        lhs, rhs, out, rows: as `gemm_ladder.checks` describes them; rows: m_indices or masked_m.
        num_sms: how many SMs to use; 0: all of the GPU's, EMULATED_SMS of the emulator's.

    Raises:
        InputError: the tensors cannot be used, or are not of the configuration's kind, n and k.
        LaunchError: the launch was refused. EmulatorError: the emulator found the kernel at fault.
    """
    gemm = _checked(config.kind, lhs, rhs, out, rows)
    grouped = config.kind != "dense"
    n, k = gemm.b.shape[-2:]
    if (n, k) != (config.n, config.k):
        raise InputError(f"n is {n} and k is {k}; {config.n} and {config.k}, the configuration's, are needed")
    m = gemm.a.shape[-2]
    groups = gemm.b.shape[0] if grouped else 1
    if not m or not groups:
        return
    layout, groups_a = gemm[5].data_ptr() if grouped else 0, groups if config.kind == "masked" else 1
    if gemm.a.is_cuda:
        device = gemm.a.get_device()
        plan = Plan(launcher(config), usable_sms(device, num_sms), align(m, 4))
        _queue(plan, device, *gemm[:5], m, n, k, layout, groups, groups_a)
        return
    from gemm_ladder.ref import emulator

    pointers = [tensor.data_ptr() for tensor in gemm[:5]]
    sizes = [m, n, k, align(m, 4), num_sms or EMULATED_SMS, 0]
    arguments = GroupedArgs.from_buffer_copy(_pack(*pointers, *sizes, layout, groups, groups_a))
    if error := emulator.launch(_emulated(config), arguments):
        raise LaunchError(f"the production kernel: {error}")


def _checked(
    kind: Kind, lhs: object, rhs: object, out: object, rows: object
) -> checks.Gemm | checks.GroupedGemm:
    if kind == "dense":
        return checks.dense(lhs, rhs, out)
    return (checks.contiguous_groups if kind == "contiguous" else checks.masked_groups)(lhs, rhs, out, rows)
