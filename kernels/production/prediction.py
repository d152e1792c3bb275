"""What a configuration is expected to do at a product: its waves, its traffic, its time. Needs no GPU.

The time is found in two steps. `work` is arithmetic that anybody can follow: how long the tensor cores, the
promotion, memory, L2, the loads of an SM and the outputs would each take alone, with round constants; their
combination, `estimate`, is within a fifth of the measured time for three configurations of four. What it
leaves open, such as how well these overlap, a small neural network has learned from thousands of measured
kernels: see `gemm_ladder.measure.calibrate`, which writes learned/GPU.json. The network gets the same numbers
that the arithmetic found and answers with a factor on the estimate, for each state of L2 that is measured.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gemm_ladder.arguments import H100_SMS, SCALE_BLOCK, Kind, ceil_div
from gemm_ladder.production.candidates import Candidates, Floats
from gemm_ladder.production.config import MANY_UNITS, STAYS_IN_L2, Config

LEARNED = Path(__file__).resolve().parent / "learned"
STATES = ("dirty", "clean", "graph")  # of L2, as gemm_ladder.measure.timing describes them

# Round figures of an H100 (80GB HBM3, 132 SMs). The learned factor corrects them, for other GPUs too.
LAUNCH_US = 2.2  # from the launch to the first products, and from the last ones to the end
CLOCK_MHZ = 1650.0  # under load
WGMMA_FLOPS = 8192  # FP8 operations per cycle of an SM's tensor cores
MEMORY = 2.9e6  # bytes per microsecond from memory
L2 = 9e6  # bytes per microsecond from L2 to all SMs, many of which ask for the same
SM_LOAD = 150e3  # bytes per microsecond into one SM
BLOCK_CYCLES = 220  # of a consumer for a K block, whatever its size
PROMOTE_CYCLES = 1.5  # of a consumer for each column of each slice of a K block
OUTPUT_US = 0.04 / 1000  # for each element of a tile
SPLIT_US = 1.0  # for adding split-K's partial sums through distributed shared memory
OVERLAP = 3  # exponent of the norm that combines what overlaps: 1 would be the sum, infinity the maximum

FAR = 4.0  # scaled inputs of the network beyond this are nothing that it has seen, and are cut off

# Assumed sizes of the groups of a masked product, in terms of the expected number of rows.
SPREAD = (0.75, 0.85, 0.95, 1.05, 1.15, 1.25)


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
        estimate_us: the time by arithmetic alone.
        us: the expected time, L2 dirty.
        by_state: the expected time by state of L2.
    """

    waves: float
    last_wave: float
    shared_bytes: int
    l2_bytes: int
    memory_bytes: int
    floor_us: float
    estimate_us: float
    us: float
    by_state: Mapping[str, float]


def predict(config: Config, m: int, groups: int = 1, num_sms: int = H100_SMS, gpu: str = "") -> Prediction:
    """What `config` is expected to do.

    Args:
        m: rows of A in all; in the masked and the psum layout, valid rows of a group on average.
        groups: how many groups B has.
        num_sms: how many SMs there are to use.
        gpu: the GPU's name; the time is for an H100 if nothing has been learned about it.
    """
    n, k = config.n, config.k
    rows = m / groups if config.kind == "contiguous" else float(m)
    one = Candidates((config,))
    found = work(one.columns, np.array([rows]), config.kind, n, k, groups, num_sms)
    times = np.exp(log_times(found, gpu))[0]
    units, at_once = float(found["units"][0]) + float(found["tail_units"][0]), config.at_once(num_sms)
    total = m * groups if config.kind in ("masked", "psum") else m
    scale_columns = ceil_div(k, SCALE_BLOCK)
    operand_b = groups * (n * k + 4 * ceil_div(n, SCALE_BLOCK) * scale_columns)
    memory_bytes = total * (k + 2 * n + 4 * scale_columns) + operand_b
    waves = max(1, ceil_div(round(units), at_once))
    return Prediction(
        waves=units / at_once,
        last_wave=(units - (waves - 1) * at_once) / at_once,
        shared_bytes=config.shared_bytes,
        l2_bytes=round(float(found["requested"][0])),
        memory_bytes=memory_bytes,
        floor_us=max(memory_bytes / MEMORY, 2 * total * n * k / (WGMMA_FLOPS * CLOCK_MHZ * num_sms)),
        estimate_us=float(found["estimate"][0]),
        us=float(times[0]),
        by_state=dict(zip(STATES, map(float, times), strict=True)),
    )


