"""Several GPUs in one process: each call runs where its tensors are, whichever GPU is current."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import refusal
from cases import Placed, place
from gemm_ladder.lab.operands import normal
from gemm_ladder.ref import metrics
from grouped_cases import MAX_ROW_ERROR, contiguous, masked, psum

pytestmark = pytest.mark.gpu

Run = tuple[Callable[[], None], Callable[[], None]]  # a call, and the check of what it wrote


@pytest.fixture
def gpus() -> list[torch.device]:
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs two GPUs: torch finds {count}")
    return [torch.device("cuda", index) for index in range(2)]


def dense(device: torch.device, m: int) -> tuple[Placed, np.ndarray]:
    """Operands on a GPU, and their product in float64."""
    made = normal(np.random.default_rng([m, device.index]), m, 136, 384)
    return place(made, str(device)), made.exact()


def right(out: torch.Tensor, exact: np.ndarray) -> None:
    assert metrics.max_row_error(out.float().cpu().numpy(), exact) < MAX_ROW_ERROR


def products(device: torch.device) -> Iterator[Run]:
    """A call of each kind on a GPU."""
    placed, product = dense(device, 70)
    yield (
        lambda: gl.fp8_gemm_nt(placed.lhs, placed.rhs, placed.out),
        lambda: right(placed.out, product),
    )
    rows = contiguous([128, 128], 136, 384, str(device))
    yield (
        lambda: gl.m_grouped_fp8_gemm_nt_contiguous(rows.lhs, rows.rhs, rows.out, rows.rows),
        lambda: rows.check(exact=False),
    )
    ends = psum([100, 3], 136, 384, str(device))
    yield (
        lambda: gl.m_grouped_fp8_gemm_nt_contiguous(
            ends.lhs, ends.rhs, ends.out, ends.rows, use_psum_layout=True
        ),
        lambda: ends.check(exact=False),
    )
    counts = masked([5, 0, 70], 70, 136, 384, str(device))
    yield (
        lambda: gl.m_grouped_fp8_gemm_nt_masked(counts.lhs, counts.rhs, counts.out, counts.rows, 64),
        lambda: counts.check(exact=False),
    )
    pairs = [gl.utils.per_token_cast_to_fp8(torch.randn(rows, 384)) for rows in (64, 96)]
    exact = torch.empty(64, 96)
    gl.fp8_gemm_nt(*pairs, exact, recipe=(1, 1, 128))
    lhs, rhs = ([tensor.to(device) for tensor in pair] for pair in pairs)
    gradient = torch.empty(64, 96, device=device)
    yield (
        lambda: gl.fp8_gemm_nt(lhs, rhs, gradient, recipe=(1, 1, 128)),
        lambda: right(gradient, exact.numpy()),
    )


def test_whichever_is_current(gpus: list[torch.device]) -> None:
    """The first call of a weight, and those for which the fast path has a plan."""
    for current in gpus:
        with torch.cuda.device(current):
            for device in gpus:
                for call, check in products(device):
                    for _ in range(3):
                        call()
                    check()
            assert torch.cuda.current_device() == current.index


def test_casts(gpus: list[torch.device]) -> None:
    x = torch.randn(70, 384)
    codes, scales = gl.per_token_group_quant_fp8(x)
    with torch.cuda.device(gpus[0]):
        for device in gpus:
            found = gl.per_token_group_quant_fp8(x.to(device))
            assert all(one.device == device for one in found)
            assert torch.equal(found[0].cpu().view(torch.uint8), codes.view(torch.uint8))
            assert torch.equal(found[1].cpu(), scales)


def test_a_thread_for_each(gpus: list[torch.device]) -> None:
    def work(device: torch.device) -> None:
        torch.cuda.set_device(device)
        with torch.cuda.stream(torch.cuda.Stream()):
            for m in (1, 3, 70, 130):
                placed, exact = dense(device, m)
                for _ in range(50):
                    gl.fp8_gemm_nt(placed.lhs, placed.rhs, placed.out)
                right(placed.out, exact)

    with ThreadPoolExecutor(len(gpus)) as pool:
        assert list(pool.map(work, gpus)) == [None] * len(gpus)


def test_graphs(gpus: list[torch.device]) -> None:
    graphs = []
    for device in gpus:
        placed, exact = dense(device, 70)
        with torch.cuda.device(device):
            gl.fp8_gemm_nt(placed.lhs, placed.rhs, placed.out)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Torch's own stream for captures is on the GPU of the process's first capture.
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                gl.fp8_gemm_nt(placed.lhs, placed.rhs, placed.out)
            placed.out.zero_()
        graphs.append((graph, device, placed, exact))
    for graph, device, placed, exact in reversed(graphs):
        with torch.cuda.device(device):
            graph.replay()
        right(placed.out, exact)


def test_tensors_of_both_are_refused(gpus: list[torch.device]) -> None:
    placed = [dense(device, 70)[0] for device in gpus]
    for one in placed:  # so that both have a plan
        gl.fp8_gemm_nt(one.lhs, one.rhs, one.out)
        one.out.fill_(7)
    first, second = placed
    assert refusal(gl.fp8_gemm_nt, first.lhs, second.rhs, first.out) == (
        "A is on cuda:0 and B on cuda:1; one device is needed for all"
    )
    assert all((one.out == 7).all() for one in placed)
