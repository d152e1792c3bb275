"""python -m gemm_ladder training: the training kernels at the weight gradients of DeepGEMM's own tests.

    python -m gemm_ladder training --json training.json
    python -m gemm_ladder training --tune --products k_grouped --l2 dirty

Needs a Hopper GPU. Every product adds to its output, as a weight gradient does. It is computed through the
public interface, checked, and timed beside DeepGEMM in the same run. If all products and states of L2 were
measured in a checkout, figures/data/training.json is renewed. With --tune or --configs, given configurations
of the kernel are timed instead, and the fastest are named; nothing is recorded then.
"""

from __future__ import annotations

import argparse
import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemm_ladder
import torch
from gemm_ladder import launch, precompiling
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.errors import InputError
from gemm_ladder.figures import tables
from gemm_ladder.figures.rows import TimedRow
from gemm_ladder.measure import peers, problems, session, timing
from gemm_ladder.measure.product import How, Maker, measure_each, measure_product
from gemm_ladder.measure.session import Measured
from gemm_ladder.measure.shapes import Shape
from gemm_ladder.scales import mn_major
from gemm_ladder.settings import num_sms_limit
from gemm_ladder.training import launching, operands
from gemm_ladder.training.candidates import CANDIDATES, TO_TUNE, choose
from gemm_ladder.training.config import Config
from gemm_ladder.utils import per_token_cast_to_fp8

IMPL = "training"
RECORD = "training.json"
PROTOCOL = (
    "every call adds to its FP32 output; the training kernels are called through gemm_ladder's public "
    "functions; in a k_grouped row a group has about k of K: its number is drawn uniformly from 0.7 k to "
    "1.3 k with seed 0 and rounded up to a multiple of 128; rel_err is that of what the first call added, of "
    "the worst group"
)


class Gradient(Shape):
    """One weight gradient: D [m, n] in FP32 is added to, with 1x128 scales on both operands."""

    @property
    def bytes(self) -> int:
        """The least that has to move: FP8 A and B and their FP32 scales read, FP32 D read and written."""
        m, n, k = self
        return (m + n) * (k + 4 * ceil_div(k, SCALE_BLOCK)) + 8 * m * n


@dataclass(frozen=True)
class Product:
    """A row of the measurement. `shape` is that of each group, its k the mean."""

    kind: str  # "dense" or "k_grouped"
    groups: int
    shape: Gradient

    def __str__(self) -> str:
        return str(self.shape) if self.kind == "dense" else f"{self.kind}:{self.groups}x{self.shape}"

    @functools.cached_property
    def ks(self) -> list[int]:
        """Each group's k."""
        if self.kind == "dense":
            return [self.shape.k]
        draw = random.Random(0)
        return [align(int(self.shape.k * draw.uniform(0.7, 1.3)), SCALE_BLOCK) for _ in range(self.groups)]

    @property
    def parts(self) -> tuple[Gradient, ...]:
        """Each group's product."""
        return tuple(Gradient(self.shape.m, self.shape.n, k) for k in self.ks)


