"""Checkpoints that have three layers for each expert, as DeepSeek-V3's: bringing them into the two tensors of
Fp8Experts, also from several files that have some of them each.

Every tensor is written where it belongs. Beside the checkpoint's tensors and the layer's there are never more
than those of one expert. transformers writes converted experts so, too, but for the scales, which it leaves
together: those are read as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import NamedTuple

import torch
from gemm_ladder.arguments import SCALE_BLOCK
from gemm_ladder.errors import InputError
from gemm_ladder.layers import weights

NAMES = ("gate_proj", "up_proj", "down_proj")
_TOGETHER = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}  # in the layer
_BEHIND = (weights.SCALES, weights.OTHERS_SCALES, weights.ZERO_POINTS)
_KEY = re.compile(rf"(\d+)\.(?:{'|'.join(NAMES)})\.weight(?:{'|'.join(_BEHIND)})?")

State = MutableMapping[str, torch.Tensor]
Given = tuple[torch.Tensor | None, torch.Tensor | None]  # a weight and its scales


class Stored(NamedTuple):
    """A layer's tensors, that are written to. A layer that is trained has no scales."""

    gate_up_proj: torch.Tensor
    gate_up_proj_scale_inv: torch.Tensor | None
    down_proj: torch.Tensor
    down_proj_scale_inv: torch.Tensor | None

    def new(self, device: torch.device) -> Stored:
        """The like with memory of their own. Scales, and weights without them, begin as NaN, and so do
        results of experts that are never written."""

        def like(tensor: torch.Tensor) -> torch.Tensor:
            found = torch.empty_like(tensor, device=device, requires_grad=False)
            return found if found.dtype == weights.E4M3 else found.fill_(torch.nan)

        return self._each(like)

    def of(self, place: int) -> Stored:
        """Those of one expert."""
        return self._each(lambda tensor: tensor.detach()[place])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Stored:
        first, second = self.gate_up_proj_scale_inv, self.down_proj_scale_inv
        return Stored(
            change(self.gate_up_proj),
            None if first is None else change(first),
            change(self.down_proj),
            None if second is None else change(second),
        )


def numbers(state: State, prefix: str) -> set[int]:
    """The experts of which a checkpoint has layers of their own."""
    found = (_KEY.fullmatch(key, len(prefix)) for key in state if key.startswith(prefix))
    return {int(match[1]) for match in found if match}


def drop(state: State, prefix: str, others: set[int]) -> None:
    """Take the layers of some experts out of a checkpoint's tensors."""
    for key in [key for key in state if key.startswith(prefix)]:
        if (match := _KEY.fullmatch(key, len(prefix))) and int(match[1]) in others:
            del state[key]


