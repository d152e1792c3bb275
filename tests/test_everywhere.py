"""The command everywhere: many products, runs that end early and go on, and what is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import gemm_ladder
import pytest
import torch
from gemm_ladder import drop_in, precompiling
from gemm_ladder.cli import main
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.figures import everywhere as figure
from gemm_ladder.figures.everywhere import key_of
from gemm_ladder.measure import (
    everywhere,
    grid,
    peers,
    pool,
    problems,
    records,
    run,
    session,
    timing,
    warming,
)
from gemm_ladder.measure.shapes import Cell, Shape
from small_cells import DENSE, MASKED, META, SMALL

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of 4 calls: the weights of small products would be 200."""
    monkeypatch.setattr(pool, "MAX_WEIGHTS", 4)


# --------------------------------------------------------------------------------------------- many, resumed


@pytest.fixture
def small(two_libraries: None, monkeypatch: pytest.MonkeyPatch) -> list:
    """A grid of three products. Returns what was compiled."""
    built: list = []
    monkeypatch.setattr(precompiling, "build_all", lambda configs, target: built.append(configs))
    monkeypatch.setattr(grid, "subset", lambda: list(SMALL[:2]))
    monkeypatch.setattr(grid, "grid", lambda: list(SMALL))
    monkeypatch.setattr(run, "SAVED_EVERY", 1)
    return built


def test_a_run_and_the_one_that_goes_on(small: list, tmp_path: Path) -> None:
    path = tmp_path / "kept" / "everywhere.json"
    first = run.measure(SMALL[:1], timing.STATES, CPU, path)
    assert first.unfinished == 0 and [len(configs) for configs in small] == [1]
    assert len([one for one in first.missing if one["impl"] == "deep_gemm"]) == 1
    second = run.measure(SMALL, timing.STATES, CPU, path)
    assert [len(configs) for configs in small] == [1, 2]
    assert second.rows[: len(first.rows)] == first.rows and second.left(SMALL) == []
    assert len({(*key_of(row), row["impl"], row["l2"]) for row in second.rows}) == len(second.rows) == 18
    third = run.measure(SMALL, timing.STATES, CPU, path)
    assert third.rows == second.rows and len(small) == 2
    assert [one for one in third.missing if one["impl"] == "deep_gemm"] == [
        {"impl": "deep_gemm", "shape": run.EVERY, "reason": "No module named 'deep_gemm'"}
    ]
    assert {key_of(row) for row in third.of([DENSE]).rows} == {run.key(DENSE)}


def test_other_sources_begin_anew(small: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    run.measure(SMALL, timing.STATES, CPU, path)
    monkeypatch.setattr(records, "machine", lambda device, flush: META | {"sources": 64 * "f"})
    again = run.measure(SMALL[:1], timing.STATES, CPU, path)
    assert {key_of(row) for row in again.rows} == {run.key(DENSE)}


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"mine": 1}')
    with pytest.raises(InputError, match="is not a file that this command wrote"):
        run.resumed(path, META)
    assert path.read_text() == '{"mine": 1}'


def test_a_run_that_is_over_time(small: list, tmp_path: Path) -> None:
    found = run.measure(SMALL, timing.STATES, CPU, tmp_path / "x.json", minutes=0)
    assert found.unfinished == 3 and not found.rows and not small