def work(
    columns: Mapping[str, Floats], rows: Floats, kind: Kind, n: int, k: int, groups: int, num_sms: int
) -> dict[str, Floats]:
    """The columns, and what follows from them for a product, all of the same length.

    Args:
        columns: fields of configurations, as `Candidates` has them.
        rows: for each of them, rows of A in a group, contiguous ones with padding; in a dense product, of A.
        kind, n, k, groups, num_sms: as for `predict`. A psum layout is worked through like a masked one.
    """
    kind = "masked" if kind == "psum" else kind
    c = dict(columns)
    tile_m, tile_n, slices = c["tile_m"], c["tile_n"], c["slices"]
    unit_m, unit_n = tile_m * c["down"], tile_n * c["right"]
    at_once = np.maximum(1, num_sms * c["blocks_an_sm"] // c["cluster"])
    across = np.ceil(n / unit_n)
    down, first, rest = _rows(c, rows, kind, groups, at_once, across)
    units = down * across
    tail_tiles = np.ceil(rest / np.maximum(c["tail_m"], 1)) * np.ceil(n / np.maximum(c["tail_n"], 1))
    tail_tiles = np.where(rest > 0, tail_tiles, 0)
    waves, tail_waves = np.ceil(units / at_once), np.ceil(tail_tiles / at_once)
    blocks = np.ceil(ceil_div(k, SCALE_BLOCK) / np.where(c["shares_K"] > 0, c["cluster"], 1))
    box = np.minimum(tile_m, np.ceil(rows / 8) * 8) if kind == "dense" else tile_m
    tail_area = c["tail_m"] * c["tail_n"]
    stage = (box / c["right"] + tile_n / c["down"]) * SCALE_BLOCK + box * 4
    requested = units * c["cluster"] * blocks * stage
    requested += tail_tiles * blocks * ((c["tail_m"] + c["tail_n"]) * SCALE_BLOCK + c["tail_m"] * 4)
    total = rows * groups
    memory_bytes = total * k + groups * n * float(k) + 2 * total * n
    cycles = BLOCK_CYCLES + slices * c["consumer_n"] * PROMOTE_CYCLES
    tail_cycles = BLOCK_CYCLES + c["tail_n"] * PROMOTE_CYCLES
    macs = SCALE_BLOCK * 2 / WGMMA_FLOPS  # cycles of the tensor cores for one element of D and one K block
    c |= {
        "tensor_us": (waves * tile_m * tile_n * c["blocks_an_sm"] + tail_waves * tail_area)
        * (blocks * macs / CLOCK_MHZ),
        "promotion_us": (waves * cycles + tail_waves * tail_cycles) * blocks / CLOCK_MHZ,
        "memory_us": memory_bytes / MEMORY,
        "l2_us": requested / L2,
        "load_us": waves * blocks * (box + tile_n) * SCALE_BLOCK * c["blocks_an_sm"] / SM_LOAD,
        "output_us": (waves * tile_m * tile_n + tail_waves * tail_area) * OUTPUT_US,
    }
    overlapping = ("tensor_us", "promotion_us", "memory_us", "l2_us", "load_us")
    together = sum(c[name] ** OVERLAP for name in overlapping) ** (1 / OVERLAP)
    c["estimate"] = LAUNCH_US + c["output_us"] + c["shares_K"] * SPLIT_US + together
    columns_of = c["consumer_n"]
    below = np.ceil(rows / unit_m) if kind == "masked" else down
    bytes_a = (rows * groups if kind == "contiguous" else rows) * k
    c |= _order(c, below, across, units, at_once, bytes_a)
    return c | {
        "rows": rows,
        "n": np.full_like(rows, n),
        "k": np.full_like(rows, k),
        "groups": np.full_like(rows, groups),
        "contiguous": np.full_like(rows, kind == "contiguous"),
        "masked": np.full_like(rows, kind == "masked"),
        "units": units,
        "tail_units": tail_tiles,
        "requested": requested,
        "blocks": blocks,
        "box": box,
        "down_tiles": down,
        "across_tiles": across,
        "waves": waves,
        "last_wave": units / at_once / waves,
        "busy": np.minimum(units, at_once) * c["cluster"] / c["blocks_an_sm"] / num_sms,
        "ring": c["stages"] * c["stage_bytes"],
        "valid_m": first / (down * unit_m),
        "valid_n": n / (across * unit_n),
        "last_m": np.minimum(1, (first - (down - 1) * unit_m) / tile_m),
        "has_tail": np.where(rest > 0, 1.0, 0.0),
        "unaligned": np.where((tile_n % 64 > 0) & (tile_n > 64), 1.0, 0.0),
        "narrow_boxes": np.where(columns_of % 32 > 0, 1.0, 0.0),
    }


def _order(
    c: Mapping[str, Floats], below: Floats, across: Floats, units: Floats, at_once: Floats, bytes_a: Floats
) -> dict[str, Floats]:
    """What follows from the order of units (Config.group_m): how many in a row share A, and how many share B;
    the distinct rows and columns of units that run at once, as a share of what they request; and how full the
    last band is. `below`: units below each other, of one group."""
    aside = (c["group_n"] > 0) & (below > c["group_m"])
    aside &= (c["group_n"] >= c["group_m"]) | ((across >= MANY_UNITS) & (bytes_a <= STAYS_IN_L2))
    group = np.where(aside, c["group_n"], c["group_m"])
    breadth = np.where(aside, across, below)
    run = np.minimum(group, breadth)
    together = np.minimum(units, at_once)
    high = np.where(aside, np.minimum(together / run, below), np.maximum(run, together / across))
    unit_m, unit_n = c["tile_m"] * c["down"], c["tile_n"] * c["right"]
    return {
        "share_a": np.where(aside, run, 1),
        "share_b": np.where(aside, 1, run),
        "distinct": (high * unit_m + together / high * unit_n) / (together * (unit_m + unit_n)),
        "last_band": (breadth - (np.ceil(breadth / group) - 1) * group) / run,
    }


def _rows(
    c: Mapping[str, Floats], rows: Floats, kind: Kind, groups: int, at_once: Floats, across: Floats
) -> tuple[Floats, Floats, Floats]:
    """Units of work below each other in the main tile, the rows that they are for, and the tail's rows."""
    unit_m = c["tile_m"] * c["down"]
    none = np.zeros_like(rows)
    if kind == "masked":  # on average over what groups may have
        each = np.mean([np.ceil(rows * share / unit_m) for share in SPREAD], axis=0)
        return each * groups, rows * groups, none
    if kind == "contiguous":
        return np.ceil(rows * groups / unit_m), rows * groups, none
    down = np.ceil(rows / unit_m)
    whole = down * across // at_once * at_once // across * unit_m
    first = np.where((c["tail_m"] > 0) & (whole > 0), np.minimum(whole, rows), rows)
    return np.ceil(first / unit_m), first, rows - first


# What the network is given. Times enter as shares of the estimate; what spans decades, as logarithms.
SHARES = ("tensor_us", "promotion_us", "memory_us", "l2_us", "load_us", "output_us")
LOGARITHMS = (
    *("estimate", "busy", "waves", "blocks", "tile_m", "tile_n", "consumer_n", "stages", "ring", "cluster"),
    *("scales_b", "box", "down_tiles", "across_tiles", "rows", "n", "k", "groups"),
    *("share_a", "share_b", "distinct"),
)
AS_THEY_ARE = (
    *("last_wave", "slices", "consumers", "blocks_an_sm", "stream_b", "shares_A", "shares_B", "shares_K"),
    *("prefetch", "unaligned", "valid_m", "valid_n", "last_m", "has_tail", "narrow_boxes"),
    *("contiguous", "masked", "last_band"),
)
INPUTS = (*SHARES, *LOGARITHMS, *AS_THEY_ARE)


def inputs(found: Mapping[str, Floats]) -> Floats:
    """What the network is given, of what `work` has found: [configurations, inputs]."""
    estimate = found["estimate"]
    return np.stack(
        [np.log(found[name] / estimate + 0.01) for name in SHARES]
        + [np.log(np.maximum(found[name], 1e-6)) for name in LOGARITHMS]
        + [found[name] for name in AS_THEY_ARE],
        axis=1,
    )


def log_times(found: Mapping[str, Floats], gpu: str = "") -> Floats:
    """The logarithms of the expected microseconds: [configurations, STATES]."""
    factor = _network(_file(gpu))(inputs(found))
    times: Floats = np.log(found["estimate"])[:, None] + factor
    return times


class Network:
    """The mean of a few small networks, each of which has two hidden layers with x * sigmoid(x).

    Attributes:
        mean, scale: [inputs], with which the inputs are normalised.
        members: for each network, a matrix [inputs, outputs] and a bias [outputs] for each layer.
    """

    def __init__(
        self, mean: Floats, scale: Floats, members: Sequence[Sequence[tuple[Floats, Floats]]]
    ) -> None:
        self.mean, self.scale, self.members = mean, scale, members

    def __call__(self, given: Floats) -> Floats:
        """The logarithms of the factors: [configurations, STATES]."""
        normal = np.clip((given - self.mean) / self.scale, -FAR, FAR)
        total: Any = 0.0
        for layers in self.members:
            values = normal
            for number, (matrix, bias) in enumerate(layers):
                values = values @ matrix + bias
                if number < len(layers) - 1:
                    values = values / (1 + np.exp(-values))
            total = total + values
        answer: Floats = total / len(self.members)
        return answer


def stem(gpu: str) -> str:
    """What the files of a GPU model are called, without what follows the dot."""
    return re.sub(r"\W+", "_", gpu).strip("_")


def _file(gpu: str) -> str:
    """The file with what was learned about this GPU, or, if there is none, about an H100."""
    own = stem(gpu) + ".json"
    return own if (LEARNED / own).exists() else "NVIDIA_H100_80GB_HBM3.json"


@functools.cache
def _network(file: str) -> Network:
    return read(json.loads((LEARNED / file).read_text()))


def forget() -> None:
    """Read what was learned anew when it is needed next."""
    _network.cache_clear()


def read(data: Mapping[str, Any]) -> Network:
    """The network of a file of learned/, which calibrate has written."""
    members = [
        [(np.array(matrix, dtype=np.float64), np.array(bias, dtype=np.float64)) for matrix, bias in layers]
        for layers in data["members"]
    ]
    return Network(np.array(data["mean"]), np.array(data["scale"]), members)


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


def spread(m: int, groups: int) -> list[list[int]]:
    """Several assumptions of how many rows each group has, where `m` rows of a group are expected."""
    return [
        [max(1, round(m * SPREAD[(first + 5 * group) % len(SPREAD)])) for group in range(groups)]
        for first in range(len(SPREAD))
    ]
