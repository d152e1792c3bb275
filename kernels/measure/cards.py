"""python -m gemm_ladder cards: the rungs' cards, which say what each rung is made of and what limits it.

    python -m gemm_ladder cards            needs nvcc, cuobjdump and a C++20 compiler, no GPU
    python -m gemm_ladder cards --ncu      also needs a Hopper GPU and ncu

In a checkout this writes figures/data/cards.json and, from it, figures/cards/*.md and the tables of rungs.
Nothing is stated by hand: registers, spills and static shared memory are what ptxas reports; instructions are
counted in the machine code; threads, clusters and dynamic shared memory are what the rung's launcher asks the
emulator for.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemm_ladder import build
from gemm_ladder.arguments import H100_SMS, GroupedArgs
from gemm_ladder.build.job import KERNELS
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures import draw, measured, rung_cards, tables
from gemm_ladder.figures.rows import CardRow, CardsFile, CardsMeta
from gemm_ladder.measure import ncu, records, session, timing
from gemm_ladder.production.choice import choose
from gemm_ladder.ref.emulator import LaunchConfig, emulator, launch
from gemm_ladder.rungs import InterleavedRung, NumpyRung, ProductionRung, Rung, rungs
from gemm_ladder.sass import disassembly, ffma

PROTOCOL = (
    "A line is changed if it is not in the longest common subsequence of the two files' lines of code; "
    "s8_ffma_interleave is the file of the rung below plus ffma.py, and only ffma.py's lines are counted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cards`. Returns 0.

    Raises:
        GemmLadderError: a tool is missing, a rung cannot be built, or --ncu is given and there is no Hopper
        GPU.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder cards",
        description="Renew figures/data/cards.json: each rung's lines, resources and machine code.",
    )
    parser.add_argument(
        "--ncu", action="store_true", help="also profile each rung with ncu, which needs a Hopper GPU"
    )
    arguments = parser.parse_args(argv)
    checkout = records.checkout_root()
    path = checkout / "figures" / "data" / "cards.json" if checkout else None

    data = collect()
    if arguments.ncu:
        ask_ncu(data)
    elif path and path.exists():
        keep_ncu(data, rung_cards.load(path))
    show(data)
    if path:
        records.save(data, path)
        draw.main(checkout)
        print("\nRenewed: figures/data/cards.json, figures/cards/*.md and the tables of rungs.")
    else:
        print("\nThe recorded cards are left as they are: this is an installed package, not a checkout.")
    return 0


def collect() -> CardsFile:
    """The content of cards.json, without ncu's figures. Raises GemmLadderError where a tool is missing."""
    chosen = list(rungs.values())
    session.build_all(chosen, "cuda")
    session.build_all(chosen, "emulator")
    meta: CardsMeta = {
        "nvcc": build.find_cuda().version,
        "date": datetime.date.today().isoformat(),
        "sources": build.sources_digest(),
        "protocol": PROTOCOL,
        "ncu": None,
    }
    rows = [row(rung, below) for rung, below in zip(chosen, [None, *chosen], strict=False)]
    return {"schema": measured.SCHEMA, "meta": meta, "rows": rows}


def row(rung: Rung, below: Rung | None) -> CardRow:
    """One rung's row; that of s0_numpy has only its lines of code."""
    text = code_lines(own_file(rung))
    found: Any = dict.fromkeys(rung_cards.ROW_FIELDS)  # a CardRow, filled in below
    found |= {"rung": rung.name, "idea": rung.idea, "lines": len(text)}
    found["file"] = own_file(rung).relative_to(KERNELS.parent).as_posix()
    if isinstance(rung, NumpyRung):
        return found
    if below is not None and not isinstance(below, NumpyRung):
        found["below"] = below.name
        if rung.path == below.path:
            found |= {"added": len(text), "removed": 0}
        else:
            found |= dict(zip(("added", "removed"), changed(code_lines(below.path), text), strict=True))
    return found | resources(rung) | launched(rung)


def resources(rung: Rung) -> dict[str, Any]:
    """What the compiler made of the rung: its resources, and how many of which instructions."""
    built = rung.build("cuda")
    kernels = disassembly.disassemble(built.path)
    used = disassembly.resources(built.log).values()
    # USETMAXREG's last operand is the number of registers per thread, in hexadecimal.
    changes = [
        one.operands.split()[-1]
        for instructions in kernels.values()
        for one in instructions
        if one.mnemonic == "USETMAXREG"
    ]
    return {
        "registers": max(one.registers for one in used),
        "setmaxnreg": sorted({int(registers, 16) for registers in changes}),
        "spill_stores": sum(one.spill_stores for one in used),
        "spill_loads": sum(one.spill_loads for one in used),
        "shared_static": max(one.shared for one in used),
        "sass": {instance(name): counts(instructions) for name, instructions in kernels.items()},
    }


def instance(kernel: str) -> str:
    """The integers that a kernel's template was instantiated with, from its mangled name; "" if none."""
    return ", ".join(re.findall(r"Li(\d+)E", kernel))


