"""Pictures on a page: no text is too small, and colours can be told apart, by colour-blind readers too."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator
from typing import Any

import colours
import nbformat
import pytest
from gemm_ladder.figures import (
    bench,
    casts,
    draw,
    everywhere,
    fp8_training,
    host,
    ladder,
    lessons,
    measured,
    model,
    parallel,
    production,
    roofline,
    sheet,
    timeline,
)
from matplotlib import pyplot as plt

lessons.find()
from workshop import drawing, workbench  # noqa: E402

DPI = 130  # with which draw.py saves


def recorded() -> Iterator[tuple[str, Any]]:
    """Every picture of figures/ whose data are there."""
    data = draw.recorded(measured.DATA)
    made = {
        "shape": lambda: ladder.bars(data["ladder"]),
        "ladder": lambda: ladder.ladder(data["ladder"]),
        "production": lambda: production.picture(data["production"]),
        "roofline": lambda: roofline.roofline(data["production"], data["ladder"]),
        "everywhere": lambda: everywhere.picture(data["everywhere"]),
        "bench": lambda: bench.picture(data["everywhere"]),
        "host": lambda: host.picture(data["host"]),
        "casts": lambda: casts.picture(data["casts"]),
        "parallel": lambda: parallel.picture(data["parallel"]),
        "fp8_training": lambda: fp8_training.picture(data["fp8_training"]),
    }
    if "model" in data:
        made["layers"] = lambda: model.picture(data["model"])
        made["minilm"] = lambda: model.lines(data["model"])
    yield from ((name, make()) for name, make in made.items())
    yield from timeline.pictures(timeline.load(measured.DATA / "timeline.json")).items()


def test_texts_of_the_figures_are_legible_on_a_page() -> None:
    found = dict(recorded())
    assert len(found) >= 11
    for name, figure in found.items():
        for text, size in sheet.shown(figure, DPI).items():
            assert size >= sheet.SMALLEST - 1e-6, f"{name}: {text!r} is {size:.1f} pixels high"


@pytest.mark.parametrize(("width", "points", "warned"), [(9, 7.5, 0), (9, 7, 1), (11, 8.5, 1), (11, 9, 0)])
def test_a_lesson_warns_of_small_texts(
    width: float, points: float, warned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plt, "rcParams", plt.rcParams.copy())
    with plt.rc_context():
        drawing.style()
        figure = plt.figure(figsize=(width, 2))
        figure.text(0.5, 0.5, "so small", size=points)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            figure.canvas.draw()
        plt.close(figure)
    words = [str(one.message) for one in found if "pixels high" in str(one.message)]
    assert len(words) == warned
    assert all("'so small'" in one and "points are needed" in one for one in words)


def test_rungs_next_to_each_other_are_not_neighbours_in_hue() -> None:
    for one, other in itertools.pairwise(ladder.RUNG_COLOURS):
        assert colours.hues_apart(one, other) > 60 and colours.apart(one, other) > 40, (one, other)


@pytest.mark.parametrize(
    ("palette", "distance"),
    [
        (ladder.RUNG_COLOURS, 20),
        (drawing.EIGHT, 30),
        ([*timeline.COLOURS.values()], 20),
        ([*bench.COLOURS.values()], 25),
        ([*fp8_training.COLOURS.values()], 25),
        ([colour for colour, _ in roofline.STYLES.values()], 25),
        ([*model.COLOURS.values(), model.WHOLE], 25),
        ([colour for _, colour in model.LINES.values()], 25),
        ([production.FASTER, production.SLOWER], 25),
    ],
)
def test_colours_of_a_picture_are_apart(palette: list[object], distance: float) -> None:
    for one, other in itertools.combinations(palette, 2):
        assert colours.apart(one, other) > distance, (one, other)


def test_casts_differ_in_their_mark_or_in_colour() -> None:
    for (mark, _, one), (other_mark, _, other) in itertools.combinations(casts.MARKS.values(), 2):
        assert mark != other_mark or colours.apart(one, other) > 20


def test_the_simulation_of_colour_blindness() -> None:
    """Red and green of equal lightness are the textbook case; blue and yellow stay apart."""
    assert colours.apart("#c05040", "#7f7f00") < 25 < 80 < colours.apart("#0000ff", "#ffff00")
    assert colours.apart("#123456", "#123456") == 0
    assert colours.hues_apart("#ff8000", "#804000") == pytest.approx(0, abs=0.2)
    assert colours.hues_apart("#ff0000", "#00ff00") == pytest.approx(120)


def test_a_change_has_colours_in_a_page_that_nbconvert_makes() -> None:
    """nbconvert marks the lines of a change with classes, which the lessons give colours."""
    exporter = pytest.importorskip("nbconvert").HTMLExporter()
    change = workbench.diff("s1_naive", "s2_tiled")._repr_mimebundle_()
    book = nbformat.v4.new_notebook()
    outputs = [nbformat.v4.new_output("display_data", data={"text/html": drawing.DIFFS}),
               nbformat.v4.new_output("display_data", data=change)]  # fmt: skip
    book.cells = [nbformat.v4.new_code_cell("", outputs=outputs)]
    page, _ = exporter.from_notebook_node(book)
    for name in ("gd", "gi"):
        assert f'<span class="{name}">' in page
        rule = re.search(rf"\.highlight \.{name} {{color: (#\w+); background: (#\w+)}}", page)
        assert rule and colours.apart(*rule.groups()) > 40
    assert re.search(r"\.highlight pre {font-family: [^}]*monospace", page)
