"""Time the rungs and their peers on one Hopper GPU, and compare each result with a float64 reference.

What is measured: the time that the GPU spends in the kernels of one call, as the CUDA profiler reports it,
summed over the call's kernels; not the host's share, not the gaps between kernels. Inputs are random normal
numbers. L2 is cold before every call, in one of two ways:

    dirty   8 GB were just written: L2 is full of lines that the call has to write back first. Published
            DeepGEMM figures are measured so; it is the primary figure.
    clean   1 GB was then read: L2 is full of lines that can be dropped.

Every implementation is measured in one process, in two passes of opposite order; the pass with the better
median gives the figures, its percentiles included.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gemm_ladder.checks import BLOCK, ceil_div, mn_major
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.shapes import Product, Shape
from gemm_ladder.utils import per_block_cast_to_fp8, per_token_cast_to_fp8

L2 = Literal["dirty", "clean"]
L2_STATES: tuple[L2, ...] = ("dirty", "clean")

FLUSH_BYTES = 8_000_000_000
READ_BYTES = 1_000_000_000
MIN_CALLS, MAX_CALLS, PASS_SECONDS = 1, 20, 0.75  # a pass: as many calls as fit, within these numbers
MARKER = "spin_kernel"  # the kernel of torch.cuda._sleep: stands before and after each measured call

# A correct result differs from the reference by its rounding to BF16 (half a unit in 8 bits) and by the
# tensor core's 14-bit additions. A lost tile, a stale one or a wrong scale gives errors of the order of 1.
MAX_RELATIVE_ERROR = 5e-3
MAX_ELEMENT_ERROR = 5e-2


# ----------------------------------------------------------------------------------------------- the problem


@dataclass(frozen=True)
class Problem:
    """Operands of one product, all on one device: float8_e4m3fn a [m, k], b [n, k]; float32 scales
    sfa [m, ceil(k / 128)], MN-major, and sfb [ceil(n / 128), ceil(k / 128)]."""

    shape: Shape
    a: torch.Tensor
    sfa: torch.Tensor
    b: torch.Tensor
    sfb: torch.Tensor

    def reference(self, scaled: bool = True) -> torch.Tensor:
        """float64 [m, n]: the product of the dequantised operands; without the scales if not `scaled`."""
        if not scaled:
            return self.a.double() @ self.b.double().T
        return dequantize(self.a, self.sfa, 1) @ dequantize(self.b, self.sfb, BLOCK).T

    def output(self) -> torch.Tensor:
        """A bfloat16 [m, n] for the result, full of NaN."""
        m, n, _ = self.shape
        return torch.full((m, n), float("nan"), dtype=torch.bfloat16, device=self.a.device)


def make_problem(shape: Shape, device: torch.device | str, seed: int = 0) -> Problem:
    """Random normal matrices, cast to FP8 with one scale per 1x128 of A and per 128x128 of B."""
    generator = torch.Generator(device).manual_seed(seed)
    m, n, k = shape
    a, sfa = per_token_cast_to_fp8(torch.randn(m, k, generator=generator, device=device))
    b, sfb = per_block_cast_to_fp8(torch.randn(n, k, generator=generator, device=device))
    return Problem(shape, a, mn_major(sfa), b, sfb)


def dequantize(fp8: torch.Tensor, scales: torch.Tensor, rows: int) -> torch.Tensor:
    """float64 [r, k]: the numbers that FP8 [r, k] and its scales, one per `rows` x 128 block, stand for."""
    r, k = fp8.shape
    spread = scales.double().repeat_interleave(rows, 0)[:r].repeat_interleave(BLOCK, 1)[:, :k]
    return fp8.double() * spread


class Errors(NamedTuple):
    """How far a result is from the reference: `relative`, ||out - ref|| / ||ref||, over the whole matrix, and
    `element`, the largest |out - ref| over the root mean square of the reference's row it is in."""

    relative: float
    element: float

    @property
    def right(self) -> bool:
        return self.relative <= MAX_RELATIVE_ERROR and self.element <= MAX_ELEMENT_ERROR  # False for NaN

    def worst(self, other: Errors) -> Errors:
        """The larger of each; NaN where either is."""
        return Errors(*(y if y != y or y > x else x for x, y in zip(self, other, strict=True)))


