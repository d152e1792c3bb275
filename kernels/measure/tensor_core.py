"""python -m gemm_ladder tensor-core: what a Hopper GPU's tensor cores compute, against ref/tensor_core.py.

    python -m gemm_ladder tensor-core --out FOLDER [--sample FILE]

Every kind of operands and accumulators in `KINDS` is run for every n that a WGMMA can have, as a single WGMMA
or as a chain of four, and the results are compared with the model's bit for bit. A line is printed for each
kind; the exit status is 1 if any result differs. These files are written:

    figures/data/tensor_core_probe.json    how many results were compared and how many are equal, by kind
    FILE                                   a few of the GPU's results, if given; one such file is kept as
                                           tests/data/tensor_core_sample.npz, to test the model without a GPU
    FOLDER/results.npz                     more of them, those that differ first, to correct the model with
    FOLDER/differences.txt                 the first differences of each kind, with their operands

In both .npz files every kind has arrays a, b (uint8 [cases, k]) and acc, d (uint32 [cases], FP32 bits). A
case is one output with everything that it depends on: d = tensor core(acc + a . b).
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gemm_ladder import build
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures.rows import MachineMeta, ProbeRow
from gemm_ladder.measure import records, session
from gemm_ladder.ref import emulator, fp8, tensor_core

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "tensor_core.cu"

ALL_N = range(8, 257, 8)
TILES = 4  # of each kind and n
KEPT, SAMPLED, SHOWN = 400, 40, 5  # results of each kind: in results.npz, in the sample, in differences.txt
K = tensor_core.K_INSTRUCTION
M = 64  # rows of a WGMMA
FLT_MAX = float(np.finfo(np.float32).max)
FP8_NAN = np.array([0x7F, 0xFF], np.uint8)


class Operands(NamedTuple):
    """a uint8 [tiles, 64, k], b uint8 [tiles, n, k]: E4M3 codes; acc float32 [tiles, 64, n]."""

    a: np.ndarray
    b: np.ndarray
    acc: np.ndarray


# ------------------------------------------------------------------------------------- what a matrix may hold
# Functions of (rng, shape): E4M3 codes.


def any_finite(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return below(rng, shape, 0x7F)


def below(rng: np.random.Generator, shape: tuple[int, ...], magnitude: int) -> np.ndarray:
    """Codes of either sign whose magnitude bits are below `magnitude`; 8 gives subnormals and zeros."""
    return (rng.integers(0, magnitude, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7).astype(
        np.uint8
    )


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Like cast data: normally distributed, scaled so that the largest of a row is about 448."""
    return fp8.encode(rng.standard_normal(shape, np.float32) * np.float32(448 / 3.5))


def subnormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return below(rng, shape, 8)


def small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Subnormals and the first normal numbers."""
    return below(rng, shape, 20)


def sparse(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One code in eight is not zero; zeros have both signs."""
    return np.where(rng.random(shape) < 1 / 8, any_finite(rng, shape), below(rng, shape, 1))


