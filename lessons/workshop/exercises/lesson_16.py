"""Lesson 16's exercises: rows that a rank sends, bytes in a layer, and how many ranks a token reaches."""

from __future__ import annotations

import math

import numpy as np
from workshop.exercises.record import Exercise, same

_RANDOM = np.random.default_rng(16)


def _chosen(tokens: int, experts: int, of_each: int) -> list[list[int]]:
    return np.argsort(_RANDOM.random((tokens, experts)), axis=1)[:, :of_each].tolist()


def _sends(chosen: list[list[int]], ranks: int, experts: int) -> list[int]:
    """Token by token."""
    counts = [0] * ranks
    for of_token in chosen:
        for rank in {expert * ranks // experts for expert in of_token}:
            counts[rank] += 1
    return counts


def _traffic(tokens: int, reached: float, hidden: int) -> float:
    return tokens * reached * (3 * hidden + hidden / 32)


def _reaches(own: int, experts: int, top_k: int) -> float:
    """Of all choices, those that avoid the rank."""
    return 1 - math.comb(experts - own, top_k) / math.comb(experts, top_k)


CHOICES = [
    (_chosen(3, 4, 2), 2, 4),
    (_chosen(20, 16, 4), 4, 16),
    (_chosen(50, 64, 8), 8, 64),
    ([[0, 1], [1, 2], [3, 2]], 1, 4),
]
TRAFFIC = [(128, 5.25, 7168), (4096, 0.99, 7168), (10, 0.0, 512)]
ODDS = [(128, 256, 8), (32, 256, 8), (4, 256, 8), (1, 4, 4), (5, 8, 4)]

EXERCISES = {
    "16.1": Exercise(
        same(_sends, CHOICES),
        (
            "First find the rank of each expert. How many experts has a rank?",
            "An expert's rank is its number divided by the experts of a rank, rounded down. A token counts "
            "for a rank if any of its experts is there, and only once.",
            "With NumPy: owner = chosen // (experts // ranks), an array; for each rank count the tokens of "
            "which any owner is this rank.",
        ),
    ),
    "16.2": Exercise(
        same(_traffic, TRAFFIC),
        (
            "How many rows leave a rank, and how many arrive? All ranks are alike.",
            "tokens * reached rows leave, and as many arrive, in the mean. For each that arrives a result "
            "goes back.",
            "A row has hidden bytes of codes and 4 bytes for each 128 of them; a result has 2 bytes for each "
            "of hidden numbers. Add up both, and multiply by the number of rows.",
        ),
    ),
    "16.3": Exercise(
        same(_reaches, ODDS),
        (
            "The opposite is easier: how probable is it that none of the experts is on the rank?",
            "Draw one after another. The first misses the rank with probability (experts - own) / experts; "
            "the second has one expert less to choose from, on both sides of the fraction.",
            "Multiply (experts - own - drawn) / (experts - drawn) for drawn from 0 to top_k - 1, and take it "
            "from 1. It may become 0 on the way, and stays 0 then.",
        ),
    ),
}
