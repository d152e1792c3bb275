"""What lesson bridge_triton_cute shows: the same step in three files, their machine code, their times.

The lines are looked up in the files as they are now, so that a table cannot name a line that is gone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from gemm_ladder.errors import InputError
from gemm_ladder.figures import lessons, tables
from gemm_ladder.rungs import rungs
from matplotlib import pyplot as plt
from workshop import drawing, workbench

RUNG = "s6_warp_specialized"
FOLDER = lessons.FOLDER / "bridges"
FILES = {
    "CUDA": rungs[RUNG].path,
    "Gluon": FOLDER / "gluon_kernel.py",
    "CuTe DSL": FOLDER / "cute_kernel.py",
}
MARKED = {"CUDA": "cpp", "Gluon": "python", "CuTe DSL": "python"}
LABELS = {
    RUNG: "CUDA: the rung",
    "without_cluster": "CUDA, without the cluster",
    "gluon": "Gluon",
    "gluon_unpinned": "Gluon, promotion not pinned",
    "cute": "CuTe DSL",
    "cute_unpinned": "CuTe DSL, promotion not pinned",
}


class Step(NamedTuple):
    """A thing that the kernel has to do, and by what words its line is found in each file."""

    what: str
    cuda: str
    gluon: str
    cute: str


STEPS = (
    Step("which tile", "void find_tile(", "def find_tile(", "first_m = pair //"),
    Step("swizzled layout of a stage", "smem_descriptor(ring.stage + kB)", "SWIZZLED =", "layout_b ="),
    Step("the mbarriers", "mbarrier_init(smem_stage(stage) + kFull", "mbarrier.init(full", "ring = pipeline"),
    Step(
        "the producer's warps",
        "if (threadIdx.x < kWarpgroup)",
        "(producer, (map_a",
        "if warpgroup_index == 0",
    ),
    Step("its registers", "setmaxnreg_dec<40>", "[232, 40]", "setmaxregister_decrease(40)"),
    Step("wait for an empty stage", "next.stage + kEmpty", "mbarrier.wait(empty", "ring.producer_acquire"),
    Step("announce the bytes", "mbarrier_arrive_expect_tx(full", "mbarrier.expect(", "tx_count="),
    Step(
        "load A",
        "cp_async_bulk_tensor_2d_multicast(",
        "async_copy_global_to_shared(map_a",
        "to_a[None, state",
    ),
    Step(
        "wait for a full stage", "ring.stage + kFull, ring.parity", "mbarrier.wait(full", "ring.consumer_wait"
    ),
    Step("a scale of A for each row", "scale_a[i / 2][i % 2] =", "scale0 =", "rows_sfa ="),
    Step("WGMMA", "ptx::wgmma<kTileN>(partial", "= warpgroup_mma(", "cute.gemm("),
    Step(
        "wait for the WGMMAs",
        "wgmma_wait_group<0>",
        "warpgroup_mma_wait(0, deps=[partial, o",
        "wait_group(0)",
    ),
    Step("give the stage back", "mbarrier_arrive_cluster(", "mbarrier.arrive(empty", "ring.consumer_release"),
    Step("promotion", "= fmaf(partial[i]", "total0 = gl.fma(", "total[at] = promote("),
    Step(
        "who has which element", "accumulator_row(threadIdx", "ACCUMULATOR =", "to_d = slice_mma.partition_C"
    ),
    Step("to D", "reinterpret_cast<uint32_t*>(p.d", "gl.store(", "cute.autovec_copy("),
)


def _line(path: Path, words: str) -> tuple[int, str]:
    """The number and the text of the one line of a file that has these words."""
    lines = path.read_text().splitlines()
    found = [(number, line.strip()) for number, line in enumerate(lines, 1) if words in line]
    if len(found) != 1:
        raise InputError(f"{words!r} is in {len(found)} lines of {path.name}; one is needed")
    return found[0]


def who_does_what() -> workbench.Text:
    """The steps of the kernel, and in each file the number of the line that takes it, linked."""
    rows = [["step", *FILES]]
    for step in STEPS:
        places = [_line(path, words)[0] for path, words in zip(FILES.values(), step[1:], strict=True)]
        links = [
            f"[{place}]({_link(path)}#L{place})" for path, place in zip(FILES.values(), places, strict=True)
        ]
        rows.append([step.what, *links])
    return workbench.Text(tables.markdown(rows), "\n".join(" | ".join(row) for row in rows))


def _link(path: Path) -> str:
    inside = path.relative_to(lessons.FOLDER.parent)
    return str(inside.relative_to("lessons")) if inside.parts[0] == "lessons" else f"../{inside}"


def beside(*whats: str) -> workbench.Text:
    """Of each step the lines of the three files, one below the other."""
    parts = []
    for step in STEPS:
        if step.what in whats:
            parts.append(f"**{step.what}**")
            for (name, path), words in zip(FILES.items(), step[1:], strict=True):
                number, _ = _line(path, words)
                parts.append(f"{name}\n```{MARKED[name]}\n{_statement(path, number)}\n```")
    text = "\n\n".join(parts)
    return workbench.Text(text, text)


def _statement(path: Path, number: int) -> str:
    """A line and those that follow until its brackets are closed, moved to the left."""
    taken: list[str] = []
    for line in path.read_text().splitlines()[number - 1 :]:
        taken.append(line)
        text = "".join(taken)
        if all(text.count(a) <= text.count(b) for a, b in ("()", "[]")):
            break
    margin = min(len(line) - len(line.lstrip()) for line in taken)
    return "\n".join(line[margin:] for line in taken)


def load(name: str) -> dict | None:
    """lessons/data/NAME.json, or None if it is not there."""
    path = lessons.FOLDER / "data" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def machine_code() -> workbench.Text:
    """A table of what each compiler made of its kernel: lessons/data/bridges_code.json."""
    recorded = load("bridges_code")
    counts = {"WGMMAs": ("QGMMA",), "TMA loads": ("UTMALDG",), "FFMAs": ("FFMA",), "mbarriers": ("SYNCS",)}
    counts |= {"barriers of warps": ("BAR",), "spills": ("STL", "LDL"), "all": ("all",)}
    rows = [["instructions", *counts]]
    for row in recorded["rows"]:
        rows.append(
            [LABELS[row["impl"]], *(str(sum(row[name] for name in names)) for names in counts.values())]
        )
    meta = recorded["meta"]
    note = f"nvcc {meta['nvcc']}, Triton {meta['triton']}, CuTe DSL {meta['cutlass_dsl']}; {meta['target']}"
    return workbench.Text(f"{tables.markdown(rows)}\n\n<sub>{note}</sub>", f"{tables.plain(rows)}\n{note}")


def times(recorded: dict, size: tuple[int, int, int]) -> None:
    """Bars of TFLOPS at one size, L2 dirty, and the times printed below."""
    rows = {
        row["impl"]: row
        for row in recorded["rows"]
        if (row["m"], row["n"], row["k"]) == size and row["l2"] == "dirty"
    }
    shown = [name for name in LABELS if name in rows]
    _, axes = plt.subplots(figsize=(8, 0.45 * len(shown) + 0.7))
    for place, name in enumerate(shown):
        pinned = "unpinned" not in name
        axes.barh(place, rows[name]["tflops"], color=drawing.BLUE if pinned else drawing.ORANGE)
        axes.text(rows[name]["tflops"], place, f" {rows[name]['tflops']:.0f}", va="center")
    axes.set_yticks(range(len(shown)), [LABELS[name] for name in shown])
    axes.invert_yaxis()
    axes.set_xlabel("TFLOPS")
    axes.set_title(f"{size[0]} x {size[1]} x {size[2]}, {recorded['meta']['gpu']}, L2 dirty")
    plt.show()
    for name in shown:
        bits = "the rung's bits" if rows[name]["same_bits"] else "other bits than the rung's"
        print(f"{LABELS[name]:32} {rows[name]['us']:7.1f} us, {bits}")
