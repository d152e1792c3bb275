"""What a configuration is expected to do at a shape: its waves, its traffic, its time. Needs no GPU.

This is a model of one page, with constants measured on an H100 (80GB HBM3, 132 SMs, L2 cold and dirty). Its
purpose is to choose between configurations. It is within a few percent of the measured time where memory or
the tensor cores are busy all the time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from gemm_ladder.arguments import H100_SMS, SCALE_BLOCK, ceil_div
from gemm_ladder.production.config import Config

LAUNCH_US = 2.7  # from the launch to the first products
CLOCK_MHZ = 1650.0  # under load
WGMMA_FLOPS = 8192  # FP8 operations per cycle of an SM's tensor cores
MEMORY = 3.0e6  # bytes per microsecond that a copy reaches
STREAM = 2.77e6  # bytes per microsecond that a product of few rows reaches, with dirty L2
BUSY_SMS = 0.82  # share of the SMs that saturates memory; fewer SMs reach less bandwidth
LATE = 0.84  # share of the output that has been written back from L2 when the kernel ends
KEEP_B = 1.1  # factor on the memory time if B is not loaded with evict-first
L2 = 12.5e6  # bytes per microsecond from L2 to all SMs, many of which ask for the same
QUEUE = 0.08  # share of the L2 time that is added to the time of the transfers, be it DRAM's or L2's
SM_LOAD = 105e3  # bytes per microsecond into one SM
WAVE_US = 0.18  # from one tile to the next
OUTPUT_US = 0.036 / 1024  # per element of a tile, for the epilogue
CLUSTER_US = 1.2  # for launching thread blocks in pairs
IN_STEP = 1.015  # factor on the main loop with multicast, because thread blocks wait for each other
TAIL = 1.03  # factor on tail tiles
SPLIT_US = 1.2  # for adding split-K's partial sums through distributed shared memory
SPLIT_MORE_US = 0.3e-3  # for each element of a split tile beyond SPLIT_SMALL elements
SPLIT_SMALL = 6000
NARROW_BOX_US = 0.08  # for each TMA store box of only 16 columns
FEW_STAGES = 1.22  # factor on the memory time where two slices leave room for few stages

# Cycles of one K block in the main loop, by a consumer's columns: for one consumer with 64 rows, for two
# with 64 rows each, and for consumers with 128 rows each or more. Wide tiles whose columns are no multiple
# of 64 need more of B's scales: UNALIGNED is the factor for that, which the last table includes.
CYCLES_ONE = {16: 290, 32: 325, 64: 355, 96: 380, 128: 495, 224: 785}
CYCLES_TWO = {16: 375, 32: 390, 64: 450, 96: 595, 128: 760, 160: 750, 192: 950}
CYCLES_FOUR = {16: 515, 32: 555, 64: 685, 96: 1055, 112: 1200, 128: 1225}
UNALIGNED = 1.13

SPREAD = (
    0.75,
    0.85,
    0.95,
    1.05,
    1.15,
    1.25,
)  # assumed sizes of groups, in terms of the expected number of rows


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is expected of a configuration.

    Attributes:
        waves: units of work divided by the clusters that run at the same time.
        last_wave: the share of the thread blocks that have work in the last wave.
        shared_bytes: dynamic shared memory of a thread block.
        l2_bytes: bytes from L2 to the SMs.
        memory_bytes: bytes from and to memory if everything is moved once.
        floor_us: the least time that memory or the tensor cores need.
        us: the expected time.
    """

    waves: float
    last_wave: float
    shared_bytes: int
    l2_bytes: int
    memory_bytes: int
    floor_us: float
    us: float


