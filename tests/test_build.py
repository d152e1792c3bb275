"""What a build gives, the process that makes it, and what nvcc makes."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from building import KERNEL, SOURCE, TEXT, c_string, nvcc_or_skip, python
from gemm_ladder import build
from gemm_ladder.build import toolchain, worker


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> build.Built:
    """A library in a cache folder with a space in its name, as home folders have. Tests copy it."""
    folder = tmp_path_factory.mktemp("a cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMM_LADDER_CACHE", str(folder))
        return build.compile(SOURCE, target="emulator", name="twice", defines={"TEXT": c_string(TEXT)})


@pytest.fixture
def folder(folder: Path, built: build.Built) -> Path:
    """A cache folder with nothing but the emulator itself, which takes longer to build than all else here."""
    assert built.core
    shutil.copytree(built.core.path.parent, folder / built.core.path.parent.name)
    return folder


def same_again() -> build.Built:
    return build.compile(SOURCE, target="emulator", name="twice", defines={"TEXT": c_string(TEXT)})


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
        started = time.thread_time()  # what this thread computes, however busy the machine is
        again = same_again()
        seconds.append(time.thread_time() - started)
    assert (again.path, again.log, again.cached, again.seconds) == (built.path, built.log, True, 0.0)
    assert min(seconds) < built.seconds / 50  # of this machine, whose speed decides both
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
    # One is loaded as a debugger or a profiler may load it: in another process, because that would change
    # what the libraries of other tests find in this one.
    program = """
import ctypes, sys
core, one, two = sys.argv[1:]
ctypes.CDLL(core)
ctypes.CDLL(one, ctypes.RTLD_GLOBAL)
print([ctypes.CDLL(path).sum() for path in (one, two, one)])
"""
    assert made[1].core
    paths = [str(path) for path in (made[1].core.path, made[1].path, made[2].path)]
    ran = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert ran.stdout == "[4, 8, 4]\n"


def test_compiler_errors_are_shown_and_nothing_else(folder: Path) -> None:
    source = folder.parent / "wrong.cu"
    source.write_text("int first() { return missing_one; }\n\nint second() { return missing_two; }\n")
    with pytest.raises(build.BuildError) as caught:
        build.compile(source, target="emulator")
    sentence, _, output = str(caught.value).partition("\n")
    assert str(source) in sentence and "emulator" in sentence
    assert f"{source}:1:" in output and "missing_one" in output
    assert f"{source}:3:" in output and "missing_two" in output
    assert set(output.splitlines()) < set(caught.value.log.splitlines()), "the log has the command, too"
    assert "RuntimeError" in caught.value.log and "RuntimeError" not in output
    assert list((folder / "building").iterdir()) == [], "a failed build leaves nothing"
    assert [path.name for path in folder.iterdir() if path.name.startswith("wrong")] == []


def test_missing_definition_is_an_error_of_the_build(folder: Path) -> None:
    with pytest.raises(build.BuildError, match="nowhere"):
        build.compile('int nowhere();\nextern "C" int call() { return nowhere(); }\n', target="emulator")


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
    """The cache is below a regular file, where not even root can make a folder."""
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
    assert built.log.endswith("rewrote 1 word\n") and built.rewritten


def test_library_that_builds_and_does_not_load(folder: Path) -> None:
    """The sentence says so, and does not blame the compiler."""
    source = "[[gnu::constructor]] void refuse() { __builtin_trap(); }\n"
    with pytest.raises(build.BuildError, match="builds, but loading the library ends with SIGILL"):
        build.compile(source, target="emulator")
    linker = folder.parent / "cxx"
    linker.write_text(
        '#!/bin/sh\ncase "$*" in *-shared*) echo "not a library" > inline.so; exit 0;; esac\nexec c++ "$@"\n'
    )
    linker.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(build.BuildError) as caught:
        patch.setenv("CXX", str(linker))
        build.compile("int x;\n", target="host")
    assert caught.value.sentence == "inline.cu (host) builds, but the library cannot be loaded:"
    assert "inline.so: file too short" in caught.value.log, "the loader's own words"


def test_library_that_no_longer_loads(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_text("not a library")
    built = build.Built(path, "", 0.0, True, "emulator")
    with pytest.raises(build.BuildError, match=f"^The library {path} cannot be loaded:\n.*{path}"):
        _ = built.lib


# ------------------------------------------------------------------ what rewrites a library

PASSES = {
    "rewrites": (lambda library: library.write_bytes(b"other") and "log\n", True),
    "leaves it": (lambda library: "log\n", False),
}


@pytest.mark.parametrize(("rewrite", "rewrote"), PASSES.values(), ids=PASSES)
def test_pass_says_whether_it_rewrote(rewrite: Callable[[Path], str], rewrote: bool, tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"code")
    assert build.SassPass("test", rewrite).apply(tmp_path / "a.so") == (rewrote, "log\n")


def test_pass_that_refuses(folder: Path) -> None:
    """An expected refusal is recorded, and found in the cache as well; another one ends the build."""

    def refuse(library: Path) -> str:
        raise KeyError("too strange")

    lenient = build.SassPass("lenient", refuse, refusals=(KeyError,))
    for cached in (False, True):
        built = build.compile("int x;\n", target="emulator", sass_pass=lenient)
        assert (built.cached, built.rewritten) == (cached, False) and built.log.endswith("'too strange'\n")
    with pytest.raises(KeyError):
        build.compile("int x;\n", target="emulator", sass_pass=build.SassPass("strict", refuse))
    assert build.compile("int x;\n", target="emulator").rewritten is None


# ------------------------------------------------------------------ nvcc


@pytest.mark.parametrize("flags", [(), ("-gencode=arch=compute_90a,code=sm_90a",)])
def test_cuda_library_is_for_hopper_alone(
    flags: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torch's own setting asks for other GPUs, and where torch 2.8 adds a flag for the GPU."""
    nvcc_or_skip()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0+PTX")
    built = build.compile(KERNEL, target="cuda", name="twice", extra_flags=flags)
    assert re.search(r"Used \d+ registers", built.log)
    assert "compute_80" not in built.log
    again = build.compile(KERNEL, target="cuda", name="twice", extra_flags=flags)
    assert again.cached and again.log == built.log
    tool = toolchain.find_tool("cuobjdump")
    if tool is None:
        pytest.skip("needs cuobjdump")
    listed = subprocess.run([tool, "-lelf", "-lptx", str(built.path)], capture_output=True, text=True).stdout
    assert re.findall(r"\.(sm_\w+)\.cubin", listed) == ["sm_90a"]
    assert ".ptx" not in listed


@pytest.mark.parametrize("chosen", [None, "8.0 9.0 10.0+PTX"])
def test_torch_adds_flags_for_hopper_alone(
    chosen: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.8 asks for flags without saying which the build has, as here; newer ones add none to ours."""
    nvcc_or_skip()
    if chosen:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", chosen)
    environments = []

    def run(request: dict, environment: dict[str, str], output: Path) -> tuple[int, str]:
        environments.append(environment)
        return 1, ""

    monkeypatch.setattr(worker, "run", run)
    with pytest.raises(build.BuildError):
        build.compile(KERNEL, target="cuda")
    code = "from torch.utils import cpp_extension; print(cpp_extension._get_cuda_arch_flags())"
    assert python(code, env=environments[0]).stdout == "['-gencode=arch=compute_90a,code=sm_90a']\n"


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
