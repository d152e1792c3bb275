"""Linear layers in FP8 of which each of several GPUs has a part: tensor parallelism.

    column    a rank has some of the outputs: y_r = x W_r^T, of [n / ranks, k]
    row       a rank has some of the inputs:  y = sum over ranks of x_r W_r^T, of [n, k / ranks]

One behind the other, as in a feed-forward layer, they need one sum over the ranks for both. A rank's part is
whole blocks of 128 x 128, so the weight's scales are those of the whole layer, and so are those of x, which
belong to 128 of a row.

The sums are `torch.distributed.all_reduce`, in the type of what is added: BF16 for a model in BF16. What is
added has been rounded to BF16 by the products already, so FP32 would double the bytes that travel and spare
one rounding for each rank but two. For torch.compile and make_fx they are torch's functional collectives,
which Inductor runs in place. Elsewhere those return a tensor of a subclass, and with NCCL run on a second
stream, which the first has to wait for. Their gradients are not used: that of a sum is another sum, which is
wrong where every rank has the whole gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional_collectives
from gemm_ladder import checks, ops
from gemm_ladder.arguments import SCALE_BLOCK
from gemm_ladder.errors import InputError
from gemm_ladder.layers import linear, weights
from gemm_ladder.layers.ranks import Ranks
from torch.nn.parameter import Parameter

if TYPE_CHECKING:
    from gemm_ladder.layers.ranks import Group


class _Sum(torch.autograd.Function):
    """The sum over all ranks; each rank's gradient is that of the sum."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class _Shared(torch.autograd.Function):
    """The same numbers on every rank; the gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _sum(grad.contiguous(), ctx.group), None


def _sum(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum over all ranks; x is contiguous."""
    if ops.compiling() or ops.in_mode():
        # Without this copy torch 2.11 gives a gradient of zeros, as the last operator, which waits, works in
        # place. Inductor removes the copy.
        found: torch.Tensor = functional_collectives.all_reduce(x, "sum", group).clone()
        return found
    x = x.clone()
    dist.all_reduce(x, group=group)
    return x


class _Part(linear.Fp8Linear):
    """A rank's part of a layer.

    Attributes:
        cut: the dimension of the weight, [n, k], that is divided.
        ranks: the group.
        own: which of the whole layer's outputs, or inputs, are this rank's.
        whole: how many there are.
    """

    cut: ClassVar[int]
    ranks: Ranks
    own: range
    whole: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group: Group = None,
        trainable: bool = False,
        use_ue8m0: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {"out_features": out_features, "in_features": in_features}
        ranks, own = self._divided(group, sizes)
        checks.flag("trainable", trainable)  # the rest Fp8Linear does
        sizes[[*sizes][self.cut]] = len(own)
        super().__init__(**sizes, bias=bias, trainable=True, use_ue8m0=use_ue8m0, device=device, dtype=dtype)
        self._share(ranks, own)
        if self.cut and not self.weight.is_meta:  # begin as the whole layer would, and all with one bias
            with torch.no_grad():
                self.weight.mul_((len(own) / self.whole) ** 0.5)
                if self.bias is not None:
                    self.bias.mul_((len(own) / self.whole) ** 0.5)
                    dist.broadcast(self.bias, group=ranks.group, group_src=0)
        if not trainable:
            self.quantize_()

    @classmethod
    def from_linear(
        cls,
        given: torch.nn.Linear | linear.Fp8Linear,
        group: Group = None,
        *,
        trainable: bool = False,
        use_ue8m0: bool = False,
    ) -> _Part:
        """This rank's part of a layer that every rank has, copied out of it.

        Args:
            given: a torch.nn.Linear; or an Fp8Linear, which keeps its form, and its codes and scales.
            group: as for the class.
            trainable, use_ue8m0: as for Fp8Linear, if `given` is none.

        Raises:
            InputError: neither, sizes that cannot be divided, or a group that cannot be used.
        """
        if isinstance(given, _Part) or not isinstance(given, (torch.nn.Linear, linear.Fp8Linear)):
            raise InputError(
                f"the layer is of type {type(given).__name__}; a whole torch.nn.Linear or Fp8Linear is needed"
            )
        ranks, own = cls._divided(
            group, {"out_features": given.out_features, "in_features": given.in_features}
        )
        checks.flag("trainable", trainable)
        checks.flag("use_ue8m0", use_ue8m0)
        if isinstance(given, torch.nn.Linear):
            given = linear.Fp8Linear.from_linear(given, trainable=trainable, use_ue8m0=use_ue8m0)
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer.use_ue8m0 = given.use_ue8m0
        for name in ("weight", linear.WEIGHT_SCALES, "bias"):
            tensor = getattr(given, name)
            if tensor is not None:
                part = cls._part(name, tensor.detach(), own).clone(memory_format=torch.contiguous_format)
                tensor = Parameter(part, requires_grad=tensor.requires_grad)
            layer.register_parameter(name, tensor)
        layer.out_features, layer.in_features = layer.weight.shape
        layer._share(ranks, own)
        return layer.train(given.training)

    @classmethod
    def _divided(cls, group: Group, sizes: dict[str, int]) -> tuple[Ranks, range]:
        linear.check_sizes(sizes["in_features"], sizes["out_features"])
        ranks, name = Ranks(group), [*sizes][cls.cut]
        return ranks, ranks.blocks(name, sizes[name], SCALE_BLOCK)

    @classmethod
    def _part(cls, name: str, tensor: torch.Tensor, own: range) -> torch.Tensor:
        """A rank's part of one of the whole layer's tensors."""
        if name == "bias":
            return tensor if cls.cut else tensor[own.start : own.stop]
        each = 1 if name == "weight" else SCALE_BLOCK
        return tensor.narrow(cls.cut, own.start // each, len(own) // each)

    def _share(self, ranks: Ranks, own: range) -> None:
        ranks.check_device(self.weight.device)
        self.ranks, self.own, self.whole = ranks, own, len(own) * ranks.size

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **keywords: Any
    ) -> None:
        """Keep this rank's part of what a checkpoint has of the whole, and load it as Fp8Linear does."""
        whole = [self.out_features, self.in_features]
        whole[self.cut] = self.whole
        shapes = {
            "weight": tuple(whole),
            linear.WEIGHT_SCALES: weights.blocks(torch.empty(whole, device="meta")),
            "weight" + weights.OTHERS_SCALES: weights.blocks(torch.empty(whole, device="meta")),
            "bias": (whole[0],),
        }
        for name, shape in shapes.items():
            tensor = state_dict.get(prefix + name)
            if tensor is not None and tuple(tensor.shape) == shape:
                part = self._part(name, tensor, self.own)
                state_dict[prefix + name] = part.contiguous()
        super()._load_from_state_dict(state_dict, prefix, *others, **keywords)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.ranks}"


