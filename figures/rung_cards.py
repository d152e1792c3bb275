"""The rungs' cards, figures/cards/*.md, and both tables of rungs, from data/cards.json and data/ladder.json.

README.md's table has what a reader needs to choose a rung, that of figures/README.md what each is made of.
What limits a rung is a sentence made from ncu's figures alone, by the rules that limit() states.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from . import measured
from .measured import CEILING, SHOWN, Series, name_of, number, provenance, series
from .rows import CardRow, CardsFile, CardsMeta, TimesFile, fields
from .tables import markdown, under

META_FIELDS = fields(CardsMeta)
ROW_FIELDS = fields(CardRow)

# The units of the machine that can limit a kernel; ncu gives each as a percentage of its peak.
UNITS = {
    "tensor": "the tensor cores",
    "fma": "the FP32 pipe",
    "alu": "the integer pipe",
    "xu": "the conversion pipe",
    "lsu": "the load and store pipe",
    "issue": "the issue slots",
    "l1": "L1 and shared memory",
    "l2": "L2",
    "dram": "GPU memory",
}
# Percent of a unit's peak: from FULL on, ncu calls a kernel bound by throughput; below HALF_IDLE, by latency.
FULL, HALF_IDLE = 80, 60

# What a warp waits for, by ncu's name for it. For Hopper's own instructions, ncu's source view shows which
# name it uses: `barrier` for a warp that waits for WGMMA or at a cluster barrier, `long_scoreboard` for one
# that polls an mbarrier.
STALLS = {
    "barrier": "a barrier or WGMMA's results",
    "branch_resolving": "a branch to be resolved",
    "dispatch_stall": "the dispatcher",
    "drain": "its stores to drain",
    "gmma": "its registers to be free for WGMMA",
    "imc_miss": "a constant",
    "lg_throttle": "room in the queue to global memory",
    "long_scoreboard": "global memory or an mbarrier",
    "math_pipe_throttle": "a pipe that is busy",
    "membar": "a memory fence",
    "mio_throttle": "room in the queue to shared memory",
    "misc": "something that ncu does not name",
    "no_instruction": "its next instruction to be fetched",
    "not_selected": "its turn: it was ready, another warp went first",
    "short_scoreboard": "shared memory or a conversion",
    "sleeping": "the end of its sleep",
    "tex_throttle": "room in the texture queue",
    "wait": "a delay that the compiler has set",
}
ISSUING = "selected"  # ncu counts the cycle in which a warp issues among the stalls


def load(path: Path) -> CardsFile:
    """cards.json. Raises ValueError where a field of its form is missing."""
    return cast(CardsFile, measured.load(path, META_FIELDS, ROW_FIELDS))


# ------------------------------------------------------------------------------------- the tables of rungs


def rungs_table(cards: CardsFile, ladder: TimesFile | None) -> str:
    """README.md's table `rungs`."""
    tflops = {one.impl: one.tflops[SHOWN] for one in _at_shown(ladder)}
    cells = [["rung", "what it adds", "lines", "TFLOPS", "of the ceiling"]]
    for row in cards["rows"]:
        own, ceiling = tflops.get(row["rung"]), tflops.get("cublaslt_tensorwise")
        share = f"{100 * own / ceiling:.2g}%" if own and ceiling else "-"
        name = f"[{row['rung']}]({row['file']})"
        cells.append([name, row["idea"], _text(row["lines"]), number(own), share])
    return _words_second(markdown(cells))


def resources_table(cards: CardsFile, ladder: TimesFile | None) -> str:
    """figures/README.md's table `resources`, with where it comes from."""
    cells = [["rung", "lines", "changed", "registers", "shared memory", "threads", "stages"]]
    for row in cards["rows"]:
        shared = _sum(row["shared_static"], row["shared_dynamic"])
        name = f"[{row['rung']}](cards/{row['rung']}.md)" if _has_card(row) else row["rung"]
        memory = f"{shared / 1024:.1f} KiB" if shared else _text(shared)
        sizes = [_registers(row), memory, _text(row["threads"]), _text(row["stages"])]
        cells.append([name, _text(row["lines"]), _changed(row), *sizes])
    times = [one for one in _at_shown(ladder) if not one.is_peer or one.impl == "cublaslt_tensorwise"]
    notes = [
        "lines: of code, without blank lines, comments and docstrings; changed: against the rung below; "
        "registers: per thread at launch and, in brackets, after setmaxnreg.",
        *_provenance(cards),
        f"TFLOPS in [README.md](../README.md#the-rungs): at {name_of(SHOWN)}, L2 dirty. {CEILING}.",
        *provenance(times),
    ]
    if times and {cards["meta"]["sources"]} != {one.meta["sources"] for one in times}:
        notes.append("The kernels have changed between the two: these TFLOPS are not of this code.")
    return f"{markdown(cells)}\n\n{under(notes)}".replace("*", r"\*")


def _at_shown(ladder: TimesFile | None) -> list[Series]:
    return [one for one in series(ladder, "dirty") if SHOWN in one.tflops] if ladder else []


