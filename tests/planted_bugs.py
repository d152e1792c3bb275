"""The bugs that test_planted_bugs.py plants in the rungs, and what the emulator must say about each."""

from __future__ import annotations

import re
from typing import NamedTuple

import gemm_ladder as gl


class Symptom(NamedTuple):
    """A fault's `what`, and a regular expression for a part of its message; or WRONG."""

    what: str
    text: str = ""

    def matches(self, found: gl.EmulatorError | None) -> bool:
        """`found` is an error, or None for a wrong answer."""
        if found is None:
            return self == WRONG
        return found.what == self.what and re.search(self.text, str(found)) is not None


class Bug(NamedTuple):
    """One bug in one rung.

    Attributes:
        kernel: a rung, or one kernel of a rung (a key of SHAPES).
        wrong: what is wrong.
        old, new: a text of the rung and its replacement; several of each, in order, as lists. They are
            compared as code(), so that comments and indentation may change.
        symptoms: what the emulator may find; any other symptom fails the test.
    """

    kernel: str
    wrong: str
    old: str | list[str]
    new: str | list[str]
    symptoms: list[Symptom]

    @property
    def rung(self) -> str:
        return rung_of(self.kernel)

    def plant(self, source: str) -> str:
        """`source`, which is code(), with the bug."""
        for old, new in zip(*([x] if isinstance(x, str) else x for x in (self.old, self.new)), strict=True):
            assert code(old) in source, f"{self.rung} has changed: plant again: {self.wrong}"
            source = source.replace(code(old), code(new), 1)
        return source


