"""python -m gemm_ladder bench: the measurement of `everywhere` for a user's own products, on their GPU.

    python -m gemm_ladder bench 64 2112 7168                       m, n and k; more triples may follow
    python -m gemm_ladder bench masked:32x48x4096x7168             a kind, groups, and m, n, k of each
    python -m gemm_ladder bench products.txt                       such products, one a line
    python -m gemm_ladder bench config.json --tp 8 --m 1,64,4096   the linears of a Hugging Face model

Nothing in figures/ is changed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemm_ladder.arguments import align
from gemm_ladder.errors import InputError
from gemm_ladder.figures import bench as figure
from gemm_ladder.figures import tables
from gemm_ladder.figures.everywhere import STATES, key_of
from gemm_ladder.measure import models, records, run, session, shapes, timing, verdicts
from gemm_ladder.measure.production_rows import RUNG
from gemm_ladder.measure.shapes import Cell, Shape, masked_cell

MS = "1,16,64,256,1024,4096"  # tokens, for a model's configuration
DECODING = 512  # fewer tokens than these take the masked layout for the experts, as engines do
MAX_PRODUCTS = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Run `bench`. Returns 0, or 1 where a result of ours is wrong or one of our kernels faults.

    Raises:
        GemmLadderError: there is no Hopper GPU, or an argument is not usable.
        gemm_ladder.build.ToolchainError, BuildError: a kernel cannot be built.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder bench",
        description="Time products of your own beside libraries on a Hopper GPU, and say of each whether FP8 "
        "pays, which library is faster, and what bounds it.",
    )
    parser.add_argument(
        "products",
        nargs="+",
        metavar="M N K | PRODUCT | FILE",
        help="m, n and k; or products as 64x2112x7168 and masked:32x48x4096x7168 (groups, and m, n and k of "
        "each); or a file with one on each line; or a model's config.json from Hugging Face",
    )
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="cut a model's weights for N GPUs")
    parser.add_argument(
        "--m", default=MS, metavar="M,...", help=f"a model's numbers of tokens (default: {MS})"
    )
    parser.add_argument("--states", default="all", metavar="STATE,...", help="of dirty, clean and graph")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements to FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw them")
    arguments = parser.parse_args(argv)
    chosen, refused = products(arguments.products, arguments.tp, arguments.m)
    states = chosen_states(arguments.states)
    device, found = session.need_gpu("what is measured is time", arguments.json)
    if arguments.picture:
        records.refuse_unwritable(arguments.picture, "--picture")

    print(f"Found {found}: {len(chosen)} products are checked, then timed beside libraries.\n")
    for sentence in refused:
        print(sentence)
    if not chosen:
        return 0
    reached = verdicts.rates(device)
    result = run.measure(chosen, states, device)
    for state in states:
        if cells := figure.table(result.data, state):
            print(f"\n{STATES[state]}:\n{tables.plain(cells)}")
    print(f"\n{figure.FOOTNOTE}\n")
    sentences = said(chosen, result, reached, states)
    print("\n".join(sentences))
    session.show_measured(result, ())
    if arguments.json:
        result.meta["verdicts"] = sentences
        records.export(result.data, arguments.json)
    if arguments.picture and result.rows:
        figure.picture(result.data).savefig(arguments.picture, dpi=130)
        print(f"Drawn: {arguments.picture}")
    return 1 if result.wrong else 0


def said(
    chosen: Sequence[Cell], result: run.Run, reached: verdicts.Rates, states: Sequence[timing.State]
) -> list[str]:
    """A sentence for each product that was measured, of the last of `states`: what calls do that follow each
    other comes last."""
    sentences = []
    for cell in chosen:
        us = {
            row["impl"]: row["us"]
            for row in result.rows
            if row["l2"] == states[-1] and key_of(row) == run.key(cell)
        }
        if RUNG in us:
            sentences.append(verdicts.verdict(cell, us, reached, STATES[states[-1]]))
    return sentences


def chosen_states(text: str) -> tuple[timing.State, ...]:
    """Of STATES, in their order. Raises InputError where a word is none of them."""
    words = timing.STATES if text == "all" else tuple(map(str.strip, text.split(",")))
    if unknown := [word for word in words if word not in timing.STATES]:
        raise InputError(f"{unknown[0]!r} is not a state; {', '.join(timing.STATES)} or all is needed")
    return tuple(state for state in timing.STATES if state in words)


def products(words: Sequence[str], gpus: int = 1, ms: str = MS) -> tuple[list[Cell], list[str]]:
    """The products that the arguments name, each once, and a sentence for each weight that cannot be
    multiplied.

    Raises:
        InputError: a word is neither, a file cannot be read, or a size is not a usable number.
    """
    if gpus < 1:
        raise InputError(f"--tp is {gpus}; 1 or more is needed")
    found: list[Cell] = []
    refused: list[str] = []
    if all(word.isdigit() for word in words):
        if len(words) % 3:
            raise InputError(f"{len(words)} numbers are given; m, n and k of each product are needed")
        words = ["x".join(words[index : index + 3]) for index in range(0, len(words), 3)]
    for word in words:
        path = Path(word)
        if not path.is_file():
            found.append(product(word))
        elif isinstance(read := _read(path), str):
            lines = (line.partition("#")[0].strip() for line in read.splitlines())
            found += [product(line.replace(" ", "x")) for line in lines if line]
        else:
            tokens = [shapes.parse(f"{one.strip()}x8x128", ())[0].m for one in ms.split(",")]
            of_model, sentences = of_config(read, gpus, tokens)
            found, refused = found + of_model, refused + sentences
    usable = []
    for cell in dict.fromkeys(found):
        if reason := models.refusal(*cell.shape[1:]):
            refused.append(f"{cell} cannot be multiplied: {reason}.")
        else:
            usable.append(cell)
    if len(usable) > MAX_PRODUCTS:
        raise InputError(f"{len(usable)} products are asked for; at most {MAX_PRODUCTS} are taken")
    return usable, refused


def product(word: str) -> Cell:
    """MxNxK; or contiguous:GxMxNxK or masked:GxMxNxK, with a mean of M rows in each of G groups, and in a
    masked product room for 4 M, rounded up to 64, and expected_m right."""
    kind, colon, sizes = word.partition(":")
    if not colon:
        (shape,) = shapes.parse(word, ())
        return Cell("dense", 1, shape)
    groups, _, rest = sizes.partition("x")
    if kind not in ("contiguous", "masked") or not groups.isdigit() or not int(groups):
        raise InputError(
            f"{word!r} is no product; MxNxK, contiguous:GxMxNxK or masked:GxMxNxK is needed, with G groups"
        )
    (shape,) = shapes.parse(rest, ())
    return grouped(int(groups), shape, masked=kind == "masked")


def grouped(groups: int, shape: Shape, masked: bool) -> Cell:
    return masked_cell(groups, shape, align(4 * shape.m, 64)) if masked else Cell("contiguous", groups, shape)


def of_config(config: Mapping[str, Any], gpus: int, tokens: Sequence[int]) -> tuple[list[Cell], list[str]]:
    """The products of a decoder layer, for each number of tokens, and why some cannot be multiplied. The rows
    of an expert's group are its share of the tokens.

    Raises:
        InputError: a field of the configuration is missing or not usable.
    """
    found, refused = [], []
    inner = config.get("text_config", config)
    each = inner.get("num_experts_per_tok") or inner.get("experts_per_token") or 1
    for linear in models.linears(config):
        n, k = linear.sizes(gpus)
        if reason := models.refusal(n, k):
            refused.append(f"{linear.name} ({n} x {k}) cannot be multiplied: {reason}.")
            continue
        for m in tokens:
            if linear.experts == 1:
                found.append(Cell("dense", 1, Shape(m, n, k)))
            else:
                rows = max(1, round(m * each / linear.experts))
                found.append(grouped(linear.experts, Shape(rows, n, k), masked=m < DECODING))
    return found, refused


def _read(path: Path) -> str | dict[str, Any]:
    """A configuration, or the text of a file of products."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); a text file is needed") from None
    if path.suffix != ".json" and not text.lstrip().startswith("{"):
        return text
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); a model's config.json is needed") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a model's config.json: it has no fields")
    return config
