"""What a library of casts is compiled for: a Kernel.

    Kernel("per_token", "silu_and_mul", torch.bfloat16).compile("cuda")

Sizes, strides and the layout of the scales are arguments of a launch. cast_start.cuh chooses among a
library's kernels by whether rows can be loaded 16 bytes at a time, by how much there is to do, and by whether
it is one matrix of whole runs.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

if TYPE_CHECKING:
    from gemm_ladder.build import Built, Job, Target

# Which numbers share a scale: 128 of a row, 128 x 128, or 128 of a column. Turned (the functions say
# "transposed"), the codes are stored with columns contiguous, as the operands of weight gradients are needed.
Kind = Literal["per_token", "per_block", "per_channel", "per_channel_turned"]
Before = Literal["nothing", "silu_and_mul", "rms_norm"]  # what is computed ahead of the cast
KINDS: tuple[Kind, ...] = get_args(Kind)

_KINDS = dict(zip(KINDS, ("kToken", "kBlock", "kChannel", "kChannelTurned"), strict=True))
_BEFORE: dict[Before, str] = {
    "nothing": "kNothing",
    "silu_and_mul": "kSiluAndMul",
    "rms_norm": "kRmsNorm",
}
INPUTS = {torch.bfloat16: "kBf16", torch.float16: "kFp16", torch.float32: "kFp32"}
INPUT_NUMBERS = {dtype: number for number, dtype in enumerate(INPUTS)}  # enum Input of cast_numbers.cuh


class Kernel(NamedTuple):
    """The kernels of one library.

    Attributes:
        kind, before: how it is cast, and what is computed before.
        dtype: of x, one of INPUTS.
    """

    kind: Kind
    before: Before
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """A name for people, and of the library."""
        before = "" if self.before == "nothing" else f"{self.before}_"
        return f"fp8_cast_{before}{self.kind}_{INPUTS[self.dtype][1:].lower()}"

    @property
    def reads_twice(self) -> bool:
        """Whether a first kernel reads x to find what each row is multiplied by."""
        return self.before == "rms_norm" and self.kind != "per_token"

    def source(self) -> str:
        """The source text to compile."""
        arguments = f"Kind::{_KINDS[self.kind]}, Before::{_BEFORE[self.before]}, Input::{INPUTS[self.dtype]}"
        return (
            '#include "cast_start.cuh"\n'
            'extern "C" const char* gemm_ladder_launch(const CastArgs* args) '
            f"{{ return start_cast<{arguments}>(*args); }}\n"
        )

    def job(self, target: Target) -> Job:
        """What compile() builds or finds. Raises ToolchainError where there is no compiler."""
        from gemm_ladder import build  # here: what is cast on the CPU needs no compiler

        return build.Job.of(self.source(), target, self.name)

    def compile(self, target: Target) -> Built:
        """Compile the kernels, or find them in the cache.

        Raises:
            gemm_ladder.build.ToolchainError, BuildError: they could not be compiled.
        """
        from gemm_ladder import build

        return build.make(self.job(target))


# All kernels.
KERNELS = tuple(itertools.starmap(Kernel, itertools.product(KINDS, _BEFORE, INPUTS)))
