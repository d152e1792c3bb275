"""What Nsight Compute (ncu) reports about a rung's kernel, for one launch at one shape.

    python -m gemm_ladder.measure.ncu s3_wgmma      the program that ncu profiles: it launches that rung

To read all counters ncu replays the kernel several times, with empty caches each time; the clocks are left as
they are. The metrics are those of NVIDIA's "Nsight Compute Profiling Guide" that an H100 has.
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

SHAPE = Shape(4096, 7168, 2048)  # small enough that s1_naive takes a quarter of a second
WARM_UP = 2  # launches before the one that is profiled

# Metrics by the names that a card has for them: percent of the peak over the kernel's whole time; occupancy
# over the time in which an SM has work.
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
# Warps in this state per instruction issued, on average. `selected` is the state of the warp that issues.
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = (
    *("barrier", "branch_resolving", "dispatch_stall", "drain", "gmma", "imc_miss", "lg_throttle"),
    *("long_scoreboard", "math_pipe_throttle", "membar", "mio_throttle", "misc", "no_instruction"),
    *("not_selected", "selected", "short_scoreboard", "sleeping", "tex_throttle", "wait"),
)
PROTOCOL = (
    f"One launch at {SHAPE} after {WARM_UP} others, replayed by ncu with empty caches and the clocks as they "
    "are; percentages of the peak are over the kernel's time, resident warps over the time in which an SM "
    "has work; a warp's time is the mean over all warps, idle ones included"
)


def profile(rung: Rung) -> dict[str, Any]:
    """Run ncu on one launch of `rung`.

    Returns:
        A percentage or None for each name in METRICS, and `stalls`: percent of a warp's time by reason.

    Raises:
        ToolchainError: there is no ncu.
        GemmLadderError: ncu fails, or does not report exactly one launch.
    """
    metrics = [*METRICS.values(), *map(STALL.format, STALLS)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "launch.ncu-rep"
        # The kernel's name begins with this.
        kernel = rung.name if isinstance(rung, ProductionRung) else rung.path.stem
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
    """ncu's version. Raises ToolchainError where there is no ncu."""
    found = re.search(r"^Version (\S+)", _ncu("--version"), re.M)
    return found[1] if found else "unknown"


def meta(gpu: str, driver: str) -> dict[str, str]:
    """Where, when and how ncu ran: cards.json's meta["ncu"]."""
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
    """The metrics in the output of `ncu --csv --page raw`: lines of names, of units, and one for each launch.

    A metric that ncu could not read ("n/a", or not there) is left out. Raises GemmLadderError if there is not
    exactly one launch.
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
    """A card's figures from ncu's metrics, rounded to 0.1 percent; stalls that round to 0 are left out."""

    def rounded(share: float | None) -> float | None:
        return None if share is None else round(share, 1)

    warps = {reason: metrics[STALL.format(reason)] for reason in STALLS if STALL.format(reason) in metrics}
    everything = sum(warps.values())
    shares = {reason: rounded(100 * count / everything) for reason, count in warps.items() if count}
    return {name: rounded(metrics.get(metric)) for name, metric in METRICS.items()} | {
        "stalls": {reason: share for reason, share in shares.items() if share}
    }


def _ncu(*arguments: str) -> str:
    """ncu's stdout. Raises GemmLadderError with ncu's message where it fails."""
    tool = toolchain.find_tool("ncu")
    if tool is None:
        raise toolchain.ToolchainError("There is no ncu on PATH or beside nvcc", "install Nsight Compute")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if "==ERROR==" in line]
        raise GemmLadderError(f"ncu fails: {(errors or said or ['it says nothing'])[-1].strip()}")
    return done.stdout


def _launch(rung: Rung) -> None:
    """What ncu profiles: WARM_UP launches, and the one that counts."""
    import torch
    from gemm_ladder.measure import problems, session

    call = session.rung_call(rung, problems.make_problem(SHAPE, "cuda"))
    for _ in range(WARM_UP + 1):
        call()
    torch.cuda.synchronize()


if __name__ == "__main__":
    from gemm_ladder.rungs import rungs

    _launch(rungs[sys.argv[1]])
