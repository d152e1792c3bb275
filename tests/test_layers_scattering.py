"""The kernel that casts tokens into a grouped layout, on the emulator and on a GPU, beside the casts that
users call."""

from __future__ import annotations

import pytest
import torch
from gemm_ladder import per_token_group_quant_fp8, scales
from gemm_ladder.arguments import ceil_div
from gemm_ladder.casts.kernel import INPUTS
from gemm_ladder.errors import InputError
from gemm_ladder.layers import routing, scattering
from layer_cases import choices

FP8 = torch.float8_e4m3fn
CANARY = 0x55


def numbers(tokens: int, hidden: int, dtype: torch.dtype) -> torch.Tensor:
    """Random ones of several magnitudes, with a row of zeros, NaN and an infinity."""
    generator = torch.Generator().manual_seed(hidden)
    found = torch.randn(tokens, hidden, generator=generator) * torch.logspace(-6, 4, tokens)[:, None]
    found[tokens // 2] = 0
    found[-1, 0], found[0, -1] = torch.nan, -torch.inf
    return found.to(dtype)


def check(
    x: torch.Tensor, places: torch.Tensor, groups: int, room: int, use_ue8m0: bool, device: str
) -> None:
    """Each row of a choice has its token's codes and scales, and no other element is written."""
    hidden = x.shape[1]
    shape = (groups, room, ceil_div(hidden, 128))
    strides = scales.mn_major_strides(shape)
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    codes = torch.full((groups * room * hidden + 128,), CANARY, dtype=torch.uint8, device=device)
    of_rows = torch.full((span + 32,), -1.0, device=device)
    want_codes, want_scales = codes.cpu().clone(), of_rows.cpu().clone()
    in_fp8, of_tokens = per_token_group_quant_fp8(x, use_ue8m0)
    for token, choice in zip(
        *torch.nonzero((places >= 0) & (places < groups * room), as_tuple=True), strict=True
    ):
        group, row = divmod(places[token, choice].item(), room)
        want_codes[64:-64].view(groups, room, hidden)[group, row] = in_fp8[token].view(torch.uint8)
        want_scales[16:].as_strided(shape, strides)[group, row] = of_tokens[token]
    given = x.to(device), places.to(device)
    assert scattering.why_not(*given, groups * room) is None
    scattering.cast(
        *given,
        codes[64:-64].view(FP8).view(groups, room, hidden),
        of_rows[16:].as_strided(shape, strides),
        use_ue8m0,
    )
    assert torch.equal(codes.cpu(), want_codes)
    torch.testing.assert_close(of_rows.cpu(), want_scales, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", INPUTS, ids=str)
@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_rows_of_choices(dtype: torch.dtype, use_ue8m0: bool, device: str) -> None:
    """Of one token and of many, of rows that are no whole runs, of more choices than a thread loads at a
    time, with less room than there are choices."""
    for tokens, top_k, experts, hidden, room in (
        (1, 8, 256, 256, 1),
        (33, 3, 16, 400, 33),
        (20, 11, 13, 1040, 20),
        (9, 2, 8, 7168, 5),
        (200, 1, 4, 16, 128),
    ):
        x, chosen = numbers(tokens, hidden, dtype), choices(tokens, top_k, experts)
        placed = routing.place(chosen, experts, "masked", room=room)
        check(x, placed.places, experts, room, use_ue8m0, device)
        placed = routing.place(chosen, experts, "psum")
        check(x, placed.places, 1, placed.size, use_ue8m0, device)


def test_places_that_make_no_sense(device: str) -> None:
    """They are no rows, and nothing is written for them."""
    places = torch.tensor([[-1, 3], [2**63 - 1, -(2**63)], [0, 2**32], [6, 5], [2**32 + 1, 7]])
    check(numbers(5, 128, torch.bfloat16), places, 2, 3, False, device)


def test_rows_with_gaps(device: str) -> None:
    """Of tokens, and of choices."""
    x = numbers(12, 272, torch.bfloat16).to(device)[::2, :144]
    places = torch.arange(24).view(6, 4)[:, ::2]
    check(x, places, 1, 24, False, device)


def test_what_is_not_cast() -> None:
    """The casts that users call do it, or refuse it."""
    x, places = torch.empty(4, 256, dtype=torch.bfloat16), torch.zeros(4, 2, dtype=torch.int64)
    wide = torch.empty(4, 272, dtype=torch.bfloat16)
    for reason, given in {
        "x is torch.float64 and places torch.int64; FP32, BF16 or FP16": (x.double(), places),
        "places torch.int32; FP32, BF16 or FP16, and int64, are needed": (x, places.int()),
        "two matrices of one device": (x[:3], places),
        "with a row for each token": (x, places[:, 0]),
        "not at multiples of 16 bytes": (wide[:, 4:260], places),
        "rows are not contiguous": (x[:, ::2], places),
        "of no multiple of 16 numbers": (x[:, :136], places),
        "there are 8 runs of 128 numbers, 0 choices and 8 rows": (x, places[:, :0]),
        "there are 0 runs": (x[:0], places[:0]),
    }.items():
        assert reason in str(scattering.why_not(*given, 8))


def test_a_smaller_storage() -> None:
    """Is refused, as by the casts that users call."""
    x, places = torch.empty(4, 128, dtype=torch.bfloat16), torch.zeros(4, 1, dtype=torch.int64)
    x.untyped_storage().resize_(64)
    codes, of_rows = torch.empty(1, 4, 128, dtype=FP8), torch.empty(1, 4, 1)
    with pytest.raises(InputError, match="x has a storage of 64 bytes; 1024, for all of its elements"):
        scattering.cast(x, places, codes, of_rows, False)


@pytest.mark.parametrize("layout", routing.LAYOUTS)
@pytest.mark.parametrize(("top_k", "tokens"), [(4, 40), (1, scattering.MOST_SINGLE + 1)])
@pytest.mark.parametrize("first", [0, 3])
def test_layouts(layout: routing.Layout, top_k: int, tokens: int, first: int, device: str) -> None:
    """Each row that has a token has its numbers, whichever kernel casts it, in strides that products take;
    also where tokens do not begin at multiples of 16 bytes."""
    if layout == "masked" and tokens > 40:
        tokens = 90  # of which each expert has room for all
    x, chosen = numbers(tokens, 400, torch.bfloat16)[:, first : first + 384], choices(tokens, top_k, 8)
    placed = routing.place(chosen, 8, layout)
    there = placed if device == "cpu" else routing.place(chosen.cuda(), 8, layout)
    assert torch.equal(there.places.cpu(), placed.places)
    # Copied as it is, with its gaps.
    whole = torch.empty(tokens, 400, dtype=x.dtype, device=device)
    moved = whole[:, first : first + 384].copy_(x)
    codes, of_rows = scattering.in_layout(moved, there, False)
    shape = (8, placed.size // 8) if layout == "masked" else (placed.size,)
    assert codes.shape == (*shape, 384) and codes.is_contiguous()
    assert of_rows.shape == (*shape, 3) and of_rows.stride() == scales.mn_major_strides(of_rows.shape)
    token = placed.tokens()
    rows = token >= 0
    assert rows.any()
    want_codes, want_scales = per_token_group_quant_fp8(x)
    found = (
        codes.cpu().view(placed.size, 384).view(torch.uint8)[rows],
        of_rows.cpu().reshape(placed.size, 3)[rows],
    )
    assert torch.equal(found[0], want_codes[token[rows]].view(torch.uint8))
    torch.testing.assert_close(found[1], want_scales[token[rows]], rtol=0, atol=0, equal_nan=True)


def test_which_layouts_the_kernel_is_for() -> None:
    """All that it was faster for."""
    for layout in routing.LAYOUTS:
        for top_k, tokens in ((1, scattering.MOST_SINGLE), (1, scattering.MOST_SINGLE + 1), (2, 3000)):
            places = torch.zeros(tokens, top_k, dtype=torch.int64)
            placed = routing.Placement(layout, 1, places, places, 1)
            many = top_k == 1 and tokens > scattering.MOST_SINGLE
            assert scattering.is_for(placed) == (layout == "masked" or (layout == "psum" and not many))
