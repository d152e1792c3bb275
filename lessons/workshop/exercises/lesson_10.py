"""Lesson 10's exercises: control bits, and which FFMA yields."""

from __future__ import annotations

import collections

import gemm_ladder as gl
import numpy as np
from gemm_ladder.rungs import Rung
from gemm_ladder.sass import ffma
from workshop import apart, workbench, workbench_sass
from workshop.exercises.record import Exercise, Verdict, compared, in_rung, same

TENSOR = 8192  # FP8 operations a cycle and SM: the H100's dense peak, over its SMs and its clock
# Other than those of s7's run: a scale comes an odd number of times before the next one, and comes back.
OTHER_SCALES = [7, 7, 7, 8, 8, 8, 8, 7, 7, 8, 8, 8, 7, 7, 7, 8]
LANES = 128  # FFMAs a cycle and SM: "Arithmetic Instructions", CUDA C++ Programming Guide


def _control(mine: object) -> Verdict:
    listing = workbench_sass.code().instructions("compiler")
    return compared(
        mine,
        lambda i: (listing[i].stall, listing[i].yields, listing[i].reuse),
        [(i,) for i in range(0, len(listing), 3)],
    )


def _keeps(gap: int, scale: int, next_scale: int, destination: int) -> bool:
    """As the pass has it."""
    one = ffma.Ffma(address=0, word=scale << 32 | destination << 16)
    return ffma.may_reuse(one, ffma.Ffma(address=gap, word=next_scale << 32))


def _yields(mine: object) -> Verdict:
    mode_of = {0: "off", 9: "9_of_16", 16: "full"}
    code = workbench_sass.code()
    own = [one.scale for one in code.run("compiler")]
    which = (0, 1, 2, 17, 31, 32, 33, 34, 35, 36, 38, 63)
    cases = [(i, sixteenths, own) for sixteenths in mode_of for i in which]
    cases += [(i, sixteenths, OTHER_SCALES) for sixteenths in (9, 16) for i in range(len(OTHER_SCALES))]

    def right(i: int, sixteenths: int, scales: list[int]) -> bool:
        if scales is own:
            return code.run(mode_of[sixteenths])[i].yields
        return i < len(scales) * sixteenths // 16 and scales[:i].count(scales[i]) % 2 == 0

    return compared(mine, right, cases, lambda given: "scales" if given is own else str(given))


def _overlap(mine: object) -> Verdict:
    source = gl.rungs["s6_warp_specialized"].source
    begin = source.index("#pragma unroll\n            for (int slice = 0; slice < kSlices")
    end = source.index("        }\n\n        // ---- Epilogue", begin)
    changes = (
        (" = {}, partial[kRegisters];", " = {}, partial[kSlices][kRegisters];"),
        (source[begin:end], str(mine)),
    )
    of = workbench.problem(m=512, n=128, k=640)
    verdict = in_rung("s6_warp_specialized", of, *changes, seeds=4)
    if verdict.right and not apart.call(_waits_early, workbench.changed("s6_warp_specialized", *changes), of):
        return Verdict(False, "the bits are right, but nobody waits for one of two groups in flight.")
    return verdict


def _waits_early(rung: Rung, of: workbench.Problem) -> bool:
    """Whether some thread waits for its first group of WGMMAs while a second one may stay in flight."""
    with gl.emulator(record=True) as run:
        workbench.multiply(rung, of, "cpu")
    in_flight: dict[tuple[int, int], int] = collections.Counter()
    for event in run.events[np.isin(run.events["kind"], ("wgmma_commit", "wgmma_wait"))]:
        who = int(event["block"]), int(event["thread"])
        if event["kind"] == "wgmma_commit":
            in_flight[who] += 1
        elif in_flight[who] > event["value"] > 0:
            return True
        else:
            in_flight[who] = min(in_flight[who], int(event["value"]))
    return False


EXERCISES = {
    "10.1": Exercise(
        _control,
        (
            "The control bits are the highest of the 128, and `high` has the upper 64. The picture of "
            "section 1 says at which bit each field begins.",
            "To read a field, shift it down and cut it to its width: stall has 4 bits, yield 1, reuse 4. And "
            "yield is stored inverted.",
            "In `high`, stall begins at bit 41, yield at bit 45, reuse at bit 58. Shift by these, and cut "
            "with & 15 or & 1; turn the yield round with not.",
        ),
    ),
    "10.2": Exercise(
        same(
            _keeps,
            [
                (16, 200, 200, 195),
                (16, 200, 203, 195),
                (32, 200, 200, 195),
                (48, 200, 200, 195),
                (16, 200, 200, 200),
                (16, 7, 7, 7),
                (16, 7, 7, 8),
            ],
        ),
        (
            "What is kept is meant for the very next instruction. What could make it useless, or wrong?",
            "An instruction has 16 bytes, so the next FFMA is the next instruction only where gap is 16. It "
            "has to read the same register, and that must still have the same value.",
            "Three conditions, joined by and: the gap, the two scales, and that the first FFMA does not "
            "write to the register of its scale.",
        ),
    ),
    "10.3": Exercise(
        _yields,
        (
            "Look at the runs of section 2: in mode full, which uses of a scale yield, the even or the odd "
            "ones? A scale's uses need not follow each other.",
            "Two conditions. i lies in the first part of the run, whose length is a part of len(scales). "
            "And it is the first use of its scale, or the third, the fifth: an even number of uses came "
            "before it.",
            "scales[:i].count(scales[i]) is how often this scale was used before; it has to be even. The "
            "part ends at len(scales) * sixteenths // 16.",
        ),
    ),
    "10.4": Exercise(
        same(
            lambda columns: (
                2 * 64 * columns * 128 / TENSOR,
                64 * columns / LANES / (2 * 64 * columns * 128 / TENSOR),
            ),
            [(64,), (128,), (192,), (256,)],
        ),
        (
            "The first cells of this lesson count cycles for 128 columns: WGMMAs and promotion. Do the same "
            "for any number.",
            "The WGMMAs' operations are 2 m n k, with m = 64 and k = 128, over TENSOR. The promotion has an "
            "FFMA for each element; the SM's four schedulers issue 4 x 32 of those a cycle.",
            "First 2 * 64 * columns * 128 / TENSOR. Then 64 * columns FFMAs at 128 a cycle are so many "
            "cycles of a scheduler; their share is that over the first number.",
        ),
    ),
    "10.5": Exercise(
        _overlap,
        (
            "What has to happen before the first promotion, and what after it? Only the first slice's sums "
            "are needed for it.",
            "Two loops become of one: first issue and commit both slices' WGMMAs, then wait and promote, "
            "slice by slice. wgmma_wait_group<N> waits until at most N groups are in flight, the youngest "
            "ones.",
            "After both commits: wait until 1 group is in flight, promote slice 0, wait for 0, release the "
            "stage and advance as before, promote slice 1. Each promotion is the last loop of the old order.",
        ),
    ),
}
