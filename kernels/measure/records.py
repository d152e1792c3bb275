"""Recording a measurement: its rows, where and when it was taken, and the files that they are written to."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from gemm_ladder import build
from gemm_ladder.errors import InputError
from gemm_ladder.figures import draw
from gemm_ladder.figures.rows import MachineMeta, TimedRow
from gemm_ladder.measure.peers import bytes_moved
from gemm_ladder.measure.shapes import Cell, Product, Shape
from gemm_ladder.measure.timing import MAX_CALLS, MIN_CALLS, PASS_SECONDS, State, Timing


def row(
    impl: str, product: Product | Cell | Shape, l2: State, timing: Timing, relative_error: float
) -> TimedRow:
    """One timed row of figures/data: microseconds, TFLOPS and GB/s of valid rows, relative error.

    A product given as a Shape is a dense one.
    """
    if isinstance(product, Shape):
        product = Product("dense", 1, product)
    kind, groups, shape = product.kind, product.groups, product.shape
    flops = sum(part.flops for part in product.parts)
    moved = sum(bytes_moved(impl, part) for part in product.parts)
    return {
        "kind": kind,
        "groups": groups,
        "m": shape.m,
        "n": shape.n,
        "k": shape.k,
        "impl": impl,
        "l2": l2,
        "us": round(timing.us, 3),
        "us_p10": round(timing.p10, 3),
        "us_p90": round(timing.p90, 3),
        "tflops": round(flops / timing.us / 1e6, 3),
        "gb_s": round(moved / timing.us / 1e3, 1),
        "rel_err": float(f"{relative_error:.3g}"),
    }


def machine(device: torch.device, flush_bytes: int) -> MachineMeta:
    """The "meta" of a measurement: what it ran on, when, with which sources, and how it was taken.

    Args:
        flush_bytes: how much is written before every call, to make L2 cold.
    """
    properties = torch.cuda.get_device_properties(device)
    smi = _nvidia_smi(str(getattr(properties, "uuid", "")))
    nvcc = None
    with contextlib.suppress(Exception):
        nvcc = build.find_cuda().version
    return {
        "gpu": properties.name,
        "num_sms": properties.multi_processor_count,
        "power_limit_w": smi.get("power.limit"),
        "driver": smi.get("driver_version"),
        "cuda": torch.version.cuda,
        "nvcc": nvcc,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "sources": build.sources_digest(),
        "protocol": (
            "kernel time from the CUDA profiler (sum of the call's kernels); random normal data; "
            f"median of {MAX_CALLS} calls, or of as many (at least {MIN_CALLS}) as fit {PASS_SECONDS} s; two "
            "passes in opposite order, of which the better counts, all in one process; before every call a "
            f"memset of {flush_bytes / 1e9:.3g} GB (L2 dirty) and, for the clean rows, a read of 1 GB after "
            "it; rel_err is ||out - ref|| / ||ref|| over the whole matrix, with ref in float64 from the "
            "dequantised inputs (for cublaslt_tensorwise and torch_grouped from the inputs without scales)"
        ),
    }


def _nvidia_smi(uuid: str) -> dict[str, Any]:
    """Power limit (W) and driver of the GPU with this UUID, as far as nvidia-smi reports them."""
    fields = ("uuid", "power.limit", "driver_version")
    try:
        listing = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    gpus: list[dict[str, Any]] = [
        dict(zip(fields, map(str.strip, line.split(",")), strict=True)) for line in listing.splitlines()
    ]
    mine = next((gpu for gpu in gpus if uuid and uuid in gpu["uuid"]), gpus[0] if len(gpus) == 1 else {})
    with contextlib.suppress(KeyError, ValueError):
        mine["power.limit"] = round(float(mine["power.limit"]))
    return mine


def emulated_meta() -> dict[str, str]:
    """The "meta" of what the emulator ran."""
    return {
        "machine": "emulator",
        "date": datetime.date.today().isoformat(),
        "sources": build.sources_digest(),
        "protocol": "random normal data; errors against float64 of the dequantised inputs; CPU seconds",
    }


def refuse_unwritable(path: Path, option: str = "--json") -> None:
    """Raise InputError where a file cannot be written. Opening it tells; no new file is left behind."""
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; a file's name is needed")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path} is in no folder; one that exists is needed")
    existed = os.path.lexists(path)
    try:
        path.open("a").close()
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written ({error.strerror}); another is needed") from None
    if not existed:
        path.unlink()


def export(data: Any, path: Path) -> None:
    """Write the file that --json names. Raises InputError where that fails."""
    try:
        save(data, path)
    except OSError as error:
        raise InputError(f"--json {path} cannot be written ({error.strerror}); another is needed") from None
    print(f"Written: {path}")


def checkout_root() -> Path | None:
    """The repository that this package is imported from, or None if it is an installed copy."""
    root = draw.HERE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "README.md").is_file() else None


def save(data: Any, path: Path) -> None:
    """Write a data file with one row per line; if it has "columns", only the values of each."""
    columns, lines = data.get("columns"), data["rows"]
    if columns:
        lines = [[row[name] for name in columns] for row in lines]
    rows = ",\n".join(json.dumps(line, separators=(",", ":") if columns else None) for line in lines)
    meta = json.dumps(data["meta"], indent=1)
    named = f'"columns": {json.dumps(columns)},\n' if columns else ""
    text = f'{{\n"schema": {data["schema"]},\n"meta": {meta},\n{named}"rows": [\n{rows}\n]\n}}\n'
    path.write_text(text, encoding="utf-8")


def keep_whole(data: Any, path: Path) -> None:
    """As `save`, as a whole: a run that is killed meanwhile leaves the file before. Folders are made.

    Raises:
        InputError: the file cannot be written.
    """
    written = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(data, written)
        written.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); another is needed") from None
