"""Tries all mutants of the kernels, in many processes and within a time, and writes down how each ended.

    python tests/all_mutants.py results.json                        all that results.json does not have
    python tests/all_mutants.py results.json --seconds 280          for so long
    python tests/all_mutants.py results.json --part 5 --of s4_tma   about every fifth of this kernel

A run that ends early, by --seconds or by Ctrl-C, is taken up by the next one with the same file. What nothing
shows is to be listed, with the reason, in tests/data/surviving_mutants.txt; the run prints it.

The file is {"schema": 1, "of": digest of the kernels and the emulator, "mutants": how many there are, "rows":
[{"subject", "line", "what", "file", "before", "after": as Mutant has them, "ended": as mutation_runs.outcome
says, "seconds": its wall time}]}. Rows of another digest are not taken up.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import NamedTuple

import mutation_runs
from gemm_ladder.ref import mma
from mutants import Mutant
from mutation_runs import SURVIVES, Runner, all_mutants, listed, outcome, sample
from mutation_subjects import SUBJECTS, Subject

_fork = multiprocessing.get_context("fork")
Row = dict[str, str | int | float]


class Task(NamedTuple):
    subject: Subject
    mutant: Mutant

    @property
    def key(self) -> tuple[str, ...]:
        return self.subject.name, *self.mutant.key

    def row(self, ended: str, seconds: float) -> Row:
        mutant = self.mutant
        row: Row = {"subject": self.subject.name, "line": mutant.line, "what": mutant.what}
        row |= dict(zip(("file", "before", "after"), mutant.key, strict=True))
        return row | {"ended": ended, "seconds": round(seconds, 2)}


def digest() -> str:
    """Of what decides how a mutant ends: the launches' sources, what they include, and the emulator."""
    parts = [mutation_runs.core().path.name]
    for subject in SUBJECTS.values():
        parts += [file.read_text(encoding="utf-8") for file in subject.files]
        parts += [launch.source for launch in subject.launches]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _right(names: tuple[str, int]) -> tuple[str, str, tuple[bytes, int]]:
    subject = SUBJECTS[names[0]]
    launch = subject.launches[names[1]]
    return subject.name, launch.name, mutation_runs.right(subject, launch)


def _prepare(subjects: Sequence[Subject], processes: int) -> None:
    """What all processes share, because they are forked later: headers, and what the kernels as they are
    compute."""
    mma.cfunc_address()
    mutation_runs.core().lib  # noqa: B018 # loaded
    mutation_runs.precompiled_headers()
    names = [(subject.name, number) for subject in subjects for number in range(len(subject.launches))]
    with _fork.Pool(processes) as pool:
        for subject_name, launch_name, found in pool.imap_unordered(_right, names, chunksize=1):
            mutation_runs.known_right[subject_name, launch_name] = found


def _work(tasks: Sequence[Task], taken: Synchronized[int], done: SimpleQueue[tuple[int, str, float]]) -> None:
    """Take tasks in their order until there are no more. The process leads the group of those it starts."""
    os.setpgid(0, 0)
    runner: Runner | None = None
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(tasks):
            return
        subject, mutant = tasks[number]
        if runner is None or runner.subject is not subject:
            if runner is not None:
                runner.end()
            runner = Runner(subject)
        began = time.monotonic()
        done.put((number, outcome(mutant, runner), time.monotonic() - began))


class Crew:
    """Processes that try the tasks. As a context, it ends them all, with what they have started."""

    def __init__(self, tasks: Sequence[Task], processes: int) -> None:
        self.done: SimpleQueue[tuple[int, str, float]] = _fork.SimpleQueue()
        taken = _fork.Value("i", 0)
        self._workers = [
            _fork.Process(target=_work, args=(tasks, taken, self.done)) for _ in range(processes)
        ]

    def __enter__(self) -> Crew:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            assert worker.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.join()

    def works(self) -> bool:
        return any(worker.is_alive() for worker in self._workers)


def _known_rows(results: Path, of: str) -> list[Row]:
    """The rows of the file that are about the same kernels and the same emulator."""
    if not results.exists():
        return []
    known = json.loads(results.read_text(encoding="utf-8"))
    if known["of"] == of:
        return list(known["rows"])
    print(f"{results} is about other kernels or another emulator: all mutants are tried anew.", flush=True)
    return []


def _write(results: Path, of: str, count: int, rows: Sequence[Row]) -> None:
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = f'{{"schema": 1, "of": "{of}", "mutants": {count}, "rows": [\n'
    beside = results.with_name(results.name + ".new")
    beside.write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")
    beside.replace(results)


def _report(rows: Sequence[Row], count: int) -> None:
    reasons = listed()
    for row in rows:
        key = str(row["file"]), str(row["before"]), str(row["after"])
        line = f"{row['file']} | {row['before']}  ->  {row['after']}"  # as the list has it
        if row["ended"] == SURVIVES and key not in reasons:
            print(f"NOT LISTED ({row['what']}, line {row['line']}): {line}")
        if row["ended"] in (mutation_runs.HANGS, mutation_runs.CRASHES):
            print(f"{row['ended'].upper()}: {line}")
        if row["ended"] != SURVIVES and key in reasons:
            print(f"CAUGHT, AND LISTED: {line}")
    print(dict(collections.Counter(row["ended"] for row in rows).most_common()))
    print(f"{len(rows)} of {count} mutants, {sum(float(row['seconds']) for row in rows):.0f} s of work")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the JSON file, which is read if it is there")
    parser.add_argument(
        "--of", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="which kernels; default: all"
    )
    parser.add_argument("--part", type=int, default=1, help="try about one in so many mutants")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one for each CPU")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so many")
    chosen = parser.parse_args()
    ends = time.monotonic() + chosen.seconds
    # The longest first, so that no process is left alone with them at the end.
    subjects = sorted((SUBJECTS[name] for name in chosen.of), key=lambda subject: -len(subject.launches))
    every = [Task(subject, one) for subject in subjects for one in sample(all_mutants(subject), chosen.part)]
    count = sum(len(all_mutants(subject)) for subject in SUBJECTS.values())
    of = digest()
    rows = _known_rows(chosen.results, of)
    known = {tuple(row[part] for part in ("subject", "file", "before", "after")) for row in rows}
    tasks = [task for task in every if task.key not in known]
    _write(chosen.results, of, count, rows)
    print(f"{len(tasks)} of {count} mutants to try, in {chosen.processes} processes", flush=True)
    with tempfile.TemporaryDirectory() as tempfile.tempdir:  # what killed processes leave goes with it
        _prepare(list({task.subject.name: task.subject for task in tasks}.values()), chosen.processes)
        wrote = time.monotonic()
        with Crew(tasks, chosen.processes) as crew, contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < ends and (crew.works() or not crew.done.empty()):
                if crew.done.empty():
                    time.sleep(0.05)
                    continue
                number, ended, seconds = crew.done.get()
                rows.append(tasks[number].row(ended, seconds))
                if time.monotonic() - wrote > 5:
                    _write(chosen.results, of, count, rows)
                    wrote = time.monotonic()
    _write(chosen.results, of, count, rows)
    _report(rows, count)


if __name__ == "__main__":
    main()
