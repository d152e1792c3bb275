"""The kernels of a layer's backward pass, bit by bit, on the emulator and on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from building import disassembler_or_skip
from gemm_ladder import launch
from gemm_ladder.checks import grouped
from gemm_ladder.errors import BuildError
from gemm_ladder.layers import own_kernels, products, silu_backward, turning
from gemm_ladder.ref import activations, gemm
from gemm_ladder.sass import disassembly

FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
CANARY, MARGIN = 0x55, 64


def codes(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """New tensors get canaries around them; what is returned says that all are there still."""
    made: list[tuple[torch.Tensor, int]] = []

    def placed(like: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = int(np.prod(shape)) * dtype.itemsize
        memory = torch.full((size + 2 * MARGIN,), CANARY, dtype=torch.uint8, device=like.device)
        made.append((memory, size))
        return memory[MARGIN : MARGIN + size].view(dtype).view(shape)

    def new_empty(self: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return placed(self, shape, dtype or self.dtype)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(torch, "empty_like", lambda one: placed(one, tuple(one.shape), one.dtype))

    def check() -> None:
        assert made
        for memory, size in made:
            assert (memory[:MARGIN] == CANARY).all() and (memory[MARGIN + size :] == CANARY).all()

    return check


@pytest.mark.parametrize("shape", [(16, 16), (128, 128), (144, 272), (2, 80, 400), (3, 256, 16)], ids=str)
def test_turned(shape: tuple[int, ...], device: str, around: Callable[[], None]) -> None:
    given = codes(*shape)
    wanted = given.mT.contiguous()
    on_device = given.to(device).view(FP8)
    assert turning.why_not(on_device) is None
    found = turning.by_kernel(on_device)
    assert found.is_contiguous() and torch.equal(found.view(torch.uint8).cpu(), wanted)
    around()
    if len(shape) == 3:  # some groups, of rows with gaps
        wide = torch.full((shape[0], shape[1] + 3, shape[2] + 32), CANARY, dtype=torch.uint8, device=device)
        part = wide[:, : shape[1], 16:-16]
        part.copy_(given)
        assert torch.equal(turning.by_kernel(part[::2]).cpu(), wanted[::2])


def test_what_the_kernel_does_not_turn(device: str) -> None:
    """torch's operators do: other sizes, columns apart, rows not at multiples of 16 bytes."""
    placed = {shape: codes(*shape).to(device) for shape in ((32, 16), (32, 40), (32, 48))}
    for given in (
        *(codes(*shape).to(device) for shape in ((8, 16), (16, 24), (0, 16), (2, 16, 0))),
        placed[32, 16].t(),
        placed[32, 40][:, :32],
        placed[32, 48][:, 8:40],
    ):
        found = turning.turned(given)
        assert found.is_contiguous() and torch.equal(found, given.mT)
        assert turning.why_not(given)
    too_many = torch.empty(16, 16, dtype=torch.uint8).expand(2**31, 16, 16)
    assert turning.why_not(too_many) == "there are too many tiles" and turning.why_not(too_many[1:]) is None


@pytest.mark.gpu
def test_a_gpu_turns_by_the_kernel() -> None:
    given = codes(4, 256, 384).cuda().view(FP8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        found = turning.turned(given)
    assert any("turn_codes" in one.key for one in profile.key_averages())
    assert torch.equal(found.view(torch.uint8), given.view(torch.uint8).mT)
    grad = torch.randn(32, 256, device="cuda", dtype=BF16)
    scales = torch.rand(2, 3, device="cuda")
    assert products._grad_input(grad, given[0], scales, False).shape == (32, 384)


def numbers(rows: int, columns: int, seed: int) -> torch.Tensor:
    found = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 4
    if rows > 3:
        found[2, ::3] *= 1e20
        found[3, :columns:5] = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0]).repeat(
            columns
        )[: len(found[3, :columns:5])]
    return found.to(BF16)


@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (9, 256), (5, 272), (17, 528)])
def test_back_through_silu(rows: int, columns: int, device: str, around: Callable[[], None]) -> None:
    inner, of_h = numbers(rows, 2 * columns, 0), numbers(rows, columns, 1)
    factors = torch.randn(rows, generator=torch.Generator().manual_seed(2))
    factors[0] = 0.0
    gate, up, back = (one.float().numpy() for one in (*inner.chunk(2, -1), of_h))
    of_gate, of_up, factored, of_factors = activations.silu_and_mul_backward(gate, up, back, factors.numpy())
    given = [one.to(device) for one in (inner, of_h, factors)]
    found = silu_backward.by_kernel(*given)
    with np.errstate(invalid="ignore"):
        wanted = [gemm.to_bf16(np.concatenate([of_gate, of_up], -1)), of_factors, gemm.to_bf16(factored)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.float().cpu().numpy(), other.astype(np.float32))
    around()


