"""figures/hopper.svg: the pieces of a Hopper GPU on one page. A lesson shows it with its own pieces marked.

The numbers are those of an H100 SXM, from "NVIDIA H100 Tensor Core GPU Architecture", and from "Technical
Specifications per Compute Capability" in the CUDA C++ Programming Guide.
"""

from __future__ import annotations

from collections.abc import Collection
from html import escape

from .sheet import INK, MUTED

WIDTH, HEIGHT = 800, 692
PIECES = (
    *("host", "GPU", "SM", "L2", "HBM", "cluster", "warp scheduler", "registers", "CUDA cores"),
    *("tensor cores", "shared memory", "banks", "mbarriers", "L1", "TMA"),
)
MARK, MARK_EDGE = "#fbc98f", "#c2410c"
PLAIN, EDGE = "#f3f5f8", "#9aa5b1"
SMALL, TEXT, HEAD = 10.5, 12, 17  # pixels, where the map is WIDTH wide
PER_SM = 4  # sub-partitions
SMS, SMS_A_ROW = 132, 22
BANKS = 32


def svg(marked: Collection[str] = ()) -> str:
    """The map as an SVG file's text.

    Args:
        marked: the PIECES to be marked.

    Raises:
        ValueError: one of them is none.
    """
    if unknown := sorted({*marked} - {*PIECES}):
        raise ValueError(f"{', '.join(unknown)}: the map has {', '.join(PIECES)}")
    page = _Page({*marked})
    title = "Where things are on a Hopper GPU"
    page.text(12, 24, title, HEAD, weight="bold")
    page.text(WIDTH - 12, 24, "orange: in this lesson" if marked else "H100 SXM", TEXT, MUTED, anchor="end")
    _gpu(page)
    _cluster(page)
    lines = "\n".join(page.lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="DejaVu Sans, Verdana, sans-serif" role="img" '
        f'aria-label="{title}">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{lines}\n</svg>\n'
    )


class _Page:
    """What has been drawn, as elements of the file."""

    def __init__(self, marked: set[str]) -> None:
        self.marked = marked
        self.lines: list[str] = []

    def box(self, piece: str, x: float, y: float, w: float, h: float, fill: str = PLAIN) -> None:
        """A piece's rectangle. One that has others inside is filled white, and marked by its edge alone."""
        mark = piece in self.marked
        colour = MARK if mark and fill == PLAIN else fill
        edge, thick = (MARK_EDGE, 2.5) if mark else (EDGE, 1)
        self.lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="{colour}" '
            f'stroke="{edge}" stroke-width="{thick}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = TEXT,
        colour: str = INK,
        weight: str = "normal",
        anchor: str = "start",
    ) -> None:
        self.lines.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" font-weight="{weight}" '
            f'text-anchor="{anchor}">{escape(words)}</text>'
        )

    def labelled(
        self, piece: str, x: float, y: float, w: float, h: float, *words: str, names: int = 1
    ) -> None:
        """A box with words in its middle; the first lines, `names` of them, are its name."""
        self.box(piece, x, y, w, h)
        top = y + h / 2 + TEXT * 0.36 - (len(words) - 1) * 7
        for index, line in enumerate(words):
            size, colour = (TEXT, INK) if index < names else (SMALL, MUTED)
            weight = "bold" if piece in self.marked and index < names else "normal"
            if weight == "bold":  # whose letters are wider
                size -= 1
            self.text(x + w / 2, top + 14 * index, line, size, colour, weight, "middle")

    def line(self, x: float, y: float, to_x: float, to_y: float, dashed: bool = False) -> None:
        dash = ' stroke-dasharray="3 3"' if dashed else ""
        self.lines.append(
            f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" stroke="{MUTED}" stroke-width="1"{dash} fill="none"/>'
        )

    def head(self, x: float, y: float, right: bool) -> None:
        """An arrow's head."""
        back = -7 if right else 7
        self.lines.append(f'<path d="M{x:g} {y:g}l{back} -4v8z" fill="{MUTED}"/>')

    def title(self, piece: str, x: float, y: float, words: str, more: str) -> None:
        """The name of a box that has others inside, and a remark."""
        mark = piece in self.marked
        self.text(x, y, words, TEXT, MARK_EDGE if mark else INK, "bold")
        self.text(x + 7.9 * len(words) + 8, y, more, SMALL, MUTED)


