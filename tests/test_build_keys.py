"""What decides a library's key in the cache, and which arguments are refused. Nothing is compiled."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from building import nvcc_or_skip
from gemm_ladder import build
from gemm_ladder.build import job, worker
from gemm_ladder.errors import InputError

ROOMS = ("include", "production", "training", "casts", "layers")  # that have headers of kernels


def job_of(source: str | Path, target: build.Target = "emulator", **options: object) -> job.Job:
    """The job of a build, without building it."""
    arguments = {"name": None, "defines": {}, "extra_flags": (), "sass_pass": None, **options}
    return job.Job.of(source, target, **arguments)


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
    assert [path.name for path in folders] == ["emulator", *ROOMS]
    assert all((path / "ptx.cuh").is_file() for path in folders[:2])


def test_cuda_never_sees_the_emulators_headers() -> None:
    nvcc_or_skip()
    folders = job_of("int x;\n", "cuda").include_dirs
    assert [path.name for path in folders] == [*ROOMS]
    assert set(folders) < set(job_of("int x;\n").include_dirs)


def test_header_in_an_extra_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "extra.cuh").write_text("// one\n")
    before = job_of('#include "extra.cuh"\n', extra_flags=[f"-I{tmp_path}"]).key()
    (tmp_path / "extra.cuh").write_text("// two\n")
    assert job_of('#include "extra.cuh"\n', extra_flags=[f"-I{tmp_path}"]).key() != before


def test_folder_of_headers_that_is_not_utf8(tmp_path: Path, no_builds: None) -> None:
    folder = tmp_path / os.fsdecode(b"\xfc")
    folder.mkdir()
    (folder / "kernel.cu").write_text("int x;\n")
    with pytest.raises(InputError, match=r"udcfc' is not UTF-8, which a build needs\."):
        build.compile(folder / "kernel.cu", target="emulator")


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
        build.compile(tmp_path / "kernel.cu", target="host")
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
