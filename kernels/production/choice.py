"""Which configuration a product gets, without a GPU: the one that is expected to be the fastest.

    config = choose("dense", 4096, 7168, 2048)

The choice is made by what `gemm_ladder.production.prediction` expects of every candidate, and is a function
of its arguments alone.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Iterator

from gemm_ladder.arguments import H100_SMS, KINDS, N_MULTIPLE, SCALE_BLOCK, Kind, ceil_div
from gemm_ladder.errors import InputError
from gemm_ladder.production.config import WGMMA_M, Config, Share, fits
from gemm_ladder.production.prediction import predict

TAILS = (
    (256, 64),
    (128, 128),
    (128, 64),
)  # tail tiles, for the rows that whole waves of larger tiles leave over

# A configuration is chosen for one of these numbers of rows, the next larger one.
BUCKETS = (64, 128, *(m for i in range(7, 13) for m in ((3 << i) // 2, 2 << i)), 12288)


def bucket(m: int) -> int:
    """The smallest of BUCKETS that is at least `m`, or the last. So a process compiles a few kernels for an n
    and a k, not one for every m."""
    return BUCKETS[min(bisect.bisect_left(BUCKETS, m), len(BUCKETS) - 1)]


def candidates(
    kind: Kind, m: int, n: int, k: int, groups: int = 1, num_sms: int = H100_SMS
) -> Iterator[Config]:
    """The configurations to choose from.

    K is split only where at least half of the SMs would have no tile otherwise. Clusters are pairs: not all
    clusters of four are resident at the same time on an H100, whose 132 SMs form groups of 16 or 18. With two
    consumers, 9/16 of the promotion's FFMAs are interleaved: up to 2 % faster where it was measured
    (NOTES.md).

    Args:
        m: rows of A in all; in the masked layout, of a group.
        kind, n, k, groups, num_sms: as for `choose`.
    """
    of_group = m if kind != "contiguous" else ceil_div(m, groups)
    for tile_m in (64, 128, 256):
        if tile_m > WGMMA_M and tile_m >= 2 * of_group:
            continue
        if kind == "contiguous" and tile_m > SCALE_BLOCK and of_group < 8 * tile_m:
            continue  # too many tiles would contain rows of two experts
        # B is read from memory once, or again only by tiles that run at the same time, which L2 then serves.
        stream_b = of_group <= (8 * tile_m if kind == "masked" else tile_m)
        for tile_n in range(16, 257, 16):
            if tile_n >= n + 16:
                continue
            tiles = ceil_div(m, tile_m) * ceil_div(n, tile_n)
            for share in ("nothing", "A", "B", "K"):
                if (
                    (share == "A" and n <= tile_n)
                    or (share == "B" and of_group <= tile_m)
                    or (share in "AB" and tile_n < SCALE_BLOCK)  # measured: 7 to 28 % slower than not shared
                    or (share == "K" and (k < 16 * SCALE_BLOCK or 2 * tiles > num_sms))
                    or (
                        share == "K" and tile_m > SCALE_BLOCK
                    )  # measured: up to 2.4 times as slow as in one part
                ):
                    continue
                for tail_m, tail_n in ((0, 0), *_tails(kind, tile_m, tile_n, share)):
                    config = Config.of(
                        kind,
                        n,
                        k,
                        tile_m,
                        tile_n,
                        cluster=1 if share == "nothing" else 2,
                        share=share,
                        stream_b=stream_b and share != "B",
                        # About 32 KB of B, if no two thread blocks load the same rows of it: 2 to 5 % faster
                        # in CUDA graphs and where L2 is dirty, no slower where it is clean.
                        prefetch=max(2, min(8, 256 // tile_n))
                        if kind == "dense" and of_group <= tile_m
                        else 0,
                        tail_m=tail_m,
                        tail_n=tail_n,
                    )
                    if kind == "dense" and config.group_n:
                        # Where few tiles lie below each other, they run together, so that B, then the larger
                        # operand, is read from memory once. Else bands of 4 are faster with narrow tiles.
                        bands = 0 if ceil_div(m, tile_m) <= 6 else 8 if tile_n >= SCALE_BLOCK else 4
                        config = dataclasses.replace(config, group_n=bands)
                    if config.consumers == 2:
                        config = dataclasses.replace(config, interleave="9/16")
                    if fits(config) and (not tail_m or len(config.parts(m, num_sms)) > 1):
                        yield config


def _tails(kind: Kind, tile_m: int, tile_n: int, share: Share) -> Iterator[tuple[int, int]]:
    """Tail tiles to try with a tile. With multicast none was ever faster, so there are none."""
    if kind == "dense" and share == "nothing" and tile_m >= 128 <= tile_n and tile_n % 64 == 0:
        yield from (tail for tail in TAILS if math.prod(tail) < tile_m * tile_n)


def choose(
    kind: Kind,
    m: int,
    n: int,
    k: int,
    groups: int = 1,
    num_sms: int = H100_SMS,
    expected_m: int | None = None,
) -> Config:
    """The configuration that is expected to be the fastest.

    Args:
        kind, n, k, groups: the layout, the sizes of B, and how many groups B has.
        m: rows of A in all; in the masked layout max_m, those that each group has room for.
        num_sms: how many SMs there are to use.
        expected_m: in the masked layout, about how many rows of a group count; None: all of them.

    Raises:
        InputError: no kernel multiplies these sizes.
    """
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; one of {', '.join(KINDS)} is needed")
    for name, value in {"m": m, "n": n, "k": k, "groups": groups, "num_sms": num_sms}.items():
        if value < 1:
            raise InputError(f"{name} is {value}; 1 or more is needed")
    for name, value, multiple in (("n", n, N_MULTIPLE), ("k", k, SCALE_BLOCK)):
        if value % multiple:
            raise InputError(f"{name} is {value}; a multiple of {multiple} is needed")
    return _choose(kind, rows_to_expect(kind, m, groups, expected_m), n, k, groups, num_sms)


def rows_to_expect(kind: Kind, m: int, groups: int, expected_m: int | None) -> int:
    """The number of rows by which a configuration is chosen: the bucket of the rows that are expected to be
    multiplied, in the masked layout of a group."""
    if kind == "masked" and expected_m is not None:
        m = min(m, max(1, expected_m))
    if kind == "contiguous":
        return bucket(ceil_div(m, groups)) * groups
    return bucket(m)


def rows_up_to(kind: Kind, max_m: int, groups: int) -> list[int]:
    """For each configuration that calls with m from 1 to `max_m` can get, one m that gets it."""
    parts = groups if kind == "contiguous" else 1
    last = bucket(ceil_div(max_m, parts))
    return [m * parts for m in BUCKETS if m <= last]


@functools.lru_cache(maxsize=4096)
def _choose(kind: Kind, m: int, n: int, k: int, groups: int, num_sms: int) -> Config:
    return min(
        candidates(kind, m, n, k, groups, num_sms), key=lambda config: predict(config, m, groups, num_sms).us
    )


def ranked(kind: Kind, m: int, n: int, k: int, groups: int = 1, num_sms: int = H100_SMS) -> list[Config]:
    """The candidates for a product: first the one that is chosen, then the others by their expected times.

    Arguments and errors: as `choose`.
    """
    chosen, rows = choose(kind, m, n, k, groups, num_sms), rows_to_expect(kind, m, groups, None)
    return sorted(
        candidates(kind, rows, n, k, groups, num_sms),
        key=lambda config: (config != chosen, predict(config, rows, groups, num_sms).us),
    )
