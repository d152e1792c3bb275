"""python -m gemm_ladder mma-probe: what a Hopper GPU's matrix instructions compute, against ref/mma.py.

    python -m gemm_ladder mma-probe --out FOLDER [--only WORD ...] [--n-step N] [--sample FILE]

Every instruction of `mma.INSTRUCTIONS` (or those with one of the WORDs in their names) is run on every kind
of operands and accumulators that `mma_inputs.kinds_of` lists, for several n, and a WGMMA also in every form:
A in shared memory or in registers, and, with 16-bit operands, A or B MN-major. The results are compared with
the model's bit for bit. A line is printed for each instruction; the exit status is 1 if any result differs.
These files are written:

    FOLDER/counts.json        results compared and equal, by instruction, kind and form
    FOLDER/differences.txt    a few differences of each instruction and kind, with their operands
    FOLDER/results.npz        some hundred results of each instruction, those that differ first, to correct
                              the model with: for each instruction, arrays a, b (uint8 [cases, bytes of K]),
                              acc, d, expected (uint32 [cases]), n, and the numbers of kind and form, which
                              counts.json names
    FILE                      a few of the GPU's results, if given; one such file is kept as
                              tests/data/mma_sample.npz, to test the model without a GPU
    figures/data/mma_probe.json    the counts by instruction, if all instructions were run
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gemm_ladder import build
from gemm_ladder.errors import GemmLadderError, InputError
from gemm_ladder.figures.rows import MachineMeta, MmaProbeRow
from gemm_ladder.measure import records, session
from gemm_ladder.measure.mma_inputs import Format, Kind, Operands, kinds_of, make
from gemm_ladder.ref import mma
from gemm_ladder.ref.mma import INSTRUCTIONS, Instruction, Type, Unit

SOURCE = Path(__file__).resolve().parent / "mma_probe.cu"

N_STEP = 64  # n are its multiples up to 256
INTEGER_TILES = 4  # times as many tiles: there are fewer kinds of integers than of floating-point numbers
KEPT = 600  # results of each instruction in results.npz
KEPT_OF_A_KIND = 40  # of those that differ, for each n and form
EQUAL_OF_A_KIND = 6  # equal results that are kept in any case
SHOWN = 3  # differences of each instruction and kind in differences.txt
SAMPLED = 4  # results of each kind in the sample


class Form(NamedTuple):
    """How the operands reach the instruction; `number` is its place in mma_probe.cu's enum."""

    name: str
    number: int


SHARED, REGISTERS = Form("shared", 0), Form("registers", 1)
MN_MAJOR = [
    Form("A MN-major", 2),
    Form("B MN-major", 3),
    Form("both MN-major", 4),
    Form("registers, B MN-major", 5),
]


def forms_of(instruction: Instruction) -> list[Form]:
    if instruction.unit == Unit.MMA:
        return [REGISTERS]
    return [SHARED, REGISTERS, *(MN_MAJOR if mma.BYTES[instruction.a] == 2 else [])]


# ----------------------------------------------------------------------------------------------- the machines


