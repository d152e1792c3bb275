"""The constants of the lessons' model: what each one is, its value, and where that comes from.

A lesson shows those that its rung's terms bring in, and names the earlier ones that they need again.
"""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

from workshop import model, printed

GUIDE = "CUDA C++ Programming Guide"
ROUND = "a round figure of an H100, as kernels/production/prediction.py has it"


class Constant(NamedTuple):
    """One constant: its name in model.py, its value in words with the unit, what it is, its origin."""

    name: str
    value: str
    what: str
    origin: str


CONSTANTS = {
    one.name: one
    for one in (
        Constant("SMS", f"{model.SMS}", "SMs of the GPU", "an H100 SXM and an H200 have so many"),
        Constant(
            "MEMORY",
            f"{model.MEMORY / 1e6:g} TB/s",
            "bytes from and to memory",
            "measured: what a copy reaches on the GPU whose times the lessons show",
        ),
        Constant(
            "WGMMA_FLOPS",
            f"{model.WGMMA_FLOPS}",
            "FP8 operations of an SM's tensor cores in a cycle",
            "NVIDIA's data sheet of the H100 SXM: 1979 TFLOPS on 132 SMs are that, at 1.83 GHz",
        ),
        Constant(
            "CLOCK_MHZ",
            f"{model.CLOCK_MHZ:g} MHz",
            "the SM clock under load: busy tensor cores, at the power limit",
            ROUND,
        ),
        Constant(
            "FULL_MHZ",
            f"{model.FULL_MHZ:g} MHz",
            "the SM clock's upper limit, for kernels that need little power",
            "`nvidia-smi -q -d CLOCK`, the line Max Clocks, on an H100 SXM and on an H200",
        ),
        Constant(
            "LAUNCH_US",
            f"{model.LAUNCH_US:g} us",
            "from the launch to the first products, and from the last ones to the end",
            ROUND,
        ),
        Constant(
            "LINES",
            f"{model.LINES}",
            "lines that an SM's L1 finds in a cycle, for loads from global memory",
            "a guess, made from the card of s1_naive; s1's own time confirms it to 5 %",
        ),
        Constant(
            "FMAS", f"{model.FMAS}", "`fmaf` of an SM in a cycle", f'"Arithmetic Instructions", {GUIDE}'
        ),
        Constant(
            "INSTRUCTIONS",
            f"{model.INSTRUCTIONS}",
            "instructions that an SM issues in a cycle, one for each warp scheduler",
            f'"Compute Capability 9.0", {GUIDE}',
        ),
        Constant(
            "SHARED_BYTES",
            f"{model.SHARED_BYTES} bytes",
            "of shared memory in a cycle: 32 banks of 4",
            f'"Shared Memory", {GUIDE}',
        ),
        Constant(
            "LATENCY",
            f"{model.LATENCY} cycles",
            "from a load to its data, while all SMs load",
            "assumed, a round figure; nothing here measures it alone",
        ),
        Constant(
            "PROMOTE_CYCLES",
            f"{model.PROMOTE_CYCLES:g} cycles",
            "of a warpgroup's promotion, for each column of 64 rows",
            ROUND,
        ),
        Constant(
            "BLOCK_CYCLES",
            f"{model.BLOCK_CYCLES} cycles",
            "of a warpgroup for each K block, whatever its size: handing over a stage",
            ROUND,
        ),
        Constant("L2", f"{model.L2 / 1e6:g} TB/s", "bytes from L2 to all SMs together", ROUND),
        Constant(
            "FILL_US",
            f"{model.FILL_US:g} us",
            "until the first stage of an empty ring has arrived",
            "assumed, a round figure; nothing here measures it alone",
        ),
        Constant(
            "STORE",
            f"{model.STORE:.0f} bytes/us",
            "that an SM stores, if each thread writes four bytes at a time and all SMs store",
            f"the recording of s5: the two blocks of an SM store 16 KB each in {model.STORES_US:.1f} us",
        ),
        Constant(
            "OUTPUT_US",
            f"{1000 * model.OUTPUT_US:g} ns",
            "for each output that the copy engine stores beside other work",
            ROUND,
        ),
    )
}

ALSO = {"floor": ("FMAS", "FULL_MHZ")}  # what the floor's lesson computes with beside the model's lines


def used(of: str) -> list[str]:
    """The constants in the lines of the model that predict a rung, or that make up the "floor"."""
    lines, asked = "", [of]
    functions = {name: one for name, one in vars(model).items() if inspect.isfunction(one)} | model.RUNGS
    for name in asked:  # grows
        lines += (part := inspect.getsource(functions[name]))
        asked += [one for one in functions if re.search(rf"\b{one}\(", part) and one not in asked]
    return [name for name in CONSTANTS if name in ALSO.get(of, ()) or re.search(rf"\b{name}\b", lines)]


def show(of: str) -> None:
    """Print the constants of a rung's prediction, or of the "floor": those that come in with it with their
    origins, the earlier ones in a line."""
    order = ["floor", *model.RUNGS]
    earlier = {name for one in order[: order.index(of)] for name in used(one)}
    needed = used(of)
    new = [name for name in needed if name not in earlier]
    again = [name for name in needed if name in earlier]
    print("New constants:" if new else "No new constant.")
    for name in new:
        one = CONSTANTS[name]
        print(f"    {name} = {one.value}: {one.what}\n        from: {one.origin}")
    if again:
        values = [printed.whole(f"{name} = {CONSTANTS[name].value}") for name in again]
        printed.show(f"Known already: {', '.join(values)}.")
