"""python -m gemm_ladder tensor-core: what a Hopper GPU's tensor cores compute, against ref/tensor_core.py.

    python -m gemm_ladder tensor-core --out FOLDER [--sample FILE]

Every kind of operands and accumulators in `tensor_core_inputs.KINDS` is run for every n that a WGMMA can
have, as a single WGMMA or as a chain of four, and the results are compared with the model's bit for bit. A
line is printed for each kind; the exit status is 1 if any result differs. These files are written:

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
from gemm_ladder.measure.tensor_core_inputs import KINDS, Kind, Operands
from gemm_ladder.ref import emulator, tensor_core

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "tensor_core.cu"

ALL_N = range(8, 257, 8)
TILES = 4  # of each kind and n
KEPT, SAMPLED, SHOWN = 400, 40, 5  # results of each kind: in results.npz, in the sample, in differences.txt


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
