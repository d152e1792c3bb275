"""Compiling what DeepGEMM's experts need, in processes of their own:

    python -m gemm_ladder.measure.model_warming 512 2048       so many tokens, one size after the other

As `warming`, for products whose weights are too large for a process that has them for every product.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import torch
from gemm_ladder.layers import Fp8Experts
from gemm_ladder.measure import decoder, model_cases, peers, session
from gemm_ladder.measure.arithmetic import LibrarysExperts

MODULE = "gemm_ladder.measure.model_warming"
# The sizes of each process. Its weights take 11 GB, and the tokens' rows a few more.
SIZES = (model_cases.PREFILL[:2], model_cases.PREFILL[2:], model_cases.DECODE[:2], model_cases.DECODE[2:])


@contextlib.contextmanager
def warming() -> Iterator[None]:
    """Start the processes, and wait for them at the end; where something fails, end them."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", MODULE, *map(str, sizes)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for sizes in SIZES
    ]
    try:
        yield
        for process in running:
            process.wait()
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def run(library: ModuleType, sizes: list[int], device: torch.device, **config: int) -> None:
    """Call a library's experts once with each number of tokens. What it refuses is found again, and noted,
    when it is measured.

    Args:
        config: the experts' sizes; those of DeepSeek-V3 if there are none.
    """
    config = config or decoder.experts_of("DeepSeek-V3")
    experts, hidden = config["num_experts"], config["hidden_size"]
    on_meta = Fp8Experts(experts, hidden, config["intermediate_size"], device="meta")
    made = LibrarysExperts(on_meta, library).to_empty(device=device)
    for tokens in sizes:
        x = torch.zeros(tokens, hidden, dtype=torch.bfloat16, device=device)
        chosen = torch.rand(tokens, experts, device=device).topk(decoder.TOP_K).indices
        with contextlib.suppress(Exception), torch.no_grad():
            made(x, chosen, torch.ones_like(chosen, dtype=torch.float32))


def main() -> int:
    """Run the sizes that are given. Returns 1 where there is no Hopper GPU."""
    device, _ = session.find_gpu()
    if device is None:
        return 1
    with torch.cuda.device(device):
        run(peers.deep_gemm_library(), list(map(int, sys.argv[1:])), device)
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
