"""Finding the compilers: C++ for the emulator, nvcc for the GPU, and the torch whose load_inline drives them.
Without torch, the C++ compiler alone builds for the emulator.

Nothing here imports torch or touches a GPU. What a compiler says about itself costs a process to ask, so the
answer is kept on disk, under the compiler's path, size and time of change.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemm_ladder.build import cache, folders
from gemm_ladder.errors import ToolchainError

MIN_NVCC = (12, 5)  # the first with cudaGetDriverEntryPointByVersion, which finds the tensor map encoder
PIP = f"{shlex.quote(sys.executable)} -m pip install"  # a bare pip may be another Python's
PIP_CUDA = f"{PIP} 'gemm-ladder[cuda]'"
SYSTEM_CUDA = Path("/usr/local/cuda")

_NEEDED = "g++ 11 or clang++ 14 or newer is needed (set CXX to choose one)."
# By which clang++ tells the emulator of each load and store of a kernel (ref/emulator/core/hooks.hpp).
TRACED = "-fsanitize-coverage=func,trace-pc-guard,trace-loads,trace-stores"
# C++20 as far as the emulator uses it: older compilers take the flag and lack the headers.
_CXX20 = (
    "#include <bit>\n#include <concepts>\n#include <span>\n"
    "template <std::integral T> T twice(T x) { return std::rotl(unsigned(x), 1); }\n"
    "int main() { return twice(0); }\n"
)


@dataclass(frozen=True)
class Cxx:
    """A C++20 compiler: its argv, the first line of its --version, and all of that for the cache's key."""

    command: tuple[str, ...]
    version: str
    identity: str


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit: `home` has bin/nvcc, `libraries` has libcudart.so*, `origin` says how it was found."""

    home: Path
    libraries: Path
    version: str
    origin: str
    identity: str

    @property
    def nvcc(self) -> Path:
        return self.home / "bin" / "nvcc"

    @property
    def cudart(self) -> Path:
        """libcudart.so, or libcudart.so.N where the toolkit has no unversioned name (PyPI)."""
        return min(self.libraries.glob("libcudart.so*"), key=lambda path: len(path.name))


@dataclass(frozen=True)
class Torch:
    """The torch that `import torch` would give, from its files: version, CUDA's version or None, folder."""

    version: str
    cuda: str | None
    folder: Path

    @property
    def links_cuda(self) -> bool:
        return self.cuda is not None and (self.folder / "lib" / "libtorch_cuda.so").exists()


