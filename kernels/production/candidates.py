"""The configurations that are chosen among, and which of them suit a product.

There are a few hundred for each kind of product. Of its sizes only k matters to what they are, since the
buffers for B's scales depend on it, which leave room for more or fewer stages; they are made once for a range
of k.
`Candidates.suiting` says which of them suit a product.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from gemm_ladder.arguments import M_ALIGNMENT, SCALE_BLOCK, Kind, align
from gemm_ladder.production.config import WGMMA_M, Config, Share, fits
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ANY_N = 4096  # the n of a candidate before it is one for a product
K_STEP = 4096  # candidates are made for multiples of this; a smaller k has room for the same stages
TILES_M = (64, 128, 256)
TILES_N = range(16, 257, 16)
# Tail tiles, for the rows that whole waves of larger tiles leave over.
TAILS = ((256, 64), (128, 128), (128, 64))
# Clusters that split K should all be resident at once. The SMs of a Hopper GPU form groups of 14 to 18, which
# differ from card to card, so not all SMs can have a cluster of four or eight: of 132 SMs about 120 and 112.
CLUSTERED = {2: 1.0, 4: 120 / 132, 8: 112 / 132}
SPLIT_TILE = 128 * 128  # elements of the largest tile whose K is split
LEAST_BLOCKS = 4  # K blocks that each thread block of a cluster which splits K has at least
MOST_WAVES = 24  # of small tiles: with more, larger ones are faster, as a tile's fixed costs add up
SMALL_TILE = 128 * 128
# psum, with tiles of 128 x 192: in how many waves thread blocks drift apart, and how many bytes of B stay in
# L2. Its 50 to 60 MB are two halves, each with a copy of what SMs on both sides read.
LARGE_TILE, DRIFTING_WAVES, STAYS_IN_L2 = (128, 192), 32, 30e6


def prefetched(tile_n: int) -> int:
    """How many K blocks of a tile of B to ask L2 for: about 32 KB, the best of those measured (NOTES.md)."""
    return max(2, min(8, 256 // tile_n))


class Form(NamedTuple):
    """What tells candidates of one kind apart. The other fields of a Config follow from it: see `made`."""

    tile_m: int
    tile_n: int
    share: Share
    cluster: int
    blocks_an_sm: int
    stream_b: bool
    tail_m: int
    tail_n: int


def made(kind: Kind, n: int, k: int, form: Form, alignment: int = M_ALIGNMENT) -> Config:
    """The candidate of this form; it may be one that `fits` refuses."""
    config = Config.of(
        kind,
        n,
        k,
        **form._asdict(),
        alignment=alignment,
        # B that is read once leaves L2 first. Then its first K blocks can be asked for ahead.
        prefetch=prefetched(form.tile_n) if form.stream_b and kind == "dense" else 0,
    )
    # Up to 2 % faster where it was measured (NOTES.md).
    return dataclasses.replace(config, interleave="9/16") if config.consumers == 2 else config


def _all(kind: Kind, k: int, alignment: int) -> Iterator[Config]:
    for tile_m in TILES_M:
        for tile_n in TILES_N:
            for share, cluster in _shares(kind, tile_m, tile_n):
                for blocks_an_sm in (1, 2) if tile_m == WGMMA_M and share == "nothing" else (1,):
                    for tail_m, tail_n in ((0, 0), *_tails(kind, tile_m, tile_n, share)):
                        for stream_b in (False, True) if share != "B" and not tail_m else (False,):
                            how = share, cluster, blocks_an_sm, stream_b, tail_m, tail_n
                            config = made(kind, ANY_N, k, Form(tile_m, tile_n, *how), alignment)
                            if fits(config):
                                yield config


def _shares(kind: Kind, tile_m: int, tile_n: int) -> Iterator[tuple[Share, int]]:
    """What clusters share, and their sizes, to try with a tile."""
    yield "nothing", 1
    if tile_n >= SCALE_BLOCK:  # narrower tiles were 7 to 28 % slower where A or B was shared
        yield "A", 2
        if kind != "contiguous":
            yield "B", 2
    if kind == "dense" and tile_m * tile_n <= SPLIT_TILE and tile_m <= SCALE_BLOCK:
        yield from (("K", cluster) for cluster in CLUSTERED)


def _tails(kind: Kind, tile_m: int, tile_n: int, share: Share) -> Iterator[tuple[int, int]]:
    """Tail tiles to try with a tile. With multicast none was ever faster, so there are none."""
    if kind == "dense" and share == "nothing" and tile_m >= 128 <= tile_n and tile_n % 32 == 0:
        yield from (tail for tail in TAILS if math.prod(tail) < tile_m * tile_n)


class Candidates:
    """Configurations, and their fields as columns of numbers.

    Attributes:
        configs: the configurations.
        columns: by name, an array with one number for each configuration.
    """

    def __init__(self, configs: tuple[Config, ...]) -> None:
        self.configs = configs
        names = (
            *("tile_m", "tile_n", "consumers", "slices", "consumer_n", "stages", "cluster", "down", "right"),
            *("blocks_an_sm", "stream_b", "prefetch", "tail_m", "tail_n", "group_m", "group_n", "scales_b"),
            "stage_bytes",
        )
        self.columns: dict[str, Floats] = {
            name: np.array([float(getattr(one, name)) for one in configs]) for name in names
        }
        for share in ("A", "B", "K"):
            self.columns[f"shares_{share}"] = np.array([float(one.share == share) for one in configs])

    def at(self, index: int, n: int, k: int) -> Config:
        """One of the configurations, for a product's n and k. Where k is short it may have fewer stages, as
        there are more buffers for B's scales."""
        config = dataclasses.replace(self.configs[index], n=n, k=k)
        while not fits(config) and config.stages > 1:
            config = dataclasses.replace(config, stages=config.stages - 1)
        return config

    def suiting(
        self, kind: Kind, rows: Floats, n: int, k: int, num_sms: int, groups: int = 1
    ) -> NDArray[np.bool_]:
        """Which configuration suits which number of rows: [configurations, rows].

        It suits if it can compute the product, and if nothing that is known beforehand is against it.

        Args:
            rows: [rows] of a group; in a dense product, of A.
            n, k: the sizes of B.
            num_sms: how many SMs there are to use.
            groups: how many of B.
        """
        column = {name: values[:, None] for name, values in self.columns.items()}
        tile_m, tile_n, cluster = column["tile_m"], column["tile_n"], column["cluster"]
        down = np.ceil(rows / (tile_m * column["down"]))
        across = np.ceil(n / (tile_n * column["right"]))
        tiles = down * across
        area = tile_m * tile_n
        suits = (tile_m <= WGMMA_M) | (tile_m < 2 * rows)
        suits &= tile_n < n + 16
        suits &= (column["shares_A"] == 0) | (n > tile_n)
        suits &= (column["shares_B"] == 0) | (rows > tile_m)
        resident = np.select([cluster == size for size in CLUSTERED], list(CLUSTERED.values())) * num_sms
        split = (tiles * cluster <= resident) & (k >= LEAST_BLOCKS * SCALE_BLOCK * cluster)
        suits &= (column["shares_K"] == 0) | split
        if kind == "dense":
            # B is read once if one tile has all rows; else it had better stay in L2 for the next tile.
            suits &= (column["stream_b"] == 0) | (down <= 1)
            suits &= (area >= SMALL_TILE) | (tiles <= MOST_WAVES * num_sms)
            suits &= (column["blocks_an_sm"] == 1) | (tiles > num_sms)
            whole = tiles // num_sms * num_sms // across * tile_m
            suits &= (column["tail_m"] == 0) | ((whole > 0) & (whole < rows))
        elif kind in ("masked", "psum"):
            suits &= (column["stream_b"] == 0) | (down <= 8)
            if kind == "psum":
                # Half a tile of two consumers takes less time than a whole one, so thread blocks drift apart.
                # Those that multiply by the same B then read it from memory each, if L2 has lost it by then.
                below = np.ceil(rows / LARGE_TILE[0])
                waves = groups * below * np.ceil(n / LARGE_TILE[1]) / num_sms
                read = num_sms / below * LARGE_TILE[1] * k  # bytes of B in a wave
                drifts = (below > 1) & (waves > DRIFTING_WAVES) & (read > STAYS_IN_L2)
                suits &= (tile_m <= WGMMA_M) | ~drifts
        else:
            suits &= (column["stream_b"] == 0) | (down <= 1)
            # Otherwise too many tiles would contain rows of two experts.
            suits &= (tile_m <= M_ALIGNMENT) | (rows >= 8 * tile_m)
        # There is always one: the smallest tile that shares nothing.
        smallest = (area == area.min()) & (column["cluster"] == 1) & (column["stream_b"] == 0)
        suits[np.argmax(smallest[:, 0])] |= ~suits.any(axis=0)
        return suits


def candidates(kind: Kind, k: int, alignment: int = M_ALIGNMENT) -> Candidates:
    """The candidates of a kind of product with this k. Their own k is a larger one, their n is ANY_N.

    Args:
        alignment: at multiples of how many rows the groups of a contiguous or psum layout begin.
    """
    return _candidates(kind, align(k, K_STEP), alignment)


@functools.cache
def _candidates(kind: Kind, k: int, alignment: int) -> Candidates:
    return Candidates(tuple(_all(kind, k, alignment)))
