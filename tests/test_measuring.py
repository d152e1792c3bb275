"""How one product is measured: its problem and peers, its times, and what is wrong or faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gemm_ladder import utils
from gemm_ladder.errors import LaunchError
from gemm_ladder.figures import measured as measurements
from gemm_ladder.measure import fences, ladder_rows, peers, problems, records, session, timing
from gemm_ladder.measure.product import How
from gemm_ladder.measure.shapes import DEEPSEEK_V3, MEASURED, Shape
from gemm_ladder.measure.variants import changed
from gemm_ladder.ref import fp8, gemm, metrics
from gemm_ladder.rungs import rungs

CPU = torch.device("cpu")
RAGGED = Shape(100, 72, 200)
SMALL = Shape(64, 128, 256)


def codes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.uint8).numpy()


# ---------------------------------------------------------------------------------------- the problem


@pytest.mark.parametrize("shape", [SMALL, RAGGED], ids=str)
def test_problem_is_the_references(shape: Shape) -> None:
    problem = problems.make_problem(shape, "cpu", seed=3)
    x = torch.randn(shape.m, shape.k, generator=torch.Generator().manual_seed(3))
    a, sfa = fp8.per_token_cast_to_fp8(x.numpy())
    assert np.array_equal(codes(problem.a), a.view(np.uint8)) and np.array_equal(problem.sfa.numpy(), sfa)
    assert problem.sfa.stride() == (1, -(-shape.m // 4) * 4)

    b, sfb = utils.per_block_cast_to_fp8(3 * x)
    other, scales = fp8.per_block_cast_to_fp8(3 * x.numpy())
    assert np.array_equal(codes(b), other.view(np.uint8)) and np.array_equal(sfb.numpy(), scales)

    exact = gemm.dense(codes(problem.a), problem.sfa.numpy(), codes(problem.b), problem.sfb.numpy())
    np.testing.assert_allclose(problem.reference().numpy(), exact, rtol=0, atol=1e-12 * np.abs(exact).max())
    unscaled = fp8.decode(codes(problem.a)).astype(float) @ fp8.decode(codes(problem.b)).astype(float).T
    np.testing.assert_allclose(problem.reference(scaled=False).numpy(), unscaled, rtol=1e-12)
    assert problem.output().isnan().all()


def test_errors() -> None:
    reference = problems.make_problem(Shape(64, 1024, 256), "cpu").reference()
    rounded = reference.bfloat16()
    found = problems.errors(rounded, reference)
    assert found.right
    assert found.relative == pytest.approx(
        metrics.relative_error(rounded.double().numpy(), reference.numpy())
    )

    element = rounded.clone()
    element[5, 7] += reference[5].square().mean().sqrt() / 4
    assert not problems.errors(element, reference).right
    unwritten = rounded.clone()
    unwritten[63, 1023] = float("nan")
    assert not problems.errors(unwritten, reference).right
    scale = rounded.clone()
    scale[:, :128] *= 1.02
    assert not problems.errors(scale, reference).right


# ---------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("shape", [*DEEPSEEK_V3, Shape(100, 256, 384)], ids=str)
def test_block_scales_are_laid_out_as_torch_wants_them(shape: Shape) -> None:
    """On the meta device torch checks shapes and strides, and computes nothing."""
    m, n, k = shape

    def empty(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*sizes, dtype=dtype, device="meta")

    e4m3 = torch.float8_e4m3fn
    blocks = k // 128
    sfa, sfb = empty(blocks, -(-m // 4) * 4).T[:m], empty(-(-n // 128), blocks)
    problem = problems.Problem(shape, empty(m, k, dtype=e4m3), sfa, empty(n, k, dtype=e4m3), sfb)
    assert peers.cublaslt_blockwise(problem)().shape == (m, n)


def test_bf16_peer() -> None:
    problem = problems.make_problem(RAGGED, "cpu")
    assert problems.errors(peers.cublas_bf16(problem)(), problem.reference()).relative < 1e-2


# --------------------------------------------------------------------------------------------- timing


def test_between_markers() -> None:
    marker = ("void at::cuda::spin_kernel(long)", 1.0)
    noise = ("fill", 2700.0)
    kernels = [noise, marker, ("a", 3.0), ("b", 4.0), marker, noise, ("sum", 9.0), marker, ("a", 5.0), marker]
    assert timing.between_markers(kernels, 2) == [7.0, 5.0]
    assert timing.between_markers([noise, marker, marker], 1) == [0.0]
    with pytest.raises(timing.ProfilerError, match="3 markers; 4 are needed"):
        timing.between_markers(kernels[:-1], 2)


def test_number_of_calls() -> None:
    assert timing.calls_for(3.0) == timing.MIN_CALLS
    assert timing.calls_for(1e-5) == timing.calls_for(0.0) == timing.MAX_CALLS
    assert timing.MIN_CALLS < timing.calls_for(timing.PASS_SECONDS / 10) < timing.MAX_CALLS


def test_the_slowest_rung_does_not_take_minutes() -> None:
    """s1_naive, at its half a TFLOPS, and the largest problem: a check, a trial and every measured call."""
    seconds = max(shape.flops for shape in MEASURED) / 0.48e12
    assert (2 + 2 * len(timing.L2_STATES) * timing.calls_for(seconds)) * seconds < 60


class FakeTimer:
    """Plays back times; remembers what it was asked for."""

    def __init__(self, times: Callable[[str, str, int], list[float]]) -> None:
        self.times, self.asked = times, []

    def __call__(self, call: Callable[[], object], l2: str, calls: int) -> list[float]:
        name = call()
        self.asked.append((name, l2, calls))
        return self.times(name, l2, sum(asked[:2] == (name, l2) for asked in self.asked))


def test_timing_makes_two_passes_in_opposite_order_and_keeps_the_better() -> None:
    def times(name: str, l2: str, turn: int) -> list[float]:
        base = 10.0 if (turn == 1) == (name == "a") else 20.0
        return [base + i for i in range(11)]

    timer = FakeTimer(times)
    timings, failures = timing.measure(
        {"a": lambda: "a", "b": lambda: "b"}, {"a": 20, "b": 3}, ["dirty", "clean"], timer
    )
    assert timer.asked == [
        (name, l2, {"a": 20, "b": 3}[name]) for name in "abba" for l2 in ("dirty", "clean")
    ]
    assert timings == {
        (name, l2): timing.Timing(15.0, 11.0, 19.0) for name in "ab" for l2 in ("dirty", "clean")
    }
    assert not failures


def test_one_that_fails_does_not_stop_the_others() -> None:
    def times(name: str, l2: str, turn: int) -> list[float]:
        if name == "b" and turn == 2:
            raise RuntimeError("lost\nits way")
        return [1.0]

    timings, failures = timing.measure(
        {"a": lambda: "a", "b": lambda: "b"}, {"a": 1, "b": 1}, ["dirty"], FakeTimer(times)
    )
    assert list(timings) == [("a", "dirty")]
    assert failures == {"b": "lost its way"}


def test_row() -> None:
    row = records.row("cublas_bf16", Shape(64, 128, 256), "clean", timing.Timing(2.0, 1.5, 3.0), 0.00123456)
    assert tuple(row) == measurements.ROW_FIELDS
    assert row["tflops"] == round(2 * 64 * 128 * 256 / 2.0 / 1e6, 3)
    assert row["gb_s"] == round(2 * (64 * 256 + 128 * 256 + 64 * 128) / 2.0 / 1e3, 1)
    assert row["rel_err"] == 0.00123


# -------------------------------------------------------------------------------- measuring one shape


def how(timer: timing.Timer, states: tuple[str, ...] = ("dirty",)) -> How:
    """Measuring on the CPU, with a timer of one's own."""
    return How(states, CPU, timer, lambda text: None)


