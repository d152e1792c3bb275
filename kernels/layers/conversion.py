"""Replacing the linear layers of a model by Fp8Linear, and its experts by Fp8Experts, and saying what was
replaced."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from gemm_ladder import checks
from gemm_ladder.casts.kernel import INPUTS
from gemm_ladder.errors import InputError
from gemm_ladder.layers import reading, saying, trying, weights
from gemm_ladder.layers.experts import PROJECTIONS, Fp8Experts
from gemm_ladder.layers.linear import Fp8Linear
from gemm_ladder.layers.report import Layer, Report
from torch.nn.parameter import is_lazy

# What is usually left in BF16: the projection to the vocabulary, and the routers of mixtures of experts,
# which are small and whose rounding errors would send tokens to other experts.
SKIP = ("lm_head", "gate", "router")
# Modules of torch that read their layers' weights themselves.
READS_WEIGHTS = (torch.nn.MultiheadAttention, torch.nn.TransformerEncoderLayer)

# What experts of transformers say about themselves, where Fp8Experts does the same: the gates' weights lie
# above those of what they multiply, and there is neither a bias nor a norm.
EXPERTS_HAVE = {
    "has_gate": True,
    "has_bias": False,
    "has_post_expert_norm": False,
    "is_transposed": False,
    "is_concatenated": True,
}

# Other modules with a 2-D weight, by their classes and by what the names of classes outside of torch have.
NO_LINEAR = (torch.nn.Embedding, torch.nn.EmbeddingBag)
NO_LINEAR_NAMES = ("embed", "norm")

Skip = str | Iterable[str] | Callable[[str, torch.nn.Module], bool]


class _Place(NamedTuple):
    """A layer and where it is; `reason` says why it stays, "" if it is to be replaced."""

    parent: torch.nn.Module
    own_name: str
    name: str
    module: torch.nn.Module
    reason: str


def convert(
    model: torch.nn.Module,
    skip: Skip = SKIP,
    *,
    inputs: object = None,
    trainable: bool = False,
    use_ue8m0: bool = False,
) -> Report:
    """Replace the linear layers of a model by Fp8Linear, and experts of transformers by Fp8Experts, in place.

    Args:
        model: any module of torch, such as a model of transformers. On the meta device, too, to be loaded.
        skip: patterns of the layers to leave alone, in place of the default ones: the projection to the
            vocabulary and the routers of experts, which lose more than they gain. A pattern is one or more
            whole parts of a layer's path, next to each other: "lm_head" matches "model.lm_head", "layers.0"
            all that is inside of layer 0, and "gate" does not match "gate_proj". Wildcards are those of a
            shell. Or a function of a path and a module that says whether to leave it alone.
        inputs: what the model is called with once, as it was given, in eval mode and without gradients: a
            tensor, or a tuple or a dict of arguments. The report then has the error of each layer's output
            for what the layer got there. The error of a weight, about 2.6 % for nearly any, does not tell one
            layer from another.
        trainable, use_ue8m0: as for Fp8Linear.

    Returns:
        A report, to print. What else is left alone, and why, it says of each layer: sizes that the products
        do not take, classes other than torch.nn.Linear, layers with hooks, weights that are not finite, and
        experts that compute something else. And unless trainable, weights that two modules share, that
        modules around them read themselves, as far as their source says so and but for methods that use
        `dequantized_weight`, too, or that transformers keeps in FP32.

    Raises:
        InputError: `model` is no module, a scripted one or a linear layer itself, skip is none of the above,
            trainable or use_ue8m0 is no bool, or the model cannot be called with `inputs`. Nothing was
            replaced.

    Saving: unless trainable, `quantization_config` is set in the config of a model of transformers, if it has
    none, to the form of DeepSeek-V3's checkpoints, with the paths of what was kept. Convert a whole model, as
    paths begin at `model`, and give it a config of its own, as others that share it would say that they are
    in FP8, too. `save_pretrained` writes that config, and linear layers in a form that transformers, vLLM and
    SGLang read. Of experts it writes codes one by one and scales together. `load_state_dict` of a converted
    model reads that again; transformers does on a GPU only, and whether others do has not been tried.

    Loading: a model on the meta device gets its memory from a state of FP8 weights. Buffers that no state has
    stay on the meta device until the module that has them is made again. For Llama:

        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config)
        convert(model)
        model.load_state_dict(state, assign=True)  # all tensors of the file or files
        model.model.rotary_emb = type(model.model.rotary_emb)(config)

    Example:
        >>> import torch, gemm_ladder
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        >>> print(gemm_ladder.layers.convert(model))  # doctest: +SKIP
        layer    weight  error
        0      128 x 64  2.54%
        2      10 x 128  not converted: out_features is 10; a positive multiple of 8 is needed
        1 of 2 layers converted
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model is of type {type(model).__name__}; a torch.nn.Module is needed")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"model is of type {type(model).__name__}, a scripted module; a torch.nn.Module in eager form, "
            "from before it was scripted, is needed"
        )
    checks.flag("trainable", trainable)
    checks.flag("use_ue8m0", use_ue8m0)
    if isinstance(model, torch.nn.Linear):
        raise InputError(
            "model is a torch.nn.Linear, with nothing around it to be replaced in; Fp8Linear.from_linear is "
            "needed"
        )
    skipped = _Skipped(skip)
    left = _places(model, skipped, trainable)
    calls = {}
    if inputs is not None:
        calls = trying.calls(model, {one.module for one in left if not one.reason}, inputs)
    replaced: dict[int, torch.nn.Module | str] = {}
    output_errors: dict[int, float] = {}
    layers: list[Layer] = []
    kept: list[str] = []
    left.reverse()
    while left:  # the list lets go of a layer, so that its weight is freed once it is replaced
        parent, own_name, name, module, reason = left.pop()
        found: torch.nn.Module | str = reason
        if not found:
            if id(module) not in replaced:
                replaced[id(module)] = _replacement(module, trainable, use_ue8m0)
            found = replaced[id(module)]
        if isinstance(found, str):
            kept.append(name)
        else:
            setattr(parent, own_name, found)
            if call := calls.pop(id(module), None):
                output_errors[id(module)] = call.error(found)
        layers += _described(name, module, found, output_errors.get(id(module)))
    if not trainable and len(kept) < len(layers):
        saying.say(model, kept)
    return Report(tuple(layers), skipped.unused(), inputs is not None)


