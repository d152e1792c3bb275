"""kernels/build.py: what a build gives, what decides its key, many builders at once and killed ones."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gemm_ladder import build
from gemm_ladder.build import job, toolchain, worker
from gemm_ladder.errors import InputError

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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> build.Built:
    """A library in a cache folder with a space in its name, as home folders have. Tests copy it."""
    folder = tmp_path_factory.mktemp("a cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMM_LADDER_CACHE", str(folder))
        return build.compile(SOURCE, target="emulator", name="twice", defines={"TEXT": c_string(TEXT)})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, in force."""
    path = tmp_path / "cache"
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(path))
    return path


@pytest.fixture
def no_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any process that is started fails the test."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def same_again() -> build.Built:
    return build.compile(SOURCE, target="emulator", name="twice", defines={"TEXT": c_string(TEXT)})


def job_of(source: str | Path, target: build.Target = "emulator", **options: object) -> job.Job:
    """The job of a build, without building it."""
    arguments = {"name": None, "defines": {}, "extra_flags": (), "sass_pass": None, **options}
    return job.Job.of(source, target, **arguments)


def compiler_that(path: Path, commands: str) -> str:
    """A CXX that runs shell `commands` before the real compiler, when it compiles for a build."""
    real = shutil.which("c++")
    path.write_text(f'#!/bin/sh\ncase "$*" in *-MMD*) {commands} ;; esac\nexec {real} "$@"\n')
    path.chmod(0o755)
    return str(path)


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# ------------------------------------------------------------------ what a build gives


def test_build_gives_library_log_and_seconds(built: build.Built) -> None:
    assert not built.cached
    assert 0.1 < built.seconds < 120
    assert built.lib.twice(21) == 42
    built.lib.text.restype = ctypes.c_char_p
    assert built.lib.text().decode() == TEXT
    assert built.lib.text.restype is ctypes.c_char_p, "one CDLL for the file, with its argtypes"
    assert "-ffp-contract=off" in built.log
    assert "twice.so" in built.log, "the link is in the log too"


def test_hit_keeps_the_log_and_starts_nothing(
    built: build.Built, monkeypatch: pytest.MonkeyPatch, no_builds: None
) -> None:
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(built.path.parents[1]))
    before = dict(os.environ)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        again = same_again()
        seconds.append(time.perf_counter() - started)
    assert (again.path, again.log, again.cached, again.seconds) == (built.path, built.log, True, 0.0)
    assert min(seconds) < 0.02
    assert dict(os.environ) == before


def test_library_needs_nothing_of_torch(built: build.Built) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    needed = subprocess.run(["readelf", "-d", str(built.path)], capture_output=True, text=True).stdout
    assert "Dynamic section" in needed
    assert "torch" not in needed and "c10" not in needed and "PATH" not in needed


