"""Calls that may overlap give the bits of the same calls one at a time.

A production kernel begins while the kernel ahead of it in its stream is still running, and waits for that
before it touches what the other uses (the head of gemm.cuh). Here each call reads what the call before it
writes, and the next call writes that again.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gemm_ladder.production import launching
from gemm_ladder.production.config import Config, Share

N, K, BLOCKS = 4096, 7168, 7168 // 128
PAIRS, REPEATS = 24, 20
HOLD_CYCLES = 50_000_000  # about 30 ms, in which the host queues all calls


class Chain:
    """Pairs of calls: as FP32, the bytes of the first's D are the scales of A for the second."""

    def __init__(self, m: int, share: Share) -> None:
        random = torch.Generator("cuda").manual_seed(m)

        def codes(*shape: int) -> torch.Tensor:
            return (30 * torch.randn(shape, generator=random, device="cuda")).to(torch.float8_e4m3fn)

        def scales(rows: int, columns: int) -> torch.Tensor:
            return 0.01 * torch.rand(rows, columns, generator=random, device="cuda")

        # With at most 64 rows the next kernel may begin at once, and B is prefetched before the wait.
        fields = {"stream_b": True, "prefetch": 8} if m <= 64 else {}
        self.first = Config.of("dense", 2 * BLOCKS, K, 64, 16, **fields)
        tile_n, cluster = (64, 2) if share == "K" else (32, 1)
        self.second = Config.of("dense", N, K, 64, tile_n, share=share, cluster=cluster, **fields)
        self.a, self.sfa, self.sfb = codes(m, K), scales(BLOCKS, m).T, scales(N // 128, BLOCKS)
        self.b = codes(N, K)
        self.changing_a, self.changing_b = codes(PAIRS, m, K), codes(PAIRS, 2 * BLOCKS, K)
        self.d = torch.empty(m, 2 * BLOCKS, dtype=torch.bfloat16, device="cuda")
        self.d_as_scales = self.d.view(torch.float32).view(BLOCKS, m).T
        self.outs = torch.empty(PAIRS, m, N, dtype=torch.bfloat16, device="cuda")
        self.side = torch.cuda.Stream()

    def run(self, fork: bool, after_each: Callable[[], object]) -> None:
        """All calls. With `fork`, a copy writes A before each pair, and the first call is on another stream,
        beside a call that writes what the second one writes again."""
        for a, b, out in zip(self.changing_a, self.changing_b, self.outs, strict=True):
            here = torch.cuda.current_stream()
            if fork:
                self.a.view(torch.uint8).copy_(a.view(torch.uint8))
                self.side.wait_stream(here)
            with torch.cuda.stream(self.side if fork else here):
                launching.launch(self.first, (self.a, self.sfa), (b, self.sfb[:1]), self.d)
            after_each()
            if fork:
                launching.launch(self.second, (self.a, self.sfa), (self.b, self.sfb), out)
                after_each()
                here.wait_stream(self.side)
            launching.launch(self.second, (self.a, self.d_as_scales), (self.b, self.sfb), out)
            after_each()


@pytest.mark.gpu
@pytest.mark.parametrize("fork", [False, True], ids=["one stream", "forked"])
@pytest.mark.parametrize(("m", "share"), [(64, "nothing"), (64, "K"), (200, "nothing")])
def test_calls_that_overlap(m: int, share: Share, fork: bool) -> None:
    chain = Chain(m, share)
    chain.run(fork, torch.cuda.synchronize)
    one_at_a_time = chain.outs.clone()
    assert one_at_a_time.isfinite().all() and not torch.equal(one_at_a_time[0], one_at_a_time[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain.run(fork, lambda: None)
    for repeat in range(REPEATS):
        chain.outs.zero_()
        if repeat % 2:
            graph.replay()
        else:
            torch.cuda._sleep(HOLD_CYCLES)
            chain.run(fork, lambda: None)
        torch.cuda.synchronize()
        assert torch.equal(chain.outs.view(torch.int16), one_at_a_time.view(torch.int16)), repeat
