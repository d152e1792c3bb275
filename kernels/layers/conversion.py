"""Replacing the linear layers of a model by Fp8Linear, and saying what was replaced."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from gemm_ladder.errors import InputError
from gemm_ladder.layers.linear import Fp8Linear

# What is usually left in BF16: the projection to the vocabulary, and the routers of mixtures of experts,
# which are small and whose rounding errors would send tokens to other experts.
SKIP = ("lm_head", "gate", "router")
# Modules of torch that read their layers' weights themselves.
READS_WEIGHTS = (torch.nn.MultiheadAttention, torch.nn.TransformerEncoderLayer)

Skip = str | Iterable[str] | Callable[[str, torch.nn.Module], bool]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer of the model.

    Attributes:
        name: its path, as in model.named_modules().
        in_features, out_features: its sizes.
        reason: why it was not replaced; "" if it was.
        error: of the weight, ||FP8 - weight|| / ||weight|| in the Frobenius norm; None if it was not
            replaced, or has no memory (on the meta device).
    """

    name: str
    in_features: int
    out_features: int
    reason: str = ""
    error: float | None = None

    @property
    def converted(self) -> bool:
        return not self.reason


@dataclasses.dataclass(frozen=True)
class Report:
    """What `convert` did. As text it is a table.

    Attributes:
        layers: every linear layer of the model, in the model's order.
        unused: patterns that were given in `skip` and match no linear layer.
    """

    layers: tuple[Layer, ...]
    unused: tuple[str, ...] = ()

    @property
    def converted(self) -> list[Layer]:
        """The layers that were replaced."""
        return [layer for layer in self.layers if layer.converted]

    @property
    def kept(self) -> list[Layer]:
        """The layers that were not."""
        return [layer for layer in self.layers if not layer.converted]

    def __str__(self) -> str:
        rows = [("layer", "out x in", "weight error")]
        for layer in self.layers:
            error = "-" if layer.error is None else f"{layer.error:.2%}"
            rows.append(
                (
                    layer.name,
                    f"{layer.out_features} x {layer.in_features}",
                    error if layer.converted else f"not converted: {layer.reason}",
                )
            )
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{name:{first}}  {sizes:>{second}}  {rest}" for name, sizes, rest in rows]
        lines.append(f"{len(self.converted)} of {len(self.layers)} linear layers converted")
        lines += [f"skip has {pattern!r}, which matches no linear layer" for pattern in self.unused]
        return "\n".join(lines)


