"""Reading figures/data: loading a file, and the series that tables and pictures of times are made of.

rows.py says which fields the files have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from .rows import MachineMeta, TimedRow, TimesFile, TimesMeta, fields

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"

Size = tuple[int, int, int]  # m, n, k

SCHEMA = 1
SHOWN: Size = (4096, 7168, 16384)  # the shape that is shown where there is room for one only
ROW_FIELDS = fields(TimedRow)
META_FIELDS = fields(MachineMeta)

# Implementations that are not rungs, in the order in which they are shown.
PEERS = {
    "cublas_bf16": "cuBLAS BF16",
    "cublaslt_blockwise": "cuBLASLt",
    "deep_gemm": "DeepGEMM",
    "cublaslt_tensorwise": "cuBLASLt ceiling*",
}
CEILING = "* one scale per tensor and no promotion: a ceiling, not the same product"


class Series(NamedTuple):
    """One implementation's TFLOPS by (m, n, k), and the meta of the file that they come from."""

    impl: str
    tflops: dict[Size, float]
    meta: TimesMeta

    @property
    def label(self) -> str:
        return PEERS.get(self.impl, self.impl)

    @property
    def is_peer(self) -> bool:
        return self.impl in PEERS


def load(path: Path, meta: Sequence[str] = META_FIELDS, row: Sequence[str] = ROW_FIELDS) -> Any:
    """A data file. Raises ValueError where its meta or a row lacks one of these fields."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(data, dict) and "columns" in data:  # the names of the fields once, and a list for each row
        data["rows"] = [dict(zip(data["columns"], values, strict=True)) for values in data["rows"]]
    check(data, path.name, meta, row)
    return data


def check(data: Any, name: str, meta: Sequence[str] = META_FIELDS, row: Sequence[str] = ROW_FIELDS) -> None:
    """Raise ValueError where `data`, the content of the file `name`, is not as load() wants it."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f'{name} has no "schema": {SCHEMA}, the only form that is understood')
    if missing := [field for field in meta if field not in data.get("meta", {})]:
        raise ValueError(f"{name} lacks {', '.join(missing)} in its meta")
    for index, found in enumerate(data.get("rows", [])):
        if missing := [field for field in row if field not in found]:
            raise ValueError(f"{name} lacks {', '.join(missing)} in row {index}")


def recorded() -> TimesFile:
    """ladder.json: the rungs, and the peers measured in the same run."""
    return cast(TimesFile, load(DATA / "ladder.json"))


def series(data: TimesFile, l2: str) -> list[Series]:
    """The dense rows of one run measured with L2 in the state `l2`: rungs in order, then the peers.

    One run, because times of different runs cannot stand beside each other: the GPU, its clocks and its
    temperature differ.
    """
    found: dict[str, Series] = {}
    for row in data["rows"]:
        if row["kind"] == "dense" and row["l2"] == l2:
            one = found.setdefault(row["impl"], Series(row["impl"], {}, data["meta"]))
            one.tflops[row["m"], row["n"], row["k"]] = row["tflops"]
    peers = list(PEERS)
    return sorted(
        found.values(),
        key=lambda one: (one.is_peer, peers.index(one.impl) if one.is_peer else 0, one.impl),
    )


def sizes_of(shown: Iterable[Series]) -> list[Size]:
    """Every (m, n, k) of these series: by m, then by k; the squares last."""
    return sorted(
        {size for one in shown for size in one.tflops},
        key=lambda size: (is_square(size), size[0], size[2], size[1]),
    )


def is_square(size: Size) -> bool:
    """Whether m = n = k: a problem chosen for its size, not one of DeepSeek-V3's."""
    return size[0] == size[1] == size[2]


def name_of(size: Size) -> str:
    return " x ".join(map(str, size))


def number(tflops: float | None) -> str:
    """Three digits, or a dash for what was not measured."""
    if tflops is None:
        return "-"
    return f"{tflops:.0f}" if tflops >= 100 else f"{tflops:.3g}"


def source_of(meta: Mapping[str, Any], protocol: bool = False, *, libraries: str = "", more: str = "") -> str:
    """What one run was measured with.

    Args:
        protocol: add how.
        libraries: others than torch and their versions, beginning with a comma.
        more: sentences ahead of the protocol, beginning with a space.
    """
    power = f", {meta['power_limit_w']} W" if meta["power_limit_w"] else ""
    nvcc = f", nvcc {meta['nvcc']}" if meta["nvcc"] else ""
    said = (
        f"{meta['gpu']}, {meta['num_sms']} SMs{power}; driver {meta['driver']}, CUDA {meta['cuda']}{nvcc}, "
        f"torch {meta['torch']}{libraries}; {meta['date']}, kernel sources {meta['sources'][:12]}.{more}"
    )
    return said + (f" Protocol: {meta['protocol']}." if protocol else "")


def provenance(shown: Sequence[Series], protocol: bool = False) -> list[str]:
    """Where the figures come from: a sentence for each run that they are taken from."""
    sentences = []
    for meta in {id(one.meta): one.meta for one in shown}.values():
        rungs = [one.label for one in shown if one.meta is meta and not one.is_peer]
        peers = [one.label for one in shown if one.meta is meta and one.is_peer]
        names = ", ".join(([f"{rungs[0]} to {rungs[-1]}"] if len(rungs) > 2 else rungs) + peers)
        sentences.append(f"{names}: {source_of(meta, protocol)}")
    return sentences
