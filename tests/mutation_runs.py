"""Compiles a mutant, and runs it in a process of its own on many schedules, until it shows that it is wrong.

all_mutants.py is the command for it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import multiprocessing
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import gemm_ladder as gl
import torch
from gemm_ladder import build
from gemm_ladder.build import toolchain
from gemm_ladder.build.job import Job
from gemm_ladder.errors import LaunchError
from gemm_ladder.ref import mma
from mutants import Mutant, mutants
from mutation_subjects import Launch, Subject

SEEDS = 40  # schedules of a mutant, shared out among the subject's launches
SECONDS = 120.0  # a mutant that takes longer hangs
STEPS = 20  # a run may take so many times the steps of the kernel as it is
RUNS_OF_A_PROCESS = 100  # mutants, because libraries stay loaded

SURVIVES, HANGS, CRASHES = "survives", "hangs", "crashes Python"
torch.set_num_threads(1)  # a forked process has none of its threads
_fork = multiprocessing.get_context("fork")


def all_mutants(subject: Subject) -> list[Mutant]:
    return [one for file in subject.files for one in mutants(file.name, file.read_text(encoding="utf-8"))]


def sample(found: list[Mutant], part: int) -> list[Mutant]:
    """About one in `part` of the mutants, chosen by their texts."""
    return [one for one in found if zlib.crc32("|".join(one.key).encode()) % part == 0]


# --------------------------------------------------------------------------------------------- compiling


@functools.cache
def core() -> build.Built:
    """The emulator's library, which all mutants are linked with."""
    job = Job.of("", "emulator").core
    assert job is not None
    return build.make(job)


def _compiler(job: Job) -> list[str]:
    return [*job.cxx.command, *job.flags, *(f"-I{path}" for path in job.include_dirs), "-fPIC", "-w"]


@functools.cache
def precompiled_headers() -> list[str]:
    """Flags by which g++ reads the emulator's headers, which no mutant changes, from a precompiled file. That
    halves a mutant's compilation, and changes nothing in its machine code."""
    job = Job.of('#include "launch.cuh"\n', "emulator", "mutant")
    if not toolchain.is_gcc(job.cxx.identity):
        return []
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    header = folder / "headers.hpp"
    header.write_text(job.text, encoding="utf-8")
    command = [*_compiler(job), "-x", "c++-header", str(header), "-o", f"{header}.gch"]
    subprocess.run(command, check=True)
    return ["-include", str(header)]


