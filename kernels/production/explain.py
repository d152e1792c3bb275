"""python -m gemm_ladder explain M N K: which kernel a product gets, and what is expected of it and of others.

No GPU is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gemm_ladder.arguments import H100_SMS
from gemm_ladder.figures import tables
from gemm_ladder.production import choice, tuned
from gemm_ladder.production.choice import ranked
from gemm_ladder.production.config import Config
from gemm_ladder.production.prediction import STATES, Prediction, predict


def main(argv: Sequence[str] | None = None) -> int:
    """Run `explain`. Returns 0. Raises InputError if no kernel computes the product."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder explain",
        description="Which kernel a product gets, and what is expected of it and of the next best ones. The "
        "times are those of an H100, L2 cold and dirty, or clean, or in a CUDA graph. Results of `tune` are "
        "not looked at; what the tables of this package have measured is shown.",
    )
    add_product(parser)
    parser.add_argument(
        "--sms", type=int, default=H100_SMS, metavar="N", help="how many SMs (default: %(default)s)"
    )
    parser.add_argument("--all", type=int, default=5, metavar="N", help="how many to show (default: 5)")
    arguments = parser.parse_args(argv)
    shape = (arguments.m, arguments.n, arguments.k)
    found = ranked(arguments.kind, *shape, arguments.groups, arguments.sms)
    chosen = found[0]
    step = choice.rows_to_expect(arguments.kind, arguments.m, arguments.groups, None)
    rows = step * arguments.groups if arguments.kind == "contiguous" else step

    def expected(config: Config, m: int) -> Prediction:
        return predict(config, m, arguments.groups, arguments.sms)

    print(f"{chosen.name}, chosen for m = {rows}\n")
    print("\n".join(f"{key:12} {text}" for key, text in _lines(chosen, expected(chosen, arguments.m))))
    measured = tuned.shipped(arguments.kind, step, *shape[1:], arguments.groups, arguments.sms)
    for gpu, (config, times) in measured.items():
        ffmas = "" if config.interleave == "compiler" else f", FFMAs {config.interleave}"
        us = ", ".join(f"{one:.1f}" for one in times)
        print(f"measured     {us} us with {config.name}{ffmas}, which runs on an {gpu}")
    print(f"\nThe best for m = {rows}:\n")
    what = ("tile", "consumers", "shared", "B kept", "stages", "waves", "last wave", "L2 MB")
    header = [*what, *(f"us {state}" for state in STATES)]
    print(tables.plain([header, *(_row(one, expected(one, rows)) for one in found[: arguments.all])]))
    return 0


def add_product(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a product."""
    parser.add_argument("m", type=int, help="rows of A in all; masked: about how many of a group count")
    parser.add_argument("n", type=int)
    parser.add_argument("k", type=int)
    # A psum layout gets the kernels of a masked one.
    parser.add_argument("--kind", choices=("dense", "contiguous", "masked"), default="dense")
    parser.add_argument("--groups", type=int, default=1, metavar="G", help="of B (default: 1)")


def _shared(config: Config) -> str:
    return "nothing" if config.share == "nothing" else f"{config.share} by {config.cluster}"


def tile(config: Config, by: str) -> str:
    """The tile, and the tail tile if there is one, in words; `by` stands between rows and columns."""
    tail = f", then {config.tail_m}{by}{config.tail_n}" if config.tail else ""
    return f"{config.tile_m}{by}{config.tile_n}{tail}"


def _lines(config: Config, expected: Prediction) -> list[tuple[str, str]]:
    return [
        ("tile", f"{tile(config, ' x ')}, {config.consumers} consumer(s)"),
        ("shared", f"{_shared(config)}"),
        ("stages", f"{config.stages}, {config.shared_bytes} bytes of shared memory"),
        ("waves", f"{expected.waves:.2f}, the last one {expected.last_wave:.0%} full"),
        ("L2", f"{expected.l2_bytes / 1e6:.1f} MB to the SMs"),
        ("memory", f"{expected.memory_bytes / 1e6:.1f} MB"),
        ("floor", f"{expected.floor_us:.1f} us"),
        ("estimate", f"{expected.estimate_us:.1f} us by arithmetic alone"),
        ("expected", ", ".join(f"{us:.1f} us {state}" for state, us in expected.by_state.items())),
    ]


def _row(config: Config, expected: Prediction) -> list[str]:
    return [
        tile(config, "x"),
        f"{config.consumers_m}x{config.consumers_n}",
        _shared(config),
        "no" if config.stream_b else "yes",
        str(config.stages),
        f"{expected.waves:.2f}",
        f"{expected.last_wave:.0%}",
        f"{expected.l2_bytes / 1e6:.1f}",
        *(f"{us:.1f}" for us in expected.by_state.values()),
    ]
