"""What DeepGEMM's tests decorate themselves with."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from gemm_ladder.errors import InputError

__all__ = ["get_arch_major", "ignore_env", "test_filter"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def get_arch_major() -> int:
    """The first number of the current CUDA device's compute capability: 9 for Hopper.

    Raises:
        InputError: torch finds no CUDA device.
    """
    if not torch.cuda.is_available():
        raise InputError("torch finds no CUDA device; get_arch_major needs one")
    return torch.cuda.get_device_capability()[0]


def test_filter(condition: Callable[[], bool]) -> Decorator:
    """A decorator: a call does nothing but say so where the condition does not hold at the time."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if condition():
                return function(*args, **kwargs)
            print(f"{function.__name__} is left out: its condition does not hold")
            return None

        return call

    return decorate


test_filter.__test__ = False  # type: ignore[attr-defined]  # it is no test, though pytest would take it for one


def ignore_env(name: str, condition: Callable[[], bool]) -> Decorator:
    """A decorator: where the condition holds, a call does not see an environment variable, which is there
    again afterwards."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            saved = os.environ.pop(name, None) if condition() else None
            try:
                return function(*args, **kwargs)
            finally:
                if saved is not None:
                    os.environ[name] = saved

        return call

    return decorate
