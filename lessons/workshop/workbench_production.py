"""What lesson 11 has that is not a picture: production kernels of any configuration, changed, in parts."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder import build
from gemm_ladder.arguments import GroupedArgs, ceil_div
from gemm_ladder.measure.variants import replaced
from gemm_ladder.production import explain, launching
from gemm_ladder.production.config import Config
from gemm_ladder.ref import emulator, fp8
from gemm_ladder.ref.gemm import BF16
from workshop import workbench
from workshop.changes import Change

FOLDER = Path(launching.__file__).resolve().parent
INCLUDE = '#include "{}"\n'


def source(name: str) -> str:
    """A file of kernels/production."""
    return (FOLDER / name).read_text(encoding="utf-8")


def last_line(begin: str) -> str:
    """The last line of gemm.cuh that begins so, behind its spaces."""
    return [line for line in source("gemm.cuh").splitlines() if line.strip().startswith(begin)][-1]


def short(config: Config) -> str:
    """A configuration in a few words: its tiles, what is shared by how many, two blocks for each SM."""
    shared = "" if config.share == "nothing" else f", {config.share} by {config.cluster}"
    return explain.tile(config, " x ") + shared + (", two blocks an SM" if config.blocks_an_sm > 1 else "")


@dataclasses.dataclass(frozen=True)
class Changed(Config):
    """A configuration of another kernel text than kernels/production has; it is not checked."""

    kernel: str = ""

    def source(self) -> str:
        own = Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)})
        return own.source().replace(INCLUDE.format("start.cuh"), self.kernel)

    def check(self) -> Changed:
        return self


def changed(config: Config, *changes: tuple[str, str]) -> Changed:
    """The configuration with each (old, new) replaced in the kernel's files; ValueError where `old` is in
    none of them."""
    text = source("start.cuh")
    for name in (
        "gemm.cuh",
        "store.cuh",
        "geometry.cuh",
        "scheduler.cuh",
    ):  # each is included by those before it
        first, include, last = text.partition(INCLUDE.format(name))
        text = first + source(name) + last.replace(include, "")
    text = replaced(text.replace("#pragma once\n", ""), "kernels/production", changes)
    return Changed(**dataclasses.asdict(config), kernel=text)


def multiply(
    config: Config, of: workbench.Problem, device: str = workbench.DEVICE, num_sms: int = 0
) -> np.ndarray:
    """A configuration's D, BF16 [m, n] as a NumPy array, poisoned with NaN beforehand."""
    m, n, _ = of.shape
    a, sfa, b, sfb = (workbench.tensor(array, device) for array in of.arrays)
    d = torch.full((m, n), torch.nan, dtype=torch.bfloat16, device=device)
    launching.launch(config, (a, sfa), (b, sfb), d, num_sms=num_sms)
    return d.view(torch.int16).cpu().numpy().view(BF16)


# ----------------------------------------------------------------------------------------------- the schedule

TILE = np.dtype(
    [(name, np.int32) for name in ("block", "turn", "row", "column", "rows", "group", "tile_m", "tile_n")]
)

_WALK = """#include "start.cuh"

{config}

template <Config kC>
__device__ void write_down(const Part& part, int first_row, int& turn, int32_t* out, int most) {{
    Scheduler<kC> tiles(part.p, 0, part.first_cluster);
    for (Tile tile; tiles.next(tile); ++turn) {{
        if (threadIdx.x || turn >= most) continue;
        int32_t* mine = out + (static_cast<int>(blockIdx.x) * most + turn) * {fields};
        mine[0] = blockIdx.x, mine[1] = turn, mine[2] = first_row + tile.row, mine[3] = tile.column;
        mine[4] = tile.rows, mine[5] = tile.group, mine[6] = kC.tile_m, mine[7] = kC.tile_n;
    }}
}}

__global__ void walk(const __grid_constant__ Parts<kConfig> parts, int32_t* out, int most) {{
    int turn = 0;
    write_down<kConfig>(parts.part[0], 0, turn, out, most);
    if constexpr (kConfig.tail_m > 0)
        write_down<exchanged(kConfig)>(parts.part[1], static_cast<int>(parts.part[0].p.m), turn, out, most);
}}

struct WalkArgs {{ GroupedArgs p; int32_t* out; int64_t most; }};
extern "C" const char* gemm_ladder_launch(const WalkArgs* args) {{
    Parts<kConfig> parts{{}};
    LaunchConfig config{{.blocks = deal(args->p, parts) * kConfig.cluster, .threads = 32}};
    config.stream = args->p.stream;
    config.cluster = kConfig.cluster;
    return launch(walk, config, parts, args->out, static_cast<int>(args->most));
}}
"""


