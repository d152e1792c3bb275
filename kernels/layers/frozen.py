"""What of a model is stored in FP8, for those who hand its parameters to several processes."""

from __future__ import annotations

import torch
from gemm_ladder.errors import InputError
from gemm_ladder.layers import weights
from torch.nn.parameter import Parameter


def frozen_parameters(model: torch.nn.Module) -> dict[str, Parameter]:
    """The weights of a model that are stored in FP8, and their scales, by their names in it.

    They mean something in their types alone, and have no gradient. What shares a model among processes has to
    know that:

    - FSDP (`fully_shard`) casts all parameters to its policy's param_dtype. Give it the FP8 layers first, one
      by one and without a policy, then the modules that hold them::

          for layer in model.modules():
              if isinstance(layer, (Fp8Linear, Fp8Experts)) and frozen_parameters(layer):
                  fully_shard(layer)
          fully_shard(model, mp_policy=policy)

      Or leave them whole on every rank: `ignored_params=set(frozen_parameters(model).values())`.
    - DistributedDataParallel sends all parameters from rank 0 to the others, which gloo cannot do in FP8. As
      every rank has loaded the same weights, they need not be sent::

          DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
              model, list(frozen_parameters(model))
          )

    Args:
        model: any module.

    Returns:
        The parameters in the model's order; none of layers that are trained. One that several modules share
        has its first name.

    Raises:
        InputError: `model` is no module.

    Example:
        >>> import torch, gemm_ladder
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.LayerNorm(128))
        >>> report = gemm_ladder.layers.convert(model)
        >>> list(gemm_ladder.layers.frozen_parameters(model))
        ['0.weight', '0.weight_scale_inv']
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model is of type {type(model).__name__}; a torch.nn.Module is needed")
    parameters = dict(model.named_parameters())
    stored = {name for name, one in parameters.items() if one.dtype == weights.E4M3}
    scales = {name + weights.SCALES for name in stored}
    return {name: one for name, one in parameters.items() if name in stored or name in scales}
