"""Which kernels of casts and layers a run on the CPU would launch on a GPU: there torch's operators do their
work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gemm_ladder.casts import eager
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.layers import combining, silu_backward, turning
from gemm_ladder.layers.own_kernels import OwnKernel

OWN = ((combining, "combined"), (silu_backward, "through_silu_and_mul"), (turning, "turned"))


@contextmanager
def noted() -> Iterator[set[Kernel | OwnKernel]]:
    """The set that gets each kernel when it would be launched."""
    found: set[Kernel | OwnKernel] = set()

    def noting(which: Callable[..., Kernel | OwnKernel], run: Callable[..., Any]) -> Callable[..., Any]:
        def noted_run(*given: Any, **options: Any) -> Any:
            found.add(which(*given))
            return run(*given, **options)

        return noted_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "run", noting(lambda call, out: call.kernel, eager.run))
        for module, name in OWN:
            kernel: OwnKernel = module.KERNEL
            patch.setattr(module, name, noting(lambda *_, k=kernel: k, getattr(module, name)))
        yield found


def beside_products(listed: Iterable[object]) -> set[object]:
    """Those of a list that are kernels of casts and layers."""
    return {one for one in listed if isinstance(one, (Kernel, OwnKernel))}
