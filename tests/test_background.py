"""Builds in the background: which are done, by whom, and what happens when one fails or the process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import FakeJob, alive, builds, compiler_that, idle, jobs_of, python, wait_until
from gemm_ladder import build
from gemm_ladder.build import background, cache, cpus
from gemm_ladder.errors import BuildError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def events(folder: Path) -> Iterator[list[str]]:
    """What fake jobs did, in order. The cache is empty at first; the background is idle before and after."""
    assert not background._threads
    yield []
    wait_until(idle, 60)


def with_cpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(background, "cpus", lambda: count)


def test_as_many_at_a_time_as_there_are_cpus(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpus(monkeypatch, 2)
    jobs = jobs_of(events, "abcd")
    for job in jobs:
        job.may_end.clear()
    background.start(jobs)
    background.start(jobs)  # asked for again, built once
    wait_until(lambda: len(events) == 2, 60)
    assert sorted(events) == ["a begins", "b begins"] and all(map(background.has, jobs))
    jobs[0].may_end.set()
    wait_until(lambda: len(events) == 4, 60)
    assert events[2:] == ["a ends", "c begins"]
    for job in jobs:
        job.may_end.set()
    wait_until(idle, 60)
    assert builds(events) == ["a", "b", "c", "d"] and not any(map(background.has, jobs))
    assert all(map(build.find, jobs))


def test_a_calls_own_build_has_a_cpu(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On one CPU nothing else is built beside it."""
    with_cpus(monkeypatch, 1)
    own, other = jobs_of(events, "ab")

    def begins(private: Path) -> cache.Made:
        background.start([other])
        time.sleep(0.2)
        return own.build(private)

    cache.get(own.key(), background.counted(begins))
    wait_until(idle, 60)
    assert events == ["a begins", "a ends", "b begins", "b ends"]


