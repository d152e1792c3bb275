"""What test_mutation.py mutates: each kernel's files, and the launches that reach every path of it."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import torch
from cases import place
from families import family
from gemm_ladder import checks
from gemm_ladder import launch as launches
from gemm_ladder.errors import LaunchError
from gemm_ladder.lab.operands import normal
from gemm_ladder.production.config import Config
from gemm_ladder.ref import emulator
from gemm_ladder.training import launching as training
from gemm_ladder.training.config import Config as TrainingConfig
from grouped_cases import contiguous, masked, psum
from training_cases import place as place_training

PADDING = 76  # rows of the contiguous layout that are left out, all of them padding
KERNELS = Path(__file__).resolve().parents[1] / "kernels"


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        name: says what it reaches.
        source: the text that is compiled. It includes the subject's files, except if it is its only file.
        run: launches a library of that source with operands that are always the same, and returns the bytes
            of the output and of what lies around it.
    """

    name: str
    source: str
    run: Callable[[ctypes.CDLL], bytes]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A kernel.

    Attributes:
        files: what is mutated. A lone file is compiled as it is; several are included from one folder.
        launches: the first of them reach the most.
    """

    name: str
    files: tuple[Path, ...]
    launches: tuple[Launch, ...]


# ------------------------------------------------------------------------------------------------- the rungs


def _rung(name: str, *shapes: tuple[int, int, int, int]) -> Subject:
    """A rung, launched for shapes (m, n, k, number of SMs)."""
    path = gl.rungs[name].path
    source = path.read_text(encoding="utf-8")
    return Subject(
        name, (path,), tuple(Launch(str(shape), source, _dense(source, *shape)) for shape in shapes)
    )


def _dense(name: str, m: int, n: int, k: int, num_sms: int) -> Callable[[ctypes.CDLL], bytes]:
    operands = functools.cache(lambda: normal(np.random.default_rng(m + n), m, n, k))

    def run(library: ctypes.CDLL) -> bytes:
        placed = place(operands())
        call = checks.operands("dense", placed.lhs, placed.rhs, placed.out, general=True)
        launches.on_emulator("the mutant", library, call, num_sms)
        return placed.surroundings.numpy().tobytes()

    return run


RUNGS = (
    _rung("s1_naive", (11, 72, 200, 1), (8, 136, 128, 1), (3, 7, 300, 1)),
    _rung("s2_tiled", (130, 136, 256, 1), (1, 8, 384, 1), (70, 264, 128, 1)),
    _rung("s3_wgmma", (76, 136, 384, 1), (1, 264, 256, 1), (192, 72, 128, 1)),
    _rung(
        "s4_tma",
        (70, 136, 768, 1),
        (1, 264, 256, 1),
        (192, 72, 1280, 1),
        (0, 72, 128, 1),
        (1, 72, 128, 1),  # a single tile
    ),
    _rung("s5_tma_multicast", (130, 136, 768, 1), (1, 264, 256, 1), (300, 136, 1280, 1), (0, 72, 128, 1)),
    _rung(
        "s6_warp_specialized",
        (300, 136, 768, 1),
        (1, 128, 256, 1),  # the second tile of the cluster begins where B ends
        (2120, 264, 128, 1),  # bands of 8 tiles, the last one lower
        (0, 72, 128, 1),
    ),
    _rung(
        "s7_persistent",
        (300, 264, 384, 4),  # 128 x 192, and several tiles for each block
        (520, 136, 384, 4),  # 256 x 128
        (1130, 520, 128, 4),  # 128 x 192 in bands of 8 tiles, the last one lower
        (1, 136, 768, 2),
        (2120, 392, 128, 4),  # the same of 256 x 128
        (2048, 264, 128, 4),  # whole bands
    ),
)


# --------------------------------------------------------------------------------------------- production


def _production(
    name: str,
    config: Config,
    m: int = 0,
    num_sms: int = 0,
    counts: tuple[int, ...] = (100, 0, 128, 130),
    behind: int = 150,
    cut: int = PADDING,
) -> Launch:
    """A launch of a production kernel.

    Args:
        m: of the dense layout.
        num_sms: by default as many as two clusters have blocks.
        counts: rows of each group.
        behind: psum: rows behind the last group's.
        cut: contiguous: rows at the end that are left out.
    """
    n, k = config.n, config.k
    make = {
        "contiguous": lambda: contiguous(list(counts), n, k, padding=2 if cut else 0, block=config.alignment),
        "masked": lambda: masked(list(counts), max(counts), n, k),
        "psum": lambda: psum(list(counts), n, k, alignment=config.alignment, behind=behind),
    }
    sms = num_sms or config.cluster * 2
    if config.kind == "dense":
        return Launch(name, config.source(), _dense(name, m, n, k, sms))
    made = functools.cache(make[config.kind])

    def run(library: ctypes.CDLL) -> bytes:
        grouped = made()
        around = grouped.around.clone()
        many = grouped.out.numel() // n
        out = around[(len(around) - many) // 2 :][:many].view(torch.bfloat16).view(grouped.out.shape)
        lhs, rows = grouped.lhs, grouped.rows
        if config.kind == "contiguous" and cut:  # the last block of rows ends early
            lhs, rows, out = tuple(x[:-cut] for x in lhs), rows[:-cut], out[:-cut]
        if config.kind == "psum":  # an empty group may end where the one before it does
            rows = rows.clone()
            rows[1] = rows[0]
        call = checks.operands(config.kind, lhs, grouped.rhs, out, rows, general=True)
        launches.on_emulator("the mutant", library, call, sms)
        return around.numpy().tobytes()

    return Launch(name, config.source(), run)


PRODUCTION = Subject(
    "production",
    tuple(
        KERNELS / file
        for file in (
            *("production/gemm.cuh", "production/scheduler.cuh", "production/geometry.cuh"),
            "production/store.cuh",
            *("production/start.cuh", "include/epilogue.cuh", "include/layout.cuh"),
        )
    ),
    (
        _production("A shared, a tail", family("dense", 64, 96, "A", n=520, tail_m=128, tail_n=32), 300, 4),
        _production("K split", family("dense", 64, 64, "K", n=136, stream_b=True, prefetch=2), 74),
        _production("contiguous", family("contiguous", 256, 96, "A")),
        _production(
            "masked, B shared",
            family("masked", 64, 96, "B", cluster=4, n=136),
            num_sms=1,
            counts=(5, 0, 130, 127),
        ),
        _production("masked, two slices", family("masked", 256, 64, stages=2), counts=(227, 0, 260)),
        _production(
            "masked, few groups have rows",
            family("masked", 64, 64, sparse=True, n=136),
            num_sms=2,
            counts=(*(0,) * 3, 1, *(0,) * 17, 70, 0, 0, 2, *(0,) * 5, 3, *(0,) * 11, 4, 0),
        ),
        _production(
            "psum, few groups have rows",
            family("psum", 64, 64, sparse=True, alignment=64, n=136),
            num_sms=1,
            counts=(65, *(0,) * 9, 1, 2, 0, 0, 64, *(0,) * 8, 3, *(0,) * 11, 6),
            behind=0,
        ),
        _production(
            "psum, two slices",
            family("psum", 256, 64, alignment=256, stages=2),
            counts=(257, 0, 130, 128, 65),
            behind=0,  # the second consumer has a single row of the last group
        ),
        _production(
            "two blocks an SM, and a single consumer",
            family(
                "contiguous", 64, 112, consumers_m=1, blocks_an_sm=2, alignment=64, stream_b=True, prefetch=1
            ),
        ),
        _production(
            "consumers side by side, 256 columns, one stage",
            family("dense", 128, 256, consumers_m=1, consumers_n=2, stages=1, n=520),
            200,
        ),
        _production("bands across", Config.of("dense", 200, 128, 64, 16, group_m=4, group_n=4), 577),
        _production("narrow bands", Config.of("dense", 200, 128, 64, 16, group_m=4, group_n=3), 580),
        _production(
            "K split in four, an odd k", Config.of("dense", 200, 656, 64, 112, share="K", cluster=4), 50
        ),
        _production("a row", Config.of("dense", 328, 128, 256, 128), 1),
        _production(
            "psum, B shared, D ends in the padding",
            family("psum", 128, 160, "B", stages=2),
            counts=(129, 0, 128, 65),
            behind=40,
        ),
        _production(
            "psum, tiles of a third of the alignment, D ends behind the last one",
            family("psum", 128, 64, alignment=384, stages=2, group_m=2),
            counts=(300, 0, 65, 100),  # the first: a band of two tiles, and one of one
            behind=250,
        ),
        _production(
            "a tail from the middle of a wave on",
            family("dense", 64, 96, "A", n=520, tail_m=128, tail_n=32),
            300,
            14,
        ),
        _production(
            "a tail without rows", family("dense", 64, 96, "A", n=520, tail_m=128, tail_n=32), 300, 10
        ),
        _production("contiguous, one slice", family("contiguous", 256, 96, n=136), counts=(0, 100), cut=0),
        _production("B shared, one row of tiles", family("dense", 64, 96, "B", n=136), 100),
        _production("two boxes of scales", Config.of("dense", 64, 33024, 64, 64), 20),
    ),
)


# ----------------------------------------------------------------------------------------------- training


def _training(
    name: str,
    config: TrainingConfig,
    m: int,
    n: int,
    ks: int | list[int],
    c: str = "none",
    num_sms: int = 4,
) -> Launch:
    made = functools.cache(lambda: place_training((m, n), ks, c=c, gap=16 if isinstance(ks, int) else 0))
    before = functools.cache(lambda: made().surroundings.clone())

    def run(library: ctypes.CDLL) -> bytes:
        made().surroundings.copy_(before())
        call = made().checked()
        tensors = {"A": call.a, "A's scales": call.sfa, "B": call.b, "B's scales": call.sfb, "D": call.d}
        if said := emulator.launch(library, training.arguments(call, num_sms), tensors, once={"D"}):
            raise LaunchError(said)
        return made().surroundings.numpy().tobytes()

    return Launch(name, config.source(), run)


TRAINING = Subject(
    "training",
    tuple(KERNELS / "training" / f"{file}_1d1d.cuh" for file in ("gemm", "tiles", "config", "start")),
    (
        _training(
            "A shared", TrainingConfig.of(128, 128, ahead=16, share="A", groups=2), 300, 264, 640, num_sms=1
        ),
        _training(
            "B shared, added",
            TrainingConfig.of(256, 128, share="B", boxes=1, across=True),
            300,
            264,
            384,
            "d",
        ),
        _training(
            "groups, and more clusters than a group has units",
            TrainingConfig.of(256, 32, ahead=2, share="A", groups=8),
            136,
            264,
            [128, 640, 384],
            num_sms=16,
        ),
        _training("rounds of stores", TrainingConfig.of(128, 160, ahead=20, boxes=3, band=3), 392, 328, 272),
        _training("one stage", TrainingConfig.of(256, 96, ahead=12, stages=1), 200, 104, 384),
        _training(
            "rounds of two boxes, added", TrainingConfig.of(128, 160, ahead=20, boxes=4), 200, 328, 272, "d"
        ),
        _training(
            "two launches",
            TrainingConfig.of(256, 32, ahead=2, share="A", groups=2),
            136,
            264,
            [128, 640, 384],
            num_sms=16,
        ),
    ),
)

SUBJECTS = {subject.name: subject for subject in (*RUNGS, PRODUCTION, TRAINING)}
