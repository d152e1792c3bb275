"""What a configuration is expected to do at a shape: its waves, its traffic, its time. Needs no GPU.

A model of one page, with constants measured on an H100 (80GB HBM3, 132 SMs, L2 cold and dirty), to choose
between configurations: it is within a few percent where memory or the tensor cores are busy all the time.
"""

from __future__ import annotations

import dataclasses
import itertools

from gemm_ladder.arguments import H100_SMS, SCALE_BLOCK, ceil_div
from gemm_ladder.production.config import Config

LAUNCH_US = 2.7  # from the launch to the first products
CLOCK_MHZ = 1650.0  # under load
WGMMA_FLOPS = 8192  # of an SM's tensor cores, a cycle, FP8
MEMORY = 3.0e6  # bytes a microsecond: what a copy reaches
STREAM = 2.77e6  # ... and what a product of few rows does, L2 being dirty
BUSY_SMS = 0.82  # the part of the SMs that memory is fast enough for; fewer reach less
LATE = 0.84  # of the output, what has left L2 when the kernel ends
KEEP_B = 1.1  # how much longer that takes where B is not told to leave L2 first
L2 = 12.5e6  # bytes a microsecond from L2 to all SMs, many of which ask for the same
QUEUE = 0.08  # of that time, what is seen although memory is slower
SM_LOAD = 105e3  # bytes a microsecond into one SM
WAVE_US = 0.18  # from a tile to the next
OUTPUT_US = 0.036 / 1024  # an element of a tile: to shared memory and out
CLUSTER_US = 1.2  # starting blocks in pairs
IN_STEP = 1.015  # how much longer the main loop takes where blocks share a load: they wait for each other
TAIL = 1.03  # how much longer the last tiles take where they are others than the first
SPLIT_US = 1.2  # their sums' way through distributed shared memory
SPLIT_MORE_US = 0.3e-3  # ... for each element of a tile that has more than SPLIT_SMALL
SPLIT_SMALL = 6000
NARROW_BOX_US = 0.08  # for each box of 16 columns that a consumer's output leaves in
FEW_STAGES = 1.22  # how much longer memory takes where two slices leave shared memory for few stages

# Cycles of a block of K in the main loop by a consumer's columns: of one consumer alone, of two with 64 rows
# each, of two with 128 rows each. Wide tiles whose columns are no multiple of 64 need more of B's scales:
# UNALIGNED, which the last table has in it.
CYCLES_ONE = {16: 290, 32: 325, 64: 355, 96: 380, 128: 495, 224: 785}
CYCLES_TWO = {16: 375, 32: 390, 64: 450, 96: 595, 128: 760, 160: 750, 192: 950}
CYCLES_FOUR = {16: 515, 32: 555, 64: 685, 96: 1055, 112: 1200, 128: 1225}
UNALIGNED = 1.13

SPREAD = (0.75, 0.85, 0.95, 1.05, 1.15, 1.25)  # how far from the expected number of rows groups are


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is expected of a configuration.

    Attributes:
        waves: units of work over those that run at once; rounded up, how often a block makes a tile.
        last_wave: the part of the blocks that the last wave has work for.
        shared_bytes: dynamic shared memory of a block.
        l2_bytes: from L2 to the SMs.
        memory_bytes: from and to memory, everything once.
        floor_us: what memory or the tensor cores need at least.
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
        m: rows of A in all; masked: of a group, on average.
        groups: of B.
        num_sms: how many SMs there are to use.
    """
    if config.kind != "masked":
        return _predict(config, [m], groups, num_sms)
    found = [_predict(config, rows, groups, num_sms) for rows in spread(m, groups)]
    middle = found[len(found) // 2]
    return dataclasses.replace(middle, us=sum(one.us for one in found) / len(found))


def spread(m: int, groups: int) -> list[list[int]]:
    """Rows of every group, several times: as unequal as an expectation of `m` leaves open."""
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
    # Each tile's part is a product of its own, but for SMs that are done with the first and begin the other.
    for one, part in _parts(config, rows, num_sms):
        count = sum(map(one.units, part))
        done.append((count, _tile_us(one, blocks)))
        until = busy(done, at_once)
        requested = count * one.cluster * blocks * _requested(one)
        part_bytes = sum(part) * (k + 2 * n * LATE + 4 * scale_columns) + operand_b
        stream = part_bytes / STREAM * (1 if one.stream_b else KEEP_B) * (FEW_STAGES if one.slices > 1 else 1)
        stream *= max(1, BUSY_SMS * num_sms / min(count * one.cluster, num_sms)) ** 0.2
        transfer = max(stream, requested / L2) + QUEUE * requested / L2 + ceil_div(count, at_once) * WAVE_US
        # The first loads have nothing to hide behind, nor has the last output.
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
    """What the cluster with the most to do spends on its units of work, which are dealt out in turn.

    Args:
        units: (how many, what each costs) of every tile, in their order.
        at_once: clusters.
    """
    begins = list(itertools.accumulate((count for count, _ in units), initial=0))

    def of(cluster: int) -> float:
        return sum(
            cost * ceil_div(count - (cluster - begin) % at_once, at_once)
            for begin, (count, cost) in zip(begins, units, strict=False)
        )

    return max(of(begin % at_once) for begin in begins)  # from one of these to the next all have the same


def _parts(config: Config, rows: list[int], num_sms: int) -> list[tuple[Config, list[int]]]:
    """The tiles, and each one's rows of every group; only a dense product, of one group, has two."""
    if config.tail is None:
        return [(config, rows)]
    return [(one, [part]) for one, part in config.parts(rows[0], num_sms)]


def _tile_us(config: Config, blocks: int) -> float:
    """Microseconds of a tile of so many blocks of K."""
    narrow = config.slices * config.consumer_n // 16 if config.consumer_n % 32 else 0  # boxes of a consumer
    return blocks * _block_us(config) + config.tile_m * config.tile_n * OUTPUT_US + narrow * NARROW_BOX_US


def _requested(config: Config) -> int:
    """Bytes that a block asks of L2 for a block of K: of what a pair shares, each asks for a half."""
    return (config.tile_m // config.right + config.tile_n // config.down) * SCALE_BLOCK + config.tile_m * 4


def _block_us(config: Config) -> float:
    """Microseconds of a block of K in the main loop."""
    rows = config.consumers * config.slices
    table = CYCLES_ONE if rows == 1 else CYCLES_TWO if config.slices == 1 else CYCLES_FOUR
    cycles = _between(table, config.consumer_n)
    if config.slices == 1 and config.tile_n % 64 and config.tile_n > 64:
        cycles *= UNALIGNED
    if config.share in ("A", "B"):
        cycles *= IN_STEP
    return max(cycles / CLOCK_MHZ, (config.tile_m + config.tile_n) * SCALE_BLOCK / SM_LOAD)


def _between(table: dict[int, float], at: int) -> float:
    """A table's value, or the line's between two of its entries."""
    below = max((x for x in table if x <= at), default=min(table))
    above = min((x for x in table if x >= at), default=max(table))
    if below == above:
        return table[below]
    return table[below] + (table[above] - table[below]) * (at - below) / (above - below)