def counts(instructions: Sequence[disassembly.Instruction]) -> dict[str, int]:
    """How many instructions of some kinds a kernel has."""
    count = disassembly.count(instructions)
    return {
        "QGMMA": count["QGMMA"],
        "UTMALDG": count["UTMALDG"],
        "UTMALDG, multicast": sum(".MULTICAST" in one.opcode for one in instructions),
        "UTMASTG": count["UTMASTG"],
        "FFMA": count["FFMA"],
        "FFMA, yielding": sum(one.mnemonic == "FFMA" and one.yields for one in instructions),
        "BAR": count["BAR"],
        "SYNCS": count["SYNCS"],
        "all": len(instructions),
    }


def launched(rung: Rung) -> dict[str, Any]:
    """What the rung's launcher asks for at the shape of README.md's table, and its number of stages."""
    config = launch_config(rung)
    if isinstance(rung, ProductionRung):
        stages = [(str(choose("dense", *measured.SHOWN).stages), "")]
    else:
        stages = re.findall(r"\bconstexpr int kStages = (\d+);|\bstart<\d+, \d+, (\d+)>", rung.source)
    return {
        "shared_dynamic": config.shared_bytes,
        "threads": config.threads,
        "cluster": config.cluster,
        "stages": ", ".join(sorted({one or other for one, other in stages})) or None,
    }


def launch_config(rung: Rung) -> LaunchConfig:
    """How the rung launches its kernel at the shape of README.md's table, on an emulator with 132 SMs."""
    m, n, k = measured.SHOWN
    # A dry run needs no tensors. GroupedArgs begins with the fields of GemmArgs, which dense launchers read.
    args = GroupedArgs(m=m, n=n, k=k, sfa_stride=m, num_sms=H100_SMS, groups=1, groups_a=1)
    with emulator(dry=True) as run:
        if error := launch(rung.build("emulator").lib, args):
            raise GemmLadderError(f"{rung.name}: {error}")
    (config,) = run.launches
    return config


# ------------------------------------------------------------------------------------- lines of code


def own_file(rung: Rung) -> Path:
    """The rung's file. That of s8_ffma_interleave is the pass over the machine code of the rung below."""
    return Path(ffma.__file__).resolve() if isinstance(rung, InterleavedRung) else rung.path


def code_lines(path: Path) -> list[str]:
    """A file's lines of code, without indentation: no blank lines, comment lines or docstrings."""
    text = path.read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            holds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, holds) and ast.get_docstring(node) is not None:
                first = node.body[0]
                lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    return [line for line in lines if line and not line.startswith("#" if path.suffix == ".py" else "//")]


def changed(old: Sequence[str], new: Sequence[str]) -> tuple[int, int]:
    """(lines added, lines removed): the lines outside the longest common subsequence."""
    # common[i]: the length of the longest one of the lines of `old` so far and the first i lines of `new`.
    common = [0] * (len(new) + 1)
    for line in old:
        diagonal = 0
        for index, other in enumerate(new, start=1):
            longest = diagonal + 1 if line == other else max(common[index], common[index - 1])
            diagonal, common[index] = common[index], longest
    return len(new) - common[-1], len(old) - common[-1]


# ----------------------------------------------------------------------------------------------- ncu


def ask_ncu(data: CardsFile) -> None:
    """Add what ncu reports about every compiled rung.

    Raises GemmLadderError where there is no Hopper GPU or no ncu.
    """
    device, found = session.find_gpu()
    if device is None:
        raise GemmLadderError(f"found {found}; ncu runs the rungs, and a Hopper GPU is needed")
    machine = records.machine(device, timing.FLUSH_BYTES)
    data["meta"]["ncu"] = ncu.meta(machine["gpu"], machine["driver"])
    for found_row in data["rows"]:
        if found_row["registers"] is not None:
            print(f"ncu: {found_row['rung']}", flush=True)
            found_row["ncu"] = ncu.profile(rungs[found_row["rung"]])


def keep_ncu(data: CardsFile, old: CardsFile) -> None:
    """Keep ncu's figures of an older file if it is of the same kernel sources, built by the same compiler."""
    if old["meta"]["ncu"] is None:
        return
    for what, was, now in (
        ("sources", old["meta"]["sources"], data["meta"]["sources"]),
        ("nvcc", old["meta"]["nvcc"], data["meta"]["nvcc"]),
    ):
        if was != now:
            print(f"ncu's figures are dropped: they are of {what} {was[:12]}, the cards of {now[:12]}.\n")
            return
    data["meta"]["ncu"] = old["meta"]["ncu"]
    kept = {old_row["rung"]: old_row["ncu"] for old_row in old["rows"]}
    for new_row in data["rows"]:
        new_row["ncu"] = kept.get(new_row["rung"])


def show(data: CardsFile) -> None:
    """Print each rung's lines and resources as a table, and what limits it."""
    columns = ("lines", "added", "removed", "registers", "shared_dynamic", "stages", "threads", "cluster")
    cells = [["rung", *columns]]
    for one in data["rows"]:
        values: dict[str, Any] = {**one}
        cells.append([one["rung"], *("-" if values[name] is None else str(values[name]) for name in columns)])
    print(tables.plain(cells))
    for one in data["rows"]:
        if one["ncu"]:
            print(f"{one['rung']}: {rung_cards.limit(one['ncu'])}")
