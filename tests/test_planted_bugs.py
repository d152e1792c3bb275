"""The emulator catches what a GPU would let pass on a lucky day: each test plants one bug in a rung's source.

Caught means: an error that names the fault, or a wrong answer, in at least one of SEEDS schedules, and in
none of them a symptom other than the bug's own. The control: the unchanged source gives the right answer to
the same problem in all of them.
"""

from __future__ import annotations

import ctypes
import functools
import re

import gemm_ladder as gl
import numpy as np
import pytest
from gemm_ladder import build
from gemm_ladder.ref import emulator, tensor_core
from gemm_ladder.rungs import GemmArgs

SEEDS = 20
CONTROL = "control"  # the variant without a bug
# One tile, or a cluster's; two for each block of the persistent rung, which is told that there are two SMs.
# Six blocks of K turn a ring of four stages one and a half times.
ROWS = {"s2_wgmma": 64, "s3_tma": 64, "s4_tma_multicast": 128, "s5_warp_specialized": 512}
N, K, SMS = 128, 768, 2
WRONG = "wrong answer"
UNFENCED = r"wgmma \([AB]\) reads shared memory at 0x\w+ that thread \d+ wrote without fence.proxy.async"
TOO_EARLY = r"overwrites 0x\w+ while a WGMMA or a TMA store may still read it: released too early"
LOADING = r"0x\w+ (while|reads bytes that) a TMA load is still writing"
DEADLOCK = r"deadlock in cluster 0 after \d+ steps: block 0, warp"

WAIT = "ptx::wgmma_wait_group<0>();\n"
PROMOTION = (
    "#pragma unroll\n        for (int i = 0; i < kRegisters; ++i) "
    "total[i] = fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i]);\n"
)
RELEASE = "        if (ptx::laneid() == 0) ptx::mbarrier_arrive(empty(stage));\n"


def either(*symptoms: str) -> str:
    return "|".join(symptoms)


