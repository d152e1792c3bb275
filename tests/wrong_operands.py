"""Ways to spoil a tensor, for the tests that call with operands of every wrong kind."""

from __future__ import annotations

import torch
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


def without_storage(x: torch.Tensor) -> torch.Tensor:
    """A copy that has lost its memory, as FSDP's weights have between uses."""
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


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
    "negated lazily": torch._neg_view,
    "negated lazily, as numbers": lambda x: torch._neg_view(x.float()),
    "functionalized": torch._to_functional_tensor,
    "without memory": lambda x: torch._efficientzerotensor(4 * x.numel(), dtype=x.dtype)[16:].as_strided(
        x.shape, x.stride()
    ),
    "a subclass": lambda x: x.as_subclass(Derived),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "requires grad": lambda x: x.float().requires_grad_(),
    "fake": fake,
    "without storage": without_storage,
    "nested": lambda x: torch.nested.nested_tensor([x.float(), x.float()]),
    "not initialized": lambda x: torch.nn.UninitializedParameter(),
    "its numbers": lambda x: x.float().tolist(),
    "in NumPy": lambda x: x.float().cpu().numpy(),
    "nothing": lambda x: None,
}
# What changes nothing that a call looks at, or only what it copes with.
HARMLESS = {"as it is", "a subclass", "a parameter", "wider by 16", "wider by 64"}
# What torch raises where it does not make such a tensor.
NOT_MADE = (RuntimeError, NotImplementedError, IndexError, TypeError)
