"""Calls with operands of every wrong kind: each is refused in one sentence, before anything is written, or
computed."""

from __future__ import annotations

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from cases import normal
from families import DEVICE
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.ref import gemm, metrics
from grouped_cases import MAX_ROW_ERROR
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

DTYPES = (
    *(
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float32,
        torch.bfloat16,
        torch.float8_e8m0fnu,
        torch.int32,
    ),
    *(torch.int32, torch.float64, torch.uint8, torch.bool, torch.complex64),
)
LEAVES = 7.0


class Derived(torch.Tensor):
    """A subclass that leaves everything to torch."""


def misaligned(x: torch.Tensor) -> torch.Tensor:
    flat = torch.zeros(x.numel() + 1, dtype=torch.uint8, device=x.device).to(x.dtype)
    flat[1:] = x.reshape(-1)
    return flat[1:].view(x.shape)


def wider(x: torch.Tensor, by: int) -> torch.Tensor:
    wide = torch.zeros((*x.shape[:-1], x.shape[-1] + by), dtype=torch.uint8, device=x.device).to(x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def fake(x: torch.Tensor) -> torch.Tensor:
    return FakeTensorMode().from_tensor(x)


CHANGES = {
    **{f"to {dtype}": (lambda x, dtype=dtype: x.to(dtype)) for dtype in DTYPES},
    **{f"wider by {by}": (lambda x, by=by: wider(x, by)) for by in (1, 4, 8, 16, 64)},
    "as it is": lambda x: x,
    "a row less": lambda x: x[:-1],
    "no rows": lambda x: x[:0],
    "a column less": lambda x: x[..., :-1],
    "no columns": lambda x: x[..., :0],
    "another dimension": lambda x: x[None],
    "a dimension less": lambda x: x[0],
    "one number": lambda x: x.reshape(-1)[0],
    "transposed": lambda x: x.mT,
    "transposed in memory": lambda x: x.mT.contiguous().mT,
    "backwards": lambda x: x.view(torch.uint8).flip(0).view(x.dtype) if x.dtype.itemsize == 1 else x.flip(0),
    "one row, repeated": lambda x: x[:1].expand(x.shape),
    "every second row": lambda x: torch.cat([x.view(torch.uint8)] * 2).view(x.dtype)[::2],
    "misaligned": misaligned,
    "on no device": lambda x: x.to("meta"),
    "sparse": lambda x: x.float().to_sparse(),
    "negated lazily": lambda x: torch._neg_view(x.float()),
    "a subclass": lambda x: x.as_subclass(Derived),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "requires grad": lambda x: x.float().requires_grad_(),
    "fake": fake,
    "its numbers": lambda x: x.float().tolist(),
    "in NumPy": lambda x: x.float().cpu().numpy(),
    "nothing": lambda x: None,
}
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

    @settings(
        max_examples=2500,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
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
        except (
            RuntimeError,
            NotImplementedError,
            IndexError,
            TypeError,
        ):  # torch itself does not make such a tensor
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
        if set(changes.values()) <= {"as it is", "a subclass", "a parameter", "wider by 16", "wider by 64"}:
            found = given_out.detach().float().cpu().numpy()
            assert metrics.max_row_error(found, exact) < MAX_ROW_ERROR, (sizes, changes)

    check()
    assert seen["refused"] > 500 and seen["computed"] > 200, seen
