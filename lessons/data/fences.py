"""What fences cost rung s4: the machine code of three variants, and on a Hopper GPU their times.

    python lessons/data/fences.py

writes fences.json beside it: {"schema": 1, "meta": ..., "code": {"nvcc", "sources", "variants": {name:
[[opcode, how often in a row], ...]}}, "rows": [...]}, meta and rows as in figures/data. Of the machine code
the instructions in SHOWN are kept, in their order. That part needs nvcc and cuobjdump, the times a Hopper
GPU; what cannot be had stays as it was recorded.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch
from gemm_ladder import build, measuring, sass
from gemm_ladder.rungs import Rung
from gemm_ladder.shapes import Shape

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import workbench  # noqa: E402

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
LAST_WAIT = "    ptx::barrier_cluster_wait();  // nobody leaves"
VARIANTS: dict[str, Rung] = {
    "as it is": workbench.changed(RUNG),
    "the last cluster arrive after the stores": workbench.changed(
        RUNG,
        (LAST_ARRIVE, "    //"),
        (LAST_WAIT, f"    __syncwarp();\n    ptx::barrier_cluster_arrive();\n{LAST_WAIT}"),
    ),
    "every arrival is a release.cluster": workbench.changed(
        RUNG, (KERNEL, RELEASING + KERNEL), ("ptx::mbarrier_arrive_cluster(", "arrive_release_cluster(")
    ),
}


def skeleton(variant: Rung) -> list[tuple[str, int]]:
    """The instructions in SHOWN as (opcode, how often in a row), in the order of the machine code."""
    (kernel,) = sass.disassemble(variant.build("cuda").path).values()
    opcodes = (one.opcode for one in kernel if one.opcode.startswith(SHOWN))
    return [(opcode, len(list(run))) for opcode, run in itertools.groupby(opcodes)]


def times(device: torch.device) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Time the variants, L2 dirty: meta and rows. RuntimeError where one fails or gives a wrong result."""
    timer, rows = measuring.KernelTimer(device), []
    for shape in SHAPES:
        problem = measuring.make_problem(shape, device)
        out, reference = problem.output(), problem.reference()
        operands = (problem.a, problem.sfa), (problem.b, problem.sfb), out
        calls = {name: lambda rung=rung, of=operands: rung(*of) for name, rung in VARIANTS.items()}
        timings, failures = measuring.measure(calls, dict.fromkeys(calls, CALLS), ("dirty",), timer)
        if failures:
            raise RuntimeError(str(failures))
        for (name, l2), timing in timings.items():
            out.fill_(torch.nan)
            calls[name]()
            errors = measuring.errors(out, reference)
            if not errors.right:
                raise RuntimeError(f"{name} at {shape}: relative error {errors.relative:.3g}")
            rows.append(measuring.row(name, shape, l2, timing, errors.relative))
    meta = measuring.machine(device, timer.flush_bytes)
    return {**meta, "protocol": f"{CALLS} calls a pass; otherwise: {meta['protocol']}"}, rows


def main() -> None:
    path = HERE / "fences.json"
    data = {"schema": 1, "meta": {}, "code": {}, "rows": []}
    if path.exists():
        data = json.loads(path.read_text())
    if sass.find_cuobjdump():
        variants = {name: skeleton(variant) for name, variant in VARIANTS.items()}
        about = {"nvcc": build.find_cuda().version, "sources": build.sources_digest()}
        data["code"] = {**about, "variants": variants}
    if workbench.HOPPER:
        data["meta"], data["rows"] = times(torch.device("cuda", 0))
    path.write_text(json.dumps(data) + "\n")
    for row in data["rows"]:
        print(f"{row['m']} x {row['n']} x {row['k']}, {row['impl']}: {row['us']} us")


if __name__ == "__main__":
    main()
