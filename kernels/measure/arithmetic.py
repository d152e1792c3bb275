"""How a decoder layer computes what lies between its sums: in BF16 or with the layers of
`gemm_ladder.layers`, with casts that are fused with what comes before them, or with DeepGEMM's products."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import gemm_ladder
import torch
import torch.nn.functional as F
from gemm_ladder.arguments import align, ceil_div
from gemm_ladder.casts import functions
from gemm_ladder.layers import Fp8Experts, weights
from gemm_ladder.layers.routing import Placement

EPSILON = 1e-6
TILE_ROWS = 128  # what the rows of a group are a multiple of where DeepGEMM computes them


class Arithmetic:
    """Every step by torch or by the layer's own modules: BF16 or, in a layer that was converted, FP8 whose
    casts are kernels of their own.

    What `linear` takes is what `normed`, `cast` and `gated` give.
    """

    def normed(self, x: torch.Tensor, weight: torch.Tensor) -> Any:
        """RMSNorm of [tokens, k]."""
        return F.rms_norm(x, weight.shape, weight, EPSILON)

    def cast(self, x: torch.Tensor) -> Any:
        """[tokens, k] as it is."""
        return x

    def gated(self, x: torch.Tensor) -> Any:
        """SiLU of the first half of [tokens, 2 k] times the second."""
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    def linear(self, layer: torch.nn.Module, x: Any) -> torch.Tensor:
        """BF16 [tokens, n]."""
        found: torch.Tensor = layer(x)
        return found

    def experts(
        self, layer: torch.nn.Module, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """BF16 [tokens, hidden]: what a mixture of experts makes of x."""
        found: torch.Tensor = layer(x, chosen, factors)
        return found


IN_BF16 = Arithmetic()


class Fused(Arithmetic):
    """FP8 with the weights of a converted layer; RMSNorm and SiLU-and-multiply are part of the casts.

    Args:
        library: whose products they are: gemm_ladder or DeepGEMM.
    """

    def __init__(self, library: ModuleType = gemm_ladder) -> None:
        self.library = library
        gemm = getattr(library, "fp8_gemm_nt", None) or library.gemm_fp8_fp8_bf16_nt
        self._gemm = gemm

    def normed(self, x: torch.Tensor, weight: torch.Tensor) -> Any:
        return functions.rms_norm_per_token_group_quant_fp8(x, weight, EPSILON)

    def cast(self, x: torch.Tensor) -> Any:
        return functions.per_token_group_quant_fp8(x)

    def gated(self, x: torch.Tensor) -> Any:
        return functions.silu_and_mul_per_token_group_quant_fp8(x)

    def linear(self, layer: Any, x: Any) -> torch.Tensor:
        codes: torch.Tensor = x[0]
        out = codes.new_empty(len(codes), layer.out_features, dtype=torch.bfloat16)
        self._gemm(x, (layer.weight, layer.weight_scale_inv), out)
        return out

    def experts(
        self, layer: Any, x: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        if self.library is not gemm_ladder:
            layer = self._by_library(layer)
        return super().experts(layer, x, chosen, factors)

    @functools.lru_cache(maxsize=1)  # noqa: B019 # as many as there are layers measured at a time
    def _by_library(self, experts: Fp8Experts) -> LibrarysExperts:
        return LibrarysExperts(experts, self.library)


class LibrarysExperts(Fp8Experts):
    """The same experts, with the same weights, whose products are another library's.

    Args:
        experts: whose weights they are.
        library: with DeepGEMM's functions of its second generation.
    """

    def __init__(self, experts: Fp8Experts, library: ModuleType) -> None:
        torch.nn.Module.__init__(self)
        self.layout, self.use_ue8m0, self.library = experts.layout, experts.use_ue8m0, library
        for name, parameter in experts.named_parameters():
            self.register_parameter(name, parameter)

    def _room(self, tokens: int) -> int:
        """DeepGEMM writes whole tiles of rows in the masked layout. So groups have room for whole tiles, as
        servers give them: otherwise it writes into the next group."""
        return align(tokens, TILE_ROWS)

    def _product(
        self, placed: Placement, lhs: tuple[torch.Tensor, torch.Tensor], name: str, out: torch.Tensor
    ) -> None:
        rhs = (getattr(self, name), getattr(self, name + weights.SCALES))
        expected = ceil_div(placed.places.numel(), self.num_experts)
        if placed.layout == "masked":
            self.library.m_grouped_fp8_gemm_nt_masked(lhs, rhs, out, placed.rows, expected)
            return
        grouped = self.library.m_grouped_fp8_gemm_nt_contiguous
        if placed.layout == "psum":
            more = {"use_psum_layout": True, "expected_m_for_psum_layout": expected}
            grouped(lhs, rhs, out, placed.rows, **more)
        else:
            grouped(lhs, rhs, out, placed.rows)
