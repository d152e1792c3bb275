"""Folders that builds cannot use, or hardly: noexec, full and read-only ones, and unusual paths."""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from building import KERNEL, nvcc_or_skip, python
from gemm_ladder import build
from gemm_ladder.build import cache, folders, toolchain
from gemm_ladder.errors import BuildError, ToolchainError

ANSWER = 'extern "C" int answer() { return 42; }\n'


def make(private: Path) -> cache.Made:
    """A build that compiles nothing."""
    (private / "library.so").write_bytes(b"machine code")
    return cache.Made(private / "library.so", "the log")


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What replaces the cache folder, in a temporary folder of the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp" / f"gemm_ladder-{os.getuid()}"


@pytest.fixture
def no_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a temporary folder."""

    def refuse() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", refuse)


# ------------------------------------------------------------------ which folder


def test_cache_folder_is_chosen_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/people/someone")
    monkeypatch.delenv("GEMM_LADDER_CACHE", raising=False)
    monkeypatch.delenv("DG_JIT_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert folders.folder() == Path("/people/someone/.cache/gemm_ladder")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert folders.folder() == Path("/var/cache/gemm_ladder")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert folders.folder() == Path("/people/someone/.cache/gemm_ladder")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    monkeypatch.setenv("DG_JIT_CACHE_DIR", "~/jit")
    assert folders.folder() == Path("/people/someone/jit/gemm_ladder"), "beside what DeepGEMM keeps there"
    monkeypatch.setenv("GEMM_LADDER_CACHE", "~/mine")
    assert folders.folder() == Path("/people/someone/mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMM_LADDER_CACHE", "$HOME")
    assert folders.folder() == tmp_path / "$HOME", "no shell reads it"


def test_temporary_folder_of_another_is_not_used(temporary: Path) -> None:
    assert folders.temporary_folder() == temporary
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    temporary.chmod(0o777)
    own = folders.temporary_folder()
    assert own != temporary and stat.S_IMODE(own.stat().st_mode) == 0o700
    temporary.rmdir()
    elsewhere = temporary.parent / "elsewhere"
    temporary.symlink_to(elsewhere)
    assert folders.temporary_folder() not in (temporary, elsewhere)


@pytest.mark.usefixtures("no_temporary")
def test_without_a_temporary_folder_the_cache_folder_serves(folder: Path) -> None:
    with folders.scratch() as path:
        assert path.is_relative_to(folder)
        (path / "file").write_text("")
    assert not path.exists()
    assert toolchain._run([sys.executable, "-c", "print(7)"], "") == "7\n"
    assert cache.get("key", make)[0].path.is_relative_to(folder)


@pytest.mark.usefixtures("no_temporary")
def test_no_folder_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ToolchainError) as caught, folders.scratch():
        pass
    assert caught.value.missing == (
        f"Neither a temporary folder nor {tmp_path}/file/cache can be written (Not a directory)"
    )
    with pytest.raises(ToolchainError) as caught:
        cache.get("key", make)
    assert caught.value.missing == (
        f"The cache folder {tmp_path}/file/cache cannot be written (Not a directory), "
        "and there is no temporary folder"
    )
    assert caught.value.remedy == folders.REMEDY


# ------------------------------------------------------------------ folders that refuse, by injected errors


def refuse_code_below(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files below `root` cannot be mapped as code."""
    real = mmap.mmap

    def mapped(descriptor: int, *arguments: int) -> mmap.mmap:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(root):
            raise error(errno.EPERM)
        return real(descriptor, *arguments)

    monkeypatch.setattr(mmap, "mmap", mapped)


NOEXEC = r"does not let libraries be loaded \(Operation not permitted\), as on a noexec mount"