def _places(model: torch.nn.Module, skipped: _Skipped, trainable: bool) -> list[_Place]:
    """Each layer of a model, in its order, and why it stays, as far as can be said before it is cast."""
    owners = _owners(model)
    readers = None if trainable else reading.Readers(model, ("weight", *PROJECTIONS))
    return [
        _Place(
            *(parent, own_name, name, module),
            skipped.why(name, module) or _why_not(parent, name, module, owners, readers),
        )
        for parent, own_name, name, module in _layers(model)
    ]


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
            if _is_another(module):  # functions ask a layer for its sizes
                return ""
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


def _layers(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, str, torch.nn.Module]]:
    """Each linear layer, all experts and what else has a 2-D weight: the module that has it, its name there,
    its path, and itself."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.Linear) or (path and (_are_experts(module) or _is_another(module))):
            of_parent, _, name = path.rpartition(".")
            yield model.get_submodule(of_parent), name, path, module


def _are_experts(module: torch.nn.Module) -> bool:
    """Whether a module has experts' weights in two tensors, as transformers has them."""
    tensors = dict(module.named_parameters(recurse=False))
    return (
        not isinstance(module, Fp8Experts)
        and tensors.keys() >= {*PROJECTIONS}
        and all(tensors[name].dim() == 3 for name in PROJECTIONS)
    )


def _is_another(module: torch.nn.Module) -> bool:
    """Whether a module has a 2-D weight as a linear layer has it, such as Conv1D of transformers, but is
    neither one of torch nor one in FP8."""
    # Not module._parameters, which is no dict where a module is scripted.
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    name = str(getattr(module, "original_name", type(module).__name__)).lower()  # of what was scripted
    return (
        weight is not None
        and not is_lazy(weight)
        and weight.dim() == 2
        and not isinstance(module, (torch.nn.Linear, Fp8Linear, *NO_LINEAR))
        and not any(one in name for one in NO_LINEAR_NAMES)
    )


