"""What is decided before a production kernel is compiled: its Config.

    config = choice.choose("dense", 4096, 7168, 2048)
    config.compile("cuda")

config.cuh is the same struct in C++, gemm.cuh the kernel, and choice.py decides which configuration a product
gets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from gemm_ladder.arguments import KINDS, N_MULTIPLE, SCALE_BLOCK, Kind, align, ceil_div
from gemm_ladder.errors import InputError

if TYPE_CHECKING:
    from gemm_ladder.build import Built, SassPass, Target

Share = Literal["nothing", "A", "B", "K"]

SHARED_BYTES = 233_472  # of an SM; a block has 1024 of its own in them
MAX_STAGES = 16
WGMMA_M = 64
# Of the 232 registers a thread that two consumers have, and of the 255 that one has.
MAX_ACCUMULATORS = {1: 224, 2: 192}
INTERLEAVES = ("off", "compiler", "9/16", "full")


@dataclasses.dataclass(frozen=True)
class Config:
    """struct Config of production/config.cuh, field by field.

    Attributes:
        kind: "dense", "contiguous" or "masked".
        n, k: of B.
        tile_m, tile_n: what a block computes at a time.
        consumers_m, consumers_n: warpgroups below each other and side by side; one or two in all.
        stages: of the ring between the copy engine and the tensor cores.
        cluster: blocks that share what `share` says.
        share: "nothing"; "A", tiles side by side; "B", tiles below each other; "K", one tile, parts of K.
        group_m, group_n: units of work that run together span so many of them down; or, if group_n is not 0,
            so many to the right.
        unroll: blocks of K in the main loop's body.
        blocks_an_sm: how many blocks are on an SM at a time, one or two.
        stream_b: B is read once, and is to leave L2 first.
        prefetch: blocks of K of a block's first tile of B that L2 is asked for before anything else.
        tail_m, tail_n: the tile of the rows that are left after whole waves of tiles; 0: of all the same.
        interleave: how the promotion's FFMAs yield in the machine code: a mode of `gemm_ladder.sass.ffma`.
    """

    kind: Kind
    n: int
    k: int
    tile_m: int
    tile_n: int
    consumers_m: int
    consumers_n: int
    stages: int
    cluster: int = 1
    share: Share = "nothing"
    group_m: int = 8
    group_n: int = 0
    unroll: int = 4
    blocks_an_sm: int = 1
    stream_b: bool = False
    prefetch: int = 0
    tail_m: int = 0
    tail_n: int = 0
    interleave: str = "compiler"

    @classmethod
    def of(
        cls, kind: Kind, n: int, k: int, tile_m: int, tile_n: int, stages: int | None = None, **fields: object
    ) -> Config:
        """With what follows from the tile, unless it is given: consumers, unrolling, the stages that fit."""
        fields.setdefault("consumers_m", min(2, tile_m // WGMMA_M))
        wide = fields["consumers_m"] == 1 and tile_n % 32 == 0 and tile_n > MAX_ACCUMULATORS[1] * 2 // 3
        fields.setdefault("consumers_n", 2 if wide else 1)
        config = cls(kind, n, k, tile_m, tile_n, stages=1, **fields)
        if "unroll" not in fields:
            # A longer loop body costs registers; where two slices take turns, it pays.
            slices = max(one.slices for one in (config, config.tail) if one)
            unroll = 8 if slices > 1 else 1 if config.accumulators > 160 else 4
            config = dataclasses.replace(config, unroll=unroll)
        if "group_n" not in fields and config.share == "nothing" and tile_m > tile_n:
            # Neighbouring blocks should ask L2 for the same tile of the larger operand: of A, then.
            config = dataclasses.replace(config, group_n=12 if kind == "contiguous" else 8)
        if stages is None:
            free = config.most_shared_bytes - config.output_bytes
            stages = max(1, min(MAX_STAGES, free // config.stage_bytes))
        return dataclasses.replace(config, stages=stages)

    @property
    def tail(self) -> Config | None:
        """What multiplies the rows that are left after whole waves, where that is another tile."""
        if not self.tail_m and not self.tail_n:
            return None
        return dataclasses.replace(self, tile_m=self.tail_m, tile_n=self.tail_n, tail_m=0, tail_n=0)

    def parts(self, rows: int, num_sms: int) -> list[tuple[Config, int]]:
        """Which rows of A each tile is for, how many of them: deal() of production/start.cuh."""
        tail, at_once = self.tail, self.at_once(num_sms)
        units_in_waves = self.units(rows) // at_once * at_once
        first = min(units_in_waves // self.units(1) * self.tile_m * self.down, rows) or rows
        return [(self, rows)] if tail is None or first == rows else [(self, first), (tail, rows - first)]

    def at_once(self, num_sms: int) -> int:
        """Clusters on so many SMs at a time."""
        return max(1, num_sms * self.blocks_an_sm // self.cluster)

    @property
    def consumers(self) -> int:
        """Warpgroups that multiply."""
        return self.consumers_m * self.consumers_n

    @property
    def slices(self) -> int:
        """How often 64 rows a consumer has in a tile."""
        return self.tile_m // (WGMMA_M * self.consumers_m)

    @property
    def consumer_n(self) -> int:
        """A consumer's columns of a tile."""
        return self.tile_n // self.consumers_n

    @property
    def accumulators(self) -> int:
        """Registers a thread: a total for each slice, and one partial sum."""
        return (self.slices + 1) * self.consumer_n // 2

    def units(self, rows: int) -> int:
        """Units of work that so many rows of A are, masked: of a group: Scheduler::units()."""
        return ceil_div(rows, self.tile_m * self.down) * ceil_div(self.n, self.tile_n * self.right)

    @property
    def down(self) -> int:
        """Tiles below each other in a unit of work, which share B: Scheduler::kDown."""
        return self.cluster if self.share == "B" else 1

    @property
    def right(self) -> int:
        """Tiles side by side in a unit of work, which share A: Scheduler::kRight."""
        return self.cluster if self.share == "A" else 1

    @property
    def scales_b(self) -> int:
        """B's scales that a tile may touch in a block of K."""
        aligned = math.gcd(self.tile_n, SCALE_BLOCK)
        return (SCALE_BLOCK - aligned + self.tile_n - 1) // SCALE_BLOCK + 1

    @property
    def stage_bytes(self) -> int:
        """Of one stage: A, B, their scales, two barriers."""
        own = (self.tile_m + self.tile_n) * SCALE_BLOCK + self.tile_m * 4 + 128 * self.scales_b + 32
        return max(align(own, 1024), self.tail.stage_bytes if self.tail else 0)

    @property
    def output_bytes(self) -> int:
        """What a tile's results wait in: BF16 for the copy engine, FP32 for the other blocks of a split K."""
        if self.share == "K":
            pieces = self.slices * self.consumer_n // 8  # each of 16 bytes of the 128 threads of a consumer
            return self.consumers * align(pieces, self.cluster) * 2048
        own = self.consumers * align(self.slices * WGMMA_M * self.consumer_n * 2, 1024)
        return max(own, self.tail.output_bytes if self.tail else 0)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.output_bytes + self.stages * self.stage_bytes

    @property
    def most_shared_bytes(self) -> int:
        """What a block can have of it."""
        return SHARED_BYTES // max(1, self.blocks_an_sm) - 1024

    @property
    def name(self) -> str:
        """For people: of the library, in tables. Two configurations of one name differ in details only."""
        cluster = "" if self.share == "nothing" else f"_{self.share}{self.cluster}"
        twice = "_2" if self.blocks_an_sm > 1 else ""
        tail = f"_{self.tail_m}x{self.tail_n}" if self.tail else ""
        return f"fp8_gemm_{self.kind}_{self.n}x{self.k}_{self.tile_m}x{self.tile_n}{tail}{cluster}{twice}"

    def source(self) -> str:
        """The text to compile."""
        fields = [field.name for field in dataclasses.fields(self) if field.name != "interleave"]
        values = [f".{name} = {self._in_cpp(name)}" for name in fields]
        return (
            '#include "start.cuh"\n'
            f"constexpr Config kConfig{{{', '.join(values)}}};\n"
            'extern "C" const char* gemm_ladder_launch(const GroupedArgs* args) '
            "{ return start<kConfig>(*args); }\n"
        )

    def compile(self, target: Target) -> Built:
        """The kernel, built or found in the cache. A GPU's has its FFMAs as `interleave` says or, where
        `gemm_ladder.sass.ffma` does not understand them, as the compiler left them: Built.rewritten.

        Raises InputError as `check` does, ToolchainError and BuildError.
        """
        from gemm_ladder import build  # here: to choose a configuration needs no compiler

        text = self.check().source()
        interleaved = target == "cuda" and self.interleave != "compiler"
        sass_pass = _interleaving(self.interleave) if interleaved else None
        return build.compile(text, target=target, name=self.name, sass_pass=sass_pass)

    def _in_cpp(self, field: str) -> str:
        value = getattr(self, field)
        if field in ("kind", "share"):
            return f"{field.capitalize()}::k{value.capitalize()}"
        return str(value).lower()

    def check(self) -> Config:
        """This configuration. Raises InputError where gemm.cuh would not compile for it, or go wrong."""
        for rule in _RULES:
            if not rule.holds(self):
                raise InputError(f"{rule.field} is {getattr(self, rule.field)!r}; it {rule.needed}")
        return self