def convert(
    model: torch.nn.Module,
    skip: Skip = SKIP,
    *,
    trainable: bool = False,
    use_ue8m0: bool = False,
) -> Report:
    """Replace the linear layers of a model by Fp8Linear, in place.

    Args:
        model: any module of torch, such as a model of transformers. On the meta device, too: then FP8 weights
            can be loaded into it with load_state_dict(..., assign=True).
        skip: patterns of the layers to leave alone. A pattern matches a layer whose path has it between dots,
            or at an end: "lm_head" matches "model.lm_head", "layers.0" all that is inside of layer 0, and
            "gate" no "gate_proj". Wildcards are those of a shell. Or a function of a path and a module that
            says whether to leave it alone.
        trainable, use_ue8m0: as for Fp8Linear.

    Returns:
        A report, to print. What else is left alone, and why, it says of each layer: sizes that the products
        do not take, classes derived from torch.nn.Linear, layers with hooks, weights that two modules share
        (unless trainable) or that modules of torch read themselves, and weights that are not finite.

    Raises:
        InputError: `model` is no module or a linear layer itself, or skip is none of the above. Nothing was
            replaced.

    Example:
        >>> import torch, gemm_ladder
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        >>> print(gemm_ladder.layers.convert(model))  # doctest: +SKIP
        layer  out x in  weight error
        0      128 x 64  2.54%
        2      10 x 128  not converted: out_features is 10; a positive multiple of 8 is needed
        1 of 2 linear layers converted
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model is of type {type(model).__name__}; a torch.nn.Module is needed")
    if isinstance(model, torch.nn.Linear):
        raise InputError(
            "model is a torch.nn.Linear, with nothing around it to be replaced in; Fp8Linear.from_linear is "
            "needed"
        )
    skipped = _Skipped(skip)
    owners = _owners(model)
    replaced: dict[int, Fp8Linear | str] = {}
    layers = []
    for parent, own_name, name, linear in list(_linears(model)):
        reason = skipped.why(name, linear) or _why_not(parent, linear, owners, trainable)
        if not reason:
            if id(linear) not in replaced:
                replaced[id(linear)] = _replacement(linear, trainable, use_ue8m0)
            found = replaced[id(linear)]
            if isinstance(found, Fp8Linear):
                setattr(parent, own_name, found)
                error = _error(linear.weight, found)
                layers.append(Layer(name, linear.in_features, linear.out_features, error=error))
                continue
            reason = found
        layers.append(Layer(name, linear.in_features, linear.out_features, reason))
    return Report(tuple(layers), skipped.unused())


class _Skipped:
    """Which layers the caller wants to be left alone."""

    def __init__(self, skip: object) -> None:
        self._asks = skip if callable(skip) else None
        given: object = (skip,) if isinstance(skip, str) else () if callable(skip) else skip
        patterns = tuple(given) if isinstance(given, Iterable) else (None,)
        if not all(isinstance(one, str) for one in patterns):
            raise InputError(f"skip is {skip!r}; patterns of names, or a function, are needed")
        self._patterns: tuple[str, ...] = patterns
        self._used = set(SKIP) if skip is SKIP else set()

    def why(self, name: str, module: torch.nn.Module) -> str:
        """Why to leave a layer alone; "" if it need not be."""
        if self._asks is not None:
            return "skip says so" if self._asks(name, module) else ""
        matching = [one for one in self._patterns if _matches(name, one)]
        self._used.update(matching)
        return f"skip has {matching[0]!r}" if matching else ""

    def unused(self) -> tuple[str, ...]:
        return tuple(one for one in self._patterns if one not in self._used)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a path, or a part of it between dots."""
    parts = name.split(".")
    runs = itertools.combinations(range(len(parts) + 1), 2)
    return any(fnmatch.fnmatchcase(".".join(parts[begin:end]), pattern) for begin, end in runs)


def _linears(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, str, torch.nn.Linear]]:
    """Each linear layer: the module that has it, its name there, its path, and itself."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.Linear):
            of_parent, _, name = path.rpartition(".")
            yield model.get_submodule(of_parent), name, path, module


def _owners(model: torch.nn.Module) -> dict[int, list[tuple[torch.nn.Module, str]]]:
    """For each parameter the modules that have it, each once, and their paths to it."""
    found: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append((module, f"{path}.{name}" if path else name))
    return found


def _why_not(
    parent: torch.nn.Module,
    linear: torch.nn.Linear,
    owners: dict[int, list[tuple[torch.nn.Module, str]]],
    trainable: bool,
) -> str:
    """Why a layer cannot be replaced, by what is around it; "" if it can."""
    if isinstance(parent, READS_WEIGHTS):
        return f"torch.nn.{type(parent).__name__} reads its weight itself"
    if type(linear) is not torch.nn.Linear:
        return f"its class {type(linear).__name__} may compute something else than torch.nn.Linear"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(linear, one) for one in hooks):
        return "it has hooks, which would be lost"
    others = [path for module, path in owners.get(id(linear.weight), []) if module is not linear]
    if others and not trainable:
        return f"its weight is {others[0]} as well"
    return ""


def _replacement(linear: torch.nn.Linear, trainable: bool, use_ue8m0: bool) -> Fp8Linear | str:
    """The layer in FP8, or why there is none."""
    if not linear.weight.is_meta and not linear.weight.isfinite().all():
        return "its weight has NaN or infinities"
    try:
        return Fp8Linear.from_linear(linear, trainable=trainable, use_ue8m0=use_ue8m0)
    except InputError as refused:
        return str(refused)


def _error(weight: torch.Tensor, layer: Fp8Linear) -> float | None:
    if weight.is_meta:
        return None
    given = weight.detach().float()
    norm = given.norm().item()
    return (layer.dequantized_weight() - given).norm().item() / norm if norm else 0.0
