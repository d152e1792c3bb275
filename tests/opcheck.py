"""What the tests of operators share: torch's own checks, made to compare FP8 tensors."""

from __future__ import annotations

import pytest
import torch


def byte_wise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have opcheck compare FP8 tensors byte by byte."""
    allclose = torch.allclose

    def bitwise(x: torch.Tensor, y: torch.Tensor, **keywords: object) -> bool:
        if x.dtype == torch.float8_e4m3fn:  # for which torch's comparison does not exist
            return torch.equal(x.view(torch.uint8), y.view(torch.uint8))
        return allclose(x, y, **keywords)

    monkeypatch.setattr(torch, "allclose", bitwise)
