"""The ladder: one FP8 matrix product written several times, each rung one idea faster than the one below.

`rungs` maps a name to a `Rung`, in the ladder's order. All have one signature, `rung(lhs, rhs, out)`.
s0_numpy runs in NumPy on the CPU. The others run where the tensors are, CPU tensors on the emulator and
Hopper GPU tensors on the GPU, from the same CUDA source.
To add a rung, put its .cu file into stages/ and its line into the table at the end of this file.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gemm_ladder.arguments import EMULATED_SMS, MAX_SIZE, N_MULTIPLE, SCALE_BLOCK
from gemm_ladder.errors import InputError, UnknownRungError
from gemm_ladder.sass import ffma

if TYPE_CHECKING:
    import torch
    from gemm_ladder.build import Built
    from gemm_ladder.checks import CheckedCall

__all__ = ["InterleavedRung", "NumpyRung", "ProductionRung", "Rung", "rungs"]


@dataclasses.dataclass(frozen=True)
class Rung:
    """One kernel of the ladder.

    Attributes:
        name: its name, and its file's stem.
        idea: what it adds to the rung below, in one line.
        n_multiple, k_multiple: n and k have to be multiples of these.
    """

    name: str
    idea: str
    n_multiple: int = 1
    k_multiple: int = 1

    @property
    def path(self) -> Path:
        """The file that the rung is written in."""
        return Path(__file__).resolve().parent / "stages" / f"{self.name}.cu"

    @property
    def source(self) -> str:
        """The text of that file: what is compiled, for both machines."""
        return self.path.read_text(encoding="utf-8")

    def supports(self, m: int, n: int, k: int) -> str | None:
        """None if the rung can multiply [m, k] by [n, k], or a sentence that says why it cannot."""
        if m < 0 or n < 1 or k < 1:
            return f"{self.name} is given m = {m}, n = {n}, k = {k}; m >= 0, n >= 1 and k >= 1 are needed"
        if max(m, n, k) > MAX_SIZE:
            return f"{self.name} is given m = {m}, n = {n}, k = {k}; each must be below 2^31"
        for size, given, multiple in (("n", n, self.n_multiple), ("k", k, self.k_multiple)):
            if given % multiple:
                return f"{self.name} is given {size} = {given}; a multiple of {multiple} is needed"
        return None

    def __call__(
        self,
        lhs: tuple[torch.Tensor, torch.Tensor],
        rhs: tuple[torch.Tensor, torch.Tensor],
        out: torch.Tensor,
    ) -> None:
        """out[m, n] = sum over k of A[m, k] * sfa[m, k / 128] * B[n, k] * sfb[n / 128, k / 128], as BF16.

        On a GPU the kernel is queued on the current stream of the tensors' device. The first call on a
        machine compiles the kernel (seconds); later ones, those of other processes too, load it.

        Args:
            lhs: (A, sfa), float8_e4m3fn [m, k] and float32 [m, ceil(k / 128)].
            rhs: (B, sfb), float8_e4m3fn [n, k] and float32 [ceil(n / 128), ceil(k / 128)].
            out: bfloat16 [m, n], overwritten. Layouts: `gemm_ladder.checks`.

        Raises:
            InputError: the tensors, or their shape (`supports`), cannot be used; `out` is untouched.
            EmulatorError: the emulator found the kernel at fault.
            LaunchError: the launch was refused, by CUDA or by the kernel's own launcher.
            gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
        """
        from gemm_ladder import checks  # here: it imports torch

        call = checks.operands("dense", lhs, rhs, out, hopper=self._needs_hopper)
        if reason := self.supports(call.m, call.n, call.k):
            raise InputError(reason)
        if call.m:
            self._run(call)

    def build(self, target: Literal["cuda", "emulator"]) -> Built:
        """Compile the rung for one machine, or load it from the cache: `gemm_ladder.build.load`. Needs no
        GPU."""
        from gemm_ladder import build

        return build.load(self.path, target=target, name=self.name)

    _needs_hopper = True

    def _run(self, call: CheckedCall) -> None:
        from gemm_ladder import launch  # here: it imports torch

        if call.a.is_cuda:
            launch.on_gpu(self.name, _library(self, "cuda"), call)
        else:
            launch.on_emulator(self.name, _library(self, "emulator"), call)


class NumpyRung(Rung):
    """s0: the definition, in NumPy on the CPU, whichever device the tensors are on."""

    _needs_hopper = False

    @property
    def path(self) -> Path:
        from gemm_ladder.ref import gemm

        return Path(gemm.__file__)

    def build(self, target: Literal["cuda", "emulator"]) -> None:  # type: ignore[override] # nothing is built
        """There is nothing to compile. Raises InputError for another target, as the other rungs do."""
        if target not in ("cuda", "emulator"):
            raise InputError(f'target is {target!r}, and must be "cuda" or "emulator".')

    def _run(self, call: CheckedCall) -> None:
        from gemm_ladder import ops

        a, sfa, b, sfb = (tensor.cpu() for tensor in (call.a, call.sfa, call.b, call.sfb))
        ops.compute_on_cpu(call._replace(a=a, sfa=sfa, b=b, sfb=sfb))


@dataclasses.dataclass(frozen=True)
class InterleavedRung(Rung):
    """s8: the source of the rung below; for a GPU, its machine code is rewritten (`gemm_ladder.sass.ffma`).

    The emulator runs the rung below as it is: the bits that are rewritten have no meaning there.

    Attributes:
        mode: how the promotion's FFMAs yield: a mode of `gemm_ladder.sass.ffma`. To compare modes, make other
            rungs: dataclasses.replace(rung, name="s8_off", mode="off").
    """

    mode: ffma.Mode = ffma.DEFAULT_MODE

    @property
    def path(self) -> Path:
        return super().path.with_name("s7_persistent.cu")

    def build(self, target: Literal["cuda", "emulator"]) -> Built:
        from gemm_ladder import build

        if target == "emulator":
            return build.load(self.path, target=target)
        return build.load(self.path, target=target, name=self.name, sass_pass=ffma.sass_pass(self.mode))


class ProductionRung(Rung):
    """s9: the kernels that `gemm_ladder.api` calls, configured for the shape."""

    @property
    def path(self) -> Path:
        return Path(__file__).resolve().parent / "production" / "gemm.cuh"

    def build(self, target: Literal["cuda", "emulator"]) -> Built:
        """Compile the kernel for the one shape that tables and cards show, or load it from the cache; other
        shapes have other kernels."""
        from gemm_ladder.figures.measured import SHOWN
        from gemm_ladder.production import choice

        return choice.choose("dense", *SHOWN).compile(target)

    def _run(self, call: CheckedCall) -> None:
        from gemm_ladder.production import choice, launching

        if call.a.is_cuda:
            launching.queue(call)
        else:
            config = choice.choose("dense", call.m, call.n, call.k, num_sms=EMULATED_SMS)
            launching.launch(config, (call.a, call.sfa), (call.b, call.sfb), call.out)


@functools.cache
def _library(rung: Rung, target: Literal["cuda", "emulator"]) -> ctypes.CDLL:
    return rung.build(target).lib


class Rungs(Mapping[str, Rung]):
    """The rungs by name, in the ladder's order. An unknown name raises UnknownRungError, with all names."""

    def __init__(self, *ladder: Rung) -> None:
        self._by_name = {rung.name: rung for rung in ladder}

    def __getitem__(self, name: str) -> Rung:
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownRungError(
                f"{name!r} is not a rung's name; one of {', '.join(self._by_name)} is needed"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"Rungs({', '.join(self._by_name)})"


# What the rungs on the tensor cores need of n and k. s7 and s9 store D by TMA, which needs rows of a multiple
# of 16 bytes, of 8 BF16 numbers. s3 to s5 have the same rule, so that all of them run the same shapes. k is a
# whole number of K blocks, each of which is promoted.
TENSOR_CORES = {"n_multiple": N_MULTIPLE, "k_multiple": SCALE_BLOCK}

rungs = Rungs(
    NumpyRung("s0_numpy", "what is computed"),
    Rung("s1_naive", "one thread per output, CUDA cores"),
    Rung(
        "s3_wgmma",
        "tensor cores: swizzled shared memory, descriptors, promotion",
        **TENSOR_CORES,
    ),
    Rung("s4_tma", "the copy engine and a ring of mbarriers", **TENSOR_CORES),
    Rung(
        "s5_tma_multicast",
        "two blocks share one operand's loads",
        **TENSOR_CORES,
    ),
    Rung(
        "s7_persistent",
        "producer warp, two consumer warpgroups, persistent tiles, TMA store",
        **TENSOR_CORES,
    ),
    InterleavedRung(
        "s8_ffma_interleave",
        "the same source; the promotion FFMAs' control bits rewritten in the machine code",
        **TENSOR_CORES,
    ),
    ProductionRung(
        "s9_production",
        "n and k as compile-time constants, chosen configuration, grouped layouts",
        **TENSOR_CORES,
    ),
)