class Checkpoint:
    """What a checkpoint has of a layer's experts.

    Args:
        state: the checkpoint's tensors.
        prefix: what their names have before an expert's number.
        experts: the numbers of the layer's experts there.
        down_proj: the layer's, for its sizes.
        trained: whether the layer has weights of their own type.

    Attributes:
        missing: the names that are needed besides.

    Raises:
        InputError: one of the tensors cannot be such a weight, the scales of two that are joined cannot be,
            or there are weights of all experts together, or two scales of one weight. Nothing has been
            written or taken out of `state` then.
    """

    def __init__(
        self, state: State, prefix: str, experts: range, down_proj: torch.Tensor, trained: bool
    ) -> None:
        self._state, self._prefix, self._experts, self._trained = state, prefix, experts, trained
        _, hidden, self._inner = down_proj.shape
        shapes = dict.fromkeys(NAMES, (self._inner, hidden)) | {"down_proj": (hidden, self._inner)}
        self.missing: list[str] = []
        self._given: dict[tuple[int, str], Given] = {}
        for name in dict.fromkeys(_TOGETHER.values()):
            if prefix + name in state:
                raise InputError(
                    f"{prefix + name} is given, and layers of single experts beside it; one or the other is "
                    "needed"
                )
        for expert in experts:
            for name in NAMES:
                self._given[expert, name] = self._look(expert, name, shapes[name])
            if self._inner % SCALE_BLOCK and not trained:
                self._check_joined(expert)

    def _key(self, expert: int, name: str) -> str:
        return f"{self._prefix}{expert}.{name}.weight"

    def _scales_together(self, name: str) -> str | None:
        """What the scales of all experts are called in the checkpoint; None if they are not together."""
        key = self._prefix + _TOGETHER[name] + weights.SCALES
        return key if key in self._state else None

    def _look(self, expert: int, name: str, shape: tuple[int, ...]) -> Given:
        key, together = self._key(expert, name), self._scales_together(name)
        weight, scales = weights.look(self._state, key, shape)
        in_fp8 = weight is not None and weight.dtype == weights.E4M3
        if together and weight is not None and (scales is not None or not in_fp8):
            kind = f"is {weight.dtype}" + " with scales of its own" * (scales is not None)
            raise InputError(f"{together} is given, and {key} {kind}; float8_e4m3fn without them is needed")
        if together and self._trained and in_fp8:
            raise InputError(
                f"the scales of {key} are in {together}; {key}{weights.SCALES} is needed for weights that "
                "are trained"
            )
        if self._trained and in_fp8 != (scales is not None):
            raise InputError(
                f"one of {key} and {key}{weights.SCALES} is given; both are needed for weights that are "
                "trained"
            )
        if weight is None:
            self.missing.append(key)
        if scales is None and not together and (in_fp8 or (weight is None and not self._trained)):
            self.missing.append(key + weights.SCALES)
        return weight, scales

    def _check_joined(self, expert: int) -> None:
        """Where a block of 128 x 128 has rows of both, gate and up have to be cast together."""
        gate, up = (self._given[expert, name] for name in NAMES[:2])
        reason = f"intermediate_size is {self._inner}; a multiple of {SCALE_BLOCK} is needed to "
        together = self._scales_together("gate_proj")
        for weight, scales in (gate, up):
            if scales is not None or (weight is not None and weight.dtype == weights.E4M3 and not together):
                raise InputError(
                    f"{reason}join gate_proj and up_proj in FP8, of which a block would have two scales"
                )
        if (gate[0] is None) != (up[0] is None):
            there, other = sorted(NAMES[:2], key=lambda name: self._given[expert, name][0] is None)
            raise InputError(
                f"{reason}load {self._key(expert, there)} without {other}, since a block has rows of both"
            )

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(one.device for given in self._given.values() for one in given if one is not None)

    def write(self, stored: Stored, use_ue8m0: bool) -> None:
        """Write what is there to a layer's tensors, and take it out of the checkpoint's."""
        with torch.no_grad():
            for place, expert in enumerate(self._experts):
                for (weight, of_blocks), to, scales in self._targets(expert, stored.of(place)):
                    if weight is not None and self._trained and of_blocks is not None:
                        weight = weights.dequantized(weight.to(to.device), of_blocks.to(to.device))
                    elif weight is not None and not self._trained and weight.dtype != weights.E4M3:
                        weight, of_blocks = weights.quantized(weight.to(to.device), use_ue8m0)
                    if weight is not None:
                        to.copy_(weight)
                    if of_blocks is not None and scales is not None:
                        scales.copy_(of_blocks)
        drop(self._state, self._prefix, {*self._experts})

    def _targets(self, expert: int, to: Stored) -> Iterator[tuple[Given, torch.Tensor, torch.Tensor | None]]:
        """An expert's weights, and which part of its tensors each belongs to."""
        gate, up, down = (self._given[expert, name] for name in NAMES)
        yield down, to.down_proj, to.down_proj_scale_inv
        weight, scales = to.gate_up_proj, to.gate_up_proj_scale_inv
        if scales is None or not self._inner % SCALE_BLOCK:
            halves = weight.chunk(2)
            of_halves = (None, None) if scales is None else scales.chunk(2)
            yield from zip((gate, up), halves, of_halves, strict=True)
        elif gate[0] is not None and up[0] is not None:
            yield (torch.cat([gate[0], up[0]]), None), weight, scales
