"""python -m gemm_ladder train: a small transformer trained with FP8 linears, and the same with BF16 ones.

Needs a Hopper GPU. Three models are trained, 50 steps of each in turn, so that all have done as many steps
whenever the time is up: with BF16 linears, with Fp8Linear (both products of the backward pass in FP8, too)
from the same numbers on the same batches, and with BF16 linears from another seed, which tells how much two
losses differ anyhow. What is kept: the losses on what is trained and on what is held out, and the time of a
step: as Python calls it, with torch.compile, in a CUDA graph, which leaves out the host, and with both. In a
checkout, figures/data/fp8_training.json is renewed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gemm_ladder import launch, precompiling
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.errors import InputError, one_line
from gemm_ladder.figures import fp8_training as figure
from gemm_ladder.figures import tables
from gemm_ladder.figures.rows import LossRow, StepTime
from gemm_ladder.layers import turning
from gemm_ladder.measure import corpus, records, session, transformer
from gemm_ladder.measure.corpus import Corpus
from gemm_ladder.measure.transformer import Sizes
from gemm_ladder.production import launching
from gemm_ladder.training import candidates

RECORD = "fp8_training.json"
SIZES = Sizes(layers=4, width=768, heads=12, hidden=2048, context=512)
BATCH = 32  # sequences
STEPS = 2000
TURN = 50  # steps of a model until the next one's turn
EVERY = 10  # steps whose mean loss is one row
HELD_OUT = 4  # batches of held-out text
SECONDS = 235.0  # that the command takes at most, but for a turn
COMPILE_SECONDS = 40.0  # that are left for compiling a model, or it is not timed
TIMED_STEPS = 30  # with torch.compile, and in a CUDA graph
WARM_UP, RATE, LAST_RATE, CLIP = 100, 6e-4, 6e-5, 1.0  # steps of warm-up, learning rates, norm of gradients
BETAS, DECAY = (0.9, 0.95), 0.1
PROTOCOL = (
    "a decoder of bytes, its parameters in FP32, autocast to BF16; fp8: the four linears of each layer are "
    "Fp8Linear (x and gradients cast per token for y and dx, per channel for dW; weights per block), "
    "embedding, head, attention and norms as in bf16; AdamW, betas "
    f"{BETAS[0]} and {BETAS[1]}, weight decay {DECAY} on matrices, gradients clipped to a norm of {CLIP}, "
    f"learning rate up to {RATE} in {WARM_UP} steps and down to {LAST_RATE} along a cosine; a seed gives the "
    "first weights and the batches, which are pieces of the text from places drawn at random; losses are "
    f"nats a byte, a training loss the mean of {EVERY} steps, held out always the same pieces; "
    f"{TURN} steps of each model in turn, in one process; ms: of a step, forward, backward and optimizer, "
    "from one CUDA event to the next, median of all steps; graph: the same step captured once and replayed"
)


@dataclass
class Run:
    """One model, as it is trained.

    Attributes:
        linears: "bf16" or "fp8".
        seed: of its first weights and its batches.
        losses: of each step so far.
        ms: the milliseconds of each step so far.
        held_out: by the number of steps done.
    """

    linears: str
    seed: int
    sizes: Sizes
    device: torch.device
    batch: int
    steps: int
    losses: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = transformer.make(self.sizes, self.seed, self.linears == "fp8", self.device)
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        matrices = [one for one in self.model.parameters() if one.dim() == 2]
        others = [one for one in self.model.parameters() if one.dim() != 2]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=self.device.type == "cuda")
        self._draw = torch.Generator().manual_seed(self.seed)

    @property
    def done(self) -> int:
        """How many steps."""
        return len(self.losses)

    def train(self, text: torch.Tensor, count: int) -> None:
        """Do so many steps.

        Args:
            text: uint8 [bytes], on the model's device.
        """
        length = self.sizes.context + 1
        places = torch.randint(len(text) - length + 1, (count, self.batch), generator=self._draw)
        places = places.to(self.device)
        clock, losses = Clock(self.device), list[torch.Tensor]()
        for of_step in places:
            for group in self.optimizer.param_groups:
                group["lr"] = rate(self.done + len(losses), self.steps)
            losses.append(self._step(pieces(text, of_step, length)))
            clock.tick()
        self.ms += clock.ms()
        self.losses += torch.stack(losses).tolist()

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        loss = self.loss(tokens)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.detach()

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """The mean of -log p of each byte but the first, given those before it. tokens: int64 [batch, n]."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.forward(tokens[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    @torch.no_grad()
    def evaluate(self, batches: Sequence[torch.Tensor]) -> None:
        """Note the loss on what is held out."""
        self.held_out[self.done] = torch.stack([self.loss(one) for one in batches]).mean().item()

    def rows(self) -> Iterator[LossRow]:
        """What the record has of it."""
        for step in sorted({0, *range(EVERY, self.done + 1, EVERY), *self.held_out}):
            train = None if step % EVERY or not step else float(np.mean(self.losses[step - EVERY : step]))
            yield {
                "linears": self.linears,
                "seed": self.seed,
                "step": step,
                "train": None if train is None else round(train, 5),
                "held_out": round(self.held_out[step], 5) if step in self.held_out else None,
            }