def _owners(model: torch.nn.Module) -> dict[int, list[tuple[int, str]]]:
    """For each parameter the modules that have it, each once, and their paths to it."""
    found: dict[int, list[tuple[int, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append((id(module), f"{path}.{name}" if path else name))
    return found


def _why_not(
    parent: torch.nn.Module,
    name: str,
    module: torch.nn.Module,
    owners: dict[int, list[tuple[int, str]]],
    readers: reading.Readers | None,
) -> str:
    """Why a layer cannot be replaced, by what it is and what is around it; "" if it can. Without `readers`
    its weight keeps its type, and others may have and read it."""
    if _is_another(module):
        if isinstance(module, torch.jit.ScriptModule):
            return "it is scripted, and only a torch.nn.Linear in eager form is replaced"
        return f"its class {type(module).__name__} is no torch.nn.Linear"
    if any(is_lazy(weight) for _, weight in _weights(module)):
        return "its weight has no shape yet"
    if isinstance(parent, READS_WEIGHTS):
        return f"torch.nn.{type(parent).__name__} reads its weight itself"
    if isinstance(module, torch.nn.Linear):
        if type(module) is not torch.nn.Linear:
            return f"its class {type(module).__name__} may compute something else than torch.nn.Linear"
    elif reason := _other_experts(module):
        return reason
    if "forward" in vars(module):
        return "its forward was replaced, which would be lost"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, one) for one in hooks):
        return "it has hooks, which would be lost"
    if readers is not None:
        for of_weight, weight in _weights(module):
            others = [path for owner, path in owners.get(id(weight), []) if owner != id(module)]
            if others:
                return f"its weight is {others[0]} as well"
            if reason := _needed_as_it_is(f"{name}.{of_weight}", readers):
                return reason
    return ""


def _needed_as_it_is(path: str, readers: reading.Readers) -> str:
    """Why a weight has to keep its type for the modules around its layer; "" if it need not."""
    if method := readers.of(path):
        return f"{method} reads its weight itself"
    for module, below in readers.around(path):
        for attribute, part in reading.kept_in_fp32(module):
            if _matches(".".join(below), part):
                return f"{attribute} of {type(module).__name__} has {part!r}"
    return ""


def _other_experts(module: torch.nn.Module) -> str:
    """What experts do that Fp8Experts does not; "" if they are experts of transformers that do the same."""
    gate = getattr(module, "_apply_gate", None)
    if gate is None:
        return f"what its class {type(module).__name__} computes is not known"
    for flag, needed in EXPERTS_HAVE.items():
        if getattr(module, flag, needed) is not needed:
            return f"{flag} is {not needed} for these experts; {needed} is needed"
    others = [name for name, _ in module.named_parameters() if name not in PROJECTIONS]
    if others:
        return f"it has {others[0]}, too, which Fp8Experts does not"
    # Also numbers so large that a function which clamps them would show it.
    inner = torch.cat([torch.linspace(-8, 8, 32), torch.linspace(-1e4, 1e4, 32)]).view(4, 16)
    first, second = inner.chunk(2, -1)
    with torch.no_grad():
        if not torch.allclose(gate(inner), torch.nn.functional.silu(first) * second, rtol=1e-4, atol=1e-4):
            return "between their products these experts do not do SiLU-and-multiply"
    return ""


def _weights(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """A layer's weights, by their names in it."""
    names = PROJECTIONS if _are_experts(module) else ("weight",)
    return [(name, getattr(module, name)) for name in names]


def _replacement(module: torch.nn.Module, trainable: bool, use_ue8m0: bool) -> torch.nn.Module | str:
    """The layer in FP8, or why there is none."""
    given = _weights(module)
    for _, weight in given:
        if weight.dtype in INPUTS and not weight.is_meta and not weight.isfinite().all():
            return "its weight has NaN or infinities"
    try:
        if isinstance(module, torch.nn.Linear):
            return Fp8Linear.from_linear(module, trainable=trainable, use_ue8m0=use_ue8m0)
        experts = Fp8Experts.from_weights(
            *(weight for _, weight in given), trainable=trainable, use_ue8m0=use_ue8m0
        )
        return experts.train(module.training)
    except InputError as refused:
        return str(refused)


def _described(
    name: str, module: torch.nn.Module, found: torch.nn.Module | str, output_error: float | None
) -> Iterator[Layer]:
    """What the report says of a layer: an entry for each of its weights."""
    for of_weight, weight in _weights(module):
        path = name if of_weight == "weight" else f"{name}.{of_weight}"
        if isinstance(found, str):
            yield Layer(path, () if is_lazy(weight) else tuple(weight.shape), found)
            continue
        codes, scales = getattr(found, of_weight).detach(), getattr(found, of_weight + weights.SCALES)
        if scales is None:  # it is trained
            codes, scales = weights.quantized(weight, bool(found.use_ue8m0))
        error = _error(weight.detach(), codes, scales.detach())
        yield Layer(path, tuple(weight.shape), error=error, output_error=output_error)


def _error(weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> float | None:
    """One expert after the other, as all of them in FP32 may not fit into memory."""
    if weight.is_meta:
        return None
    if weight.dim() == 2:
        weight, codes, scales = weight[None], codes[None], scales[None]
    wrong = norm = 0.0
    for given, *in_fp8 in zip(weight, codes, scales, strict=True):
        wrong += (weights.dequantized(*in_fp8) - given).square().sum().item()
        norm += given.float().square().sum().item()
    return math.sqrt(wrong / norm) if norm else 0.0
