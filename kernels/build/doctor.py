"""`python -m gemm_ladder doctor`: what this machine has, what it lacks, and how to get it.

Nothing is assumed that can be tried: a small library is built for each target and loaded, the emulator's is
run, and torch is asked what it sees of a GPU. All but the building is done in other processes, so a crash is
reported like any other failure, and this process stays free of CUDA, torch and Numba.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from gemm_ladder import build
from gemm_ladder.arguments import HOPPER
from gemm_ladder.build import BuildError, ToolchainError, cache, folders, toolchain

# What the emulator needs besides a compiler: import name, and what pip calls it.
_PACKAGES = {"numpy": "numpy", "numba": "numba", "ml_dtypes": "ml_dtypes"}
_TO_BUILD_WITH_TORCH = {"setuptools": "setuptools"}  # and ninja; without torch, the compiler alone builds
_TRIALS = {
    "emulator": """
#include "launch.cuh"

__global__ void trial(const GemmArgs p) { p.d[threadIdx.x] = static_cast<uint16_t>(3 * threadIdx.x); }

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    return launch(trial, {.blocks = 1, .threads = 32}, *args);
}
""",
    "cuda": "__global__ void trial(float* x) { x[threadIdx.x] += 1.0f; }\n"
    'extern "C" int launch(float* x) { trial<<<1, 32>>>(x); return cudaGetLastError(); }\n',
}
# Loads all of the emulator, with the tensor core that Numba compiles. Its argument: the library.
_RUN_TRIAL = """
import ctypes, sys
from gemm_ladder.ref import emulator
from gemm_ladder.arguments import GemmArgs
d = (ctypes.c_uint16 * 32)()
ctypes.CDLL(sys.argv[2])  # the emulator itself, which the kernel calls
refused = emulator.launch(ctypes.CDLL(sys.argv[1]), GemmArgs(d=ctypes.addressof(d)))
if refused is not None:
    raise RuntimeError(refused)
if list(d) != [3 * i for i in range(32)]:
    raise RuntimeError(f"the kernel gave {list(d)}")
"""
_LOAD_TRIAL = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
_ASK_TORCH = """
import json, torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([[d.name, d.major, d.minor, d.total_memory, d.multi_processor_count] for d in devices]))
"""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing looked for: whether it is as it should be, what was found, and what to do about it if not.

    `needed_by` is "emulator" (which the GPU's kernels then need as well), "cuda", or "" for a convenience.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed_by: Literal["emulator", "cuda", ""] = ""


def report() -> list[Check]:
    """Every check, in the order in which a reader would fix them. Builds two small libraries at most."""
    checks = [_python(), _packages(), _torch(), _compiler(), _ninja(), _cache_folder()]
    if runs(checks, "emulator"):
        checks += _trial("emulator")
    checks.append(_nvcc())
    if runs(checks, "cuda"):
        checks += _trial("cuda")
    return [*checks, _gpu(), _disassemblers()]


def runs(checks: list[Check], what: Literal["emulator", "cuda"]) -> bool:
    """Whether everything is there that the emulator needs, or that kernels on a GPU need."""
    needs = {"emulator"} if what == "emulator" else {"emulator", "cuda"}
    return all(check.ok for check in checks if check.needed_by in needs)


def main(argv: list[str] | None = None) -> int:
    """Print the report. Exit status 0 if the emulator can run, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder doctor",
        description="Say what is there, what is missing and how to get it. Exit status 0: the emulator runs.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args(argv)
    checks = report()
    emulator, gpu = runs(checks, "emulator"), runs(checks, "cuda")
    if arguments.json:
        listed = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"emulator": emulator, "gpu": gpu, "checks": listed}, indent=2))
        return 0 if emulator else 1
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{'ok' if check.ok else '--':2}  {check.name:{width}}  {check.found}")
        if not check.ok and check.remedy:
            print(f"{'':{width + 6}}-> {check.remedy}")
    print()
    print(f"Kernels on the emulator: {'yes' if emulator else 'no, see above'}.")
    compiles = any(check.name == "cuda build" and check.ok for check in checks)
    print(f"Kernels on a GPU: {'yes' if gpu else 'no, but they compile' if compiles else 'no, see above'}.")
    return 0 if emulator else 1


def _attempt(name: str, needed_by: Literal["emulator", "cuda", ""], find: Callable[[], str]) -> Check:
    """A check by trying: find() says what it found, or raises ToolchainError."""
    try:
        return Check(name, True, find(), needed_by=needed_by)
    except ToolchainError as error:
        return Check(name, False, error.missing, error.remedy, needed_by)


def _python() -> Check:
    supported = (
        sys.version_info >= (3, 10)
        and sys.platform in ("linux", "darwin")
        and platform.machine() in ("x86_64", "aarch64", "arm64")
    )
    found = f"{platform.python_version()}, {sys.platform} {platform.machine()}, {sys.executable}"
    needed = "Python 3.10 or newer is needed, on Linux (in Windows: WSL) or macOS, on x86-64 or 64-bit Arm."
    return Check("Python", supported, found, needed, "emulator")


def _packages() -> Check:
    needed = _PACKAGES | (_TO_BUILD_WITH_TORCH if toolchain.torch_if_any() else {})
    missing = [pip for name, pip in needed.items() if importlib.util.find_spec(name) is None]
    if missing:
        return Check(
            "packages",
            False,
            f"missing: {', '.join(missing)}",
            f"{toolchain.PIP} {' '.join(missing)}",
            "emulator",
        )
    return Check("packages", True, ", ".join(needed), needed_by="emulator")


