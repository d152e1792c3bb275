"""What the judge says of wrong values: where they are, and what they are. No kernel runs here: wrong results
are products of operands that a mistake has changed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
from gemm_ladder.lab import bf16
from gemm_ladder.lab.agreement import differing
from gemm_ladder.lab.diagnosis import explain
from gemm_ladder.lab.operands import Operands, normal
from gemm_ladder.lab.places import listed, tiles, where, whole_tiles
from gemm_ladder.lab.surroundings import UNWRITTEN
from gemm_ladder.ref import fp8, gemm

M, N, BLOCKS = 130, 264, 6  # m is no multiple of 4
OPERANDS = normal(np.random.default_rng(3), M, N, BLOCKS * 128)
RIGHT = OPERANDS.bits("tensor core")


def changed(**arrays: np.ndarray) -> np.ndarray:
    """BF16 bits of the product of other operands."""
    return gemm.to_bf16(dataclasses.replace(OPERANDS, **arrays).exact()).view(np.uint16)


def k_block(index: int) -> slice:
    return slice(index * 128, index * 128 + 128)


def scaled(name: str, block: int | slice, factor: float) -> np.ndarray:
    scales = getattr(OPERANDS, name).copy()
    scales[:, block] *= factor
    return scales


def other_block(name: str, block: int, other: int) -> np.ndarray:
    values = getattr(OPERANDS, name).copy()
    if name in ("a", "b"):
        values[:, k_block(block)] = values[:, k_block(other)]
    else:
        values[:, block] = values[:, other]
    return values


def later(name: str, distance: int) -> np.ndarray:
    """Each K block, from `distance` on, is that of `distance` before."""
    values = getattr(OPERANDS, name).copy()
    values[:, distance * 128 :] = values[:, : -distance * 128].copy()
    return values


def promoted(partial: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Bits of the promotion of `partial`, made of each K block's sums [BLOCKS, m, n]."""
    a, b = (fp8.decode(x).astype(np.float64).reshape(len(x), BLOCKS, 128) for x in (OPERANDS.a, OPERANDS.b))
    sums = partial(np.einsum("ick,jck->cij", a, b))
    sfb = OPERANDS.sfb[np.arange(N) // 128].astype(np.float64)
    return gemm.to_bf16(np.einsum("cij,ic,jc->ij", sums, OPERANDS.sfa.astype(np.float64), sfb)).view(
        np.uint16
    )


def only_k(name: str, begin: int) -> np.ndarray:
    """32 of each K block's 128 four times: a descriptor that is not advanced."""
    values = getattr(OPERANDS, name).reshape(-1, BLOCKS, 128)
    return np.tile(values[:, :, begin : begin + 32], 4).reshape(len(values), -1)


def without_k(*begins: int) -> np.ndarray:
    values = OPERANDS.a.reshape(-1, BLOCKS, 128).copy()
    for begin in begins:
        values[:, :, begin : begin + 32] = 0
    return values.reshape(M, -1)


def unswizzled(name: str) -> np.ndarray:
    values = getattr(OPERANDS, name).reshape(-1, BLOCKS, 8, 16)
    rows, chunks = np.arange(len(values))[:, None] % 8, np.arange(8)
    return (
        values[np.arange(len(values))[:, None], :, chunks ^ rows]
        .transpose(0, 2, 1, 3)
        .reshape(len(values), -1)
    )


def a_scales_at(stride: int) -> np.ndarray:
    """A's scales, read from memory as if K blocks were `stride` apart."""
    memory = np.zeros((BLOCKS, 132), np.float32)
    memory[:, :M] = OPERANDS.sfa.T
    return memory.ravel()[np.arange(M)[:, None] + stride * np.arange(BLOCKS)]


def placed(tile: tuple[slice, slice], values: np.ndarray | int) -> np.ndarray:
    found = RIGHT.copy()
    found[tile] = values
    return found


ROWS = np.arange(M)
SECOND_TILE = np.s_[64:128, 128:256]
MISTAKES = {
    "were never written": placed(np.s_[64:], UNWRITTEN),
    "are zeros": placed(np.s_[:, 256:], 0),
    "are of a register that nothing has initialised": placed(np.s_[:, 256:], 0xFEFF),
    "are NaN": placed(np.s_[3:5], 0x7FFF),
    r"are rounded to BF16 toward zero": (OPERANDS.exact().astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    ),
    r"are those of D 64 rows above and 128 columns to the left": placed(SECOND_TILE, RIGHT[:64, :128]),
    r"are those of D 8 rows below": placed(np.s_[:64], RIGHT[8:72]),
    r"are those of other rows \(index XOR 8\): row 0 has those of row 8": placed(
        np.s_[:128], RIGHT[ROWS[:128] ^ 8]
    ),
    r"are those of other columns \(index XOR 1\)": placed(np.s_[:, :256], RIGHT[:, np.arange(256) ^ 1]),
    r"are the right ones of this region, in other places": placed(
        SECOND_TILE, np.random.default_rng(0).permuted(RIGHT[SECOND_TILE].ravel()).reshape(64, 128)
    ),
    "lack K block 2": changed(sfa=scaled("sfa", 2, 0)),
    "have K block 5 twice": changed(sfa=scaled("sfa", 5, 2)),
    "have only the first 4 of 6 K blocks": changed(sfa=scaled("sfa", slice(4, 6), 0)),
    "have only the K blocks from 2 on": changed(sfa=scaled("sfa", slice(0, 2), 0)),
    "with the A of K block 1 in K block 4": changed(a=other_block("a", 4, 1)),
    "with the B of K block 5 in K block 4": changed(b=other_block("b", 4, 5)),
    "with the A and the B of K block 0 in K block 4": changed(
        a=other_block("a", 4, 0), b=other_block("b", 4, 0)
    ),
    "every K block A is that of 1 K block before": changed(a=later("a", 1)),
    "every K block A and B are those of 4 K blocks before": changed(a=later("a", 4), b=later("b", 4)),
    "lack A's scales": changed(sfa=np.ones_like(OPERANDS.sfa)),
    "lack B's scales": changed(sfb=np.ones_like(OPERANDS.sfb)),
    "lack the scales of A and of B": changed(sfa=np.ones_like(OPERANDS.sfa), sfb=np.ones_like(OPERANDS.sfb)),
    "have A's scale of the row 8 below": changed(sfa=OPERANDS.sfa[np.minimum(ROWS + 8, M - 1)]),
    r"have A's scale of another row \(index XOR 8\)": changed(sfa=OPERANDS.sfa[np.minimum(ROWS ^ 8, M - 1)]),
    "have A's scale of the first row of every 64": changed(sfa=OPERANDS.sfa[ROWS // 64 * 64]),
    "have A's scales of rows 0 to 63, whatever the tile": changed(sfa=OPERANDS.sfa[ROWS % 64]),
    "rows were m = 130 apart, and not sfa_stride = 132": changed(sfa=a_scales_at(M)),
    "have B's scale of the previous 128 columns": changed(sfb=OPERANDS.sfb[[0, 0, 1]]),
    "have B's scale of the first 128 columns": changed(sfb=OPERANDS.sfb[[0, 0, 0]]),
    "as if they lay column by column": changed(sfb=OPERANDS.sfb.ravel().reshape(BLOCKS, 3).T),
    "have B's scale of K block 0 in every K block": changed(sfb=np.repeat(OPERANDS.sfb[:, :1], BLOCKS, 1)),
    "have A's scale of K block 0 in K block 3": changed(sfa=other_block("sfa", 3, 0)),
    "have A's scale of 1 K block before": changed(sfa=OPERANDS.sfa[:, [0, 0, 1, 2, 3, 4]]),
    "each K block began with the sum of those before": promoted(lambda sums: sums.cumsum(0)),
    "lack K 32 to 63 of each K block": changed(a=without_k(32)),
    "have only K 0 to 31 and 64 to 95 of each K block": changed(a=without_k(32, 96)),
    "are made with A in place of B": changed(b=np.pad(OPERANDS.a, ((0, N - M), (0, 0)))),
    "are made with B in place of A": changed(a=OPERANDS.b[:M]),
    "A's descriptor is not advanced": changed(a=only_k("a", 0)),
    "B's descriptor is not advanced": changed(b=only_k("b", 0)),
    "have K 0 to 31 of each K block four times": changed(a=only_k("a", 0), b=only_k("b", 0)),
    "as if A is swizzled by": changed(a=unswizzled("a")),
    "as if B is swizzled by": changed(b=unswizzled("b")),
    "as if A and B are swizzled by": changed(a=unswizzled("a"), b=unswizzled("b")),
    "with the row of A 8 below, and this row's scale": changed(a=OPERANDS.a[np.minimum(ROWS + 8, M - 1)]),
    "with another row of A, .* XOR 1": changed(a=OPERANDS.a[ROWS ^ 1]),
    "are 2 times the right ones": gemm.to_bf16(2 * OPERANDS.exact()).view(np.uint16),
    "are -1 times the right ones": gemm.to_bf16(-OPERANDS.exact()).view(np.uint16),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named(text: str) -> None:
    found = MISTAKES[text]
    guess = explain(OPERANDS, found, RIGHT, differing(found, RIGHT))
    assert guess and re.search(text, guess.text), guess
    assert guess.share > 0.9


def test_another_type_is_named() -> None:
    operands = bf16.normal(np.random.default_rng(3), 64, 72, 128)
    right = operands.bits("tensor core")
    a, b = (codes.view(np.float16).astype(np.float64) for codes in (operands.a, operands.b))
    found = gemm.to_bf16(a @ b.T).view(np.uint16)
    guess = explain(operands, found, right, differing(found, right))
    assert guess and guess.text == "are made as if A and B were FP16"


def test_what_is_not_known_is_not_named() -> None:
    """Random numbers of the right size, and a few wrong values, which some guess would fit by chance."""
    rng = np.random.default_rng(4)
    noise = gemm.to_bf16(OPERANDS.exact() * rng.uniform(0.2, 3, RIGHT.shape)).view(np.uint16)
    assert explain(OPERANDS, noise, RIGHT, differing(noise, RIGHT)) is None
    few = placed(np.s_[5, 7:9], noise[5, 7:9])
    assert explain(OPERANDS, few, RIGHT, differing(few, RIGHT)) is None


def test_the_first_wrong_tile_is_explained_where_the_whole_is_not() -> None:
    found = MISTAKES["lack K block 2"].copy()
    found[64:] = MISTAKES["have K block 5 twice"][64:]
    guess = explain(OPERANDS, found, RIGHT, differing(found, RIGHT))
    assert guess and guess.text == "lack K block 2 (in rows 0 to 63, columns 0 on)"


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([5], "row 5"),
        (range(130), "all 130 rows"),
        (range(64, 128), "rows 64 to 127"),
        (range(1, 130, 2), "rows 1 of every 2"),
        ([x for x in range(128) if x % 16 >= 8], "rows 8 to 15 of every 16"),
        ([x for x in range(64, 128) if x % 4 in (0, 3)], "rows 0 and 3 of every 4, from 64 to 127"),
        ([1, 2, 3, 7, 64], "rows 1 to 3, 7 and 64"),
        ([0, 3, 7, 12, 18, 25, 33, 42, 52, 63], "rows 0, 3, 7, 12, 18, 25, 33, 42 and 2 others"),
    ],
)
def test_rows_in_words(numbers: list[int], said: str) -> None:
    assert listed(np.array(list(numbers)), 130, "row", "rows") == said


@pytest.mark.parametrize(
    ("region", "said"),
    [
        (np.s_[64:128, 128:256], "tiles of 64 x 128"),
        (np.s_[128:256], "bands of 128 rows"),
        (np.s_[:, :192], "bands of 192 columns"),
        (np.s_[128:, 128:256], "tiles of 128 x 128"),
        (np.s_[192:, 256:], "tiles of 64 x 8"),  # what the end cuts off does not show how wide a tile is
        (np.s_[:], None),
        (np.s_[3:5, 7:9], None),
    ],
)
def test_the_tile_is_inferred(region: tuple[slice, slice], said: str | None) -> None:
    wrong = np.zeros((256, 264), bool)
    wrong[region] = True
    assert whole_tiles(wrong) == said


def test_places_in_words() -> None:
    wrong = np.zeros((130, 264), bool)
    wrong[64:, 128:256] = True
    assert where(wrong) == "rows 64 to 129, columns 128 to 255"
    assert tiles(wrong, 64, 128) == "tiles (1, 1), (2, 1) of 3 x 3, each 64 x 128"
    assert where(~np.zeros_like(wrong)) == "all of D, 130 x 264"


def test_operands_do_not_change() -> None:
    """The mistakes above are made of copies."""
    again: Operands = normal(np.random.default_rng(3), M, N, BLOCKS * 128)
    assert all((getattr(again, name) == getattr(OPERANDS, name)).all() for name in ("a", "sfa", "b", "sfb"))