class Clock:
    """The time from tick to tick: on a GPU from one event in its stream to the next."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._seconds: list[float] = []
        self.tick()

    def tick(self) -> None:
        if self._cuda:
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()
        else:
            self._seconds.append(time.perf_counter())

    def ms(self) -> list[float]:
        """Milliseconds between neighbouring ticks. Waits for the last."""
        if self._cuda:
            self._events[-1].synchronize()
        on_gpu = [one.elapsed_time(other) for one, other in itertools.pairwise(self._events)]
        return on_gpu + [(other - one) * 1e3 for one, other in itertools.pairwise(self._seconds)]


def rate(step: int, steps: int) -> float:
    """The learning rate of a step."""
    if step < WARM_UP:
        return RATE * (step + 1) / WARM_UP
    way = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST_RATE + (RATE - LAST_RATE) * (1 + math.cos(math.pi * way)) / 2


def pieces(text: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
    """int64 [places, length]: what the text has from each place on."""
    return text[places[:, None] + torch.arange(length, device=text.device)].long()


def held_out_batches(text: torch.Tensor, batch: int, length: int, batches: int) -> list[torch.Tensor]:
    """Pieces from all over a text, the same ones every time."""
    places = torch.linspace(0, len(text) - length, batches * batch, device=text.device).long()
    return [pieces(text, some, length) for some in places.split(batch)]


def on_device(text: bytes, device: torch.device) -> torch.Tensor:
    """uint8 [bytes]"""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)


def runs(sizes: Sizes, device: torch.device, batch: int, steps: int) -> list[Run]:
    """The three models: BF16, FP8 from the same seed, and BF16 from another."""
    return [Run(*one, sizes, device, batch, steps) for one in (("bf16", 0), ("fp8", 0), ("bf16", 1))]


def train(
    models: Sequence[Run], text: Corpus, seconds: float, started: float, batches: int = HELD_OUT
) -> None:
    """Train all models, a turn of each at a time, until their steps are done or the time is up.

    Args:
        seconds: after `started`, a time.perf_counter(): no turn begins that would end later, as far as can
            be told.
    """
    first = models[0]
    source = on_device(text.train, first.device)
    held_out = held_out_batches(
        on_device(text.held_out, first.device), first.batch, first.sizes.context + 1, batches
    )
    for model in models:
        model.evaluate(held_out)
    longest = 0.0
    while first.done < first.steps:
        begun = time.perf_counter()
        if first.done and begun - started + longest > seconds:
            print(f"The time is up: {first.done} of {first.steps} steps are done.")
            return
        for model in models:
            model.train(source, min(TURN, first.steps - model.done))
            model.evaluate(held_out)
        now = time.perf_counter()
        if first.done > TURN:  # the first turn also loads kernels
            longest = max(longest, now - begun)
        if first.done <= 2 * TURN or first.done % (5 * TURN) == 0 or first.done == first.steps:
            print(progress_line(models, now - started, longest), flush=True)


def progress_line(models: Sequence[Run], seconds: float, a_turn: float) -> str:
    """What is known after a turn: losses, milliseconds a step, and when the end is to be expected."""
    first = models[0]
    losses = ", ".join(
        f"{one.linears}/{one.seed} {one.held_out[one.done]:.4f} ({np.median(one.ms[-TURN:]):.1f} ms)"
        for one in models
    )
    turns = (first.steps - first.done) / TURN
    end = f"; the end is expected after {seconds + turns * a_turn:.0f} s" if a_turn and turns else ""
    return f"{seconds:5.0f} s, step {first.done} of {first.steps}: held out {losses}{end}"


def compiled(model: Run, text: Corpus) -> StepTime:
    """The time of a step with torch.compile. It trains the model on.

    Raises:
        Exception: whatever torch.compile raises.
    """
    model.forward = by_torch_compile(model)
    source, before = on_device(text.train, model.device), len(model.ms)
    losses = len(model.losses)
    model.train(source, 3)
    model.train(source, TIMED_STEPS)
    times = model.ms[before + 3 :]
    del model.ms[before:], model.losses[losses:]
    return step_time(model, "compiled", times)


def by_torch_compile(model: Run) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's forward pass, compiled anew: torch compiles one function a few times at most."""
    torch._dynamo.reset()
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model.model, dynamic=False)
    return forward


