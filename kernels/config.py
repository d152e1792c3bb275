"""What is decided before a production kernel is compiled, its Config; and the choice of one, without a GPU.

    config = choose("dense", 4096, 7168, 2048)
    config.compile("cuda")

production/config.cuh is the same struct in C++, production/gemm.cuh the kernel. The choice is made by what
`gemm_ladder.prediction` expects of every candidate, and is a function of its arguments alone.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args

from gemm_ladder.checks import align, ceil_div
from gemm_ladder.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from gemm_ladder.build import Built, SassPass, Target

Kind = Literal["dense", "contiguous", "masked"]
Share = Literal["nothing", "A", "B", "K"]

H100_SMS = 132
SHARED_BYTES = 233_472  # of an SM; a block has 1024 of its own in them
MAX_STAGES = 16
WGMMA_M = 64
SCALE = 128  # of N and of K: what a scale of B covers
# Of the 232 registers a thread that two consumers have, and of the 255 that one has.
MAX_ACCUMULATORS = {1: 224, 2: 192}
INTERLEAVES = ("off", "compiler", "9/16", "full")
TAILS = ((256, 64), (128, 128), (128, 64))  # tiles that may finish what larger ones leave over

# The rules that geometry.cuh and gemm.cuh assert, and those that they take for granted, in the order in which
# they are asked.
_RULES = (
    (lambda c: c.kind in get_args(Kind), "kind must be one of dense, contiguous, masked"),
    (lambda c: c.share in get_args(Share), "share must be one of nothing, A, B, K"),
    (
        lambda c: min(c.n, c.k, c.tile_m, c.tile_n, c.consumers_m, c.consumers_n, c.stages, c.cluster) > 0,
        "n, k, tile_m, tile_n, consumers_m, consumers_n, stages and cluster must be positive",
    ),
    (
        lambda c: c.group_m > 0 and c.unroll > 0 and c.group_n >= 0,
        "group_m and unroll must be positive, group_n not negative",
    ),
    (lambda c: c.n % 8 == 0, "n must be a multiple of 8: a row of D is whole 16 bytes"),
    (lambda c: c.k % SCALE == 0, "k must be a multiple of 128: whole promotion blocks"),
    (lambda c: c.consumers in (1, 2), "consumers_m * consumers_n must be 1 or 2"),
    (lambda c: c.tile_m % (WGMMA_M * c.consumers_m) == 0, "tile_m must be a multiple of 64 * consumers_m"),
    (lambda c: c.tile_m <= 256, "tile_m must be at most 256: a box of the copy engine"),
    (lambda c: c.tile_n % (16 * c.consumers_n) == 0, "tile_n must be a multiple of 16 * consumers_n"),
    (lambda c: c.tile_n <= 256, "tile_n must be at most 256: a box of the copy engine"),
    (
        lambda c: c.accumulators <= MAX_ACCUMULATORS[c.consumers],
        "accumulators must be at most 192 registers a thread of two consumers, 224 of one",
    ),
    (
        lambda c: c.blocks_an_sm == 1 or (c.blocks_an_sm == 2 and c.consumers == 1 and c.accumulators <= 192),
        "blocks_an_sm must be 1, or 2 of one consumer with at most 192 accumulators",
    ),
    (
        lambda c: c.shared_bytes <= c.most_shared_bytes,
        "shared_bytes must be at most 232448, of two blocks an SM 115712",
    ),
    (lambda c: c.interleave in INTERLEAVES, f"interleave must be one of {', '.join(INTERLEAVES)}"),
    (
        lambda c: (c.share == "nothing") == (c.cluster == 1),
        "cluster must be 1 where nothing is shared, else more",
    ),
    (lambda c: c.cluster in (1, 2, 4, 8), "cluster must be 1, 2, 4 or 8"),
    (
        lambda c: c.share != "A" or c.tile_m % (8 * c.cluster) == 0,
        "tile_m must be a multiple of 8 * cluster where A is shared: whole swizzle atoms a block",
    ),
    (
        lambda c: c.share != "B" or c.tile_n % (8 * c.cluster) == 0,
        "tile_n must be a multiple of 8 * cluster where B is shared: whole swizzle atoms a block",
    ),
    (
        lambda c: c.share != "B" or c.kind != "contiguous",
        "share must not be B in the contiguous layout: tiles below each other may have different experts",
    ),
    (
        lambda c: c.kind != "contiguous" or c.slices <= 2,
        "tile_m must be at most 128 * consumers_m in the contiguous layout: two slices, for two experts",
    ),
    (lambda c: c.share != "K" or c.kind == "dense", "share must not be K in a grouped layout"),
    (
        lambda c: c.prefetch >= 0 and (c.prefetch == 0 or c.stream_b),
        "prefetch must not be negative, and 0 where B is not streamed",
    ),
    (
        lambda c: (c.tail_m > 0) == (c.tail_n > 0) and min(c.tail_m, c.tail_n) >= 0,
        "tail_m and tail_n must both be positive, or both 0",
    ),
    (
        lambda c: c.tail is None or (c.kind == "dense" and c.share != "K"),
        "tail_m must be 0 in a grouped layout, and where K is split",
    ),
    (lambda c: c.tail is None or fits(c.tail), "tail_m x tail_n must be a tile that the other fields suit"),
)


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
        interleave: how the promotion's FFMAs yield in the machine code: a mode of `gemm_ladder.ffma`.
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
        aligned = math.gcd(self.tile_n, SCALE)
        return (SCALE - aligned + self.tile_n - 1) // SCALE + 1

    @property
    def stage_bytes(self) -> int:
        """Of one stage: A, B, their scales, two barriers."""
        own = (self.tile_m + self.tile_n) * SCALE + self.tile_m * 4 + 128 * self.scales_b + 32
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
        """The kernel, built or found in the cache; a GPU's with its FFMAs as `interleave` says, or, where
        `gemm_ladder.ffma` does not understand them, as the compiler left them. The log says which.

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
        for holds, rule in _RULES:
            if not holds(self):
                field = rule.split()[0]
                given = getattr(self, field, None)
                shown = f"{field} is {given!r}" if given is not None else f"the configuration is {self}"
                raise InputError(f"{shown}; {rule}")
        return self


