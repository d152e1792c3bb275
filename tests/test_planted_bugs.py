"""Each test plants one bug in a rung's source, which the emulator must catch; a GPU might be right by luck.

A bug is caught if at least one of SEEDS schedules ends with an error that names the fault or with a wrong
answer, and none ends with a symptom that is not the bug's own. As the control, the unchanged source gives the
right answer to the same problem in all of them.
"""

from __future__ import annotations

import ctypes
import functools
import re

import gemm_ladder as gl
import numpy as np
import pytest
from gemm_ladder import build
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.ref import emulator, tensor_core

SEEDS = 20
CONTROL = "control"  # the variant without a bug
# By the kernel, a rung or a rung and its tile: (m, n). One tile, or a cluster's; two for each block of the
# persistent rung, which is told that there are two SMs. There, B's scale changes inside the wide tiles.
WIDE = "s5_warp_specialized 128x192"
SHAPES = {
    "s2_wgmma": (64, 128),
    "s3_tma": (64, 128),
    "s4_tma_multicast": (128, 128),
    "s5_warp_specialized 256x128": (512, 128),
    WIDE: (256, 264),
}
K, SMS = 768, 2  # six K blocks go around a ring of four stages one and a half times
WRONG = "wrong answer"
UNFENCED = r"wgmma \([AB]\) reads shared memory at 0x\w+ that thread \d+ wrote without fence.proxy.async"
TOO_EARLY = r"overwrites 0x\w+ while a WGMMA or a TMA store may still read it: released too early"
LOADING = r"0x\w+ (while|reads bytes that) a TMA load is still writing"
MORE_OFTEN = r"arrives on mbarrier 0x\w+ more often than its count"
DEADLOCK = r"deadlock in cluster 0 after \d+ steps: block 0, warp"

WAIT = "ptx::wgmma_wait_group<0>();\n"
PROMOTION = (
    "#pragma unroll\n        for (int i = 0; i < kRegisters; ++i) "
    "total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);\n"
)
RELEASE = "        if (ptx::laneid() == 0) ptx::mbarrier_arrive(ring.stage + kEmpty);\n"
# Of s5, after the stage's release.
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


def either(*symptoms: str) -> str:
    return "|".join(symptoms)


