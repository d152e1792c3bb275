"""The repository's own order: what lies at the top, what is shipped, what must not be in it."""

from __future__ import annotations

import functools
import importlib
import re
import sys
import zipfile
from pathlib import Path

import pytest
from gemm_ladder.rungs import rungs
from repository import REPOSITORY, build_wheel, files

TOP = {
    *("README.md", "environment.yml", "pyproject.toml", "Makefile", "LICENSE"),
    *(".ci", ".gitignore", ".clang-format"),
    *("ref", "kernels", "lessons", "tests", "figures"),
}
# Folders that are only somebody's.
MACHINE_PATHS = re.compile(rb"(?<![\w.])/(?:root|home|Users|mnt|media|scratch)/\w")


@functools.cache
def project() -> dict:
    """pyproject.toml"""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((REPOSITORY / "pyproject.toml").read_text())


def test_top_level() -> None:
    assert {name.parts[0] for name in files()} <= TOP
    assert {name for name in TOP if name != "lessons"} <= {name.parts[0] for name in files()}


def test_no_large_file() -> None:
    assert [str(name) for name in files() if (REPOSITORY / name).stat().st_size > 1_000_000] == []


def test_no_path_of_a_machine() -> None:
    found = [
        f"{name}: {match[0].decode()}"
        for name in files()
        for match in MACHINE_PATHS.finditer((REPOSITORY / name).read_bytes())
        if name != Path("tests/test_house.py")
    ]
    assert found == []


def test_the_path_pattern_finds_what_it_should() -> None:
    assert MACHINE_PATHS.search(b'"/home/someone/x"') and MACHINE_PATHS.search(b"=/root/y")
    assert not MACHINE_PATHS.search(b"a/home/x") and not MACHINE_PATHS.search(b"https://host/home/x")


def test_readme_names_the_commands_and_the_rungs() -> None:
    text = (REPOSITORY / "README.md").read_text()
    for command in ("make compare", "make test", "make measure"):
        assert command in text
        assert re.search(rf"^{command.split()[1]}:", (REPOSITORY / "Makefile").read_text(), re.M)
    table = re.findall(r"^\| \[(s\d_\w+)\]\(\S+\) \| (.+?) \|", text, re.M)
    assert table == [(rung.name, rung.idea) for rung in rungs.values()]
    for link in re.findall(r"\]\(([^)#]+)\)", re.sub(r"(`+).+?\1", "", text, flags=re.S)):
        assert "://" in link or (REPOSITORY / link).exists(), link


def test_ci_runs_the_readers_command() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text().splitlines()


def test_conda_installs_the_same() -> None:
    """environment.yml leaves the packages to pip and pyproject.toml, with every extra that a CPU can use."""
    text = (REPOSITORY / "environment.yml").read_text()
    python = project()["project"]["requires-python"]
    conda = re.findall(r"^  - ([\w.-]+)(.*)$", text.partition("\ndependencies:\n")[2], re.M)
    assert conda == [("python", python), ("pip", ""), ("cxx-compiler", ""), ("pip", ":")]
    pip = re.findall(r"^      - (.+)$", text, re.M)
    assert len(pip) == 1
    extras = re.fullmatch(r"--editable \.\[(.+)\]", pip[0])[1].split(",")
    assert set(extras) == set(project()["project"]["optional-dependencies"]) - {"cuda"}


def test_cuda_parts_are_of_one_release() -> None:
    parts = project()["project"]["optional-dependencies"]["cuda"]
    assert len({part.split("==")[1] for part in parts}) == 1


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    """An installed package has the kernels, the emulator, the measurements, and nothing else."""
    shipped = {Path(name) for name in zipfile.ZipFile(build_wheel(tmp_path)).namelist()}
    folders = {"kernels": "gemm_ladder", "ref": "gemm_ladder/ref", "figures": "gemm_ladder/figures"}
    suffixes = (".py", ".pyi", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".json", ".html", ".css", ".js")
    expected = {
        Path(folders[name.parts[0]], *name.parts[1:])
        for name in files()
        if name.parts[0] in folders and (name.suffix in suffixes or name.name == "py.typed")
        if name.parts[:2] != ("kernels", "deep_gemm")  # a distribution of its own
    }
    assert {name for name in shipped if not name.parts[0].endswith(".dist-info")} == expected
