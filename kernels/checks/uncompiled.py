"""Calls that torch.compile is not to trace: those inside of a transform of torch.func, or with dual numbers.

While it traces, no tensor can be asked whether it stands for others there, and what an operator makes of a
detached one would have a derivative of 0. So such a call is left to be refused, or computed, when it runs.

This imports torch's compiler, which takes longer than the rest of the package: only what torch.compile traces
imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _in_transform() -> bool:
    """Whether a transform is active. torch.compile calls this while it traces, and takes the answer for a
    constant: where another transform is active it traces again."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _run(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function that is not to be traced."""
    return function(*given)


in_transform: Callable[[], bool] = torch.compiler.assume_constant_result(_in_transform)
run: Callable[..., Any] = torch.compiler.disable(
    _run,
    reason="the call is inside of a transform of torch.func, or of dual numbers, for which FP8 has no rule; "
    "a call outside of it is needed, or fullgraph=False if its tensors have no part in it",
)