def _words_second(table: str) -> str:
    """The table with its second column, which has words, aligned to the left."""
    lines = table.splitlines()
    lines[1] = lines[1].replace("---:|", "---|", 1)
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------- the cards


def cards(data: CardsFile) -> dict[str, str]:
    """The text of every compiled rung's card, in Markdown, by the rung's name."""
    return {row["rung"]: card(row, data) for row in data["rows"] if _has_card(row)}


def card(row: CardRow, data: CardsFile) -> str:
    """One rung's card, made from cards.json alone."""
    against = f", against {row['below']}" if row["below"] else ""
    resources = [
        ["built and launched", ""],
        ["lines of code", _text(row["lines"])],
        [f"changed{against}", _changed(row)],
        ["registers a thread", _registers(row)],
        ["spilled, bytes stored and loaded", f"{row['spill_stores']} and {row['spill_loads']}"],
        ["shared memory a block, bytes", _text(_sum(row["shared_static"], row["shared_dynamic"]))],
        ["stages", _text(row["stages"])],
        ["threads a block", _text(row["threads"])],
        ["blocks a cluster", _text(row["cluster"])],
    ]
    kernels = row["sass"] or {}
    instructions = [
        ["machine code", *(f"<{name}>" if name else "instructions" for name in kernels)],
        *(
            [name, *(str(counts[name]) for counts in kernels.values())]
            for name in next(iter(kernels.values()), {})
        ),
    ]
    parts = [
        f"# {row['rung']}",
        f"{row['idea'][0].upper()}{row['idea'][1:]}: [{row['file']}](../../{row['file']})",
        markdown(resources),
        markdown(instructions),
        *(
            _limits(row["ncu"], data["meta"]["ncu"])
            if row["ncu"] and data["meta"]["ncu"]
            else ["ncu has not been run on this kernel."]
        ),
        under(_provenance(data)),
    ]
    return "\n\n".join(parts) + "\n"


def _limits(ncu: Mapping[str, Any], meta: Mapping[str, str]) -> list[str]:
    """The part of a card that comes from ncu."""
    shares = [
        ["at " + meta["shape"], "% of peak"],
        *([name, _percent(ncu[key])] for key, name in UNITS.items()),
    ]
    shares.append(["warps resident, of 64", _percent(ncu["occupancy"])])
    stalls = sorted(ncu["stalls"].items(), key=lambda stall: -stall[1])[:5]
    waits = [["a warp's time", "%"], *([_waiting(name), _percent(share)] for name, share in stalls)]
    return [f"**{limit(ncu)}**", markdown(shares), markdown(waits)]


def limit(ncu: Mapping[str, Any]) -> str:
    """What limits a kernel, in a sentence. The rules:

    1. The unit with the highest percentage of its peak is named. NVIDIA's thresholds for "Speed of Light" say
       how: from 80% on it limits the kernel; from 60% on it is the nearest to its limit; below 60% the kernel
       is limited by latency.
    2. Below 80%, the most frequent reason to wait is named as well: among the cycles in which a warp neither
       issued nor was ready to.

    A figure that ncu did not report is left out.
    """
    shares = {name: ncu[key] for key, name in UNITS.items() if ncu[key] is not None}
    if not shares:
        return "ncu reports none of the figures that would tell what limits it."
    unit = max(shares, key=shares.__getitem__)
    share = f"{shares[unit]:.0f}% of the peak"
    if shares[unit] >= FULL:
        return f"Limited by {unit}: {share}."
    waits = {name: share for name, share in ncu["stalls"].items() if name not in (ISSUING, "not_selected")}
    waiting = ""
    if waits:
        wait = max(waits, key=waits.__getitem__)
        waiting = f"; a warp waits for {STALLS.get(wait, wait)} {waits[wait]:.0f}% of its time"
    if shares[unit] >= HALF_IDLE:
        return f"No unit is full; the nearest to its limit is {unit}: {share}{waiting}."
    return f"Limited by latency: no unit is over {share}, that of {unit}{waiting}."


def _waiting(stall: str) -> str:
    return "issuing" if stall == ISSUING else f"waiting for {STALLS.get(stall, stall)}"


def _provenance(data: CardsFile) -> list[str]:
    """Where the cards come from: a line for what was compiled, one for what ncu ran."""
    meta = data["meta"]
    sources = f"{meta['date']}, kernel sources {meta['sources'][:12]}"
    notes = [f"Cards: nvcc {meta['nvcc']}; {sources}. {meta['protocol']}."]
    if ncu := meta["ncu"]:
        machine = f"{ncu['gpu']}, driver {ncu['driver']}, ncu {ncu['ncu']}; {ncu['date']}"
        notes.append(f"Limits: {machine}. {ncu['protocol']}.")
    return notes


def _has_card(row: CardRow) -> bool:
    """Whether the rung is compiled: s0_numpy is not."""
    return row["registers"] is not None


def _changed(row: CardRow) -> str:
    return "-" if row["added"] is None else f"+{row['added']} -{row['removed']}"


def _registers(row: CardRow) -> str:
    after = f" ({', '.join(map(str, row['setmaxnreg']))})" if row["setmaxnreg"] else ""
    return _text(row["registers"]) + after


def _sum(*numbers: int | None) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1f}"
