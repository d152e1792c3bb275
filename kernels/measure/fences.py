"""python -m gemm_ladder fences: what fences cost rung s5.

Three variants of the rung are compared: their machine code, which needs nvcc and cuobjdump, and their times,
which need a Hopper GPU. Both are written to figures/data/fences.json. Without cuobjdump, or without a GPU,
that half stays as it was recorded. Besides meta and rows the file has

    "code": {"nvcc", "sources", "variants": {name: [[opcode, how often in a row], ...]}}

with the instructions in SHOWN, in the order of the machine code.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

import torch
from gemm_ladder import build
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures.rows import MachineMeta, TimedRow
from gemm_ladder.measure import problems, records, session, timing
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.measure.variants import ChangedRung, changed
from gemm_ladder.rungs import Rung
from gemm_ladder.sass import disassembly

RUNG = "s5_tma_multicast"
SHAPES = (Shape(4096, 32768, 512), Shape(4096, 7168, 2048), Shape(4096, 7168, 16384))
CALLS = 15
SHOWN = ("QGMMA", "SYNCS.ARRIVE.TRANS64.RED", "STG", "MEMBAR.ALL.GPU", "UCGABAR")  # begins of opcodes

KERNEL = "__global__ void __launch_bounds__"
RELEASING = """__device__ __forceinline__ void arrive_release_cluster(uint32_t address) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" : : "r"(address) : "memory");
}

"""


def arrive_after_stores(rung: ChangedRung) -> ChangedRung:
    """The rung with its last arrival at the cluster barrier, and the __syncwarp() before it, moved to just
    before the wait of that barrier.

    Raises:
        ValueError: the rung does not have these three in this order.
    """
    lines = rung.text.splitlines(keepends=True)
    sync, arrive, wait = (
        max((at for at, line in enumerate(lines) if line.strip().startswith(call)), default=-1)
        for call in ("__syncwarp();", "ptx::barrier_cluster_arrive();", "ptx::barrier_cluster_wait();")
    )
    if not 0 <= sync < arrive < wait:
        raise ValueError(f"{rung.name} does not end with __syncwarp, cluster arrive, stores, cluster wait")
    moved = lines[:sync] + lines[arrive + 1 : wait] + lines[sync : arrive + 1] + lines[wait:]
    return dataclasses.replace(rung, text="".join(moved))


VARIANTS: dict[str, Rung] = {
    "as it is": changed(RUNG),
    "the last cluster arrive after the stores": arrive_after_stores(changed(RUNG)),
    "every arrival is a release.cluster": changed(
        RUNG, (KERNEL, RELEASING + KERNEL), ("ptx::mbarrier_arrive_cluster(", "arrive_release_cluster(")
    ),
}


def skeleton(variant: Rung) -> list[tuple[str, int]]:
    """The instructions in SHOWN as (opcode, how often in a row), in the order of the machine code."""
    (kernel,) = disassembly.disassemble(variant.build("cuda").path).values()
    opcodes = (one.opcode for one in kernel if one.opcode.startswith(SHOWN))
    return [(opcode, len(list(run))) for opcode, run in itertools.groupby(opcodes)]


def times(device: torch.device) -> tuple[MachineMeta, list[TimedRow]]:
    """Time the variants, L2 dirty: meta and rows. Raises RuntimeError if one fails or its result is wrong."""
    timer = timing.KernelTimer(device)
    rows: list[TimedRow] = []
    for shape in SHAPES:
        problem = problems.make_problem(shape, device)
        out, reference = problem.output(), problem.reference()
        operands = (problem.a, problem.sfa), (problem.b, problem.sfb), out
        calls = {name: lambda rung=rung, of=operands: rung(*of) for name, rung in VARIANTS.items()}
        timings, failures = timing.measure(calls, dict.fromkeys(calls, CALLS), ("dirty",), timer)
        if failures:
            raise RuntimeError(str(failures))
        for (name, l2), found in timings.items():
            out.fill_(torch.nan)
            calls[name]()
            errors = problems.errors(out, reference)
            if not errors.right:
                raise RuntimeError(f"{name} at {shape}: relative error {errors.relative:.3g}")
            rows.append(records.row(name, shape, l2, found, errors.relative))
    meta = records.machine(device, timer.flush_bytes)
    return {**meta, "protocol": f"{CALLS} calls per pass; otherwise: {meta['protocol']}"}, rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fences`. Returns 0.

    Raises:
        GemmLadderError: this is not a checkout.
    """
    argparse.ArgumentParser(
        prog="python -m gemm_ladder fences",
        description="Renew figures/data/fences.json: what fences cost rung s5, in machine code and in time.",
    ).parse_args(argv)
    checkout = records.checkout_root()
    if checkout is None:
        raise GemmLadderError("this is an installed package; a checkout, whose data it renews, is needed")
    path = checkout / "figures" / "data" / "fences.json"
    data: dict[str, Any] = {"schema": 1, "meta": {}, "code": {}, "rows": []}
    if path.exists():
        data = json.loads(path.read_text())
    if disassembly.find_cuobjdump():
        variants = {name: skeleton(variant) for name, variant in VARIANTS.items()}
        about = {"nvcc": build.find_cuda().version, "sources": build.sources_digest()}
        data["code"] = {**about, "variants": variants}
    device, _ = session.find_gpu()
    if device:
        data["meta"], data["rows"] = times(device)
    path.write_text(json.dumps(data) + "\n")
    for row in data["rows"]:
        print(f"{row['m']} x {row['n']} x {row['k']}, {row['impl']}: {row['us']} us")
    return 0
