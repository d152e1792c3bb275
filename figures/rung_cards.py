"""The rungs' cards, figures/cards/*.md, and README.md's table of rungs, from data/cards.json and
data/ladder.json.

A row of cards.json is a rung: its idea and file, lines of code, the compiled kernel's resources (bytes, a
thread or a block), the launch's, the counts of some instructions, and `ncu`, percentages by the names in
UNITS and `stalls`, or null where it has not been run. A field that a rung has no use for is null.
kernels/cards.py and kernels/ncu.py say how each is found.

What limits a rung is a sentence made of ncu's figures alone, by the rules that limit() states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import measured
from .measured import CEILING, SHOWN, Data, number, provenance, series
from .tables import markdown

META_FIELDS = ("nvcc", "date", "sources", "protocol", "ncu")
ROW_FIELDS = (
    *("rung", "idea", "file", "below", "lines", "added", "removed"),
    *("registers", "setmaxnreg", "spill_stores", "spill_loads", "shared_static", "shared_dynamic"),
    *("stages", "threads", "cluster", "sass", "ncu"),
)


# What ncu gives as a share of its peak: the parts of the machine that can be a kernel's limit.
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
FULL, HALF_IDLE = 80, 60  # percent: from where ncu calls a kernel bound by throughput; below, by latency

# What a warp waits for, by ncu's name for it. Those that depend on Hopper's own instructions were read off
# the source view: a warp that waits for WGMMA, or parked before a cluster's barrier, counts as `barrier`; one
# that asks an mbarrier again and again, as `long_scoreboard`.
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


def load(path: Path) -> Data:
    """cards.json. Raises ValueError where it does not have the form that the module's docstring gives."""
    return measured.load(path, META_FIELDS, ROW_FIELDS)


# --------------------------------------------------------------------------------- the table of rungs


def rungs_table(cards: Data, files: Sequence[Data]) -> str:
    """What stands in README.md between the markers of the table `rungs`."""
    times = [one for one in series(files, "dirty") if SHOWN in one.tflops]
    tflops = {one.impl: one.tflops[SHOWN] for one in times}
    head = [
        "rung",
        "what it adds",
        "lines",
        "changed",
        "registers",
        "shared memory",
        "TFLOPS",
        "of the ceiling*",
    ]
    cells = [[*head, "card"]]
    for row in cards["rows"]:
        own, ceiling = tflops.get(row["rung"]), tflops.get("cublaslt_tensorwise")
        shared = _sum(row["shared_static"], row["shared_dynamic"])
        link = f"[card](figures/cards/{row['rung']}.md)" if _has_card(row) else "-"
        cells.append(
            [
                f"[{row['rung']}]({row['file']})",
                row["idea"],
                _text(row["lines"]),
                _changed(row),
                _registers(row),
                f"{shared / 1024:.1f} KiB" if shared else _text(shared),
                number(own),
                f"{100 * own / ceiling:.2g}%" if own and ceiling else "-",
                link,
            ]
        )
    lines = markdown(cells).splitlines()
    lines[1] = lines[1].replace("---:|", "---|", 1)  # what it adds: words, to the left
    shape = " x ".join(map(str, SHOWN))
    notes = [
        "Lines of code, without blank ones and comments; changed, against the rung below; registers a thread "
        f"at launch and, in brackets, after setmaxnreg; TFLOPS at {shape}, L2 dirty. {CEILING}.",
        *_provenance(cards),
        *provenance([one for one in times if not one.is_peer or one.impl == "cublaslt_tensorwise"]),
    ]
    if {cards["meta"]["sources"]} != {one.meta.get("sources") for one in times if not one.is_peer}:
        notes.append("The kernels have changed between the two: these TFLOPS are not of this code.")
    body = "\n".join(lines) + "\n\n" + "\n".join(f"<sub>{note}</sub><br>" for note in notes)
    return body.replace("*", r"\*")


