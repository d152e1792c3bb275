"""How many cycles a warp's 128-bit load from shared memory takes, by which words its threads want.

    python lessons/data/shared_loads.py

needs a Hopper GPU and writes shared_loads.json beside it: cycles of the SM's clock for each load, where eight
warps load all the time. Lesson 03 compares them with what its model takes for a load.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import torch
from gemm_ladder import lab

WARPS, ROUNDS, LOADS = 8, 512, 16  # LOADS a round
QUADS = {  # for each lane, which 16 bytes it loads
    "all threads the same quad": "0",
    "s2's A: one quad for every eight threads": "lane / 8",
    "s2's B: the same eight quads for every eight threads": "lane % 8",
    "32 different quads": "lane",
}
SOURCE = """
#include <cuda_runtime.h>
// Each round begins 16 bytes further on, as the compiler would merge loads from the same place.
extern "C" __global__ void loads(long long* cycles, unsigned* sums) {
    extern __shared__ __align__(128) unsigned memory[];
    for (int i = threadIdx.x; i < 8192; i += blockDim.x) memory[i] = i;
    const int lane = threadIdx.x % 32;
    const unsigned first = static_cast<unsigned>(__cvta_generic_to_shared(memory)) + (QUAD) * 16;
    unsigned sum = 0;
    __syncthreads();
    const long long begin = clock64();
    for (int round = 0; round < ROUNDS; ++round) {
        const unsigned at = first + round % 64 * 16;
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            unsigned a, b, c, d;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(at + i * 512));
            sum ^= a ^ b ^ c ^ d;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) *cycles = clock64() - begin;
    sums[threadIdx.x] = sum;
}
"""


def main() -> int:
    found = {}
    for words, quad in QUADS.items():
        cycles = torch.zeros(1, dtype=torch.int64, device="cuda")
        sums = torch.zeros(32 * WARPS, dtype=torch.int32, device="cuda")
        defines = {"QUAD": quad, "ROUNDS": str(ROUNDS), "LOADS": str(LOADS)}
        for _ in range(3):  # the last one is kept, when the clock has risen
            lab.run(
                SOURCE, cycles, sums, device="cuda", block=32 * WARPS, shared_bytes=32768, defines=defines
            )
        found[words] = round(cycles.item() / (WARPS * ROUNDS * LOADS), 3)
        print(f"{words:55} {found[words]:.2f}")
    meta = {"gpu": torch.cuda.get_device_name(), "date": str(datetime.date.today())}
    record = {"schema": 1, "meta": meta, "cycles": found}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
