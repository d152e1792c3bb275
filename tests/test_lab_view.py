"""Looking at what a kernel did: the states that events imply, the page, the stepper, the command."""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
from gemm_ladder import build, lab
from gemm_ladder.errors import InputError
from gemm_ladder.lab.viewer.command import add_view
from gemm_ladder.lab.viewer.differences import differences
from gemm_ladder.lab.viewer.history import History
from gemm_ladder.lab.viewer.sentences import SENTENCES, sentence
from gemm_ladder.lab.viewer.stepper import Terminal
from view_runs import BARRIER, FULL_WAIT, SEED, SHAPES, SMALL, STAGE_BYTES, STAGES, data_of, history, recorded

# ------------------------------------------------------------------------------------------------ lines


@pytest.mark.parametrize("name", SHAPES)
def test_every_instruction_has_its_line(name: str) -> None:
    """The line that an event's offset leads to calls the instruction that the event is of."""
    calls = {
        "mbarrier_init": "mbarrier_init",
        "mbarrier_wait": "mbarrier_wait_parity",
        "mbarrier_pass": "mbarrier_wait_parity",
        "mbarrier_expect_tx": "mbarrier_arrive_expect_tx",
        "mbarrier_arrive": "mbarrier_arrive(_cluster|_expect_tx)?",
        "tma_load": "cp_async_bulk_tensor_2d(_multicast)?",
        "tma_load_landed": "cp_async_bulk_tensor_2d(_multicast)?",
        "wgmma_fence": "wgmma_fence",
        "wgmma": "wgmma<kTileN>",
        "wgmma_executed": "wgmma<kTileN>",
        "wgmma_commit": "wgmma_commit_group",
        "wgmma_wait": "wgmma_wait_group",
        "bar_sync": "__syncthreads",
        "cluster_pass": "barrier_cluster_wait",
        "mbarrier_phase": "mbarrier_arrive(_cluster|_expect_tx)?|cp_async_bulk_tensor_2d(_multicast)?",
        "mbarrier_complete_tx": "cp_async_bulk_tensor_2d(_multicast)?|mbarrier_arrive_expect_tx",
    }
    text = gl.rungs[name].source.splitlines()
    seen = set()
    found = history(name)
    for event, place in enumerate(found.lines):
        kind = found.kind[event]
        if kind in calls and (kind != "mbarrier_complete_tx" or place):
            assert place is not None and Path(place[0]).name == f"{name}.cu", found.sentence(event)
            assert re.search(rf"\b({calls[kind]})(?!\w)", text[place[1] - 1]), (kind, place)
            seen.add(kind)
    assert seen >= calls.keys() - {"bar_sync", "cluster_pass"}


def test_the_line_of_source_text_that_is_no_file() -> None:
    result = lab.run(SMALL, np.ones(128, np.float32), 128, record=True)
    found = History(result.recording, 0)
    places = {found.lines[event] for event in range(len(found)) if found.kind[event] == "bar_sync"}
    ((path, line),) = places
    assert result.recording.text(path).splitlines()[line - 1].strip() == "__syncthreads();"


# ----------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("name", SHAPES)
def test_barriers_follow_their_rules(name: str) -> None:
    """After each phase all arrivals are pending again; a phase ends with none, and with no bytes to come."""
    found = history(name)
    blocks = len(found.blocks)
    assert len(found.barriers) == 8 * blocks
    for (block, address), barrier in found.barriers.items():
        place = [address - start for start in STAGES if 0 <= address - start < 25600]
        full = place == [BARRIER]
        assert barrier.name == f"{'full' if full else 'empty'} {(address - 1024) // 25600} (0x{address:x})"
        assert barrier.count == (1 if full else 4 * blocks)
        assert barrier.at(barrier.states[0].event - 1) is None
        for before, after in zip(barrier.states, barrier.states[1:], strict=False):
            assert after.event > before.event
            if after.phase != before.phase:
                assert (before.pending, before.bytes) == (0, 0)
                assert (after.phase, after.pending) == (before.phase + 1, barrier.count)
        phases = [
            i
            for i, kind in enumerate(found.kind)
            if kind == "mbarrier_phase" and found.target(i) == (block, address)
        ]
        assert barrier.states[-1].phase == len(phases)


