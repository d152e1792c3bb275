"""The exercises' checks: what they must refuse and what they must accept, beside the solutions."""

from __future__ import annotations

import pytest
from gemm_ladder.figures import lessons

lessons.find()
from workshop import exercises  # noqa: E402
from workshop.exercises import record  # noqa: E402

BEHIND = "Behind the barrier"  # what a check says of a fence that is there


def verdict(name: str, mine: object) -> record.Verdict:
    return exercises.exercise(name).check(mine)


@pytest.mark.parametrize(
    ("name", "lines", "right", "says"),
    [
        ("04.4", "__syncthreads(); ptx::fence_proxy_async(); ptx::wgmma_fence();", True, BEHIND),
        ("09.3", "ptx::bar_sync(1 + consumer, kWarpgroup); ptx::fence_proxy_async();", True, BEHIND),
        ("09.3", "ptx::bar_sync(1 + consumer, kWarpgroup);", False, "without fence.proxy.async"),
    ],
)
def test_a_fence_before_or_behind_the_barrier(name: str, lines: str, right: bool, says: str) -> None:
    """PTX accepts both; none is a fault, and a fence cannot replace the barrier."""
    found = verdict(name, f"        {lines}\n")
    assert found.right == right and says in found.words and (says == BEHIND) == (BEHIND in found.words)
