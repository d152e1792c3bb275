"""How long each rung should take: a model to which each lesson adds one term, and which ends as production's.

    s1  L1: it finds one line a cycle
    s2  the units of an SM that a kernel on the CUDA cores fills: the fullest decides; whole waves
    s3  the tensor cores, the promotion, and latency, one after the other
    s4  the ring hides the latency; what all blocks ask of L2; memory
    s5  a multicast counts once at L2
    s6  consumers take turns: the promotion of one beside the WGMMAs of the other; a tile's begin and end
    s7  blocks that stay: the ring is full when the next tile begins; the better of two tiles
    s8  issue slots: the least that a promotion can cost
    s9  any configuration: gemm_ladder.production.prediction, whose constants are those below

Nothing is fitted to a rung that it predicts. A prediction is of microseconds, for operands [m, k] and [n, k].
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable
from typing import NamedTuple

from gemm_ladder.arguments import H100_SMS as SMS
from gemm_ladder.arguments import ceil_div
from gemm_ladder.figures import measured, timeline
from gemm_ladder.production.launching import configuration
from gemm_ladder.production.prediction import (
    BLOCK_CYCLES,
    CLOCK_MHZ,
    L2,
    LAUNCH_US,
    OUTPUT_US,
    PROMOTE_CYCLES,
    WGMMA_FLOPS,
    predict,
)
from workshop import drawing_results
from workshop.workbench import Text

# What an SM does in a cycle.
LINES = 1  # of L1, found for loads from global memory: what lesson 03 takes from the card of s1
FMAS = 128  # in the FP32 pipe: "Arithmetic Instructions", CUDA C++ Programming Guide
INSTRUCTIONS = 4  # issued, each for a warp
SHARED_BYTES = 128  # of shared memory: 32 banks of 4

FULL_MHZ = 1980.0  # the highest clock; CLOCK_MHZ is that of busy tensor cores, whose power lowers it
LATENCY = 800  # cycles: a load from global memory while many others do the same, a round figure
FILL_US = 1.0  # until the first stage of an empty ring has arrived, a round figure


def _stores_us() -> float:
    """Microseconds that the two blocks of an SM store at the end of s5, 16 KB each, as recorded on a GPU."""
    rows = [row for row in timeline.load(measured.DATA / "timeline.json")["rows"] if row["machine"] == "gpu"]
    spans = [span for row in rows if row["rung"] == "s5_tma_multicast" for span in row["spans"]]
    return statistics.median(end - begin for what, begin, end in spans if what == "store")


STORES_US = _stores_us()
# Bytes a microsecond that an SM stores if each thread writes four at a time, all SMs at the same time.
STORE = 2 * 64 * 128 * 2 / STORES_US

# Bytes a microsecond from and to memory: what a copy reaches on the GPU that was measured.
MEMORY = drawing_results.memory().copy * 1e6

BLOCK = 128  # of K: one promotion
TWO_TILES = (256, 128), (128, 192)  # of s7


class Prediction(NamedTuple):
    """What is expected of a rung: microseconds, and what each term would take alone."""

    us: float
    terms: dict[str, float]


def floor(m: int, n: int, k: int) -> dict[str, float]:
    """What no kernel can be faster than: every byte moved once, every operation at the tensor cores' rate."""
    return {
        "memory": (m * k + n * k + 2 * m * n) / MEMORY,
        "tensor cores": 2 * m * n * k / (WGMMA_FLOPS * SMS * CLOCK_MHZ),
    }


def s1(m: int, n: int, k: int) -> Prediction:
    """A warp finds a line of A and 32 of B for its 32 fmaf."""
    lines = m * n * k / 32 * (1 + 32)
    terms = {"L1": lines / LINES / SMS / FULL_MHZ}
    return Prediction(LAUNCH_US + max(terms.values()), terms)


def s2(m: int, n: int, k: int) -> Prediction:
    """A block has an SM to itself, and 8 warps for 128 x 128. A step is 16 of k; counts are a warp's."""
    multiply = 16 * (64 + 4)  # fmaf, and the 128-bit loads from shared memory
    convert = 16 * 4  # for each number: shift its byte down, to FP16, to FP32, store
    other = 40  # the load, the loop, addresses, and 1/8 of the promotion
    step = {
        "FP32 pipe": 16 * 64 * 32 / FMAS,
        "issue slots": (multiply + convert + other) / INSTRUCTIONS,
        "shared memory": 16 * (4 + 1) * 128 / SHARED_BYTES,
        "L1": 32 / LINES,
    }
    steps = waves(m, n, 128, 128, SMS) * k / 16 * 8
    terms = {unit: steps * cycles / FULL_MHZ for unit, cycles in step.items()}
    return Prediction(LAUNCH_US + max(terms.values()), terms)


def s3(m: int, n: int, k: int) -> Prediction:
    """Two blocks an SM, each a chain: A's tile, B's tile, WGMMAs beside the load of the scales, promotion."""
    chain = {
        "latency": LATENCY + LATENCY + max(LATENCY - tensor(64, 128), 0),
        "tensor cores": tensor(64, 128),
        "promotion": promotion(128),
    }
    turns = waves(m, n, 64, 128, 2 * SMS) * k / BLOCK
    terms = {name: turns * cycles / CLOCK_MHZ for name, cycles in chain.items()}
    return Prediction(LAUNCH_US + sum(terms.values()), terms)