def errors(out: torch.Tensor, reference: torch.Tensor) -> Errors:
    """Compare all of `out` [m, n] with the float64 `reference` [m, n]; NaN where anything is NaN."""
    difference = out.double() - reference
    row = reference.square().mean(dim=1, keepdim=True).sqrt()
    return Errors(
        (difference.norm() / reference.norm()).item(),
        (difference.abs() / row).max().item(),
    )


# ------------------------------------------------------------------------------------------------- the peers

Call = Callable[[], Any]  # runs once, on the current stream, and returns its output, or those of its groups


def cublaslt_blockwise(problem: Problem) -> Call:
    """cuBLASLt's FP8 product with the same 1x128 and 128x128 scales, through torch (CUDA 12.9 or newer)."""
    m, _, k = problem.shape
    blocks = ceil_div(k, BLOCK)
    # torch wants A's scales [m, k / 128] with strides (1, m), and B's [k / 128, n / 128] with strides
    # (1, k / 128 rounded up to 4). scaled_mm wants the rounding in B's shape as well, _scaled_mm does not.
    sfa = torch.empty_strided((m, blocks), (1, m), device=problem.a.device).copy_(problem.sfa)
    sfb = F.pad(problem.sfb, (0, -blocks % 4)).T
    b = problem.b.T

    def scaled_mm() -> torch.Tensor:
        recipe = F.ScalingType
        return F.scaled_mm(
            problem.a,
            b,
            scale_a=sfa,
            scale_recipe_a=recipe.BlockWise1x128,
            scale_b=sfb,
            scale_recipe_b=recipe.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )

    def _scaled_mm() -> torch.Tensor:
        return torch._scaled_mm(problem.a, b, scale_a=sfa, scale_b=sfb[:blocks], out_dtype=torch.bfloat16)

    refusals = []
    for call in (scaled_mm, _scaled_mm):
        try:
            call()
        except Exception as error:  # which of the two a torch has, and takes, differs from release to release
            refusals.append(f"{call.__name__}: {one_line(error)}")
        else:
            return call
    raise RuntimeError("; ".join(refusals))


