"""Layers of torch whose products are in FP8.

    from gemm_ladder.layers import Fp8Linear, convert
    layer = Fp8Linear.from_linear(torch.nn.Linear(7168, 2048))
    print(convert(model))

What belongs here: the `linear` layer, the `products` that it is made of and their gradients; the `experts` of
a mixture, the `routing` of tokens to them, and `expert_products`, which have gradients; the layers'
`own_kernels`, for `combining` what experts give, for `turning` codes and for `silu_backward`; `weights` in
FP8, made or read from checkpoints, also of `single_experts`; the `conversion` of models with its `report`,
for which it finds out who is `reading` weights, calls the model for `trying` inputs, and is `saying` in the
model's config what it has become; `precompiling` what its layers need; which of its parameters are `frozen`;
and layers that several GPUs share (`parallel_linear`; `parallel_experts`, `dispatching` tokens to them in
rows of a `row_format`, and `parallel_products`, which have gradients), whose `ranks` are those of a group of
torch.distributed, and what makes `distributed_checkpoints` of them. What does not: the casts
(`gemm_ladder.casts`) and the products themselves (`gemm_ladder.api`, `gemm_ladder.training`), which these
modules call as any user does; and communication, which is torch.distributed's.
"""

from gemm_ladder.layers.conversion import convert
from gemm_ladder.layers.distributed_checkpoints import distributed_state_dict
from gemm_ladder.layers.experts import Fp8Experts
from gemm_ladder.layers.frozen import frozen_parameters
from gemm_ladder.layers.linear import Fp8Linear
from gemm_ladder.layers.parallel_experts import ParallelFp8Experts
from gemm_ladder.layers.parallel_linear import ColumnParallelFp8Linear, RowParallelFp8Linear
from gemm_ladder.layers.precompiling import precompile
from gemm_ladder.layers.report import Layer, Report
from gemm_ladder.layers.routing import route

__all__ = [
    "ColumnParallelFp8Linear",
    "Fp8Experts",
    "Fp8Linear",
    "Layer",
    "ParallelFp8Experts",
    "Report",
    "RowParallelFp8Linear",
    "convert",
    "distributed_state_dict",
    "frozen_parameters",
    "precompile",
    "route",
]