def measured(kernels: list, others: dict[str, peers.Peer], shape: Shape) -> session.Measured:
    """measure_shape on the CPU: the real rungs, a timer that runs each call once."""
    result = session.Measured(meta=dict.fromkeys(measurements.META_FIELDS, "1"))

    def timer(call: Callable[[], object], l2: str, calls: int) -> list[float]:
        call()
        return [100.0] * calls

    ladder_rows.measure_shape(shape, kernels, others, how(timer, ("dirty", "clean")), result)
    return result


def test_measure_shape() -> None:
    def refuses(problem: problems.Problem) -> peers.Call:
        raise ValueError("not this one")

    def another_product(problem: problems.Problem) -> peers.Call:
        return lambda: 2 * problem.reference().bfloat16()

    def unscaled(problem: problems.Problem) -> peers.Call:
        return lambda: problem.reference(scaled=False).bfloat16()

    others = {
        "refuses": refuses,
        "another": another_product,
        "cublaslt_tensorwise": unscaled,
        "cublas_bf16": peers.cublas_bf16,
    }
    result = measured([rungs["s1_naive"], rungs["s3_wgmma"]], others, RAGGED)
    assert not result.wrong
    assert {(row["impl"], row["l2"]) for row in result.rows} == {
        (impl, l2) for impl in ("s1_naive", "cublaslt_tensorwise", "cublas_bf16") for l2 in ("dirty", "clean")
    }
    assert all(0 < row["rel_err"] < 1e-2 for row in result.rows)
    missing = {miss["impl"]: miss["reason"] for miss in result.missing}
    assert missing.keys() == {"s3_wgmma", "refuses", "another"}
    assert missing["refuses"] == "not this one" and "multiple of 128" in missing["s3_wgmma"]
    assert missing["another"].startswith("its result is another")
    measurements.check(result.data, "result")
    assert result.data["meta"]["not_measured"] == result.missing


