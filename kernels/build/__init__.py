"""From a kernel's source text to a loaded library, and the machine that this needs.

What belongs here: what decides a library's bytes (`job`), making it in a process of its own (`worker`), the
folder that keeps it (`cache`, `folders`), building before a call needs it (`background`, `cpus`), finding the
compilers (`toolchain`), saying what a machine lacks (`doctor`), and the digest by which a measurement names
the kernels' sources (`digest`). What does not: what a kernel computes, how it is chosen or launched, and
reading its machine code (`gemm_ladder.sass`).

    from gemm_ladder import build
    built = build.load(folder / "s3_wgmma.cu", target="emulator")
    built.lib.gemm_ladder_launch(...)

Importing this needs neither torch nor a GPU nor a compiler.
"""

from gemm_ladder.build.digest import sources_digest
from gemm_ladder.build.job import Job, SassPass, Target
from gemm_ladder.build.library import Built, compile, find, load, make
from gemm_ladder.build.toolchain import find_cuda, find_cxx
from gemm_ladder.errors import BuildError, ToolchainError

__all__ = [
    "BuildError",
    "Built",
    "Job",
    "SassPass",
    "Target",
    "ToolchainError",
    "compile",
    "find",
    "find_cuda",
    "find_cxx",
    "load",
    "make",
    "sources_digest",
]