def single(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One nonzero code in 32, at the same place in all rows."""
    codes = np.zeros(shape, np.uint8)
    codes[..., ::K] = any_finite(rng, codes[..., ::K].shape)
    return codes


def zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return below(rng, shape, 1)


def some_nan(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Finite codes, many of them zero; every fourth row has one NaN."""
    codes = sparse(rng, shape)
    rows = codes[..., ::4, :]
    place = rng.integers(0, shape[-1], rows.shape[:-1])[..., np.newaxis]
    np.put_along_axis(rows, place, rng.choice(FP8_NAN, place.shape), axis=-1)
    return codes


# ----------------------------------------------------------------------------- what the accumulators may hold
# Functions of (rng, a, b): float32 [tiles, 64, n].


def shape_of(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    return (*a.shape[:2], b.shape[1])


def zeros(_rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.zeros(shape_of(a, b), np.float32)


def spread(low: float, high: float) -> Callable:
    """Finite: normally distributed numbers times a power of two, uniform from 2^low to 2^high."""

    def accumulators(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shape = shape_of(a, b)
        x = rng.standard_normal(shape) * np.exp2(rng.uniform(low, high, shape))
        return x.clip(-FLT_MAX, FLT_MAX).astype(np.float32)

    return accumulators


def bits(low: int, high: int) -> Callable:
    """FP32 numbers of either sign whose magnitude bits are in [low, high)."""

    def accumulators(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shape = shape_of(a, b)
        signs = rng.integers(0, 2, shape, np.uint32) << 31
        return (rng.integers(low, high, shape, np.uint32) | signs).view(np.float32)

    return accumulators


def cancelling(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The negative of the sum of the products, except for its last few bits."""
    exact = np.matmul(fp8.decode(a).astype(np.float64), fp8.decode(b).astype(np.float64).swapaxes(1, 2))
    return (-exact * (1 + rng.integers(-8, 9, exact.shape) * 2.0**-14)).astype(np.float32)


def signed(value: float) -> Callable:
    """`value` with either sign."""

    def accumulators(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(rng.random(shape_of(a, b)) < 0.5, -value, value).astype(np.float32)

    return accumulators


any_acc = bits(0, 0x7F800000)
subnormal_acc = bits(1, 0x00800000)
nan_acc = bits(0x7F800001, 0x80000000)
huge_acc = bits(0x7E800000, 0x7F800000)
partial_sums = spread(10, 20)


class Kind(NamedTuple):
    """One kind of input. With scale_d = 0 the first WGMMA ignores the accumulators."""

    a: Callable
    b: Callable
    acc: Callable
    instructions: int = 1
    scale_d: int = 1

    def make(self, rng: np.random.Generator, n: int, tiles: int) -> Operands:
        k = self.instructions * K
        a, b = self.a(rng, (tiles, M, k)), self.b(rng, (tiles, n, k))
        return Operands(a, b, np.ascontiguousarray(self.acc(rng, a, b)))


KINDS = {
    "any operands": Kind(any_finite, any_finite, zeros),
    "any operands, spread accumulators": Kind(any_finite, any_finite, spread(-50, 22)),
    "any operands, any finite accumulators": Kind(any_finite, any_finite, any_acc),
    "normal operands": Kind(normal, normal, zeros),
    "normal operands, partial sums": Kind(normal, normal, partial_sums),
    "sparse operands": Kind(sparse, sparse, spread(-30, 20)),
    "single products": Kind(single, single, spread(-30, 20)),
    "subnormal operands": Kind(subnormal, subnormal, spread(-40, -4)),
    "subnormal and other operands": Kind(subnormal, any_finite, spread(-30, 10)),
    "small operands, no accumulators": Kind(small, small, zeros),
    "small operands, tiny accumulators": Kind(small, small, spread(-60, -12)),
    "cancelling accumulators": Kind(normal, normal, cancelling),
    "cancelling accumulators, sparse": Kind(sparse, sparse, cancelling),
    "accumulators of -0": Kind(sparse, sparse, signed(0.0)),
    "no products, any finite accumulators": Kind(zero, any_finite, any_acc),
    "no products, subnormal accumulators": Kind(zero, any_finite, subnormal_acc),
    "no products, small accumulators": Kind(zero, zero, spread(-149, -100)),
    "subnormal accumulators": Kind(sparse, small, subnormal_acc),
    "huge accumulators": Kind(normal, normal, huge_acc),
    "largest accumulators": Kind(any_finite, any_finite, signed(FLT_MAX)),
    "NaN operands": Kind(some_nan, some_nan, spread(-20, 20)),
    "NaN operands, infinite accumulators": Kind(some_nan, some_nan, signed(np.inf)),
    "NaN accumulators": Kind(sparse, sparse, nan_acc),
    "NaN accumulators, no products": Kind(zero, zero, nan_acc),
    "infinite accumulators": Kind(sparse, sparse, signed(np.inf)),
    "infinite accumulators, no products": Kind(zero, zero, signed(np.inf)),
    "ignored accumulators": Kind(any_finite, any_finite, nan_acc, scale_d=0),
    "chain: any operands": Kind(any_finite, any_finite, nan_acc, 4, scale_d=0),
    "chain: normal operands": Kind(normal, normal, nan_acc, 4, scale_d=0),
    "chain: small operands": Kind(small, small, nan_acc, 4, scale_d=0),
    "chain: sparse operands": Kind(sparse, sparse, spread(-30, 20), 4),
    "chain: partial sums": Kind(normal, normal, partial_sums, 4),
    "chain: NaN operands": Kind(some_nan, some_nan, zeros, 4),
    "chain: infinite accumulators": Kind(sparse, sparse, signed(np.inf), 4),
}


# ----------------------------------------------------------------------------------------------- the machines


class ProbeArgs(ctypes.Structure):
    """struct ProbeArgs of tensor_core.cu."""

    _fields_ = [
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("acc", ctypes.c_void_p),
        ("d", ctypes.c_void_p),
        ("tiles", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("instructions", ctypes.c_int64),
        ("scale_d", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
    ]


Machine = Callable[[Kind, Operands], np.ndarray]  # -> float32 [tiles, 64, n]


def sizes(kind: Kind, operands: Operands) -> dict[str, int]:
    return {
        "tiles": len(operands.b),
        "n": operands.b.shape[1],
        "instructions": kind.instructions,
        "scale_d": kind.scale_d,
    }


def gpu(n_step: int = 8) -> Machine:
    """The current CUDA device, for n that are multiples of n_step."""
    import torch

    library = build.load(SOURCE, target="cuda", defines={"PROBE_N_STEP": n_step}).lib
    library.gemm_ladder_launch.restype = ctypes.c_char_p

    def run(kind: Kind, operands: Operands) -> np.ndarray:
        a, b, acc = (torch.from_numpy(x.view(np.uint8)).cuda() for x in operands)
        d = torch.full_like(acc, 0xA5)
        pointers = (x.data_ptr() for x in (a, b, acc, d))
        stream = torch.cuda.current_stream().cuda_stream
        error = library.gemm_ladder_launch(
            ctypes.byref(ProbeArgs(*pointers, **sizes(kind, operands), stream=stream))
        )
        if error is not None:
            raise RuntimeError(error.decode())
        return d.cpu().numpy().view(np.float32)

    return run


def emulated(n_step: int) -> Machine:
    """The emulator, for n that are multiples of n_step. It computes with the model, so this tests the
    probe."""
    library = build.load(SOURCE, target="emulator", defines={"PROBE_N_STEP": n_step}).lib

    def run(kind: Kind, operands: Operands) -> np.ndarray:
        d = np.full_like(operands.acc, -1)
        pointers = (x.ctypes.data for x in (*operands, d))
        if error := emulator.launch(library, ProbeArgs(*pointers, **sizes(kind, operands))):
            raise RuntimeError(error)
        return d

    return run


def model(kind: Kind, operands: Operands) -> np.ndarray:
    acc = operands.acc if kind.scale_d else np.zeros_like(operands.acc)
    return np.stack([tensor_core.chain(*tile) for tile in zip(operands.a, operands.b, acc, strict=True)])


# --------------------------------------------------------------------------------------------- the comparison


class Answers(NamedTuple):
    """The results of one kind.

    Attributes:
        compared, equal: how many results there are, and how many have the model's bits.
        cases: some of them, those that differ first: a, b, acc, d as in the .npz files, the model's bits as
            `expected`, and n.
    """

    compared: int
    equal: int
    cases: dict[str, np.ndarray]


def probe(name: str, machine: Machine, all_n: Iterable[int], tiles: int, kept: int = KEPT) -> Answers:
    """Run one kind on a machine for each n, and compare the results with the model's."""
    kind, rng = KINDS[name], np.random.default_rng(list(name.encode()))
    all_n = list(all_n)
    compared, differing, cases = 0, 0, []
    for n in all_n:
        operands = kind.make(rng, n, tiles)
        got = machine(kind, operands).view(np.uint32)
        expected = model(kind, operands).view(np.uint32)
        acc = operands.acc if kind.scale_d else np.zeros_like(operands.acc)
        differs = got != expected
        compared, differing = compared + differs.size, differing + int(differs.sum())

        chosen = np.zeros(differs.shape, bool)
        chosen.flat[rng.choice(differs.size, -(-kept // len(all_n)), replace=False)] = True
        chosen.flat[np.flatnonzero(differs)[:kept]] = True
        tile, row, column = np.nonzero(chosen)
        cases.append(
            {
                "a": operands.a[tile, row],
                "b": operands.b[tile, column],
                "acc": acc.view(np.uint32)[chosen],
                "d": got[chosen],
                "expected": expected[chosen],
                "n": np.full(len(tile), n),
            }
        )
    joined = {field: np.concatenate([case[field] for case in cases]) for field in cases[0]}
    order = rng.permutation(len(joined["d"]))
    order = order[np.argsort(joined["d"][order] == joined["expected"][order], kind="stable")][:kept]
    return Answers(compared, compared - differing, {field: values[order] for field, values in joined.items()})


def differences(name: str, answers: Answers, shown: int = SHOWN) -> list[str]:
    """The first results that differ, a line of text for each."""
    lines = []
    for a, b, acc, d, expected, n in zip(*answers.cases.values(), strict=True):
        if d == expected or len(lines) == shown:
            break
        products = [f"{x:02x}*{y:02x}" for x, y in zip(a, b, strict=True) if x & 0x7F and y & 0x7F]
        lines.append(
            f"{name}, n = {n}: acc {describe(acc)}, got {describe(d)}, model {describe(expected)}, "
            f"products {' '.join(products) or 'all zero'}"
        )
    return lines


def describe(fp32_bits: np.uint32) -> str:
    return f"{fp32_bits:08x} ({float(fp32_bits.view(np.float32)).hex()})"


def save_cases(path: Path, answers: dict[str, Answers], count: int) -> None:
    """Write the first `count` cases of each kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{name}/{field}": result.cases[field][:count]
        for name, result in answers.items()
        for field in ("a", "b", "acc", "d")
    }
    np.savez_compressed(path, **arrays)


def load_cases(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """{kind: {"a", "b", "acc", "d"}} from a file that save_cases() wrote."""
    kinds: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            name, field = key.rsplit("/", 1)
            kinds.setdefault(name, {})[field] = arrays[key]
    return kinds


def summary(meta: MachineMeta, answers: dict[str, Answers]) -> dict[str, Any]:
    """The content of figures/data/tensor_core_probe.json."""
    rows: list[ProbeRow] = [
        {"kind": name, "instructions": KINDS[name].instructions, "compared": x.compared, "equal": x.equal}
        for name, x in answers.items()
    ]
    return {"schema": 1, "meta": meta, "rows": rows}


def meta_of_gpu(tiles: int) -> MachineMeta:
    meta = records.machine(torch.device("cuda", torch.cuda.current_device()), 0)
    return {
        **meta,
        "protocol": f"m64nNk32 E4M3 WGMMAs, single and in chains of four, {tiles} tiles of each kind and "
        "n = 8, 16, ... 256; equal: the FP32 bits are ref/tensor_core.py's (kernels/measure/tensor_core.py)",
    }


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if every result is the model's, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder tensor-core",
        description="Compare a Hopper GPU's tensor cores with their model, bit for bit.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where results.npz and differences.txt are written",
    )
    parser.add_argument(
        "--tiles", type=int, default=TILES, help=f"tiles for each kind and n (default {TILES})"
    )
    parser.add_argument("--sample", type=Path, metavar="FILE", help="also write a few results to FILE")
    arguments = parser.parse_args(argv)
    session.need_gpu("its tensor cores are asked", None)
    checkout = records.checkout_root()
    if checkout is None:
        raise GemmLadderError("this is an installed package; a checkout, whose data it renews, is needed")

    started = time.perf_counter()
    machine = gpu()
    print(f"compiled after {time.perf_counter() - started:.0f} s")
    answers, text = {}, []
    for name in KINDS:
        answers[name] = probe(name, machine, ALL_N, arguments.tiles)
        compared, equal, _ = answers[name]
        print(
            f"{name:40} {equal:9} of {compared:9} equal{'' if equal == compared else '   DIFFERS'}",
            flush=True,
        )
        text += differences(name, answers[name])

    compared, equal = (sum(column) for column in zip(*(x[:2] for x in answers.values()), strict=True))
    print(f"{'all':40} {equal:9} of {compared:9} equal, {time.perf_counter() - started:.0f} s")
    save_cases(arguments.out / "results.npz", answers, KEPT)
    (arguments.out / "differences.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    data = summary(meta_of_gpu(arguments.tiles), answers)
    records.export(data, checkout / "figures" / "data" / "tensor_core_probe.json")
    if arguments.sample:
        save_cases(arguments.sample, answers, SAMPLED)
    print("\n".join(text[:20]))
    return int(equal != compared)
