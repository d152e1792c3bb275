"""The pictures of lesson 03: who makes which part of a tile, and which banks loads and stores touch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from workshop.drawing import BANK_BYTES, BANKS, EIGHT, INK, MUTED, ORANGE, _canvas, _cell, _pale


def places(quad: int) -> np.ndarray:
    """int [8]: the rows, or columns, of s2_tiled's tile that a thread with this quad has."""
    i = np.arange(8)
    return i // 4 * 64 + quad * 4 + i % 4


def quads(thread: int) -> tuple[int, int]:
    """(of rows, of columns): which quads of the tile a thread of s2_tiled has."""
    warp, lane = divmod(thread, 32)
    return warp // 2 * 4 + lane // 8, warp % 2 * 8 + lane % 8


def tile(thread: int) -> None:
    """A block's tile of D: each warp's elements in a colour, and one thread's 8 x 8, with what it reads."""
    _, axes = plt.subplots(figsize=(8, 6.6))
    _canvas(axes, 172, 150, "")
    left, top = 26, 18
    for warp in range(8):
        rows, columns = quads(32 * warp)
        for y in (4 * rows, 64 + 4 * rows):
            for x in (4 * columns, 64 + 4 * columns):
                _cell(axes, left + x, top + y, _pale(EIGHT[warp], 0.3), f"warp {warp}", 32, 16)
    rows, columns = (places(quad) for quad in quads(thread))
    for y in rows:
        for x in columns:
            axes.add_patch(Rectangle((left + x, top + y), 1, 1, facecolor=ORANGE, linewidth=0))
    for y in rows:
        axes.add_patch(Rectangle((8, top + y), 14, 1, facecolor=ORANGE, linewidth=0))
    for x in columns:
        axes.add_patch(Rectangle((left + x, 2), 1, 12, facecolor=ORANGE, linewidth=0))
    axes.add_patch(Rectangle((8, top), 14, 128, fill=False, edgecolor=MUTED))
    axes.add_patch(Rectangle((left, 2), 128, 12, fill=False, edgecolor=MUTED))
    axes.text(4, top + 64, "A in shared memory: 16 of k", rotation=90, ha="center", va="center", size=8)
    axes.text(left + 64, -1, "B in shared memory: 16 of k", ha="center", size=8)
    axes.set_title(
        f"D: 128 x 128 by 256 threads. Orange: thread {thread}, and what it reads for each k", pad=20
    )
    plt.show()


def turns(offsets: Sequence[int] | np.ndarray, words: int) -> int:
    """How many turns shared memory takes to serve loads of `words` words of 4 bytes at these byte offsets."""
    first = np.asarray(offsets).reshape(-1, 1) // BANK_BYTES
    wanted = np.unique(first + np.arange(words))  # a word that several threads want is read once
    return int(np.bincount(wanted % BANKS).max())


def banks(panels: Mapping[str, tuple[Sequence[int] | np.ndarray, int]]) -> None:
    """For each panel (byte offsets of some threads, words a thread): the banks that each thread touches."""
    figure, drawn = plt.subplots(len(panels), 1, figsize=(9, 2.9 * len(panels)))
    figure.subplots_adjust(hspace=0.35)
    for axes, (name, (offsets, words)) in zip(np.atleast_1d(drawn), panels.items(), strict=True):
        rows = len(offsets)
        _canvas(axes, BANKS + 4, rows + 1.4, "")
        for thread, offset in enumerate(offsets):
            axes.text(3.6, 1.9 + thread, f"thread {thread}", ha="right", va="center", size=7.5, color=MUTED)
            for bank in range(BANKS):
                mine = (bank - int(offset) // BANK_BYTES) % BANKS < words
                colour = EIGHT[thread % 8] if mine else "#f1f1f1"
                _cell(axes, 4 + bank, 1.4 + thread, colour)
        for bank in range(0, BANKS, 4):
            axes.text(4.5 + bank, 1.1, str(bank), ha="center", size=7.5, color=INK)
        axes.text(3.6, 1.1, "bank", ha="right", size=7.5, color=MUTED)
        took = turns(offsets, words)
        axes.set_title(f"{name}: {took} turn{'s' * (took > 1)}")
    plt.show()
