"""Configurations that were measured to be the fastest, by GPU model. The user's own results go first.

    tables/NAME.json           part of this package; NAME is the GPU's
    CACHE/tables/NAME.json     what `gemm_ladder.tune` found on this machine; CACHE is the cache folder

Both hold {"KIND GROUPSxMxNxK": {"us": microseconds, "num_sms": how many SMs the GPU has, "config": the fields
of Config}}, where M is the number of rows as choice.rows_to_expect gives it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

from gemm_ladder.arguments import Kind
from gemm_ladder.build import folders
from gemm_ladder.errors import InputError
from gemm_ladder.production.config import Config

SHIPPED = Path(__file__).resolve().parent / "tables"


def find(gpu: str, kind: Kind, m: int, n: int, k: int, groups: int, num_sms: int) -> Config | None:
    """The fastest configuration measured on this GPU model with this many SMs, or None.

    An entry that is not usable, because another version wrote it for example, is ignored.
    """
    return _find((_own(), SHIPPED), gpu, kind, m, n, k, groups, num_sms)


@functools.lru_cache(maxsize=4096)
def _find(
    places: tuple[Path, ...], gpu: str, kind: Kind, m: int, n: int, k: int, groups: int, num_sms: int
) -> Config | None:
    for folder in places:
        entry = _table(folder / _file(gpu)).get(_key(kind, m, n, k, groups))
        try:
            if entry is not None and entry["num_sms"] == num_sms:
                config = Config(**entry["config"]).check()
                if (config.kind, config.n, config.k) == (kind, n, k):
                    return config
        except (KeyError, TypeError, InputError):
            continue
    return None


def shipped(kind: Kind, m: int, n: int, k: int, groups: int, num_sms: int) -> dict[str, tuple[Config, float]]:
    """This package's results for GPUs with this many SMs: (configuration, microseconds) by GPU name."""
    key, found = _key(kind, m, n, k, groups), {}
    for path in sorted(SHIPPED.glob("*.json")):
        entry = _table(path).get(key)
        if entry and entry["num_sms"] == num_sms:
            found[path.stem.replace("_", " ")] = Config(**entry["config"]), entry["us"]
    return found


def keep(gpu: str, config: Config, m: int, groups: int, num_sms: int, us: float) -> Path:
    """Add a result to the user's own table, or replace it there, and return the table's path.

    The file is replaced in one step, so a reader finds the old one or the new one. If two processes write at
    the same moment, one result may get lost.
    """
    path = _own() / _file(gpu)
    table = _read(path) | {
        _key(config.kind, m, config.n, config.k, groups): {
            "us": round(us, 3),
            "num_sms": num_sms,
            "config": dataclasses.asdict(config),
        }
    }
    folders.replace(path, json.dumps(table, indent=1, sort_keys=True))
    forget()
    return path


def forget() -> None:
    """Read the tables anew when they are asked next."""
    _table.cache_clear()
    _find.cache_clear()


def _own() -> Path:
    return folders.folder() / "tables"


def _file(gpu: str) -> str:
    return re.sub(r"\W+", "_", gpu).strip("_") + ".json"


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