def test_libraries_of_one_process_share_nothing(folder: Path) -> None:
    """Two rungs' libraries have variables of the same name, and each must find its own."""
    source = """
    inline int counter = START;
    inline int& in_function() { static int value = START; return value; }
    struct Base { virtual int kind() const; };
    int Base::kind() const { return START; }
    int ordinary = START;
    extern "C" int sum() { return counter + in_function() + ordinary + Base().kind(); }
    """
    made: dict[int, build.Built] = {}

    def make(start: int) -> None:
        made[start] = build.compile(source, target="emulator", defines={"START": start})

    threads = [threading.Thread(target=make, args=[start]) for start in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ctypes.CDLL(str(made[1].path), ctypes.RTLD_GLOBAL)  # as a debugger or a profiler may load it
    assert [made[1].lib.sum(), made[2].lib.sum(), made[1].lib.sum()] == [4, 8, 4]


def test_compiler_error_is_shown_whole(folder: Path) -> None:
    source = folder.parent / "wrong.cu"
    source.write_text("int first() { return missing_one; }\n\nint second() { return missing_two; }\n")
    with pytest.raises(build.BuildError) as caught:
        build.compile(source, target="emulator")
    sentence, _, output = str(caught.value).partition("\n")
    assert str(source) in sentence and "emulator" in sentence
    assert f"{source}:1:" in output and "missing_one" in output
    assert f"{source}:3:" in output and "missing_two" in output
    assert caught.value.log == output
    assert list((folder / "building").iterdir()) == [], "a failed build leaves nothing"
    assert [path.name for path in folder.iterdir() if path.name.startswith("wrong")] == []


def test_missing_definition_is_an_error_of_the_build(folder: Path) -> None:
    with pytest.raises(build.BuildError, match="nowhere"):
        build.compile('int nowhere();\nextern "C" int call() { return nowhere(); }\n', target="emulator")


# ------------------------------------------------------------------ what decides the key


def test_key_follows_all_that_decides_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, header, deeper = tmp_path / "kernel.cu", tmp_path / "header.cuh", tmp_path / "deeper.cuh"
    source.write_text('#include "header.cuh"\nint x;\n')
    header.write_text("#  include <deeper.cuh>\n")
    deeper.write_text("// one\n")
    original = job_of(source)
    keys = {original.key()}
    assert job_of(source).key() in keys, "the same again"

    def changed(other: job.Job) -> bool:
        new = other.key() not in keys
        keys.add(other.key())
        return new

    assert changed(job_of(source, name="other"))
    assert changed(job_of(source, defines={"A": 1}))
    assert changed(job_of(source, defines={"A": 2}))
    assert changed(job_of(source, extra_flags=["-O1"]))
    assert changed(job_of(source, sass_pass=build.SassPass("pass 1", lambda path: "")))
    assert changed(job_of(source, sass_pass=build.SassPass("pass 2", lambda path: "")))
    assert changed(dataclasses.replace(original, target="cuda"))
    assert changed(dataclasses.replace(original, cxx=dataclasses.replace(original.cxx, identity="g++ 99")))
    assert changed(dataclasses.replace(original, torch=dataclasses.replace(original.torch, version="99")))
    assert changed(dataclasses.replace(original, text=original.text + " "))
    monkeypatch.setenv("CPLUS_INCLUDE_PATH", "/somewhere")
    assert changed(job_of(source))
    monkeypatch.delenv("CPLUS_INCLUDE_PATH")
    deeper.write_text("// two\n")
    assert changed(job_of(source)), "a header that a header includes"
    header.unlink()
    assert changed(job_of(source)), "a header that went"

    one, other = job_of(source, defines={"A": 1, "B": 2}), job_of(source, defines={"B": 2, "A": 1})
    assert one.key() == other.key(), "the order in which macros are given decides nothing"


def test_includes_are_found_as_a_compiler_finds_them(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "both.cuh").write_text(f"// {name}\n")
    (tmp_path / "second" / "beside.cuh").write_text('#include "both.cuh"\n')
    (tmp_path / "second" / "along.cuh").write_text("#include <both.cuh>\n#include <vector>\n")
    (tmp_path / "first" / "chain.cuh").write_text("#include_next <both.cuh>\n")
    (tmp_path / "second" / "loop.cuh").write_text('#include "loop.cuh"\n')
    folders = [tmp_path / "first", tmp_path / "second"]

    def found(text: str) -> set[str]:
        return {Path(path).relative_to(tmp_path).as_posix() for path in job.included(text, folders)}

    assert found('#include "both.cuh"\n') == {"first/both.cuh"}
    assert found("#include <beside.cuh>\n") == {"second/beside.cuh", "second/both.cuh"}, (
        "beside the includer first"
    )
    assert found('#include "along.cuh"\n') == {"second/along.cuh", "first/both.cuh"}
    assert found('#include "chain.cuh"\n') == {"first/chain.cuh", "first/both.cuh", "second/both.cuh"}
    assert found('  # include "loop.cuh" // itself\n') == {"second/loop.cuh"}
    assert found("#include <cstdint>\n// prose that says #include things\n") == set()
    with pytest.raises(InputError, match="#include HEADER cannot be followed"):
        found("#include HEADER\n")


def test_emulator_finds_its_own_headers_first() -> None:
    """Both folders have a ptx.cuh."""
    folders = job_of("int x;\n").include_dirs
    assert [path.name for path in folders] == ["emulator", "include", "production"]
    assert all((path / "ptx.cuh").is_file() for path in folders[:2])


def test_cuda_never_sees_the_emulators_headers() -> None:
    nvcc_or_skip()
    folders = job_of("int x;\n", "cuda").include_dirs
    assert [path.name for path in folders] == ["include", "production"]
    assert set(folders) < set(job_of("int x;\n").include_dirs)


def test_header_in_an_extra_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "extra.cuh").write_text("// one\n")
    before = job_of('#include "extra.cuh"\n', extra_flags=[f"-I{tmp_path}"]).key()
    (tmp_path / "extra.cuh").write_text("// two\n")
    assert job_of('#include "extra.cuh"\n', extra_flags=[f"-I{tmp_path}"]).key() != before


