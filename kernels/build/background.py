"""Builds that no call waits for yet, in threads of this process.

`start` queues jobs. As many builds run at a time as there are CPUs, those of calls included. Each holds its
entry's lock (cache.py), as any build does. Therefore a call waits for the one build of the library that it
needs, and where that is still queued the call builds it at once, in its own thread.

What another process or thread is building is skipped: of eight processes that start the same jobs, each
builds a share. A build that fails is silent: a call that needs the library builds it again, and raises the
error. When the interpreter exits, builds are ended and leave nothing. A forked child begins with none.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from gemm_ladder.build import cache, worker
from gemm_ladder.build.cpus import cpus
from gemm_ladder.build.job import Job

_EXIT_S = 2.0  # how long an exit waits at most for builds to tidy up once they are ended

_changed = threading.Condition()  # guards all below
_queued: dict[str, Job] = {}  # by their keys, the next one first
_building: set[str] = set()  # the keys of what the threads build
_threads: set[threading.Thread] = set()
_calls = 0  # how many builds run in threads of calls
_ended = False  # by the interpreter's exit


def start(jobs: Iterable[Job]) -> None:
    """Build these in the background, in this order, unless they are in the cache by then."""
    keyed = [(job.key(), job) for job in jobs]
    with _changed:
        if _ended:
            return
        for key, job in keyed:
            if key not in _building:
                _queued.setdefault(key, job)
        with contextlib.suppress(RuntimeError):  # no further thread is allowed: fewer do the same
            while len(_threads) < min(cpus(), len(_queued) + len(_building)):
                thread = threading.Thread(target=_work, name="gemm_ladder build", daemon=True)
                thread.start()
                _threads.add(thread)


def drop(jobs: Iterable[Job]) -> None:
    """Build those of them that have not begun no longer."""
    keys = [job.key() for job in jobs]
    with _changed:
        for key in keys:
            _queued.pop(key, None)


def has(job: Job) -> bool:
    """Whether it is queued, or being built in the background."""
    key = job.key()
    with _changed:
        return key in _queued or key in _building


def counted(build: Callable[[Path], cache.Made]) -> Callable[[Path], cache.Made]:
    """A call's own build, for cache.get(): it waits for no other, but while it runs the background has a CPU
    less."""

    def run(private: Path) -> cache.Made:
        _count(1)
        try:
            return build(private)
        finally:
            _count(-1)

    return run


def _count(change: int) -> None:
    global _calls
    with _changed:
        _calls += change
        _changed.notify_all()


def _work() -> None:
    """Build what is queued, until nothing is."""
    while True:
        with _changed:
            while _queued and len(_building) + _calls >= cpus():
                _changed.wait()
            if not _queued:
                _threads.discard(threading.current_thread())
                return
            key = next(iter(_queued))
            job = _queued.pop(key)
            _building.add(key)
        with contextlib.suppress(Exception):
            cache.get(key, job.build, background=True)
        with _changed:
            _building.discard(key)
            _changed.notify_all()


def _end() -> None:
    global _ended
    with _changed:
        _ended = True
        _queued.clear()
        _changed.notify_all()
        threads = list(_threads)
    if threads:
        worker.end_all()
    deadline = time.monotonic() + _EXIT_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _forget_in_child() -> None:
    global _changed, _calls
    _changed = threading.Condition()  # a thread that the child does not have may hold the parent's
    _queued.clear()
    _building.clear()
    _threads.clear()
    _calls = 0


atexit.register(_end)
os.register_at_fork(after_in_child=_forget_in_child)
