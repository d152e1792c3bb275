"""The cache without a compiler: a damaged entry is not used, and what killed builders left is removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gemm_ladder.build import cache


def fake_build(calls: list[Path], seconds: float = 0.0) -> Callable[[Path], cache.Made]:
    """A builder for cache.get() that compiles nothing and notes its private folders in `calls`."""

    def run(private: Path) -> cache.Made:
        calls.append(private)
        time.sleep(seconds)
        library = private / "library.so"
        library.write_bytes(b"machine code")
        return cache.Made(library, "the log")

    return run


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "truncated": lambda entry, library: os.truncate(library, 100),
    "emptied": lambda entry, library: os.truncate(library, 0),
    "one bit": lambda entry, library: library.write_bytes(flip(library.read_bytes())),
    "no library": lambda entry, library: library.unlink(),
    "no log": lambda entry, library: (entry / "build.log").unlink(),
    "no record": lambda entry, library: (entry / "entry.json").unlink(),
    "half a record": lambda entry, library: os.truncate(entry / "entry.json", 20),
    "a file": lambda entry, library: (shutil.rmtree(entry), entry.write_text("not a folder")),
}


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entry_is_not_used_and_heals(damage: str, folder: Path) -> None:
    calls: list[Path] = []
    entry, cached = cache.get("key", fake_build(calls))
    assert not cached and cache.get("key", fake_build(calls)) == (entry, True)
    DAMAGES[damage](folder / "key", entry.path)
    assert cache.find(folder, "key") is None
    healed, cached = cache.get("key", fake_build(calls))
    assert not cached and len(calls) == 2
    assert (healed.path, healed.path.read_bytes(), healed.log) == (entry.path, b"machine code", "the log")
    assert cache.get("key", fake_build(calls))[1]
    assert list((folder / "building").iterdir()) == []


def test_what_a_killed_builder_left_goes_with_any_build(folder: Path) -> None:
    calls: list[Path] = []
    cache.get("mine", fake_build(calls))
    for name in ("mine.old", "another.old", "alive.old"):
        (folder / "building" / name).mkdir()
    with cache._lock(folder, "alive", 60.0):
        cache.get("new", fake_build(calls))
        assert [path.name for path in (folder / "building").iterdir()] == ["alive.old"]
    cache.get("alive", fake_build(calls))
    assert list((folder / "building").iterdir()) == []
    (folder / "building" / "scratch.old").mkdir()
    cache.get("newer", fake_build(calls))
    assert (folder / "building" / "scratch.old").exists(), "a command may use it: it has no lock"
    os.utime(folder / "building" / "scratch.old", (0, 0))
    cache.get("newest", fake_build(calls))
    assert list((folder / "building").iterdir()) == []


def test_usage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts entries, not what is being built, and skips a file that another process removes meanwhile."""
    assert cache.usage() == (0, 0)
    cache.get("one", fake_build([]))
    cache.get("two", fake_build([]))
    libraries, size = cache.usage()
    assert libraries == 2
    assert size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > 0
    building = folder / "building" / "three.x"
    (building / "entry").mkdir(parents=True)
    (building / "entry" / "entry.json").write_text("unfinished")
    assert cache.usage() == (2, size)

    walk = os.walk

    def slow_walk(root: str) -> object:
        for found in walk(root):
            if "entry.json" in found[2]:
                (Path(found[0]) / "entry.json").unlink()
            yield found

    monkeypatch.setattr(os, "walk", slow_walk)
    libraries, less = cache.usage()
    assert libraries == 0 and 0 < less < size


def test_failed_build_leaves_nothing(folder: Path) -> None:
    def fail(private: Path) -> cache.Made:
        (private / "half").write_text("")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cache.get("key", fail)
    assert list((folder / "building").iterdir()) == [] and not (folder / "key").exists()


def test_read_only_file_system_is_seen_before_the_build(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache.get("one", fake_build([]))  # so that locks/ and building/ are there
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    calls: list[Path] = []
    with pytest.warns(UserWarning, match="Permission denied"):
        entry, _ = cache.get("two", fake_build(calls))
    assert not entry.path.is_relative_to(folder)
    assert len(calls) == 1 and not calls[0].is_relative_to(folder)


def test_what_a_pass_did_is_recorded(folder: Path) -> None:
    for rewritten in (None, True, False):

        def build(private: Path, rewritten: bool | None = rewritten) -> cache.Made:
            return fake_build([])(private)._replace(rewritten=rewritten)

        key = f"key {rewritten}"
        assert [cache.get(key, build)[0].rewritten for _ in range(2)] == [rewritten] * 2


def test_another_builder_that_takes_long_is_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with cache._lock(folder, "slow", 60.0):
        waiter = threading.Thread(target=cache.get, args=("slow", fake_build([]), 0.1))
        waiter.start()
        time.sleep(0.5)
        assert waiter.is_alive()
    waiter.join()
    lock = folder / "locks" / "slow"
    line = f"gemm_ladder: waiting for another process or thread that builds slow (it holds {lock})\n"
    assert capfd.readouterr().err == line


def test_nothing_is_said_of_a_short_wait(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with cache._lock(folder, "quick", 60.0):
        waiter = threading.Thread(target=cache.get, args=("quick", fake_build([]), 0.5))
        waiter.start()
        time.sleep(0.1)
    waiter.join()
    time.sleep(0.6)
    assert capfd.readouterr().err == ""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system has none."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_builders_repeat_but_entries_are_whole(folder: Path) -> None:
    calls: list[Path] = []
    results: list[tuple[cache.Entry, bool]] = []
    threads = [
        threading.Thread(target=lambda: results.append(cache.get("key", fake_build(calls, 0.2))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 3 and len(results) == 3
    assert {entry.path.read_bytes() for entry, _ in results} == {b"machine code"}
    old = folder / "building" / "key.old"
    old.mkdir()
    cache.get("another", fake_build([]))
    assert old.exists(), "its builder may live"
    os.utime(old, (0, 0))
    cache.get("a third", fake_build([]))
    assert not old.exists()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_first_entry_stays(folder: Path) -> None:
    """Its builder may be looking at it just now."""

    def overtaken(private: Path) -> cache.Made:
        cache.get("key", fake_build([]))
        published.append((folder / "key").stat().st_ino)
        return fake_build([])(private)

    published: list[int] = []
    entry, _ = cache.get("key", overtaken)
    assert entry.path.read_bytes() == b"machine code"
    assert published == [(folder / "key").stat().st_ino]


def test_forked_child_does_not_keep_a_lock(folder: Path) -> None:
    pids = []

    def fork_and_build(private: Path) -> cache.Made:
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        pids.append(pid)
        raise RuntimeError("the builder dies")

    # As a killed builder would: the lock's descriptor goes, with no unlocking.
    with contextlib.suppress(RuntimeError):
        cache.get("key", fork_and_build)
    started = time.monotonic()
    cache.get("key", fake_build([]))
    os.kill(pids[0], signal.SIGKILL)
    os.waitpid(pids[0], 0)
    assert time.monotonic() - started < 10