# rung, what is wrong, the text, its replacement, what the emulator says (a regular expression) or WRONG
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
        "__syncthreads();           // ... and everybody's",
        "",
        either(UNFENCED, TOO_EARLY, WRONG),
    ),
    (
        "s2_wgmma",
        "the next tile is stored while this one is being read",
        "__syncthreads();  // nobody overwrites a tile that is still being read",
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
        "a block of K starts from the last one's sum",
        "k != 0);",
        "1);",
        WRONG,
    ),
    (
        "s3_tma",
        "the consumers wait for the wrong parity",
        "ptx::mbarrier_wait_parity(full(stage), parity);",
        "ptx::mbarrier_wait_parity(full(stage), parity ^ 1);",
        either(LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s3_tma",
        "the producer waits for the wrong parity",
        "ptx::mbarrier_wait_parity(empty(stage), parity ^ 1);",
        "ptx::mbarrier_wait_parity(empty(stage), parity);",
        DEADLOCK
        + r".* warp 0 waits for mbarrier 0x\w+ to complete a phase of parity 0: it is in phase 0 with 4 of 4",
    ),
    (
        "s3_tma",
        "the producer does not wait for an empty stage",
        "ptx::mbarrier_wait_parity(empty(stage), parity ^ 1);",
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
        "ptx::mbarrier_arrive_expect_tx(full(stage), kBytesStage);",
        "ptx::mbarrier_arrive(full(stage));",
        either(LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s3_tma",
        "the barrier expects too many bytes",
        "ptx::mbarrier_arrive_expect_tx(full(stage), kBytesStage);",
        "ptx::mbarrier_arrive_expect_tx(full(stage), kBytesStage + 16);",
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
        "nobody waits for mbarrier.init",
        "    __syncthreads();\n",
        "",
        r"no mbarrier was initialised at 0x\w+ of block 0",
    ),
    (
        "s3_tma",
        "two arrivals where the barrier counts one",
        "if (ptx::laneid() == 0) ptx::mbarrier_arrive(empty(stage));",
        "if (ptx::laneid() < 2) ptx::mbarrier_arrive(empty(stage));",
        either(r"arrives on mbarrier 0x\w+ more often than its count", LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s3_tma",
        "the stages overlap",
        "return smem_a(kStages) + stage * kBytesB;",
        "return smem_a(kStages - 1) + stage * kBytesB;",
        either(LOADING, TOO_EARLY, WRONG),
    ),
    (
        "s3_tma",
        "too little shared memory is asked for",
        ".shared_bytes = kSharedBytes,",
        ".shared_bytes = kSharedBytes - 8,",
        r"mbarrier.init at 0x\w+ \(8 bytes\) is outside the block's shared memory",
    ),
    (
        "s4_tma_multicast",
        "a stage is taken for free before the neighbour's warps have finished with it",
        "ptx::mbarrier_init(empty(stage), kCluster * kThreads / 32);",
        "ptx::mbarrier_init(empty(stage), kThreads / 32);",
        either(r"arrives on mbarrier 0x\w+ more often than its count", LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s4_tma_multicast",
        "the neighbour is not told that a stage is free",
        "ptx::mapa(empty(stage), ptx::laneid())",
        "ptx::mapa(empty(stage), 0)",
        either(r"arrives on mbarrier 0x\w+ more often than its count", LOADING, TOO_EARLY, DEADLOCK, WRONG),
    ),
    (
        "s4_tma_multicast",
        "a load begins before the neighbour's barriers exist",
        "ptx::barrier_cluster_arrive();  // nobody sends before every block's barriers exist\n"
        "    ptx::barrier_cluster_wait();",
        "__syncthreads();",
        r"no mbarrier was initialised at 0x\w+ of block [01]|which the copy engine cannot see|" + WRONG,
    ),
    (
        "s4_tma_multicast",
        "a block leaves while its neighbour still sends to it",
        "ptx::barrier_cluster_arrive();  // nobody leaves while its neighbour may still send to it\n"
        "    ptx::barrier_cluster_wait();",
        "",
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
        "results leave before all warps have written them",
        "ptx::fence_proxy_async();\n    ptx::bar_sync(1 + consumer, kWarpgroup);",
        "ptx::fence_proxy_async();",
        either(r"TMA store reads shared memory at 0x\w+ that", TOO_EARLY, WRONG),
    ),
    (
        "s5_warp_specialized",
        "the block ends before its results have left",
        "if (threadIdx.x % kWarpgroup == 0) ptx::cp_async_bulk_wait_group<0>();",
        "",
        r"exits while a TMA store may still read shared memory",
    ),
    (
        "s5_warp_specialized",
        "more registers are asked for than there are",
        "ptx::setmaxnreg_inc<232>();",
        "ptx::setmaxnreg_inc<248>();",
        DEADLOCK + r".* waits for setmaxnreg.inc: no registers are free",
    ),
]


@functools.cache
def problem(m: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Operands, and the bits of their product."""
    rng = np.random.default_rng(7)
    codes = [
        rng.integers(0, 0x60, (rows, K), np.uint8) | rng.integers(0, 2, (rows, K), np.uint8) << 7
        for rows in (m, N)
    ]
    scales = [rng.uniform(0.5, 2.0, (rows, K // 128)).astype(np.float32) for rows in (m, N // 128)]
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
        if of == rung:
            assert old in source, f"{rung} has changed: plant again: {what}"
            variants[index] = source.replace(old, new, 1)
    includes = [line for line in source.splitlines() if line.startswith("#include")]
    parts = []
    for variant, body in variants.items():
        body = body.replace("gemm_ladder_launch", f"gemm_ladder_launch_{variant}")
        body = "\n".join(line for line in body.splitlines() if not line.startswith("#include"))
        parts.append(f"namespace variant_{variant} {{\n{body}\n}}")
    return build.load("\n".join(includes + parts), target="emulator", name=f"bugs_{rung}").lib


def faults(rung: str, variant: int | str) -> list[str]:
    """What the emulator says, or WRONG, of each of SEEDS schedules that does not give the right answer."""
    library = Planted(planted(rung), variant)
    m = ROWS[rung]
    (a, sfa, b, sfb), expected = problem(m)
    sfa = np.ascontiguousarray(sfa.T)
    caught = []
    for seed in range(SEEDS):
        d = np.full((m, N), 0x7FA5, np.uint16)
        names = ("a", "sfa", "b", "sfb", "d")
        pointers = {name: x.ctypes.data for name, x in zip(names, (a, sfa, b, sfb, d), strict=True)}
        try:
            with gl.emulator(seed=seed):
                emulator.launch(library, GemmArgs(**pointers, m=m, n=N, k=K, sfa_stride=m, num_sms=SMS))
        except gl.EmulatorError as error:
            caught.append(str(error))
        else:
            if not np.array_equal(d, expected):
                caught.append(WRONG)
    return caught


@pytest.mark.parametrize("index", range(len(BUGS)), ids=[f"{rung}: {what}" for rung, what, *_ in BUGS])
def test_caught(index: int) -> None:
    rung, _, _, _, symptom = BUGS[index]
    caught = faults(rung, index)
    assert caught, f"not caught by any of {SEEDS} seeds"
    unexpected = [text for text in caught if not re.search(symptom, text)]
    assert not unexpected, "\n".join(sorted(set(unexpected)))


@pytest.mark.parametrize("rung", ROWS)
def test_nothing_is_caught_where_no_bug_is(rung: str) -> None:
    assert faults(rung, CONTROL) == []
