"""Shared by the tests of builds: sources to build, compilers that misbehave, jobs that compile nothing, and
waiting for processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gemm_ladder import build
from gemm_ladder.build import background, cache, toolchain
from gemm_ladder.errors import BuildError
from gemm_ladder.sass import disassembly

SOURCE = """
#include <memory>
extern "C" int twice(int x) {
    std::allocator<int> allocator;  // calls a function of libstdc++ that torch's libraries export as well
    int* values = allocator.allocate(x + 1);
    values[x] = 2 * x;
    const int result = values[x];
    allocator.deallocate(values, x + 1);
    return result;
}
extern "C" const char* text() { return TEXT; }
"""
TEXT = 'a "quoted" $HOME \\ text'  # what ninja, the shell and the compiler would each like to change
KERNEL = """
__global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }
extern "C" int run(float* x) { twice<<<1, 32>>>(x); return cudaGetLastError(); }
"""


def c_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def compiler_that(path: Path, commands: str) -> str:
    """A CXX that runs shell `commands` before the real compiler, when it compiles for a build."""
    real = shutil.which("c++")
    path.write_text(f'#!/bin/sh\ncase "$*" in *-MMD*) {commands} ;; esac\nexec {real} "$@"\n')
    path.chmod(0o755)
    return str(path)


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def nvcc_or_skip() -> toolchain.Cuda:
    try:
        found = build.find_cuda()
    except build.ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")
    if not toolchain.find_torch().links_cuda:
        pytest.skip("needs a torch that is built with CUDA")
    return found


def disassembler_or_skip() -> None:
    """Skip the test where nvcc, or what reads its machine code, is missing."""
    try:
        build.find_cuda()
    except build.ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")
    if disassembly.find_cuobjdump() is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump")


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie, whose parent has not waited for it yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class FakeJob:
    """Stands for a build.Job: it compiles nothing, and says in `events` when it begins and when it has ended.
    It ends once `may_end` is set."""

    target = "host"
    core = None

    def __init__(self, name: str, events: list[str], fails: bool = False) -> None:
        self.name, self.events, self.fails = name, events, fails
        self.may_end = threading.Event()
        self.may_end.set()

    def key(self) -> str:
        return self.name

    def build(self, private: Path, core: Path | None = None) -> cache.Made:
        self.events.append(f"{self.name} begins")
        assert self.may_end.wait(60)
        self.events.append(f"{self.name} ends")
        if self.fails:
            raise BuildError("It does not build:", "the compiler's words")
        (private / "library.so").write_bytes(b"machine code")
        return cache.Made(private / "library.so", "the log")


def builds(events: list[str]) -> list[str]:
    """The names of the jobs that have ended, sorted; one that was built twice is there twice."""
    return sorted(event.removesuffix(" ends") for event in events if event.endswith(" ends"))


def jobs_of(events: list[str], names: str, **fields: bool) -> list[FakeJob]:
    return [FakeJob(name, events, **fields) for name in names]


def idle() -> bool:
    """Whether nothing is queued or built in the background."""
    return not background._threads
