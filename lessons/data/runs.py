"""Write runs.json: what earlier commits of this repository recorded at one shape, and ratios across days.

    python lessons/data/runs.py        in a clone with its history

ladder.json and production.json are renewed with every measurement, so their history has one product on
several cards. peers.json, which is gone, had DeepGEMM's times of another day and another card than ours.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

SHAPE = (4096, 7168, 16384)
OURS, THEIRS = (
    "128b5e5",
    "11b8b2f^",
)  # the last production.json before DeepGEMM was beside it; the last peers.json
IMPLS = {"cublaslt_tensorwise", "cublaslt_blockwise", "s9_production", "s7_production"}  # s9 was s7


def main() -> None:
    """Read the history, and write the file beside this one."""
    found: dict[float, dict[str, Any]] = {}
    for name in ("ladder", "production"):
        path = f"figures/data/{name}.json"
        for commit in reversed(git("log", "--format=%h", "--", path).split()):
            data = json.loads(git("show", f"{commit}:{path}"))
            us = {row["impl"]: row["us"] for row in data["rows"] if is_shape(row) and row["impl"] in IMPLS}
            if "cublaslt_tensorwise" in us:  # the same run may be in several commits
                head = {"commit": commit, "date": data["meta"]["date"], "gpu": data["meta"]["gpu"]}
                found.setdefault(us["cublaslt_tensorwise"], head | {"file": f"{name}.json", "us": us})
    ours, theirs = (
        json.loads(git("show", f"{commit}:figures/data/{name}.json"))
        for commit, name in ((OURS, "production"), (THEIRS, "peers"))
    )
    then = {key(row): row["us"] for row in theirs["rows"] if row["impl"] == "deep_gemm"}
    rows = [
        [*key(row), then[key(row)], row["us"]]
        for row in ours["rows"]
        if row["impl"] == "s7_production" and key(row) in then
    ]
    heads = {
        who: {"commit": commit, "date": data["meta"]["date"], "gpu": data["meta"]["gpu"]}
        for who, commit, data in (("ours", OURS, ours), ("theirs", THEIRS, theirs))
    }
    across = heads | {"fields": ["kind", "groups", "m", "n", "k", "l2", "theirs_us", "ours_us"], "rows": rows}
    runs = sorted(found.values(), key=lambda run: run["date"])
    text = json.dumps({"shape": SHAPE, "l2": "dirty", "runs": runs, "across": across}, indent=1)
    (Path(__file__).parent / "runs.json").write_text(text + "\n", encoding="utf-8")


def git(*words: str) -> str:
    where = Path(__file__).parents[2]
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=where).stdout


def is_shape(row: dict[str, Any]) -> bool:
    return (row["kind"], row["m"], row["n"], row["k"], row["l2"]) == ("dense", *SHAPE, "dirty")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["kind"], row["groups"], row["m"], row["n"], row["k"], row["l2"]


if __name__ == "__main__":
    main()
