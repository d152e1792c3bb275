"""One promotion of rung s7 as machine code, in each mode of rung s8, for readers without nvcc.

    python lessons/data/promotion.py

writes promotion.json beside it: what `workbench_sass.read` returns, and its "meta". Needs nvcc and cuobjdump.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from gemm_ladder import build  # noqa: E402
from workshop import workbench_sass  # noqa: E402


def main() -> None:
    data = workbench_sass.read()
    meta = {
        "nvcc": build.find_cuda().version,
        "date": str(datetime.date.today()),
        "sources": build.sources_digest(),
    }
    workbench_sass.RECORDED.write_text(json.dumps({"schema": 1, "meta": meta, **data}, indent=1) + "\n")


if __name__ == "__main__":
    main()