def test_a_call_waits_for_its_own_build_only(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is still queued goes ahead; for one that has begun, the call waits, and shares it."""
    with_cpus(monkeypatch, 1)
    first, _, third = jobs = jobs_of(events, "abc")
    first.may_end.clear()
    background.start(jobs)
    wait_until(lambda: events == ["a begins"], 60)
    assert not build.make(third).cached
    assert events == ["a begins", "c begins", "c ends"]
    shared: list[build.Built] = []
    call = threading.Thread(target=lambda: shared.append(build.make(first)))
    call.start()
    first.may_end.set()
    call.join(60)
    assert shared[0].cached and shared[0].path.exists()
    wait_until(idle, 60)
    assert builds(events) == ["a", "b", "c"]


def test_what_is_dropped_is_not_built(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpus(monkeypatch, 1)
    first, second, _ = jobs = jobs_of(events, "abc")
    first.may_end.clear()
    background.start(jobs)
    wait_until(lambda: events == ["a begins"], 60)
    background.drop([first, second])
    first.may_end.set()
    wait_until(idle, 60)
    assert builds(events) == ["a", "c"]


def test_a_failure_is_silent_until_a_call_needs_the_library(events: list[str], capfd: Capture) -> None:
    failing, whole = *jobs_of(events, "a", fails=True), *jobs_of(events, "b")
    background.start([failing, whole])
    wait_until(idle, 60)
    assert builds(events) == ["a", "b"] and build.find(whole) and not build.find(failing)
    with pytest.raises(BuildError, match="It does not build"):
        build.make(failing)
    assert capfd.readouterr() == ("", "")
    background.start([FakeJob("a", events)])  # and nothing of it stays
    wait_until(lambda: bool(build.find(failing)), 60)


def test_what_another_process_builds_is_skipped(events: list[str], capfd: Capture) -> None:
    """No thread waits for it."""
    taken, free = jobs_of(events, "ab")
    with cache._lock(cache.folder(), taken.key(), 60.0):
        background.start([taken, free])
        wait_until(idle, 60)
    assert builds(events) == ["b"] and not build.find(taken)
    assert capfd.readouterr() == ("", "")


def test_without_locks_nothing_is_built_ahead(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of eight processes would build all."""

    def refuse(*arguments: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    (job,) = jobs_of(events, "a")
    background.start([job])
    wait_until(idle, 60)
    assert events == []
    assert not build.make(job).cached


def test_a_folder_that_cannot_be_used_is_not_mentioned(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The call that needs the library says it."""
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (job,) = jobs_of(events, "a")
    background.start([job])
    wait_until(idle, 60)
    assert not recwarn.list and builds(events) == ["a"]
    with pytest.warns(UserWarning, match="cannot be written"):
        assert build.make(job).cached


SHARED = """
import sys, time
from pathlib import Path
from gemm_ladder import build
from gemm_ladder.build import background, cache
class Job:
    core = None
    target = "host"
    def __init__(self, name): self.name = name
    def key(self): return self.name
    def build(self, private, core=None):
        with open(sys.argv[1], "a") as log:
            log.write(self.name + "\\n")
        time.sleep(0.05)
        (private / "library.so").write_bytes(b"code")
        return cache.Made(private / "library.so", "")
jobs = [Job(f"kernel{number}") for number in range(12)]
background.start(jobs[1:])
print([build.make(job).path.parent.name for job in jobs] == [job.name for job in jobs])
"""


def test_eight_processes_share_the_builds_of_a_weight(tmp_path: Path, folder: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", SHARED, str(log)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)
    ]
    assert [process.communicate(timeout=120) for process in processes] == [("True\n", "")] * 8
    assert sorted(log.read_text().split()) == sorted(f"kernel{number}" for number in range(12))
    assert list((folder / "building").iterdir()) == []


def test_a_forked_child_begins_with_none(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no thread that would build, and none that would release what one held when it was forked."""
    with_cpus(monkeypatch, 1)
    first, second = jobs_of(events, "ab")
    first.may_end.clear()
    background.start([first, second])
    wait_until(lambda: events == ["a begins"], 60)
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with background._changed:
            held.set()
            forked.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # ends it if it waits for ever
        try:
            # The lock of `second` is free, so this builds; a thread of the child's own does the same for "c".
            ok = not background.has(second) and not build.make(second).cached
            background.start(jobs_of([], "c"))
            wait_until(idle, 20)
            ok = ok and build.find(FakeJob("c", [])) is not None
        except BaseException:
            ok = False
        os._exit(7 if ok else 1)
    forked.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert background.has(first) and background.has(second), "the parent goes on"
    first.may_end.set()
    wait_until(idle, 60)
    assert builds(events) == ["a"], "the child has built the other one"


def test_an_exit_ends_builds_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    """Neither a compiler that runs on, nor a folder, nor words; a forked child's exit ends nothing."""
    hang = f'echo $$ > "{tmp_path}/new"; mv "{tmp_path}/new" "{tmp_path}/compiling"; sleep 60;'
    code = f"""
    import os, sys, time
    from pathlib import Path
    from gemm_ladder import build
    from gemm_ladder.build import background
    background.cpus = lambda: 1
    background.start([build.Job.of("int x;\\n", "host"), build.Job.of("int y;\\n", "host")])
    while not Path("{tmp_path}/compiling").exists():
        time.sleep(0.02)
    if os.fork() == 0:
        background.start([build.Job.of("int z;\\n", "host")])
        sys.exit()
    os.wait()
    os.kill(int(Path("{tmp_path}/compiling").read_text()), 0)  # it still runs
    print(time.monotonic())
    """
    done = python(code, env={**os.environ, "CXX": compiler_that(tmp_path / "cxx", hang)})
    assert time.monotonic() - float(done.stdout) < 10
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: not alive(int((tmp_path / "compiling").read_text())), 20)
    assert list((folder / "building").iterdir()) == []
    assert not list(folder.glob("inline-*")), "no entry"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4),
        ({"v2/cpu.max": "max 100000", "v2/a/cpu.max": "150000 100000"}, 2),
        ({"v2/cpu.max": "100000 100000", "v2/a/cpu.max": "max 100000"}, 1),
        ({"v2/cpu.max": "1000000 100000"}, 4),
        ({"v2/cpu/cpu.cfs_quota_us": "250000", "v2/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"v2/cpu/cpu.cfs_quota_us": "-1", "v2/cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"v2/cpu.max": "not a quota"}, 4),
        ({"v2/cpu.max": "1000 100000"}, 1),
    ],
)
def test_cpus(files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scheduler allows, and the least of the quotas of both versions of cgroups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6, 7})
    monkeypatch.setattr(cpus, "_CGROUPS", tmp_path / "v2")
    monkeypatch.setattr(cpus, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/a/b\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus.cpus() == expected