class Rule(NamedTuple):
    """What a field of a configuration has to satisfy: `needed` says it in words."""

    field: str
    holds: Callable[[Config], bool]
    needed: str


def _positive(field: str) -> Rule:
    return Rule(field, lambda c: getattr(c, field) > 0, "must be positive")


# The rules that geometry.cuh and gemm.cuh assert, and those that they take for granted, in the order in which
# they are asked.
_RULES = (
    Rule("kind", lambda c: c.kind in KINDS, f"must be one of {', '.join(KINDS)}"),
    Rule("share", lambda c: c.share in get_args(Share), f"must be one of {', '.join(get_args(Share))}"),
    *map(
        _positive,
        (
            *("n", "k", "tile_m", "tile_n", "consumers_m", "consumers_n", "stages", "cluster"),
            *("group_m", "unroll"),
        ),
    ),
    Rule("group_n", lambda c: c.group_n >= 0, "must not be negative"),
    Rule("n", lambda c: c.n % N_MULTIPLE == 0, "must be a multiple of 8: a row of D is whole 16 bytes"),
    Rule("k", lambda c: c.k % SCALE_BLOCK == 0, "must be a multiple of 128: whole promotion blocks"),
    Rule("consumers", lambda c: c.consumers in (1, 2), "must be 1 or 2 (consumers_m * consumers_n)"),
    Rule(
        "tile_m",
        lambda c: c.tile_m % (WGMMA_M * c.consumers_m) == 0,
        "must be a multiple of 64 * consumers_m",
    ),
    Rule("tile_m", lambda c: c.tile_m <= 256, "must be at most 256: a box of the copy engine"),
    Rule("tile_n", lambda c: c.tile_n % (16 * c.consumers_n) == 0, "must be a multiple of 16 * consumers_n"),
    Rule("tile_n", lambda c: c.tile_n <= 256, "must be at most 256: a box of the copy engine"),
    Rule(
        "accumulators",
        lambda c: c.accumulators <= MAX_ACCUMULATORS[c.consumers],
        "must be at most 192 registers a thread with two consumers, 224 with one",
    ),
    Rule(
        "blocks_an_sm",
        lambda c: c.blocks_an_sm == 1 or (c.blocks_an_sm == 2 and c.consumers == 1 and c.accumulators <= 192),
        "must be 1, or 2 with one consumer and at most 192 accumulators",
    ),
    Rule(
        "shared_bytes",
        lambda c: c.shared_bytes <= c.most_shared_bytes,
        "must be at most 232448, with two blocks an SM 115712",
    ),
    Rule("interleave", lambda c: c.interleave in INTERLEAVES, f"must be one of {', '.join(INTERLEAVES)}"),
    Rule(
        "cluster",
        lambda c: (c.share == "nothing") == (c.cluster == 1),
        "must be 1 where nothing is shared, else more",
    ),
    Rule("cluster", lambda c: c.cluster in (1, 2, 4, 8), "must be 1, 2, 4 or 8"),
    Rule(
        "tile_m",
        lambda c: c.share != "A" or c.tile_m % (8 * c.cluster) == 0,
        "must be a multiple of 8 * cluster where A is shared: whole swizzle atoms a block",
    ),
    Rule(
        "tile_n",
        lambda c: c.share != "B" or c.tile_n % (8 * c.cluster) == 0,
        "must be a multiple of 8 * cluster where B is shared: whole swizzle atoms a block",
    ),
    Rule(
        "share",
        lambda c: c.share != "B" or c.kind != "contiguous",
        "must not be B in the contiguous layout: tiles below each other may have different experts",
    ),
    Rule(
        "tile_m",
        lambda c: c.kind != "contiguous" or c.slices <= 2,
        "must be at most 128 * consumers_m in the contiguous layout: two slices, for two experts",
    ),
    Rule("share", lambda c: c.share != "K" or c.kind == "dense", "must not be K in a grouped layout"),
    Rule(
        "prefetch",
        lambda c: c.prefetch >= 0 and (c.prefetch == 0 or c.stream_b),
        "must not be negative, and 0 where B is not streamed",
    ),
    Rule(
        "tail_m",
        lambda c: (c.tail_m > 0) == (c.tail_n > 0) and min(c.tail_m, c.tail_n) >= 0,
        "must be positive if tail_n is, or else both 0",
    ),
    Rule(
        "tail_m",
        lambda c: c.tail is None or (c.kind == "dense" and c.share != "K"),
        "must be 0 in a grouped layout, and where K is split",
    ),
    Rule(
        "tail_m",
        lambda c: c.tail is None or fits(c.tail),
        "must make, with tail_n, a tile that the other fields suit",
    ),
)


def _interleaving(mode: str) -> SassPass:
    """The pass of `gemm_ladder.sass.ffma`, which may refuse: another nvcc's code may be unknown to it, and no
    call depends on it."""
    from gemm_ladder.sass import ffma

    strict = ffma.sass_pass(mode)
    return dataclasses.replace(strict, id=f"{strict.id}, where it can", refusals=(ffma.UnknownCodeError,))


def fits(config: Config) -> bool:
    """Whether `check` accepts it."""
    return all(rule.holds(config) for rule in _RULES)