# A rung or one kernel of it, what is wrong, the text, its replacement, and what the emulator says (a regular
# expression) or WRONG. A text of several parts, each with its replacement, is given as lists.
BUGS = [
    (
        "s2_wgmma",
        "no fence between ordinary stores and the tensor core",
        "ptx::fence_proxy_async();",
        "",
        UNFENCED,
    ),
    (
        "s2_wgmma",
        "no barrier between the stores and the tensor core",
        "__syncthreads();           // every thread has stored and fenced",
        "",
        either(UNFENCED, TOO_EARLY, WRONG),
    ),
    (
        "s2_wgmma",
        "the next tile is stored while this one is being read",
        "__syncthreads();  // the next copy must not overwrite a tile that is still being read",
        "",
        either(UNFENCED, TOO_EARLY, WRONG),
    ),
    (
        "s2_wgmma",
        "no wgmma.fence after the accumulators were read",
        "ptx::wgmma_fence();",
        "",
        r"wgmma without wgmma.fence after the accumulators were last touched",
    ),
    (
        "s2_wgmma",
        "the WGMMAs are never waited for",
        WAIT,
        "",
        either("exits with WGMMAs in flight", TOO_EARLY),
    ),
    (
        "s2_wgmma",
        "the accumulators are read before the wait",
        f"        {WAIT}{PROMOTION}",
        f"{PROMOTION}        {WAIT}",
        WRONG,
    ),
    (
        "s2_wgmma",
        "the WGMMAs are never committed, so the wait waits for nothing",
        "ptx::wgmma_commit_group();",
        "",
        either("exits with WGMMAs in flight", TOO_EARLY),
    ),
    (
        "s2_wgmma",
        "the descriptor's stride byte offset is half of what it should be",
        "desc_b = smem_descriptor(smem_b);",
        "desc_b = smem_descriptor(smem_b) ^ (96ull << 32);",
        WRONG,
    ),
    (
        "s2_wgmma",
        "the stores are not swizzled",
        "swizzle_128b((r + i * kRowsPerStep) * kSwizzleRow + chunk * kChunk)",
        "((r + i * kRowsPerStep) * kSwizzleRow + chunk * kChunk)",
        WRONG,
    ),
    (
        "s2_wgmma",
        "a K block starts from the previous one's sum",
        "k != 0);",
        "1);",
        WRONG,
    ),
    (
        "s3_tma",
        "the consumers wait for the wrong parity",
        "ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity);",
        "ptx::mbarrier_wait_parity(ring.stage + kFull, ring.parity ^ 1);",
        either(LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s3_tma",
        "the producer waits for the wrong parity",
        "ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);",
        "ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity);",
        DEADLOCK
        + r".* warp 0 waits for mbarrier 0x\w+ to complete a phase of parity 0: it is in phase 0 with 4 of 4",
    ),
    (
        "s3_tma",
        "the producer does not wait for an empty stage",
        "ptx::mbarrier_wait_parity(next.stage + kEmpty, next.parity ^ 1);",
        "",
        either(LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s3_tma",
        "a stage is released before its WGMMAs have read it",
        f"{WAIT}        __syncwarp();\n{RELEASE}",
        f"__syncwarp();\n{RELEASE}        {WAIT}",
        TOO_EARLY,
    ),
    (
        "s3_tma",
        "the barrier is not told how many bytes to expect",
        "ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);",
        "ptx::mbarrier_arrive(full);",
        either(LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s3_tma",
        "the barrier expects too many bytes",
        "ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales);",
        "ptx::mbarrier_arrive_expect_tx(full, kBytesA + kBytesB + kBytesScales + 16);",
        DEADLOCK + r".* with 0 of 1 arrivals pending and 16 bytes to come",
    ),
    (
        "s3_tma",
        "mbarrier.init is not made visible to the copy engine",
        "ptx::fence_mbarrier_init();",
        "",
        r"TMA load on mbarrier 0x\w+, which the copy engine cannot see: fence.mbarrier_init after",
    ),
    (
        "s3_tma",
        "the warps do not wait for mbarrier.init",
        "    __syncthreads();\n",
        "",
        r"no mbarrier was initialised at 0x\w+ of block 0",
    ),
    (
        "s3_tma",
        "two arrivals where the barrier counts one",
        "if (ptx::laneid() == 0) ptx::mbarrier_arrive(ring.stage + kEmpty);",
        "if (ptx::laneid() < 2) ptx::mbarrier_arrive(ring.stage + kEmpty);",
        either(MORE_OFTEN, LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s3_tma",
        "A and B overlap in a stage",
        "kB = kBytesA,",
        "kB = kBytesA - 1024,",
        either(LOADING, TOO_EARLY, WRONG),
    ),
    (
        "s3_tma",
        "the stages overlap: the next one's tile of A lies on the scales and the barriers",
        "ceil_div(kEmpty + 16, 1024) * 1024;\nconstexpr uint32_t kSharedBytes = kStages * kBytesStage;",
        "kEmpty / 1024 * 1024;\nconstexpr uint32_t kSharedBytes = kStages * kBytesStage + 1024;",
        either(LOADING, r"TMA load overwrites the mbarrier near 0x\w+"),
    ),
    (
        "s3_tma",
        "too little shared memory is requested",
        ".shared_bytes = kSharedBytes,",
        ".shared_bytes = kSharedBytes - kBytesStage + kEmpty,",
        r"mbarrier.init at 0x\w+ \(8 bytes\) is outside the block's shared memory",
    ),
    (
        "s4_tma_multicast",
        "a stage counts as empty before the neighbour's warps have finished with it",
        "ptx::mbarrier_init(smem_stage(stage) + kEmpty, kCluster * kThreads / 32);",
        "ptx::mbarrier_init(smem_stage(stage) + kEmpty, kThreads / 32);",
        either(MORE_OFTEN, LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s4_tma_multicast",
        "the neighbour is not told that a stage is free",
        "ptx::mapa(ring.stage + kEmpty, ptx::laneid())",
        "ptx::mapa(ring.stage + kEmpty, 0)",
        either(MORE_OFTEN, LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s4_tma_multicast",
        "a load begins before the neighbour's barriers exist",
        "ptx::barrier_cluster_arrive();  // both CTAs' mbarriers exist before either CTA sends\n"
        "    ptx::barrier_cluster_wait();",
        "__syncthreads();",
        "which may not have begun: the blocks have not met yet",
    ),
    (
        "s4_tma_multicast",
        "a CTA exits while its neighbour still sends to it",
        [
            "ptx::barrier_cluster_arrive();  // before the stores",
            "ptx::barrier_cluster_wait();  // no CTA exits",
        ],
        ["//", "//"],
        r"reaches into block [01] of its cluster, which has already ended|the block ends while",
    ),
    (
        "s5_warp_specialized",
        "results are overwritten while the copy engine still reads them",
        "if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();",
        "",
        r"st.shared " + TOO_EARLY,
    ),
    (
        "s5_warp_specialized",
        "no fence between the results and the copy engine",
        "ptx::fence_proxy_async();",
        "",
        r"TMA store reads shared memory at 0x\w+ that thread \d+ wrote without fence.proxy.async",
    ),
    (
        "s5_warp_specialized",
        "the TMA store begins before all warps have written their results",
        "ptx::fence_proxy_async();\n        ptx::bar_sync(1 + consumer, kWarpgroup);",
        "ptx::fence_proxy_async();",
        either(r"TMA store reads shared memory at 0x\w+ that", TOO_EARLY, WRONG),
    ),
    (
        "s5_warp_specialized",
        "the CTA exits before the TMA store has read its results",
        "if (threadIdx.x % kWarpgroup == 0) ptx::cp_async_bulk_wait_group_read<0>();",
        "",
        r"exits while a TMA store may still read shared memory",
    ),
    (
        "s5_warp_specialized",
        "more registers are requested than there are",
        "ptx::setmaxnreg_inc<232>();",
        "ptx::setmaxnreg_inc<248>();",
        DEADLOCK + r".* waits for setmaxnreg.inc: no registers are free",
    ),
    (
        "s5_warp_specialized",
        "the producer does not wait for an empty stage",
        "ptx::mbarrier_wait_parity(ring.stage + kEmpty, ring.parity ^ 1);",
        "",
        either(MORE_OFTEN, LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s5_warp_specialized",
        "a stage counts as empty when one of the two consumers has finished with it",
        "kCluster * kConsumers * kWarpgroup / 32);",
        "kCluster * kWarpgroup / 32);",
        either(MORE_OFTEN, LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s5_warp_specialized",
        "a stage is released before its WGMMAs have read it",
        [f"{WAIT}                    if (slice == kSlices - 1) {{", RELEASED + "                    }\n"],
        ["if (slice == kSlices - 1) {", RELEASED + f"                    }}\n{WAIT}"],
        TOO_EARLY,
    ),
    (
        "s5_warp_specialized",
        "the bytes of B's scales are not waited for",
        " + kScalesB * kScaleBox * sizeof(float);",
        ";",
        either(MORE_OFTEN, LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s5_warp_specialized",
        "a stage is released before A's scales are read",
        RELEASED,
        READ_SCALES_A + RELEASED,
        either(LOADING, WRONG),
    ),
    (
        "s5_warp_specialized",
        "a stage is released before B's scales are read",
        RELEASED,
        READ_SCALES_B + RELEASED,
        either(LOADING, WRONG),
    ),
    (
        "s5_warp_specialized",
        "B's scale is always the first of the box that the copy engine loads",
        "(sfb + which * blocks + block) % kScaleBox",
        "0",
        WRONG,
    ),
    (
        WIDE,
        "all columns of a tile are multiplied by its first scale of B",
        "(tile_n % kScaleN + i * kStoreN) / kScaleN",
        "0",
        WRONG,
    ),
    (
        WIDE,
        "B's scale is chosen as if every tile began at a multiple of 128 columns",
        "(tile_n % kScaleN + i * kStoreN) / kScaleN",
        "i * kStoreN / kScaleN",
        WRONG,
    ),
    (
        WIDE,
        "the second scale of B is one K block behind",
        "(sfb + which * blocks + block) % kScaleBox",
        "(sfb + which * (blocks - 1) + block) % kScaleBox",
        WRONG,
    ),
]


def rung_of(kernel: str) -> str:
    return kernel.split()[0]


# (kernel, bug): a bug of a rung is one of each of its kernels.
PLANTED = [
    (kernel, index)
    for index, (of, *_) in enumerate(BUGS)
    for kernel in SHAPES
    if of in (kernel, rung_of(kernel))
]


@functools.cache
def problem(m: int, n: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Operands, and the bits of their product."""
    rng = np.random.default_rng(7)
    codes = [
        rng.integers(0, 0x60, (rows, K), np.uint8) | rng.integers(0, 2, (rows, K), np.uint8) << 7
        for rows in (m, n)
    ]
    scales = [rng.uniform(0.5, 2.0, (rows, K // 128)).astype(np.float32) for rows in (m, -(-n // 128))]
    operands = codes[0], scales[0], codes[1], scales[1]
    return operands, tensor_core.gemm(*operands)


class Planted:
    """One variant of a rung, as `emulator.launch` wants it. All of a rung are compiled together: faster."""

    def __init__(self, library: ctypes.CDLL, variant: int | str) -> None:
        self._library = library
        self.gemm_ladder_launch = library[f"gemm_ladder_launch_{variant}"]

    def __getattr__(self, name: str):
        return getattr(self._library, name)


@functools.cache
def planted(rung: str) -> ctypes.CDLL:
    """The rung as it is (CONTROL) and with each of its bugs (their indices), in a namespace each."""
    source = gl.rungs[rung].source
    variants = {CONTROL: source}
    for index, (of, what, old, new, _) in enumerate(BUGS):
        if rung_of(of) == rung:
            variants[index] = source
            for text, replacement in zip(
                *([x] if isinstance(x, str) else x for x in (old, new)), strict=True
            ):
                assert text in source, f"{rung} has changed: plant again: {what}"
                variants[index] = variants[index].replace(text, replacement, 1)
    includes = [line for line in source.splitlines() if line.startswith("#include")]
    parts = []
    for variant, body in variants.items():
        body = body.replace("gemm_ladder_launch", f"gemm_ladder_launch_{variant}")
        body = "\n".join(line for line in body.splitlines() if not line.startswith("#include"))
        parts.append(f"namespace variant_{variant} {{\n{body}\n}}")
    return build.load("\n".join(includes + parts), target="emulator", name=f"bugs_{rung}").lib


def faults(kernel: str, variant: int | str) -> list[str]:
    """What the emulator says, or WRONG, of each of SEEDS schedules that does not give the right answer."""
    library = Planted(planted(rung_of(kernel)), variant)
    m, n = SHAPES[kernel]
    (a, sfa, b, sfb), expected = problem(m, n)
    sfa = np.ascontiguousarray(sfa.T)
    caught = []
    for seed in range(SEEDS):
        d = np.full((m, n), 0x7FA5, np.uint16)
        names = ("a", "sfa", "b", "sfb", "d")
        pointers = {name: x.ctypes.data for name, x in zip(names, (a, sfa, b, sfb, d), strict=True)}
        try:
            with gl.emulator(seed=seed):
                emulator.launch(library, GemmArgs(**pointers, m=m, n=n, k=K, sfa_stride=m, num_sms=SMS))
        except gl.EmulatorError as error:
            caught.append(str(error))
        else:
            if not np.array_equal(d, expected):
                caught.append(WRONG)
    return caught


@pytest.mark.parametrize(
    ("kernel", "index"), PLANTED, ids=[f"{kernel}: {BUGS[index][1]}" for kernel, index in PLANTED]
)
def test_caught(kernel: str, index: int) -> None:
    symptom = BUGS[index][-1]
    caught = faults(kernel, index)
    assert caught, f"not caught by any of {SEEDS} seeds"
    unexpected = [text for text in caught if not re.search(symptom, text)]
    assert not unexpected, "\n".join(sorted(set(unexpected)))


@pytest.mark.parametrize("kernel", SHAPES)
def test_the_unchanged_rung_is_right(kernel: str) -> None:
    assert faults(kernel, CONTROL) == []


def test_each_shape_makes_its_rung_take_another_tile() -> None:
    """Otherwise a kernel of s5 would not be tested."""
    asked = []
    for kernel, (m, n) in SHAPES.items():
        with gl.emulator(dry=True) as run:
            args = GemmArgs(m=m, n=n, k=K, sfa_stride=m, num_sms=SMS)  # nothing runs: no tensors
            emulator.launch(Planted(planted(rung_of(kernel)), CONTROL), args)
        asked.append((rung_of(kernel), run.launches[0].shared_bytes))
    assert len(set(asked)) == len(SHAPES)
