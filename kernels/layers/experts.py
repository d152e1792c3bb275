"""The feed-forward layers of a mixture of experts, in FP8."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from gemm_ladder import calls, checks, ops
from gemm_ladder.arguments import K_MULTIPLE, ceil_div
from gemm_ladder.casts import functions
from gemm_ladder.casts.kernel import INPUTS
from gemm_ladder.errors import InputError
from gemm_ladder.layers import combining, expert_products, routing, scattering, single_experts, weights
from torch.nn.parameter import Parameter

PROJECTIONS = ("gate_up_proj", "down_proj")
Setting = routing.Layout | Literal["auto"]
SETTINGS = ("auto", *routing.LAYOUTS)


class Fp8Experts(torch.nn.Module):
    """Experts whose products are in FP8: for each token, sum over its experts e of
    weight[e] * down[e] (SiLU(gate[e] x) * up[e] x).

    Tokens are laid out by expert while they are cast to FP8, SiLU-and-multiply is done by the cast between
    the two products, and each token then adds up its experts' rows, always in the same order. Nothing waits
    for the GPU. So a CUDA graph can capture a call once its kernels are loaded: after `precompile`, or after
    the same call, with tensors that lie in memory alike.

    For inference, or beside what is trained (trainable=False), the weights are stored in FP8 and have no
    gradients; x and expert_weights do. For training (trainable=True) they are parameters of their own type,
    cast in every call. A call whose gradients are wanted, and every call of a trained layer, has the
    contiguous layout; all of its gradients are products in FP8 (`gemm_ladder.layers.expert_products` says
    which), and those of weights wait for the GPU once.

    torch.compile keeps the number of tokens variable and makes few graphs: for any number, for 0 and for 1,
    and up to two more with the layouts "masked" and "auto". A program of torch.export for any number (`Dim`)
    has one layout: "auto" is refused there, "psum" is the one for many tokens and "masked" for few. It keeps
    the alignment that was set when it was made, which has to be set where it runs.

    Args:
        num_experts, hidden_size, intermediate_size: the sizes, the last two multiples of 16.
        layout: how the rows of experts lie. "psum": one expert's behind another's, each beginning at a
            multiple of get_mk_alignment_for_contiguous_layout(). "contiguous": the same, with an index for
            every row. "masked": room for every token in every expert, of which only rows that are used are
            read or written. "auto": the one of "psum" and "masked" that has fewer rows, which is masked for
            few tokens.
        trainable: whether the weights are trained.
        use_ue8m0: round all scales up to powers of two. A state_dict does not have it.
        device: of the weights, which begin as those of torch.nn.Linear do.
        dtype: of weights that are trained: float32, bfloat16 or float16; None: torch's default.

    Attributes:
        layout: as above; it may be set to another.
        gate_up_proj: float8_e4m3fn [experts, 2 intermediate, hidden]: gate above up; dtype if trainable.
        down_proj: float8_e4m3fn [experts, hidden, intermediate]; dtype if trainable.
        gate_up_proj_scale_inv, down_proj_scale_inv: float32, one for each 128 x 128 of these. None if
            trainable.

    `load_state_dict` takes these names (also `..._scale`, and weights that are not in FP8 yet), or those of
    checkpoints with three layers for each expert: `0.gate_proj.weight`, `0.up_proj.weight`,
    `0.down_proj.weight`, with their `weight_scale_inv` or `weight_scale`, and so on. Scales are as for
    Fp8Linear. A checkpoint of single experts may be in several files, to be loaded one after another with
    strict=False; each tensor is written to its place, without a copy of the whole. An expert that a layer on
    the meta device, loaded with assign=True, has not been given yet makes results of NaN.

    Raises:
        InputError: sizes, types or an input that cannot be used.
        gemm_ladder.errors.LaunchError: a CUDA graph is being captured and a kernel is not loaded
            (`gemm_ladder.layers.precompile`).

    Example:
        >>> import torch, gemm_ladder
        >>> experts = gemm_ladder.layers.Fp8Experts(8, 128, 64)
        >>> x, router = torch.randn(5, 128), torch.nn.Linear(128, 8)
        >>> with torch.no_grad():
        ...     experts(x, *gemm_ladder.layers.route(router(x), top_k=2)).shape
        torch.Size([5, 128])
    """

    gate_up_proj: Parameter
    down_proj: Parameter
    gate_up_proj_scale_inv: Parameter | None
    down_proj_scale_inv: Parameter | None

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        layout: Setting = "auto",
        trainable: bool = False,
        use_ue8m0: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._set_options(layout, trainable, use_ue8m0)
        sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size}
        for name, value in {"num_experts": num_experts, **sizes}.items():
            weights.check_size(name, value, K_MULTIPLE if name in sizes else 1)
        shapes = ((2 * intermediate_size, hidden_size), (hidden_size, intermediate_size))
        kind = (dtype or torch.get_default_dtype()) if trainable else torch.bfloat16
        if kind not in INPUTS:
            raise InputError(f"dtype is {kind}; float32, bfloat16 or float16 is needed")
        begun = [
            torch.empty(num_experts, n, k, dtype=kind, device=device).uniform_(
                -1 / math.sqrt(k), 1 / math.sqrt(k)
            )
            for n, k in shapes
        ]
        self._take(begun, trainable)

    @classmethod
    def from_weights(
        cls,
        gate_up_proj: torch.Tensor,
        down_proj: torch.Tensor,
        *,
        layout: Setting = "auto",
        trainable: bool = False,
        use_ue8m0: bool = False,
    ) -> Fp8Experts:
        """Experts with the weights given.

        Args:
            gate_up_proj: float32, bfloat16 or float16 [experts, 2 intermediate, hidden]: gate above up.
            down_proj: [experts, hidden, intermediate], likewise.
            layout, use_ue8m0: as for the class.
            trainable: as for the class. Parameters are shared then, so an optimizer that has them goes on.

        Raises:
            InputError: other shapes or types, no experts, sizes that are no multiple of 16, or two devices.
        """
        for name, tensor in zip(PROJECTIONS, (gate_up_proj, down_proj), strict=True):
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{name} is of type {type(tensor).__name__}; a torch.Tensor is needed")
            checks.dense(name, tensor)
            if tensor.dtype not in INPUTS or tensor.dim() != 3:
                raise InputError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}; float32, bfloat16 or float16 with 3 "
                    "dimensions is needed"
                )
        if gate_up_proj.device != down_proj.device:
            raise InputError(
                f"gate_up_proj is on {gate_up_proj.device} and down_proj on {down_proj.device}; one device "
                "is needed for both"
            )
        experts, doubled, hidden = gate_up_proj.shape
        if not experts:
            raise InputError(
                f"gate_up_proj has shape {list(gate_up_proj.shape)}, of 0 experts; 1 or more is needed"
            )
        if doubled % (2 * K_MULTIPLE) or hidden % K_MULTIPLE or not gate_up_proj.numel():
            raise InputError(
                f"gate_up_proj has shape {list(gate_up_proj.shape)}; [experts, 2 intermediate, hidden] with "
                f"intermediate and hidden positive multiples of {K_MULTIPLE} is needed"
            )
        if down_proj.shape != (experts, hidden, doubled // 2):
            raise InputError(
                f"down_proj has shape {list(down_proj.shape)}; {[experts, hidden, doubled // 2]}, for "
                "gate_up_proj's sizes, is needed"
            )
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer._set_options(layout, trainable, use_ue8m0)
        layer._take([gate_up_proj, down_proj], trainable)
        return layer

    def _set_options(self, layout: Setting, trainable: bool, use_ue8m0: bool) -> None:
        """Check the options, and keep those that the weights do not show."""
        checks.flag("trainable", trainable)
        checks.flag("use_ue8m0", use_ue8m0)
        self.layout, self.use_ue8m0 = layout, use_ue8m0

    def _take(self, given: list[torch.Tensor], trainable: bool) -> None:
        for name, weight in zip(PROJECTIONS, given, strict=True):
            kept = weight if isinstance(weight, Parameter) else Parameter(weight.detach())
            self.register_parameter(name, kept if trainable else None)
            self.register_parameter(name + weights.SCALES, None)
        if not trainable:
            self._store(given)

    def _store(self, given: list[torch.Tensor]) -> None:
        """Keep weights in FP8."""
        for name, weight in zip(PROJECTIONS, given, strict=True):
            codes, of_blocks = weights.quantized(weight, self.use_ue8m0)
            self.register_parameter(name, Parameter(codes, requires_grad=False))
            self.register_parameter(name + weights.SCALES, Parameter(of_blocks, requires_grad=False))

    @property
    def layout(self) -> Setting:
        """How the rows of experts lie."""
        return self._layout

    @layout.setter
    def layout(self, layout: Setting) -> None:
        if layout not in SETTINGS:
            raise InputError(f"layout is {layout!r}; one of {', '.join(SETTINGS)} is needed")
        self._layout: Setting = layout

    @property
    def trainable(self) -> bool:
        """Whether the weights are stored in their own type, for training."""
        return self.down_proj_scale_inv is None

    def quantize_(self) -> Fp8Experts:
        """Store trained weights in FP8, for inference; returns the layer."""
        if self.trainable:
            self._store([self.gate_up_proj, self.down_proj])
        return self

    @property
    def num_experts(self) -> int:
        return self.down_proj.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.down_proj.shape[1]

    @property
    def intermediate_size(self) -> int:
        return self.down_proj.shape[2]

    def forward(self, x: torch.Tensor, experts: torch.Tensor, expert_weights: torch.Tensor) -> torch.Tensor:
        """The experts' results for each token, weighted and added up.

        Args:
            x: float32, bfloat16 or float16 [..., hidden].
            experts: int32 or int64 [..., top_k]: the experts of each token, none of them twice: the masked
                layout has one row for each token and expert. A number that is no expert's, such as -1, adds
                nothing: the expert may be on another GPU.
            expert_weights: [..., top_k], of a floating-point type; they are rounded to BF16.

        Returns:
            x's type and shape: BF16 sums, converted.

        Raises:
            InputError: other types, shapes or devices; or, on the CPU and with GEMM_LADDER_CHECK=1, an expert
                has more choices than rows, as tokens chose it twice. Elsewhere such choices add nothing.
        """
        self._check(x, experts, expert_weights)
        if x.is_meta:  # which has a shape alone
            return torch.empty_like(x)
        rows = x.reshape(-1, self.hidden_size)
        count = rows.shape[0]  # which torch.compile keeps variable, unlike len(rows)
        chosen = experts.reshape(count, experts.shape[-1])
        wanted = torch.is_grad_enabled() and (x.requires_grad or expert_weights.requires_grad)
        if self.trainable or wanted:
            return self._differentiated(rows, chosen, expert_weights.reshape(chosen.shape)).view(x.shape)
        if not chosen.numel():
            return torch.zeros_like(x)
        layout = self.layout
        if layout == "auto":
            layout = routing.layout_for(count, chosen.shape[1], self.num_experts)
        placed = routing.place(chosen, self.num_experts, layout, None, self._room(count))
        routing.check_room(chosen, placed)
        of_experts = self._results(scattering.in_layout(rows, placed, self.use_ue8m0), placed)
        return combining.combined(of_experts, placed.places, expert_weights, x.dtype).view(x.shape)

    def _differentiated(
        self, rows: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """The result, with gradients."""
        trained = (self.gate_up_proj, self.down_proj) if self.trainable else None
        pairs = [self._in_fp8(name) for name in PROJECTIONS]
        stored = expert_products.Weights(*pairs[0], *pairs[1])
        return expert_products.experts(rows, chosen, factors, trained, stored, self.use_ue8m0)

    def _in_fp8(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A weight's codes and scales."""
        weight, of_blocks = getattr(self, name), getattr(self, name + weights.SCALES)
        if of_blocks is None:
            return weights.quantized(weight.detach(), self.use_ue8m0)
        weights.check_stored(name, weight)
        return weight.detach(), of_blocks.detach()

    def _results(self, a: tuple[torch.Tensor, torch.Tensor], placed: routing.Placement) -> torch.Tensor:
        """BF16 [size, hidden]: the result of each row of `a`, which lies as `placed` says. In the masked
        layout the rows that count alone are read and written."""
        inner = a[0].new_empty(*placed.shape, 2 * self.intermediate_size, dtype=torch.bfloat16)
        self._product(placed, a, "gate_up_proj", inner)
        b = functions.silu_and_mul_per_token_group_quant_fp8(
            inner, self.use_ue8m0, masked_m=placed.counts, psum_m=placed.ends
        )
        out = a[0].new_empty(placed.size, self.hidden_size, dtype=torch.bfloat16)
        self._product(placed, b, "down_proj", out.view(*placed.shape, self.hidden_size))
        return out

    def _room(self, tokens: int) -> int:
        """How many rows each expert has in the masked layout."""
        return tokens

    def _product(
        self,
        placed: routing.Placement,
        lhs: tuple[torch.Tensor, torch.Tensor],
        name: str,
        out: torch.Tensor,
    ) -> None:
        codes, of_blocks = self._in_fp8(name)
        expected = ceil_div(placed.most, self.num_experts)
        if placed.layout == "masked":
            calls.masked(lhs, (codes, of_blocks), out, placed.rows, expected)
        elif placed.layout == "psum":
            calls.psum(lhs, (codes, of_blocks), out, placed.rows, None, expected)
        else:
            calls.contiguous(lhs, (codes, of_blocks), out, placed.rows, None)

    def _check(self, x: torch.Tensor, experts: torch.Tensor, expert_weights: torch.Tensor) -> None:
        given = {"x": x, "experts": experts, "expert_weights": expert_weights}
        for name, tensor in given.items():
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{name} is of type {type(tensor).__name__}; a torch.Tensor is needed")
            checks.dense(name, tensor)
            if tensor.device != self.down_proj.device:
                raise InputError(
                    f"{name} is on {tensor.device} and the weights on {self.down_proj.device}; one device is "
                    "needed for both"
                )
        if not ops.compiling():
            checks.no_tangents(given)
            for name, tensor in given.items():
                checks.in_no_transform(name, tensor)
        elif ops.in_transform():
            ops.run_uncompiled(self._check, x, experts, expert_weights)
        if x.dtype not in INPUTS or x.dim() == 0 or x.shape[-1] != self.hidden_size:
            raise InputError(
                f"x is {x.dtype} {list(x.shape)}; float32, bfloat16 or float16 "
                f"[..., {self.hidden_size}] is needed"
            )
        if experts.dtype not in (torch.int32, torch.int64) or not expert_weights.is_floating_point():
            raise InputError(
                f"experts is {experts.dtype} and expert_weights {expert_weights.dtype}; int32 or int64, and "
                "a floating-point type, are needed"
            )
        if experts.shape[:-1] != x.shape[:-1] or experts.dim() == 0 or experts.shape != expert_weights.shape:
            needed = ", ".join([*map(str, x.shape[:-1]), "top_k"])
            raise InputError(
                f"experts has shape {list(experts.shape)} and expert_weights {list(expert_weights.shape)}; "
                f"[{needed}], as x has them, is needed of both"
            )

    def extra_repr(self) -> str:
        sizes = ("num_experts", "hidden_size", "intermediate_size")
        named = ", ".join(f"{name}={getattr(self, name)}" for name in sizes)
        kind = str(self.down_proj.dtype).removeprefix("torch.")
        stored = f"{kind}, cast to float8_e4m3fn in every call" if self.trainable else kind
        return f"{named}, weights={stored}, layout={self.layout}" + ", use_ue8m0=True" * self.use_ue8m0

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Fp8Experts:
        kept = () if self.trainable else tuple(self.parameters(recurse=False))
        super()._apply(weights.keeping_types(fn, kept), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *others: Any,
    ) -> None:
        """Bring what a checkpoint has into the form of this layer, and load it as torch does."""
        if single_experts.numbers(state_dict, prefix):
            assign = bool(local_metadata.get("assign_to_params_buffers"))
            missing_keys += self._join(state_dict, prefix, assign)
        else:
            for name in PROJECTIONS:
                weight = getattr(self, name)
                weights.bring(state_dict, prefix + name, weight, self.trainable, self.use_ue8m0)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *others)

    def _join(self, state: dict[str, Any], prefix: str, assign: bool) -> list[str]:
        """Read the layers of single experts, into this layer's tensors or new ones; `state` gets those then.
        Returns the names of what is missing."""
        first = self._first_expert()
        given = single_experts.Checkpoint(
            state, prefix, range(first, first + self.num_experts), self.down_proj, self.trainable
        )
        stored = single_experts.Stored(*(getattr(self, name) for name in single_experts.Stored._fields))
        if self.down_proj.is_meta or (assign and not given.missing):
            stored = stored.new(given.device)
        given.write(stored, self.use_ue8m0)
        for name, tensor in zip(stored._fields, stored, strict=True):
            of_all = state.get(prefix + name)  # the scales, if they are together
            if of_all is not None and not self.trainable:
                state[prefix + name] = of_all.float()
            elif tensor is not None:
                state[prefix + name] = tensor
        return given.missing

    def _first_expert(self) -> int:
        """The number in a checkpoint of the first expert."""
        return 0
