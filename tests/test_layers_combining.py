"""The sum of the experts' rows, bit by bit: by the kernel, on the emulator and on a GPU, and by torch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from building import disassembler_or_skip
from cast_cases import numbers, spaced
from gemm_ladder import launch
from gemm_ladder.casts.kernel import INPUTS
from gemm_ladder.checks import grouped
from gemm_ladder.errors import BuildError, LaunchError
from gemm_ladder.layers import combining
from gemm_ladder.ref import gemm, tensor_core
from gemm_ladder.sass import disassembly
from numba import njit
from torch._subclasses import FakeTensorMode

BF16 = torch.bfloat16
OUTSIDE = (-1, 40, 2**31, 2**32 + 3, -(2**31), 2**63 - 1, -(2**63))  # for 40 rows
MARGIN = 64  # elements on each side of the sums


@njit(error_model="numpy")
def added(rows: np.ndarray, places: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """float32 [tokens, hidden]: the definition, number by number."""
    sums = np.zeros((places.shape[0], rows.shape[1]), np.float32)
    for token in range(places.shape[0]):
        for choice in range(places.shape[1]):
            place = places[token, choice]
            for column in range(rows.shape[1]):
                if 0 <= place < rows.shape[0]:
                    row, factor = rows[place, column], factors[token, choice]
                    sums[token, column] = tensor_core.fma(factor, row, sums[token, column])
    return sums


def expected(rows: torch.Tensor, places: torch.Tensor, factors: torch.Tensor, dtype: torch.dtype):
    factors = factors.bfloat16().float().cpu().numpy()
    with np.errstate(invalid="ignore"):
        sums = gemm.to_bf16(added(rows.float().cpu().numpy(), places.cpu().numpy(), factors))
    return torch.from_numpy(sums.astype(np.float32)).to(BF16).to(dtype)


def check_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Bit by bit, but for the bits of NaN."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    bits = torch.int32 if found.dtype == torch.float32 else torch.int16
    found, wanted = found.cpu(), wanted.cpu()
    assert torch.equal(found.isnan(), wanted.isnan())
    found, wanted = (one.masked_fill(one.isnan(), 0) for one in (found, wanted))
    assert torch.equal(found.view(bits), wanted.view(bits))


def choices(tokens: int, top_k: int, factor: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of 40 rows, some of them no row's, with factors of NaN for those; and factors of both signs."""
    rng = np.random.default_rng(tokens + top_k)
    places, factors = rng.integers(0, 40, (tokens, top_k)), rng.normal(size=(tokens, top_k))
    nowhere = rng.random((tokens, top_k)) < 0.2
    places[nowhere] = rng.choice(OUTSIDE, nowhere.sum())
    factors[nowhere] = np.nan
    return torch.from_numpy(places).to(device), torch.from_numpy(factors).to(factor).to(device)


def by_kernel(rows: torch.Tensor, places: torch.Tensor, factors: torch.Tensor | None, dtype: torch.dtype):
    """The kernel's sums, with canaries around them."""
    size = len(places) * rows.shape[1]
    memory = torch.full((2 * MARGIN + size,), 77.0, dtype=dtype, device=rows.device)
    out = memory[MARGIN : MARGIN + size].view(len(places), rows.shape[1])
    combining.run(rows, places, factors, out)
    assert (memory[:MARGIN] == 77).all() and (memory[MARGIN + size :] == 77).all()
    return out


@pytest.mark.parametrize("dtype", INPUTS, ids=str)
@pytest.mark.parametrize("factor", INPUTS, ids=str)
def test_numbers(factor: torch.dtype, dtype: torch.dtype, device: str) -> None:
    """Rows of a part of a thread block, and of two; one choice, and more than a thread has at once."""
    rows = numbers((40, 1040), BF16)
    for tokens, top_k, hidden in ((5, 8, 144), (3, 2, 1040), (7, 1, 16), (2, 16, 64), (3, 11, 8)):
        given = rows[:, :hidden].contiguous().to(device), *choices(tokens, top_k, factor, device)
        wanted = expected(*given, dtype)
        check_same(by_kernel(*given, dtype), wanted)
        check_same(combining.combined(*given, dtype), wanted)
    ones = *given[:2], torch.ones_like(given[2])
    for run in (by_kernel, combining.combined):
        check_same(run(*given[:2], None, dtype), expected(*ones, dtype))


def test_numbers_that_underflow(device: str) -> None:
    """Products below what FP32 has, whose fused sums are rounded once; sums that BF16 rounds to infinity."""
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(np.ldexp(rng.normal(size=(40, 256)), rng.integers(-80, -60, (40, 256)))).to(BF16)
    rows[:, :64] = torch.finfo(BF16).max
    places, factors = choices(20, 6, torch.float32, "cpu")
    factors[5:] = torch.ldexp(factors[5:], torch.from_numpy(rng.integers(-75, -60, factors[5:].shape)))
    factors[:5] = 0.50001
    given = rows.to(device), places.to(device), factors.to(device)
    wanted = expected(*given, torch.float32)
    assert wanted.isinf().any() and ((wanted != 0) & (wanted.abs() < 2e-38)).any()
    check_same(by_kernel(*given, torch.float32), wanted)
    check_same(combining.by_torch(*given, torch.float32), wanted)


