"""One product of the grid: its operands and reference, its times in three states, and faults."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gemm_ladder
import pytest
import torch
from gemm_ladder import api
from gemm_ladder.figures.everywhere import key_of
from gemm_ladder.measure import cells, peers, pool, problems, run, timing
from gemm_ladder.measure.operands import interface_call
from gemm_ladder.measure.shapes import Cell, Shape
from small_cells import CONTIGUOUS, DENSE, META, SMALL

CPU = torch.device("cpu")


@functools.cache
def store() -> pool.Pool:
    return pool.Pool(SMALL, CPU)


@pytest.fixture(autouse=True)
def few_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of 4 calls: the weights of small products would be 200."""
    monkeypatch.setattr(pool, "MAX_WEIGHTS", 4)


# ------------------------------------------------------------------------------------------ the operands


@pytest.mark.parametrize("cell", SMALL, ids=str)
def test_operands_and_reference(cell: Cell) -> None:
    """The result on the CPU is right by the pool's reference, which is the float64 one of `problems`."""
    made = store().operands(cell, 1)
    expected = pool.references(made)
    out = interface_call(api, made)()
    error = pool.errors(made.results(out), expected)
    assert error.right and error.relative > 1e-4
    worst = problems.Errors(0.0, 0.0)
    for mine, right, part in zip(made.results(out), expected, made.parts, strict=True):
        if part.shape.m:
            assert problems.errors(right, part.reference()).relative < 1e-5
            worst = worst.worst(problems.errors(mine, part.reference()))
    assert error.relative == pytest.approx(worst.relative, rel=1e-3)
    assert error.element == pytest.approx(worst.element, rel=1e-3)
    unscaled = pool.references(made, scaled=False)
    assert pool.errors(unscaled, [part.reference(scaled=False) for part in made.parts]).relative < 1e-5
    out[..., -1] = float("nan")
    assert not pool.errors(made.results(out), expected).right


@pytest.mark.parametrize("cell", SMALL, ids=str)
def test_weights_differ_and_a_does_not(cell: Cell) -> None:
    one, other = (store().operands(cell, index) for index in (0, 3))
    assert one.lhs[0].data_ptr() == other.lhs[0].data_ptr()
    begin, end = (made.rhs[0].data_ptr() for made in (one, other))
    assert end - begin >= 3 * cell.weights and begin % 1024 == end % 1024
    assert not torch.equal(one.rhs[0].view(torch.uint8), other.rhs[0].view(torch.uint8))
    assert not torch.equal(one.rhs[1], other.rhs[1])
    for tensor in (*one.lhs, *one.rhs, *other.rhs):
        assert tensor.data_ptr() % 16 == 0


def test_numbers_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    small, middle, large = (Cell("dense", 1, Shape(1, n, 4096)) for n in (128, 8192, 1 << 20))
    assert pool.weights_of(small) == pool.MAX_WEIGHTS == 200
    assert 4 * 10**8 <= pool.weights_of(middle) * middle.weights < 5 * 10**8
    assert pool.weights_of(large) == pool.MIN_WEIGHTS == 4
    assert pool.apart(middle) == middle.weights and pool.apart(large) == pool.APART


def test_chunks_do_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    made = store().operands(CONTIGUOUS)
    whole = pool.references(made)
    out = made.results(interface_call(api, made)())
    error = pool.errors(out, whole)
    monkeypatch.setattr(pool, "CHUNK", 128 * 10)
    for one, other in zip(pool.references(made), whole, strict=True):
        torch.testing.assert_close(one, other)
    assert pool.errors(out, whole) == pytest.approx(error)


def test_bf16_peer() -> None:
    for cell in SMALL:
        made = store().operands(cell)
        out = store().bf16_calls(made)(0)()
        assert pool.errors(made.results(out), pool.references(made)).relative < 1e-2


# ------------------------------------------------------------------------------------------ one product


def graphs(calls: list, device: object) -> list[float]:
    for call in calls:
        call()
    return [90.0, 100.0, 120.0]


@pytest.fixture
def result(two_libraries: None, monkeypatch: pytest.MonkeyPatch) -> run.Run:
    monkeypatch.setattr(timing, "graph_times", graphs)
    return run.Run(dict(META))


class Timer:
    """batch() runs every call once."""

    def __init__(self, fails: Callable[[Any], None] = lambda job: None) -> None:
        self.fails, self.asked = fails, []

    def batch(self, jobs: list) -> list[list[float]]:
        self.asked.append(len(jobs))
        for job in jobs:
            self.fails(job)
            job.call()
        return [[100.0 + turn] * job.calls for turn, job in enumerate(jobs)]


def how(timer: Timer | None = None, states: tuple[str, ...] = timing.STATES) -> cells.How:
    return cells.How(states, CPU, timer or Timer(), lambda text: None)


@pytest.mark.parametrize("cell", SMALL, ids=str)
def test_three_states(result: run.Run, cell: Cell) -> None:
    timer = Timer()
    assert cells.measure_cell(cell, store(), how(timer), result) is None
    assert not result.wrong and len(timer.asked) == 1
    found = {(row["impl"], row["l2"]): row for row in result.rows}
    assert {impl for impl, _ in found} == {"s9_production", "cublas_bf16"}
    assert {l2 for _, l2 in found} == set(timing.STATES) and len(found) == len(result.rows) == 6
    assert found["s9_production", "dirty"]["us"] == 100.0, "the better of two passes"
    graph = found["s9_production", "graph"]
    assert (graph["us"], graph["us_p10"], graph["us_p90"]) == (100.0, 90.0, 120.0)
    for row in result.rows:
        assert tuple(row) == run.COLUMNS and key_of(row) == run.key(cell)
        assert row["rows"] == sum(cell.counts) and 0 < row["rel_err"] < 1e-2
        assert row["tflops"] == float(f"{cell.flops / row['us'] / 1e6:.3f}")
    missing = {one["impl"] for one in result.missing}
    assert {"deep_gemm", "cublaslt_blockwise"} <= missing