def s4(m: int, n: int, k: int, asked: int = 64 + 128) -> Prediction:
    """The loads are beside the chain, which is handing over a stage, WGMMAs, promotion. Two blocks an SM take
    turns. `asked`: rows of A and of B that a block asks of L2 for a K block."""
    turn = max(BLOCK_CYCLES + tensor(64, 128) + promotion(128), 2 * tensor(64, 128))
    terms = {
        "tensor cores, promotion": waves(m, n, 64, 128, 2 * SMS) * k / BLOCK * turn / CLOCK_MHZ,
        "L2": tiles(m, n, 64, 128) * asked * k / L2,
        "memory": floor(m, n, k)["memory"],
    }
    return Prediction(LAUNCH_US + max(terms.values()), terms)


def s5(m: int, n: int, k: int) -> Prediction:
    """As s4, with half of B's tile asked of L2."""
    return s4(m, n, k, asked=64 + 128 // 2)


def in_step(m: int, n: int, k: int) -> Prediction:
    """s5, if the two blocks of an SM do not take turns: both multiply, then both promote."""
    turn = BLOCK_CYCLES + 2 * tensor(64, 128) + promotion(128)
    chain = waves(m, n, 64, 128, 2 * SMS) * k / BLOCK * turn / CLOCK_MHZ
    terms = s5(m, n, k).terms | {"tensor cores, promotion": chain}
    return Prediction(LAUNCH_US + max(terms.values()), terms)


def s6(m: int, n: int, k: int) -> Prediction:
    """Each tile of 256 x 128 begins with an empty ring, and ends with a store beside nothing."""
    return _two_consumers(m, n, k, 256, 128, 0, FILL_US + 256 * 128 * 2 / STORE)


def s7(m: int, n: int, k: int) -> Prediction:
    """The ring is filled once; the better of two tiles."""
    both = [_two_consumers(m, n, k, *tile, FILL_US, tile[0] * tile[1] * OUTPUT_US) for tile in TWO_TILES]
    return min(both, key=lambda one: one.us)


def s8(m: int, n: int, k: int) -> Prediction:
    """s7, if a promotion took no more than its issue slots: the most that yielding can gain."""
    slots = 64 / FMAS  # cycles for a column of 64 rows
    both = [
        _two_consumers(m, n, k, *tile, FILL_US, tile[0] * tile[1] * OUTPUT_US, slots) for tile in TWO_TILES
    ]
    return min(both, key=lambda one: one.us)


def s9(m: int, n: int, k: int) -> Prediction:
    """The estimate of production's model for the configuration that a call would run."""
    found = predict(configuration("dense", m, n, k, 1, None, SMS, measured.recorded()["meta"]["gpu"]), m)
    return Prediction(found.estimate_us, floor(m, n, k))


def _two_consumers(
    m: int, n: int, k: int, rows: int, columns: int, first_us: float, edge_us: float,
    column: float = PROMOTE_CYCLES,
) -> Prediction:  # fmt: skip
    """A block an SM, in pairs that share A. A consumer multiplies and promotes its slices of 64 rows in turn;
    the tensor cores multiply for both. `first_us` is paid once, `edge_us` for each tile; `column`: cycles of
    the promotion for a column of 64 rows."""
    slices = rows // (2 * 64)
    consumer = BLOCK_CYCLES + slices * (tensor(64, columns) + columns * column)
    blocks, rounds = k / BLOCK, waves(m, n, rows, 2 * columns, SMS // 2)
    main = {
        "tensor cores": rounds * blocks * tensor(rows, columns) / CLOCK_MHZ,
        "a consumer": rounds * blocks * consumer / CLOCK_MHZ,
        "L2": 2 * tiles(m, n, rows, 2 * columns) * (rows // 2 + columns) * k / L2,
        "memory": floor(m, n, k)["memory"],
    }
    edges = first_us + rounds * edge_us
    return Prediction(LAUNCH_US + edges + max(main.values()), main | {"begin and end": edges})


def tensor(rows: int, columns: int) -> float:
    """Cycles of an SM's tensor cores for one K block of so many outputs."""
    return 2 * rows * columns * BLOCK / WGMMA_FLOPS


def promotion(columns: int) -> float:
    """Cycles of a warpgroup for 64 rows of so many columns."""
    return columns * PROMOTE_CYCLES


def tiles(m: int, n: int, rows: int, columns: int) -> int:
    return ceil_div(m, rows) * ceil_div(n, columns)


def waves(m: int, n: int, rows: int, columns: int, at_once: int) -> int:
    """How often all SMs begin a tile."""
    return ceil_div(tiles(m, n, rows, columns), at_once)


RUNGS: dict[str, Callable[[int, int, int], Prediction]] = {
    "s1_naive": s1,
    "s2_tiled": s2,
    "s3_wgmma": s3,
    "s4_tma": s4,
    "s5_tma_multicast": s5,
    "s6_warp_specialized": s6,
    "s7_persistent": s7,
    "s8_ffma_interleave": s8,
    "s9_production": s9,
}


def code(*parts: Callable[..., object]) -> Text:
    """The model's own lines, as they are."""
    text = "\n\n".join(inspect.getsource(part).rstrip() for part in parts)
    return Text(f"```python\n{text}\n```", text)
