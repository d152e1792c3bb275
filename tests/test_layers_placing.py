"""The kernels that find and fill rows of grouped layouts, on the emulator and on a GPU, beside torch's
operators on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from gemm_ladder import per_token_group_quant_fp8, settings
from gemm_ladder.layers import Fp8Experts, placing, routing
from gemm_ladder.layers.routing import LAYOUTS
from layer_cases import CHOICE_EXTREMES, choices
from opcheck import byte_wise

FP8 = torch.float8_e4m3fn
CANARY = 0x55


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors get canaries around them, which have to be there still at the end."""
    made: list[torch.Tensor] = []

    def new_empty(self: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        like = torch.empty(*shape, dtype=dtype or self.dtype)
        size = like.numel() * like.itemsize
        made.append(torch.full((size + 128,), CANARY, dtype=torch.uint8, device=self.device))
        return made[-1][64:-64].view(like.dtype).view(like.shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    yield
    assert made
    for memory in made:
        assert (memory[:64] == CANARY).all() and (memory[-64:] == CANARY).all()


def check(chosen: torch.Tensor, experts: int, wanted: routing.Placement, device: str) -> None:
    """Place choices by the kernel, and compare what it writes."""
    room = wanted.size // experts if wanted.layout == "masked" else 0
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    assert placing.why_not_placed(chosen, experts, wanted.size) is None
    found = placing.place(chosen.to(device), experts, wanted.layout, wanted.size, room, alignment)
    assert torch.equal(found.rows.cpu(), wanted.rows)
    assert torch.equal(found.places.cpu(), wanted.places)
    if wanted.layout == "contiguous" or (wanted.layout == "psum" and chosen.shape[1] == 1):
        assert found.tokens is not None and torch.equal(found.tokens.cpu(), wanted.tokens())
    else:
        assert found.tokens is None


@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize("dtype", CHOICE_EXTREMES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_places(layout: routing.Layout, dtype: torch.dtype, device: str) -> None:
    """One warp's choices and many, fewer experts than a warp has lanes and as many as a thread block has
    threads."""
    sizes = ((1, 8, 256), (3, 2, 4), (2, 1, 1), (37, 3, 33), (129, 6, 64), (2, 1, 1024), (700, 8, 160))
    for tokens, top_k, experts in sizes:
        chosen = choices(tokens, top_k, experts, dtype)
        check(chosen, experts, routing.place(chosen, experts, layout), device)


@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_of_uneven_choices(layout: routing.Layout, device: str) -> None:
    """All of one expert, none of any, as many as there may be, with gaps between a token's; the same expert
    twice; less room, or fewer rows, than there are choices."""
    for chosen in (
        torch.full((37, 3), 5),
        torch.full((37, 3), -1),
        torch.arange(placing.MOST_CHOICES).view(-1, 4) % 7,
        torch.arange(300).view(50, 6)[:, ::2] % 8,
    ):
        check(chosen, 8, routing.place(chosen, 8, layout), device)
    chosen = choices(40, 4, 6)
    for room in (1, 128):
        check(chosen, 6, routing.place(chosen, 6, "masked", room=room), device)
    if layout != "masked":
        check(chosen, 6, routing.place(chosen, 6, layout, most=3), device)


def test_what_is_not_placed() -> None:
    """torch's operators do it."""
    chosen = torch.zeros(4, 2, dtype=torch.int64)
    for reason, given in {
        "int16 [4, 2]; int32 or int64": (chosen.short(), 1, 1),
        "int64 [8]; int32 or int64": (chosen.view(8), 1, 1),
        "there are 0 choices; 1 to 16384 are possible": (chosen[:0], 1, 1),
        "there are 16386 choices": (torch.zeros(8193, 2, dtype=torch.int64), 1, 1),
        "there are 0 experts; 1 to 1024 are possible": (chosen, 0, 1),
        "there are 1025 experts": (chosen, 1025, 1),
        "the layout has 0 rows; 1 to 1048576 are possible": (chosen, 1, 0),
        "the layout has 1048577 rows": (chosen, 1, 2**20 + 1),
    }.items():
        assert reason in str(placing.why_not_placed(*given))


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "hidden", "room"),
    [(1, 8, 256, 256, 1), (33, 4, 16, 384, 33), (20, 2, 8, 7168, 32), (20, 2, 8, 128, 5)],
)
def test_rows_are_copied(tokens: int, top_k: int, experts: int, hidden: int, room: int, device: str) -> None:
    """To their places, with their scales, and nothing else is written."""
    placed = routing.place(choices(tokens, top_k, experts), experts, "masked", room=room)
    codes, scales = per_token_group_quant_fp8(torch.randn(tokens, hidden).bfloat16())
    rows, of_rows = routing.in_masked_layout(codes, scales, placed.places, experts, room)
    to = torch.full((experts, room, hidden), CANARY, dtype=torch.uint8, device=device)
    to_scales = torch.full_like(of_rows, -1, device=device)
    given = [one.to(device) for one in (codes, scales, placed.places)]
    assert placing.why_not_scattered(*given, experts * room) is None
    placing.scatter(*given, to.view(FP8), to_scales)
    for expert, count in enumerate(placed.rows):
        assert torch.equal(to[expert, :count].cpu(), rows[expert, :count].view(torch.uint8))
        assert torch.equal(to_scales[expert, :count].cpu(), of_rows[expert, :count])
        assert (to[expert, count:] == CANARY).all() and (to_scales[expert, count:] == -1).all()


def test_what_is_not_copied() -> None:
    """torch's operators do it, or refuse it."""
    codes, scales = torch.empty(4, 256, dtype=FP8), torch.empty(4, 2)
    places = torch.zeros(4, 2, dtype=torch.int64)
    wide = torch.empty(4, 272, dtype=FP8)
    for reason, given in {
        "three matrices of one device": (codes, scales[:3], places),
        "with a row for each token": (codes, scales, places[0]),
        "int32; FP8, FP32 and int64": (codes, scales, places.int()),
        "bfloat16 and torch.int64": (codes, scales.bfloat16(), places),
        "they are torch.float32,": (codes.float(), scales, places),
        "not at multiples of 16 bytes": (wide[:, 8:264], scales, places),
        "rows are not contiguous": (codes[:, ::2], scales, places),
        "there are 0 choices and 8 rows": (codes, scales, places[:, :0]),
    }.items():
        assert reason in str(placing.why_not_scattered(*given, 8))


def test_the_operator_of_programs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own checks of in_masked_layout, which torch.export puts in programs. Every row has a token
    here: others are not written, and are compared, too."""
    byte_wise(monkeypatch)
    codes, of_rows = per_token_group_quant_fp8(torch.randn(6, 144, device=device))
    places = torch.randperm(6).view(6, 1).to(device)
    operator = torch.ops.gemm_ladder.in_masked_layout.default
    found = torch.library.opcheck(operator, (codes, of_rows, places, 1, 6), raise_exception=False)
    assert set(found.values()) == {"SUCCESS"}, found


@pytest.mark.gpu
def test_a_gpu_has_shared_memory_for_more() -> None:
    """A launch may need more of it than those before, in this thread and in another one."""

    def place(*sizes: int) -> None:
        chosen = choices(*sizes)
        found = routing.place(chosen.cuda(), sizes[2], "psum")
        assert torch.equal(found.places.cpu(), routing.place(chosen, sizes[2], "psum").places)

    rising = ((120, 8, 384), (121, 8, 384), (128, 8, 512), (4096, 4, 1024))
    for sizes in rising:
        place(*sizes)
    with ThreadPoolExecutor(2) as pool:
        for sizes in (*rising[::-1], *rising):
            for ended in [pool.submit(place, *sizes), pool.submit(place, *rising[-1])]:
                ended.result()


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gpu_places_by_the_kernels(layout: routing.Layout) -> None:
    """Few choices; of many torch's operators do it. The numbers are the same."""
    experts = Fp8Experts(8, 256, 128, layout=layout, device="cuda")
    for tokens, by_kernel in ((9, True), (placing.MOST_CHOICES, False)):
        x = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16)
        chosen = torch.randint(-1, 9, (tokens, 2), device="cuda")
        with torch.no_grad():
            experts(x, chosen, torch.rand(tokens, 2, device="cuda"))
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                experts(x, chosen, torch.rand(tokens, 2, device="cuda"))
        names = " ".join(one.key for one in profile.key_averages())
        assert ("place_rows" in names) == by_kernel
        assert ("scatter_cast" in names) == (layout != "contiguous") and "scatter_rows" not in names
        for dtype in CHOICE_EXTREMES:
            found, wanted = (routing.place(one.to(dtype), 8, layout) for one in (chosen, chosen.cpu()))
            assert torch.equal(found.places.cpu(), wanted.places) and torch.equal(
                found.rows.cpu(), wanted.rows
            )
            assert torch.equal(found.tokens().cpu(), wanted.tokens())
