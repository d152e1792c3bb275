"""What Nsight Compute (ncu) says of a rung's kernel: one launch of each, at one shape.

    python -m gemm_ladder.measure.ncu s2_wgmma      launches that rung a few times: what ncu is pointed at

ncu runs the kernel several times over, with its caches emptied before each, to read all counters; the clocks
are left as they are. Metrics: NVIDIA's "Nsight Compute Profiling Guide". Those here are what an H100 was seen
to have.
"""

from __future__ import annotations

import csv
import datetime
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemm_ladder.build import toolchain
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.rungs import ProductionRung, Rung

SHAPE = Shape(4096, 7168, 2048)  # s1_naive takes a quarter of a second
WARM_UP = 2  # launches that ncu lets pass

# By the name that a card has for it: percent of the peak over the kernel's whole time, but for occupancy,
# which is over the time in which an SM has work.
METRICS = {
    "tensor": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "fma": "sm__pipe_fma_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "alu": "sm__pipe_alu_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "xu": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_elapsed",
    "lsu": "sm__inst_executed_pipe_lsu.avg.pct_of_peak_sustained_elapsed",
    "issue": "sm__issue_active.avg.pct_of_peak_sustained_elapsed",
    "l1": "l1tex__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
# How many warps, on average, are in this state for each instruction issued; `selected` is the one that
# issues.
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = (
    *("barrier", "branch_resolving", "dispatch_stall", "drain", "gmma", "imc_miss", "lg_throttle"),
    *("long_scoreboard", "math_pipe_throttle", "membar", "mio_throttle", "misc", "no_instruction"),
    *("not_selected", "selected", "short_scoreboard", "sleeping", "tex_throttle", "wait"),
)
PROTOCOL = (
    f"One launch at {SHAPE} after {WARM_UP} others, replayed by ncu with empty caches and the clocks as they "
    "are; percent of the peak over the kernel's time, of warps over the time in which an SM has work; a "
    "warp's time is the mean over all warps, those included that have nothing to do"
)


def profile(rung: Rung) -> dict[str, Any]:
    """Run ncu on one launch of `rung`.

    Returns:
        A percentage or None by the names in METRICS, and `stalls`, the percentages of a warp's time by
        reason.

    Raises:
        ToolchainError: there is no ncu.
        GemmLadderError: it fails, or what it gives is not one launch of one kernel.
    """
    metrics = [*METRICS.values(), *map(STALL.format, STALLS)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "launch.ncu-rep"
        kernel = rung.name if isinstance(rung, ProductionRung) else rung.path.stem  # how its name begins
        select = ["--kernel-name", f"regex:^{kernel}", "--launch-skip", str(WARM_UP), "--launch-count", "1"]
        options = [
            "--clock-control",
            "none",
            *select,
            "--metrics",
            ",".join(metrics),
            "--export",
            str(report),
        ]
        _ncu(*options, sys.executable, "-m", "gemm_ladder.measure.ncu", rung.name)
        page = _ncu("--import", str(report), "--csv", "--page", "raw")
    return figures(parse(page.splitlines()))


def version() -> str:
    """Of ncu. Raises ToolchainError where there is none."""
    found = re.search(r"^Version (\S+)", _ncu("--version"), re.M)
    return found[1] if found else "unknown"


def meta(gpu: str, driver: str) -> dict[str, str]:
    """Where and when: cards.json's meta["ncu"]."""
    today = datetime.date.today().isoformat()
    return {
        "gpu": gpu,
        "driver": driver,
        "ncu": version(),
        "date": today,
        "shape": str(SHAPE),
        "protocol": PROTOCOL,
    }


def parse(lines: Iterable[str]) -> dict[str, float]:
    """The metrics of the one kernel in `ncu --csv --page raw`: names, then units, then a line for each
    launch.

    A metric that ncu could not read ("n/a", or not there) is left out. Raises GemmLadderError where there is
    not one launch.
    """
    rows = list(csv.reader(line for line in lines if line.startswith('"')))
    if len(rows) != 3 or len({len(row) for row in rows}) != 1:
        raise GemmLadderError(f"ncu gives {max(len(rows) - 2, 0)} launches as a table; 1 is needed")
    found = {}
    for name, value in zip(rows[0], rows[2], strict=True):
        if re.fullmatch(r"-?\d[\d,]*(\.\d+)?(e[+-]?\d+)?", value):
            found[name] = float(value.replace(",", ""))
    return found


def figures(metrics: dict[str, float]) -> dict[str, Any]:
    """A card's figures from ncu's metrics, rounded to a tenth of a percent; stalls that never occur are left
    out."""

    def rounded(share: float | None) -> float | None:
        return None if share is None else round(share, 1)

    warps = {reason: metrics[STALL.format(reason)] for reason in STALLS if STALL.format(reason) in metrics}
    everything = sum(warps.values())
    shares = {reason: rounded(100 * count / everything) for reason, count in warps.items() if count}
    return {name: rounded(metrics.get(metric)) for name, metric in METRICS.items()} | {
        "stalls": {reason: share for reason, share in shares.items() if share}
    }


def _ncu(*arguments: str) -> str:
    """stdout of ncu. Raises GemmLadderError, with what it says, where it fails."""
    tool = toolchain.find_tool("ncu")
    if tool is None:
        raise toolchain.ToolchainError("There is no ncu on PATH or beside nvcc: install Nsight Compute.")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if "==ERROR==" in line]
        raise GemmLadderError(f"ncu fails: {(errors or said or ['it says nothing'])[-1].strip()}")
    return done.stdout


def _launch(rung: Rung) -> None:
    """What ncu looks at: WARM_UP launches, and the one that counts."""
    import torch
    from gemm_ladder.measure import problems, session

    call = session.rung_call(rung, problems.make_problem(SHAPE, "cuda"))
    for _ in range(WARM_UP + 1):
        call()
    torch.cuda.synchronize()


if __name__ == "__main__":
    from gemm_ladder.rungs import rungs

    _launch(rungs[sys.argv[1]])
