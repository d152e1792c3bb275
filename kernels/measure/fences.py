"""python -m gemm_ladder fences: what fences cost rung s4.

The machine code of three variants of the rung is read, and on a Hopper GPU their times are measured. In a
checkout that renews figures/data/fences.json: {"schema": 1, "meta": ..., "code": {"nvcc", "sources",
"variants": {name: [[opcode, how often in a row], ...]}}, "rows": [...]}, meta and rows as in the other files.
Of the machine code the instructions in SHOWN are kept, in their order. Reading it needs nvcc and cuobjdump;
what cannot be had stays as it was recorded.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence

import torch
from gemm_ladder import build
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.measure import problems, records, session, timing
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.measure.variants import changed
from gemm_ladder.rungs import Rung
from gemm_ladder.sass import disassembly

RUNG = "s4_tma_multicast"
SHAPES = (Shape(4096, 32768, 512), Shape(4096, 7168, 2048), Shape(4096, 7168, 16384))
CALLS = 15
SHOWN = ("QGMMA", "SYNCS.ARRIVE.TRANS64.RED", "STG", "MEMBAR.ALL.GPU", "UCGABAR")  # opcodes begin so

KERNEL = "__global__ void __launch_bounds__"
RELEASING = """__device__ __forceinline__ void arrive_release_cluster(uint32_t address) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" : : "r"(address) : "memory");
}

"""
LAST_ARRIVE = "    __syncwarp();\n    ptx::barrier_cluster_arrive();  // before the stores"
LAST_WAIT = "    ptx::barrier_cluster_wait();  // no CTA exits"
VARIANTS: dict[str, Rung] = {
    "as it is": changed(RUNG),
    "the last cluster arrive after the stores": changed(
        RUNG,
        (LAST_ARRIVE, "    //"),
        (LAST_WAIT, f"    __syncwarp();\n    ptx::barrier_cluster_arrive();\n{LAST_WAIT}"),
    ),
    "every arrival is a release.cluster": changed(
        RUNG, (KERNEL, RELEASING + KERNEL), ("ptx::mbarrier_arrive_cluster(", "arrive_release_cluster(")
    ),
}


def skeleton(variant: Rung) -> list[tuple[str, int]]:
    """The instructions in SHOWN as (opcode, how often in a row), in the order of the machine code."""
    (kernel,) = disassembly.disassemble(variant.build("cuda").path).values()
    opcodes = (one.opcode for one in kernel if one.opcode.startswith(SHOWN))
    return [(opcode, len(list(run))) for opcode, run in itertools.groupby(opcodes)]


def times(device: torch.device) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Time the variants, L2 dirty: meta and rows. RuntimeError where one fails or gives a wrong result."""
    timer, rows = timing.KernelTimer(device), []
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
    return {**meta, "protocol": f"{CALLS} calls a pass; otherwise: {meta['protocol']}"}, rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fences`. Returns 0.

    Raises:
        GemmLadderError: this is not a checkout.
    """
    argparse.ArgumentParser(
        prog="python -m gemm_ladder fences",
        description="Renew figures/data/fences.json: what fences cost rung s4, in machine code and in time.",
    ).parse_args(argv)
    checkout = records.checkout_root()
    if checkout is None:
        raise GemmLadderError("this is an installed package; a checkout, whose data it renews, is needed")
    path = checkout / "figures" / "data" / "fences.json"
    data = {"schema": 1, "meta": {}, "code": {}, "rows": []}
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
