"""The emulator on another processor: compiled for 64-bit Arm, and run by qemu."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from gemm_ladder import build
from gemm_ladder.build import job
from gemm_ladder.rungs import rungs

DRIVER = Path(__file__).with_name("other_machine.cpp")
ARM = "aarch64-linux-gnu"
FAULTS = ["crashed", "crashed", "crashed", "endless_loop", "global_out_of_bounds"]


def output(compiler: str, folder: Path, run: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the driver prints: a program and two libraries, compiled with the flags of a build."""
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(job.cpus, "vector_flags", tuple)  # they are this machine's
    kernel = build.Job.of(rungs["s4_tma"].path, "emulator")
    assert kernel.core
    folder.mkdir()

    def run_tool(*command: str) -> None:
        subprocess.run([compiler, *command], check=True, cwd=folder)

    # Compiling and linking apart: with -fsanitize=thread, the compiler links that sanitizer's library.
    includes = [f"-I{path}" for path in kernel.include_dirs]
    for name, source, flags in (
        ("core", job._CORE, kernel.core.flags),
        ("kernel", kernel.label, kernel.flags),
        ("driver", str(DRIVER), kernel.flags),
    ):
        run_tool(*flags, *includes, "-fPIC", "-x", "c++", "-c", str(source), "-o", f"{name}.o")
    run_tool("-shared", "core.o", "-o", "core.so", *job._LINK_FLAGS)
    run_tool("-shared", "kernel.o", "./core.so", "-o", "kernel.so", *job._LINK_FLAGS)
    run_tool("-rdynamic", "driver.o", "./kernel.so", "./core.so", "-o", "driver")
    done = subprocess.run([*run, "./driver"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_64_bit_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rung takes the same steps to the same bits there, and what crashes a kernel ends in its fault."""
    tools = [f"{ARM}-g++", "qemu-aarch64", "g++"]
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)} (Debian: g++-{ARM}, libc6-dev-arm64-cross, qemu-user, g++)")
    here = output("g++", tmp_path / "here", [], monkeypatch)
    there = output(f"{ARM}-g++", tmp_path / "there", ["qemu-aarch64", "-L", f"/usr/{ARM}"], monkeypatch)
    lines = here.splitlines()
    assert len({line.rpartition(", ")[2] for line in lines[:4]}) == 1  # the same D with every seed
    assert all(": right, " in line for line in lines[:4])
    assert [line.split()[2].rstrip(",") for line in lines[4:]] == FAULTS
    assert there.splitlines() == lines
