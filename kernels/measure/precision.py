"""python -m gemm_ladder precision: what is lost when promotion comes late, and what promoting costs.

    python -m gemm_ladder precision              on a Hopper GPU: writes figures/data/precision.json
    python -m gemm_ladder precision --emulator   short k on the emulator: prints, writes nothing

Two problems of 64 x 64 with k up to 65536 and all scales 1 (`operands`) are multiplied in two ways: by
s3_wgmma, whose text is changed to write FP32 and to promote every 128, 512 or 2048 of k, or never; and by
torch._scaled_mm with one scale per tensor, with and without use_fast_accum. cuBLAS may split a long k among
thread blocks where m and n are small, which makes its sums shorter. So it also multiplies them as the corner
of 2048 x 2048 matrices.

Rows of kind "error" have the error of the 64 x 64 results against float64, and how many of them have the bits
of ref/tensor_core.py's model promoting every `model` of k (0: never); for cuBLAS, the one of MODELS that fits
best. Rows of kind "time" are of the changed s3_wgmma, writing BF16, at a shape of the ladder. The exit status
is 1 if a result of s3_wgmma differs from the model's.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from gemm_ladder import build
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures.rows import PrecisionError, PrecisionTime
from gemm_ladder.measure import problems, records, session, timing
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.ref import emulator, fp8, gemm, metrics, tensor_core
from gemm_ladder.rungs import rungs

M = N = 64
CORNER_OF = 2048
ALL_K = tuple(2**power for power in range(7, 17))
EMULATED_K = tuple(k for k in ALL_K if k <= 1024)
DATA = ("normal", "non-negative")
PROMOTIONS = (128, 512, 2048, 0)  # every how many of k; 0: never
MODELS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 0)
TIMED = Shape(4096, 7168, 16384)

Results = dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------------ the problem


def operands(data: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 codes of A and B, uint8 [64, k] each. For a smaller k they are the first columns of these."""
    a, b = (np.random.default_rng([DATA.index(data), side]) for side in range(2))
    if data == "normal":
        x, y = (rng.standard_normal((ALL_K[-1], M)).T * 64 for rng in (a, b))
    else:
        x, y = (rng.uniform(0, fp8.E4M3_MAX, (ALL_K[-1], M)).T for rng in (a, b))
    return tuple(np.ascontiguousarray(fp8.encode(each)[:, :k]) for each in (x, y))


def model(a: np.ndarray, b: np.ndarray, promotion: int, ends: tuple[int, ...]) -> dict[int, np.ndarray]:
    """For each k of `ends` (ascending): float32 [64, 64], promoted every `promotion` of k."""
    total, partial = np.zeros((len(a), len(b)), np.float32), np.zeros((len(a), len(b)), np.float32)
    found, k = {}, 0
    for stop in sorted({*ends, *(range(promotion, ends[-1], promotion) if promotion else ())}):
        partial = tensor_core.chain(a[:, k:stop], b[:, k:stop], partial)
        k = stop
        if stop in ends:
            found[stop] = total + partial
        if promotion and stop % promotion == 0:
            total, partial = total + partial, np.zeros_like(partial)
    return found


# ---------------------------------------------------------------------------------------------- the kernels


def changed(promotion: int, fp32: bool) -> str:
    """The text of s3_wgmma, changed to promote every `promotion` of k, and to write FP32 if `fp32`."""
    text = rungs["s3_wgmma"].source
    blocks = promotion // fp8.SCALE_BLOCK or 1 << 40
    changes = []
    if blocks > 1:
        changes += [
            ("k != 0);", f"k != 0 || block % {blocks} != 0);"),
            ("ptx::wgmma_wait_group<0>();\n", f"ptx::wgmma_wait_group<0>();\n        if ({last(blocks)})\n"),
        ]
    if fp32:
        stored = "*reinterpret_cast<uint32_t*>(p.d + row * p.n + column) = "
        floats = "float* d = reinterpret_cast<float*>(p.d) + row * p.n + column;"
        changes += [
            (stored, f"{{ {floats} d[0] = total[i], d[1] = total[i + 1]; }}  // "),
        ]
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"s3_wgmma has {old!r} {text.count(old)} times; once is needed")
        text = text.replace(old, new)
    return text


def last(blocks: int) -> str:
    return f"block % {blocks} == {blocks - 1} || block == p.k / kScaleK - 1"


def library(promotion: int, fp32: bool, target: build.Target) -> ctypes.CDLL:
    name = f"s3_wgmma_{promotion}_{'fp32' if fp32 else 'bf16'}"
    loaded = build.load(changed(promotion, fp32), target=target, name=name).lib
    loaded.gemm_ladder_launch.restype = ctypes.c_char_p
    return loaded


