"""Lesson 15's exercises: what FP8 weights take, when a cast is repaid, what to leave alone."""

from __future__ import annotations

import torch
from gemm_ladder.errors import InputError
from gemm_ladder.layers import convert
from gemm_ladder.measure import minilm
from workshop.exercises.record import Exercise, Verdict, same


def _left_alone(mine: object) -> Verdict:
    with torch.device("meta"):
        model = minilm.Encoder()
    try:
        report = convert(model, skip=mine)
    except InputError as refused:
        return Verdict(False, f"{refused}.")
    kept = {layer.name for layer in report.kept}
    every = {layer.name for layer in report.layers}
    wanted = {name for name in every if name.startswith("layers.5.") or name.endswith(".down")}
    if wrong := sorted(kept - wanted):
        return Verdict(False, f"{wrong[0]} is left alone, too.")
    if missing := sorted(wanted - kept):
        return Verdict(False, f"{missing[0]} is converted.")
    return Verdict(True, f"{len(kept)} of {len(every)} layers are left alone.")


EXERCISES = {
    "15.1": Exercise(
        same(
            lambda n, k: n * k + 4 * -(-n // 128) * -(-k // 128),
            [(128, 128), (4096, 7168), (384, 1536), (2112, 7168), (8, 16)],
        ),
        (
            "The numbers themselves are right: one byte each. How many scales are there?",
            "There is one for each block of 128 x 128, and one for a block that is cut off at an edge. Each "
            "is a number in FP32.",
            "Rows of blocks: -(-n // 128), which rounds up; columns of blocks likewise. Their product times "
            "four bytes is missing.",
        ),
    ),
    "15.2": Exercise(
        same(
            lambda bandwidth, speed_16, speed_8: 3 / (2 * bandwidth * (1 / speed_16 - 1 / speed_8)),
            [(4.3e6, 780e6, 1400e6), (3.0e6, 700e6, 1300e6), (1e6, 1e9, 2e9)],
        ),
        (
            "Write down what is saved, as a difference of two times, and what the cast costs, as bytes over "
            "the bandwidth. At the n that is asked for they are equal.",
            "2 m n k (1 / speed_16 - 1 / speed_8) = 3 m k / bandwidth. What is on both sides?",
            "m and k can be left out on both sides. Divide what is left on the right, three over the "
            "bandwidth, by the factor that n has on the left.",
        ),
    ),
    "15.3": Exercise(
        _left_alone,
        (
            "A pattern matches a layer whose path has it between dots, or at an end. What paths do the "
            "layers have? The report at the lesson's beginning lists them.",
            "One pattern is there already. The other has to match every path that begins with the last "
            "layer's name.",
            "A pattern may have a dot in it: the two words of a path that all of the last layer's parts "
            "begin with. Put it into the list as a second pattern.",
        ),
    ),
}
