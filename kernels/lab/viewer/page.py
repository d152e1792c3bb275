"""One HTML page that shows what a kernel did: page.html with its style, its program and the events in it.

page.css is the style; the program is model.js, what the events say of a moment, draw.js, beside.js, what
stands beside the timelines, panels.js, a panel for each run, and page.js, what keys do.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemm_ladder.errors import InputError
from gemm_ladder.lab.recording import Recording
from gemm_ladder.lab.viewer import sentences
from gemm_ladder.lab.viewer.differences import differences
from gemm_ladder.lab.viewer.history import History
from gemm_ladder.lab.viewer.smem import STATES
from gemm_ladder.timeline.spans import TENSOR_CORE, WARP

if TYPE_CHECKING:
    from gemm_ladder.lab.recording import Recorded
    from gemm_ladder.ref.emulator import Run

    Viewable = Recording | Recorded | Run

HERE = Path(__file__).resolve().parent
PROGRAM = ("model.js", "draw.js", "beside.js", "panels.js", "page.js")  # in this order
MAX_EVENTS = 100_000  # of a run in a page; the first cluster that is shown may have more


def view(
    run: Viewable,
    against: Viewable | None = None,
    path: str | Path = "view.html",
    *,
    launch: int | None = None,
    names: Sequence[str] = (),
) -> Path:
    """Write a page that shows what a kernel did, for any browser: it loads nothing from anywhere.

    Args:
        run: a `lab.Result` or the EmulatorError that `lab.run` raised, of a run with record=True, or what
            `with gl.emulator(record=True) as run` gives.
        against: another one, which the page shows below the first on the same scale. It marks for every warp
            the first event that differs.
        path: of the page. An existing file is overwritten.
        launch: which launch of a run of several, from 0; None: the last.
        names: what the page calls the runs; by default their source files and seeds.

    Returns:
        The path of the page.

    Raises:
        InputError: nothing was recorded, or the page cannot be written.
    """
    given = [run] if against is None else [run, against]
    if isinstance(against, (str, Path)):
        raise InputError(
            f"against is {str(against)!r}; a second run is needed, or path= for the page's name."
        )
    if len(names) > len(given):
        raise InputError(f"{len(names)} names are given for {len(given)} runs.")
    written = Path(path)
    text = html(page_data([Recording.of(one, launch) for one in given], names))
    try:
        written.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"path is {str(path)!r}, which cannot be written: {error.strerror}.") from error
    return written


def html(data: dict[str, Any]) -> str:
    """The page that shows the data."""
    text = (HERE / "page.html").read_text(encoding="utf-8")
    packed = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no tag ends the script early
    for mark, content in (
        ("/*STYLE*/", (HERE / "page.css").read_text(encoding="utf-8")),
        ("/*PROGRAM*/", "\n".join((HERE / name).read_text(encoding="utf-8") for name in PROGRAM)),
        ("/*DATA*/", packed),
    ):
        before, _, after = text.partition(mark)
        text = before + content + after
    return text


def page_data(recordings: Sequence[Recording], names: Sequence[str] = ()) -> dict[str, Any]:
    """What page.js draws: plain lists, one entry for each event."""
    files: dict[str, str] = {}
    # Runs that are compared begin with the same cluster: the one at fault, if there is a fault.
    faulty = next((one.faulty_cluster() for one in recordings if one.fault is not None), None)
    chosen = [_histories(recording, faulty) for recording in recordings]
    runs = []
    for index, (recording, histories) in enumerate(zip(recordings, chosen, strict=True)):
        name = names[index] if index < len(names) else ""
        runs.append(_run(recording, histories, files, name))
    if len(runs) == 2:
        others = {history.cluster: index for index, history in enumerate(chosen[1])}
        for index, history in enumerate(chosen[0]):
            if (place := others.get(history.cluster)) is not None:
                mine, theirs = differences(history, chosen[1][place])
                pair = runs[0]["clusters"][index], runs[1]["clusters"][place]
                pair[0]["differs"], pair[1]["differs"] = mine, theirs
                _share_roles(*pair)
    return {
        "runs": runs,
        "files": files,
        "kinds": list(sentences.SENTENCES),
        "sentences": sentences.SENTENCES,
        "other": sentences.OTHER,
        "waits": sentences.WAITS,
        "arrives": sentences.ARRIVES,
        "states": STATES,
    }


def _share_roles(one: dict[str, Any], other: dict[str, Any]) -> None:
    """A warp of a run that stopped early may have shown less of its role than in the other run: if it has not
    ended, it gets the role that it has there."""
    for unfinished, known in ((one, other), (other, one)):
        roles = {(block, warp): role for block, warp, role in known["warps"]}
        exit_kind = unfinished["kinds"].index("thread_exit") if "thread_exit" in unfinished["kinds"] else -1
        ended = {
            (block, thread // 32)
            for block, thread, kind in zip(
                unfinished["block"], unfinished["thread"], unfinished["kind"], strict=True
            )
            if kind == exit_kind
        }
        for warp in unfinished["warps"]:
            place = warp[0], warp[1]
            if place not in ended and roles.get(place, "").startswith("consumer"):
                warp[2] = roles[place]


def _histories(recording: Recording, first: int | None) -> list[History]:
    """The clusters that the page shows: the first one, then as many as fit."""
    clusters = recording.clusters()
    if first in clusters:
        clusters.remove(first)
        clusters.insert(0, first)
    found: list[History] = []
    for cluster in clusters:
        size = int((recording.events["cluster"] == cluster).sum())
        if not found or sum(len(one) for one in found) + size <= MAX_EVENTS:
            found.append(History(recording, cluster))
    return found


def _run(recording: Recording, histories: list[History], files: dict[str, str], name: str) -> dict[str, Any]:
    labels: dict[str, str] = {}
    clusters = [_cluster(recording, history, files, labels) for history in histories]
    used: dict[str, int] = defaultdict(int)
    for cluster in clusters:
        for line in cluster["line"]:
            if line >= 0:
                used[cluster["lines"][line][0]] += 1
    source = max(used, key=lambda file: used[file], default="kernel")
    fault = recording.fault
    return {
        "name": name or f"{source}, seed {recording.seed}",
        "seed": recording.seed,
        "left_out": len(recording.clusters()) - len(clusters),
        "source": source,
        "fault": None
        if fault is None
        else {
            "text": str(fault),
            "what": fault.what,
            "cluster": recording.faulty_cluster(),
            "block": fault.block,
            "warp": fault.warp,
            "line": fault.line,
        },
        "clusters": clusters,
    }


def _cluster(
    recording: Recording, history: History, files: dict[str, str], labels: dict[str, str]
) -> dict[str, Any]:
    """The columns have one entry for each event; `line`, `at` and `kind` are indices into lists beside them,
    -1 for none. `shown` has the indices of the events that stand for their warp."""
    lines: dict[tuple[str, int], int] = {}
    names: dict[str, int] = {}
    kinds: dict[str, int] = {}
    of_line, of_at, of_kind = [], [], []
    for event, place in enumerate(history.lines):
        if place is not None:
            key = _file(recording, place[0], files, labels), place[1]
            of_line.append(lines.setdefault(key, len(lines)))
        else:
            of_line.append(-1)
        at = history.at_name(event) if history.address[event] else ""
        of_at.append(names.setdefault(at, len(names)))
        of_kind.append(kinds.setdefault(history.kind[event], len(kinds)))
    barriers = [
        {"block": one.block, "address": one.address, "name": one.name, "count": one.count}
        | {"states": [list(state) for state in one.states]}
        for one in history.barriers.values()
    ]
    places = [
        {"block": one.block, "name": one.name, "boxes": sorted(one.boxes.items())}
        | {"states": [list(state) for state in one.states]}
        for one in history.places
    ]
    # What FP8 kernels do between two groups of WGMMAs is the promotion; of others the page cannot know.
    names_of = {"promote": "compute"}
    spans = [
        [
            *(span.block, span.index, span.unit == TENSOR_CORE),
            *(names_of.get(span.what, span.what), span.on, span.begin, span.end),
        ]
        for span in history.spans
        if span.unit in (WARP, TENSOR_CORE)
    ]
    roles = {(span.block, span.index): span.role for span in history.spans if span.unit == WARP}
    return {
        "cluster": history.cluster,
        "blocks": history.blocks,
        "warps": [[block, warp, roles.get((block, warp), "")] for block, warp in history.warps],
        "step": history.step,
        "block": history.block,
        "thread": history.thread,
        "kind": of_kind,
        "kinds": list(kinds),
        "address": history.address,
        "value": history.value,
        "line": of_line,
        "lines": [list(key) for key in lines],
        "at": of_at,
        "names": list(names),
        "cause": history.cause,
        "shown": history.shown.nonzero()[0].tolist(),
        "barriers": barriers,
        "places": places,
        "spans": spans,
        "differs": [],
    }


def _file(recording: Recording, path: str, files: dict[str, str], labels: dict[str, str]) -> str:
    """The name by which the page knows a source file. Its text is added to `files`."""
    if path not in labels:
        text = recording.text(path)
        label, number = Path(path).name, 2
        while label in files and files[label] != (text or ""):  # another file, or another version of it
            label, number = f"{Path(path).name} ({number})", number + 1
        files[label] = text or ""
        labels[path] = label
    return labels[path]
