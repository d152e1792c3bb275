"""The worked solutions of lesson 14 on a Hopper GPU: judged, and timed at their briefs' shapes.

    python lessons/data/own_rungs.py

writes own_rungs.json beside it, and stops at a solution that is not right.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch
from gemm_ladder import lab
from gemm_ladder.build import sources_digest
from workshop import own_rung


def main() -> int:
    times = {}
    for name, brief in own_rung.BRIEFS.items():
        path = HERE.parent / "solutions" / f"own_rung_{name}.cu"
        found = lab.judge(path, operands=brief.operands, device="cuda", timed=[brief.timed])
        print(found)
        if not found.right:
            return 1
        times[name] = {of: us for of, at in found.times.items() for us in at.values()}
    meta = {
        "gpu": torch.cuda.get_device_name(),
        "date": str(datetime.date.today()),
        "sources": sources_digest(),
    }
    own_rung.MEASURED.write_text(json.dumps({"schema": 1, "meta": meta, "us": times}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