def test_the_definition_is_the_derivative() -> None:
    """Beside autograd in FP64, far beyond the gates that are limited, too."""
    rows, columns = 6, 64
    rng = np.random.default_rng(0)
    gate, up, back = (torch.from_numpy(rng.normal(size=(rows, columns))) for _ in range(3))
    gate = gate * torch.tensor([1.0, 4, 16, 40, 100, 1000], dtype=torch.float64)[:, None]
    factors = torch.from_numpy(rng.normal(size=rows))
    gate, up, back, factors = (one.float().double() for one in (gate, up, back, factors))
    leaves = [one.requires_grad_() for one in (gate, up, factors)]
    h = torch.nn.functional.silu(gate) * up
    (factors[:, None] * h * back).sum().backward()
    of_gate, of_up, factored, of_factors = activations.silu_and_mul_backward(
        *(one.detach().numpy() for one in (gate, up, back, factors))
    )
    for one, leaf in zip((of_gate, of_up, of_factors), leaves, strict=True):
        wanted = leaf.grad.numpy()
        assert np.abs(one - wanted).max() < 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(one, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(factored, (factors[:, None] * h).detach().numpy(), rtol=1e-5, atol=1e-6)
    by_torch = silu_backward.by_torch(torch.cat([gate, up], -1).bfloat16(), back.bfloat16(), factors.float())
    assert by_torch[0].shape == (rows, 2 * columns) and by_torch[2].shape == (rows, columns)
    infinite = np.float32([[np.inf, -np.inf, np.nan]])
    slope, *_ = activations.silu_and_mul_backward(infinite, *(np.ones((1, 3), np.float32),) * 2, np.ones(1))
    assert slope[0, 0] == 1 and abs(slope[0, 1]) < 1e-30 and np.isnan(slope[0, 2])
    inner, ones = torch.cat([torch.from_numpy(infinite), torch.ones(1, 3)], -1).bfloat16(), torch.ones(1, 3)
    of_inner, of_factors, factored = silu_backward.by_torch(inner, ones.bfloat16(), torch.ones(1))
    assert of_inner[0, 0] == 1 and abs(of_inner[0, 1]) < 1e-30 and of_inner[0, 2].isnan()
    assert of_factors.isnan() and factored[0, 0] == torch.inf and abs(factored[0, 1]) < 1e-30


@pytest.mark.parametrize("kernel", [turning.KERNEL, silu_backward.KERNEL], ids=lambda one: one.name)
def test_a_kernel_that_cannot_be_built(
    kernel: own_kernels.OwnKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's operators do its work; a warning says so once."""

    def broken(target: str) -> None:
        raise BuildError("no compiler", "")

    monkeypatch.setattr(kernel, "compile_for", broken)
    monkeypatch.setattr(kernel, "libraries", {})
    monkeypatch.setattr(launch, "is_hopper", lambda device: True)
    monkeypatch.setattr(grouped, "capturing", lambda device: False)
    cuda = torch.device("cuda", 0)
    with pytest.warns(UserWarning, match=r"cannot be built, and torch's own operators do its work: no comp"):
        assert kernel.why_not(cuda)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel.why_not(cuda) == f"{kernel.name} could not be built"
    assert kernel.why_not(torch.device("cpu")) == "the tensors are on cpu"


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [turning.KERNEL, silu_backward.KERNEL], ids=lambda one: one.name)
def test_machine_code(kernel: own_kernels.OwnKernel) -> None:
    """Nothing is spilled; every load and store of a tensor has 16 bytes, all loads before the first use."""
    disassembler_or_skip()
    built = kernel.compile_for("cuda")
    for name, used in disassembly.resources(built.log).items():
        assert (used.stack_frame, used.spill_stores, used.spill_loads) == (0, 0, 0), name
        assert used.registers <= 64, name
    for name, instructions in disassembly.disassemble(built.path).items():
        opcodes = [one.opcode for one in instructions]
        loads = {"turn_codes": 4, "silu_backward": 3}[kernel.name]
        assert opcodes.count("LDG.E.128") == loads, name
        first = opcodes.index("PRMT" if kernel.name == "turn_codes" else "MUFU.RCP")
        assert opcodes[:first].count("LDG.E.128") == loads, name
        assert opcodes.count("STG.E.128") in (3, 4), name