def in_graph(model: Run, text: Corpus) -> StepTime:
    """The time of a step in a CUDA graph, eager. It trains the model on, with the same batch again and again.

    Raises:
        RuntimeError: something in the step cannot be captured.
    """
    model.forward = model.model
    return step_time(model, "graph", replayed(model, text))


def compiled_in_graph(model: Run, text: Corpus) -> StepTime:
    """As `in_graph`, of a model that torch compiles.

    Raises:
        Exception: whatever torch.compile raises, or RuntimeError where something cannot be captured.
    """
    model.forward = by_torch_compile(model)
    return step_time(model, "compiled_graph", replayed(model, text))


def replayed(model: Run, text: Corpus) -> list[float]:
    """The milliseconds of steps that are replayed from a CUDA graph."""
    device = model.device
    length = model.sizes.context + 1
    places = torch.arange(model.batch, device=device) * length
    tokens = pieces(on_device(text.train, device), places, length)
    for group in model.optimizer.param_groups:
        group["capturable"] = True
    aside = torch.cuda.Stream(device)  # as torch asks for: what is captured has run on another stream before
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(3):
            model._step(tokens)
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model._step(tokens)
    graph.replay()
    clock = Clock(device)
    for _ in range(TIMED_STEPS):
        graph.replay()
        clock.tick()
    return clock.ms()


def step_time(model: Run, mode: str, ms: Sequence[float]) -> StepTime:
    """How long a step took."""
    p10, median, p90 = (round(float(value), 3) for value in np.percentile(ms, [10, 50, 90]))
    return {
        "linears": model.linears,
        "seed": model.seed,
        "mode": mode,
        "steps": len(ms),
        "ms": median,
        "ms_p10": p10,
        "ms_p90": p90,
    }


