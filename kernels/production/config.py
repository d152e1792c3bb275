"""What is decided before a production kernel is compiled: its Config.

    config = choice.choose("dense", 4096, 7168, 2048)
    config.compile("cuda")

config.cuh is the same struct in C++, gemm.cuh the kernel, and choice.py decides which configuration a product
gets.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from gemm_ladder.arguments import (
    K_MULTIPLE,
    KINDS,
    LEAST_M_ALIGNMENT,
    M_ALIGNMENT,
    N_MULTIPLE,
    SCALE_BLOCK,
    Kind,
    align,
    ceil_div,
)
from gemm_ladder.errors import InputError

if TYPE_CHECKING:
    from gemm_ladder.build import Built, Job, SassPass, Target

Share = Literal["nothing", "A", "B", "K"]

SHARED_BYTES = (
    233_472  # shared memory of an SM; each of its thread blocks takes 1024 bytes more than it asks for
)
MAX_STAGES = 16
MANY_UNITS, STAYS_IN_L2 = 12, 24_000_000  # kManyUnits and kStaysInL2 of scheduler.cuh
MAX_RING = 176 * 1024  # most bytes that `Config.of` gives the ring of stages if a tile has 64 rows
WGMMA_M = LEAST_M_ALIGNMENT
# Registers for accumulators by the number of consumer warpgroups: a thread has 232 registers with two, 255
# with one, and needs the rest for addresses and scales.
MAX_ACCUMULATORS = {1: 224, 2: 192}
SPARSE_KINDS: tuple[Kind, ...] = ("masked", "psum")
INTERLEAVES = ("off", "compiler", "9/16", "full")


@dataclasses.dataclass(frozen=True)
class Config:
    """struct Config of production/config.cuh, field by field.

    Attributes:
        kind: "dense", "contiguous", "masked" or "psum".
        n, k: the sizes of B.
        tile_m, tile_n: the tile of D that a thread block computes at a time.
        consumers_m, consumers_n: how many consumer warpgroups a tile is divided among, below each other and
            side by side; one or two in all.
        stages: stages of the ring of shared memory between TMA and the tensor cores. A stage holds a K block:
            the tiles of A and B, and A's scales. B's scales lie beside the ring.
        cluster: thread blocks in a cluster. They share what `share` says.
        share: "nothing"; "A": the cluster's tiles lie side by side and A is multicast; "B": they lie below
            each other and B is multicast; "K": split-K, the cluster computes one tile, each block over a
            range of K.
        group_m, group_n: rasterisation: clusters walk bands that are group_m units of work tall, or, where
            there are more units than that below each other and group_n is not 0, group_n units wide, so that
            tiles that run at the same time share operands in L2. Where group_n is less than group_m, bands
            are group_n wide only if there are also `MANY_UNITS` side by side, and A has at most `STAYS_IN_L2`
            bytes.
        unroll: K blocks in the body of the main loop.
        blocks_an_sm: thread blocks on an SM at a time, one or two.
        stream_b: load B with the L2 policy evict-first, because it is read once.
        prefetch: how many K blocks of its first tile of B a thread block prefetches into L2 at its start, in
            the dense layout while the kernel ahead may still be running.
        tail_m, tail_n: the tile for the rows that are left over after whole waves of the first tile; 0: all
            rows have the first tile.
        alignment: the rows of a contiguous or psum layout's groups begin at multiples of it.
        sparse: in the masked and the psum layout, pass over groups without rows several at a time. Where all
            groups have rows, it costs nothing to 1 %, and 5 % where K is 256.
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
    alignment: int = M_ALIGNMENT
    sparse: bool = False
    interleave: str = "compiler"

    @classmethod
    def of(
        cls, kind: Kind, n: int, k: int, tile_m: int, tile_n: int, stages: int | None = None, **fields: Any
    ) -> Config:
        """A configuration in which what is not given follows from the tile: how many consumers, in which
        order tiles are computed, how far the main loop is unrolled, and how many stages there are: as many
        as fit, but with 64-row tiles no more than MAX_RING bytes of them."""
        fields.setdefault("consumers_m", min(2, tile_m // WGMMA_M))
        wide = fields["consumers_m"] == 1 and tile_n % 32 == 0 and tile_n > MAX_ACCUMULATORS[1] * 2 // 3
        fields.setdefault("consumers_n", 2 if wide else 1)
        if fields.get("share", "nothing") == "nothing" and not {"group_m", "group_n"} & fields.keys():
            fields["group_m"], fields["group_n"] = _order(kind, tile_m, tile_n)
        config = cls(kind, n, k, tile_m, tile_n, stages=1, **fields)
        unroll = config.unroll
        if "unroll" not in fields:
            # A longer loop body costs registers; it pays where a consumer has two slices of the tile.
            slices = max(one.slices for one in (config, config.tail) if one)
            unroll = 8 if slices > 1 else 1 if config.accumulators > 160 else 4
        if stages is None:
            # With 64-row tiles a deeper ring is slower: L2 has to hold what was requested until it is loaded.
            most = MAX_RING // config.stage_bytes if config.tile_m == WGMMA_M else MAX_STAGES
            room, stage = config.most_shared_bytes - config.output_bytes, config.stage_bytes
            depths = range(min(most, MAX_STAGES, room // stage), 1, -1)
            stages = next((n for n in depths if n * stage + config._scales_bytes(n) <= room), 1)
        return dataclasses.replace(config, unroll=unroll, stages=stages)

    @functools.cached_property
    def tail(self) -> Config | None:
        """The configuration for the rows that are left over after whole waves; None if it is the same."""
        if not self.tail_m and not self.tail_n:
            return None
        return dataclasses.replace(self, tile_m=self.tail_m, tile_n=self.tail_n, tail_m=0, tail_n=0)

    def parts(self, rows: int, num_sms: int) -> list[tuple[Config, int]]:
        """How many rows of A each tile size gets: [(configuration, rows), ...], as deal() of start.cuh does.

        The main tile gets as many whole rows of units as fit into whole waves, or all rows if that is none;
        the tail tile gets the rest.
        """
        tail, at_once = self.tail, self.at_once(num_sms)
        units_in_waves = self.units(rows) // at_once * at_once
        first = min(units_in_waves // self.units(1) * self.tile_m * self.down, rows) or rows
        return [(self, rows)] if tail is None or first == rows else [(self, first), (tail, rows - first)]

    def at_once(self, num_sms: int) -> int:
        """How many clusters run at the same time on this many SMs."""
        return max(1, num_sms * self.blocks_an_sm // self.cluster)

    @property
    def k_blocks(self) -> int:
        """K blocks of a product; where k is not a multiple of 128 the last one is filled up with zeros."""
        return ceil_div(self.k, SCALE_BLOCK)

    @property
    def consumers(self) -> int:
        """How many consumer warpgroups there are."""
        return self.consumers_m * self.consumers_n

    @property
    def slices(self) -> int:
        """Slices: how many times a consumer's 64 rows (one WGMMA's) are repeated down a tile."""
        return self.tile_m // (WGMMA_M * self.consumers_m)

    @property
    def consumer_n(self) -> int:
        """Columns of a tile that one consumer computes."""
        return self.tile_n // self.consumers_n

    @property
    def accumulators(self) -> int:
        """Registers a thread needs for sums: a total for each slice, and one partial sum."""
        return (self.slices + 1) * self.consumer_n // 2

    def units(self, rows: int) -> int:
        """Units of work, one for a cluster at a time, for this many rows of A: Scheduler::units(). In the
        masked layout the rows are one group's."""
        return ceil_div(rows, self.tile_m * self.down) * ceil_div(self.n, self.tile_n * self.right)

    @property
    def down(self) -> int:
        """Tiles below each other in a unit of work; they share B: Scheduler::kDown."""
        return self.cluster if self.share == "B" else 1

    @property
    def right(self) -> int:
        """Tiles side by side in a unit of work; they share A: Scheduler::kRight."""
        return self.cluster if self.share == "A" else 1

    @property
    def scales_b(self) -> int:
        """How many of B's scales a tile may need in one K block."""
        aligned = math.gcd(self.tile_n, SCALE_BLOCK)
        return (SCALE_BLOCK - aligned + self.tile_n - 1) // SCALE_BLOCK + 1

    @property
    def stage_bytes(self) -> int:
        """Bytes of one stage: A, B, A's scales, two mbarriers."""
        own = (self.tile_m + self.tile_n) * SCALE_BLOCK + self.tile_m * 4 + 32
        return max(align(own, 1024), self.tail.stage_bytes if self.tail else 0)

    @property
    def output_bytes(self) -> int:
        """Bytes of shared memory for a tile's results: BF16 for the TMA store; with split-K, FP32 partial
        sums from the cluster's other thread blocks."""
        if self.share == "K":
            pieces = self.slices * self.consumer_n // 8  # a piece is 16 bytes of each of 128 threads
            return self.consumers * align(pieces, self.cluster) * 2048
        own = self.consumers * align(self.slices * WGMMA_M * self.consumer_n * 2, 1024)
        return max(own, self.tail.output_bytes if self.tail else 0)

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory that a thread block asks for."""
        return self.output_bytes + self.stages * self.stage_bytes + self._scales_bytes(self.stages)

    def _scales_bytes(self, stages: int) -> int:
        """Bytes of the buffers for B's scales: one for each tile that can have K blocks in the ring, and one
        more. A buffer holds a tile's scales for all K blocks: SharedMemory in geometry.cuh."""
        splits = self.cluster if self.share == "K" else 1
        row = align(ceil_div(self.k_blocks, splits) + 3, 4)
        box = min(row, 256)
        tiles = 1 + ceil_div(stages, max(1, self.k_blocks // splits))
        rows = max(one.scales_b for one in (self, self.tail) if one)
        return tiles * rows * align(ceil_div(row, box) * box * 4, 128)

    @property
    def most_shared_bytes(self) -> int:
        """Bytes of dynamic shared memory that a thread block can have."""
        return SHARED_BYTES // max(1, self.blocks_an_sm) - 1024

    @property
    def name(self) -> str:
        """A name for people, in tables and of the library. Two configurations may have the same name; they
        then differ in details only."""
        cluster = "" if self.share == "nothing" else f"_{self.share}{self.cluster}"
        twice = "_2" if self.blocks_an_sm > 1 else ""
        tail = f"_{self.tail_m}x{self.tail_n}" if self.tail else ""
        aligned = f"_{self.alignment}" if self.kind == "psum" or self.alignment != M_ALIGNMENT else ""
        sparse = "_sparse" if self.sparse else ""
        tile = f"{self.tile_m}x{self.tile_n}{tail}"
        return f"fp8_gemm_{self.kind}{aligned}_{self.n}x{self.k}_{tile}{cluster}{twice}{sparse}"

    def source(self) -> str:
        """The source text to compile."""
        return source([self])

    def compile(self, target: Target) -> Built:
        """Compile the kernel, or find it in the cache.

        For a GPU its FFMAs are rewritten as `interleave` says, or left as the compiler made them if
        `gemm_ladder.sass.ffma` does not know this compiler's code: Built.rewritten says which.

        Raises:
            InputError: as `check`.
            gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
        """
        from gemm_ladder import build  # here: to choose a configuration needs no compiler

        return build.make(self.job(target))

    def job(self, target: Target) -> Job:
        """What compile() builds or finds.

        Raises:
            InputError: as `check`.
            gemm_ladder.build.ToolchainError: there is no compiler.
        """
        from gemm_ladder import build

        text = self.check().source()
        sass_pass = interleaving(self.interleave) if target == "cuda" else None
        return build.Job.of(text, target, self.name, sass_pass=sass_pass)

    @property
    def in_cpp(self) -> str:
        """A Config of config.cuh with these fields, as an expression; without `sparse` if that is not set, so
        that sources from before that field was there can be compiled to compare them
        (`measure.carry_over`)."""
        omitted = {"interleave"} if self.sparse else {"interleave", "sparse"}
        fields = [field.name for field in dataclasses.fields(self) if field.name not in omitted]
        return f"Config{{{', '.join(f'.{name} = {_in_cpp(name, getattr(self, name))}' for name in fields)}}}"

    def check(self) -> Config:
        """Return this configuration.

        Raises:
            InputError: gemm.cuh would not compile for it, or would compute something wrong.
        """
        for rule in _RULES:
            if not rule.holds(self):
                raise InputError(f"{rule.field} is {getattr(self, rule.field)!r}; it {rule.needed}")
        return self


def _order(kind: Kind, tile_m: int, tile_n: int) -> tuple[int, int]:
    """group_m and group_n where nothing is shared, as 1744 orders were measured (NOTES.md, 2026-11-29)."""
    if kind == "dense":
        return 8, 8 if tile_m > 2 * WGMMA_M else 2
    if kind == "contiguous":
        # Tiles below each other often have different experts, so their B is different, too.
        return (8, 12) if tile_m > tile_n else (4 if tile_m > WGMMA_M else 8, 0)
    return 8, 0


class Rule(NamedTuple):
    """A condition on one field of a configuration; `needed` says it in words, after "it"."""

    field: str
    holds: Callable[[Config], bool]
    needed: str


def _positive(field: str) -> Rule:
    return Rule(field, lambda c: getattr(c, field) > 0, "must be positive")


# The rules that geometry.cuh and gemm.cuh assert, and those that they rely on, in the order in which they are
# checked.
_RULES = (
    Rule("kind", lambda c: c.kind in KINDS, f"must be one of {', '.join(KINDS)}"),
    Rule("share", lambda c: c.share in get_args(Share), f"must be one of {', '.join(get_args(Share))}"),
    *map(
        _positive,
        (
            *("n", "k", "tile_m", "tile_n", "consumers_m", "consumers_n", "stages", "cluster"),
            *("group_m", "unroll", "alignment"),
        ),
    ),
    Rule("group_n", lambda c: c.group_n >= 0, "must not be negative"),
    Rule(
        "n",
        lambda c: c.n % N_MULTIPLE == 0,
        "must be a multiple of 8, so that a row of D is a multiple of 16 bytes",
    ),
    Rule(
        "k",
        lambda c: c.k % K_MULTIPLE == 0,
        "must be a multiple of 16, so that rows are a multiple of 16 bytes",
    ),
    Rule(
        "alignment",
        lambda c: c.kind != "contiguous" or c.alignment % (WGMMA_M * c.consumers_m) == 0,
        "must be a multiple of 64 * consumers_m, as the rows of a slice have one expert",
    ),
    Rule(
        "alignment",
        lambda c: c.kind != "psum" or c.alignment % c.tile_m == 0,
        "must be a multiple of tile_m, so that a tile holds rows of one group",
    ),
    Rule("consumers", lambda c: c.consumers in (1, 2), "must be 1 or 2 (consumers_m * consumers_n)"),
    Rule(
        "tile_m",
        lambda c: c.tile_m % (WGMMA_M * c.consumers_m) == 0,
        "must be a multiple of 64 * consumers_m",
    ),
    Rule("tile_m", lambda c: c.tile_m <= 256, "must be at most 256, the largest box that TMA loads"),
    Rule("tile_n", lambda c: c.tile_n % (16 * c.consumers_n) == 0, "must be a multiple of 16 * consumers_n"),
    Rule("tile_n", lambda c: c.tile_n <= 256, "must be at most 256, the largest box that TMA loads"),
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
        "must be a multiple of 8 * cluster where A is shared, so that each block loads whole swizzle atoms",
    ),
    Rule(
        "tile_n",
        lambda c: c.share != "B" or c.tile_n % (8 * c.cluster) == 0,
        "must be a multiple of 8 * cluster where B is shared, so that each block loads whole swizzle atoms",
    ),
    Rule(
        "share",
        lambda c: c.share != "B" or c.kind != "contiguous",
        "must not be B in the contiguous layout, as tiles below each other may have different experts",
    ),
    Rule(
        "tile_m",
        lambda c: c.kind not in ("contiguous", "psum") or c.slices <= 2,
        "must be at most 128 * consumers_m in the contiguous and psum layouts: a consumer multiplies none, "
        "one or all of its slices",
    ),
    Rule("share", lambda c: c.share != "K" or c.kind == "dense", "must not be K in a grouped layout"),
    Rule(
        "sparse",
        lambda c: not c.sparse or c.kind in SPARSE_KINDS,
        f"must be False in other layouts than {' and '.join(SPARSE_KINDS)}",
    ),
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


ENTRY = "gemm_ladder_launch"  # a library's function that launches its kernel


def source(configs: Sequence[Config]) -> str:
    """The source text of a library with a kernel for each configuration. Its functions are called ENTRY, and
    from the second one on ENTRY_1, ENTRY_2, ..."""
    lines = ['#include "start.cuh"']
    for number, config in enumerate(configs):
        suffix = f"_{number}" if number else ""
        lines.append(f"constexpr Config kConfig{suffix}{config.in_cpp.removeprefix('Config')};")
        lines.append(
            f'extern "C" const char* {ENTRY}{suffix}(const GroupedArgs* args) '
            f"{{ return start<kConfig{suffix}>(*args); }}"
        )
    return "\n".join(lines) + "\n"


def _in_cpp(field: str, value: Any) -> str:
    return (
        f"{field.capitalize()}::k{value.capitalize()}" if field in ("kind", "share") else str(value).lower()
    )


def interleaving(mode: str) -> SassPass | None:
    """The pass of `gemm_ladder.sass.ffma` for a mode of INTERLEAVES; None if the compiler's code stays as it
    is. The pass may refuse: another nvcc's code may be unknown to it, and no call depends on it."""
    if mode == "compiler":
        return None
    from gemm_ladder.sass import ffma

    strict = ffma.sass_pass(mode)
    return dataclasses.replace(strict, id=f"{strict.id}, where it can", refusals=(ffma.UnknownCodeError,))


def fits(config: Config) -> bool:
    """Whether `check` accepts it."""
    return all(rule.holds(config) for rule in _RULES)
