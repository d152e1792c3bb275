"""Calls with operands of every wrong kind: each is refused in one sentence, before anything is written, or
computed."""

from __future__ import annotations

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from families import DEVICE
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.lab.operands import normal
from gemm_ladder.ref import gemm, metrics
from grouped_cases import MAX_ROW_ERROR
from hypothesis import given
from hypothesis import strategies as st
from random_calls import examples
from wrong_operands import CHANGES, HARMLESS, NOT_MADE

LEAVES = 7.0
OPERANDS = ("A", "sfa", "B", "sfb", "out")


def operands(m: int, n: int, k: int, device: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    made = normal(np.random.default_rng([m, n, k]), m, n, k)
    tensors = {
        "A": torch.from_numpy(made.a).to(device).view(torch.float8_e4m3fn),
        "sfa": torch.from_numpy(made.sfa).to(device),
        "B": torch.from_numpy(made.b).to(device).view(torch.float8_e4m3fn),
        "sfb": torch.from_numpy(made.sfb).to(device),
        "out": torch.full((m, n), LEAVES, dtype=torch.bfloat16, device=device),
    }
    return tensors, gemm.dense(made.a, made.sfa, made.b, made.sfb)


@pytest.mark.slow
def test_every_wrong_kind(machine: str) -> None:
    """On a GPU, the kernels of the right operands are loaded before, so that the fast path is asked, too."""
    device = DEVICE[machine]
    seen = {"refused": 0, "computed": 0}

    @examples(2500)
    @given(
        sizes=st.sampled_from([(5, 136, 256), (1, 8, 128), (64, 264, 144)]),
        changes=st.dictionaries(st.sampled_from(OPERANDS), st.sampled_from(list(CHANGES)), max_size=2),
    )
    def check(sizes: tuple[int, int, int], changes: dict[str, str]) -> None:
        tensors, exact = operands(*sizes, device)
        out = tensors["out"]
        try:
            for name, change in changes.items():
                tensors[name] = CHANGES[change](tensors[name])
        except NOT_MADE:
            return
        a, sfa, b, sfb, given_out = (tensors[name] for name in OPERANDS)
        try:
            gl.fp8_gemm_nt((a, sfa), (b, sfb), given_out)
        except InputError as refusal:
            assert "\n" not in str(refusal) and str(refusal), (sizes, changes)
            assert (out == LEAVES).all(), (sizes, changes)
            seen["refused"] += 1
            return
        except LaunchError as refusal:
            raise AssertionError(f"{changes} at {sizes} got as far as a launch") from refusal
        seen["computed"] += 1
        if set(changes.values()) <= HARMLESS:
            found = given_out.detach().float().cpu().numpy()
            assert metrics.max_row_error(found, exact) < MAX_ROW_ERROR, (sizes, changes)

    check()
    assert seen["refused"] > 500 and seen["computed"] > 200, seen