def code(text: str) -> str:
    """C++ text without comments, indentation, empty lines and repeated spaces."""
    lines = (re.sub(r"\s+", " ", line.split("//")[0]).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def rung_of(kernel: str) -> str:
    return kernel.split()[0]


# By the kernel, a rung or a rung and its tile: (m, n). One tile, or one cluster's tiles; for the persistent
# rung, which is told that there are two SMs, two tiles for each block. B's scale changes inside a wide tile.
WIDE = "s7_persistent 128x192"
SHAPES = {
    "s3_wgmma": (64, 128),
    "s4_tma": (64, 128),
    "s5_tma_multicast": (128, 128),
    "s6_warp_specialized": (256, 256),
    "s7_persistent 256x128": (512, 128),
    WIDE: (256, 264),
}
K, SMS = 768, 2  # six K blocks: one and a half turns of a ring of four stages

WRONG = Symptom("wrong answer")
UNFENCED = Symptom("missing_proxy_fence", r"wgmma \([AB]\) reads shared memory")
UNFENCED_STORE = Symptom("missing_proxy_fence", "TMA store reads shared memory")
TOO_EARLY = Symptom("released_too_early")
LOADING = [Symptom("read_during_load"), Symptom("write_during_load"), Symptom("data_race")]
MORE_OFTEN = Symptom("too_many_arrivals")
DEADLOCK = Symptom("deadlock", r"deadlock in cluster 0 after \d+ steps:\n  block [01], warp")
RACE = Symptom("data_race")
READ_IN_FLIGHT = Symptom("accumulator_read")

WAIT = "ptx::wgmma_wait_group<0>();\n"
PROMOTION = (
    "#pragma unroll\n        for (int i = 0; i < kRegisters; ++i) "
    "total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);\n"
)
# In s7, the line after the release of the stage.
RELEASED = "                        ring.advance();\n"
READ_SCALES_A = (
    "for (int i = 0; i < kSlices * 2; ++i) scale_a[i / 2][i % 2] = ptx::ld_shared<float>("
    "ring.stage + kScaleA + (i / 2 * kSliceM + row + i % 2 * 8) * sizeof(float));\n"
)
READ_SCALES_B = (
    "for (int i = 0; i < kSegments; ++i) {\n"
    "const int which = (tile_n % kScaleN + i * kStoreN) / kScaleN;\n"
    "scale_b[i] = ptx::ld_shared<float>(ring.stage + kScaleB + which * kScalePitch + "
    "(sfb + which * blocks + block) % kScaleBox * sizeof(float));\n}\n"
)


BUGS = [
    Bug(
        "s3_wgmma",
        "no fence between ordinary stores and the tensor core",
        "ptx::fence_proxy_async();",
        "",
        [UNFENCED],
    ),
    Bug(
        "s3_wgmma",
        "no barrier between the stores and the tensor core",
        "ptx::fence_proxy_async();\n__syncthreads();",
        "ptx::fence_proxy_async();",
        [RACE],
    ),
    Bug(
        "s3_wgmma",
        "no wgmma.fence after the accumulators were read",
        "ptx::wgmma_fence();",
        "",
        [Symptom("missing_wgmma_fence")],
    ),
    Bug(
        "s3_wgmma",
        "the WGMMAs are never waited for",
        WAIT,
        "",
        [READ_IN_FLIGHT, Symptom("unfinished_wgmma"), TOO_EARLY],
    ),
    Bug(
        "s3_wgmma",
        "the accumulators are read before the wait",
        f"        {WAIT}{PROMOTION}",
        f"{PROMOTION}        {WAIT}",
        [READ_IN_FLIGHT],
    ),
    Bug(
        "s3_wgmma",
        "the WGMMAs are never committed, so the wait waits for nothing",
        "ptx::wgmma_commit_group();",
        "",
        [READ_IN_FLIGHT, Symptom("unfinished_wgmma"), TOO_EARLY],
    ),
    Bug(
        "s3_wgmma",
        "the descriptor's stride byte offset is half of what it should be",
        "desc_b = smem_descriptor(smem_b);",
        "desc_b = smem_descriptor(smem_b) ^ (96ull << 32);",
        [WRONG],
    ),
    Bug(
        "s3_wgmma",
        "the stores are not swizzled",
        "swizzle_128b((r + i * kRowsPerStep) * kSwizzleRow + chunk * kChunk)",
        "((r + i * kRowsPerStep) * kSwizzleRow + chunk * kChunk)",
        [WRONG],
    ),
    Bug(
        "s3_wgmma",
        "a K block starts from the sum of the K block before",
        "k != 0);",
        "1);",
        [Symptom("uninitialised_register", "accumulator register 0"), WRONG],  # WRONG: with g++ before 12
    ),
    Bug(
        "s4_tma",
        "the consumers wait for the wrong parity",
        "ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);",
        "ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity ^ 1);",
        [*LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s4_tma",
        "the producer waits for the wrong parity",
        "ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);",
        "ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity);",
        [
            Symptom(
                "deadlock",
                r"block 0, warp 0 \(lane 0\) waits for mbarrier 0x\w+ to complete a phase of "
                r"parity 0: it is in phase 0 with 4 of 4",
            )
        ],
    ),
    Bug(
        "s4_tma",
        "the producer does not wait for an empty stage",
        "ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);",
        "",
        [*LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s4_tma",
        "the barrier is not told how many bytes to expect",
        "ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);",
        "ptx::mbarrier_arrive(full);",
        [*LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s4_tma",
        "the barrier expects too many bytes",
        "ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);",
        "ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales + 16);",
        [Symptom("deadlock", r"block 0, warps .* with 0 of 1 arrivals pending and 16 bytes to come")],
    ),
    Bug(
        "s4_tma",
        "mbarrier.init is not made visible to the copy engine",
        "ptx::fence_mbarrier_init();",
        "",
        [Symptom("mbarrier_not_visible", "TMA load")],
    ),
    Bug(
        "s4_tma",
        "no thread waits for mbarrier.init",
        "    __syncthreads();\n",
        "",
        [Symptom("mbarrier_uninitialised", "of block 0")],
    ),
    Bug(
        "s4_tma",
        "two arrivals where the barrier counts one",
        "if (ptx::laneid() == 0) ptx::mbarrier_arrive(ring.stage + kEmpty);",
        "if (ptx::laneid() < 2) ptx::mbarrier_arrive(ring.stage + kEmpty);",
        [MORE_OFTEN, *LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s4_tma",
        "A and B overlap in a stage",
        "kB = kBytesA,",
        "kB = kBytesA - 1024,",
        [*LOADING, TOO_EARLY, WRONG],
    ),
    Bug(
        "s4_tma",
        "the stages overlap: the next one's tile of A lies on the scales and the barriers",
        "ceil_div(kEmpty + 16, 1024) * 1024;\nconstexpr uint32_t kSharedBytes = kStages * kBytesStage;",
        "kEmpty / 1024 * 1024;\nconstexpr uint32_t kSharedBytes = kStages * kBytesStage + 1024;",
        [*LOADING, Symptom("mbarrier_overwritten", "TMA load overwrites")],
    ),
    Bug(
        "s4_tma",
        "too little shared memory is asked for",
        ".shared_bytes = kSharedBytes,",
        ".shared_bytes = kSharedBytes - kBytesStage + kEmpty,",
        [Symptom("out_of_bounds", r"mbarrier\.init at 0x\w+ \(8 bytes\)")],
    ),
    Bug(
        "s5_tma_multicast",
        "a stage is treated as free before the other block's warps have finished with it",
        "ptx::mbarrier_init(smem_stage(stage) + kEmpty, kCluster * kThreads / 32);",
        "ptx::mbarrier_init(smem_stage(stage) + kEmpty, kThreads / 32);",
        [MORE_OFTEN, *LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s5_tma_multicast",
        "the other block is not told that a stage is free",
        "ptx::mapa(ring.stage + kEmpty, ptx::laneid())",
        "ptx::mapa(ring.stage + kEmpty, 0)",
        [MORE_OFTEN, *LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s5_tma_multicast",
        "a load begins before the other block's barriers exist",
        "ptx::barrier_cluster_arrive();\nptx::barrier_cluster_wait();",
        "__syncthreads();",
        [Symptom("block_not_started")],
    ),
    Bug(
        "s5_tma_multicast",
        "a block ends while the other block still sends to it",
        ["}\n__syncwarp();\nptx::barrier_cluster_arrive();\n#pragma", "}\nptx::barrier_cluster_wait();\n}"],
        ["}\n__syncwarp();\n#pragma", "}\n}"],
        [Symptom("block_ended", r"block [01] of its cluster|the block ends"), Symptom("unfinished_load")],
    ),
    Bug(
        "s6_warp_specialized",
        "the block's two consumers share one warpgroup's rows",
        "const int row = consumer * kWgmmaM + accumulator_row",
        "const int row = accumulator_row",
        [WRONG],
    ),
    Bug(
        "s6_warp_specialized",
        "more registers are asked for than there are",
        "ptx::setmaxnreg_dec<40>();",
        "ptx::setmaxnreg_dec<56>();",
        [Symptom("deadlock", r"block [01], warps? .* waits? for setmaxnreg.inc 232: each thread has")],
    ),
    Bug(
        "s6_warp_specialized",
        "one lane of the producer's warp gives registers back",
        "ptx::setmaxnreg_dec<40>();",
        "if (threadIdx.x % 32 == 0) ptx::setmaxnreg_dec<40>();",
        [
            Symptom(
                "deadlock", r"\(lane 0\).* for setmaxnreg, which the other lanes of its warp have to execute"
            ),
            Symptom("divergent_warp", r"setmaxnreg while its warp executes bar.warp.sync: all 32 lanes must"),
        ],
    ),
    Bug(
        "s6_warp_specialized",
        "a stage is released before its WGMMAs have read it",
        [f"{WAIT}if (slice == kSlices - 1) {{", "ring.advance();\n}\n"],
        ["if (slice == kSlices - 1) {", f"ring.advance();\n}}\n{WAIT}"],
        [TOO_EARLY],
    ),
    Bug(
        "s6_warp_specialized",
        "a stage is treated as free when one consumer has finished with it",
        "kCluster * kConsumers * kWarpgroup / 32);",
        "kCluster * kWarpgroup / 32);",
        [MORE_OFTEN, *LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s6_warp_specialized",
        "the block ends while the other block still sends to it",
        "}\n__syncwarp();\nptx::barrier_cluster_arrive();\nptx::barrier_cluster_wait();\n}",
        "}\n}",
        [Symptom("block_ended"), Symptom("unfinished_load")],
    ),
    Bug(
        "s7_persistent",
        "results are overwritten while the copy engine still reads them",
        "if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();",
        "",
        [Symptom("released_too_early", r"stmatrix overwrites")],
    ),
    Bug(
        "s7_persistent",
        "no fence between the results and the copy engine",
        "ptx::fence_proxy_async();",
        "",
        [UNFENCED_STORE],
    ),
    Bug(
        "s7_persistent",
        "results leave before all warps have written them",
        "ptx::fence_proxy_async();\n        ptx::bar_sync(1 + consumer, kWarpgroup);",
        "ptx::fence_proxy_async();",
        [RACE],
    ),
    Bug(
        "s7_persistent",
        "the block ends before its results have left",
        "if (threadIdx.x % kWarpgroup == 0) ptx::cp_async_bulk_wait_group_read<0>();",
        "",
        [Symptom("unfinished_store")],
    ),
    Bug(
        "s7_persistent",
        "more registers are asked for than there are",
        "ptx::setmaxnreg_inc<232>();",
        "ptx::setmaxnreg_inc<248>();",
        [Symptom("deadlock", r"block 0, warps? .* waits? for setmaxnreg.inc 248: each thread has")],
    ),
    Bug(
        "s7_persistent",
        "the producer does not wait for an empty stage",
        "ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);",
        "",
        [MORE_OFTEN, *LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s7_persistent",
        "a stage is treated as free when one consumer has finished with it",
        "kCluster * kConsumers * kWarpgroup / 32);",
        "kCluster * kWarpgroup / 32);",
        [MORE_OFTEN, *LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s7_persistent",
        "a stage is released before its WGMMAs have read it",
        [f"{WAIT}                    if (slice == kSlices - 1) {{", RELEASED + "                    }\n"],
        ["if (slice == kSlices - 1) {", RELEASED + f"                    }}\n{WAIT}"],
        [TOO_EARLY],
    ),
    Bug(
        "s7_persistent",
        "the bytes of B's scales are not waited for",
        " + kScalesB * kScaleBox * sizeof(float);",
        ";",
        [MORE_OFTEN, *LOADING, TOO_EARLY, DEADLOCK, WRONG],
    ),
    Bug(
        "s7_persistent",
        "a stage is released before A's scales are read",
        RELEASED,
        READ_SCALES_A + RELEASED,
        [*LOADING, WRONG],
    ),
    Bug(
        "s7_persistent",
        "a stage is released before B's scales are read",
        RELEASED,
        READ_SCALES_B + RELEASED,
        [*LOADING, WRONG],
    ),
    Bug(
        "s7_persistent",
        "B's scale is the first of those that the copy engine brings",
        "(sfb + which * blocks + block) % kScaleBox",
        "0",
        [WRONG],
    ),
    Bug(
        WIDE,
        "all columns of a tile are multiplied by its first scale of B",
        "(tile_n % kScaleN + i * kStoreN) / kScaleN",
        "0",
        [WRONG],
    ),
    Bug(
        WIDE,
        "B's scale is chosen as if every tile began at a new scale block",
        "(tile_n % kScaleN + i * kStoreN) / kScaleN",
        "i * kStoreN / kScaleN",
        [WRONG],
    ),
    Bug(
        WIDE,
        "the second scale of B is that of the K block before",
        "(sfb + which * blocks + block) % kScaleBox",
        "(sfb + which * (blocks - 1) + block) % kScaleBox",
        [WRONG],
    ),
]
