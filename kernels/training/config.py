"""What is decided before a training kernel is compiled: its Config.

    config = candidates.choose(7168, 2112, (4096,), num_sms=132)
    config.compile("cuda")

config_1d1d.cuh has the same struct in C++, and candidates.py decides which configuration a call gets. m, n, k
and the scales' sizes are arguments of a launch, so there are few kernels, and a new shape seldom compiles
one.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Literal, cast

from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.errors import InputError

if TYPE_CHECKING:
    from gemm_ladder.build import Built, Job, Target

Share = Literal["nothing", "A", "B"]

MAX_SHARED_BYTES = 232_448  # that a thread block can have
WGMMA_M, CONSUMERS, BOX_N = 64, 2, 32
BOX_BYTES = WGMMA_M * BOX_N * 4
GROUPS = (1, 8, 64)  # the most groups of a launch, by kernel: their tensor maps are the kernel's parameters
# Registers a thread that accumulators may take, and those with B's scales: of 232 it needs the rest for
# addresses.
MAX_ACCUMULATORS, MAX_REGISTERS = 192, 208


@dataclasses.dataclass(frozen=True)
class Config:
    """struct Config of config_1d1d.cuh, field by field.

    Attributes:
        tile_m, tile_n: the tile of D that a thread block computes at a time: 128 or 256 rows, a multiple of
            32 columns. Two consumer warpgroups divide its rows.
        stages: stages of the ring of shared memory between TMA and the tensor cores.
        boxes: boxes of shared memory, of 64 rows and 32 columns, through which a consumer stores D. With as
            many as its tile has, the stores overlap the next tile; with fewer there is room for more stages.
        ahead: pairs of B's scales that a thread loads before it promotes. It loads the others meanwhile.
        share: "nothing"; "A": clusters of two compute tiles side by side and multicast A; "B": they compute
            tiles below each other and multicast B.
        band, across: rasterisation: clusters walk bands that are `band` units of work tall or, if `across`,
            wide, so that tiles that run at the same time share operands in L2.
        groups: the most groups of a launch; more take several launches.
    """

    tile_m: int
    tile_n: int
    stages: int
    boxes: int
    ahead: int = 0
    share: Share = "nothing"
    band: int = 8
    across: bool = False
    groups: int = 1

    @classmethod
    def of(cls, tile_m: int, tile_n: int, **fields: Any) -> Config:
        """A configuration in which what is not given follows from the tile: the boxes of a whole tile if
        that leaves three stages or more, else as many as do, and as many stages as fit."""
        config = cls(tile_m, tile_n, fields.get("stages", 3), **{"boxes": 1} | _without(fields, "stages"))
        if "boxes" not in fields:
            held = (dataclasses.replace(config, boxes=n) for n in range(config.boxes_of_tile, 1, -1))
            config = next((one for one in held if one.shared_bytes <= MAX_SHARED_BYTES), config)
        return config if "stages" in fields else config.deepest()

    def deepest(self) -> Config:
        """The same with as many stages as fit."""
        one = dataclasses.replace(self, stages=1)
        left = MAX_SHARED_BYTES - one.shared_bytes
        return dataclasses.replace(self, stages=1 + left // (self.stage_bytes + 16))

    def with_room_for(self, groups: int) -> Config:
        """The same for launches of so many groups, or of the most that a launch can have."""
        return dataclasses.replace(self, groups=next(n for n in GROUPS if n >= min(groups, GROUPS[-1])))

    @property
    def slices(self) -> int:
        """How many times a consumer's 64 rows (one WGMMA's) are repeated down a tile."""
        return self.tile_m // (WGMMA_M * CONSUMERS)

    @property
    def boxes_of_tile(self) -> int:
        """Boxes of D in a consumer's part of a tile."""
        return self.slices * ceil_div(self.tile_n, BOX_N)

    @property
    def cluster(self) -> int:
        """Thread blocks of a cluster."""
        return 1 if self.share == "nothing" else 2

    @property
    def down(self) -> int:
        """Tiles below each other in a unit of work, which share B."""
        return 2 if self.share == "B" else 1

    @property
    def right(self) -> int:
        """Tiles side by side in a unit of work, which share A."""
        return 2 if self.share == "A" else 1

    @property
    def accumulators(self) -> int:
        """Registers a thread needs for sums: a total for each slice, and one partial sum."""
        return (self.slices + 1) * self.tile_n // 2

    @property
    def pairs(self) -> int:
        """Pairs of neighbouring columns of which a thread has accumulators."""
        return self.tile_n // 8

    @property
    def registers(self) -> int:
        """Registers a thread needs for sums and for the scales that are loaded ahead."""
        return self.accumulators + 2 * self.ahead

    @property
    def stage_bytes(self) -> int:
        """Bytes of one stage: the tiles of A and B and their scales."""
        return align((self.tile_m + self.tile_n) * (SCALE_BLOCK + 4), 1024)

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory that a thread block asks for."""
        return CONSUMERS * self.boxes * BOX_BYTES + self.stages * (self.stage_bytes + 16)

    @property
    def name(self) -> str:
        """A name for people, in tables and of the library."""
        order = f"{'across' if self.across else 'down'}{self.band}"
        return (
            f"fp8_gemm_1d1d_{self.tile_m}x{self.tile_n}_a{self.ahead}_{self.share}_s{self.stages}_"
            f"b{self.boxes}_{order}_g{self.groups}"
        )

    @classmethod
    def parse(cls, name: str) -> Config:
        """The configuration of a `name`.

        Raises:
            InputError: it is the name of none.
        """
        pattern = (
            r"(?:fp8_gemm_1d1d_)?(\d+)x(\d+)_a(\d+)_(nothing|A|B)_s(\d+)_b(\d+)_(down|across)(\d+)"
            r"(?:_g(\d+))?"
        )
        if not (found := re.fullmatch(pattern, name)):
            raise InputError(f"{name!r} is no configuration; a name like {cls.of(128, 192).name} is needed")
        tile_m, tile_n, ahead, share, stages, boxes, across, band, groups = found.groups()
        return cls(
            tile_m=int(tile_m),
            tile_n=int(tile_n),
            stages=int(stages),
            boxes=int(boxes),
            ahead=int(ahead),
            share=cast(Share, share),
            band=int(band),
            across=across == "across",
            groups=int(groups or 1),
        ).check()

    def source(self) -> str:
        """The source text to compile."""
        fields = ", ".join(
            f".{field.name} = {_in_cpp(field.name, getattr(self, field.name))}"
            for field in dataclasses.fields(self)
        )
        return (
            f'#include "start_1d1d.cuh"\nconstexpr Config kConfig{{{fields}}};\n'
            'extern "C" const char* gemm_ladder_launch(const TrainingArgs* args) '
            "{ return start<kConfig>(*args); }\n"
        )

    def compile(self, target: Target) -> Built:
        """Compile the kernel, or find it in the cache.

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

        return build.Job.of(self.check().source(), target, self.name)

    def check(self) -> Config:
        """Return this configuration.

        Raises:
            InputError: config_1d1d.cuh would not compile for it.
        """
        for field, holds, needed in (
            ("tile_m", self.tile_m in (128, 256), "128 or 256"),
            ("tile_n", self.tile_n in range(BOX_N, 257, BOX_N), "a multiple of 32 up to 256"),
            ("stages", self.stages > 0, "1 or more"),
            ("boxes", self.boxes > 0, "1 or more"),
            ("ahead", self.ahead in range(self.pairs + 1), f"0 to {self.pairs}"),
            ("share", self.share in ("nothing", "A", "B"), "nothing, A or B"),
            ("band", self.band > 0, "1 or more"),
            ("groups", self.groups in range(1, 65), "1 to 64"),
        ):
            if not holds:
                raise InputError(f"{field} is {getattr(self, field)!r}; {needed} is needed")
        for field, most in (
            ("accumulators", MAX_ACCUMULATORS),
            ("registers", MAX_REGISTERS),
            ("shared_bytes", MAX_SHARED_BYTES),
        ):
            if getattr(self, field) > most:
                raise InputError(
                    f"{field} of {self.name} is {getattr(self, field)}; at most {most} is needed"
                )
        return self


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def _in_cpp(field: str, value: Any) -> str:
    return f"Share::k{value.capitalize()}" if field == "share" else str(value).lower()
