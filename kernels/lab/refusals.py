"""What a source asks for that there is not, in a sentence, where the compiler only says that it fails."""

from __future__ import annotations

import re

from gemm_ladder.errors import BuildError, InputError
from gemm_ladder.lab.sources import kernels_of

# Libraries whose device code is inline PTX, or that the emulator does not have, by their folders and files.
LIBRARIES = {
    "CUTLASS": r"(cute|cutlass)/",
    "libcu++": r"cuda/|nv/target",
    "CUB": r"cub/",
    "Thrust": r"thrust/",
    "cuRAND": r"curand",
    "nvcuda::wmma": r"mma\.h",
}


def explain(text: str, kernel: str, error: BuildError) -> None:
    """Raise InputError where the reason for which `text` does not build is known.

    Args:
        text: the source.
        kernel: the name, with template arguments, of the kernel that is to be launched.
        error: what the compiler has said.
    """
    kernels, name = kernels_of(text), kernel.split("<")[0].split("::")[-1].strip()
    parts = "|".join(re.escape(part) for part in (kernel.split("::")[0].split("<")[0].strip(), name))
    undeclared = (
        rf"[‘'`]({parts})[’'].*(not declared|not been declared|not a member)|undeclared .*'({parts})'"
    )
    if name not in kernels and re.search(undeclared, error.log):
        there = f"its kernels are {', '.join(kernels)}" if kernels else "it has no __global__ function"
        raise InputError(f"The source has no kernel {kernel}; {there}.") from None
    missing = re.search(r"fatal error: '?([\w./+-]+)'?(?:: No such file|.* not found)", error.log)
    for library, headers in LIBRARIES.items():
        if missing and re.match(headers, missing[1]):
            raise InputError(
                f"The source includes {missing[1]}, of {library}, which the emulator does not have, because "
                "it runs no inline PTX; the functions of ptx.cuh and mma.cuh, or plain CUDA C++, are needed."
            ) from None
