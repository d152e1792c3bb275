"""The pictures of the lesson on experts over several GPUs: who sends how much to whom, and times on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from gemm_ladder.figures import parallel_model
from matplotlib import pyplot as plt
from workshop.drawing import BLUE, EIGHT, INK, MUTED, ORANGE


def travel(pictures: Mapping[str, np.ndarray]) -> None:
    """Rows that each rank (down) sends to each (across), int [ranks, ranks], a panel for each picture."""
    _, panels = plt.subplots(1, len(pictures), figsize=(9, 3.4))
    darkest = 2.5 * max(counts.max() for counts in pictures.values())
    for axes, (title, counts) in zip(np.atleast_1d(panels), pictures.items(), strict=True):
        axes.imshow(counts, cmap="Blues", vmin=0, vmax=darkest)
        for (row, column), count in np.ndenumerate(counts):
            axes.text(column, row, str(count), ha="center", va="center", color=INK, size=10)
        ranks = range(len(counts))
        axes.set_xticks(ranks, [f"to {rank}" for rank in ranks])
        axes.set_yticks(ranks, [f"from {rank}" for rank in ranks])
        axes.tick_params(length=0)
        axes.set_title(title)
    plt.show()


def paper(layer: parallel_model.Layer, known: parallel_model.Measured, tokens: Sequence[int]) -> None:
    """The model's time of a layer by GPUs, called from Python, a panel for each number of tokens a GPU:
    shared, in its parts, and with all experts on each."""
    ranks = [one for one in parallel_model.RANKS if one > 1]
    figure, panels = plt.subplots(1, len(tokens), figsize=(9, 3.2), squeeze=False)
    figure.subplots_adjust(wspace=0.3)
    for axes, each in zip(panels[0], tokens, strict=True):
        costs = [parallel_model.shared(layer, known, "calls", each * one, one) for one in ranks]
        below = np.zeros(len(ranks))
        for name, colour in (("rest", ORANGE), ("share", BLUE), ("travel", EIGHT[6])):
            us = np.array([getattr(cost, name) for cost in costs])
            axes.bar(range(len(ranks)), us, 0.7, below, color=colour, label=name)
            below += us
        alone = parallel_model.one(layer, known, "calls", each)
        axes.axhline(alone, color=INK, linewidth=1.2, label="all experts on each")
        axes.set_xticks(range(len(ranks)), map(str, ranks))
        axes.set_xlabel("GPUs", color=MUTED)
        axes.set_title(f"{each} tokens a GPU, us")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    plt.show()
