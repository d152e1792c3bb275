"""A configuration of every family of production kernels, and calls of them, for the tests of kernels."""

from __future__ import annotations

import gemm_ladder as gl
import numpy as np
import torch
from cases import place
from gemm_ladder.lab.operands import normal, small_integers
from gemm_ladder.production import launching
from gemm_ladder.production.config import Config
from gemm_ladder.ref import metrics
from grouped_cases import BLOCK, Grouped, contiguous, masked, psum

DEVICE = {"emulator": "cpu", "gpu": "cuda"}


def family(
    kind: str, tile_m: int, tile_n: int, share: str = "nothing", n: int = 328, **fields: object
) -> Config:
    """A configuration for an n that no tile divides, and an odd number of K blocks."""
    k = 1152 if share == "K" else 384
    fields = {"cluster": 1 if share == "nothing" else 2, **fields}
    return Config.of(kind, n, k, tile_m, tile_n, share=share, **fields)


TAILS = [
    family("dense", 128, 192, n=520, tail_m=256, tail_n=64),
    family("dense", 64, 96, "A", n=520, tail_m=128, tail_n=32),
    family("dense", 64, 112, tail_m=64, tail_n=48, prefetch=1, stream_b=True),
]


DENSE = [
    family("dense", 64, 16, stream_b=True, prefetch=2),
    family("dense", 64, 64, "K", stream_b=True, prefetch=20),
    family("dense", 64, 112, "K", cluster=4, stages=3),
    family("dense", 64, 256, stages=1),
    family("dense", 128, 160, "A"),
    family("dense", 128, 192, "B"),
    family("dense", 256, 128),
    family("dense", 256, 128, "A"),
    family("dense", 128, 256, consumers_m=1, consumers_n=2),
    family("dense", 128, 128, consumers_m=1, blocks_an_sm=2),
    family("dense", 64, 64, "K", cluster=4, blocks_an_sm=2),
    *TAILS,
]


CONTIGUOUS = [
    family("contiguous", 64, 64, stream_b=True, prefetch=1),
    family("contiguous", 128, 144, "A"),
    family("contiguous", 256, 64),
    family("contiguous", 256, 96, "A"),
    family("contiguous", 128, 224, consumers_m=1, consumers_n=2),
    family("contiguous", 128, 128, consumers_m=1, blocks_an_sm=2),
]


MASKED = [
    family("masked", 64, 256, stream_b=True, prefetch=4),
    family("masked", 64, 128, stream_b=True, prefetch=2, sparse=True),
    family("masked", 64, 96, "B", cluster=4),
    family("masked", 128, 112),
    family("masked", 256, 64, "A"),
    family("masked", 128, 256, consumers_m=1, consumers_n=2),
    family("masked", 128, 112, consumers_m=1, blocks_an_sm=2),
]


PSUM = [
    family("psum", 64, 96, stream_b=True, prefetch=3, group_m=2),
    family("psum", 64, 128, "B", alignment=64),
    family("psum", 128, 96, "B", sparse=True),
    family("psum", 128, 128, "A"),
    family("psum", 128, 160, "B", cluster=4, stages=2),
    family("psum", 256, 64, alignment=256),
    family("psum", 128, 128, consumers_m=1, consumers_n=2),
    family("psum", 128, 112, consumers_m=1, blocks_an_sm=2),
]


# Groups that begin at multiples of 64 rows, which two consumers below each other would not keep apart.
ALIGNED_TO_64 = [
    family("contiguous", 64, 128, alignment=64),
    family("contiguous", 128, 112, consumers_m=1, alignment=64),
    family("contiguous", 64, 192, "A", alignment=64),
]


FAMILIES = (*DENSE, *CONTIGUOUS, *ALIGNED_TO_64, *MASKED, *PSUM)


def name(config: Config) -> str:
    twice = "_2" if config.blocks_an_sm > 1 else ""
    tail = f"_{config.tail_m}x{config.tail_n}" if config.tail else ""
    aligned = "" if config.alignment == BLOCK else f"_{config.alignment}"
    return (
        f"{config.kind}{aligned}_{config.tile_m}x{config.tile_n}_{config.share}{config.cluster}{twice}{tail}"
        f"{'_sparse' if config.sparse else ''}"
    )


def run_dense(
    config: Config, m: int, machine: str, seed: int = 0, num_sms: int = 0, exact: bool = False
) -> None:
    """Launch at m rows and compare the bits; with split-K, whose order of additions differs, the errors."""
    fill = small_integers if exact else normal
    operands = fill(np.random.default_rng(m + config.n), m, config.n, config.k)
    placed = place(operands, DEVICE[machine])
    with gl.emulator(seed=seed):
        launching.launch(config, placed.lhs, placed.rhs, placed.out, num_sms=num_sms)
    if config.share != "K" or exact:
        np.testing.assert_array_equal(placed.bits(), operands.expected_bits("s9_production"))
    else:
        found = (placed.bits().astype(np.uint32) << 16).view(np.float32)
        assert metrics.max_row_error(found, operands.exact()) < 1e-2


def launch(config: Config, call: Grouped, seed: int = 0, num_sms: int = 0) -> None:
    with gl.emulator(seed=seed):
        launching.launch(config, call.lhs, call.rhs, call.out, call.rows, num_sms=num_sms)


def check_contiguous(call: Grouped, block: int = BLOCK) -> None:
    """Check a contiguous call. Rows of padding inside a group's last block may hold anything; whole blocks of
    padding are zeros."""
    padding = call.rows == -1
    padding &= call.rows[::block].repeat_interleave(block) != -1
    call.out.view(torch.int16)[padding] = 0
    call.check(exact=False)


def run_family(config: Config, machine: str) -> None:
    """A call with ragged sizes and several tiles for each thread block; test_sanitizer.py runs it, too."""
    num_sms = config.cluster * 2
    if config.kind == "dense":
        run_dense(config, 300, machine, num_sms=num_sms)
    elif config.kind == "contiguous":
        counts, block = [100, 0, 128, 130], config.alignment
        call = contiguous(counts, config.n, config.k, DEVICE[machine], padding=2, block=block)
        launch(config, call, num_sms=num_sms)
        check_contiguous(call, block)
    elif config.kind == "psum":
        call = psum([100, 0, 128, 130], config.n, config.k, DEVICE[machine], config.alignment, behind=150)
        launch(config, call, num_sms=num_sms)
        call.check(exact=False)
    else:
        call = masked([5, 0, 100, 130], 130, config.n, config.k, DEVICE[machine])
        launch(config, call, num_sms=num_sms)
        call.check(exact=False)
