"""The kernels that layers have beside products and casts: each a library with one launcher.

combine_rows.cuh (`combining`) adds up what experts give, turn_codes.cuh (`turning`) exchanges a weight's rows
and columns, silu_backward.cuh (`silu_backward`) goes back through SiLU-and-multiply, route_tokens.cuh
(`choosing`) chooses experts, place_rows.cuh and scatter_rows.cuh (`placing`) find and fill the rows of a
grouped layout, and scatter_cast.cuh (`scattering`) casts tokens into one.

They run on a Hopper GPU, or on the emulator. Where one cannot be built, or does not take the arguments, and
where torch compiles or traces, torch's operators or casts do its work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from gemm_ladder.errors import LaunchError

if TYPE_CHECKING:
    from gemm_ladder.build import Built, Job, Target


class OwnKernel:
    """A kernel, which is compiled and loaded when it is first needed.

    Attributes:
        name: of the kernel, of the header NAME.cuh that has its launcher, and in messages.
        libraries: what has been loaded; None where it could not be built.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.libraries: dict[Target, ctypes.CDLL | None] = {}

    def source(self) -> str:
        """The source text to compile."""
        return f'#include "{self.name}.cuh"\n'

    def job(self, target: Target) -> Job:
        """What compile_for() builds or finds. Raises ToolchainError where there is no compiler."""
        from gemm_ladder import build  # here: what torch's operators do needs no compiler

        return build.Job.of(self.source(), target, self.name)

    def compile_for(self, target: Target) -> Built:
        """Compile the kernel, or find it in the cache.

        Raises:
            gemm_ladder.build.ToolchainError, BuildError: it could not be compiled.
        """
        from gemm_ladder import build

        return build.make(self.job(target))

    def load(self, target: Target) -> ctypes.CDLL:
        """Its library, compiled if it is not in the cache, and loaded."""
        library = self.libraries[target] = self.compile_for(target).lib
        return library

    def library(self, target: Target) -> ctypes.CDLL:
        """Its library, which is loaded if it is not."""
        return self.libraries.get(target) or self.load(target)

    def why_not(self, device: torch.device) -> str | None:
        """Why the kernel cannot run on a device; None if it can. It is loaded then.

        A kernel that cannot be built is tried once in a process, and a warning says why it was not.

        Raises:
            LaunchError: the kernel is not loaded while a CUDA graph is captured.
        """
        from gemm_ladder import launch  # here, as below: what torch's operators do needs neither

        return launch.why_not_loaded(self.name, "cuda", self.libraries, self.load, device)

    def can_run(self, operand: torch.Tensor, why_not: str | None) -> bool:
        """Whether the kernel can run where `operand` is, unless there is a reason `why_not`. It is loaded
        then. The caller has asked `ops.in_eager` before.

        Raises:
            LaunchError: the kernel is not loaded while a CUDA graph is captured.
        """
        return operand.is_cuda and why_not is None and self.why_not(operand.device) is None

    def start(
        self, args: ctypes.Structure, read: Mapping[str, torch.Tensor], written: Mapping[str, torch.Tensor]
    ) -> None:
        """Run the kernel on the emulator, or queue it on the current stream of its tensors' GPU.

        Args:
            args: of the launcher.
            read, written: the tensors whose addresses it has, by what the emulator calls them. Of those that
                are written each element is written once.

        Raises:
            LaunchError: the launch is refused. EmulatorError: the emulator found the kernel at fault.
            gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
        """
        device = next(iter(written.values())).device
        if device.type == "cuda":
            from gemm_ladder import launch

            with launch.current(device):
                entry = launch.launcher(self.library("cuda"))
            launch.start(self.name, entry, args, device)
            return
        from gemm_ladder.ref import emulator

        if error := emulator.launch(self.library("emulator"), args, {**read, **written}, once=set(written)):
            raise LaunchError(f"{self.name}: {error}")
