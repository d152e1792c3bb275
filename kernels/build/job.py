"""What one build is made of: text, flags and compilers; the key that names it, and the steps to make it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gemm_ladder.build import cpus, plain_cpp, toolchain, worker
from gemm_ladder.build.cache import Made
from gemm_ladder.errors import BuildError, InputError, ToolchainError

Target = Literal["cuda", "emulator", "host"]

KERNELS = Path(__file__).resolve().parents[1]
# Beside kernels/ in a checkout, below gemm_ladder/ where it is installed.
_REF = KERNELS / "ref" if (KERNELS / "ref").is_dir() else KERNELS.parent / "ref"
_FORMAT = 2  # part of every key: raise it when these files change what a build produces

_FLAGS = {
    "cuda": (
        "-std=c++20",
        "-O3",
        "-gencode=arch=compute_90a,code=sm_90a",  # machine code for Hopper: no PTX, no other GPU's
        "--fmad=false",  # a multiply-add is fused where the source says so and nowhere else
        "-Xptxas=-v,-warn-spills",
        "-lineinfo",
    ),
    "emulator": (
        "-std=c++20",
        "-O2",
        "-ffp-contract=off",
        "-U_FORTIFY_SOURCE",  # its checks end the process, where the emulator has a fault to name
        "-fno-strict-aliasing",  # shared memory is bytes, read as whatever the kernel says
        "-pthread",
    ),
    "host": ("-std=c++20", "-O2", "-D__host__=", "-D__device__="),
}
# What a kernel for the emulator has besides: calls of core/hooks.hpp before every access to memory, and the
# lines of its machine code. None of them is for the linker, so no sanitizer is linked.
_HOOKS = (
    "-fsanitize=thread",  # clang: for copies and atomics alone
    "-fsanitize=alignment",
    "-fno-optimize-sibling-calls",  # a call's return address is the place of the call
    "-fno-finite-loops",  # a loop without end stays one
    "-g1",
    "-D__assert_fail=emulator_assert_fail",  # a failed assert() ends the kernel, not the process
    "-D__assert_rtn=emulator_assert_rtn",  # as it is called on macOS
)
# A variable that nothing has initialised holds the same in every build: core/wgmma.hpp knows it.
_PATTERN = "-ftrivial-auto-var-init=pattern"
_HOOKS_OF_GCC = (
    "--param=tsan-instrument-func-entry-exit=0",  # no call for every function's entry
    "-fsanitize=bounds",  # one for an index outside an array
    "-fno-partial-inlining",  # no part of a function becomes one that it calls
    "-fno-crossjumping",  # two lines' calls of one function stay two calls
    "-fno-tree-tail-merge",
    # As nvcc, inline what a kernel calls: a local array that no call can reach any more needs no hooks.
    *("-finline-functions", "--param=inline-unit-growth=1000", "--param=large-function-growth=1000"),
    *("--param=max-inline-insns-single=300", "--param=max-inline-insns-auto=300"),
)
_HOOKS_OF_CLANG = (
    "-gno-column-info",  # a call that two of one line are made into keeps the line
    "-fsanitize=array-bounds",
    toolchain.TRACED,
    *("-mllvm", "-tsan-instrument-memory-accesses=0"),
    *("-mllvm", "-tsan-instrument-func-entry-exit=0"),
)
_CORE_FLAGS = ("-O3",)  # the emulator itself is compiled once, so it may take longer
_MACOS = sys.platform == "darwin"
# What these flags ask for is how macOS links anyway.
_LINK_FLAGS = (
    ()
    if _MACOS
    else (
        "-Wl,--as-needed",  # torch puts its libraries on the line; the kernels use none of them
        "-lstdc++",  # before torch's: libc10 exports some of its functions and would become a dependency
        "-Wl,--no-undefined",  # a missing definition is an error now, not at the first call
        "-Wl,-Bsymbolic",  # two libraries of one process do not take each other's functions
        "-pthread",
    )
)
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT)
# What can change a compiler's output without being on its command line.
_VARIABLES = (
    "CC",
    "COMPILER_PATH",
    "CPATH",
    "CPLUS_INCLUDE_PATH",
    "CUDA_INC_PATH",
    "GCC_EXEC_PREFIX",
    "LIBRARY_PATH",
    "NVCC_APPEND_FLAGS",
    "NVCC_CCBIN",
    "NVCC_PREPEND_FLAGS",
)
_CORE = _REF / "emulator" / "core" / "core.cpp"
_INCLUDE = re.compile(
    r'^[ \t]*#[ \t]*include(_next)?[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>|([A-Za-z_]\w*)[ \t]*$)', re.M
)


class Rewriting(NamedTuple):
    """What a SassPass did: whether the machine code is another one now, and lines for the build's log."""

    rewrote: bool
    log: str


