"""What `python -m gemm_ladder model` measures: the layers and the model, in every arithmetic, at every size,
and the kernels that they need."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from gemm_ladder.arguments import Kind, ceil_div
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.layers import Fp8Linear, choosing, combining, convert, placing, routing, scattering
from gemm_ladder.measure import decoder, minilm
from gemm_ladder.measure.arithmetic import IN_BF16, Arithmetic, Fused
from gemm_ladder.measure.model_times import Mark, Marked
from gemm_ladder.measure.peers import Call
from gemm_ladder.measure.shapes import Cell, Shape
from gemm_ladder.production import launching
from gemm_ladder.production.config import Config

DECODERS = tuple(decoder.KINDS)
MODELS = (*DECODERS, minilm.NAME)
PREFILL, DECODE = (512, 2048, 8192), (1, 8, 32, 128)
CONTEXT = 4096  # tokens of each sequence that is decoded
SENTENCE = 128  # tokens of a sentence at most
ENCODED = (1, 8, 32, 128, 512, 2048, 8192)  # tokens of all sentences
LIMIT = 64  # kinds of sizes that torch.compile compiles one function for

# What is launched beside the products.
OWN = (choosing.KERNEL, combining.KERNEL, *placing.KERNELS, scattering.KERNEL)
CASTS = (
    Kernel("per_block", "nothing", torch.bfloat16),
    Kernel("per_token", "nothing", torch.bfloat16),
    Kernel("per_token", "rms_norm", torch.bfloat16),
    Kernel("per_token", "silu_and_mul", torch.bfloat16),
)


@dataclass
class Case:
    """A model at one size.

    Attributes:
        model, phase, tokens, context: as in figures.rows.ModelRow.
        calls: by implementation, a call that gives [tokens, hidden]. "bf16" is what others are compared with.
        marked: those of them whose parts can be told apart.
        before: what the results are sums of and something else, or None.
    """

    model: str
    phase: str
    tokens: int
    context: int
    calls: dict[str, Call]
    marked: dict[str, Marked] = field(default_factory=dict)
    before: torch.Tensor | None = None

    def __str__(self) -> str:
        return f"{self.model} {self.phase} {self.tokens}"


class Decoder:
    """A decoder layer in every arithmetic.

    Args:
        name: one of DECODERS.
        library: DeepGEMM, or None.
        config: other sizes than the model's.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        library: ModuleType | None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.device = name, device
        self.layer = decoder.make(name, device, config)
        self.in_fp8, self.report = decoder.converted(self.layer)
        self.made: dict[str, tuple[decoder.Layer, Arithmetic]] = {
            "bf16": (self.layer, IN_BF16),
            "fp8": (self.in_fp8, IN_BF16),
            "fp8_fused": (self.in_fp8, Fused()),
        }
        if library is not None:
            self.made["deep_gemm"] = (self.in_fp8, Fused(library))

    def compiled(self) -> dict[str, Callable[..., torch.Tensor]]:
        """The layers compiled by torch.compile, which compiles when they are first called."""
        if not isinstance(self.layer, decoder.Dense):
            return {}
        layers = {"bf16_compiled": self.layer, "fp8_compiled": self.in_fp8}
        return {name: torch.compile(layer, dynamic=True) for name, layer in layers.items()}

    def cases(
        self,
        compiled: dict[str, Callable[..., torch.Tensor]],
        prefill: Sequence[int] = PREFILL,
        decode: Sequence[int] = DECODE,
        context: int = CONTEXT,
    ) -> Iterator[Case]:
        """Every size; their tensors live as long as a case is used."""
        generator = torch.Generator(self.device).manual_seed(0)

        def numbers(tokens: int) -> torch.Tensor:
            found = torch.randn(tokens, self.layer.hidden, generator=generator, device=self.device)
            return found.to(decoder.BF16)

        for tokens in prefill:
            yield self._case("prefill", numbers(tokens), None, compiled)
        if decode:
            cache = self.layer.cache(max(decode), context)
            for batch in decode:
                yield self._case("decode", numbers(batch), tuple(one[:batch] for one in cache), compiled)

    def _case(
        self,
        phase: str,
        x: torch.Tensor,
        cache: decoder.Cache | None,
        compiled: dict[str, Callable[..., torch.Tensor]],
    ) -> Case:
        def of(layer: decoder.Layer, how: Arithmetic) -> Marked:
            return lambda mark: layer(x, cache, how, mark)

        marked = {name: of(*one) for name, one in self.made.items()}
        calls: dict[str, Call] = {name: _unmarked(run) for name, run in marked.items()}
        calls |= {name: _called(run, x, cache) for name, run in compiled.items()}
        context = cache[0].shape[-2] if cache else 0
        return Case(self.name, phase, len(x), context, calls, marked, x)