def test_a_rung_that_cannot_be_launched_is_wrong() -> None:
    class Unlaunchable(WrongRung):
        def __call__(self, lhs: tuple, rhs: tuple, out: torch.Tensor) -> None:
            raise LaunchError("kernel launch: too many resources")

    result = measured([Unlaunchable("broken"), rungs["s1_naive"]], {}, SMALL)
    assert result.wrong == ["broken fails at 64x128x256: kernel launch: too many resources"]
    assert {row["impl"] for row in result.rows} == {"s1_naive"}


def test_a_kernel_that_faults_is_wrong_and_ends_the_measurement() -> None:
    """torch reports the fault as a RuntimeError, in this call and in every later one."""

    class Faulting(WrongRung):
        def __call__(self, lhs: tuple, rhs: tuple, out: torch.Tensor) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand much advice")

    result = session.Measured()
    goes_on = ladder_rows.measure_shape(SMALL, [Faulting(), rungs["s3_wgmma"]], {}, how(one_us), result)
    assert not goes_on and not result.rows and result.errors == {}
    assert result.wrong == [
        "s1_naive fails at 64x128x256: CUDA error: an illegal memory access was encountered and much advice",
        "Nothing more is measured after 64x128x256: a kernel has faulted on the GPU.",
    ]


def test_after_a_fault_no_other_shape_is_tried(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulting(WrongRung):
        def __call__(self, lhs: tuple, rhs: tuple, out: torch.Tensor) -> None:
            raise RuntimeError("CUDA error")

    result = ladder_rows.on_gpu([Faulting()], [SMALL, RAGGED], ["dirty"], CPU, others={})
    assert len(result.wrong) == 2 and not any(str(RAGGED) in sentence for sentence in result.wrong)


def one_us(call: Callable[[], object], l2: str, calls: int) -> list[float]:
    return [1.0] * calls


@pytest.mark.parametrize("when", ["first", "timer"])
def test_a_rung_whose_timing_fails_is_wrong(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are timed."""
    if when == "first":

        def seconds_of(call: Callable[[], object], device: torch.device) -> float:
            if call.__closure__ and any(cell.cell_contents is bad for cell in call.__closure__):
                raise RuntimeError("lost")
            return 1.0

        monkeypatch.setattr(timing, "seconds_of", seconds_of)

    def timer(call: Callable[[], object], l2: str, calls: int) -> list[float]:
        if any(cell.cell_contents is bad for cell in call.__closure__):
            raise timing.ProfilerError("lost")
        return [1.0] * calls

    bad, result = rungs["s3_wgmma"], session.Measured()
    assert ladder_rows.measure_shape(SMALL, [bad, rungs["s1_naive"]], {}, how(timer), result)
    assert result.wrong == ["s3_wgmma fails at 64x128x256 while it is timed: lost"]
    assert not result.missing
    assert {row["impl"] for row in result.rows} == {"s1_naive"}


def test_a_fault_while_timing_is_blamed_on_the_first_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fault every call fails; only the first is reported."""
    synchronize, faults = timing.synchronize, []

    def broken(device: torch.device) -> None:
        if faults:
            raise RuntimeError("CUDA error")
        synchronize(device)

    def timer(call: Callable[[], object], l2: str, calls: int) -> list[float]:
        faults.append(call)
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(timing, "synchronize", broken)
    result = session.Measured()
    ladder = [rungs["s1_naive"], rungs["s3_wgmma"]]
    others = {"cublas_bf16": peers.cublas_bf16}
    assert not ladder_rows.measure_shape(SMALL, ladder, others, how(timer), result)
    assert result.wrong == [
        "s1_naive fails at 64x128x256 while it is timed: CUDA error",
        "Nothing more is measured after 64x128x256: a kernel has faulted on the GPU.",
    ]
    assert not result.missing and not result.rows


def test_a_peer_that_faults_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = []

    def broken(device: torch.device) -> None:
        if faults:
            raise RuntimeError("CUDA error")

    def peer(problem: problems.Problem) -> peers.Call:
        faults.append(problem)
        return problem.output

    monkeypatch.setattr(timing, "synchronize", broken)
    result = measured([], {"peer": peer, "cublas_bf16": peers.cublas_bf16}, SMALL)
    assert [miss["impl"] for miss in result.missing] == ["peer"]
    assert len(result.wrong) == 1 and result.wrong[0].startswith("Nothing more is measured after 64x128x256")


@dataclasses.dataclass(frozen=True)
class WrongRung:
    """The naive rung without the last row of its result."""

    name: str = "s1_naive"

    def supports(self, m: int, n: int, k: int) -> None:
        return None

    def build(self, target: str) -> None:
        """Nothing to build."""

    def __call__(self, lhs: tuple, rhs: tuple, out: torch.Tensor) -> None:
        (a, sfa), (b, sfb) = lhs, rhs
        product = problems.dequantize(a, sfa, 1) @ problems.dequantize(b, sfb, 128).T
        out[:-1] = product[:-1].bfloat16()


def test_a_wrong_rung_is_not_timed() -> None:
    result = measured([WrongRung()], {}, SMALL)
    assert not result.rows and not result.errors["s1_naive"].right
    assert len(result.wrong) == 1 and result.wrong[0].startswith("s1_naive is wrong at 64x128x256: ")


def test_the_worst_error_of_all_shapes_is_kept() -> None:
    nan, small, large = (problems.Errors(value, 1.5) for value in (float("nan"), 1.0, 2.0))
    assert small.worst(large) == large.worst(small) == (2.0, 1.5)
    assert np.isnan(nan.worst(small).relative) and np.isnan(small.worst(nan).relative)


# ------------------------------------------------------------------------------------- changed rungs


def test_the_arrival_moves_behind_the_stores() -> None:
    """Only the two lines move; a rung that ends otherwise is refused."""
    variants = fences.VARIANTS
    before, after = (
        variants[name].source.splitlines()
        for name in ("as it is", "the last cluster arrive after the stores")
    )
    assert sorted(before) == sorted(after) and before != after
    arrive, wait = "ptx::barrier_cluster_arrive();", "ptx::barrier_cluster_wait();"
    at = max(index for index, line in enumerate(after) if line.strip().startswith(wait))
    assert after[at - 1].strip().startswith(arrive)
    assert after.index("    __syncwarp();", at - 4) < at
    with pytest.raises(ValueError, match="does not end with"):
        fences.arrive_after_stores(changed("s4_tma"))


# ---------------------------------------------------------------------------------------- with a GPU


@pytest.mark.gpu
def test_kernel_timer() -> None:
    """A copy of 1 GiB moves 2 GiB at 1 to 5 TB/s, L2 clean or dirty."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    timer = timing.KernelTimer(source.device)
    for l2 in timing.L2_STATES:
        times = timer(lambda: target.copy_(source), l2, 3)
        assert len(times) == 3 and all(2**31 / 5e6 < us < 2**31 / 1e6 for us in times)


@pytest.mark.gpu
def test_on_gpu() -> None:
    shape = Shape(64, 256, 512)
    device, _ = session.find_gpu()
    result = ladder_rows.on_gpu(list(rungs.values()), [shape], ["dirty"], device)
    assert not result.wrong
    measurements.check(result.data, "result")
    found = {row["impl"] for row in result.rows}
    assert found >= {name for name in rungs if name != "s0_numpy"} | {"cublas_bf16", "cublaslt_tensorwise"}
    assert found | {miss["impl"] for miss in result.missing} >= peers.PEERS.keys()
    assert all(row["us_p10"] <= row["us"] <= row["us_p90"] for row in result.rows)
