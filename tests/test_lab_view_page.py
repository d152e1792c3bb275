"""The page that shows what a kernel did: what is in it, and what it does in a browser."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
from browser import BROWSER, DRIVER, Browser
from gemm_ladder import lab
from gemm_ladder.errors import InputError
from gemm_ladder.lab.viewer.differences import differences
from gemm_ladder.lab.viewer.history import History
from view_runs import BROKEN, SEED, SHAPES, SMALL, data_of, history, recorded

# ------------------------------------------------------------------------------------------------- page


def test_the_page_is_one_file_with_all_events(tmp_path: Path) -> None:
    recording = recorded("s5_tma_multicast")
    written = lab.view(recording, path=tmp_path / "s5.html")
    text = written.read_text()
    assert list(tmp_path.iterdir()) == [written]
    source = gl.rungs["s5_tma_multicast"].source
    around = text.replace(json.dumps(source)[1:-1].replace("<", "\\u003c"), "")
    assert not re.search(r"https?:|src=|@import|url\(|<link[^>]+href=\"(?!data:)", around)
    data = data_of(written)
    (cluster,) = data["runs"][0]["clusters"]
    for column in ("step", "block", "thread", "address", "value"):
        assert cluster[column] == recording.events[column].tolist()
    assert [cluster["kinds"][kind] for kind in cluster["kind"]] == recording.events["kind"].tolist()
    assert data["files"] == {"s5_tma_multicast.cu": source}
    assert len(cluster["line"]) == len(cluster["at"]) == len(cluster["cause"]) == len(recording.events)
    assert len(cluster["shown"]) < len(recording.events) / 3


def test_a_page_of_a_result_and_of_an_error(tmp_path: Path) -> None:
    right = lab.run(SMALL, np.ones(256, np.float32), 256, grid=2, record=True)
    with pytest.raises(gl.EmulatorError) as caught:
        lab.run(SMALL, np.ones(256, np.float32), 300, grid=3, record=True)
    written = lab.view(right, caught.value, tmp_path / "two.html", names=["right", "broken"])
    runs = data_of(written)["runs"]
    assert [run["name"] for run in runs] == ["right", "broken"]
    assert runs[0]["fault"] is None and runs[1]["fault"]["what"] == "global_out_of_bounds"
    assert runs[1]["fault"]["text"] == str(caught.value) and runs[1]["fault"]["line"] == "twice.cu:6"
    assert runs[1]["clusters"][0]["blocks"] == [caught.value.block] == [2]
    assert data_of(written)["files"] == {"twice.cu": SMALL}


def test_pages_that_cannot_be_written(tmp_path: Path) -> None:
    result = lab.run(SMALL, np.ones(128, np.float32), 128, record=True)
    unrecorded = lab.run(SMALL, np.ones(128, np.float32), 128)
    for arguments, words in (
        ((unrecorded,), "holds no events"),
        ((result, unrecorded), "holds no events"),
        ((result, "x.html"), "a second run is needed"),
        ((result, None, tmp_path / "no" / "x.html"), "cannot be written"),
    ):
        with pytest.raises(InputError, match=words):
            lab.view(*arguments)
    with pytest.raises(InputError, match="holds one launch"):
        lab.view(result, path=tmp_path / "x.html", launch=1)
    assert list(tmp_path.iterdir()) == []


def test_source_text_cannot_end_the_script(tmp_path: Path) -> None:
    text = SMALL.replace("__syncthreads();", "__syncthreads();  // </script><b>")
    result = lab.run(text, np.ones(128, np.float32), 128, record=True)
    assert data_of(lab.view(result, path=tmp_path / "x.html"))["files"] == {"twice.cu": text}


# ----------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def browser():
    if DRIVER is None or BROWSER is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    with Browser() as opened:
        yield opened


@pytest.mark.parametrize(
    ("name", "edit"), [*((name, "") for name in SHAPES), *(("s4_tma", edit) for edit in BROKEN)]
)
def test_the_page_in_a_browser(browser: Browser, tmp_path: Path, name: str, edit: str) -> None:
    """Loads without a complaint, steps, and says of warps what Python says."""
    found = history(name, 7 if edit == "a wrong parity" else SEED, edit)
    browser.open(lab.view(found.recording, path=tmp_path / "x.html"))
    if edit:
        assert found.recording.fault.what in browser.run(
            "return document.querySelector('.head .fault').textContent"
        )
        assert str(found.recording.fault) in browser.run("return document.getElementById('now').textContent")
        browser.run("viewer.select(0)")
    shown = np.flatnonzero(found.shown).tolist()
    assert browser.run("return viewer.event") == shown[0]
    for expected in shown[1:4]:
        browser.press("right")
        assert browser.run("return viewer.event") == expected
    browser.press("left")
    assert browser.run("return viewer.event") == shown[2]
    often = collections.Counter(found.kind[event] for event in shown).most_common(1)[0][0]
    alike = [event for event in shown if found.kind[event] == often]
    browser.run(f"viewer.select({alike[0]})")
    browser.press("right", "shift")
    assert browser.run("return viewer.event") == alike[1]
    for event in range(0, len(found) - 1, len(found) // 23):  # at the last one the fault's line is shown
        browser.run(f"viewer.select({event})")
        assert browser.run("return viewer.sentence") == found.sentence(event)
        for block, warp in found.warps:
            assert browser.run(f"return viewer.where('{block}/{warp}')") == found.where(block, warp, event)
        place = found.lines[event]
        if place:
            line = browser.run("return document.querySelector('.code .current').textContent")
            text = found.recording.text(place[0]).splitlines()[place[1] - 1]
            assert line == f"{place[1]}{text}"
    assert browser.complaints() == []


def test_a_click_shows_the_line(browser: Browser, tmp_path: Path) -> None:
    """A click into a warp's row selects its event there, and the source shows that event's line."""
    found = history("s4_tma")
    browser.open(lab.view(found.recording, path=tmp_path / "x.html"))
    event = next(
        i for i, kind in enumerate(found.kind) if kind == "wgmma_commit" and found.thread[i] // 32 == 1
    )
    x, y = browser.run(f"""
        const box = viewer.panel.canvas.getBoundingClientRect(), {{cluster}} = viewer.panel;
        const row = cluster.rows[cluster.rowOf({event})];
        return [box.left + new Scale(viewer.begin, viewer.end, box.width).x(cluster.step[{event}]),
                box.top + row.top + row.height / 2];""")
    browser.click(x, y)
    selected = browser.run("return viewer.event")
    assert found.thread[selected] // 32 == 1
    assert abs(found.step[selected] - found.step[event]) <= found.step[-1] / 500
    line = browser.run("return document.querySelector('.code .current i').textContent")
    assert line == str(found.lines[selected][1])
    rows = browser.run("return document.querySelector('#events .current').textContent")
    assert found.sentence(selected) in rows
    assert browser.complaints() == []


def test_search_theme_and_help(browser: Browser, tmp_path: Path) -> None:
    found = history("s4_tma")
    browser.open(lab.view(found.recording, path=tmp_path / "x.html"), "?theme=light")
    browser.press("/")
    for letter in "commits":
        browser.press(letter)
    browser.press("\ue007")
    assert browser.run("return viewer.event") == found.kind.index("wgmma_commit")
    browser.press("\ue00c")  # Escape
    browser.press("t")
    assert browser.run("return document.documentElement.classList.contains('dark')")
    begin, end = browser.run("return [viewer.begin, viewer.end]")
    browser.press("+")
    assert browser.run("return viewer.end - viewer.begin") == pytest.approx((end - begin) / 2)
    browser.press("?")
    assert browser.run("return document.getElementById('keys').open")
    assert browser.complaints() == []


def test_two_runs_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    right, broken = history("s4_tma"), history("s4_tma", SEED, "a wait removed")
    browser.open(lab.view(right.recording, broken.recording, tmp_path / "x.html"))
    assert browser.run("return viewer.panels.length") == 2
    assert browser.run("return viewer.active") == 1  # it begins at the fault
    mine, theirs = differences(right, broken)
    assert browser.run("return viewer.panels.map((panel) => panel.cluster.differs)") == [mine, theirs]
    browser.run("viewer.select(0)")
    browser.press("d")
    assert browser.run("return viewer.event") in theirs
    assert "first differs" in browser.run("return document.getElementById('now').textContent")
    step = broken.step[browser.run("return viewer.event")]
    other = browser.run("return viewer.panels[0].event")
    assert right.step[other] <= step < right.step[other + 1]
    browser.press("r")
    assert browser.run("return viewer.active") == 0
    assert browser.complaints() == []


def test_what_a_key_has_no_other_answer_to_is_said(browser: Browser, tmp_path: Path) -> None:
    browser.open(lab.view(recorded("s4_tma"), path=tmp_path / "x.html"))
    said = "return document.getElementById('said').textContent"
    assert browser.run(said) == ""
    for key, words in (
        ("c", "No cause is known"),
        ("f", "No run has"),
        ("d", "There is one run"),
        ("r", "one run"),
    ):
        browser.press(key)
        assert words in browser.run(said)
        browser.press("right")
        assert browser.run(said) == ""
    browser.open(lab.view(recorded("s4_tma"), recorded("s4_tma"), tmp_path / "x.html"))
    browser.press("d")
    assert "the same in the same order" in browser.run(said)
    assert browser.complaints() == []


def test_a_warp_has_one_role_in_two_runs_of_a_program(tmp_path: Path) -> None:
    """Although it is at fault before its first product: alone, such a warp has only loaded."""
    right = recorded("s4_tma")
    early = np.flatnonzero(right.events["kind"] == "wgmma_fence")[0] - 1
    cut = dataclasses.replace(right, events=right.events[: early + 1])
    roles = [
        warp[2]
        for warp in data_of(lab.view(cut, path=tmp_path / "x.html"))["runs"][0]["clusters"][0]["warps"]
    ]
    assert "producer" in roles
    for pair in ((right, cut), (cut, right)):
        runs = data_of(lab.view(*pair, tmp_path / "x.html"))["runs"]
        assert {warp[2] for run in runs for warp in run["clusters"][0]["warps"]} == {"consumer 0"}


def test_plain_stores_to_global_memory_are_shown(tmp_path: Path) -> None:
    """The first of each warp behind an instruction, also of a kernel without WGMMAs."""
    result = lab.run(SMALL, np.ones(256, np.float32), 256, grid=2, record=True)
    found = History(result.recording, 0)
    stores = [event for event, kind in enumerate(found.kind) if kind == "global_store" and found.shown[event]]
    assert [found.thread[event] for event in stores] != [] and len(stores) == 4
    for event in stores:
        assert (
            found.lines[event][1] == 6
            and found.sentence(event) == "stores to global memory, 4 bytes at first"
        )


def test_only_fp8_kernels_promote(browser: Browser, tmp_path: Path) -> None:
    """So the page calls what a warp does after a WGMMA group by what it can know."""
    written = lab.view(recorded("s4_tma"), path=tmp_path / "x.html")
    assert {span[3] for span in data_of(written)["runs"][0]["clusters"][0]["spans"]} >= {"compute", "store"}
    browser.open(written)
    legend = browser.run("return document.getElementById('legend').textContent")
    assert "computes with accumulators" in legend and "promote" not in legend