def _interleaving(mode: str) -> SassPass:
    """The pass of `gemm_ladder.ffma`, on which no call is to depend: another nvcc's code may be unknown."""
    from gemm_ladder import build, ffma

    strict = ffma.sass_pass(mode)

    def apply(library: Path) -> str:
        try:
            return strict.apply(library)
        except ffma.UnknownCodeError as reason:
            return f"{reason}\n"

    return build.SassPass(f"{strict.id}, where it can", apply)


def fits(config: Config) -> bool:
    """Whether `check` accepts it."""
    return all(holds(config) for holds, _ in _RULES)


# The numbers of rows that are chosen for.
BUCKETS = (64, 128, *(m for i in range(7, 13) for m in (2**i * 3 // 2, 2**i * 2)), 12288)


def bucket(m: int) -> int:
    """The first of BUCKETS that `m` rows fit in, or the last. So a process compiles a few kernels for an n
    and a k, and not one for every m."""
    return BUCKETS[min(bisect.bisect_left(BUCKETS, m), len(BUCKETS) - 1)]


def candidates(
    kind: Kind, m: int, n: int, k: int, groups: int = 1, num_sms: int = H100_SMS
) -> Iterator[Config]:
    """The configurations that can be the best; `m` rows in all, masked: of a group.

    K is split where half of the SMs would have no tile otherwise. Clusters are pairs: of four, not all are
    resident on an H100, whose 132 SMs are groups of 16 or 18. Where two consumers take turns, 9/16 of their
    FFMAs are interleaved: up to 2 % faster where it was measured (production/NOTES.md).
    """
    of_group = m if kind != "contiguous" else ceil_div(m, groups)
    for tile_m in (64, 128, 256):
        if tile_m > WGMMA_M and tile_m >= 2 * of_group:
            continue
        if kind == "contiguous" and tile_m > SCALE and of_group < 8 * tile_m:
            continue  # too many of them would meet two experts
        # Once from memory: where what reads it again runs at the same time, L2 serves that all the same.
        stream_b = of_group <= (8 * tile_m if kind == "masked" else tile_m)
        for tile_n in range(16, 257, 16):
            if tile_n >= n + 16:
                continue
            tiles = ceil_div(m, tile_m) * ceil_div(n, tile_n)
            for share in ("nothing", "A", "B", "K"):
                if (
                    (share == "A" and n <= tile_n)
                    or (share == "B" and of_group <= tile_m)
                    or (share in "AB" and tile_n < SCALE)  # measured: 7 to 28 % slower than alone
                    or (share == "K" and (k < 16 * SCALE or 2 * tiles > num_sms))
                    or (share == "K" and tile_m > SCALE)  # measured: up to 2.4 times as slow as in one part
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
                        # Up to 6 % faster, where every block has rows of B of its own (production/NOTES.md).
                        prefetch=4 if kind == "dense" and of_group <= tile_m else 0,
                        tail_m=tail_m,
                        tail_n=tail_n,
                    )
                    if config.consumers == 2:
                        config = dataclasses.replace(config, interleave="9/16")
                    if fits(config) and (not tail_m or len(config.parts(m, num_sms)) > 1):
                        yield config


def _tails(kind: Kind, tile_m: int, tile_n: int, share: Share) -> Iterator[tuple[int, int]]:
    """Smaller tiles that may finish what large ones leave over. Where a cluster shares, none has won."""
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
        kind, n, k, groups: the product's.
        m: rows of A in all; masked: of a group, max_m.
        num_sms: how many SMs there are to use.
        expected_m: masked: about how many rows of a group will count; None: all of them.

    Raises:
        InputError: sizes that no kernel multiplies.
    """
    if kind not in get_args(Kind):
        raise InputError(f"kind is {kind!r}; one of dense, contiguous, masked is needed")
    for name, value in {"m": m, "n": n, "k": k, "groups": groups, "num_sms": num_sms}.items():
        if value < 1:
            raise InputError(f"{name} is {value}; 1 or more is needed")
    for name, value, multiple in (("n", n, 8), ("k", k, SCALE)):
        if value % multiple:
            raise InputError(f"{name} is {value}; a multiple of {multiple} is needed")
    return _choose(kind, rows_to_expect(kind, m, groups, expected_m), n, k, groups, num_sms)


def rows_to_expect(kind: Kind, m: int, groups: int, expected_m: int | None) -> int:
    """What m enters the choice as: the bucket of the rows (masked: of a group) that will be multiplied."""
    if kind == "masked" and expected_m is not None:
        m = min(m, max(1, expected_m))
    if kind == "contiguous":
        return bucket(ceil_div(m, groups)) * groups
    return bucket(m)


def rows_up_to(kind: Kind, max_m: int, groups: int) -> list[int]:
    """One m for each choice that calls with m of 1 to `max_m` lead to."""
    parts = groups if kind == "contiguous" else 1
    last = bucket(ceil_div(max_m, parts))
    return [m * parts for m in BUCKETS if m <= last]


@functools.lru_cache(maxsize=4096)
def _choose(kind: Kind, m: int, n: int, k: int, groups: int, num_sms: int) -> Config:
    from gemm_ladder.prediction import predict  # here: it is made of this module's Config

    return min(
        candidates(kind, m, n, k, groups, num_sms), key=lambda config: predict(config, m, groups, num_sms).us
    )
