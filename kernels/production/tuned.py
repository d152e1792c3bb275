"""Configurations that were measured to be the fastest, by GPU model. The user's own results go first.

    tables/NAME.json           part of this package; NAME is the GPU's
    CACHE/tables/NAME.json     what `gemm_ladder.tune` found on this machine; CACHE is the cache folder

Both hold {"KIND GROUPSxMxNxK": {"us": microseconds, "num_sms": how many SMs the GPU has, "config": the fields
of Config}}, where M is the number of rows as choice.rows_to_expect gives it, and "us" has the times with L2
dirty, clean and in a graph, as far as they were measured.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemm_ladder.arguments import Kind
from gemm_ladder.build import folders
from gemm_ladder.errors import InputError
from gemm_ladder.production.choice import STEPS
from gemm_ladder.production.config import Config
from gemm_ladder.production.prediction import stem

SHIPPED = Path(__file__).resolve().parent / "tables"


Found = tuple[tuple[int, Config], ...]


def find(gpu: str, kind: Kind, n: int, k: int, groups: int, num_sms: int) -> Found:
    """What was measured for a weight on this GPU model with this many SMs: numbers of rows, each with its
    fastest configuration.

    An entry that is not usable, because another version wrote it for example, is ignored.
    """
    return _find((SHIPPED, _own()), gpu, kind, n, k, groups, num_sms)


@functools.lru_cache(maxsize=4096)
def _find(places: tuple[Path, ...], gpu: str, kind: Kind, n: int, k: int, groups: int, num_sms: int) -> Found:
    found: dict[int, Config] = {}
    for folder in places:  # what comes later replaces what came before
        for rows, entry in _of_weight(_table(folder / _file(gpu)), kind, n, k, groups).items():
            try:
                if entry["num_sms"] == num_sms:
                    config = Config(**entry["config"]).check()
                    if (config.kind, config.n, config.k) == (kind, n, k):
                        found[rows] = config
            except (KeyError, TypeError, InputError):
                continue
    return tuple(sorted(found.items(), key=lambda item: item[0]))


def _of_weight(table: dict[str, Any], kind: Kind, n: int, k: int, groups: int) -> dict[int, Any]:
    """A table's entries for a weight, by the number of rows."""
    pattern = re.compile(rf"{kind} {groups}x(\d+)x{n}x{k}")
    matches = {key: pattern.fullmatch(key) for key in table}
    rows = {int(match[1]): table[key] for key, match in matches.items() if match}
    return {one: entry for one, entry in rows.items() if one in STEPS}


def shipped(
    kind: Kind, m: int, n: int, k: int, groups: int, num_sms: int
) -> dict[str, tuple[Config, list[float]]]:
    """This package's results for GPUs with this many SMs: (configuration, microseconds) by GPU name."""
    key, found = _key(kind, m, n, k, groups), {}
    for path in sorted(SHIPPED.glob("*.json")):
        entry = _table(path).get(key)
        if entry and entry["num_sms"] == num_sms:
            found[path.stem.replace("_", " ")] = Config(**entry["config"]), entry["us"]
    return found


def keep(gpu: str, config: Config, m: int, groups: int, num_sms: int, us: Sequence[float]) -> Path:
    """Add a result to the user's own table, or replace it there, and return the table's path.

    The file is replaced in one step, so a reader finds the old one or the new one. If two processes write at
    the same moment, one result may get lost.
    """
    path = _own() / _file(gpu)
    table = _read(path) | entry(config, m, groups, num_sms, us)
    folders.replace(path, json.dumps(table, indent=1, sort_keys=True))
    forget()
    return path


def entry(config: Config, m: int, groups: int, num_sms: int, us: Sequence[float]) -> dict[str, Any]:
    """A table with one result."""
    return {
        _key(config.kind, m, config.n, config.k, groups): {
            "us": [round(one, 3) for one in us],
            "num_sms": num_sms,
            "config": dataclasses.asdict(config),
        }
    }


def forget() -> None:
    """Read the tables anew when they are asked next."""
    _table.cache_clear()
    _find.cache_clear()


def _own() -> Path:
    return folders.folder() / "tables"


def _file(gpu: str) -> str:
    return stem(gpu) + ".json"


def _key(kind: Kind, m: int, n: int, k: int, groups: int) -> str:
    return f"{kind} {groups}x{m}x{n}x{k}"


@functools.cache
def _table(path: Path) -> dict[str, Any]:
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    """A table; an empty one if the file is missing or is no table."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