def find_torch() -> Torch:
    """The installed torch, without importing it. Raises ToolchainError where there is none that is whole."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        raise ToolchainError(
            "torch is not installed, and kernels for a GPU are built with it", f"{PIP} torch"
        )
    folder = Path(spec.origin).parent
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise ToolchainError(
            f"torch, in {folder}, has no version.py that can be read", f"{PIP} --force-reinstall torch"
        ) from None
    version = re.search(r"^__version__\s*=\s*'([^']+)'", text, re.M)
    cuda = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", text, re.M)
    return Torch(version[1] if version else "unknown", cuda[1] if cuda else None, folder)


def torch_if_any() -> Torch | None:
    """As find_torch(), or None."""
    try:
        return find_torch()
    except ToolchainError:
        return None


def find_ninja() -> Path:
    """ninja, from PATH or from beside this Python (a venv that is used but not activated).

    Raises ToolchainError where there is none.
    """
    found = shutil.which("ninja") or shutil.which("ninja", path=sysconfig.get_path("scripts"))
    if not found:
        raise ToolchainError("ninja is not installed, and torch builds with it", f"{PIP} ninja")
    return Path(found).absolute()


def find_cxx() -> Cxx:
    """The C++ compiler: $CXX, else c++, g++ or clang++ from PATH.

    Raises ToolchainError where there is none, where $CXX names none, or where it has no C++20.
    """
    chosen = os.environ.get("CXX", "").strip()
    candidates = [_words("CXX")] if chosen else [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        path = shutil.which(command[0])
        if path is None:
            continue
        argv = (os.path.abspath(path), *command[1:])  # a build runs in a folder of its own
        version = _ask([*argv, "--version"])
        if version is None:
            raise ToolchainError(f"{shlex.join(argv)} --version fails", "set CXX to a C++20 compiler.")
        if _ask([*argv, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], stdin=_CXX20) is None:
            raise ToolchainError(
                f"{shlex.join(argv)} ({version.splitlines()[0]}) does not compile C++20",
                _NEEDED,
            )
        if "clang" in version and _ask([*argv, TRACED, "-fsyntax-only", "-x", "c++", "-"], "") is None:
            raise ToolchainError(
                f"{shlex.join(argv)} ({version.splitlines()[0]}) does not know {TRACED}",
                _NEEDED,
            )
        return Cxx(argv, version.splitlines()[0], f"{shlex.join(argv)}\n{version}")
    if chosen:
        raise ToolchainError(
            f"CXX is {chosen!r}, which is not on this machine", "set it to a C++20 compiler."
        )
    raise ToolchainError(
        "There is no C++ compiler on PATH",
        "install g++ 11 or newer "
        "(Debian and Ubuntu: apt install g++; conda: conda install gxx_linux-64; macOS: xcode-select "
        "--install), or set CXX.",
    )


def find_cuda() -> Cuda:
    """The first usable CUDA toolkit of: $CUDA_HOME, $CUDA_PATH, the one behind the nvcc on PATH, PyPI's,
    /usr/local/cuda.

    An nvcc on PATH may be a wrapper or a link far from its toolkit, so it is asked where it lives.
    Raises ToolchainError where none is usable, with what was found wrong.
    """
    refused = []
    for home, origin in _cuda_candidates():
        try:
            return _examine(home, origin)
        except ToolchainError as error:
            refused.append(str(error))
    found = f" Found but not usable: {'; '.join(refused)}." if refused else ""
    raise ToolchainError("There is no CUDA compiler", f"{PIP_CUDA}, or set CUDA_HOME to a toolkit.{found}")


def find_tool(name: str) -> Path | None:
    """A tool of the CUDA toolkit ("cuobjdump", "nvdisasm") on PATH, beside nvcc or from PyPI, or None."""
    found = shutil.which(name)
    candidates = [Path(found)] if found else []
    with contextlib.suppress(ToolchainError):
        candidates.append(find_cuda().home / "bin" / name)
    candidates.extend(_on_pypi(name))
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def is_gcc(identity: str) -> bool:
    """Whether what a compiler says of itself is what GCC says."""
    return "Free Software Foundation" in identity


def fills_variables(identity: str) -> bool:
    """Whether a compiler has -ftrivial-auto-var-init: clang, and GCC from 12 on."""
    version = re.search(r"\) (\d+)\.", identity)
    return not is_gcc(identity) or (version is not None and int(version[1]) >= 12)


def host_compiler() -> str:
    """What nvcc's host compiler says of itself: $NVCC_CCBIN, $CC (torch passes it on), or gcc from PATH.

    Raises ToolchainError where the variable cannot be split into words.
    """
    command = next((_words(name) for name in ("NVCC_CCBIN", "CC") if os.environ.get(name)), ["gcc"])
    path = shutil.which(command[0]) if command else None
    return f"{path}\n{_ask([path, '--version'])}" if path else "none"


def _words(variable: str) -> list[str]:
    """The command in an environment variable, as a shell would split it."""
    value = os.environ[variable]
    try:
        return shlex.split(value)
    except ValueError:
        fault = "which ends in a backslash" if _splits(f"{value}x") else "whose quotes do not close"
        raise ToolchainError(f"{variable} is {value!r}, {fault}", "set it to a compiler's command.") from None


def _splits(command: str) -> bool:
    """Whether a shell could split it into words."""
    try:
        shlex.split(command)
    except ValueError:
        return False
    return True


def _on_pypi(name: str) -> Iterator[Path]:
    """Where PyPI's packages of the toolkit put a program: nvidia/cu13/bin, below any folder of sys.path."""
    for entry in sys.path:
        yield from sorted(Path(entry or ".").glob(f"nvidia/cu*/bin/{name}"), reverse=True)