# The weight gradients of DeepGEMM 2.8.1's tests, and of its first release's those that differ.
PRODUCTS = (
    *(
        Product("dense", 1, Gradient(m, n, 4096))
        for m, n in (
            *((2112, 7168), (7168, 2112), (576, 7168), (24576, 1536), (1536, 24576), (32768, 512)),
            *((7168, 16384), (16384, 7168), (4096, 7168), (7168, 2048)),
        )
    ),
    *(Product("dense", 1, Gradient(m, n, 8192)) for m, n in ((7168, 2112), (7168, 4096))),
    *(
        Product("k_grouped", groups, Gradient(m, n, k))
        for groups, k in ((4, 8192), (8, 4096), (16, 2048))
        for m, n in ((4096, 7168), (7168, 2048))
    ),
    Product("k_grouped", 8, Gradient(768, 2048, 128)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `training`. Returns 0, or 1 where a result is wrong.

    Raises:
        GemmLadderError: there is no Hopper GPU, or an argument is not usable.
        gemm_ladder.build.ToolchainError, BuildError: a kernel cannot be built.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder training",
        description="Check and time the training kernels beside DeepGEMM's, at the weight gradients of its "
        "tests, on a Hopper GPU.",
    )
    parser.add_argument(
        "--products",
        default="all",
        metavar="PRODUCT,...",
        help="which: a kind (dense, k_grouped) or products such as 7168x2112x4096 or "
        "k_grouped:8x4096x7168x4096, also such as are not in the table (default: all of the table)",
    )
    parser.add_argument(
        "--configs",
        default="",
        metavar="NAME,...",
        help="time these configurations of the kernel, by the names that --tune prints",
    )
    parser.add_argument("--tune", action="store_true", help="time all configurations that make sense")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument("--l2", choices=[*timing.L2_STATES, "both"], default="both", help="the state of L2")
    arguments = parser.parse_args(argv)
    chosen = products(arguments.products)
    configs = [Config.parse(name) for name in arguments.configs.split(",") if name]
    if arguments.tune:
        configs += [*CANDIDATES, *TO_TUNE]
    device, found = session.need_gpu("what is measured is time", arguments.json)

    print(f"Found {found}: every product is checked, then timed beside DeepGEMM.\n")
    states = timing.L2_STATES if arguments.l2 == "both" else (arguments.l2,)
    result = on_gpu(chosen, list(dict.fromkeys(configs)), states, device)
    show(result, states)
    whole = not configs and (set(chosen), states) == (set(PRODUCTS), timing.L2_STATES)
    session.keep(result, arguments.json, whole, RECORD, "every product and state of L2 at once")
    return 1 if result.wrong else 0


def products(text: str) -> tuple[Product, ...]:
    """The products that `text` names. Raises InputError where a word is neither a kind nor a product."""
    chosen: dict[Product, None] = {}
    for word in map(str.strip, text.split(",")):
        found = [one for one in PRODUCTS if word in ("all", one.kind, str(one))]
        kind, colon, sizes = word.rpartition(":")
        numbers = [int(size) for size in sizes.split("x") if size.isdigit() and int(size)]
        if (
            not found
            and len(numbers) == sizes.count("x") + 1 == 3 + bool(colon)
            and kind in ("", "k_grouped")
        ):
            *groups, m, n, k = numbers
            found = [Product(kind or "dense", *groups or [1], Gradient(m, n, k))]
        if not found:
            raise InputError(
                f"{word!r} is no product; all, dense, k_grouped, MxNxK or k_grouped:GxMxNxK is needed, with "
                "G groups"
            )
        chosen |= dict.fromkeys(found)
    return tuple(chosen)


def on_gpu(
    chosen: Sequence[Product], configs: Sequence[Config], states: Sequence[timing.L2], device: torch.device
) -> Measured[TimedRow]:
    """Build all kernels, then check and time every product.

    Args:
        configs: what is timed; if there are none, what the interface chooses.
    """
    result: Measured[TimedRow] = Measured()
    with torch.cuda.device(device):
        num_sms = launch.usable_sms(device, num_sms_limit())
        of_product = configurations(chosen, num_sms)
        needed = {one.with_room_for(product.groups) for one in configs for product in chosen}
        precompiling.build_all([*(needed or set(of_product.values()))], "cuda")
        measure_each(
            chosen,
            "products",
            lambda product, how: measure_one(product, configs, how, result),
            states,
            device,
            result,
        )
    result.meta["protocol"] = f"{result.meta['protocol']}; {PROTOCOL}"
    if not configs:
        result.meta["configurations"] = {str(one): config.name for one, config in of_product.items()}
    return result


def configurations(chosen: Sequence[Product], num_sms: int) -> dict[Product, Config]:
    """The kernel that the interface chooses for each product."""
    return {one: choose(one.shape.m, one.shape.n, one.ks, num_sms) for one in chosen}


@dataclass(frozen=True)
class Problem:
    """The operands of a product on one device, as the k-grouped functions take them, or the dense ones."""

    product: Product
    lhs: tuple[torch.Tensor, torch.Tensor]
    rhs: tuple[torch.Tensor, torch.Tensor]
    before: torch.Tensor  # float32 [groups, m, n]: what the output holds at first

    @functools.cached_property
    def out(self) -> torch.Tensor:
        """The output of all calls: with one for each of many configurations, memory would not suffice."""
        return torch.empty_like(self.before)

    def call(self, function: Callable[[torch.Tensor], object]) -> peers.Call:
        """A call of function(out), which adds to `out`. The first result, before another call is made, is the
        one that is checked."""
        self.out.copy_(self.before)

        def call() -> torch.Tensor:
            function(self.out)
            return self.out

        return call

    def reference(self) -> list[torch.Tensor]:
        """float64 [m, n] of each group: what is to be added."""
        (m, n, _), begin, block, found = self.product.shape, 0, 0, []
        for k in self.product.ks:
            blocks = slice(block, block + ceil_div(k, SCALE_BLOCK))
            a, b = (
                problems.dequantize(
                    codes.reshape(-1)[rows * begin : rows * (begin + k)].view(rows, k), sf[:, blocks], 1
                )
                for (codes, sf), rows in ((self.lhs, m), (self.rhs, n))
            )
            found.append(a @ b.T)
            begin, block = begin + k, blocks.stop
        return found

    def errors(self, out: torch.Tensor, references: Sequence[torch.Tensor]) -> problems.Errors:
        """The errors of what the first call added: the worst of all groups."""
        found = [
            problems.errors(after.double() - before, reference)
            for after, before, reference in zip(out, self.before, references, strict=True)
        ]
        return functools.reduce(problems.Errors.worst, found)


def make_problem(product: Product, device: torch.device) -> Problem:
    """Random normal matrices, cast to FP8 with one scale for each 1x128 run."""
    generator = torch.Generator(device).manual_seed(0)
    pairs = []
    for rows in product.shape[:2]:
        cast = [
            per_token_cast_to_fp8(torch.randn(rows, k, generator=generator, device=device))
            for k in product.ks
        ]
        codes = cast[0][0] if product.kind == "dense" else torch.cat([x.reshape(-1) for x, _ in cast])
        pairs.append((codes, mn_major(torch.cat([sf for _, sf in cast], dim=1))))
    shape = (product.groups, *product.shape[:2])
    before = torch.randn(shape, generator=generator, device=device)
    return Problem(product, pairs[0], pairs[1], before)


def measure_one(product: Product, configs: Sequence[Config], how: How, result: Measured[TimedRow]) -> bool:
    """Check and time everything at one product. Returns what measure_product() does."""
    problem = make_problem(product, how.device)
    references = functools.cache(problem.reference)
    ours: dict[str, Maker] = {IMPL: lambda: interface_call(gemm_ladder, problem)}
    if configs:
        ours = {one.name.removesuffix("_g1"): functools.partial(config_call, one, problem) for one in configs}
    theirs: dict[str, Maker] = {"deep_gemm": lambda: interface_call(peers.deep_gemm_library(), problem)}
    return measure_product(
        product,  # type: ignore[arg-type] # it has what is asked of a product
        ours,
        theirs,
        lambda name, out: problem.errors(out, references()),
        how,
        result,
    )


def interface_call(library: Any, problem: Problem) -> peers.Call:
    """A call of the second generation's functions, ours or DeepGEMM's, or else of the first's."""
    product, lhs, rhs = problem.product, problem.lhs, problem.rhs
    ks = torch.tensor(product.ks, dtype=torch.int32, device=lhs[0].device)
    if product.kind == "dense":
        if second := getattr(library, "fp8_gemm_nt", None):
            return problem.call(lambda out: second(lhs, rhs, out[0], c=out[0], recipe=(1, 1, SCALE_BLOCK)))
        return problem.call(lambda out: library.wgrad_gemm_fp8_fp8_fp32_nt(lhs, rhs, out[0]))
    if second := getattr(library, "k_grouped_fp8_gemm_nt_contiguous", None):
        return problem.call(lambda out: second(lhs, rhs, out, product.ks, ks, c=out))
    turned = ((lhs[0], lhs[1].mT), (rhs[0], rhs[1].mT))
    return problem.call(lambda out: library.k_grouped_wgrad_gemm_fp8_fp8_fp32_nt(*turned, out, product.ks))


def config_call(config: Config, problem: Problem) -> peers.Call:
    """A call of one configuration of the kernel."""
    config = config.with_room_for(problem.product.groups)

    def run(out: torch.Tensor) -> None:
        if problem.product.kind == "dense":
            call = operands.dense(problem.lhs, problem.rhs, out[0], out[0])
        else:
            call = operands.k_grouped(problem.lhs, problem.rhs, out, problem.product.ks, out)
        launching.run(config, call)

    return problem.call(run)


def show(result: Measured[TimedRow], states: Sequence[timing.L2]) -> None:
    """Print a table for each state of L2: our time, DeepGEMM's, and theirs over ours; of several
    configurations the three fastest of each product, and of all products those with the best mean."""
    for l2 in states:
        us = times(result, l2)
        cells = [["product", "us", "DeepGEMM us", "ratio", "TFLOPS", "fastest"]]
        ratios: dict[str, list[float]] = {}
        for product, (tflops, found) in us.items():
            theirs = found.pop("deep_gemm", math.nan)
            best = sorted(found, key=found.__getitem__)
            for name in best:
                ratios.setdefault(name, []).append(
                    (theirs if theirs == theirs else found[best[0]]) / found[name]
                )
            if best:
                first = found[best[0]]
                near = ", ".join(
                    f"{name.removeprefix('fp8_gemm_1d1d_')} {found[name]:.1f}" for name in best[:3]
                )
                numbers = (f"{first:.1f}", f"{theirs:.1f}", f"{theirs / first:.3f}", f"{tflops / first:.0f}")
                cells.append([product, *numbers, near])
        if len(cells) > 1:
            print(f"\nL2 cold and {l2}:\n{tables.plain(cells)}")
            means = {name: math.exp(sum(map(math.log, all_)) / len(all_)) for name, all_ in ratios.items()}
            print(
                "\nDeepGEMM's time over ours (without it, the fastest's), geometric mean over the products:"
            )
            for name in sorted(means, key=means.__getitem__, reverse=True)[:20]:
                print(f"  {means[name]:.3f}  {name} ({len(ratios[name])} products)")
    session.show_measured(result, ())


def times(result: Measured[TimedRow], l2: str) -> Mapping[str, tuple[float, dict[str, float]]]:
    """For each product, its work (TFLOPS times microseconds) and each implementation's microseconds."""
    found: dict[str, tuple[float, dict[str, float]]] = {}
    for row in result.rows:
        if row["l2"] == l2:
            product = Product(row["kind"], row["groups"], Gradient(row["m"], row["n"], row["k"]))
            found.setdefault(str(product), (row["tflops"] * row["us"], {}))[1][row["impl"]] = row["us"]
    return found