def test_a_peer_that_is_wrong_is_missing(result: run.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        __name__ = "deep_gemm"

        @staticmethod
        def fp8_gemm_nt(a: object, b: object, d: torch.Tensor) -> None:
            d.fill_(1)

    monkeypatch.setattr(peers, "deep_gemm_library", lambda: Wrong)
    cells.measure_cell(DENSE, store(), how(), result)
    reasons = {one["impl"]: one["reason"] for one in result.missing}
    assert reasons["deep_gemm"].startswith("its result is another: ")
    assert "deep_gemm" not in {row["impl"] for row in result.rows} and not result.wrong


def test_ours_that_is_wrong_is_not_timed(result: run.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm_ladder, "fp8_gemm_nt", lambda a, b, d: d.fill_(1))
    cells.measure_cell(DENSE, store(), how(), result)
    assert {row["impl"] for row in result.rows} == {"cublas_bf16"}
    assert len(result.wrong) == 1 and "is wrong at 33x136x256" in result.wrong[0]


def test_a_peer_that_cannot_be_captured(result: run.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(calls: list, device: object) -> list[float]:
        if isinstance(calls[0](), list):  # only the BF16 peer returns a list
            raise RuntimeError("operation not permitted when stream is capturing")
        return [100.0]

    monkeypatch.setattr(timing, "graph_times", capture)
    cells.measure_cell(DENSE, store(), how(), result)
    assert {(row["impl"], row["l2"]) for row in result.rows} == {
        *(("s9_production", state) for state in timing.STATES),
        *(("cublas_bf16", state) for state in ("dirty", "clean")),
    }
    reasons = {one["impl"]: one["reason"] for one in result.missing}
    assert reasons["cublas_bf16"] == "in a graph: operation not permitted when stream is capturing"


def test_one_that_the_profiler_loses(result: run.Run) -> None:
    """The others are timed without it."""

    def lose(job: Any) -> None:
        if isinstance(job.call(), list):
            raise timing.ProfilerError("lost")

    timer = Timer(lose)
    cells.measure_cell(DENSE, store(), how(timer, ("dirty", "clean")), result)
    assert timer.asked == [8, 4, 4]
    assert {row["impl"] for row in result.rows} == {"s9_production"}
    assert {"impl": "cublas_bf16", "shape": str(DENSE), "reason": "lost"} in result.missing


def test_a_product_that_does_not_fit(result: run.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(operands: object, scaled: bool) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(pool, "references", full)
    assert cells.measure_cell(DENSE, store(), how(), result) is None
    assert result.missing[-1]["impl"] == "all" and not result.rows and result.left([DENSE]) == []


# ------------------------------------------------------------------------------------------------ faults


def test_a_peer_that_faults_is_named_and_skipped(
    result: run.Run, faults: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Faulty:
        __name__ = "deep_gemm"

        @staticmethod
        def fp8_gemm_nt(a: object, b: object, d: torch.Tensor) -> None:
            faults.append(d)

    monkeypatch.setattr(peers, "deep_gemm_library", lambda: Faulty)
    fault = cells.measure_cell(DENSE, store(), how(), result)
    assert fault and (fault["impl"], fault["shape"]) == ("deep_gemm", str(DENSE))
    assert "illegal memory access" in fault["reason"] and not result.rows and not result.wrong
    faults.clear()
    assert cells.measure_cell(DENSE, store(), how(), result, {fault["impl"]}) is None
    assert {row["impl"] for row in result.rows} == {"s9_production", "cublas_bf16"}
    (missing,) = [one for one in result.missing if one["impl"] == "deep_gemm"]
    assert missing["reason"].startswith("its kernel faults: ")


def test_ours_that_faults_is_wrong(result: run.Run, faults: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        faults.append(arguments)

    monkeypatch.setattr(gemm_ladder, "fp8_gemm_nt", fail)
    fault = cells.measure_cell(DENSE, store(), how(), result)
    assert fault and fault["impl"] == "s9_production" and len(result.wrong) == 1
    assert "s9_production fails at 33x136x256: CUDA error" in result.wrong[0]


def test_a_fault_while_all_are_timed_is_found_one_by_one(result: run.Run, faults: list) -> None:
    def fail(job: Any) -> None:
        if isinstance(job.call(), list):
            faults.append(job)
            raise RuntimeError("CUDA error")

    fault = cells.measure_cell(DENSE, store(), how(Timer(fail)), result)
    assert fault and fault["impl"] == cells.ANY and not result.rows
    faults.clear()
    fault = cells.measure_cell(DENSE, store(), how(Timer(fail)), result, {cells.ANY})
    assert fault and fault["impl"] == "cublas_bf16" and not result.rows


def test_a_fault_in_a_graph(result: run.Run, faults: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(calls: list, device: object) -> list[float]:
        if isinstance(calls[0](), list):
            faults.append(calls)
            raise RuntimeError("CUDA error")
        return [100.0]

    monkeypatch.setattr(timing, "graph_times", fail)
    fault = cells.measure_cell(DENSE, store(), how(), result)
    assert fault and fault["impl"] == "cublas_bf16" and not result.rows
