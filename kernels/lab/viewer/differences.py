"""Where two runs of a kernel, or of two versions of it, do not do the same."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

from gemm_ladder.lab.viewer.history import History
from gemm_ladder.lab.viewer.sentences import SENTENCES

# Values that are operands of the instruction, and so the same in every schedule.
_OPERANDS = frozenset(SENTENCES) - {"mbarrier_arrive", "mbarrier_complete_tx", "mbarrier_phase"}

# An event, and what of it does not depend on the schedule: its kind, its address and its operand.
Step = tuple[int, tuple[str, int, int]]


def differences(first: History, second: History) -> tuple[list[int], list[int]]:
    """For each warp that both have, the first event that differs. That one run ends earlier is no difference.

    The order in which the lanes of a warp have their turns is the schedule's, so each lane is compared with
    itself. elect.sync may choose another lane in the other run; then the order of a warp's events is not
    compared, only whether the other run has each of them as often.

    Returns:
        The events of the first and of the second run, each in the order of time. A warp has one in both, or
        in the run that does what the other leaves out.
    """
    found: tuple[set[int], set[int]] = set(), set()
    mine, theirs = _of_warps(first), _of_warps(second)
    for warp in mine.keys() & theirs.keys():
        if mine[warp].keys() == theirs[warp].keys():
            pairs = [_first_pair(mine[warp][lane], theirs[warp][lane]) for lane in mine[warp]]
            if known := [pair for pair in pairs if pair]:
                pair = min(known)
                found[0].add(pair[0])
                found[1].add(pair[1])
        else:
            both = [sorted(itertools.chain(*of[warp].values())) for of in (mine, theirs)]
            for here, (steps, others) in enumerate((both, both[::-1])):
                if (event := _left_out(steps, others)) is not None:
                    found[here].add(event)
    return sorted(found[0]), sorted(found[1])


def _of_warps(history: History) -> dict[tuple[int, int], dict[int, list[Step]]]:
    """By the block's rank and the warp, and by the lane: what stands for the warp."""
    found: dict[tuple[int, int], dict[int, list[Step]]] = defaultdict(lambda: defaultdict(list))
    for event, kind in enumerate(history.kind):
        if history.thread[event] >= 0 and history.shown[event]:
            warp, lane = divmod(history.thread[event], 32)
            value = history.value[event] if kind in _OPERANDS else 0
            place = history.blocks.index(history.block[event]), warp
            found[place][lane].append((event, (kind, history.address[event], value)))
    return found


def _first_pair(steps: list[Step], others: list[Step]) -> tuple[int, int] | None:
    """The first two events at the same place of two sequences that are not the same."""
    for (event, what), (other, else_) in zip(steps, others, strict=False):
        if what != else_:
            return event, other
    return None


def _left_out(steps: list[Step], others: list[Step]) -> int | None:
    """The first event that the other sequence has less often, although it has later ones of this sequence."""
    there = Counter(what for _, what in others)
    missing = None
    for event, what in steps:
        there[what] -= 1
        if there[what] < 0:
            missing = event if missing is None else missing
        elif missing is not None:
            return missing
    return None