@pytest.mark.parametrize("name", SHAPES)
def test_a_barrier_at_chosen_events(name: str) -> None:
    found = history(name)
    expect = found.kind.index("mbarrier_expect_tx")
    block = found.block[expect]
    full = found.barriers[block, STAGES[0] + BARRIER]
    before = full.at(expect - 1)
    assert (before.phase, before.pending) == (0, 1)
    assert full.at(expect).bytes == before.bytes + STAGE_BYTES
    arrive = found.kind.index("mbarrier_arrive", expect)
    assert full.at(arrive).pending == 0
    completed = next(i for i in range(expect, len(found)) if found.kind[i] == "mbarrier_phase")
    block, address = found.target(completed)
    assert found.barriers[block, address].at(completed) == (completed, 1, 1, 0)
    assert found.barriers[block, address].at(completed - 1).bytes == 0


@pytest.mark.parametrize("name", SHAPES)
def test_stages_are_loaded_read_and_loaded_again(name: str) -> None:
    found = history(name)
    boxes = {"s4_tma": 3, "s5_tma_multicast": 4}[name]  # s5's B comes in two halves, one from each block
    assert [(one.block, one.name) for one in found.places] == [
        (block, f"stage {stage}") for block in found.blocks for stage in range(4)
    ]
    for place in found.places:
        assert min(place.boxes) in STAGES and len(place.boxes) == boxes
        assert sum(place.boxes.values()) == STAGE_BYTES
        assert place.barrier == min(place.boxes) + BARRIER
        assert place.at(place.states[0].event - 1) is None
        words = " ".join(f"{state.state} {state.round}" for state in place.states)
        # Six K blocks: stages 0 and 1 are loaded twice. Warps may begin to read when others have ended.
        once = "loading {0} full {0}( being read {0} read {0})+"
        rounds = 2 if place.name in ("stage 0", "stage 1") else 1
        assert re.fullmatch(" ".join(once.format(i + 1) for i in range(rounds)), words), words
        for state in place.states:
            if state.state == "full":
                assert found.kind[state.event] == "mbarrier_phase"
                assert found.target(state.event) == (place.block, place.barrier)


def test_a_multicast_load_reaches_both_blocks() -> None:
    """The half of B that a block loads begins to load the stage of its neighbour too."""
    found = history("s5_tma_multicast")
    halves = {0: STAGES[0] + 8192, 1: STAGES[0] + 16384}
    for issuer, address in halves.items():
        request = next(
            i
            for i, kind in enumerate(found.kind)
            if kind == "tma_load" and found.block[i] == issuer and found.address[i] == address
        )
        landed = [i for i, cause in enumerate(found.cause) if cause == request]
        assert sorted(found.block[i] for i in landed) == [0, 1]
        assert {found.kind[i] for i in landed} == {"tma_load_landed"}
        for block in (0, 1):
            assert found.place(block, address).at(request).state == "loading"


def test_where_a_warp_waits() -> None:
    found = history("s4_tma")
    wait = next(
        i for i, kind in enumerate(found.kind) if kind == "mbarrier_wait" and found.thread[i] // 32 == 2
    )
    assert found.where(0, 2, 0) == "has not started" or found.thread[0] // 32 == 2
    assert f"full 0 (0x{STAGES[0] + BARRIER:x}), parity 0" in found.where(0, 2, wait)
    assert f"since step {found.step[wait]}" in found.where(0, 2, wait)
    passes = [
        i for i, kind in enumerate(found.kind) if kind == "mbarrier_pass" and found.thread[i] // 32 == 2
    ]
    # The first lanes go on while the others still wait.
    assert all("waits for full 0" in found.where(0, 2, i) for i in passes[:31])
    assert "full 0" not in found.where(0, 2, passes[31])
    assert found.where(0, 2, len(found) - 1).startswith("has ended, at step")
    assert all(found.where(*warp, len(found) - 1).startswith("has ended") for warp in found.warps)


def test_a_warp_waits_for_what_its_pass_names() -> None:
    """Just before a pass its phase is complete; at the wait's own time the sentence says what is missing."""
    found = history("s5_tma_multicast")
    checked = 0
    for event, kind in enumerate(found.kind):
        if kind == "mbarrier_pass" and found.cause[event] >= 0:
            cause = found.cause[event]
            assert found.kind[cause] == "mbarrier_phase" and cause < event
            assert found.target(cause) == found.target(event)
            assert found.value[cause] % 2 == found.value[event]
            checked += 1
    assert checked > 100


