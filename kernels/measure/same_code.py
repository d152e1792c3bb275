"""Whether two versions of the kernels' sources make the same machine code. No GPU is needed.

A name can be changed, or an expression written in another way, and the compiler makes the same instructions
of it. Then what was measured of one version holds for the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gemm_ladder import build
from gemm_ladder.arguments import H100_SMS
from gemm_ladder.build.job import KERNELS
from gemm_ladder.measure.operands import held_rows
from gemm_ladder.measure.shapes import MASKED_MAX_M, MEASURED, PRODUCTS, Product
from gemm_ladder.production import launching
from gemm_ladder.production.config import Config
from gemm_ladder.sass import disassembly

GPUS = ("NVIDIA H100 80GB HBM3", "NVIDIA H200")  # that the recorded files are of
Instructions = list[tuple[str, str, str, int]]


def differing_kernels(earlier: Path) -> list[str]:
    """The names of the kernels whose machine code differs, of those that are timed.

    Args:
        earlier: a folder with the earlier stages/, include/ and production/; the present ones are this
            package's.

    Raises:
        gemm_ladder.build.ToolchainError: there is no nvcc, or no cuobjdump.
        gemm_ladder.build.BuildError: one of the two versions does not build.
    """
    sources = [*_rungs(), *_production()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        now = pool.map(lambda one: _instructions(_source(KERNELS, one[1])), sources)
        then = pool.map(lambda one: _instructions(_source(earlier, one[1]), earlier), sources)
        return [name for (name, _), a, b in zip(sources, now, then, strict=True) if a != b]


def _rungs() -> Iterator[tuple[str, str]]:
    """(name, path below kernels/) of every rung that is a file."""
    for path in sorted((KERNELS / "stages").glob("*.cu")):
        yield path.stem, f"stages/{path.name}"


def _production() -> Iterator[tuple[str, str]]:
    """(name, text) of the production kernel of every product that is timed, as calls on GPUS choose it."""
    products = [*PRODUCTS, *(Product("dense", 1, shape) for shape in MEASURED)]
    chosen = [_configuration(product, gpu) for gpu in GPUS for product in products]
    for text in dict.fromkeys(config.source() for config in chosen):
        yield next(config.name for config in chosen if config.source() == text), text


def _configuration(product: Product, gpu: str) -> Config:
    kind, groups, (m, n, k) = product
    rows = MASKED_MAX_M if kind == "masked" else sum(held_rows(product))
    return launching.configuration(kind, rows, n, k, groups, m, H100_SMS, gpu)


def _source(folder: Path, source: str) -> Path | str:
    """A path below `folder`, or text that includes files from there."""
    return folder / source if source.endswith(".cu") else source


def _instructions(source: Path | str, folder: Path | None = None) -> Sequence[Instructions]:
    """Each kernel's instructions; headers come from `folder` first, if there is one."""
    flags = [f"-I{folder / name}" for name in ("include", "production")] if folder else []
    built = build.compile(source, target="cuda", name="same_code", extra_flags=flags)
    return [
        [(one.predicate, one.opcode, one.operands, one.word) for one in kernel]
        for kernel in disassembly.disassemble(built.path).values()
    ]