@pytest.mark.parametrize("warm", [False, True])
def test_noexec(warm: bool, folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen before the build, or before an entry that is there is used."""
    if warm:
        cache.get("key", make)
    refuse_code_below(folder, monkeypatch)
    calls = []

    def build(private: Path) -> cache.Made:
        calls.append(private)
        return make(private)

    with pytest.warns(UserWarning, match=f"^The cache folder {folder} {NOEXEC}: building under {temporary}"):
        entry, cached = cache.get("key", build)
    assert entry.path.is_relative_to(temporary) and not cached
    assert len(calls) == 1 and calls[0].is_relative_to(temporary)
    with pytest.warns(UserWarning, match="noexec"):
        assert cache.get("key", build) == (entry, True)


def test_noexec_everywhere(folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_code_below(folder.parent, monkeypatch)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ToolchainError, match=f"folder {folder} {NOEXEC}, and {temporary} {NOEXEC}: set GEMM"),
    ):
        cache.get("key", make)


def fill_disk_below(root: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room can be reserved below `root`."""
    real = os.posix_fallocate

    def reserve(descriptor: int, start: int, length: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(root):
            raise error(number)
        real(descriptor, start, length)

    monkeypatch.setattr(os, "posix_fallocate", reserve)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("fault", [BuildError("it does not build", "the compiler's words"), error(errno.EIO)])
def test_full_disk(
    number: int, fault: Exception, folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that fails is tried in another place if the disk is full, whatever it failed with."""
    fill_disk_below(folder, number, monkeypatch)

    def build(private: Path) -> cache.Made:
        if private.is_relative_to(folder):
            raise fault
        return make(private)

    words = rf"folder {folder} is on a full disk \({os.strerror(number)}\): building under {temporary}"
    with pytest.warns(UserWarning, match=words):
        entry, _ = cache.get("key", build)
    assert entry.path.is_relative_to(temporary)
    assert list((folder / "building").iterdir()) == []


def test_failed_build_on_a_disk_with_room_is_not_tried_again(folder: Path, temporary: Path) -> None:
    def build(private: Path) -> cache.Made:
        assert private.is_relative_to(folder)
        raise BuildError("it does not build", "the compiler's words")

    with pytest.raises(BuildError, match="it does not build\nthe compiler's words"):
        cache.get("key", build)
    assert not temporary.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_library_that_cannot_be_written(
    number: int, folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills while an entry is written, and another process makes room before it is looked at."""

    def build(private: Path) -> cache.Made:
        if private.is_relative_to(folder):
            raise error(number)
        return make(private)

    with pytest.warns(UserWarning, match=rf"cannot be written \({os.strerror(number)}\)"):
        entry, _ = cache.get("key", build)
    assert entry.path.is_relative_to(temporary)


def test_folder_that_loses_what_is_written(
    folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = cache.find
    monkeypatch.setattr(cache, "find", lambda root, key: None if root == folder else find(root, key))
    with pytest.warns(UserWarning, match="does not keep what is written to it"):
        entry, _ = cache.get("key", make)
    assert entry.path.is_relative_to(temporary)


def test_answers_that_cannot_be_written_leave_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise error(errno.ENOSPC)

    monkeypatch.setattr(cache, "_answers", {})
    monkeypatch.setattr(os, "replace", refuse)
    assert cache.remember("question", lambda: "answer") == "answer"
    assert list(folder.iterdir()) == []


# ------------------------------------------------------------------ folders that refuse, mounted


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """mount(options) -> a tmpfs with these options; mounted again, the same one with others."""
    path = tmp_path / "mounted"
    path.mkdir()

    def run(options: str) -> Path:
        if os.path.ismount(path):
            options = f"remount,{options}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"needs to mount: {done.stderr.decode().strip()}")
        return path

    try:
        yield run
    finally:
        if os.path.ismount(path):
            subprocess.run(["umount", "--lazy", path], check=True)


def test_noexec_mount(mount: Callable[[str], Path], temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache and with a full one; a library that is there is not tried."""
    path = mount("size=64m")
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(path))
    assert build.load(ANSWER, target="emulator").lib.answer() == 42
    mount("noexec,size=64m")
    for source, cached in [(ANSWER, False), (ANSWER, True), (ANSWER.replace("42", "43"), False)]:
        with pytest.warns(UserWarning, match=f"{path} {NOEXEC}: building under {temporary}"):
            built = build.load(source, target="emulator")
        assert built.path.is_relative_to(temporary) and built.cached == cached
    with pytest.raises(folders.UnusableFolderError, match=NOEXEC):
        folders.check(path)


def test_full_mount(mount: Callable[[str], Path], temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = f"char large[100000] = {{1}};\n{ANSWER}"
    path = mount("size=48k")
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(path))
    with pytest.warns(
        UserWarning, match=rf"{path} .*\(No space left on device\): building under {temporary}"
    ):
        assert build.load(large, target="emulator").lib.answer() == 42
    with pytest.raises(folders.UnusableFolderError, match="No space left on device"):
        folders.check(path)
    monkeypatch.setattr("tempfile.tempdir", str(path))
    with (
        pytest.warns(UserWarning),
        pytest.raises(ToolchainError, match=f"{path} .*No space.*, and {path}/gemm_ladder-.*No space"),
    ):
        build.load(large.replace("42", "43"), target="emulator")


# ------------------------------------------------------------------ unusual paths

NAMES = ["$HOME", "a:b", "ü (&)'|#", "back\\slash", os.fsdecode(b"no utf-8 \xfc")]


@pytest.mark.parametrize(
    ("name", "target"),
    [*((name, "emulator") for name in NAMES), *((name, "cuda") for name in NAMES[::2])],
    ids=ascii,
)
def test_builds_under_any_path(
    name: str, target: build.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ninja, the shell or nvcc would each take for something else; nothing is left in the folder."""
    if target == "cuda":
        nvcc_or_skip()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path / name))
    built = build.load(KERNEL if target == "cuda" else ANSWER, target=target)
    assert built.path.is_relative_to(tmp_path / name) and not built.cached
    assert hasattr(built.lib, "run" if target == "cuda" else "answer")
    assert list((tmp_path / name / "building").iterdir()) == []
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("name", ['a"b', "a\nb"])
def test_paths_that_nvcc_cannot_take(
    name: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path / name))
    with pytest.warns(UserWarning, match="has a quotation mark or a line break in its path, which nvcc"):
        assert cache.get("key", make)[0].path.is_relative_to(temporary)


def test_path_with_an_umlaut_where_python_knows_ascii_only(tmp_path: Path) -> None:
    """A cache, a source and its header, and a compiler, each with an ü in its path."""
    home = tmp_path / "für"
    home.mkdir()
    (home / "kernel.cu").write_text(
        '#include "header.cuh"\nextern "C" int answer() { return VALUE; }  // ü\n'
    )
    (home / "header.cuh").write_text("// ü\n")
    (home / "cxx").write_text('#!/bin/sh\nexec c++ "$@"\n')
    (home / "cxx").chmod(0o755)
    code = """
    import json, os, sys
    from gemm_ladder import build
    assert sys.getfilesystemencoding() == "ascii", sys.getfilesystemencoding()
    source = os.environ["SOURCE"]
    built = [build.load(source, target="emulator", defines={"VALUE": 42}) for _ in range(2)]
    try:
        build.load(source, target="emulator", defines={"VALUE": "wrong"})
    except build.BuildError as error:
        print(json.dumps([[one.cached, one.lib.answer()] for one in built] + [error.sentence, error.log]))
    """
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "CXX": str(home / "cxx"),
        "GEMM_LADDER_CACHE": str(home / "cache"),
        "SOURCE": str(home / "kernel.cu"),
    }
    done = python(code, env=environment)
    assert done.returncode == 0, done.stderr
    first, second, sentence, log = json.loads(done.stdout)
    assert (first, second) == ([False, 42], [True, 42])
    assert sentence.startswith(os.fsencode(f"{home}/kernel.cu (emulator)").decode("ascii", "surrogateescape"))
    assert "für" in log and "wrong" in log


def test_temporary_files_of_a_command_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import os; open(os.path.join(os.environ['TMPDIR'], 'left'), 'w').close(); print('done')"
    assert toolchain._run([sys.executable, "-c", code], "") == "done\n"
    assert list(tmp_path.iterdir()) == [] and tempfile.gettempdir() == str(tmp_path)