def compile_mutant(subject: Subject, launch: Launch, mutant: Mutant | None, folder: Path) -> Path | None:
    """The library of a launch's source with the fault, in an empty folder; None if it does not compile.
    Without a mutant it is the kernel as it is.

    Not through build.load: its process takes longer than the compiler, and mutants do not belong in the
    cache.
    """
    source = launch.source
    if len(subject.files) == 1 and mutant:
        source = mutant.text
    elif len(subject.files) > 1:
        for file in subject.files:
            text = mutant.text if mutant and mutant.file == file.name else file.read_text(encoding="utf-8")
            (folder / file.name).write_text(text, encoding="utf-8")
        for file in {path for known in subject.files for path in known.parent.glob("*.cuh")} - set(
            subject.files
        ):
            if file.parent.name != "include":
                (folder / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    job = Job.of(source, "emulator", "mutant", extra_flags=[f"-I{folder}"])
    compiled, library = folder / "mutant.o", folder / "mutant.so"
    command = [*_compiler(job), *precompiled_headers(), "-c", "-x", "c++", "-", "-o", str(compiled)]
    done = subprocess.run(command, input=job.text, text=True, capture_output=True, cwd=folder, check=False)
    if done.returncode:
        return None
    # Without the flags, among which is one that would link a sanitizer.
    command = [
        *job.cxx.command,
        "-shared",
        str(compiled),
        str(core().path),
        "-Wl,-Bsymbolic",
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True)
    return library


# ------------------------------------------------------------------------------------------------ running


def _run(
    launch: Launch, library: ctypes.CDLL, seed: int, max_steps: int | None
) -> tuple[bytes | None, str, int]:
    """The bytes that a schedule leaves, or None and what ended it; and its steps."""
    with gl.emulator(seed=seed, max_steps=max_steps, threads=1) as run:
        try:
            return launch.run(library), "", run.steps
        except gl.EmulatorError as error:
            return None, error.what, run.steps
        except LaunchError:
            return None, "refused", run.steps


known_right: dict[tuple[str, str], tuple[bytes, int]] = {}  # by names of the subject and the launch


def right(subject: Subject, launch: Launch) -> tuple[bytes, int]:
    """What the kernel as it is computes, and its steps. That this is right other tests say."""
    if (subject.name, launch.name) in known_right:
        return known_right[subject.name, launch.name]
    with tempfile.TemporaryDirectory() as folder:
        path = compile_mutant(subject, launch, None, Path(folder))
        assert path is not None, f"{subject.name} does not compile"
        core().lib  # noqa: B018 # the loader finds it then
        found, said, steps = _run(launch, ctypes.CDLL(str(path)), 0, None)
    assert found is not None, f"{subject.name}, {launch.name}: {said}"
    known_right[subject.name, launch.name] = found, steps
    return found, steps


def _serve(connection: Connection, subject: Subject) -> None:
    """Run libraries, in a process of its own: (number of the launch, path, seeds) in, an outcome out."""
    while asked := connection.recv():
        number, path, seeds = asked
        launch = subject.launches[number]
        expected, steps = right(subject, launch)
        library = ctypes.CDLL(path)
        outcome = SURVIVES
        for seed in seeds:
            found, said, _ = _run(launch, library, seed, STEPS * steps + 100_000)
            if found != expected:
                outcome = said or "wrong"
                break
        connection.send(outcome)


class Runner:
    """Runs libraries of one subject, in a process that is replaced after a hang or a crash."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self._process, self._runs = subject, None, 0
        mma.cfunc_address()  # compiled here, so that no process has to
        for launch in subject.launches:
            right(subject, launch)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(self, number: int, library: Path, seeds: range) -> str:
        """How the launch of that number ends: SURVIVES, HANGS, CRASHES, "wrong", or the fault's name."""
        if self._process is None or self._runs >= RUNS_OF_A_PROCESS:
            self.end()
            self._connection, theirs = _fork.Pipe()
            self._process = _fork.Process(target=_serve, args=(theirs, self.subject), daemon=True)
            self._process.start()
            theirs.close()
            self._runs = 0
        self._runs += 1
        self._connection.send((number, str(library), seeds))
        try:
            if self._connection.poll(SECONDS):
                return str(self._connection.recv())
            outcome = HANGS
        except EOFError:
            outcome = CRASHES
        self.end(kill=True)
        return outcome

    def end(self, kill: bool = False) -> None:
        """End the process, if there is one."""
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            with contextlib.suppress(BrokenPipeError):
                self._connection.send(None)
        self._process.join()
        self._process = None


def outcome(mutant: Mutant, runner: Runner) -> str:
    """How a mutant ends: "does not compile", or as Runner.run says of the first launch that it does not
    survive."""
    subject = runner.subject
    count = len(subject.launches)
    for number, launch in enumerate(subject.launches):
        with tempfile.TemporaryDirectory() as folder:
            library = compile_mutant(subject, launch, mutant, Path(folder))
            if library is None:
                return "does not compile"
            ended = runner.run(number, library, range(number, SEEDS, count))
        if ended != SURVIVES:
            return ended
    return SURVIVES


def outcomes(subject: Subject, part: int = 1) -> Iterator[tuple[Mutant, str]]:
    """Every mutant of the sample, and how it ends."""
    with Runner(subject) as runner:
        for mutant in sample(all_mutants(subject), part):
            yield mutant, outcome(mutant, runner)


# --------------------------------------------------------------------------------------------- survivors

LIST = Path(__file__).resolve().parent / "data" / "surviving_mutants.txt"
MISSED = "MISSED"  # begins the reason of a mutant that is a fault, and is not caught


def listed() -> dict[tuple[str, str, str], str]:
    """Why each known survivor is no fault, by Mutant.key.

    The file has paragraphs: a reason, in lines that begin with "#", and the mutants that it is about, each as
    "file | before  ->  after". Lines that begin with "##" are about the file.
    """
    reasons: dict[tuple[str, str, str], str] = {}
    reason, ended = "", True
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("##"):
            continue
        if line.startswith("#"):
            reason = line[1:].strip() if ended else f"{reason} {line[1:].strip()}"
            ended = False
        elif line.strip():
            file, change = line.split(" | ", 1)
            before, after = change.split("  ->  ")
            reasons[file, before, after] = reason
            ended = True
    return reasons