def test_a_sum_of_minus_zero_stays_one(device: str) -> None:
    """A negative product below what FP32 has is rounded to -0, which what is no row has to leave as it is."""
    rows = torch.full((1, 16), -(2.0**-80), dtype=BF16, device=device)
    for top_k in (1, 8, 11):
        places = torch.full((2, top_k), -1, device=device)
        places[0, 0] = 0
        given = rows, places, torch.full((2, top_k), 2.0**-80, device=device)
        for run in (by_kernel, combining.by_torch, expected):
            found = run(*given, torch.float32).signbit()
            assert found[0].all() and not found[1].any()


def test_strides(device: str) -> None:
    """Rows apart, not at multiples of 16 bytes, turned, none; places and factors of any strides."""
    rows = numbers((40, 144), BF16)
    places, factors = choices(6, 3, torch.float32, device)
    wanted = expected(rows, places, factors, BF16)
    for options in ({"gap": 16}, {"gap": 3}, {"offset": 1}, {"column": 2}, {"turned": True}):
        placed = spaced(rows, device, **options)
        check_same(by_kernel(placed, places, factors, BF16), wanted)
    rows = rows.to(device)
    turned = places.t().contiguous().t(), torch.nn.functional.pad(factors, (1, 2))[:, 1:-2].double()
    check_same(by_kernel(rows, *turned, BF16), wanted)
    check_same(combining.combined(rows, places, factors.view(-1)), wanted)
    for run in (by_kernel, combining.by_torch):
        assert not run(rows[:0], places, factors, BF16).any()
        assert not run(rows, places[:, :0], factors[:, :0], BF16).any()
    assert combining.combined(rows, places[:0], factors[:0]).shape == (0, 144)


def test_operator(device: str) -> None:
    rows, (places, factors) = numbers((40, 144), BF16)[10:].to(device), choices(6, 3, torch.float32, device)
    rows, factors = rows.nan_to_num(), factors.nan_to_num()  # which opcheck does not compare
    operator = torch.ops.gemm_ladder.combine_rows.default
    assert set(torch.library.opcheck(operator, (rows, places, factors, torch.float16)).values()) == {
        "SUCCESS"
    }
    wanted = combining.combined(rows, places, factors, torch.float16)
    torch._dynamo.reset()
    compiled = torch.compile(combining.combined, backend="aot_eager", fullgraph=True)
    check_same(compiled(rows, places, factors, torch.float16), wanted)
    with torch.profiler.profile() as profile:
        combining.combined(rows, places, factors)
    assert "gemm_ladder::combine_rows" in [one.key for one in profile.key_averages()]
    with FakeTensorMode() as mode:
        fake = combining.combined(*(mode.from_tensor(one) for one in (rows, places, factors)), torch.float16)
        assert fake.shape == wanted.shape and fake.dtype == torch.float16


@pytest.mark.gpu
def test_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a CUDA graph: refused where the kernel is not loaded, and not done by torch's operators."""
    monkeypatch.setattr(combining.KERNEL, "libraries", {})
    rows, (places, factors) = numbers((40, 144), BF16).cuda(), choices(6, 3, torch.float32, "cuda")
    given, graph = torch.zeros_like(rows), torch.cuda.CUDAGraph()
    refused = "combine_rows is not loaded; the same call, or"
    with pytest.raises(LaunchError, match=refused), torch.cuda.graph(torch.cuda.CUDAGraph()):
        combining.combined(given, places, factors)
    wanted = combining.combined(rows, places, factors)
    with torch.cuda.graph(graph):
        found = combining.combined(given, places, factors)
    given.copy_(rows)
    graph.replay()
    check_same(found, wanted)


def test_a_kernel_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's operators do its work; a warning says so once. Nor does it take what it cannot divide."""

    def broken(target: str) -> None:
        raise BuildError("no compiler", "")

    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(combining.KERNEL, "compile_for", broken)
    monkeypatch.setattr(combining.KERNEL, "libraries", {})
    monkeypatch.setattr(launch, "is_hopper", lambda device: True)
    monkeypatch.setattr(grouped, "capturing", lambda device: False)
    assert "cannot be divided" in combining.why_not(cuda, 3, 12)
    assert "cannot be divided" in combining.why_not(cuda, 2**30, 2048)
    with pytest.warns(UserWarning, match=r"cannot be built, and torch's own operators do its work: no comp"):
        assert combining.why_not(cuda, 3, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert combining.why_not(cuda, 3, 16) == "combine_rows could not be built"


@pytest.mark.slow
def test_machine_code() -> None:
    """Nothing is spilled, and all rows' loads, of 16 bytes, come before the first sum."""
    disassembler_or_skip()
    built = combining.KERNEL.compile_for("cuda")
    for name, used in disassembly.resources(built.log).items():
        assert (used.stack_frame, used.spill_stores, used.spill_loads) == (0, 0, 0), name
        assert used.registers <= 64, name  # 8 thread blocks of 128 threads an SM
    kernels = disassembly.disassemble(built.path)
    assert len(kernels) == len(INPUTS) ** 2
    for name, instructions in kernels.items():
        opcodes = [one.opcode for one in instructions]
        before = opcodes[: opcodes.index("FFMA")]
        assert before.count("LDG.E.128") == opcodes.count("LDG.E.128") == 8, name
        assert opcodes.count("FFMA") == 64 and "STG.E.128" in opcodes, name
