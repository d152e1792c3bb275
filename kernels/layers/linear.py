"""A linear layer whose products are in FP8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gemm_ladder import checks
from gemm_ladder.arguments import K_MULTIPLE, N_MULTIPLE
from gemm_ladder.casts.kernel import INPUTS
from gemm_ladder.errors import InputError
from gemm_ladder.layers import products, weights
from torch.nn.parameter import Parameter

WEIGHT_SCALES = "weight" + weights.SCALES


class Fp8Linear(torch.nn.Module):
    """`torch.nn.Linear` in FP8: y = x W^T + bias, x with a scale for each 128 of a row, W for each 128 x 128.

    For inference, or beside what is trained (trainable=False), the weight is stored in FP8. It has no
    gradient; x and the bias do. For training (trainable=True) the weight is a parameter of its own type, as
    in torch.nn.Linear, and is cast in every call; both gradients are products in FP8. Until the backward pass
    a trained layer keeps x in its type and W in FP8.

    Args:
        in_features: k, a multiple of 16.
        out_features: n, a multiple of 8.
        bias: whether there is one.
        trainable: whether the weight is trained.
        use_ue8m0: round all scales up to powers of two, as checkpoints do whose scales are E8M0. A state_dict
            does not have it: a layer that loads such weights is made with it, too, or its inputs get other
            scales.
        device, dtype: as for torch.nn.Linear. dtype is float32, bfloat16 or float16, and that of the bias and
            of a weight that is trained.

    Attributes:
        weight: float8_e4m3fn [n, k]; dtype if trainable.
        weight_scale_inv: float32 [ceil(n / 128), ceil(k / 128)], by which the weight is multiplied. None if
            trainable.
        bias: [n], or None.

    For normally distributed numbers, results and gradients are 3.7 % from those in BF16 (in the Frobenius
    norm), as E4M3 rounds a number by 2.6 % in the mean.

    Input: float32, bfloat16 or float16 [..., k]. Output: of the same type, or of autocast's in its region,
    [..., n]. Sums are rounded to BF16 before they are converted to another type and the bias is added.

    `load_state_dict` takes weights of three kinds into either form: those of torch.nn.Linear, FP8 with
    `weight_scale_inv` (DeepSeek-V3), and FP8 with `weight_scale` (compressed-tensors, with its "block" or
    "tensor" strategy and dynamic inputs). Scales may be float32, bfloat16 or float8_e8m0fnu, one for each
    128 x 128 or a single one; they become float32, which changes none. Refused are scales of another shape,
    such as one for each row ("channel"), zero points other than 0 (`weight_zero_point`) and, unless
    strict=False, static scales of inputs (`input_scale`).
    `state_dict` has `weight` and, unless trainable, `weight_scale_inv`.

    Changing the type of a model, as `model.half()` does, leaves a weight in FP8 and its scales as they are.

    Raises:
        InputError: sizes, types or an input that cannot be used.
        gemm_ladder.errors.LaunchError: a CUDA graph is being captured and a kernel is not loaded
            (`gemm_ladder.layers.precompile`).

    Example:
        >>> import torch, gemm_ladder
        >>> layer = gemm_ladder.layers.Fp8Linear.from_linear(torch.nn.Linear(512, 256))
        >>> layer(torch.randn(2, 7, 512)).shape
        torch.Size([2, 7, 256])
    """

    in_features: int
    out_features: int
    weight: Parameter
    weight_scale_inv: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        trainable: bool = False,
        use_ue8m0: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features, out_features)
        checks.flag("trainable", trainable)
        checks.flag("use_ue8m0", use_ue8m0)
        if dtype is not None and dtype not in INPUTS:
            raise InputError(f"dtype is {dtype}; float32, bfloat16 or float16 is needed")
        self._take(torch.nn.Linear(in_features, out_features, bias, device, dtype), trainable, use_ue8m0)

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, *, trainable: bool = False, use_ue8m0: bool = False
    ) -> Fp8Linear:
        """A layer with the weight of another.

        Args:
            linear: a torch.nn.Linear, which is left as it is. The bias and, if trainable, the weight are
                shared with it, so an optimizer that has them goes on.
            trainable, use_ue8m0: as for the class.

        Raises:
            InputError: no torch.nn.Linear, or sizes or a type that cannot be used.
        """
        if not isinstance(linear, torch.nn.Linear):
            raise InputError(f"linear is of type {type(linear).__name__}; a torch.nn.Linear is needed")
        check_sizes(linear.in_features, linear.out_features)
        checks.flag("trainable", trainable)
        checks.flag("use_ue8m0", use_ue8m0)
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer._take(linear, trainable, use_ue8m0)
        return layer.train(linear.training)

    def _take(self, linear: torch.nn.Linear, trainable: bool, use_ue8m0: bool) -> None:
        if linear.weight.dtype not in INPUTS:
            raise InputError(
                f"the weight is {linear.weight.dtype}; float32, bfloat16 or float16 is needed to be cast"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.use_ue8m0 = use_ue8m0
        for name, tensor in (("weight", None), (WEIGHT_SCALES, None), ("bias", _parameter(linear.bias))):
            self.register_parameter(name, tensor)
        if not trainable:
            self._store(linear.weight)
        elif isinstance(linear.weight, Parameter):
            self.weight = linear.weight
        else:
            raise InputError("the weight is computed from other tensors; a parameter is needed to be trained")

    def _store(self, weight: torch.Tensor) -> None:
        """Keep a weight in FP8."""
        codes, scales = weights.quantized(weight, self.use_ue8m0)
        self.weight = Parameter(codes, requires_grad=False)
        self.weight_scale_inv = Parameter(scales, requires_grad=False)

    @property
    def trainable(self) -> bool:
        """Whether the weight is stored in its own type, for training."""
        return self.weight_scale_inv is None

    def quantize_(self) -> Fp8Linear:
        """Store a trained weight in FP8, for inference; returns the layer."""
        if self.trainable:
            self._store(self.weight)
        return self

    def dequantized_weight(self) -> torch.Tensor:
        """float32 [n, k]: the weight that the products have, without a history for autograd."""
        return weights.dequantized(*self._weight_in_fp8())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._product(self._input(x))
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """The result without the bias."""
        codes, scales = self._weight_in_fp8()
        trained = self.weight if self.trainable else None
        if x.dim() == 2:
            return products.linear(x, trained, codes, scales, self.use_ue8m0)
        rows = x.reshape(-1, self.in_features)
        out = products.linear(rows, trained, codes, scales, self.use_ue8m0)
        return out.view(*x.shape[:-1], self.out_features)

    def _weight_in_fp8(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight, scales = self.weight, self.weight_scale_inv  # once: torch finds parameters slowly
        if scales is None:
            return weights.quantized(weight, self.use_ue8m0)
        weights.check_stored("the weight", weight)
        # Detached, as a whole model may have been asked to require grad.
        return weight.detach(), scales.detach()

    def _input(self, x: torch.Tensor) -> torch.Tensor:
        """x as it is cast to FP8: of autocast's type in its region."""
        if not isinstance(x, torch.Tensor):
            raise InputError(f"x is of type {type(x).__name__}; a torch.Tensor is needed")
        checks.dense("x", x)
        if x.dtype not in INPUTS:
            raise InputError(f"x is {x.dtype}; float32, bfloat16 or float16 is needed")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise InputError(f"x has shape {list(x.shape)}; [..., {self.in_features}] is needed")
        if x.device != self.weight.device:
            raise InputError(
                f"x is on {x.device} and the weight on {self.weight.device}; one device is needed for both"
            )
        kind = x.device.type
        # Autocast does not know meta tensors. torch.amp.is_autocast_available would say so, but torch.compile
        # cannot trace it before torch 2.14.
        casts = kind != "meta" and torch.is_autocast_enabled(kind)
        return x.to(torch.get_autocast_dtype(kind)) if casts else x

    def extra_repr(self) -> str:
        sizes = (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
        if self.weight_scale_inv is None:
            dtype = str(self.weight.dtype).removeprefix("torch.")
            stored = f"weight={dtype}, cast to float8_e4m3fn in every call"
        else:
            rows, columns = self.weight_scale_inv.shape
            stored = f"weight=float8_e4m3fn, scales={rows}x{columns}"
        return f"{sizes}, {stored}" + ", use_ue8m0=True" * self.use_ue8m0

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Fp8Linear:
        kept = () if self.trainable else (self.weight, self.weight_scale_inv)
        super()._apply(weights.keeping_types(fn, kept), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Bring what a checkpoint has into the form of this layer, and load it as torch does."""
        weights.bring(state_dict, prefix + "weight", self.weight, self.trainable, self.use_ue8m0)
        super()._load_from_state_dict(
            *(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        )
        static = {prefix + name for name in weights.STATIC}
        unexpected_keys[:] = [weights.Static(key) if key in static else key for key in unexpected_keys]


def _parameter(tensor: torch.Tensor | None) -> Parameter | None:
    """The same, as a parameter if it is none."""
    return tensor if tensor is None or isinstance(tensor, Parameter) else Parameter(tensor.detach())


def check_sizes(in_features: object, out_features: object) -> None:
    """Refuse sizes that the products do not take."""
    weights.check_size("in_features", in_features, K_MULTIPLE)
    weights.check_size("out_features", out_features, N_MULTIPLE)
