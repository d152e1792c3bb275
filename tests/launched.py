"""Which kernels a run on the CPU would launch on a GPU: there torch's operators do their work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from gemm_ladder import ops
from gemm_ladder.casts import eager
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.checks import CheckedCall
from gemm_ladder.layers import choosing, combining, placing, routing, scattering, silu_backward, turning
from gemm_ladder.layers.own_kernels import OwnKernel
from gemm_ladder.production import launching
from gemm_ladder.training import candidates, operands
from gemm_ladder.training import ops as training_ops


def _sums(
    rows: torch.Tensor, places: torch.Tensor, factors: object, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    return rows.new_empty(places.shape[0], rows.shape[1], dtype=dtype)


def _gradients(inner: torch.Tensor, of_h: torch.Tensor, factors: torch.Tensor) -> silu_backward.Gradients:
    return torch.empty_like(inner), torch.empty_like(factors), torch.empty_like(of_h)


def _turned(codes: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(codes.mT, memory_format=torch.contiguous_format)


def _is_placed(chosen: torch.Tensor, experts: int, *_: object) -> bool:
    return placing.why_not_placed(chosen, experts, 1) is None


def _is_chosen(logits: torch.Tensor, top_k: int, bias: torch.Tensor | None) -> bool:
    return _why_not_chosen(logits, top_k, bias) is None


def _is_scattered(codes: torch.Tensor, of_rows: torch.Tensor, places: torch.Tensor, *_: object) -> bool:
    return placing.why_not_scattered(codes, of_rows, places, 1) is None


def _is_cast(x: torch.Tensor, placed: routing.Placement, *_: object) -> bool:
    return scattering.is_for(placed) and scattering.why_not(x, placed.places, placed.size) is None


_why_not_chosen = choosing.why_not


# The layers' own kernels: the functions that launch them, when these do so on a GPU, and results without
# numbers.
OWN: tuple[tuple[OwnKernel, Any, str, Callable[..., bool], Callable[..., Any]], ...] = (
    (combining.KERNEL, combining, "combined", lambda rows, places, *_: places.shape[0] > 0, _sums),
    (
        silu_backward.KERNEL,
        silu_backward,
        "through_silu_and_mul",
        lambda inner, *_: inner.shape[0] > 0,
        _gradients,
    ),
    (turning.KERNEL, turning, "turned", lambda codes: turning.why_not(codes) is None, _turned),
    (choosing.KERNEL, choosing, "why_not", _is_chosen, _why_not_chosen),
    (placing.PLACE, routing, "place", _is_placed, routing.place),
    (placing.SCATTER, routing, "in_masked_layout", _is_scattered, routing.in_masked_layout),
    (scattering.KERNEL, scattering, "in_layout", _is_cast, scattering.in_layout),
)


@contextmanager
def noted(gpu: str = "", num_sms: int = 0) -> Iterator[set[object]]:
    """The set that gets each kernel of casts and layers when it would be launched. With the name of a GPU and
    its SMs it gets the configurations of products, too, and nothing is computed, which takes less time:
    results are memory as it is."""
    found: set[object] = set()

    def noting(
        launches: Callable[..., object], run: Callable[..., Any], instead: Callable[..., Any]
    ) -> Callable[..., Any]:
        def noted_run(*given: Any, **options: Any) -> Any:
            if (kernel := launches(*given)) is not None:
                found.add(kernel)
            return (instead if gpu else run)(*given, **options)

        return noted_run

    def own(kernel: OwnKernel, launches: Callable[..., bool]) -> Callable[..., object]:
        return lambda *given: kernel if launches(*given) else None

    def product(call: CheckedCall, expected_m: int = 0) -> object:
        sizes = (call.m, call.n, call.k, call.groups)
        return launching.configuration(call.kind, *sizes, expected_m, num_sms, gpu)

    def of_training(call: operands.CheckedCall) -> object:
        ks = [group.k for group in call.groups if group.k]
        return candidates.choose(call.m, call.n, ks, num_sms)

    def nothing(*given: object) -> None:
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "run", noting(lambda call, out: call.kernel, eager.run, nothing))
        for kernel, module, name, launches, instead in OWN:
            run = getattr(module, name)
            patch.setattr(module, name, noting(own(kernel, launches), run, instead))
        if gpu:
            patch.setattr(ops, "run", noting(product, ops.run, nothing))
            patch.setattr(training_ops, "run", noting(of_training, training_ops.run, nothing))
        yield found


def beside_products(listed: Iterable[object]) -> set[object]:
    """Those of a list that are kernels of casts and layers."""
    return {one for one in listed if isinstance(one, (Kernel, OwnKernel))}
