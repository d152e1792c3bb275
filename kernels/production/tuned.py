"""Configurations that were measured to be the best, by GPU model: shipped, or the user's own, which go first.

    tables/NAME.json           shipped, NAME the GPU's
    CACHE/tables/NAME.json     what `gemm_ladder.tune` found on this machine

Both are {"KIND GROUPSxMxNxK": {"us": microseconds, "num_sms": of the GPU, "config": Config's fields}}, M as
config.rows_to_expect gives it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from gemm_ladder.arguments import Kind
from gemm_ladder.build import cache
from gemm_ladder.errors import InputError
from gemm_ladder.production.config import Config

SHIPPED = Path(__file__).resolve().parent / "tables"


def find(gpu: str, kind: Kind, m: int, n: int, k: int, groups: int, num_sms: int) -> Config | None:
    """The best configuration measured on this GPU model with so many SMs, or None.

    An entry that is no usable configuration, of another version for example, is none.
    """
    return _find((_own(), SHIPPED), gpu, kind, m, n, k, groups, num_sms)


@functools.lru_cache(maxsize=4096)
def _find(
    folders: tuple[Path, ...], gpu: str, kind: Kind, m: int, n: int, k: int, groups: int, num_sms: int
) -> Config | None:
    for folder in folders:
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
    """What this package has for GPUs of so many SMs: the configuration and its microseconds, by GPU."""
    key, found = _key(kind, m, n, k, groups), {}
    for path in sorted(SHIPPED.glob("*.json")):
        entry = _table(path).get(key)
        if entry and entry["num_sms"] == num_sms:
            found[path.stem.replace("_", " ")] = Config(**entry["config"]), entry["us"]
    return found


def keep(gpu: str, config: Config, m: int, groups: int, num_sms: int, us: float) -> Path:
    """Add a result to the user's own table, or replace it there. Returns the table's path.

    The file is replaced in one step: a reader finds the old or the new one. Of two processes that write at
    the same moment, one result may get lost.
    """
    path = _own() / _file(gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = _read(path) | {
        _key(config.kind, m, config.n, config.k, groups): {
            "us": round(us, 3),
            "num_sms": num_sms,
            "config": dataclasses.asdict(config),
        }
    }
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(table, file, indent=1, sort_keys=True)
    os.replace(temporary, path)
    forget()
    return path


def forget() -> None:
    """Read the tables anew when they are asked next."""
    _table.cache_clear()
    _find.cache_clear()


def _own() -> Path:
    return cache.folder() / "tables"


def _file(gpu: str) -> str:
    return re.sub(r"\W+", "_", gpu).strip("_") + ".json"


def _key(kind: Kind, m: int, n: int, k: int, groups: int) -> str:
    return f"{kind} {groups}x{m}x{n}x{k}"


@functools.cache
def _table(path: Path) -> dict[str, Any]:
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    """A table; an empty one where there is none, or something else."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
