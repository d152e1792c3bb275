"""What `convert` says that it did."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer of the model, or one of the two weights of its experts.

    Attributes:
        name: its path: that of a linear layer, or of a weight of experts.
        shape: of its weight, [(experts,) n, k]; empty for a torch.nn.LazyLinear that was not called yet. As
            it is stored, if the class is another.
        reason: why it was not replaced; "" if it was.
        error: of the weight, ||FP8 - weight|| / ||weight|| in the Frobenius norm; None if it was not
            replaced, or has no memory (on the meta device).
        output_error: the same of the output, for what the layer got in the call with `inputs`: up to 256 rows
            of its first call. The two weights of experts have the same, that of what they give together: of
            two products, so larger than that of a linear layer. NaN if the output has NaN or infinities;
            infinity if it was all zeros and is no more, or is infinite in FP8 only. None without `inputs`, if
            the layer was not replaced, or if they did not reach it.
    """

    name: str
    shape: tuple[int, ...]
    reason: str = ""
    error: float | None = None
    output_error: float | None = None

    @property
    def converted(self) -> bool:
        return not self.reason


@dataclasses.dataclass(frozen=True)
class Report:
    """What `convert` did. As text it is a table.

    Attributes:
        layers: every linear layer of the model and all experts, in the model's order, and other modules with
            a 2-D weight, which are never replaced: no embeddings, norms or convolutions.
        unused: patterns that were given in `skip` and match none of these.
        measured: whether `inputs` were given, so that the layers have errors of their outputs.
    """

    layers: tuple[Layer, ...]
    unused: tuple[str, ...] = ()
    measured: bool = False

    @property
    def converted(self) -> list[Layer]:
        """The layers that were replaced."""
        return [layer for layer in self.layers if layer.converted]

    @property
    def kept(self) -> list[Layer]:
        """The layers that were not."""
        return [layer for layer in self.layers if not layer.converted]

    @property
    def worst(self) -> Layer | None:
        """The layer with the largest error of its output; None if none was measured."""
        known = [layer for layer in self.layers if layer.output_error is not None]
        return max(known, key=_badness, default=None)

    def __str__(self) -> str:
        rows = [("layer", "weight", "error" + "  output" * self.measured)]
        for layer in self.layers:
            rest = f"not converted: {layer.reason}"
            if layer.converted:
                rest = "-" if layer.error is None else f"{layer.error:.2%}"
                if self.measured:
                    rest = f"{rest:5}  {'not reached' if layer.output_error is None else _percent(layer)}"
            rows.append((layer.name, " x ".join(map(str, layer.shape)), rest))
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{name:{first}}  {sizes:>{second}}  {rest}" for name, sizes, rest in rows]
        lines.append(f"{len(self.converted)} of {len(self.layers)} layers converted")
        if self.worst:
            lines.append(_said_of_worst(self.worst))
        lines += [f"skip has {pattern!r}, which matches no layer" for pattern in self.unused]
        return "\n".join(lines)


def _badness(layer: Layer) -> float:
    """The error of the output; NaN, where the output is not finite, is worse than any."""
    error = layer.output_error
    return float("inf") if error is None or error != error else error


def _said_of_worst(layer: Layer) -> str:
    """The line about the layer with the largest error of its output."""
    if layer.output_error != layer.output_error:
        return f"the output of {layer.name} has NaN or infinities for these inputs, so its error is not known"
    return f"the largest error of an output is {_percent(layer)}, of {layer.name}"


def _percent(layer: Layer) -> str:
    """The error of the output. NaN and infinity are no numbers of percent."""
    error = layer.output_error
    if error is None or error != error:
        return "unknown"
    return "infinite" if error == float("inf") else f"{error:.2%}"
