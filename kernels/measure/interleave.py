"""python -m gemm_ladder interleave: what the control bits of the promotion's FFMAs are worth.

Needs a Hopper GPU. Rung 8 is timed in each of its modes, which give the same results, so only time is
compared. In a checkout, figures/data/interleave.json and its table are renewed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from gemm_ladder.measure import ladder_rows, session, shapes
from gemm_ladder.rungs import rungs

MODES = {"off": "off", "compiler": "compiler", "9_of_16": Fraction(9, 16), "full": "full"}
SHAPES = tuple(shape for shape in shapes.DEEPSEEK_V3 if shape.m == 4096)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `interleave`. Returns 0, or 1 where a mode gives a wrong result.

    Raises:
        GemmLadderError: there is no Hopper GPU, or --json cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder interleave",
        description="Time s8_ffma_interleave in each of its modes, at DeepSeek-V3's shapes with m = 4096.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    arguments = parser.parse_args(argv)
    device, _ = session.need_gpu("the modes differ in speed alone", arguments.json)
    base = rungs["s8_ffma_interleave"]
    chosen = [dataclasses.replace(base, name=f"s6_{name}", mode=mode) for name, mode in MODES.items()]
    result = ladder_rows.on_gpu(chosen, SHAPES, ("dirty",), device, others={})
    session.show_measured(result, ("dirty",))
    session.keep(result, arguments.json, whole=True, record="interleave.json")
    return 1 if result.wrong else 0
