"""Running a kernel: once, or on many schedules of the emulator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemm_ladder.errors import EmulatorError
from gemm_ladder.lab.arrays import assign, bits, copied, differs
from gemm_ladder.lab.launching import Options, Prepared
from gemm_ladder.lab.places import where
from gemm_ladder.lab.results import Device, Result, Sweep

if TYPE_CHECKING:
    from gemm_ladder.lab.arrays import Array
    from typing_extensions import Unpack


def run(
    source: str | Path,
    *args: Any,
    device: Device | None = None,
    seed: int = 0,
    record: bool = False,
    threads: int | None = None,
    max_steps: int | None = None,
    **options: Unpack[Options],
) -> Result:
    """Launch a CUDA kernel and wait for its end.

    What the kernel prints goes to stdout, and the emulator's notes (`Result.notes`) to stderr.

    Args:
        source: the path of a .cu file, or source text. It may include <cuda_runtime.h>,
            <cooperative_groups.h>, and ptx.cuh and the other headers of kernels/include.
        args: the kernel's arguments: NumPy arrays or torch tensors for pointers (the kernel writes into
            them), numbers, `lab.tensor_map(...)`, and ctypes structures for structs.
        device: "cpu" for the emulator, "cuda" for a Hopper GPU; None: where the arrays are. NumPy arrays and
            CPU tensors are copied to a GPU and back.
        seed, record, threads, max_steps: as for `gemm_ladder.emulator`; a GPU ignores them.
        options: grid=1, block=128, cluster=None, shared_bytes=0, kernel=None, defines=None, include=(),
            several_writers=(), symbols=None and pointed_to=None, which `gemm_ladder.lab.Options` explains.

    Raises:
        InputError: the arguments do not suit the kernel.
        BuildError, ToolchainError: the source does not compile, or there is no compiler.
        LaunchError: the launch is refused, or a GPU reports an error.
        EmulatorError: the kernel is at fault; `what`, `line` and the message name the fault, and with
            `record` its `recording` has what happened until then.
    """
    result = Prepared(source, args, device, options).run(seed, record, threads, max_steps)
    if result.printed:
        sys.stdout.write(result.printed)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    return result


def sweep(
    source: str | Path,
    *args: Any,
    seeds: int | Sequence[int] = 20,
    threads: int | None = None,
    max_steps: int | None = None,
    tick: Callable[[str], None] = lambda text: None,
    **options: Unpack[Options],
) -> Sweep:
    """Launch a kernel on the emulator with many seeds: many orders of its threads, and other moments at which
    asynchronous copies and matrix products happen.

    An endless loop takes some seconds to recognise, so no further seed is run after the first.

    Args:
        seeds: how many, from 0 on, or which.
        tick: called before each launch with a word on which one it is.
        The others are as for `run`. The arrays end with the results of the first seed without a fault.

    Raises:
        As `run`, except for EmulatorError: faults are in the result.
    """
    launch = Prepared(source, args, "cpu", options)
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    before = [copied(array) for array in launch.arrays]
    found = Sweep(len(chosen))
    first: list[Array] | None = None
    for number, seed in enumerate(chosen):
        tick(f"schedule {number + 1} of {len(chosen)}, {len(found.faults)} with a fault")
        for array, values in zip(launch.arrays, before, strict=True):
            assign(array, values)
        try:
            result = launch.run(seed, False, threads, max_steps)
        except EmulatorError as fault:
            found.faults[seed] = fault
            if fault.what == "endless_loop":
                found.skipped = chosen[number + 1 :]
                break
            continue
        found.steps[seed] = result.steps
        found.notes = list(dict.fromkeys(found.notes + result.notes))
        if first is None:
            first = [copied(array) for array in launch.arrays]
        elif any(bits(array) != bits(same) for array, same in zip(launch.arrays, first, strict=True)):
            found.different.append(seed)
            found.difference = found.difference or _difference(launch, first)
    for array, values in zip(launch.arrays, first or before, strict=True):
        assign(array, values)
    return found


def _difference(launch: Prepared, first: Sequence[Array]) -> str:
    """Which values of a launch are not those of another one, by the first array that has some."""
    for name, array, same in zip(launch.array_names, launch.arrays, first, strict=True):
        if (differing := differs(array, same)).any():
            values = "one value" if differing.sum() == 1 else f"{int(differing.sum())} values"
            return f"{values} of {name} ({where(differing, 'all of it')})"
    return ""