def test_where_a_broken_run_ends() -> None:
    """The consumers do not wait for their stage: its load comes after a WGMMA that may still read it."""
    found, broken = history("s4_tma"), history("s4_tma", SEED, "a wait removed")
    fault = broken.recording.fault
    assert fault.what == "released_too_early" and broken.recording.faulty_cluster() == 0
    last = len(broken) - 1
    at = broken.place(0, fault.address & 0xFFFFFF)
    assert at.at(last).state == "conflict"
    assert all(place.at(event.event).state != "conflict" for place in found.places for event in place.states)
    mine, theirs = differences(found, broken)
    assert mine and {found.kind[event] for event in mine} == {"mbarrier_wait"}
    assert {found.sentence(event) for event in mine} == {
        f"waits for full 0 (0x{STAGES[0] + BARRIER:x}), parity 0"
    }
    assert {broken.kind[event] for event in theirs} <= {"wgmma_fence", "wgmma"}


def test_where_a_deadlock_ends() -> None:
    broken = history("s4_tma", 7, "a wrong parity")
    last = len(broken) - 1
    full = STAGES[3] + BARRIER
    assert broken.recording.fault.what == "deadlock"
    assert broken.barriers[0, full].at(last)[1:] == (1, 1, 0)
    for warp in range(4):
        said = broken.where(0, warp, last)
        assert (
            f"waits for full 3 (0x{full:x}), parity 1 (it is in phase 1, 1 of 1 arrivals pending, 0 bytes"
            in said
        )
    ends = {(span.index, span.on): span.end for span in broken.spans if span.what == "wait"}
    assert all(ends[warp, "full 3"] == broken.step[-1] for warp in range(4))


def test_schedules_of_a_correct_kernel_do_not_differ() -> None:
    """Although its lanes have their turns in another order."""
    first, second = history("s5_tma_multicast", 2), history("s5_tma_multicast", 3)
    assert first.kind != second.kind
    assert differences(first, second) == ([], [])
    assert differences(history("s4_tma"), history("s4_tma")) == ([], [])


def test_every_kind_of_event_has_a_sentence() -> None:
    library = build.load(gl.rungs["s4_tma"].path, target="emulator").lib
    kinds = []
    while (name := library.emulator_event_name(len(kinds))) is not None:
        kinds.append(name.decode())
    assert list(SENTENCES) == kinds
    assert sentence("a new kind", "0x10", 3) == "a new kind: 0x10, value 3"


# ----------------------------------------------------------------------------------------------- stepper


def test_stepper() -> None:
    found = history("s4_tma")
    step = lab.Stepper(found.recording)
    assert step.event == 0 and step.barrier("full 0") is None and step.stage(0) is None
    step.next("mbarrier_phase")
    phase = found.kind.index("mbarrier_phase")
    assert step.event == phase and step.next("mbarrier_phase").back("mbarrier_phase").event == phase
    number = (found.address[phase] - 1024) // 25600
    assert step.barrier(f"full {number}").phase == step.barrier(found.address[phase]).phase == 1
    assert step.stage(number).state == "full" and step.stage(STAGES[number] + 200).round == 1
    where = step.next("wgmma", warp=3).where(3)  # some of its lanes may be behind
    assert f"runs; last, at step {found.step[step.event]}: issues a WGMMA" in where
    assert step.line == "s4_tma.cu:" + str(found.lines[step.event][1])
    assert f"> {found.lines[step.event][1]:4}" in step.source()
    assert "issues a WGMMA" in repr(step) and step.line in repr(step)
    assert "stage 0: " not in step._repr_html_() and "stage 0</td>" in step._repr_html_()
    last = step.to_fault().event
    assert step.next().event == last == len(found) - 1
    for call in (
        lambda: step.next("no such kind"),
        lambda: step.next(warp=9),
        lambda: step.next(block=1),
        lambda: step.where(4),
        lambda: step.barrier("full 7"),
        lambda: step.stage(7),
        lambda: lab.Stepper(found.recording, cluster=3),
    ):
        with pytest.raises(InputError):
            call()