def test_what_does_not_fit_is_noted(small: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Little(pool.Pool):
        def __init__(self, chosen: list[Cell], device: torch.device) -> None:
            if SMALL[1] in chosen:
                raise torch.cuda.OutOfMemoryError
            super().__init__(chosen, device)

    assert max(SMALL, key=pool.elements) == SMALL[1]
    monkeypatch.setattr(pool, "Pool", Little)
    found = run.measure(SMALL, timing.STATES, CPU, tmp_path / "x.json")
    assert {
        "impl": "all",
        "shape": str(SMALL[1]),
        "reason": "it does not fit the memory of the GPU",
    } in found.missing
    assert found.unfinished == 0 and found.left(SMALL) == [] and len(found.rows) == 12
    assert not run.measure(SMALL[1:2], timing.STATES, CPU).rows


def test_after_a_fault_the_next_run_skips_it(
    small: list, faults: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"

    def faulty(problem: problems.Problem) -> peers.Call:
        if problem.shape == DENSE.shape:
            faults.append(problem)
        raise ValueError("not this one")

    monkeypatch.setattr(peers, "cublaslt_blockwise", faulty)
    first = run.measure(SMALL, timing.STATES, CPU, path)
    assert first.unfinished == 3 and not first.rows
    assert [(one["impl"], one["shape"]) for one in first.faults] == [("cublaslt_blockwise", str(DENSE))]
    faults.clear()
    second = run.measure(SMALL, timing.STATES, CPU, path)
    assert second.unfinished == 0 and second.left(SMALL) == [] and second.faults == first.faults
    assert not faults


# ------------------------------------------------------------------------------------------- the command


def test_the_command(
    small: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list = []
    monkeypatch.setattr(session, "keep", lambda *arguments: kept.append(arguments))
    path = tmp_path / "mine.json"
    assert main(["everywhere", "--json", str(path), "--minutes", "0"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 products are not measured yet: run this again to go on." in printed
    assert main(["everywhere", "--json", str(path)]) == 0
    assert main(["everywhere", "--json", str(path), "--all"]) == 0
    printed = capsys.readouterr().out
    assert "Weights of the models that cannot be multiplied: " in printed
    assert "deep_gemm at every product: No module named 'deep_gemm'" in printed
    assert [(whole, record) for _, _, whole, record, _ in kept] == [
        (False, "everywhere.json"),
        (True, "everywhere.json"),
        (True, "everywhere.json"),
    ]
    assert len(figure.load(path)["rows"]) == 18
    of_subset = kept[-1][0]
    assert {key_of(row) for row in of_subset.rows} == {run.key(cell) for cell in SMALL[:2]}


def test_the_cache_folder_has_what_was_measured(small: list, folder: Path) -> None:
    folder.mkdir()
    assert everywhere.main(["--minutes", "0", "--fresh"]) == 0
    assert not (folder / "everywhere.json").exists()


def test_a_launch_that_fails(small: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise LaunchError("too many resources")

    monkeypatch.setattr(gemm_ladder, "fp8_gemm_nt", fails)
    assert main(["everywhere", "--json", str(tmp_path / "x.json")]) == 1


def test_deep_gemm_in_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's copy is found without importing vLLM, and only if there is no other."""
    package = tmp_path / "vllm" / "third_party" / "deep_gemm"
    package.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "__init__.py").write_text("__version__ = '0'")
    with pytest.raises(ModuleNotFoundError, match="No module named 'deep_gemm'"):
        peers.deep_gemm_library()
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert peers.deep_gemm_library().__file__ == str(package / "__init__.py")
    finally:
        sys.modules.pop("deep_gemm", None)


def test_this_package_is_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where deep_gemm is this package, what it would be compared with is another DeepGEMM, or nothing."""
    monkeypatch.setitem(sys.modules, "deep_gemm", gemm_ladder)
    monkeypatch.setattr(drop_in, "another", lambda: None)
    with pytest.raises(
        ImportError, match="deep_gemm is GEMM Ladder here, and no other DeepGEMM is installed"
    ):
        peers.deep_gemm_library()
    monkeypatch.setattr(drop_in, "another", lambda: pytest)
    assert peers.deep_gemm_library() is pytest


def test_compiling_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of `warming` calls the library with every product that it is given, whatever one of them
    does."""
    called: list[tuple[int, ...]] = []

    class Library:
        __name__ = "deep_gemm"

        @staticmethod
        def fp8_gemm_nt(lhs: Any, rhs: Any, d: torch.Tensor) -> None:
            called.append((*lhs[0].shape, len(rhs[0])))
            raise RuntimeError("not this one")

        @staticmethod
        def m_grouped_fp8_gemm_nt_masked(lhs: Any, rhs: Any, d: object, rows: object, expected: int) -> None:
            called.append((*lhs[0].shape, expected))

    given = json.dumps([dataclasses.astuple(cell) for cell in (DENSE, MASKED)])
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    monkeypatch.setattr(session, "find_gpu", lambda: (CPU, "GPU"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(peers, "deep_gemm_library", lambda: Library)
    assert warming.main() == 0
    assert called == [(33, 256, 136), (8, 40, 384, MASKED.expected_m)]
    assert warming.small(DENSE) and not warming.small(Cell("contiguous", 256, Shape(16, 4096, 7168)))
    with warming.warming([DENSE]) as wait:
        wait()


@pytest.mark.gpu
def test_on_gpu(tmp_path: Path) -> None:
    device, _ = session.find_gpu()
    assert device is not None
    chosen = [*SMALL, dataclasses.replace(DENSE, shape=Shape(1, 512, 1024))]
    result = run.measure(chosen, timing.STATES, device, tmp_path / "x.json")
    assert not result.wrong and not result.faults and result.unfinished == 0
    ours = [(key_of(row), row["l2"]) for row in result.rows if row["impl"] == "s9_production"]
    assert len(ours) == 3 * len(chosen)