class _WalkArgs(ctypes.Structure):
    _fields_ = [
        ("p", GroupedArgs),
        ("out", ctypes.c_void_p),
        ("most", ctypes.c_int64),
    ]


def units(config: Config, m: int, groups: int = 1) -> int:
    """How many units of work there are at most."""
    return config.units(m) * (groups if config.kind == "masked" else 1)


def walk(
    config: Config,
    m: int,
    num_sms: int,
    layout: np.ndarray | None = None,
    groups: int = 1,
    device: str = workbench.DEVICE,
) -> np.ndarray:
    """Every tile that every block makes, as production/scheduler.cuh says when a kernel asks it: TILE, in the
    order of the turns; `layout` is int32, m_indices or masked_m."""
    parts = config.parts(m, num_sms)
    most = sum(ceil_div(units(one, rows, groups), config.at_once(num_sms)) for one, rows in parts)
    blocks = config.cluster * max(config.at_once(num_sms), units(config, m) if config.share == "K" else 1)
    out = np.full((blocks * most, len(TILE.names)), -1, np.int32)
    line = next(line for line in config.source().splitlines() if line.startswith("constexpr Config"))
    text = _WALK.format(config=line, fields=len(TILE.names))
    library = build.load(text, target="emulator" if device == "cpu" else "cuda", name="walk").lib
    args = _WalkArgs(GroupedArgs(m=m, n=config.n, k=config.k, num_sms=num_sms), None, most)
    args.p.groups, args.p.groups_a = groups, groups if config.kind == "masked" else 1
    if device == "cpu":
        args.out, args.p.layout = out.ctypes.data, None if layout is None else layout.ctypes.data
        error = emulator.launch(library, args)
    else:
        gpu_out, gpu_layout = (None if x is None else torch.from_numpy(x).to(device) for x in (out, layout))
        args.out, args.p.layout = gpu_out.data_ptr(), 0 if layout is None else gpu_layout.data_ptr()
        args.p.stream = torch.cuda.current_stream().cuda_stream
        library.gemm_ladder_launch.restype = ctypes.c_char_p
        error = library.gemm_ladder_launch(ctypes.byref(args))
        out = gpu_out.cpu().numpy()
    if error is not None:
        raise gl.GemmLadderError(error.decode() if isinstance(error, bytes) else str(error))
    tiles = out[out[:, 0] >= 0].view(TILE)[:, 0]
    return tiles[np.lexsort((tiles["block"], tiles["turn"]))]


# ---------------------------------------------------------------------------------------------- what is wrong


def symptoms(
    config: Config, of: workbench.Problem, right: np.ndarray, seeds: Iterable[int]
) -> list[str | None]:
    """What the emulator says of a configuration under each schedule; None where D is `right`, bit for bit."""

    def call(lhs: object, rhs: object, out: torch.Tensor) -> None:
        launching.launch(config, lhs, rhs, out)

    return workbench.symptoms(call, of, right, seeds)


PARTS = (2.0**24, 1, -(2.0**24), 1)


def parts_in_order(parts: tuple[float, ...] = PARTS) -> workbench.Problem:
    """60 x 72 x 512, to show in which order K's four parts are added: `parts` are those of every sum, and
    2^24 + 1 is 2^24 in FP32."""
    signs = np.tile(np.repeat(np.sign(parts), 128), (72, 1))
    a, b = (fp8.encode(x).view(fp8.E4M3) for x in (np.ones((60, 512)), signs))
    scales = np.tile(np.float32(np.abs(parts)) / 128, (60, 1))  # times 128 terms of 1
    return workbench.Problem(a, scales, b, np.ones((1, 4), np.float32))


def break_it(
    config: Config,
    of: workbench.Problem,
    *changes: tuple[str, str],
    right: np.ndarray | None = None,
    seeds: int = 8,
    guess: str = "",
) -> None:
    """Run a configuration, each (old, new) of its files replaced, under some schedules; print the symptoms.

    `right` is the D to compare with; None: the bits that a kernel which does not split K gives. `guess` names
    a guess of `exercises.guess_break`, to be printed beside them.
    """
    right = workbench.expected("s9_production", of) if right is None else right
    broken = changed(config, *changes)
    found = workbench.tried(symptoms, broken, of, right, range(seeds))
    workbench.show_symptoms(found, workbench.fault, Change(changed(config).kernel, broken.kernel), guess)