# ----------------------------------------------------------------------------------------- the cards


def cards(data: Data) -> dict[str, str]:
    """The text of every compiled rung's card, in Markdown, by the rung's name."""
    return {row["rung"]: card(row, data) for row in data["rows"] if _has_card(row)}


def card(row: Mapping[str, Any], data: Data) -> str:
    """One rung's card: made of cards.json alone."""
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
    kernels = row["sass"]
    instructions = [
        ["machine code", *(f"<{name}>" if name else "instructions" for name in kernels)],
        *(
            [name, *(str(counts[name]) for counts in kernels.values())]
            for name in next(iter(kernels.values()))
        ),
    ]
    parts = [
        f"# {row['rung']}",
        f"{row['idea'][0].upper()}{row['idea'][1:]}: [{row['file']}](../../{row['file']})",
        markdown(resources),
        markdown(instructions),
        *(
            _limits(row["ncu"], data["meta"]["ncu"])
            if row["ncu"]
            else ["ncu has not been run on this kernel."]
        ),
        "\n".join(f"<sub>{note}</sub><br>" for note in _provenance(data)),
    ]
    return "\n\n".join(parts) + "\n"


def _limits(ncu: Mapping[str, Any], meta: Data) -> list[str]:
    """The part of a card that ncu gives."""
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

    1. The unit with the highest share of its peak is named, and by NVIDIA's thresholds for "Speed of Light":
       80% and more, the kernel is limited by it; 60% and more, it is the nearest limit; below, by latency.
    2. Below 80%, what warps wait for most is named as well: the largest share of their time in which they
       neither issue nor could have issued.

    What ncu did not report takes no part.
    """
    shares = {name: ncu[key] for key, name in UNITS.items() if ncu[key] is not None}
    if not shares:
        return "ncu reports none of the figures that would tell what limits it."
    unit = max(shares, key=shares.__getitem__)
    share = f"{shares[unit]:.0f}% of the peak"
    if shares[unit] >= FULL:
        return f"Limited by {unit}: {share}."
    waits = {name: part for name, part in ncu["stalls"].items() if name not in (ISSUING, "not_selected")}
    wait = max(waits, key=waits.__getitem__) if waits else None
    waiting = f"; a warp waits for {STALLS.get(wait, wait)} {waits[wait]:.0f}% of its time" if wait else ""
    if shares[unit] >= HALF_IDLE:
        return f"No unit is full; the nearest to its limit is {unit}: {share}{waiting}."
    return f"Limited by latency: no unit is over {share}, that of {unit}{waiting}."


def _waiting(stall: str) -> str:
    return "issuing" if stall == ISSUING else f"waiting for {STALLS.get(stall, stall)}"


def _provenance(data: Data) -> list[str]:
    """Where the cards come from: a line for what was compiled, one for what ncu ran."""
    meta = data["meta"]
    sources = f"{meta['date']}, kernel sources {meta['sources'][:12]}"
    notes = [f"Cards: nvcc {meta['nvcc']}; {sources}. {meta['protocol']}."]
    if ncu := meta["ncu"]:
        machine = f"{ncu['gpu']}, driver {ncu['driver']}, ncu {ncu['ncu']}; {ncu['date']}"
        notes.append(f"Limits: {machine}. {ncu['protocol']}.")
    return notes


def _has_card(row: Mapping[str, Any]) -> bool:
    """Whether the rung is compiled: s0_numpy is not."""
    return row["registers"] is not None


def _changed(row: Mapping[str, Any]) -> str:
    return "-" if row["added"] is None else f"+{row['added']} -{row['removed']}"


def _registers(row: Mapping[str, Any]) -> str:
    after = f" ({', '.join(map(str, row['setmaxnreg']))})" if row["setmaxnreg"] else ""
    return _text(row["registers"]) + after


def _sum(*numbers: int | None) -> int | None:
    return None if None in numbers else sum(numbers)


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1f}"