class ColumnParallelFp8Linear(_Part):
    """Fp8Linear of which each rank of a group has some outputs.

    Args:
        in_features, out_features: of the whole layer. out_features is a multiple of 128 times the ranks.
        group: a process group, or a DeviceMesh of one dimension; None: all processes.
        bias, trainable, use_ue8m0, device, dtype: as for Fp8Linear.

    Input: [..., k], the same on all ranks. Output: [..., n / ranks], this rank's.

    Attributes:
        in_features, out_features, weight, ...: those of this rank's part, [n / ranks, k].
        own: which of the whole layer's outputs these are; whole: how many it has.

    Results, and the gradient of the weight, have the bits of one device with the whole layer, where that
    computes the products with the same kernels: always on a CPU, while on a GPU another n may get a kernel
    that adds in another order. The gradient of x is a sum over the ranks, which differs as
    RowParallelFp8Linear says of its results.

    `state_dict` has this rank's part. `load_state_dict` takes that, or the whole layer's weights of any kind
    that Fp8Linear takes. What is saved with `distributed_state_dict` is of the whole layer, for any ranks.

    Raises:
        InputError: as Fp8Linear; or torch.distributed is not initialised, the group is none that this
            process is in or moves no tensors of this device, or out_features cannot be divided.
    """

    cut = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._input(x)
        if torch.is_grad_enabled() and x.requires_grad:
            x = _Shared.apply(x, self.ranks.group)
        return super().forward(x)


class RowParallelFp8Linear(_Part):
    """Fp8Linear of which each rank of a group has some inputs.

    Args:
        in_features, out_features: of the whole layer. in_features is a multiple of 128 times the ranks.
        group, bias, trainable, use_ue8m0, device, dtype: as for ColumnParallelFp8Linear. The bias is whole
            on every rank.

    Input: [..., k / ranks], this rank's, as ColumnParallelFp8Linear gives it. Output: [..., n], the same on
    all ranks: the sum of their products, and the bias.

    A number of the result is at most about 2^-8 (ranks s + |y|) from that of one device with the whole layer,
    both without the bias, where y is that, and s adds up the absolute values of what the ranks add: BF16
    rounds by 2^-8 at most each of these, each of ranks - 1 additions, and y. (In FP32 the additions round
    nothing worth counting.) The gradients of x and of the weight have the bits of one device, as the results
    of ColumnParallelFp8Linear do.

    Attributes, state_dict, errors: as for ColumnParallelFp8Linear.
    """

    cut = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduce(self.partial(x))

    def partial(self, x: torch.Tensor) -> torch.Tensor:
        """[..., n]: what this rank adds to the result."""
        return self._product(self._input(x))

    def reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' parts, and the bias."""
        out: torch.Tensor = _Sum.apply(partial, self.ranks.group)
        return out if self.bias is None else out + self.bias.to(out.dtype)