def _cuda_candidates() -> Iterator[tuple[Path, str]]:
    """(toolkit, how it was found), the preferred one first. A toolkit may not exist."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]), variable
    on_path = shutil.which("nvcc")
    if on_path:
        dry_run = _ask([on_path, "--dryrun", "-x", "cu", os.devnull]) or ""
        top = re.search(r"^#\$ TOP=(.+)$", dry_run, re.M)
        # nvcc writes UTF-8; this Python may take paths for ASCII (LC_ALL=C).
        home = Path(os.fsdecode(top[1].strip().encode())) if top else Path(on_path).resolve().parents[1]
        yield home.resolve(), f"nvcc on PATH, {on_path}"
    for nvcc in _on_pypi("nvcc"):
        yield nvcc.parents[1], "PyPI"
    yield SYSTEM_CUDA, str(SYSTEM_CUDA)


def _examine(home: Path, origin: str) -> Cuda:
    """The toolkit at `home`, or ToolchainError with what it lacks."""
    home = home.absolute()
    nvcc = home / "bin" / "nvcc"
    if not os.access(nvcc, os.X_OK):
        raise ToolchainError(f"{home} ({origin}) has no bin/nvcc")
    version = _ask([str(nvcc), "--version"]) or ""
    release = re.search(r"V(\d+)\.(\d+)\.(\d+)", version)
    if release is None:
        raise ToolchainError(f"{nvcc} ({origin}) --version fails")
    if (int(release[1]), int(release[2])) < MIN_NVCC:
        needed = ".".join(map(str, MIN_NVCC))
        raise ToolchainError(
            f"{nvcc} ({origin}) is version {release[0][1:]}, and {needed} or newer is needed"
        )
    libraries = [home / "lib64", home / "lib", *sorted(home.glob("targets/*/lib"))]
    libraries = [folder for folder in libraries if any(folder.glob("libcudart.so*"))]
    if not libraries:
        raise ToolchainError(f"{home} ({origin}) has no libcudart.so (PyPI: nvidia-cuda-runtime)")
    if origin == "PyPI":
        # The parts are separate packages there, and pip installs any one of them without the others.
        parts = {
            "nvidia-cuda-crt": "include/crt/host_config.h",
            "nvidia-cuda-runtime": "include/cuda_runtime.h",
            "nvidia-cuda-cccl": "include/cccl/cuda/std/cstdint",
            "nvidia-nvvm": "nvvm/bin/cicc",
        }
        missing = [package for package, file in parts.items() if not (home / file).exists()]
        if missing:
            raise ToolchainError(f"{home} ({origin}) lacks {', '.join(missing)}")
    return Cuda(home, libraries[0], release[0][1:], origin, f"{nvcc}\n{version}")


def _ask(argv: list[str], stdin: str = "") -> str | None:
    """stdout and stderr of a command, or None where it fails; remembered on disk.

    The command is run again when the program's file, argv[0], has changed. If that is a wrapper (ccache) that
    stays as it is while the compiler behind it changes, the change goes unnoticed; deleting answers.json from
    the cache folder helps.
    """
    try:
        status = os.stat(argv[0])
    except OSError:
        return None
    key = json.dumps([argv, stdin, os.path.realpath(argv[0]), status.st_size, status.st_mtime_ns])
    return cache.remember(key, lambda: _run(argv, stdin))


def _run(argv: list[str], stdin: str) -> str | None:
    with folders.scratch() as folder:  # nvcc --dryrun leaves files
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=60,
                env={**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)},
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
    return done.stdout if done.returncode == 0 else None
