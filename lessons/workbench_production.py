"""What lesson 10 has that is not a picture: production kernels of any configuration, changed, in parts."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import torch
import workbench
from gemm_ladder import build, production
from gemm_ladder.config import Config
from gemm_ladder.production import GroupedArgs
from gemm_ladder.ref import emulator
from gemm_ladder.ref.gemm import BF16

FOLDER = Path(production.__file__).resolve().parent / "production"
INCLUDE = '#include "gemm.cuh"\n'


def source(name: str) -> str:
    """A file of kernels/production."""
    return (FOLDER / name).read_text(encoding="utf-8")


def last_line(begin: str) -> str:
    """The last line of gemm.cuh that begins so, behind its spaces."""
    return [line for line in source("gemm.cuh").splitlines() if line.strip().startswith(begin)][-1]


@dataclasses.dataclass(frozen=True)
class Changed(Config):
    """A configuration of another kernel text than gemm.cuh's."""

    kernel: str = ""

    def source(self) -> str:
        own = Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)})
        return own.source().replace(INCLUDE, self.kernel)


def changed(config: Config, *changes: tuple[str, str]) -> Changed:
    """The configuration with each (old, new) replaced in gemm.cuh; ValueError where `old` is not in it."""
    text = workbench.replaced(source("gemm.cuh"), "gemm.cuh", changes)
    return Changed(**vars(config), kernel=text.replace("#pragma once\n", "") + "\n")


def multiply(
    config: Config, of: workbench.Problem, device: str = workbench.DEVICE, num_sms: int = 0
) -> np.ndarray:
    """A configuration's D, BF16 [m, n] as a NumPy array, poisoned with NaN beforehand."""
    m, n, _ = of.shape
    a, sfa, b, sfb = (workbench.tensor(array, device) for array in of.arrays)
    d = torch.full((m, n), torch.nan, dtype=torch.bfloat16, device=device)
    production.launch(config, (a, sfa), (b, sfb), d, num_sms=num_sms)
    return d.view(torch.int16).cpu().numpy().view(BF16)


# ----------------------------------------------------------------------------------------------- the schedule

TILE = np.dtype([(name, np.int32) for name in ("block", "turn", "row", "column", "rows", "group")])

_WALK = """#include "scheduler.cuh"

{config}

__global__ void walk(const GroupedArgs p, int32_t* out, int most) {{
    Scheduler<kConfig> tiles(p);
    int turn = 0;
    for (Tile tile; tiles.next(tile); ++turn) {{
        if (threadIdx.x || turn >= most) continue;
        int32_t* mine = out + (static_cast<int>(blockIdx.x) * most + turn) * {fields};
        mine[0] = blockIdx.x, mine[1] = turn, mine[2] = tile.row, mine[3] = tile.column;
        mine[4] = tile.rows, mine[5] = tile.group;
    }}
}}

struct WalkArgs {{ GroupedArgs p; int32_t* out; int64_t clusters, most; }};
extern "C" const char* gemm_ladder_launch(const WalkArgs* args) {{
    LaunchConfig config{{.blocks = args->clusters * kConfig.cluster, .threads = 32}};
    config.stream = args->p.stream;
    config.cluster = kConfig.cluster;
    return launch(walk, config, args->p, args->out, static_cast<int>(args->most));
}}
"""


class _WalkArgs(ctypes.Structure):
    _fields_ = [
        ("p", GroupedArgs),
        ("out", ctypes.c_void_p),
        ("clusters", ctypes.c_int64),
        ("most", ctypes.c_int64),
    ]


def units(config: Config, m: int, groups: int = 1) -> int:
    """How many units of work Scheduler::units() counts."""
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
    clusters = min(units(config, m, groups), max(1, num_sms // config.cluster))
    if config.share == "K":
        clusters = units(config, m)
    most = -(-units(config, m, groups) // clusters)
    out = np.full((clusters * config.cluster * most, len(TILE.names)), -1, np.int32)
    line = next(line for line in config.source().splitlines() if line.startswith("constexpr Config"))
    text = _WALK.format(config=line, fields=len(TILE.names))
    library = build.load(text, target="emulator" if device == "cpu" else "cuda", name="walk").lib
    args = _WalkArgs(GroupedArgs(m=m, n=config.n, k=config.k, num_sms=num_sms), None, clusters, most)
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
        production.launch(config, lhs, rhs, out)

    return workbench.symptoms(call, of, right, seeds)


def break_it(
    config: Config,
    of: workbench.Problem,
    *changes: tuple[str, str],
    right: np.ndarray | None = None,
    seeds: int = 8,
) -> None:
    """Run a configuration, each (old, new) of gemm.cuh replaced, under some schedules; print the symptoms.

    `right` is the D to compare with; None: the bits that a kernel which does not split K gives.
    """
    right = workbench.expected("s7_production", of) if right is None else right
    workbench.show_symptoms(symptoms(changed(config, *changes), of, right, range(seeds)), workbench.fault)


def check_lines(
    config: Config, of: workbench.Problem, right: np.ndarray, *changes: tuple[str, str], seeds: int = 4
) -> None:
    """Put lines of your own into gemm.cuh, (its own, yours); print "Right", or what is wrong."""
    workbench.show_verdict(lambda: symptoms(changed(config, *changes), of, right, range(seeds)))