def test_header_that_changes_during_the_build_is_not_cached(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "header.cuh").write_text("// one\n")
    (tmp_path / "kernel.cu").write_text('#include "header.cuh"\n')

    def run(request: dict, environment: dict, output: Path) -> tuple[int, str]:
        (tmp_path / "header.cuh").write_text("// two\n")
        (Path(request["folder"]) / "kernel.so").write_bytes(b"of which header?")
        return 0, ""

    monkeypatch.setattr(worker, "run", run)
    with pytest.raises(build.BuildError, match="changed during its build"):
        build.compile(tmp_path / "kernel.cu", target="emulator")
    assert not list(folder.glob("kernel-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "int x;\n", "target": "metal"}, "target is 'metal', and must be"),
        ({"source": "no/such.cu", "target": "emulator"}, r"no/such\.cu does not exist"),
        ({"source": Path("no such"), "target": "emulator"}, "no such does not exist"),
        ({"source": "int x;\n", "target": "emulator", "defines": {"A B": 1}}, "'A B', which is not a macro"),
        ({"source": "int x;\n", "target": "emulator", "extra_flags": "-O1"}, "must be a sequence"),
        ({"source": "int x;\n", "target": "emulator", "extra_flags": ["-I", "x"]}, "write the two as one"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str, no_builds: None) -> None:
    with pytest.raises(InputError, match=message):
        build.compile(**arguments)


# ------------------------------------------------------------------ many builders, killed builders


def test_eight_processes_build_once(tmp_path: Path, folder: Path) -> None:
    log = tmp_path / "compilations"
    code = """
    import sys, threading
    from gemm_ladder import build
    def make():
        built = build.load('extern "C" int answer() { return 42; }\\n', target="emulator")
        sys.stdout.write(f"{'cached' if built.cached else 'built'} {built.lib.answer()}\\n")
    threads = [threading.Thread(target=make) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    """
    environment = {**os.environ, "CXX": compiler_that(tmp_path / "counting", f"echo compiled >> '{log}'")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    lines = sorted(line for output, _ in outputs for line in output.splitlines())
    assert lines == ["built 42"] + ["cached 42"] * 15
    assert log.read_text() == "compiled\n"
    assert list((folder / "building").iterdir()) == []


SLOWLY = 'if [ -e {0}/slow ]; then echo "$$ $TMPDIR" > {0}/new; mv {0}/new {0}/compiling; sleep 60; fi'


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file: while it is there, the compiler writes its process and its TMPDIR beside it, and hangs."""
    monkeypatch.setenv("CXX", compiler_that(tmp_path / "cxx", SLOWLY.format(f"'{tmp_path}'")))
    (tmp_path / "slow").touch()
    return tmp_path / "slow"


def wait_for_compiler(slow: Path) -> tuple[int, Path]:
    """The process and the TMPDIR of the hanging compiler, once it hangs."""
    wait_until((slow.parent / "compiling").exists, 60)
    process, folder = (slow.parent / "compiling").read_text().split()
    return int(process), Path(folder)


def test_killed_builder_leaves_nothing_behind(folder: Path, slow: Path) -> None:
    source = 'extern "C" int answer() { return 42; }\n'
    code = f"from gemm_ladder import build; build.compile({source!r}, target='emulator')"
    builder = subprocess.Popen([sys.executable, "-c", code])
    compiler, temporary = wait_for_compiler(slow)
    (private,) = (folder / "building").iterdir()
    assert temporary == private, "what compilers put there goes with the folder"

    waiter = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(0.5)
    assert waiter.poll() is None and list((folder / "building").iterdir()) == [private], (
        "the second one waits"
    )
    waiter.kill()
    waiter.wait()

    builder.send_signal(signal.SIGKILL)
    builder.wait()
    wait_until(lambda: not alive(compiler), 20)  # its compilers end with it
    assert private.exists(), "kill -9 lets nobody tidy up"
    assert not list(folder.glob("inline-*")), "no entry"

    slow.unlink()
    built = build.load(source, target="emulator")
    assert built.path.parent.name == private.name.rpartition(".")[0], "the same entry"
    assert built.lib.answer() == 42 and not built.cached
    assert list((folder / "building").iterdir()) == []


def test_interrupted_builder_ends_its_compilers(folder: Path, slow: Path) -> None:
    # A shell's background job, as the suite may be, ignores Ctrl-C, and so do its children by default.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}\nfrom gemm_ladder import build; build.compile('int x;\\n', target='emulator')"
    builder = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    compiler, _ = wait_for_compiler(slow)
    builder.send_signal(signal.SIGINT)  # Ctrl-C
    _, stderr = builder.communicate(timeout=20)
    assert "KeyboardInterrupt" in stderr
    wait_until(lambda: not alive(compiler), 20)
    assert list((folder / "building").iterdir()) == []


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie, which nobody has waited for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_truncated_library_is_built_again(
    built: build.Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built.path.parents[1], folder)
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(folder))
    library = folder / built.path.parent.name / built.path.name
    os.truncate(library, library.stat().st_size // 2)
    healed = same_again()
    assert healed.path == library and not healed.cached
    assert healed.lib.twice(4) == 8
    assert same_again().cached


def test_folder_that_cannot_be_written(
    built: build.Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a regular file nobody makes a folder, root included, whom permissions do not stop."""
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with pytest.warns(
        UserWarning, match=r"file/cache cannot be written \(Not a directory\).*GEMM_LADDER_CACHE"
    ) as seen:
        first = same_again()
    assert seen[0].filename == __file__, "the warning names the caller's line"
    assert first.path.is_relative_to(tmp_path / "tmp" / f"gemm_ladder-{os.getuid()}") and not first.cached
    with pytest.warns(UserWarning, match="cannot be written"):
        assert same_again().cached, "processes share the temporary folder"


def test_read_only_folder_serves_what_it_has(
    built: build.Built, monkeypatch: pytest.MonkeyPatch, no_builds: None
) -> None:
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(built.path.parents[1]))

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "rename", "replace", "unlink", "makedirs"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert same_again().cached


# ------------------------------------------------------------------ the process that builds


def test_import_needs_nothing_and_survives_fork() -> None:
    code = """
    import os, sys
    import gemm_ladder, gemm_ladder.build
    assert gemm_ladder.build.sources_digest()
    if "torch" in sys.modules:
        assert not sys.modules["torch"].cuda.is_initialized()
    pid = os.fork()
    if pid == 0:
        assert gemm_ladder.build.sources_digest()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    print("torch" in sys.modules)
    """
    environment = {"PATH": "", "HOME": "/nonexistent", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = time.perf_counter()
    done = python(code, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n", "torch is imported when it is needed and not before"
    assert time.perf_counter() - started < 10


def test_build_does_not_import_torch_here(built: build.Built) -> None:
    code = f"""
    import os, sys
    from gemm_ladder import build
    built = build.load({SOURCE!r}, target="emulator", name="twice", defines={{"TEXT": {c_string(TEXT)!r}}})
    print(built.cached, built.lib.twice(3), "torch" in sys.modules)
    """
    done = python(code, env={**os.environ, "GEMM_LADDER_CACHE": str(built.path.parents[1])})
    assert done.stdout == "True 6 False\n", done.stderr


def test_cxx_with_arguments_builds(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX="ccache g++" is common, and so is a space in a path. A rewriting pass is applied as well."""
    launcher = tmp_path / "a folder" / "launcher"
    launcher.parent.mkdir()
    launcher.write_text('#!/bin/sh\nexec "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{launcher}' c++ -DFROM_CXX=5")

    def rewrite(library: Path) -> str:
        content = library.read_bytes()
        assert content.count(b"before") == 1
        library.write_bytes(content.replace(b"before", b"after!"))
        return "rewrote 1 word\n"

    built = build.load(
        'extern "C" int number() { return FROM_CXX; }\nextern "C" const char* word() { return "before"; }\n',
        target="emulator",
        sass_pass=build.SassPass("test", rewrite),
    )
    built.lib.word.restype = ctypes.c_char_p
    assert (built.lib.number(), built.lib.word()) == (5, b"after!")
    assert built.log.endswith("rewrote 1 word\n")


# ------------------------------------------------------------------ nvcc


def nvcc_or_skip() -> toolchain.Cuda:
    try:
        found = build.find_cuda()
    except build.ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")
    if not toolchain.find_torch().links_cuda:
        pytest.skip("needs a torch that is built with CUDA")
    return found


def test_cuda_library_is_for_hopper_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc_or_skip()
    monkeypatch.setenv(
        "TORCH_CUDA_ARCH_LIST", "8.0+PTX"
    )  # torch's own setting: the kernels are for one machine
    built = build.compile(KERNEL, target="cuda", name="twice")
    assert re.search(r"Used \d+ registers", built.log)
    assert "compute_80" not in built.log
    again = build.compile(KERNEL, target="cuda", name="twice")
    assert again.cached and again.log == built.log
    tool = toolchain.find_tool("cuobjdump")
    if tool is None:
        pytest.skip("needs cuobjdump")
    listed = subprocess.run([tool, "-lelf", "-lptx", str(built.path)], capture_output=True, text=True).stdout
    assert re.findall(r"\.(sm_\w+)\.cubin", listed) == ["sm_90a"]
    assert ".ptx" not in listed


def test_toolkit_without_an_unversioned_cudart_links(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI's toolkit has libcudart.so.13 only. What is built loads without a GPU and leaves CUDA unused."""
    real = nvcc_or_skip()
    home = tmp_path / "a toolkit"
    (home / "lib").mkdir(parents=True)
    for part in ("bin", "include", "nvvm"):
        (home / part).symlink_to(real.home / part)
    versioned = max(real.libraries.glob("libcudart.so.*"), key=lambda path: len(path.name))
    soname = re.match(r"libcudart\.so\.\d+", versioned.name)[0]
    (home / "lib" / soname).symlink_to(versioned.resolve())
    monkeypatch.setenv("CUDA_HOME", str(home))
    build.compile(KERNEL, target="cuda", name="twice")
    code = f"""
    from pathlib import Path
    from gemm_ladder import build
    built = build.load({KERNEL!r}, target="cuda", name="twice")
    import torch
    print(built.cached, hasattr(built.lib, "run"), torch.cuda.is_initialized())
    """
    done = python(code)
    assert done.stdout == "True True False\n", done.stderr
