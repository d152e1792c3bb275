"""Judging a rung on a Hopper GPU: the same cases, and its time beside the rungs of the ladder."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.errors import GemmLadderError, one_line
from gemm_ladder.lab.agreement import tolerance
from gemm_ladder.lab.bf16 import Bf16Operands
from gemm_ladder.lab.cases import Case
from gemm_ladder.lab.given import Given, arguments
from gemm_ladder.lab.surroundings import surround, trespass
from gemm_ladder.lab.verdicts import Bits, Verdict, Wrong
from gemm_ladder.rungs import NumpyRung, Rung, rungs

if TYPE_CHECKING:
    import torch
    from gemm_ladder.build import Built

REPEATS = 3  # runs of each case: a GPU has no seeds, but its timing varies
TIMED = ((4096, 7168, 2048), (128, 7168, 2048))  # m, n, k: of prefill and of decoding


def has_hopper() -> bool:
    """Whether there is a Hopper GPU, and a torch to use it."""
    try:
        import torch
        from gemm_ladder.measure import session
    except ImportError:
        return False

    return torch.cuda.is_available() and session.find_gpu()[0] is not None


def judge(
    given: Given,
    cases: Sequence[Case],
    n_multiple: int,
    k_multiple: int,
    tick: Callable[[str], None],
    timed: Sequence[tuple[int, int, int]] = (),
) -> Verdict:
    """Run the cases on the first Hopper GPU; if all are right, time the kernel beside the rungs.

    Args:
        timed: the (m, n, k) at which it is timed; none: TIMED.

    Raises:
        GemmLadderError: there is no Hopper GPU.
        BuildError, ToolchainError: the source does not compile, or there is no CUDA compiler.
    """
    import torch
    from gemm_ladder.measure import session

    device, found = session.find_gpu()
    if device is None:
        raise GemmLadderError(f"found {found}; a Hopper GPU is needed to judge a kernel there")
    tick("building for the GPU")
    library = given.build("cuda").lib
    verdict, bits = Verdict(given.name, "cuda"), Bits()
    with torch.cuda.device(device):
        for case in cases:
            for _ in range(REPEATS):
                tick(f"{case.name}, on the GPU")
                said, wrong = _run(library, case, device, bits)
                if said is not None:
                    verdict.refused[case.name] = said
                    break
                verdict.runs += 1
                verdict.wrong = wrong
                if wrong:
                    break
            else:
                verdict.judged.append(case)
            if verdict.wrong:
                break
    verdict.arithmetic = bits.models[0] if bits.models else None
    verdict.apart, verdict.until = bits.apart, bits.until
    if verdict.right:
        tick("timing")
        if cases[0].operands.scaled:
            _time(verdict, given, n_multiple, k_multiple, timed or TIMED, device)
        else:
            with torch.cuda.device(device):
                _time_bf16(verdict, library, timed or TIMED, device)
    return verdict


def _run(
    library: ctypes.CDLL, case: Case, device: torch.device, bits: Bits
) -> tuple[str | None, Wrong | None]:
    """One launch: the launcher's refusal, and what is wrong with the result."""
    import torch
    from gemm_ladder.launch import launcher, usable_sms

    placed = surround(case.operands)
    around = torch.from_numpy(placed.around.view(np.int16)).to(device)
    margin = (len(placed.around) - case.m) // 2
    tensors = {name: one.on(device) for name, one in placed.inputs.items()}
    tensors["d"] = around[margin : margin + case.m]
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    stream = torch.cuda.current_stream(device)
    args = arguments(case, pointers, usable_sms(device), stream.cuda_stream)
    said = launcher(library)(ctypes.addressof(args))
    if said is not None:
        return said.decode(), None
    try:
        stream.synchronize()
    except RuntimeError as error:  # a fault of the kernel: the process can use the GPU no more
        return None, Wrong(case, None, f"CUDA reports: {one_line(error)}", (("case", case.reaches),))
    everything = around.cpu().numpy().view(np.uint16)
    if trespassed := trespass(everything):
        return None, Wrong(case, None, trespassed, (("case", case.reaches),))
    return None, bits.wrong(case, None, everything[margin : margin + case.m].copy())


@dataclasses.dataclass(frozen=True)
class _AsRung(Rung):
    """The kernel in the place of a rung."""

    given: Given | None = None

    def build(self, target: Literal["cuda", "emulator"]) -> Built:
        assert self.given
        return self.given.build(target)


def _time(
    verdict: Verdict,
    given: Given,
    n_multiple: int,
    k_multiple: int,
    timed: Sequence[tuple[int, int, int]],
    device: torch.device,
) -> None:
    """Time the kernel and the rungs at these (m, n, k); note the times, or that a result is wrong there."""
    from gemm_ladder.measure import ladder_rows
    from gemm_ladder.measure.shapes import Shape

    mine = _AsRung(f"{given.name} (yours)", "", n_multiple, k_multiple, given)
    others = [rung for rung in rungs.values() if not isinstance(rung, NumpyRung)]
    shapes = [Shape(*sizes) for sizes in timed]
    result = ladder_rows.on_gpu([mine, *others], shapes, ("dirty",), device, {})
    for row in result.rows:
        shape = f"{row['m']} x {row['n']} x {row['k']}"
        verdict.times.setdefault(row["impl"], {})[shape] = row["us"]
    for sentence in result.wrong:
        if sentence.startswith(mine.name):
            case = Case("timed", *timed[0], "a product that is large enough to be timed")
            verdict.wrong = Wrong(case, None, sentence)
            return


def _time_bf16(
    verdict: Verdict, library: ctypes.CDLL, timed: Sequence[tuple[int, int, int]], device: torch.device
) -> None:
    """Time a kernel with BF16 operands beside torch.mm, which is cuBLAS's, at these (m, n, k); or note that a
    result is wrong there. A shape that the launcher refuses is left out."""
    import torch
    from gemm_ladder.launch import launcher, usable_sms
    from gemm_ladder.measure import timing

    timer = timing.KernelTimer(device)
    for m, n, k in timed:
        a, b = (torch.randn(rows, k, dtype=torch.bfloat16, device=device) for rows in (m, n))
        out, theirs = (torch.full((m, n), torch.nan, dtype=torch.bfloat16, device=device) for _ in range(2))
        pointers = {"a": a.data_ptr(), "b": b.data_ptr(), "d": out.data_ptr()}
        stream = torch.cuda.current_stream(device).cuda_stream
        args = GemmArgs(**pointers, m=m, n=n, k=k, num_sms=usable_sms(device), stream=stream)
        address = ctypes.addressof(args)
        if launcher(library)(address) is not None:
            continue
        product = a.float() @ b.float().T
        error = float((out.float() - product).norm() / product.norm())
        if not error < tolerance(out.numel(), Bf16Operands.lost):
            case = Case("timed", m, n, k, "a product that is large enough to be timed")
            verdict.wrong = Wrong(case, None, f"its relative error is {error:.2g}")
            return
        calls: dict[str, Callable[[], object]] = {
            f"{verdict.name} (yours)": functools.partial(launcher(library), address),
            "cublas_bf16": functools.partial(torch.mm, a, b.T, out=theirs),
        }
        counts = {name: timing.calls_for(timing.seconds_of(call, device)) for name, call in calls.items()}
        for (name, _), found in timing.measure(calls, counts, ("dirty",), timer)[0].items():
            verdict.times.setdefault(name, {})[f"{m} x {n} x {k}"] = found.us