def _gpu(page: _Page) -> None:
    page.labelled("host", 12, 84, 92, 48, "host", "CPU: launches")
    page.line(104, 108, 124, 108)
    page.head(124, 108, right=True)
    page.box("GPU", 124, 40, 664, 216, "white")
    words = f"{SMS} SMs, of which the two dark ones are shown larger below; L2; the memory beside the chip"
    page.title("GPU", 136, 58, "GPU", words)
    wide, high = 24.5, 14
    low = 68 + 5 * (high + 4) + high
    page.line(136, low, 12, 276, dashed=True)
    page.line(136 + 2 * wide + 4.5, low, 788, 276, dashed=True)
    for index in range(SMS):
        x, y = 136 + index % SMS_A_ROW * (wide + 4.5), 68 + index // SMS_A_ROW * (high + 4)
        near = index in (SMS - SMS_A_ROW, SMS - SMS_A_ROW + 1)
        page.box("SM", x, y, wide, high, "#aab7c6" if near else PLAIN)
    page.labelled("L2", 136, 182, 640, 28, "L2: 50 MB, a cache for all SMs")
    page.labelled("HBM", 136, 218, 640, 28, "global memory: 80 GB of HBM, 3.35 TB/s")


def _cluster(page: _Page) -> None:
    page.box("cluster", 12, 276, 776, 404, "white")
    page.title(
        "cluster",
        24,
        296,
        "cluster",
        "thread blocks on several SMs, which can reach each other's shared memory",
    )
    page.box("SM", 24, 308, 548, 360, "white")
    page.title("SM", 34, 326, "SM", "runs thread blocks, warp by warp")
    wide = 124.5
    for index in range(PER_SM):
        _sub_partition(page, 34 + index * (wide + 10), 336, wide)
    page.box("shared memory", 34, 540, 328, 118)
    page.text(44, 558, "shared memory", TEXT, weight="bold" if "shared memory" in page.marked else "normal")
    page.text(160, 558, "up to 227 KB for a thread block", SMALL, MUTED)
    for bank in range(BANKS):
        page.box("banks", 44 + bank * 9.6, 568, 8.4, 22, "#ffffff" if "banks" not in page.marked else PLAIN)
    page.text(44, 605, f"{BANKS} banks of 4 bytes", SMALL, MUTED)
    page.labelled("mbarriers", 44, 614, 308, 34, "mbarriers", "in shared memory: arrivals and bytes")
    page.labelled("L1", 372, 540, 74, 118, "L1", "a cache, in", "the same", "256 KB")
    page.labelled(
        "TMA", 456, 540, 106, 118, "TMA", "copy engine:", "boxes between", "L2 and shared", "memory"
    )
    page.box("", 676, 308, 100, 360, "white")
    page.text(686, 326, "its neighbour", SMALL, MUTED)
    page.labelled("shared memory", 686, 540, 80, 118, "shared", "memory", names=2)
    for y, right, words in ((570, True, "multicast"), (620, False, "arrivals")):
        page.line(572, y, 676, y)
        page.head(676 if right else 572, y, right)
        page.text(624, y - 6, words, SMALL, MUTED, anchor="middle")


def _sub_partition(page: _Page, x: float, y: float, wide: float) -> None:
    page.box("", x, y, wide, 192, "white")
    page.text(x + 8, y + 17, "sub-partition", SMALL, MUTED)
    inner = wide - 16
    page.labelled("warp scheduler", x + 8, y + 25, inner, 40, "warp scheduler", "1 issue slot")
    page.labelled("registers", x + 8, y + 71, inner, 40, "registers", "16384 of 32 bits")
    page.labelled(
        "CUDA cores", x + 8, y + 117, inner / 2 - 3, 66, "CUDA", "cores:", "32 FFMA", "a cycle", names=2
    )
    page.labelled(
        "tensor cores",
        x + 11 + inner / 2,
        y + 117,
        inner / 2 - 3,
        66,
        "tensor",
        "core:",
        "1024,",
        "in FP8",
        names=2,
    )