def _torch() -> Check:
    def find() -> str:
        torch = toolchain.find_torch()
        return f"{torch.version}, {f'built for CUDA {torch.cuda}' if torch.links_cuda else 'without CUDA'}"

    return _attempt("torch", "cuda", find)


def _compiler() -> Check:
    def find() -> str:
        cxx = toolchain.find_cxx()
        return f"{cxx.version}, {' '.join(cxx.command)}, has what the emulator needs"

    return _attempt("C++ compiler", "emulator", find)


def _ninja() -> Check:
    needed_by: Literal["emulator", "cuda"] = "emulator" if toolchain.torch_if_any() else "cuda"
    return _attempt("ninja", needed_by, lambda: str(toolchain.find_ninja()))


def _cache_folder() -> Check:
    folder = cache.folder()
    libraries, size = cache.usage()
    found = f"{folder}, {libraries} libraries, {size / 1e6:.1f} MB"
    try:
        folders.check(folder)
        return Check("cache", True, f"{found}, writable, with room, and libraries load from it")
    except folders.UnusableFolderError as error:
        found = f"{found}; it {error}"
    try:
        fallback = folders.temporary_folder()
        folders.check(fallback)
        return Check("cache", False, found, f"{folders.REMEDY}; until then {fallback} is used")
    except (ToolchainError, folders.UnusableFolderError):
        return Check("cache", False, found, folders.REMEDY, "emulator")


def _trial(target: build.Target) -> list[Check]:
    """Build a small library, or find it in the cache, and load it; run it as well if it is the emulator's."""
    try:
        built = build.compile(_TRIALS[target], target=target, name="doctor")
        if target == "cuda" and (trouble := _trouble([_LOAD_TRIAL, str(built.path)])):
            return [Check(f"{target} build", False, f"fails: {trouble}", "The loader says why.", target)]
    except ToolchainError as error:
        return [Check(f"{target} build", False, f"fails: {error.missing}", error.remedy, target)]
    except (BuildError, OSError) as error:
        remedy = "The compiler's output above says why."
        return [Check(f"{target} build", False, f"fails: {error}", remedy, target)]
    took = "in the cache" if built.cached else f"{built.seconds:.1f} s"
    found = Check(f"{target} build", True, f"a small library builds and loads ({took})", needed_by=target)
    return [found, _run(built.path, built.core.path)] if built.core else [found]


def _run(library: Path, core: Path) -> Check:
    """Run the emulator's trial: a kernel's library, and the emulator's own."""
    name, remedy = "emulator run", f"{toolchain.PIP} --force-reinstall {' '.join(_PACKAGES.values())}"
    try:
        trouble = _trouble([_RUN_TRIAL, str(library), str(core)])
    except subprocess.TimeoutExpired:
        return Check(name, False, "a small kernel did not end within 300 s", remedy, "emulator")
    if trouble:
        return Check(name, False, f"fails: {trouble}", remedy, "emulator")
    return Check(name, True, "a small kernel runs, and its result is right", needed_by="emulator")


def _trouble(arguments: list[str]) -> str:
    """What `python -c` with these arguments fails with: the last line of its stderr, or its signal; or ""."""
    command = [sys.executable, "-c", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    last = ran.stderr.strip().rpartition("\n")[2]
    if ran.returncode < 0:
        return f"ended by {signal.Signals(-ran.returncode).name} {last}".strip()
    return last or f"exit status {ran.returncode}" if ran.returncode else ""


def _nvcc() -> Check:
    def find() -> str:
        cuda, torch = toolchain.find_cuda(), toolchain.find_torch()
        if not torch.links_cuda:
            raise ToolchainError(
                f"{cuda.version}, {cuda.home}, but this torch has no CUDA to link with",
                "install a torch that is built with CUDA (pytorch.org)",
            )
        found = f"{cuda.version}, {cuda.home} ({cuda.origin})"
        if cuda.version.partition(".")[0] != torch.cuda.partition(".")[0]:
            found += f"; torch is built for CUDA {torch.cuda}, and the driver must serve both"
        return found

    return _attempt("nvcc", "cuda", find)


def _gpu() -> Check:
    hopper = "A Hopper GPU (sm_90: H100, H200, GH200) is needed; without one kernels run on the emulator."
    devices, trouble = _devices()
    if not devices:
        return Check("GPU", False, trouble or "torch sees none", hopper, "cuda")
    found = "; ".join(
        f"{i}: {name}, sm_{major}{minor}, {memory / 2**30:.0f} GiB, {sms} SMs"
        for i, (name, major, minor, memory, sms) in enumerate(devices)
    )
    has_hopper = any((major, minor) == HOPPER for _, major, minor, *_ in devices)
    return Check("GPU", has_hopper, found, hopper, "cuda")


def _devices() -> tuple[list[list[Any]], str]:
    """([name, major, minor, bytes, SMs] of each GPU that torch can use; why there is none, if known)."""
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg")):
        return [], "none: there is no NVIDIA driver on this machine"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, errors="replace", timeout=120
        )
        return json.loads(asked.stdout), " ".join(asked.stderr.split())
    except subprocess.TimeoutExpired:
        return [], "torch did not answer within 120 s"
    except ValueError:
        return [], f"torch fails: {asked.stderr.strip().rpartition(chr(10))[2]}"


def _disassemblers() -> Check:
    tools = {name: toolchain.find_tool(name) for name in ("cuobjdump", "nvdisasm")}
    missing = [name for name, path in tools.items() if path is None]
    if missing:
        packages = " ".join(f"nvidia-cuda-{name}" for name in missing)
        return Check("disassemblers", False, f"no {' and no '.join(missing)}", f"{toolchain.PIP} {packages}")
    return Check("disassemblers", True, ", ".join(map(str, tools.values())))