def test_stepper_stops_once_for_a_warp() -> None:
    recording = recorded("s4_tma")
    for every_lane, stops in ((False, 6), (True, 6 * 32)):  # one wait for each K block
        step, seen = lab.Stepper(recording, every_lane=every_lane), []
        while not seen or seen[-1] != step.event:
            seen.append(step.event)
            step.next("mbarrier_pass", warp=1)
        assert len(seen) - 1 == stops


def test_stepper_at_a_fault() -> None:
    step = lab.Stepper(recorded("s4_tma", 7, "a wrong parity")).to_fault()
    assert "The run ended in a fault: emulator: deadlock" in repr(step)
    assert "parity 1 (it is in phase 1" in step.where(0)


def test_terminal() -> None:
    terminal = Terminal(lab.Stepper(recorded("s4_tma")))
    terminal.stdout = io.StringIO()
    lines = ("n mbarrier_phase", "", "b", "s", "n nonsense", "w 0", "where 99", "where", "barrier full 0")
    for line in (*lines, "barrier none", "stage 0", "stage 77", "end", "source", "what"):
        terminal.onecmd(line)
    said = terminal.stdout.getvalue()
    for words in (
        "completes phase 0",
        "block 0, full 0",
        "kind is 'nonsense'",
        "no source line",
        "not a command",
        "warp is 99 of block 0",
        "where needs a warp's number",
        "full 0: phase ",
        "none",
        "stage 0: ",
        "There is no stage 77",
    ):
        assert words in said
    assert terminal.onecmd("quit") and terminal.onecmd("q")


# ----------------------------------------------------------------------------------------------- command


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_view(parser.add_subparsers(required=True))
    arguments = parser.parse_args(words)
    return arguments.run(arguments)


def test_command_of_a_rung_against_a_changed_copy(tmp_path: Path, capsys) -> None:
    changed = tmp_path / "mine.cu"
    changed.write_text(gl.rungs["s4_tma"].source.replace(FULL_WAIT, "", 1))
    written = tmp_path / "two.html"
    assert command("view", "s4_tma", "--seed", str(SEED), "--against", str(changed), "-o", str(written)) == 0
    assert "Written" in capsys.readouterr().out
    first, second = data_of(written)["runs"]
    assert (first["name"], second["name"]) == ("s4_tma.cu, seed 0", "mine.cu, seed 0")
    assert first["fault"] is None and second["fault"]["what"] == "released_too_early"
    assert first["clusters"][0]["differs"] and second["clusters"][0]["differs"]


def test_command_of_two_seeds(tmp_path: Path) -> None:
    written = tmp_path / "two.html"
    assert command("view", "s4_tma", "--seed", "1", "--against", "2", "-o", str(written)) == 0
    assert [run["seed"] for run in data_of(written)["runs"]] == [1, 2]


def test_command_of_a_script(tmp_path: Path, capsys) -> None:
    """Its launches are recorded although it does not ask for that; the faulty one is shown."""
    script, written = tmp_path / "script.py", tmp_path / "x.html"
    script.write_text(
        "import numpy as np\nfrom gemm_ladder import lab\n"
        f"SOURCE = {SMALL!r}\nif __name__ == '__main__':\n"
        "    for n in (256, 300):\n        lab.run(SOURCE, np.ones(256, np.float32), n, grid=3, seed=5)\n"
    )
    assert command("view", str(script), "-o", str(written)) == 0
    (run,) = data_of(written)["runs"]
    assert run["seed"] == 5 and run["fault"]["what"] == "global_out_of_bounds"
    assert "x[256]" in capsys.readouterr().out or "outside x of shape 256" in run["fault"]["text"]


def test_commands_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text("print('hello')\n")
    (tmp_path / "kernel.cu").write_text(SMALL)
    for words, reason in (
        ((str(tmp_path / "none.py"),), "does not exist"),
        ((str(tmp_path / "none.cu"),), "does not exist"),
        ((str(tmp_path / "nothing.py"),), "launches no kernel"),
        ((str(tmp_path / "kernel.cu"),), "a Python script"),
        (("s4_tma", "--shape", "64x128x128,64x128x256"), "one shape"),
    ):
        with pytest.raises(InputError, match=reason):
            command("view", *words, "-o", str(tmp_path / "x.html"))
    with pytest.raises(gl.errors.UnknownRungError):
        command("view", "s4", "-o", str(tmp_path / "x.html"))
    assert not (tmp_path / "x.html").exists()
