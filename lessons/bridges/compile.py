"""Compile the bridges' kernels for Hopper, without a GPU, and count what their machine code has.

    python lessons/bridges/compile.py [--build DIR]      writes lessons/data/bridges_code.json

Needs triton==3.6.0, nvidia-cutlass-dsl[cu13]==4.8.1 and nvcc. In DIR (default: a temporary folder) it
leaves the PTX and libbridge_cute.so, which measure.py can launch where CuTe DSL is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

# CuTe DSL reads these as it is imported: what to compile for, and which texts to keep.
DUMPED = tempfile.TemporaryDirectory()
os.environ.update(CUTE_DSL_ARCH="sm_90a", CUTE_DSL_KEEP="ptx,cubin", CUTE_DSL_DUMP_DIR=DUMPED.name)

import cute_kernel
import cutlass
import cutlass.cute as cute
import gluon_kernel
import triton
from cutlass.cute.runtime import make_fake_compact_tensor, make_fake_stream, make_fake_tensor
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

HERE = Path(__file__).resolve().parent
RECORD = HERE.parent / "data" / "bridges_code.json"
INSTRUCTIONS = ("QGMMA", "UTMALDG", "FFMA", "SYNCS", "BAR", "STL", "LDL")


def gluon(folder: Path, pinned: bool) -> Path:
    """The cubin of the Gluon kernel; its PTX beside it."""
    map_of = "tensordesc<{}[{}],{!r}>".format
    source = GluonASTSource(
        gluon_kernel.bridge_gluon,
        {
            "map_a": map_of("fp8e4nv", "256, 128", gluon_kernel.SWIZZLED.value),
            "map_b": map_of("fp8e4nv", "128, 128", gluon_kernel.SWIZZLED.value),
            "map_sfa": map_of("fp32", "256", gluon_kernel.PLAIN.value),
            "sfb": "*fp32",
            "d": "*bf16",
            **dict.fromkeys(("m", "n", "k", "sfa_stride"), "i32"),
            "pinned": "constexpr",
        },
        {"pinned": pinned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    path = folder / f"bridge_gluon{'' if pinned else '_unpinned'}.cubin"
    path.with_suffix(".ptx").write_text(made.asm["ptx"])
    path.write_bytes(made.asm["cubin"])
    return path


def cute_dsl(folder: Path, pinned: bool) -> Path:
    """The object file of the CuTe DSL kernel, which has its cubin and the code that launches it."""
    m, blocks, rows_b = cute.sym_int32(), cute.sym_int32(), cute.sym_int32()
    n, k = cute.sym_int32(divisibility=8), cute.sym_int32(divisibility=128)
    matrix = {"stride_order": (1, 0), "assumed_align": 16}
    made = cute.compile(
        cute_kernel.bridge_cute,
        make_fake_compact_tensor(cutlass.Float8E4M3FN, (m, k), **matrix),
        make_fake_compact_tensor(cutlass.Float8E4M3FN, (n, k), **matrix),
        make_fake_tensor(cutlass.Float32, (m, blocks), (1, cute.sym_int64(divisibility=4)), assumed_align=16),
        make_fake_compact_tensor(cutlass.Float32, (rows_b, blocks), stride_order=(1, 0), assumed_align=4),
        make_fake_compact_tensor(cutlass.BFloat16, (m, n), **matrix),
        pinned,
        make_fake_stream(),
    )
    name = f"bridge_cute{'' if pinned else '_unpinned'}"
    made.export_to_c(str(folder), name, function_prefix=name)
    (folder / f"{name}.ptx").write_text(made.__ptx__)
    (folder / f"{name}.cubin").write_bytes(made.__cubin__)
    return folder / f"{name}.cubin"


def cuda(folder: Path) -> Path:
    """The cubin of the rung itself."""
    path = folder / "s6_warp_specialized.cubin"
    kernels = HERE.parents[1] / "kernels"
    flags = ("-std=c++20", "-O3", "-arch=sm_90a", f"-I{kernels / 'include'}", "-cubin", "-o", path)
    subprocess.run(["nvcc", *flags, kernels / "stages" / "s6_warp_specialized.cu"], check=True)
    return path


def link(folder: Path) -> None:
    """libbridge_cute.so: the two object files and their C interface."""
    (runtime,) = Path(cutlass.__file__).parents[2].glob("cu13/lib/libcuda_dialect_runtime_static.a")
    objects = [folder / "bridge_cute.o", folder / "bridge_cute_unpinned.o"]
    subprocess.run(
        [
            *("nvcc", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static", f"-I{folder}"),
            *(HERE / "cute_launch.cu", *objects, runtime, "-o", folder / "libbridge_cute.so"),
        ],
        check=True,
    )


def counted(cubin: Path) -> dict[str, int]:
    """How often each of INSTRUCTIONS is in the code, and its registers at the start."""

    def said(option: str) -> str:
        command = [triton.knobs.nvidia.cuobjdump.path, option, cubin]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)", said("-sass"))
    registers = int(re.search(r"REG:(\d+)", said("-res-usage"))[1])
    return {
        "registers": registers,
        **{name: opcodes.count(name) for name in INSTRUCTIONS},
        "all": len(opcodes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--build", type=Path, help="where the PTX and the library are left")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.build or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        made = [
            cuda(folder),
            *(make(folder, pinned) for make in (gluon, cute_dsl) for pinned in (True, False)),
        ]
        rows = [{"impl": path.stem.removeprefix("bridge_"), **counted(path)} for path in made]
        link(folder)
    nvcc = re.search(
        r"V([\d.]+)", subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    )[1]
    meta = {
        "triton": triton.__version__,
        "cutlass_dsl": cutlass.__version__,
        "nvcc": nvcc,
        "target": "sm_90a",
    }
    RECORD.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