def cublaslt_tensorwise(problem: Problem) -> Call:
    """cuBLASLt's FP8 product without block scales and without promotion (fast accumulation): a ceiling for
    this data type, not the same function. Its result is compared with the unscaled product."""
    one = torch.ones((), device=problem.a.device)
    b = problem.b.T
    return lambda: torch._scaled_mm(
        problem.a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def cublas_bf16(problem: Problem) -> Call:
    """cuBLAS's BF16 product of the dequantised operands."""
    a = dequantize(problem.a, problem.sfa, 1).bfloat16()
    b = dequantize(problem.b, problem.sfb, BLOCK).bfloat16().T
    out = problem.output()
    return lambda: torch.mm(a, b, out=out)


def deep_gemm(problem: Problem) -> Call:
    """DeepGEMM, of either generation, where it is installed."""
    import deep_gemm as library

    gemm = getattr(library, "fp8_gemm_nt", None) or library.gemm_fp8_fp8_bf16_nt
    out = problem.output()

    def call() -> torch.Tensor:
        gemm((problem.a, problem.sfa), (problem.b, problem.sfb), out)
        return out

    return call


Peer = Callable[[Problem], Call]
PEERS: Mapping[str, Peer] = {
    peer.__name__: peer for peer in (cublaslt_blockwise, cublaslt_tensorwise, cublas_bf16, deep_gemm)
}
UNSCALED = ("cublaslt_tensorwise", "torch_grouped")


def bytes_moved(impl: str, shape: Shape) -> int:
    """The least that `impl` moves through memory at `shape`."""
    m, n, k = shape
    if impl == "cublas_bf16":
        return 2 * (m * k + n * k + m * n)
    return m * k + n * k + 2 * m * n if impl in UNSCALED else shape.bytes


# ------------------------------------------------------------------------------------------------ the timing


class Timing(NamedTuple):
    """Microseconds of one call: median, 10th and 90th percentile."""

    us: float
    p10: float
    p90: float


Timer = Callable[[Call, L2, int], Sequence[float]]  # (call, l2, calls) -> microseconds of each call


class ProfilerError(GemmLadderError, RuntimeError):
    """The CUDA profiler does not report what ran."""


class KernelTimer:
    """Times calls on one GPU with the CUDA profiler.

    timer(call, l2, calls) -> microseconds of each call's kernels. Raises ProfilerError where it cannot tell.
    """

    def __init__(self, device: torch.device) -> None:
        free, _ = torch.cuda.mem_get_info(device)
        self.flush_bytes = min(FLUSH_BYTES, free // 2) // 8 * 8
        self._buffer = torch.empty(self.flush_bytes // 8, dtype=torch.int64, device=device)
        self._read = self._buffer[: READ_BYTES // 8]
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # two lines on stderr per use otherwise
        self._profile(lambda: None, "clean", 1)  # sets the profiler up, and tells whether it works

    def __call__(self, call: Callable[[], object], l2: L2, calls: int) -> list[float]:
        try:
            times = self._profile(call, l2, calls)
        except ProfilerError:  # an event may get lost; twice is no accident
            times = self._profile(call, l2, calls)
        if not all(times):
            raise ProfilerError("the CUDA profiler saw no kernel in a call")
        return times

    def _profile(self, call: Callable[[], object], l2: L2, calls: int) -> list[float]:
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(calls):
                self._buffer.zero_()
                if l2 == "clean":
                    self._read.sum()
                torch.cuda._sleep(1)
                call()
                torch.cuda._sleep(1)
            torch.cuda.synchronize()
        on_gpu = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        on_gpu.sort(key=lambda event: event.time_range.start)
        return between_markers([(event.name, event.time_range.elapsed_us()) for event in on_gpu], calls)


def between_markers(kernels: Iterable[tuple[str, float]], calls: int) -> list[float]:
    """The summed durations of each measured call.

    Args:
        kernels: (name, duration) in the order in which they ran: what makes L2 cold, a marker, the kernels
            of a call, a marker; and again.
        calls: how many calls there were.

    Raises:
        ProfilerError: the number of markers is not two per call: the profiler lost something.
    """
    times, inside, markers = [], False, 0
    for name, duration in kernels:
        if MARKER in name:
            markers += 1
            inside = not inside
            if inside:
                times.append(0.0)
        elif inside:
            times[-1] += duration
    if markers != 2 * calls:
        raise ProfilerError(f"the CUDA profiler reported {markers} markers; {2 * calls} are needed")
    return times


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """About how long a call takes on the GPU, the first one's set-up left out."""
    for _ in range(2):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        elapsed = time.perf_counter() - started
        if elapsed > PASS_SECONDS / MIN_CALLS:
            break
    return elapsed


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def calls_for(seconds: float) -> int:
    """How many calls of this length a pass makes."""
    return max(MIN_CALLS, min(MAX_CALLS, int(PASS_SECONDS / max(seconds, 1e-6))))


def measure(
    calls: Mapping[str, Call],
    counts: Mapping[str, int],
    states: Sequence[L2],
    timer: Timer,
    tick: Callable[[str], None] = lambda name: None,
) -> tuple[dict[tuple[str, L2], Timing], dict[str, str]]:
    """Time every call in two passes of opposite order.

    Args:
        calls, counts: by implementation; a pass makes `counts` calls of each in each state of L2.
        timer: a KernelTimer.
        tick: called with an implementation's name before each of its passes.

    Returns:
        The timings by (implementation, L2), and the reasons of implementations that failed, by name.
    """
    timings: dict[tuple[str, L2], Timing] = {}
    failures: dict[str, str] = {}
    for order in (list(calls), list(calls)[::-1]):
        for name in order:
            tick(name)
            if name in failures:
                continue
            try:
                for l2 in states:
                    p10, median, p90 = np.percentile(timer(calls[name], l2, counts[name]), [10, 50, 90])
                    best = timings.get((name, l2))
                    if best is None or median < best.us:
                        timings[name, l2] = Timing(float(median), float(p10), float(p90))
            except Exception as error:  # one implementation's trouble is not the others'
                failures[name] = one_line(error)
    return {key: timing for key, timing in timings.items() if key[0] not in failures}, failures


def row(
    impl: str, product: Product | Shape, l2: L2, timing: Timing, relative_error: float
) -> dict[str, object]:
    """One row of figures/data/*.json: microseconds, TFLOPS and GB/s of the rows that count, relative error.

    A product that is a Shape is a dense one.
    """
    if isinstance(product, Shape):
        product = Product("dense", 1, product)
    kind, groups, shape = product
    flops = sum(part.flops for part in product.parts)
    moved = sum(bytes_moved(impl, part) for part in product.parts)
    return {
        "kind": kind,
        "groups": groups,
        **shape._asdict(),
        "impl": impl,
        "l2": l2,
        "us": round(timing.us, 3),
        "us_p10": round(timing.p10, 3),
        "us_p90": round(timing.p90, 3),
        "tflops": round(flops / timing.us / 1e6, 3),
        "gb_s": round(moved / timing.us / 1e3, 1),
        "rel_err": float(f"{relative_error:.3g}"),
    }


# -------------------------------------------------------------------------------------------- where and when


def machine(device: torch.device, flush_bytes: int) -> dict[str, object]:
    """The "meta" of a measurement: what it ran on, when, with which sources, and how it was taken."""
    from gemm_ladder import build

    properties = torch.cuda.get_device_properties(device)
    smi = _nvidia_smi(str(getattr(properties, "uuid", "")))
    nvcc = None
    with contextlib.suppress(Exception):
        nvcc = build.find_cuda().version
    return {
        "gpu": properties.name,
        "num_sms": properties.multi_processor_count,
        "power_limit_w": smi.get("power.limit"),
        "driver": smi.get("driver_version"),
        "cuda": torch.version.cuda,
        "nvcc": nvcc,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "sources": build.sources_digest(),
        "protocol": (
            "kernel time from the CUDA profiler (sum of the call's kernels); random normal data; "
            f"median of {MAX_CALLS} calls, of fewer (at least {MIN_CALLS}) where they take more than "
            f"{PASS_SECONDS} s, the better of two passes in opposite order, all in one process; before every "
            f"call a {flush_bytes / 1e9:.3g} GB memset (L2 dirty), for the clean rows a 1 GB read after it; "
            "rel_err is ||out - ref|| / ||ref|| over the whole matrix, ref in float64 from the dequantised "
            "inputs (cublaslt_tensorwise and torch_grouped: from the inputs without their scales)"
        ),
    }


def _nvidia_smi(uuid: str) -> dict[str, object]:
    """Power limit (W) and driver of the GPU with this UUID, as far as nvidia-smi tells."""
    fields = ("uuid", "power.limit", "driver_version")
    try:
        listing = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    gpus = [dict(zip(fields, map(str.strip, line.split(",")), strict=True)) for line in listing.splitlines()]
    mine = next((gpu for gpu in gpus if uuid and uuid in gpu["uuid"]), gpus[0] if len(gpus) == 1 else {})
    with contextlib.suppress(KeyError, ValueError):
        mine["power.limit"] = round(float(mine["power.limit"]))
    return mine


def one_line(error: BaseException) -> str:
    """An exception's text on one line of bearable length."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 200 else text[:197] + "..."
