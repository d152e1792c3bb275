"""The configurations that calls get, those that are timed beside them, and the choice."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from gemm_ladder.arguments import SCALE_BLOCK, ceil_div
from gemm_ladder.training.config import GROUPS, Config

# What a call may get, with the speed of the tile's main loop relative to the first one's. These speeds and
# _EPILOGUE are those with which `_choose` comes closest to the times of these six at the products of
# measure/training.py on an H200 (NOTES.md). It then chooses the fastest of the six at all of them but the
# smallest, whose groups have one or two K blocks.
CANDIDATES: dict[Config, float] = {
    Config.of(128, 192, ahead=4, boxes=3, band=12): 1.0,
    Config.of(128, 160, boxes=3, band=16, across=True): 0.962,
    Config.of(256, 128): 0.946,
    Config.of(128, 128, ahead=8, boxes=2): 0.92,
    Config.of(128, 96): 0.78,
    Config.of(128, 64): 0.697,
}
_EPILOGUE = (
    11  # K blocks that a tile's epilogue and the start of its pipeline cost, and what else K does not change
)

# What `--tune` times beside the candidates: other numbers of pairs loaded ahead, other sharing, more stages
# at the price of fewer boxes, other orders of tiles.
TO_TUNE: tuple[Config, ...] = (
    *(
        Config.of(tile_m, tile_n, ahead=ahead, share=share, boxes=boxes)
        for tile_m, tile_n, aheads, each in (
            (128, 128, (0, 4, 16), (4, 2)),
            (128, 160, (0, 4, 8), (5, 3)),
            (128, 192, (0, 2, 6), (6, 3)),
            (256, 96, (0, 4), (6, 3)),
            (256, 128, (0, 4), (4, 1)),
        )
        for ahead in aheads
        for share in ("nothing", "A", "B")
        for boxes in each
    ),
    *(
        Config.of(*tile, share=share, band=band, across=across)
        for tile, share in (((256, 128), "A"), ((128, 192), "B"))
        for band, across in ((16, False), (4, False), (8, True), (4, True))
    ),
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


def all_for(groups: int) -> list[Config]:
    """Every configuration that `choose` may give for a call of so many groups, some of which may be empty."""
    rooms = [*(room for room in GROUPS if room < groups), groups]
    return list(dict.fromkeys(config.with_room_for(room) for room in rooms for config in CANDIDATES))


def all_up_to(m: int, n: int, k: int, num_sms: int) -> list[Config]:
    """Every configuration that `choose` gives for one group whose k is 1 to this one."""
    blocks = range(1, ceil_div(k, SCALE_BLOCK) + 1)
    return list(dict.fromkeys(_choose(m, n, some, 1, num_sms) for some in blocks))


@functools.lru_cache(maxsize=4096)
def _choose(m: int, n: int, blocks: int, groups: int, num_sms: int) -> Config:
    def time(item: tuple[Config, float]) -> float:
        config, speed = item
        units = ceil_div(m, config.tile_m * config.down) * ceil_div(n, config.tile_n * config.right) * groups
        at_once = max(1, num_sms // config.cluster)
        return (
            ceil_div(units, at_once) * config.tile_m * config.tile_n * (blocks / groups / speed + _EPILOGUE)
        )

    config, _ = min(CANDIDATES.items(), key=time)
    return config.with_room_for(groups)
