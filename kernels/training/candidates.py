"""The configurations that calls get, those that are timed beside them, and the choice."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from gemm_ladder.arguments import SCALE_BLOCK, ceil_div
from gemm_ladder.training.config import Config

# What a call may get, with a guess of how fast the tile's main loop is: the share of the tensor cores' time
# that it keeps them busy, from the loads that it needs through L2 and the instructions of its promotion. No
# GPU has been asked yet: `python -m gemm_ladder training --tune` times them and TO_TUNE.
CANDIDATES: dict[Config, float] = {
    Config.of(256, 128, share="A"): 1.0,
    Config.of(256, 128): 0.98,
    Config.of(128, 192, share="B", boxes=3): 0.98,
    Config.of(128, 192): 0.94,
    Config.of(128, 160): 0.92,
    Config.of(128, 128, scales="products", share="B"): 0.94,
    Config.of(128, 128, scales="products"): 0.88,
    Config.of(128, 96, scales="products"): 0.78,
    Config.of(128, 64, scales="products"): 0.6,
}
_EPILOGUE = 3  # K blocks that a tile's epilogue and the start of its pipeline cost

# What `--tune` times beside the candidates: other sources of the factors, other sharing, more stages at the
# price of fewer boxes, other orders of tiles, longer loop bodies.
TO_TUNE: tuple[Config, ...] = (
    *(
        Config.of(tile_m, tile_n, scales=scales, share=share, boxes=boxes)
        for tile_m, tile_n, scales, each in (
            (128, 128, "products", (4, 2)),
            (128, 128, "registers", (4, 2)),
            (128, 128, "shared", (4, 2)),
            (128, 160, "registers", (5, 3)),
            (128, 160, "shared", (5, 3)),
            (128, 192, "shared", (6, 3)),
            (256, 96, "products", (6, 3)),
            (256, 128, "shared", (4, 1)),
        )
        for share in ("nothing", "A", "B")
        for boxes in each
    ),
    *(
        Config.of(*tile, share=share, band=band, across=across)
        for tile, share in (((256, 128), "A"), ((128, 192), "B"))
        for band, across in ((16, False), (4, False), (8, True), (4, True))
    ),
    Config.of(128, 128, scales="products", share="B", unroll=4),
    Config.of(128, 128, scales="shared", share="B", boxes=2, unroll=4),
)


def choose(m: int, n: int, ks: Sequence[int], num_sms: int) -> Config:
    """The configuration that a call is expected to be the fastest with.

    Args:
        m, n: rows and columns of D, 1 or more.
        ks: the k of each group that is multiplied, 1 or more.
        num_sms: how many SMs the kernel may use.
    """
    blocks = sum(ceil_div(k, SCALE_BLOCK) for k in ks)
    return _choose(m, n, blocks, len(ks), num_sms)


@functools.lru_cache(maxsize=4096)
def _choose(m: int, n: int, blocks: int, groups: int, num_sms: int) -> Config:
    def time(item: tuple[Config, float]) -> float:
        config, speed = item
        units = ceil_div(m, config.tile_m * config.down) * ceil_div(n, config.tile_n * config.right) * groups
        waves = ceil_div(units, max(1, num_sms // config.cluster))
        return waves * config.tile_m * config.tile_n * (blocks / groups / speed + _EPILOGUE)

    config, _ = min(CANDIDATES.items(), key=time)
    return config.with_room_for(groups)