@dataclass(frozen=True)
class SassPass:
    """A rewriting of a library's machine code before it enters the cache.

    Attributes:
        id: names what it does, and its version.
        rewrite: takes the path of the .so, rewrites it in place, and returns lines for the log.
        refusals: the exceptions by which `rewrite` refuses a library that may stay as it is. By default any
            exception ends the build.
    """

    id: str
    rewrite: Callable[[Path], str]
    refusals: tuple[type[Exception], ...] = ()

    def apply(self, library: Path) -> Rewriting:
        """Rewrite the library in place. Raises what `rewrite` does, except for the refusals."""
        before = library.read_bytes()
        try:
            log = self.rewrite(library)
        except self.refusals as refusal:
            log = f"{refusal}\n"
        return Rewriting(library.read_bytes() != before, log)


@dataclass(frozen=True)
class Job:
    """One build: everything that decides the library's bytes, and how to make it."""

    target: Target
    name: str
    text: str
    label: str  # the source's name in compiler messages and line tables
    include_dirs: tuple[Path, ...]
    included: Mapping[str, str]
    flags: tuple[str, ...]
    cxx: toolchain.Cxx
    cuda: toolchain.Cuda | None
    host: str  # what nvcc's host compiler says of itself
    torch: toolchain.Torch | None  # whose load_inline builds; without it the C++ compiler is called directly
    sass_pass: SassPass | None
    core: Job | None = None  # the emulator's own library, which a kernel's library for the emulator calls

    @classmethod
    def of(
        cls,
        source: str | Path,
        target: Target,
        name: str | None = None,
        defines: Mapping[str, str | int] | None = None,
        extra_flags: Sequence[str] = (),
        sass_pass: SassPass | None = None,
    ) -> Job:
        """The build that build.load()'s arguments ask for. Raises InputError or ToolchainError."""
        if target not in _FLAGS:
            raise InputError(f'target is {target!r}, and must be "cuda", "emulator" or "host".')
        if isinstance(extra_flags, str):
            raise InputError(f"extra_flags is the string {extra_flags!r}, and must be a sequence of flags.")
        values = macros(defines)
        if "-I" in extra_flags:
            raise InputError("extra_flags has -I apart from its folder: write the two as one flag.")
        path = _as_path(source)
        text = path.read_text(encoding="utf-8") if path else str(source)
        name = re.sub(r"\W", "_", name or (path.stem if path else "inline"), flags=re.A)[:64]
        include_dirs = [Path(flag[2:]).absolute() for flag in extra_flags if flag.startswith("-I")]
        if target == "emulator":
            include_dirs.append(_REF / "emulator")
        include_dirs += [KERNELS / room for room in ("include", "production", "training", "casts", "layers")]
        if path:
            include_dirs.append(path.parent)
        for folder in include_dirs:
            _check_utf8(folder)
        label = str(path) if path else f"{name}.cu"
        core = None
        if target == "emulator" and path != _CORE:
            core = cls.of(_CORE, "emulator")
            text = plain_cpp.rewritten(text, label)
        torch = toolchain.find_torch() if target == "cuda" else toolchain.torch_if_any()
        if target == "cuda" and torch and not torch.links_cuda:
            raise ToolchainError(
                f"torch {torch.version} is built without CUDA, which a kernel for the GPU is linked with",
                "install a torch that is built with it (pytorch.org); the emulator works with either.",
            )
        cxx = toolchain.find_cxx()
        flags = (*_FLAGS[target], *(f"-D{macro}={values[macro]}" for macro in sorted(values)), *extra_flags)
        if target == "emulator":
            flags += cpus.vector_flags()
        if path == _CORE:
            flags += _CORE_FLAGS
        if core:
            flags += (*_HOOKS, *(_HOOKS_OF_GCC if toolchain.is_gcc(cxx.identity) else _HOOKS_OF_CLANG))
            flags += (_PATTERN,) * toolchain.fills_variables(cxx.identity)
        headers = included(text, include_dirs)
        if path == _CORE:
            # Its file is called what the loader knows it by, so two versions can be loaded in one process.
            name += "_" + _digest([headers, text, flags, cxx.identity])[:16]
        return cls(
            target=target,
            name=name,
            text=text,
            label=label,
            include_dirs=tuple(include_dirs),
            included=headers,
            flags=flags,
            cxx=cxx,
            cuda=toolchain.find_cuda() if target == "cuda" else None,
            host=toolchain.host_compiler() if target == "cuda" else "",
            torch=torch,
            sass_pass=sass_pass,
            core=core,
        )

    def key(self) -> str:
        """The cache entry's name: library and target for people, then a hash of all that decides it."""
        parts = {
            "format": _FORMAT,
            "machine": platform.machine(),
            "target": self.target,
            "name": self.name,
            "flags": [*self.flags, *_LINK_FLAGS],
            "source": [self.label, self.text],
            "included": self.included,  # by path as well: line tables hold the paths
            "include_dirs": [str(folder) for folder in self.include_dirs],
            "cxx": self.cxx.identity,
            "cuda": self.cuda and [self.cuda.identity, self.host],
            "torch": self.torch and self.torch.version,  # load_inline has flags of its own
            "variables": [os.environ.get(variable) for variable in _VARIABLES],
            "sass_pass": self.sass_pass and self.sass_pass.id,
            "core": self.core and self.core.key(),
        }
        return f"{self.name}-{self.target}-{_digest(parts)[:32]}"

    def build(self, private: Path, core: Path | None = None) -> Made:
        """Build in the folder `private`. Raises BuildError or ToolchainError.

        core: the library of the job `core`.
        """
        folder = private / "build"
        folder.mkdir()
        request = self._request(private, folder, core)
        code, log = worker.run(request, self._environment(private), private / "output")
        library = folder / f"{self.name}.so"
        if code != 0 or not library.exists():
            raise BuildError(self._failure(code, library.exists()), log)
        if included(self.text, self.include_dirs) != self.included:
            # Which version the compiler read is not known, and the key names the earlier one.
            raise BuildError(
                f"A file that {self.label} includes changed during its build: build it again.", log
            )
        if self.sass_pass is None:
            return Made(library, log)
        rewrote, lines = self.sass_pass.apply(library)
        return Made(library, log + lines, rewrote)

    def _request(self, private: Path, folder: Path, core: Path | None) -> dict[str, object]:
        """The request for worker.run()."""
        flags = [*self.flags, *(f"-I{directory}" for directory in self.include_dirs)]
        link_flags = list(_LINK_FLAGS)
        if core:
            # By this path no name needs quotes. On Linux the library has no path of the core in it: whoever
            # loads it has loaded the core before (Built.lib), and the worker finds it by LD_LIBRARY_PATH.
            (private / "core").symlink_to(core.parent)
            link_flags.append(f"../core/{core.name}")
            if _MACOS:  # beside the library in the cache, and here
                link_flags += [f"-Wl,-rpath,@loader_path/../{name}" for name in (core.parent.name, "core")]
        if self.label == str(_CORE):
            named = "-install_name,@rpath/" if _MACOS else "-soname,"
            link_flags.append(f"-Wl,{named}{self.name}.so")
        text = f"#line 1 {json.dumps(self.label, ensure_ascii=False)}\n{self.text}"
        # g++ shares inline variables between the libraries of a process, also between two versions of one.
        unshared = "-fno-gnu-unique"
        if self.cuda is None:
            sources = {"cxx_source": text, "cuda_source": None}
            flags += [unshared] if toolchain.is_gcc(self.cxx.identity) else []
        else:
            sources = {"cxx_source": "", "cuda_source": text}
            flags += [f"-Xcompiler={unshared}"] if toolchain.is_gcc(self.host) else []
            # PyPI's toolkit has libcudart.so.13 and no libcudart.so, the name that a linker looks for.
            (private / "lib").mkdir()
            (private / "lib" / "libcudart.so").symlink_to(self.cuda.cudart)
            link_flags += [f"-L{os.path.join(os.pardir, 'lib')}", f"-Wl,-rpath,{self.cuda.libraries}"]
        return {
            **sources,
            "name": self.name,
            "folder": str(folder),
            "cxx_flags": [] if self.cuda else flags,
            "cuda_flags": flags if self.cuda else [],
            "link_flags": link_flags,
            "torch_libraries": str(self.torch.folder / "lib") if self.torch else None,
        }

    def _environment(self, private: Path) -> dict[str, str]:
        """The worker's environment: ours, in which torch finds the compilers that we found and no others."""
        environment = dict(os.environ)
        for variable in ("CUDA_HOME", "CUDA_PATH", "PYTORCH_NVCC"):
            environment.pop(variable, None)
        # torch writes each of these two into commands without quotes. A path or command that needs quotes
        # gets another name, relative to the build's folder, where the worker runs.
        if self.cuda:
            environment["CUDA_HOME"] = str(self.cuda.home)
            if worker.quoted(str(self.cuda.home)) != str(self.cuda.home):
                (private / "cuda").symlink_to(self.cuda.home)
                environment["CUDA_HOME"] = os.path.join(os.pardir, "cuda")
        environment["CXX"] = self.cxx.command[0]
        if worker.quoted(self.cxx.command[0]) != shlex.join(self.cxx.command):
            script = f'#!/bin/sh\nexec {shlex.join(self.cxx.command)} "$@"\n'
            (private / "cxx").write_bytes(os.fsencode(script))
            (private / "cxx").chmod(0o755)
            environment["CXX"] = os.path.join(os.pardir, "cxx")
        if self.torch:
            ninja = str(toolchain.find_ninja().parent)
            environment["PATH"] = os.pathsep.join(filter(None, [environment.get("PATH"), ninja]))
        # There a killed compiler's temporary files go with the folder. nvcc does not quote these names.
        environment["TMPDIR"] = str(private) if worker.is_plain(str(private)) else worker.HERE + "/.."
        environment["TORCH_CUDA_ARCH_LIST"] = "9.0a"  # torch 2.8 does not look for the GPU in _FLAGS
        if self.core:
            paths = [os.path.join(os.pardir, "core"), environment.get("LD_LIBRARY_PATH")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
        environment["CUDA_VISIBLE_DEVICES"] = ""  # no build needs a GPU
        environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        environment["TORCH_DONT_CHECK_COMPILER_ABI"] = "1"  # find_cxx() has looked at it already
        return environment

    def _failure(self, code: int, linked: bool) -> str:
        """The sentence for a worker that ended with `code`, after linking a library or before."""
        if linked and -code in _CRASHES:
            return (
                f"{self.label} ({self.target}) builds, but loading the library ends with "
                f"{signal.Signals(-code).name}: what runs then crashes, such as what computes the first "
                "value of a variable outside of functions."
            )
        if code < 0:
            return f"The build of {self.label} ({self.target}) was ended by {signal.Signals(-code).name}."
        if linked:
            return f"{self.label} ({self.target}) builds, but the library cannot be loaded:"
        compiler = f"nvcc {self.cuda.version}" if self.cuda else self.cxx.version
        return f"{self.label} ({self.target}) does not build with {compiler}:"


def own_headers(text: str, beside: Path | None = None) -> list[str]:
    """The headers of ours that a source includes itself, but for those that the folder `beside` has too."""
    names = [quoted or angled for _, quoted, angled, _ in _includes(text)]
    folders = (_REF / "emulator", KERNELS / "include")
    return [
        name
        for name in names
        if any((folder / name).is_file() for folder in folders) and not (beside and (beside / name).is_file())
    ]


def macros(defines: Mapping[str, str | int] | None) -> dict[str, str | int]:
    """The macros by name, with numbers for bools. Raises InputError for what is not a macro's name."""
    for macro in defines or {}:
        if not re.fullmatch(r"[A-Za-z_]\w*", macro):
            raise InputError(f"defines has {macro!r}, which is not a macro's name.")
    return {name: int(value) if isinstance(value, bool) else value for name, value in (defines or {}).items()}


def included(text: str, include_dirs: Sequence[Path]) -> dict[str, str]:
    """The files that `text` includes, at any depth: {path: SHA-256}, found as a compiler finds them.

    A header outside `include_dirs` is the compiler's own: the compiler's version stands for it. Branches that
    the preprocessor skips count as well. Raises InputError for an #include whose name is a macro.
    """
    found: dict[str, str] = {}
    pending: list[tuple[str, list[Path]]] = [(text, [])]
    while pending:
        text, beside = pending.pop()
        for further, quoted, angled, macro in _includes(text):
            if macro:
                raise InputError(f'#include {macro} cannot be followed: write the file\'s name in "" or <>.')
            for folder in [*(beside if quoted else []), *include_dirs]:
                path = folder / (quoted or angled)
                if not path.is_file():
                    continue
                if str(path) not in found:
                    content = path.read_bytes()
                    found[str(path)] = hashlib.sha256(content).hexdigest()
                    pending.append((content.decode(errors="replace"), [path.parent]))
                if not further:  # an #include_next may mean any of that name
                    break
    return found


@functools.lru_cache(maxsize=256)
def _includes(text: str) -> list[tuple[str, ...]]:
    """The matches of _INCLUDE. The headers are the same for most builds of a process, and searching them
    takes longer than reading them."""
    return _INCLUDE.findall(text)


def _as_path(source: str | Path) -> Path | None:
    """The path that `source` is, or None where it is text."""
    if isinstance(source, str) and ("\n" in source or not source.endswith((".cu", ".cuh", ".cpp"))):
        return None
    path = Path(source).absolute()
    if not path.is_file():
        raise InputError(f"The source {path} does not exist.")
    return path


def _check_utf8(path: Path) -> None:
    """Raise InputError for a path that torch cannot write into a command."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"The folder {str(path)!a} is not UTF-8, which a build needs.") from None


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
