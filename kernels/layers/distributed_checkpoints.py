"""Checkpoints of models whose layers several GPUs share, by torch.distributed.checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from gemm_ladder.errors import InputError
from gemm_ladder.layers.parallel_experts import ParallelFp8Experts
from gemm_ladder.layers.parallel_linear import ColumnParallelFp8Linear, RowParallelFp8Linear


def distributed_state_dict(model: torch.nn.Module) -> dict[str, Any]:
    """The state dict of a model, from which a checkpoint is made that any number of ranks can load.

        torch.distributed.checkpoint.save(distributed_state_dict(model), checkpoint_id="folder")
        torch.distributed.checkpoint.load(distributed_state_dict(model), checkpoint_id="folder")

    What it has of layers that ranks share are DTensors, of the shapes of the whole layer, over this rank's
    part; the rest is as in `model.state_dict()`. All of it is the model's own memory, which `load` fills. The
    names are those of the whole layers, Fp8Linear and Fp8Experts: a model of these loads what this one saved,
    and the other way round.

    Args:
        model: any module. All ranks of its layers' groups have to call this.

    Raises:
        InputError: `model` is no module, or ranks have different numbers of experts.

    Source: https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model is of type {type(model).__name__}; a torch.nn.Module is needed")
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Replicate, Shard

    found: dict[str, Any] = model.state_dict()
    for path, layer in model.named_modules():
        if isinstance(layer, ParallelFp8Experts):
            counts = [one["experts"] for one in layer.ranks.agree(experts=layer.num_experts)]
            if len({*counts}) > 1:
                raise InputError(
                    f"{path or 'the layer'} has {', '.join(map(str, counts))} experts on its ranks; the same "
                    "number on each is needed for a checkpoint of all"
                )
            cut = 0
        elif isinstance(layer, (ColumnParallelFp8Linear, RowParallelFp8Linear)):
            cut = layer.cut
        else:
            continue
        for name, tensor in layer.state_dict(prefix=path and f"{path}.").items():
            mesh = DeviceMesh.from_group(layer.ranks.group, tensor.device.type)
            place = Shard(cut) if cut < tensor.dim() else Replicate()  # a bias beside divided inputs is whole
            found[name] = DTensor.from_local(tensor, mesh, [place], run_check=False)
    return found
