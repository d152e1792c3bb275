"""The measurements, read: what figures/data holds, and the series that tables and pictures are made of.

A file of times is {"schema": 1, "meta": {gpu, driver, cuda, torch, date, sources, protocol, ...}, "rows":
[{kind, groups, m, n, k, impl, l2, us, us_p10, us_p90, tflops, gb_s, rel_err}, ...]}; us is microseconds,
tflops and gb_s count valid rows. peers.json's meta also has copy_tb_s, what a copy reaches in TB/s, and
host_us, microseconds of the host for a call by implementation. cards.json and host.json have the same frame
and other fields (rung_cards.py, host.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"

Data = dict[str, Any]
Size = tuple[int, int, int]  # m, n, k

SCHEMA = 1
SHOWN: Size = (4096, 7168, 16384)  # the shape that is shown where there is room for one only
ROW_FIELDS = (
    "kind", "groups", "m", "n", "k", "impl", "l2", "us", "us_p10", "us_p90", "tflops", "gb_s", "rel_err",
)  # fmt: skip
META_FIELDS = ("gpu", "num_sms", "power_limit_w", "driver", "cuda", "nvcc", "torch", "date", "protocol")

# Everything that is not a rung, in the order in which it is shown.
PEERS = {
    "cublas_bf16": "cuBLAS BF16",
    "cublaslt_blockwise": "cuBLASLt",
    "deep_gemm_v1": "DeepGEMM v1",
    "deep_gemm": "DeepGEMM",
    "cublaslt_tensorwise": "cuBLASLt ceiling*",
}
CEILING = "* one scale per tensor and no promotion: a ceiling, not the same product"


class Series(NamedTuple):
    """One implementation's TFLOPS by (m, n, k), and the meta of the file that they come from."""

    impl: str
    tflops: dict[Size, float]
    meta: Data

    @property
    def label(self) -> str:
        return PEERS.get(self.impl, self.impl)

    @property
    def is_peer(self) -> bool:
        return self.impl in PEERS


def load(path: Path, meta: Sequence[str] = META_FIELDS, row: Sequence[str] = ROW_FIELDS) -> Data:
    """A data file. Raises ValueError where its meta or a row lacks one of these fields."""
    data = json.loads(path.read_text(encoding="utf-8"))
    check(data, path.name, meta, row)
    return data


def check(data: Data, name: str, meta: Sequence[str] = META_FIELDS, row: Sequence[str] = ROW_FIELDS) -> None:
    """Raise ValueError where `data`, of the file `name`, is not of the form that load() wants."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f'{name} has no "schema": {SCHEMA}, which is the only form that is understood')
    if missing := [field for field in meta if field not in data.get("meta", {})]:
        raise ValueError(f"{name} lacks {', '.join(missing)} in its meta")
    for index, found in enumerate(data.get("rows", [])):
        if missing := [field for field in row if field not in found]:
            raise ValueError(f"{name} lacks {', '.join(missing)} in row {index}")


def recorded(folder: Path = DATA) -> list[Data]:
    """The data files that there are, the rungs' first."""
    return [load(folder / name) for name in ("ladder.json", "peers.json") if (folder / name).exists()]


def series(files: Iterable[Data], l2: str) -> list[Series]:
    """The dense rows measured with L2 in the state `l2`: rungs in the ladder's order, then the peers.

    An implementation that is in several files is taken from the first. Files of another GPU than the first
    one's are left out: their figures cannot stand beside it.
    """
    found: dict[str, Series] = {}
    gpu = None
    for data in files:
        gpu = gpu or data["meta"]["gpu"]
        if data["meta"]["gpu"] != gpu:
            continue
        earlier = set(found)
        for row in data["rows"]:
            if row["kind"] == "dense" and row["l2"] == l2 and row["impl"] not in earlier:
                one = found.setdefault(row["impl"], Series(row["impl"], {}, data["meta"]))
                one.tflops[row["m"], row["n"], row["k"]] = row["tflops"]
    peers = list(PEERS)
    return sorted(
        found.values(), key=lambda one: (one.is_peer, peers.index(one.impl) if one.is_peer else one.impl)
    )


def sizes_of(shown: Iterable[Series]) -> list[Size]:
    """Every (m, n, k) of these series: by m, then by the length of the sum; after them the squares."""
    return sorted(
        {size for one in shown for size in one.tflops},
        key=lambda size: (is_square(size), size[0], size[2], size[1]),
    )


def is_square(size: Size) -> bool:
    """Whether m = n = k: a problem chosen for its size, not one of DeepSeek-V3's."""
    return size[0] == size[1] == size[2]


def number(tflops: float | None) -> str:
    """Three digits, or a dash for what was not measured."""
    if tflops is None:
        return "-"
    return f"{tflops:.0f}" if tflops >= 100 else f"{tflops:.3g}"


def provenance(shown: Sequence[Series], protocol: bool = False) -> list[str]:
    """Where the figures come from: a line for each measurement that they are taken from."""
    sentences = []
    for meta in {id(one.meta): one.meta for one in shown}.values():
        rungs = [one.label for one in shown if one.meta is meta and not one.is_peer]
        peers = [one.label for one in shown if one.meta is meta and one.is_peer]
        names = ", ".join(([f"{rungs[0]} to {rungs[-1]}"] if len(rungs) > 2 else rungs) + peers)
        power = f", {meta['power_limit_w']} W" if meta["power_limit_w"] else ""
        nvcc = f", nvcc {meta['nvcc']}" if meta["nvcc"] else ""
        sources = f", kernel sources {meta['sources'][:12]}" if meta.get("sources") else ""
        sentences.append(
            f"{names}: {meta['gpu']}, {meta['num_sms']} SMs{power}; driver {meta['driver']}, "
            f"CUDA {meta['cuda']}{nvcc}, torch {meta['torch']}; {meta['date']}{sources}."
            + (f" Protocol: {meta['protocol']}." if protocol else "")
        )
    return sentences
