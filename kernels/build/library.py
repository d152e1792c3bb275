"""From a kernel's source text to a loaded library: torch's load_inline behind a cache.

    built = build.load(folder / "s3_wgmma.cu", target="emulator")
    built.lib.gemm_ladder_launch(...)

The same .cu text has two targets: "cuda" (nvcc, sm_90a) and "emulator" (the C++ compiler, with ref/emulator's
headers in front of kernels/include's). A library exports extern "C" functions, called through ctypes, so no
torch header is compiled: that makes a build a few seconds and not half a minute.

Importing this module needs neither torch nor a GPU nor a compiler. Finding a library in the cache compiles
nothing; compilers are asked for their versions if the cache folder does not have their answers.
job.py says what a build is made of, worker.py runs it, toolchain.py finds the compilers, cache.py keeps the
result.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gemm_ladder.build import background, cache, folders
from gemm_ladder.build.job import Job, SassPass, Target
from gemm_ladder.errors import BuildError

_libraries: dict[Path, ctypes.CDLL] = {}


@dataclass(frozen=True)
class Built:
    """A library in the cache.

    Attributes:
        path: of the .so file.
        log: the compiler's whole output, and the SassPass's.
        seconds: that the build took; 0.0 if it was in the cache.
        cached: whether it was in the cache.
        target: what it is for.
        rewritten: whether its SassPass changed the machine code; None where it has no SassPass.
        core: of a kernel for the emulator: the emulator itself, a library that this one calls.
    """

    path: Path
    log: str
    seconds: float
    cached: bool
    target: Target
    rewritten: bool | None = None
    core: Built | None = None

    @cached_property
    def lib(self) -> ctypes.CDLL:
        """The library, loaded at first use. A file has one CDLL in a process: argtypes set on it stay set.

        Raises BuildError where it cannot be loaded.
        """
        if self.core:
            _ = (
                self.core.lib
            )  # which the loader then takes, wherever the cache folder was when this was linked
        if self.path not in _libraries:
            if self.target == "cuda":
                # A library uses a CUDA runtime that is loaded already: the process should have torch's alone.
                import torch  # noqa: F401
            try:
                _libraries[self.path] = ctypes.CDLL(str(self.path))
            except OSError as error:
                raise BuildError(f"The library {self.path} cannot be loaded:", str(error)) from error
        return _libraries[self.path]


def load(
    source: str | Path,
    *,
    target: Target,
    name: str | None = None,
    defines: Mapping[str, str | int] | None = None,
    extra_flags: Sequence[str] = (),
    sass_pass: SassPass | None = None,
) -> Built:
    """Build `source` if it is not in the cache, and load it.

    source: the path of a .cu file, or source text.
    target: "cuda", "emulator" or "host", for what runs on the CPU and is no kernel.
    name: of the library, for people; default: the file's stem.
    defines: macros.
    extra_flags: for the compiler, after the target's own; headers below an -I among them count as ours.
    sass_pass: applied to the library before it enters the cache.
    Raises BuildError if the source does not compile or the library does not load, ToolchainError if there is
    no compiler or no folder to build in, and InputError if an argument cannot be used.
    """
    built = compile(
        source, target=target, name=name, defines=defines, extra_flags=extra_flags, sass_pass=sass_pass
    )
    _ = built.lib
    return built


def compile(
    source: str | Path,
    *,
    target: Target,
    name: str | None = None,
    defines: Mapping[str, str | int] | None = None,
    extra_flags: Sequence[str] = (),
    sass_pass: SassPass | None = None,
) -> Built:
    """As load(), without loading the library, which `.lib` does: to build ahead, or to read machine code."""
    return make(Job.of(source, target, name, defines, extra_flags, sass_pass))


def make(job: Job, meanwhile: Callable[[], None] = lambda: None) -> Built:
    """As compile(), of a job. If it is built here, `meanwhile` is called once it counts as one of the builds
    that run (background.py), so what it starts leaves it its CPU."""

    core = None
    if job.core:
        entry, cached = cache.get(job.core.key(), background.counted(job.core.build))
        core = _built(job.core, entry, cached)

    def build(private: Path) -> cache.Made:
        meanwhile()
        return job.build(private, core.path if core else None)

    entry, cached = cache.get(job.key(), background.counted(build))
    return _built(job, entry, cached, core)


def find(job: Job) -> Built | None:
    """The library of a job if it is in the cache and can be loaded, else None. Builds nothing."""
    with contextlib.suppress(folders.UnusableFolderError):
        core = find(job.core) if job.core else None
        if (core or not job.core) and (entry := cache.find_usable(folders.folder(), job.key())):
            return _built(job, entry, True, core)
    return None


def _built(job: Job, entry: cache.Entry, cached: bool, core: Built | None = None) -> Built:
    seconds = 0.0 if cached else entry.seconds
    return Built(entry.path, entry.log, seconds, cached, job.target, entry.rewritten, core)
