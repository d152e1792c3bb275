"""A reader names the line that a fault changes: which answers are right, and how the change is shown."""

from __future__ import annotations

import gemm_ladder as gl
import pytest
from gemm_ladder.figures import lessons

lessons.find()
from workshop import workbench_production  # noqa: E402
from workshop.changes import Change  # noqa: E402

YES, OTHER, NONE = "is changed, yes.", "is another one.", "is none of this source."
SHORT, MORE, ALONE = "too short to tell", "give more of the line.", "give that line alone."


def in_rung(name: str, *changes: tuple[str, str]) -> Change:
    text = gl.rungs[name].source
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return Change(gl.rungs[name].source, text)


S1 = in_rung("s1_naive", ("p.sfb + column / kScaleK * ceil_div(p.k, kScaleK)", "p.sfb"))
FENCE = in_rung("s3_wgmma", ("ptx::fence_proxy_async();", ""))
PIECE = "(r + i * kRowsPerStep) * kSwizzleRow + chunk * kChunk)"
SWIZZLE = in_rung("s3_wgmma", (f"swizzle_128b({PIECE}", f"({PIECE}"))
BYTES = "kBytesA + kBytesB"
EXPECT = in_rung("s5_tma_multicast", (f"{BYTES} + kBytesScales);", f"{BYTES} / kCluster + kBytesScales);"))
BARRIER = in_rung("s2_tiled", ("        __syncthreads();", "       "))
WAIT = "        ptx::wgmma_wait_group<0>();\n"
PROMOTE = gl.rungs["s3_wgmma"].source.partition(WAIT)[2].partition("        __syncthreads();")[0]
READ = in_rung("s7_persistent", ("if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();", ""))
MOVED = in_rung("s3_wgmma", (WAIT + PROMOTE, PROMOTE + WAIT))


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (S1, "    const float* sfb = p.sfb + column / kScaleK * ceil_div(p.k, kScaleK);", YES),
        (S1, "const float* sfb =", YES),
        (S1, "column / kScaleK * ceil_div", YES),
        (S1, "sfb", SHORT),
        (S1, "p.sfb", YES),
        (S1, "const", MORE),
        (S1, "float total = 0.0f;", OTHER),
        (S1, "the scale of B", NONE),
        (S1, gl.rungs["s1_naive"].source, ALONE),
        (FENCE, "fence_proxy_async", YES),
        (FENCE, "ptx::fence_proxy_async();  // makes this thread's stores visible to the tensor core", YES),
        (FENCE, "        ptx::fence_proxy_async();\n        __syncthreads();\n", YES),
        (FENCE, "ptx::", MORE),
        (FENCE, "ptx::wgmma_fence();", OTHER),
        (FENCE, "// makes this thread's stores visible", YES),
        (SWIZZLE, "ptx::st_shared(tile + swizzle_128b", YES),
        (SWIZZLE, "ptx::st_shared", YES),
        (EXPECT, "ptx::mbarrier_arrive_expect_tx(full, kBytesA", YES),
        (EXPECT, "kBytesScales", MORE),
        (READ, "cp_async_bulk_wait_group_read<0>();", MORE),
        (READ, "cp_async_bulk_wait_group_read<0>();  // the previous", YES),  # its comment tells it apart
        (READ, "if (thread == 0) ptx::cp_async_bulk_wait_group_read<0>();  // my words", YES),
        (BARRIER, "__syncthreads();", YES),  # the whole line: more cannot be asked for
        (MOVED, "wgmma_wait_group", YES),
        (MOVED, "total[i] = fmaf(partial[i]", YES),  # it moves as well, if the wait stays
        (MOVED, "ptx::wgmma_commit_group();", OTHER),
    ],
)
def test_the_line_that_a_reader_names(change: Change, line: str, said: str) -> None:
    found = change.verdict(line)
    assert said in found if said == SHORT else found.endswith(said), found


def test_a_change_is_shown_by_its_lines_alone() -> None:
    assert S1.shown() == (
        "    - const float* sfb = p.sfb + column / kScaleK * ceil_div(p.k, kScaleK);\n"
        "    + const float* sfb = p.sfb;"
    )
    assert (
        FENCE.shown()
        == "    - ptx::fence_proxy_async();  // makes this thread's stores visible to the tensor core"
    )
    assert MOVED.shown() == f"    - {WAIT.strip()}\n    ...\n    + {WAIT.strip()}"


def test_a_line_out_of_many_is_shown_alone_and_its_neighbours_are_other_lines() -> None:
    """Lesson 11's second fault: the text that is replaced has 14 lines, of which one goes."""
    text = workbench_production.source("gemm.cuh")
    until = text[text.index("    static __device__ void reduce(") :].partition("        meet();")[0]
    change = Change(text, text.replace(until + "        meet();", until))
    assert change.shown() == "    - meet();" and until.count("\n") > 5
    assert change.verdict("        meet();").endswith(YES)
    assert change.verdict(until.splitlines()[2]).endswith(OTHER)