def launch(lib: ctypes.CDLL, a, sfa, b, sfb, d) -> None:
    """Queue one product on the tensors' device; sfa is MN-major, k a multiple of 128."""
    on_gpu = a.is_cuda
    args = GemmArgs(
        *(x.data_ptr() for x in (a, sfa, b, sfb, d)),
        *(len(a), len(b), a.shape[1], -(-len(a) // 4) * 4, 0),
        torch.cuda.current_stream().cuda_stream if on_gpu else None,
    )
    error = lib.gemm_ladder_launch(ctypes.byref(args)) if on_gpu else emulator.launch(lib, args)
    if error is not None:
        raise RuntimeError(error if isinstance(error, str) else error.decode())


def build_all() -> None:
    """Compile everything that runs on the GPU, at the same time."""
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(library, *each, "cuda") for each in itertools.product(PROMOTIONS, (True, False))]
        jobs.append(pool.submit(rungs["s3_wgmma"].build, "cuda"))
        for job in jobs:
            job.result()


def to_fp8(codes: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(codes).view(torch.float8_e4m3fn).to(device)


def s3_wgmma(promotion: int, device: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    lib = library(promotion, True, "cuda" if device == "cuda" else "emulator")

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        blocks = a.shape[1] // fp8.SCALE_BLOCK
        sfa, sfb = (torch.ones(x, device=device) for x in ((blocks, M), (1, blocks)))
        d = torch.full((M, N), torch.nan, device=device)
        launch(lib, to_fp8(a, device), sfa, to_fp8(b, device), sfb, d)
        return d.cpu().numpy()

    return multiply


def scaled_mm(fast: bool, size: int, device: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """torch._scaled_mm on matrices of `size` rows that begin with a and b; FP32 results, or BF16 if it gives
    only those."""
    one = torch.ones((), device=device)
    options = {"scale_a": one, "scale_b": one, "use_fast_accum": fast}

    def grown(codes: np.ndarray) -> torch.Tensor:
        mine = torch.from_numpy(codes).to(device)
        return mine.repeat(size // len(codes), 1).view(torch.float8_e4m3fn)

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, y = grown(a), grown(b).T
        try:
            d = torch._scaled_mm(x, y, out_dtype=torch.float32, **options)[:M, :N].cpu()
        except RuntimeError:
            d = torch._scaled_mm(x, y, out_dtype=torch.bfloat16, **options)[:M, :N].cpu()
        return d.numpy() if d.dtype == torch.float32 else d.view(torch.int16).numpy().view(gemm.BF16)

    return multiply


# ------------------------------------------------------------------------------------------------ the answers


def error_row(
    data: str, k: int, impl: str, of: int, promotion: int | None, d: np.ndarray, models: Results
) -> PrecisionError:
    """A row of kind "error" about the result `d`.

    Args:
        models: what the model gives, by how often it promotes; and "exact", in float64.
    """
    exact = models["exact"]
    equal = {name: int((d == x.astype(d.dtype)).sum()) for name, x in models.items() if name != "exact"}
    best = max(equal, key=equal.__getitem__) if promotion is None else str(promotion)
    return {
        "kind": "error",
        "data": data,
        "m": M,
        "n": N,
        "k": k,
        "impl": impl,
        "of": of,
        "promotion": promotion,
        "out": "bf16" if d.dtype == gemm.BF16 else "fp32",
        "rel_err": float(f"{metrics.relative_error(d, exact):.4g}"),
        "bias": float(f"{np.sum((d - exact) * np.sign(exact)) / np.sum(np.abs(exact)):.4g}"),
        "model": int(best),
        "equal": equal[best],
        "compared": d.size,
    }


def errors(device: str) -> Iterator[PrecisionError]:
    """Rows of kind "error": for each k all products with scales of 1, then the unchanged s3_wgmma on cast
    data."""
    all_k = ALL_K if device == "cuda" else EMULATED_K
    runs = [("s3_wgmma", M, promotion, s3_wgmma(promotion, device)) for promotion in PROMOTIONS]
    if device == "cuda":
        for fast, of in itertools.product((True, False), (M, CORNER_OF)):
            name = f"scaled_mm_{'fast' if fast else 'slow'}"
            runs.append((name, of, None, scaled_mm(fast, of, device)))
    for data in DATA:
        a, b = operands(data, all_k[-1])
        models = {str(promotion): model(a, b, promotion, all_k) for promotion in MODELS}
        x, y = fp8.decode(a).astype(np.float64), fp8.decode(b).astype(np.float64)
        for k in all_k:
            here = {name: found[k] for name, found in models.items()} | {"exact": x[:, :k] @ y[:, :k].T}
            for impl, of, promotion, multiply in runs:
                mine = (np.ascontiguousarray(each[:, :k]) for each in (a, b))
                yield error_row(data, k, impl, of, promotion, multiply(*mine), here)
            yield as_it_is(data, k, x[:, :k], y[:, :k], device)


def as_it_is(data: str, k: int, x: np.ndarray, y: np.ndarray, device: str) -> PrecisionError:
    """A row about the unchanged s3_wgmma: the same numbers, each row times another power of e, cast with
    scales."""
    factors = np.exp(np.linspace(-3, 3, M))[:, np.newaxis]
    (a, sfa), (b, sfb) = fp8.per_token_cast_to_fp8(x * factors), fp8.per_block_cast_to_fp8(y * factors[::-1])
    d = torch.full((M, N), torch.nan, dtype=torch.bfloat16, device=device)
    tensors = [torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in (sfa, sfb)]
    codes = [to_fp8(each.view(np.uint8), device) for each in (a, b)]
    rungs["s3_wgmma"]((codes[0], tensors[0]), (codes[1], tensors[1]), d)
    bits = d.view(torch.int16).cpu().numpy().view(np.uint16)
    exact = gemm.dense(a, sfa, b, sfb)
    results = {"128": tensor_core.gemm(a, sfa, b, sfb).view(gemm.BF16), "exact": exact}
    row = error_row(data, k, "s3_wgmma", M, 128, bits.view(gemm.BF16), results)
    row["impl"] = "s3_wgmma, 1x128 and 128x128 scales"
    return row


def times() -> Iterator[PrecisionTime]:
    """Rows of kind "time"."""
    device = torch.device("cuda", torch.cuda.current_device())
    problem, timer = problems.make_problem(TIMED, device), timing.KernelTimer(device)
    out = problem.output()
    libraries = {str(promotion): library(promotion, False, "cuda") for promotion in PROMOTIONS}
    tensors = (problem.a, problem.sfa, problem.b, problem.sfb, out)
    calls = {name: functools.partial(launch, lib, *tensors) for name, lib in libraries.items()}
    counts = {name: timing.calls_for(timing.seconds_of(call, device)) for name, call in calls.items()}
    timings, failures = timing.measure(calls, counts, ["dirty"], timer)
    for (name, l2), found in timings.items():
        yield {
            "kind": "time",
            "m": TIMED.m,
            "n": TIMED.n,
            "k": TIMED.k,
            "impl": "s3_wgmma",
            "promotion": int(name),
            "l2": l2,
            "us": round(found.us, 3),
            "us_p10": round(found.p10, 3),
            "us_p90": round(found.p90, 3),
            "tflops": round(TIMED.flops / found.us / 1e6, 3),
        }
    if failures:
        raise RuntimeError(str(failures))


def describe_time(row: PrecisionTime) -> str:
    return f"{row['impl']}, promoting every {row['promotion'] or 'k'}: {row['us']:.0f} us"


def describe(row: PrecisionError) -> str:
    same = "" if row["equal"] == row["compared"] else "   DIFFERS"
    return (
        f"{row['data']:13} k = {row['k']:5} {row['impl']:35} of {row['of']:4} {row['promotion']!s:>5} "
        f"error {row['rel_err']:.2e} bias {row['bias']:+.2e} "
        f"{row['equal']:4} of {row['compared']} as model {row['model']}{same}"
    )


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if every result of s3_wgmma is the model's, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder precision",
        description="Measure what late promotion loses in precision, and what promoting costs in time.",
    )
    parser.add_argument("--emulator", action="store_true", help="run short k on the emulator; write nothing")
    emulated, checkout = parser.parse_args(argv).emulator, records.checkout_root()
    if not emulated:
        session.need_gpu("its tensor cores are asked", None)
        if checkout is None:
            raise GemmLadderError("this is an installed package; a checkout, whose data it renews, is needed")
    started = time.perf_counter()
    if not emulated:
        build_all()
        print(f"compiled after {time.perf_counter() - started:.0f} s")
    found: list[PrecisionError] = []
    timed: list[PrecisionTime] = []
    for row in errors("cpu" if emulated else "cuda"):
        found.append(row)
        print(describe(row), flush=True)
    for one in () if emulated else times():
        timed.append(one)
        print(describe_time(one), flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if not emulated:
        meta = records.machine(torch.device("cuda", torch.cuda.current_device()), timing.FLUSH_BYTES)
        times_protocol = meta["protocol"]
        meta["protocol"] = (
            f"errors: {M} x {N} results, inputs by measure/precision.py's operands(), all scales 1 except in "
            "the rows that name theirs; rel_err is ||d - exact|| / ||exact||, bias is the mean of d - exact "
            "in the direction of exact, over the mean of |exact|; `of` is the m and n that were multiplied; "
            f"times: {times_protocol}"
        )
        data = {"schema": 1, "meta": meta, "rows": [*found, *timed]}
        records.export(data, checkout / "figures" / "data" / "precision.json")
    # Only a library's rows have no promotion: it promotes as it likes, so its bits may differ from the
    # model's.
    mine = [row for row in found if row["promotion"] is not None]
    return int(any(row["equal"] != row["compared"] for row in mine))
