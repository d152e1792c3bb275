"""python -m gemm_ladder everywhere: the production kernels at the weights of public models.

Needs a Hopper GPU. `grid.subset`, some hundred products, is measured by default, in three states: L2 dirty,
L2 clean, and a CUDA graph of calls over different weights. If all of it was measured in a checkout,
figures/data/everywhere.json and its picture are renewed. A run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gemm_ladder.build import folders
from gemm_ladder.figures import everywhere
from gemm_ladder.measure import grid, records, run, session, timing


def main(argv: Sequence[str] | None = None) -> int:
    """Run `everywhere`. Returns 0, or 1 where a result of ours is wrong or one of our kernels faults.

    Raises:
        GemmLadderError: there is no Hopper GPU, or an argument is not usable.
        gemm_ladder.build.ToolchainError, BuildError: a kernel cannot be built.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder everywhere",
        description="Check and time the production kernels at the weights of public models, beside their "
        "peers, on a Hopper GPU, with L2 dirty and clean and in a CUDA graph.",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"measure the whole grid, {len(grid.grid())} products, not only the {len(grid.subset())} that "
        "figures/data keeps",
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="end after about N minutes; run again to go on"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where everything that was measured is kept, and where an ended run goes on from (default: "
        "everywhere.json in the cache folder)",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw what is in that file")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    arguments = parser.parse_args(argv)
    device, found = session.need_gpu("what is measured is time", arguments.json)
    if arguments.picture:
        records.refuse_unwritable(arguments.picture, "--picture")
    path = arguments.json or folders.folder() / "everywhere.json"
    if arguments.fresh:
        path.unlink(missing_ok=True)

    print(f"Found {found}: every product is checked, then timed beside its peers. Kept in {path}\n")
    chosen, kept = grid.grid() if arguments.all else grid.subset(), grid.subset()
    result = run.measure(chosen, timing.STATES, device, path, arguments.minutes, grid.about())
    show(result)
    if arguments.picture and result.rows:
        everywhere.picture(result.data).savefig(arguments.picture, dpi=130)
        print(f"Drawn: {arguments.picture}")
    if result.unfinished:
        print(
            f"\n{result.unfinished} of {len(chosen)} products are not measured yet: run this again to go on."
        )
    whole = not result.left(kept)
    session.keep(result.of(kept), None, whole, "everywhere.json", "every product of the subset")
    return 1 if result.wrong else 0


def show(result: run.Run) -> None:
    """Print how the ratios are distributed in each state, what is missing, and what is wrong."""
    for sentence in everywhere.summary(result.data):
        print(sentence)
    counts: dict[str, int] = {}
    for one in grid.unmeasured():
        counts[one.reason] = counts.get(one.reason, 0) + 1
    if counts:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in counts.items())
        print(f"\nWeights of the models that cannot be multiplied: {sum(counts.values())} ({reasons}).")
    session.show_measured(result, ())
    for fault in result.faults:
        print(
            f"A kernel has faulted at {fault['shape']}, which ended that run: {fault['impl']}'s "
            f"({fault['reason']}). It is skipped from now on."
        )