class ProbeArgs(ctypes.Structure):
    """struct ProbeArgs of mma_probe.cu."""

    _fields_ = [
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("acc", ctypes.c_void_p),
        ("d", ctypes.c_void_p),
        ("tiles", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("instructions", ctypes.c_int64),
        ("form", ctypes.c_int64),
        ("scale_d", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
    ]


Machine = Callable[[Form, Kind, Operands], np.ndarray]  # -> as acc


def defines(instruction: Instruction, n_step: int) -> dict[str, str | int]:
    """The macros that mma_probe.cu is compiled with."""
    return {
        "PROBE_UNIT": int(instruction.unit),
        "PROBE_A": int(instruction.a),
        "PROBE_B": int(instruction.b),
        "PROBE_D": int(instruction.d),
        "PROBE_SATFINITE": int(instruction.satfinite),
        "PROBE_N_STEP": n_step,
    }


def gpu(instruction: Instruction, n_step: int = N_STEP) -> Machine:
    """The current CUDA device."""
    library = build.load(SOURCE, target="cuda", defines=defines(instruction, n_step)).lib
    library.gemm_ladder_launch.restype = ctypes.c_char_p

    def run(form: Form, kind: Kind, operands: Operands) -> np.ndarray:
        a, b, acc = (torch.from_numpy(x.view(np.uint8)).cuda() for x in operands)
        d = torch.full_like(acc, 0xA5)
        tiles, n = operands.b.shape[:2]
        arguments = ProbeArgs(
            *(x.data_ptr() for x in (a, b, acc, d)),
            tiles,
            n,
            kind.instructions,
            form.number,
            kind.scale_d,
            torch.cuda.current_stream().cuda_stream,
        )
        error = library.gemm_ladder_launch(ctypes.byref(arguments))
        if error is not None:
            raise RuntimeError(f"{instruction.name}, {form.name}: {error.decode()}")
        return d.cpu().numpy().view(operands.acc.dtype)

    return run


def model(instruction: Instruction, kind: Kind, operands: Operands) -> np.ndarray:
    """As acc."""
    acc = operands.acc if kind.scale_d else np.zeros_like(operands.acc)
    return np.stack(
        [mma.multiply(instruction, *tile) for tile in zip(operands.a, operands.b, acc, strict=True)]
    )


def modelled(instruction: Instruction) -> Machine:
    """The model as a machine, to try the probe where there is no GPU."""
    return lambda _form, kind, operands: model(instruction, kind, operands)


# --------------------------------------------------------------------------------------------- the comparison


class Answers(NamedTuple):
    """The results of one instruction.

    Attributes:
        counts: by kind, then form: results compared, and how many of them are equal.
        cases: some of them, those that differ first; the arrays of results.npz. a and b have the bytes of
            four instructions; a single one uses the first quarter.
    """

    counts: dict[str, dict[str, tuple[int, int]]]
    cases: dict[str, np.ndarray]

    @property
    def compared(self) -> int:
        return sum(compared for forms in self.counts.values() for compared, _ in forms.values())

    @property
    def equal(self) -> int:
        return sum(equal for forms in self.counts.values() for _, equal in forms.values())


LONGEST = 4 * mma.GROUP_BYTES


def _cases(
    chosen: np.ndarray, operands: Operands, kind: Kind, got: np.ndarray, expected: np.ndarray
) -> dict[str, np.ndarray]:
    tile, row, column = np.nonzero(chosen)

    def padded(rows: np.ndarray) -> np.ndarray:
        codes = np.ascontiguousarray(rows).view(np.uint8)
        return np.pad(codes, ((0, 0), (0, LONGEST - codes.shape[1])))

    acc = operands.acc if kind.scale_d else np.zeros_like(operands.acc)
    return {
        "a": padded(operands.a[tile, row]),
        "b": padded(operands.b[tile, column]),
        "instructions": np.full(len(tile), kind.instructions, np.uint8),
        "acc": acc[chosen].astype(np.uint32),
        "d": got[chosen].astype(np.uint32),
        "expected": expected[chosen].astype(np.uint32),
        "n": np.full(len(tile), operands.b.shape[1], np.int16),
    }


def probe(
    instruction: Instruction, machine: Machine, all_n: Sequence[int], tiles: int, kept: int = KEPT
) -> Answers:
    """Run every kind of operands on a machine, for each n and form; compare the results with the model's."""
    rng = np.random.default_rng(list(instruction.name.encode()))
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    found = []
    forms = forms_of(instruction)
    for kind_index, (name, kind) in enumerate(kinds_of(instruction).items()):
        counts[name] = {form.name: (0, 0) for form in forms}
        for n in all_n:
            operands = make(instruction, kind, rng, n, tiles)
            expected = model(instruction, kind, operands)
            for form in forms:
                got = machine(form, kind, operands)
                differs = got != expected
                compared, equal = counts[name][form.name]
                different = int(np.count_nonzero(differs))
                counts[name][form.name] = compared + differs.size, equal + differs.size - different
                chosen = np.zeros(differs.shape, bool)
                if form == forms[0] and n == all_n[0]:
                    chosen.flat[rng.choice(differs.size, EQUAL_OF_A_KIND, replace=False)] = True
                where = np.flatnonzero(differs)
                if len(where):
                    chosen.flat[rng.permutation(where)[:KEPT_OF_A_KIND]] = True
                if not chosen.any():
                    continue
                cases = _cases(chosen, operands, kind, got, expected)
                cases["kind"] = np.full(len(cases["d"]), kind_index, np.int16)
                cases["form"] = np.full(len(cases["d"]), form.number, np.int8)
                found.append(cases)
    joined = {field: np.concatenate([cases[field] for cases in found]) for field in found[0]}
    order = rng.permutation(len(joined["d"]))
    order = order[np.argsort(joined["d"][order] == joined["expected"][order], kind="stable")]
    wrong = int(np.count_nonzero(joined["d"] != joined["expected"]))
    order = np.concatenate([order[: min(wrong, kept)], order[wrong:]])  # all that were kept of the equal ones
    return Answers(counts, {field: values[order] for field, values in joined.items()})


# ------------------------------------------------------------------------------------------------- the report


def describe(bits: int, type_: Type) -> str:
    """Bits of an accumulator as hexadecimal digits and as a number."""
    if type_ == Type.S32:
        return f"{bits:08x} ({np.uint32(bits).view(np.int32)})"
    if type_ == Type.F16:
        return f"{bits:04x} ({float(np.uint16(bits).view(np.float16)).hex()})"
    return f"{bits:08x} ({float(np.uint32(bits).view(np.float32)).hex()})"


def _operand(codes: np.ndarray, type_: Type) -> list[str]:
    if type_ in mma.INTEGER_TYPES:
        return [str(x) for x in (codes.view(np.int8) if type_ == Type.S8 else codes)]
    form = Format(type_)
    return [
        float(x).hex() if np.isfinite(x) else str(x) for x in form.decode(codes.view(form.dtype)[None])[0]
    ]


def differences(instruction: Instruction, answers: Answers, shown: int = SHOWN) -> list[str]:
    """A few of the results that differ, of each kind, a line of text for each."""
    kinds, forms = list(answers.counts), {form.number: form.name for form in forms_of(instruction)}
    lines, of_kind = [], dict.fromkeys(range(len(kinds)), 0)
    cases = answers.cases
    for i in np.flatnonzero(cases["d"] != cases["expected"]):
        kind = int(cases["kind"][i])
        if of_kind[kind] == shown:
            continue
        of_kind[kind] += 1
        count = int(cases["instructions"][i]) * mma.GROUP_BYTES
        left, right = (
            _operand(cases["a"][i, :count], instruction.a),
            _operand(cases["b"][i, :count], instruction.b),
        )
        products = [
            f"{k}: {x}*{y}"
            for k, (x, y) in enumerate(zip(left, right, strict=True))
            if not {x, y} & {"0x0.0p+0", "-0x0.0p+0", "0"}
        ]
        acc, d, expected = (describe(int(cases[f][i]), instruction.d) for f in ("acc", "d", "expected"))
        lines.append(
            f"{instruction.name}, {kinds[kind]}, {forms[int(cases['form'][i])]}, n = {cases['n'][i]}: "
            f"acc {acc}, got {d}, model {expected}, products {', '.join(products) or 'all zero'}"
        )
    return lines


def counts_of(answers: dict[str, Answers]) -> dict[str, Any]:
    """The content of counts.json."""
    return {
        name: {
            "compared": x.compared,
            "equal": x.equal,
            "kinds": list(x.counts),
            "forms": {form.name: form.number for form in forms_of(INSTRUCTIONS[name])},
            "counts": x.counts,
        }
        for name, x in answers.items()
    }


def save_cases(path: Path, answers: dict[str, Answers]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{name}/{field}": x for name, found in answers.items() for field, x in found.cases.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def sample(answers: dict[str, Answers], count: int = SAMPLED) -> dict[str, Answers]:
    """The first `count` results of each kind, without what the model is not needed for."""
    chosen = {}
    for name, found in answers.items():
        kinds = found.cases["kind"]
        rows = np.concatenate([np.flatnonzero(kinds == kind)[:count] for kind in np.unique(kinds)])
        cases = {field: found.cases[field][rows] for field in ("a", "b", "instructions", "acc", "d")}
        chosen[name] = found._replace(cases=cases)
    return chosen


def load_cases(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """{instruction: arrays} from a file that save_cases() wrote."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            name, field = key.rsplit("/", 1)
            found.setdefault(name, {})[field] = arrays[key]
    return found


def modelled_case(instruction: Instruction, cases: dict[str, np.ndarray], i: int) -> int:
    """The model's result, bits, for one case of results.npz or of the sample."""
    count = int(cases["instructions"][i]) * mma.GROUP_BYTES
    a, b = (
        cases[field][i : i + 1, :count].copy().view(mma.STORAGE[mma.BYTES[type_]])
        for field, type_ in (("a", instruction.a), ("b", instruction.b))
    )
    acc = cases["acc"][i : i + 1, np.newaxis].astype(mma.STORAGE[mma.BYTES[instruction.d]])
    return int(mma.multiply(instruction, a, b, acc)[0, 0])


def summary(meta: MachineMeta, answers: dict[str, Answers]) -> dict[str, Any]:
    """The content of figures/data/mma_probe.json."""
    rows: list[MmaProbeRow] = [
        {"instruction": name, "kinds": len(x.counts), "compared": x.compared, "equal": x.equal}
        for name, x in answers.items()
    ]
    return {"schema": 1, "meta": meta, "rows": rows}


def meta_of_gpu(all_n: Sequence[int], tiles: int) -> MachineMeta:
    meta = records.machine(torch.device("cuda", torch.cuda.current_device()), 0)
    return {
        **meta,
        "protocol": "each instruction on every kind of operands of kernels/measure/mma_inputs.py, single and "
        f"in chains of four, a WGMMA in every form, {tiles} tiles of 64 rows (of integers {INTEGER_TILES} "
        f"times as many) for n = {', '.join(map(str, all_n))}; equal: the bits are ref/mma.py's "
        "(kernels/measure/mma_probe.py)",
    }


def _chosen(words: Sequence[str]) -> list[Instruction]:
    found = [x for name, x in INSTRUCTIONS.items() if not words or any(word in name for word in words)]
    if not found:
        raise InputError(
            f"--only {' '.join(words)} was given; a part of an instruction's name is needed, such as "
            f"{', '.join(list(INSTRUCTIONS)[:3])}"
        )
    return found


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if every result is the model's, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder mma-probe",
        description="Compare a Hopper GPU's matrix instructions with their model, bit for bit.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where the results are written"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="parts of instructions' names")
    parser.add_argument("--n-step", type=int, default=N_STEP, help=f"n: its multiples (default {N_STEP})")
    parser.add_argument(
        "--tiles", type=int, default=2, help="tiles of 64 rows for each kind and n (default 2)"
    )
    parser.add_argument("--sample", type=Path, metavar="FILE", help="also write a few results to FILE")
    arguments = parser.parse_args(argv)
    chosen = _chosen(arguments.only)
    session.need_gpu("its matrix instructions are asked", None)
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        machines = dict(zip(chosen, pool.map(lambda one: gpu(one, arguments.n_step), chosen), strict=True))
    print(f"compiled after {time.perf_counter() - started:.0f} s", flush=True)
    all_n = range(arguments.n_step, 257, arguments.n_step)

    def ask(instruction: Instruction) -> Answers:
        integers = instruction.d == Type.S32
        fewer = [n for n in all_n if not integers or n <= 32 or n % 16 == 0]
        tiles = arguments.tiles * (INTEGER_TILES if integers else 1)
        return probe(instruction, machines[instruction], fewer, tiles)

    answers, text = {}, []
    with ThreadPoolExecutor(8) as pool:
        for instruction, found in zip(chosen, pool.map(ask, chosen), strict=True):
            answers[instruction.name] = found
            differ = "" if found.equal == found.compared else "   DIFFERS"
            print(f"{instruction.name:28} {found.equal:9} of {found.compared:9} equal{differ}", flush=True)
            for kind, forms in found.counts.items():
                for form, (compared, equal) in forms.items():
                    if compared != equal:
                        print(f"    {kind}, {form}: {compared - equal} of {compared} differ")
            text += differences(instruction, found)

    compared, equal = sum(x.compared for x in answers.values()), sum(x.equal for x in answers.values())
    print(f"{'all':28} {equal:9} of {compared:9} equal, {time.perf_counter() - started:.0f} s")
    (arguments.out / "counts.json").write_text(json.dumps(counts_of(answers), indent=1), encoding="utf-8")
    (arguments.out / "differences.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    save_cases(arguments.out / "results.npz", answers)
    if arguments.sample:
        save_cases(arguments.sample, sample(answers))
    checkout = records.checkout_root()
    if len(chosen) == len(INSTRUCTIONS) and checkout is not None:
        data = summary(meta_of_gpu(all_n, arguments.tiles), answers)
        records.export(data, checkout / "figures" / "data" / "mma_probe.json")
    elif checkout is None:
        raise GemmLadderError("this is an installed package; a checkout, whose data it renews, is needed")
    return int(equal != compared)