def predict(config: Config, m: int, groups: int = 1, num_sms: int = H100_SMS) -> Prediction:
    """What `config` is expected to do.

    Args:
        m: rows of A in all; in the masked layout, of a group on average.
        groups: how many groups B has.
        num_sms: how many SMs there are to use.
    """
    if config.kind != "masked":
        return _predict(config, [m], groups, num_sms)
    found = [_predict(config, rows, groups, num_sms) for rows in spread(m, groups)]
    middle = found[len(found) // 2]
    return dataclasses.replace(middle, us=sum(one.us for one in found) / len(found))


def spread(m: int, groups: int) -> list[list[int]]:
    """Several assumptions of how many rows each group has, where `m` rows of a group are expected."""
    return [
        [max(1, round(m * SPREAD[(first + 5 * group) % len(SPREAD)])) for group in range(groups)]
        for first in range(len(SPREAD))
    ]


def _predict(config: Config, rows: list[int], groups: int, num_sms: int) -> Prediction:
    n, k = config.n, config.k
    splits = config.cluster if config.share == "K" else 1
    blocks = ceil_div(k // SCALE_BLOCK, splits)
    at_once = config.at_once(num_sms)
    m, scale_columns = sum(rows), k // SCALE_BLOCK
    operand_b = groups * (n * k + 4 * ceil_div(n, SCALE_BLOCK) * scale_columns)
    us, units, l2_bytes, done, before = LAUNCH_US, 0, 0, [], 0.0
    # The rows of each tile size are a product of their own, except that SMs that have finished with the main
    # tile begin with the tail at once.
    for one, part in _parts(config, rows, num_sms):
        count = sum(map(one.units, part))
        done.append((count, _tile_us(one, blocks)))
        until = busy(done, at_once)
        requested = count * one.cluster * blocks * _requested(one)
        part_bytes = sum(part) * (k + 2 * n * LATE + 4 * scale_columns) + operand_b
        stream = part_bytes / STREAM * (1 if one.stream_b else KEEP_B) * (FEW_STAGES if one.slices > 1 else 1)
        stream *= max(1, BUSY_SMS * num_sms / min(count * one.cluster, num_sms)) ** 0.2
        transfer = max(stream, requested / L2) + QUEUE * requested / L2 + ceil_div(count, at_once) * WAVE_US
        # Nothing hides the first loads and the last epilogue.
        exposed = 1.5 * one.tile_m * one.tile_n * OUTPUT_US
        us += max(until - before, transfer + exposed) * (TAIL if len(done) > 1 else 1)
        units, l2_bytes, before = units + count, l2_bytes + requested, until
    waves = ceil_div(units, at_once)
    us += CLUSTER_US * (config.cluster > 1)
    if splits > 1:
        us += SPLIT_US + SPLIT_MORE_US * max(0, config.tile_m * config.tile_n - SPLIT_SMALL)
    memory_bytes = m * (k + 2 * n + 4 * scale_columns) + operand_b
    flops = 2 * m * n * k
    return Prediction(
        waves=units / at_once,
        last_wave=(units - (waves - 1) * at_once) / at_once,
        shared_bytes=config.shared_bytes,
        l2_bytes=l2_bytes,
        memory_bytes=memory_bytes,
        floor_us=max(memory_bytes / MEMORY, flops / (WGMMA_FLOPS * CLOCK_MHZ * num_sms)),
        us=us,
    )


def busy(units: list[tuple[int, float]], at_once: int) -> float:
    """The time of the cluster with the most work. Units of work are dealt to the clusters in turn.

    Args:
        units: for each tile size in order: (how many units, what one costs).
        at_once: how many clusters there are.
    """
    begins = list(itertools.accumulate((count for count, _ in units), initial=0))

    def of(cluster: int) -> float:
        return sum(
            cost * ceil_div(count - (cluster - begin) % at_once, at_once)
            for begin, (count, cost) in zip(begins, units, strict=False)
        )

    return max(of(begin % at_once) for begin in begins)  # those in between have no more than these


def _parts(config: Config, rows: list[int], num_sms: int) -> list[tuple[Config, list[int]]]:
    """Each tile size with its rows of every group. Only a dense product, which has one group, has two."""
    if config.tail is None:
        return [(config, rows)]
    return [(one, [part]) for one, part in config.parts(rows[0], num_sms)]


def _tile_us(config: Config, blocks: int) -> float:
    """Microseconds of a tile with this many K blocks."""
    narrow = config.slices * config.consumer_n // 16 if config.consumer_n % 32 else 0  # boxes of a consumer
    return blocks * _block_us(config) + config.tile_m * config.tile_n * OUTPUT_US + narrow * NARROW_BOX_US


def _requested(config: Config) -> int:
    """Bytes that a thread block loads from L2 for one K block; of what a cluster shares, each of its
    thread blocks loads an equal share."""
    return (config.tile_m // config.right + config.tile_n // config.down) * SCALE_BLOCK + config.tile_m * 4


def _block_us(config: Config) -> float:
    """Microseconds of one K block in the main loop."""
    rows = config.consumers * config.slices
    table = CYCLES_ONE if rows == 1 else CYCLES_TWO if config.slices == 1 else CYCLES_FOUR
    cycles = _between(table, config.consumer_n)
    if config.slices == 1 and config.tile_n % 64 and config.tile_n > 64:
        cycles *= UNALIGNED
    if config.share in ("A", "B"):
        cycles *= IN_STEP
    return max(cycles / CLOCK_MHZ, (config.tile_m + config.tile_n) * SCALE_BLOCK / SM_LOAD)


def _between(table: Mapping[int, float], at: int) -> float:
    """A table's value at a place, interpolated linearly between its entries."""
    below = max((x for x in table if x <= at), default=min(table))
    above = min((x for x in table if x >= at), default=max(table))
    if below == above:
        return table[below]
    return table[below] + (table[above] - table[below]) * (at - below) / (above - below)
