"""On a Hopper GPU: are the bridges' kernels right, have they the rung's bits, and how fast are they?

    python lessons/bridges/measure.py --cute DIR/libbridge_cute.so [--json FILE]

compile.py makes the library. Triton comes with torch; CuTe DSL is not needed here. Every kernel is compared
with the float64 reference and, bit for bit, with the rung s6_warp_specialized. Then all are timed in one
process, as `python -m gemm_ladder compare` does it. The rung without its cluster is timed too, as Gluon has
no cluster.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import gluon_kernel
import numpy as np
import torch
import triton
from gemm_ladder.measure import timing
from gemm_ladder.measure.problems import Problem, describe, errors, make_problem
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.rungs import Rung, rungs
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

RECORD = Path(__file__).resolve().parent.parent / "data" / "bridges.json"
RUNG = "s6_warp_specialized"
# Edges: tiles cut in m and n, a band that is not full, fewer K blocks than stages, half a pair of tiles.
RAGGED = (Shape(5, 8, 128), Shape(300, 392, 384), Shape(2500, 136, 1152), Shape(516, 1288, 640))
TIMED = (Shape(4096, 7168, 16384), Shape(4096, 7168, 2048), Shape(4096, 4096, 7168))
Call = Callable[[], object]


class WithoutCluster(Rung):
    """The rung with clusters of one CTA: each loads all of A itself."""

    @property
    def path(self) -> Path:
        path = Path(tempfile.gettempdir()) / f"{self.name}.cu"
        text = rungs[RUNG].source
        one = text.replace("constexpr int kCluster = 2;", "constexpr int kCluster = 1;")
        assert one != text, "the line that sets the cluster's size has changed"
        path.write_text(one.replace(f" {RUNG}(", f" {self.name}(").replace(f"{RUNG},", f"{self.name},"))
        return path


def calls(problem: Problem, library: ctypes.CDLL) -> dict[str, tuple[Call, torch.Tensor]]:
    """By implementation: what launches its kernel, and the tensor that the kernel writes."""
    made = {}
    for rung in (rungs[RUNG], WithoutCluster("without_cluster", "")):
        out = problem.output()
        made[rung.name] = (
            (lambda rung=rung, out=out: rung((problem.a, problem.sfa), (problem.b, problem.sfb), out)),
            out,
        )
    for pinned in (True, False):
        suffix = "" if pinned else "_unpinned"
        made[f"gluon{suffix}"] = gluon(problem, pinned)
        made[f"cute{suffix}"] = cute(problem, getattr(library, f"launch_bridge_cute{suffix}"))
    return made


def gluon(problem: Problem, pinned: bool) -> tuple[Call, torch.Tensor]:
    (m, n, k), out = problem.shape, problem.output()
    stride, tile = problem.sfa.stride(1), gluon_kernel.TILE_M.value
    # From one K block's scales of A to the next one's there may be padding: as one row, with that in it.
    scales = problem.sfa.as_strided((stride * (k // 128 - 1) + m,), (1,))
    swizzled, plain = gluon_kernel.SWIZZLED.value, gluon_kernel.PLAIN.value
    map_a = TensorDescriptor.from_tensor(problem.a, [tile, 128], swizzled)
    map_b = TensorDescriptor.from_tensor(problem.b, [128, 128], swizzled)
    map_sfa = TensorDescriptor.from_tensor(scales, [tile], plain)
    grid = (triton.cdiv(m, tile) * triton.cdiv(n, 128),)

    def call() -> None:
        gluon_kernel.bridge_gluon[grid](
            map_a, map_b, map_sfa, problem.sfb, out, m, n, k, stride, pinned, num_warps=4
        )

    return call, out


def cute(problem: Problem, launch: Callable[..., int]) -> tuple[Call, torch.Tensor]:
    (m, n, k), out = problem.shape, problem.output()
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (problem.a, problem.b, problem.sfa, problem.sfb, out)]

    def call() -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if code := launch(*pointers, m, n, k, problem.sfa.stride(1), stream):
            raise RuntimeError(f"CUDA's error {code}")

    return call, out


def checked(
    shape: Shape, library: ctypes.CDLL, only: Sequence[str]
) -> tuple[dict[str, Call], dict[str, dict]]:
    """The calls whose result is right, and of every call what is known of its result."""
    problem = make_problem(shape, "cuda")
    made = {name: one for name, one in calls(problem, library).items() if name in (RUNG, *only) or not only}
    right, known = {}, {}
    reference = problem.reference()
    for name, (call, out) in made.items():
        call()
        torch.cuda.synchronize()
        error = errors(out, reference)
        same = torch.equal(out.view(torch.int16), made[RUNG][1].view(torch.int16))
        known[name] = {"rel_err": error.relative, "right": error.right, "same_bits": same}
        print(f"{'x'.join(map(str, shape)):>16} {name:20} {'right' if error.right else 'WRONG'}, ", end="")
        print(f"{describe(error).partition(';')[0]}; bits {'as' if same else 'not'} the rung's", flush=True)
        if error.right:
            right[name] = call
    return right, known


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cute", type=Path, required=True, help="libbridge_cute.so, made by compile.py")
    parser.add_argument("--only", nargs="*", default=[], help="of the kernels these alone, beside the rung")
    parser.add_argument("--json", type=Path, default=RECORD, help="where the results go")
    arguments = parser.parse_args()
    library = ctypes.CDLL(str(arguments.cute.resolve()))
    ragged = [checked(shape, library, arguments.only)[1] for shape in RAGGED]
    rows, timer = [], timing.KernelTimer(torch.device("cuda"))
    for shape in TIMED:
        right, known = checked(shape, library, arguments.only)
        counts = {
            name: timing.calls_for(timing.seconds_of(call, timer.device)) for name, call in right.items()
        }
        times, failures = timing.measure(right, counts, timing.L2_STATES, timer)
        print(*failures.items(), sep="\n")
        for (name, l2), time in times.items():
            tflops = 2 * np.prod([float(size) for size in shape]) / time.us / 1e6
            row = dict(zip("mnk", shape, strict=True), impl=name, l2=l2, **time._asdict(), tflops=tflops)
            rows.append({**row, **known[name]})
            print(f"{'x'.join(map(str, shape)):>16} {name:20} {l2}: {time.us:8.1f} us, {tflops:6.0f} TFLOPS")
    meta = {
        "gpu": torch.cuda.get_device_name(),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "ragged": {name: all(known[name]["right"] for known in ragged) for name in ragged[0]},
        "ragged_same_bits": {name: all(known[name]["same_bits"] for known in ragged) for name in ragged[0]},
    }
    arguments.json.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n")
    return 0 if all(meta["ragged"].values()) and all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