class Minilm:
    """all-MiniLM-L6-v2 in BF16 and in FP8.

    Args:
        trained: whether its weights are those of the package, which has to be installed, or random ones.
    """

    name = minilm.NAME

    def __init__(self, device: torch.device, trained: bool) -> None:
        self.device = device
        torch.manual_seed(0)
        model = minilm.load() if trained else minilm.Encoder().requires_grad_(False).eval()
        self.original = model.to(device)
        self.layer = copy.deepcopy(model).bfloat16()
        self.in_fp8 = copy.deepcopy(self.layer)
        self.report = convert(self.in_fp8)

    def cosines(self, sentences: Sequence[str]) -> list[float]:
        """Of each sentence's vector in FP8 and that of the model in FP32."""
        expected, found = (minilm.embed(model, sentences) for model in (self.original, self.in_fp8))
        return torch.nn.functional.cosine_similarity(expected, found).tolist()

    def compiled(self) -> dict[str, Callable[..., torch.Tensor]]:
        """The models with each layer compiled by torch.compile; the six share what is compiled."""
        models = {"bf16_compiled": self.layer, "fp8_compiled": self.in_fp8}
        return {name: layers_compiled(model) for name, model in models.items()}

    def cases(
        self, compiled: dict[str, Callable[..., torch.Tensor]], sizes: Sequence[int] = ENCODED
    ) -> Iterator[Case]:
        """Every size: one sentence of so many tokens, or sentences of SENTENCE tokens."""
        generator = torch.Generator(self.device).manual_seed(0)
        for tokens in sizes:
            shape = (ceil_div(tokens, SENTENCE), min(tokens, SENTENCE))
            ids = torch.randint(minilm.VOCABULARY, shape, generator=generator, device=self.device)
            models = {"bf16": self.layer, "fp8": self.in_fp8}
            marked = {name: marking(model, ids) for name, model in models.items()}
            calls = {name: _called(model, ids) for name, model in (models | compiled).items()}
            yield Case(self.name, "encode", tokens, 0, calls, marked)


def layers_compiled(model: minilm.Encoder) -> minilm.Encoder:
    """The same model, whose layers are compiled."""
    torch._dynamo.config.recompile_limit = LIMIT
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    made: list[Any] = [torch.compile(layer, dynamic=True) for layer in model.layers]
    twin.layers = torch.nn.ModuleList(made)
    return twin


def marking(model: torch.nn.Module, ids: torch.Tensor) -> Marked:
    """A run of a model that tells a mark where its linears begin and end."""
    linears = [one for one in model.modules() if isinstance(one, (torch.nn.Linear, Fp8Linear))]

    def run(mark: Mark) -> object:
        hooks = [one.register_forward_pre_hook(lambda *_: mark("products")) for one in linears]
        hooks += [one.register_forward_hook(lambda *_: mark("elementwise")) for one in linears]
        try:
            return model(ids)
        finally:
            for hook in hooks:
                hook.remove()

    return run


def _unmarked(run: Marked) -> Call:
    return lambda: run(decoder.ignore)


def _called(run: Callable[..., torch.Tensor], *given: Any) -> Call:
    """A call that gives a row for each token."""
    return lambda: run(*given).flatten(0, -2)


def products(name: str) -> Iterator[Cell]:
    """The FP8 products of a model at all of its sizes, each once: those that DeepGEMM may compute, too."""
    if name == minilm.NAME:
        sizes = {(minilm.HIDDEN, minilm.HIDDEN), (minilm.INNER, minilm.HIDDEN), (minilm.HIDDEN, minilm.INNER)}
        ms: Sequence[int] = ENCODED
    else:
        layer = decoder.make(name, "meta")
        linears = {key: one for key, one in layer.named_children() if isinstance(one, torch.nn.Linear)}
        sizes = {(one.out_features, one.in_features) for key, one in linears.items() if key != "router"}
        ms = (*PREFILL, *DECODE)
    for n, k in sorted(sizes):
        yield from (Cell("dense", 1, Shape(m, n, k)) for m in ms)


def configurations(names: Sequence[str], num_sms: int, gpu: str) -> list[Config]:
    """The configurations of our kernels that all sizes of these models need on a GPU of this name, so many of
    whose SMs are used."""

    def configuration(kind: Kind, m: int, n: int, k: int, groups: int, expected: int | None) -> Config:
        return launching.configuration(kind, m, n, k, groups, expected, num_sms, gpu)

    found = [configuration("dense", *cell.shape, 1, None) for name in names for cell in products(name)]
    for sizes in filter(None, map(decoder.experts_of, names)):
        experts, hidden, inner = sizes.values()
        for tokens in (*PREFILL, *DECODE):
            choices = tokens * decoder.TOP_K
            kind = routing.layout_for(tokens, decoder.TOP_K, experts)
            rows = tokens if kind == "masked" else routing.most_rows(choices, experts)
            for n, k in ((2 * inner, hidden), (hidden, inner)):
                found.append(configuration(kind, rows, n, k, experts, ceil_div(choices, experts)))
    return found