def kernels(sizes: Sizes, tokens: int, sms: int, gpu: str) -> list[precompiling.Compiled]:
    """What a step of the FP8 model launches on a GPU of this name, so many of whose SMs are used."""
    needed: list[precompiling.Compiled] = [
        Kernel("per_token", "nothing", torch.bfloat16),
        Kernel("per_channel_turned", "nothing", torch.bfloat16),
        Kernel("per_block", "nothing", torch.float32),
        turning.KERNEL,
    ]
    for n, k in sizes.linears:
        for of_product in ((n, k), (k, n)):  # y, and dx
            needed.append(launching.plan("dense", *of_product, 1, sms, gpu).at(tokens))
        needed.append(candidates.choose(n, k, (tokens,), sms))
    return list(dict.fromkeys(needed))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `train`. Returns 0, or 1 where a loss is not finite.

    Raises:
        GemmLadderError: there is no Hopper GPU, no text, or an argument is not usable.
        gemm_ladder.build.ToolchainError, BuildError: a kernel cannot be built.
    """
    started = time.perf_counter()
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder train",
        description="Train a small transformer with FP8 linears and with BF16 ones, and compare the losses.",
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"{STEPS} are recorded")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"sequences a step; {BATCH} are recorded")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that all of it may take")
    parser.add_argument(
        "--no-compile", action="store_true", help="time it neither with torch.compile nor in CUDA graphs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    arguments = parser.parse_args(argv)
    for name in ("steps", "batch", "seconds"):
        if getattr(arguments, name) <= 0:
            raise InputError(f"--{name} is {getattr(arguments, name)}; more than 0 is needed")
    device, found = session.need_gpu("what is measured is time", arguments.json)
    text = corpus.standard_library()
    print(f"Found {found}. Text: {text.name}: {len(text.train)} bytes, and {len(text.held_out)} held out.")
    with torch.cuda.device(device):
        result = on_gpu(text, device, arguments, started)
    print(f"\n{tables.plain(figure.table(result.data))}\n\n{figure.verdict(result.data)}")
    session.show_measured(result, ())
    whole = (
        not arguments.no_compile
        and arguments.batch == BATCH
        and len(result.rows) > 0
        and result.meta["steps"] == STEPS
    )
    session.keep(
        result, arguments.json, whole, RECORD, f"{STEPS} steps of {BATCH} sequences, and torch.compile"
    )
    return 1 if result.wrong else 0


def on_gpu(
    text: Corpus, device: torch.device, arguments: argparse.Namespace, started: float
) -> session.Measured[LossRow]:
    """Build the kernels, train, and time."""
    tokens = arguments.batch * SIZES.context
    sms, gpu = launch.usable_sms(device), torch.cuda.get_device_name(device)
    precompiling.build_all(kernels(SIZES, tokens, sms, gpu), "cuda")
    print(f"{time.perf_counter() - started:5.0f} s: the kernels are built", flush=True)
    models = runs(SIZES, device, arguments.batch, arguments.steps)
    train(models, text, arguments.seconds, started)
    times = [step_time(one, "eager", one.ms) for one in models if one.ms]
    result: session.Measured[LossRow] = session.Measured(
        meta={**records.machine(device, 0), "protocol": PROTOCOL, **described(models, text)}
    )
    ways = {"torch.compile": compiled, "CUDA graph": in_graph, "torch.compile, CUDA graph": compiled_in_graph}
    for (way, timed), model in itertools.product(ways.items(), models[:2]):
        if arguments.no_compile:
            break
        left = arguments.seconds - (time.perf_counter() - started)
        shape = f"{model.linears}, {way}"
        try:
            if left < COMPILE_SECONDS:
                raise InputError(f"{left:.0f} s were left; {COMPILE_SECONDS:.0f} s are needed")
            times.append(timed(model, text))
        except Exception as error:  # torch.compile may refuse with any exception
            result.missing.append({"impl": "train", "shape": shape, "reason": one_line(error)})
        else:
            print(
                f"{time.perf_counter() - started:5.0f} s: {shape}: {times[-1]['ms']:.1f} ms a step",
                flush=True,
            )
    result.meta["times"] = times
    result.rows = [row for one in models for row in one.rows()]
    for model in models:
        if not np.isfinite(model.losses).all():
            result.wrong.append(f"{model.linears}, seed {model.seed}: a loss is not finite")
    return result


def described(models: Sequence[Run], text: Corpus) -> dict[str, object]:
    """What the record's meta says of the models and their text."""
    first = models[0]
    return {
        "corpus": text.meta(),
        "model": {
            **asdict(first.sizes),
            "vocabulary": transformer.VOCABULARY,
            "parameters": sum(one.numel() for one in first.model.parameters()),
            "in_fp8": first.sizes.layers * sum(n * k for n, k in first.sizes.linears),
        },
        "tokens": first.batch * first.sizes.context,
        "steps": first.done,
        "steps_wanted": first.steps,
    }
