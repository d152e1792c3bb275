"""Grouped calls at random: groups of every size, in every layout, with other strides and types of scales.

What is right is computed, and nothing is written beside it. What is wrong is refused in one sentence, before
anything is written.
"""

from __future__ import annotations

import dataclasses

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from families import DEVICE
from gemm_ladder import settings
from gemm_ladder.errors import InputError
from gemm_ladder.lab.operands import FP8_NAN, normal, powers_of_two, scale_shapes
from gemm_ladder.lab.surroundings import CANARY, MARGIN, UNWRITTEN
from gemm_ladder.production import launching
from gemm_ladder.ref import gemm, metrics
from grouped_cases import MAX_ROW_ERROR
from hypothesis import given
from hypothesis import strategies as st
from random_calls import examples
from wrong_operands import CHANGES, HARMLESS, NOT_MADE

KINDS = ("contiguous", "masked", "psum")
INDEX = {"contiguous": "m_indices", "masked": "masked_m", "psum": "grouped_layout"}
ALIGNMENTS = (64, 128, 192, 256)
# A kernel is compiled for an n and a k, so a GPU gets few of them.
SIZES = ((8, 16), (136, 256), (264, 400), (0, 128), (64, 0))
VALUE, ZERO, FREE, KEPT = range(4)  # what a row of the output has to be; FREE: anything
SCALES = ("as kernels read them", "row by row", "transposed", "bfloat16", "float8_e8m0fnu", "misaligned")


@dataclasses.dataclass
class Call:
    """A call, and what its output has to be.

    Attributes:
        tensors: A, sfa, B, sfb, out and index.
        product: float64 [rows, n], for the rows whose state is VALUE.
        state: of each row of `out`.
        around: int16 [rows and margins, n and a gap], canaries around and between the rows of `out`.
    """

    kind: str
    tensors: dict[str, torch.Tensor]
    product: np.ndarray
    state: np.ndarray
    around: torch.Tensor

    def run(self, expected_m: int) -> None:
        a, sfa, b, sfb, out, index = self.tensors.values()
        if self.kind == "contiguous":
            gl.m_grouped_fp8_gemm_nt_contiguous((a, sfa), (b, sfb), out, index)
        elif self.kind == "masked":
            gl.m_grouped_fp8_gemm_nt_masked((a, sfa), (b, sfb), out, index, expected_m)
        else:
            gl.m_grouped_fp8_gemm_nt_contiguous(
                *((a, sfa), (b, sfb), out, index),
                use_psum_layout=True,
                expected_m_for_psum_layout=expected_m or None,
            )

    def check(self) -> None:
        everything = self.around.cpu().numpy().view(np.uint16)
        rows, n = self.product.shape
        bits = everything[MARGIN : MARGIN + rows, :n].copy()
        everything[MARGIN : MARGIN + rows, :n] = CANARY
        assert (everything == CANARY).all(), "written around the output, or between its rows"
        assert (bits[self.state == KEPT] == UNWRITTEN).all(), "written where nothing belongs"
        assert (bits[self.state == ZERO] & 0x7FFF == 0).all(), "padding is not zeros"
        counts = self.state == VALUE
        found = (bits[counts].astype(np.uint32) << 16).view(np.float32)
        if found.size:
            assert metrics.max_row_error(found, self.product[counts]) < MAX_ROW_ERROR

    def untouched(self) -> bool:
        rows, n = self.product.shape
        everything = self.around.cpu().numpy().view(np.uint16)
        return bool((everything[MARGIN : MARGIN + rows, :n] == UNWRITTEN).all())


@dataclasses.dataclass
class Rows:
    """Where the rows of each group are: (group, first row, how many), and the tensor that says so."""

    segments: list[tuple[int, int, int]]
    index: np.ndarray
    state: np.ndarray


def contiguous(counts: list[int], alignment: int, behind: int, order: list[int]) -> Rows:
    """The groups in any order; `behind` blocks without a group lie behind the first of them, and rows of
    padding at the end are missing from some calls."""
    segments, index, state = [], [], []
    for place, group in enumerate(order):
        segments.append((group, len(index), counts[group]))
        padding = -counts[group] % alignment
        index += [group] * counts[group] + [-1] * padding
        state += [VALUE] * counts[group] + [FREE] * padding
        if place == 0:
            index += [-1] * (behind * alignment)
            state += [ZERO] * (behind * alignment)
    cut = len(order) > 1 and behind
    keep = segments[-1][1] + segments[-1][2] if cut else len(index)
    return Rows(segments, np.array(index[:keep], np.int32), np.array(state[:keep], np.int8))


def psum(counts: list[int], alignment: int, behind: int) -> Rows:
    """Groups one after the other, then `behind` rows, of which the first may still be padding."""
    segments, ends, begin = [], [], 0
    for group, count in enumerate(counts):
        segments.append((group, begin, count))
        ends.append(begin + count)
        begin = -(-ends[-1] // alignment) * alignment
    state = np.full(ends[-1] + behind, KEPT, np.int8)
    for _, begin, count in segments:
        state[begin : begin + count + -count % alignment] = ZERO
        state[begin : begin + count] = VALUE
    return Rows(segments, np.array(ends, np.int32), state)


def masked(counts: list[int], behind: int) -> Rows:
    """Room for the largest group and `behind` rows more in each."""
    room = max(counts) + behind
    segments = [(group, group * room, count) for group, count in enumerate(counts)]
    state = np.full(len(counts) * room, KEPT, np.int8)
    for _, begin, count in segments:
        state[begin : begin + count] = VALUE
    return Rows(segments, np.array(counts, np.int32), state)


def with_gaps(values: np.ndarray, gap: int, poison: int, device: str) -> torch.Tensor:
    """The same with `gap` elements of poison behind each row."""
    wide = np.full((*values.shape[:-1], values.shape[-1] + gap), poison, values.dtype)
    wide[..., : values.shape[-1]] = values
    return torch.from_numpy(wide).to(device)[..., : values.shape[-1]]


def lying(scales: np.ndarray, how: str, device: str, of_a: bool) -> torch.Tensor:
    """Scales, powers of two that every type holds, in one of SCALES."""
    found = torch.from_numpy(scales).to(device)
    if how == "as kernels read them":
        return gl.get_mn_major_tma_aligned_tensor(found) if of_a and found.numel() else found
    if how == "transposed":
        return found.mT.contiguous().mT
    if how == "misaligned":
        return torch.cat([found.new_zeros(1), found.flatten()])[1:].view(found.shape)
    return found.to(getattr(torch, how)) if how in ("bfloat16", "float8_e8m0fnu") else found


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a call is made of; `gaps`: units of 16 bytes between rows of A, B and out."""

    kind: str
    size: tuple[int, int]
    counts: tuple[int, ...]
    alignment: int
    behind: int
    scales: tuple[str, str]
    gaps: tuple[int, int, int]
    expected_m: int
    seed: int

    def make(self, device: str) -> Call:
        """The call. Rows of no group, and their scales, are NaN."""
        rng = np.random.default_rng(self.seed)
        (n, k), counts = self.size, list(self.counts)
        if self.kind == "contiguous":
            order = rng.permutation(len(counts)).tolist()
            rows = contiguous(counts, self.alignment, self.behind % 3, order)
        elif self.kind == "psum":
            rows = psum(counts, self.alignment, self.behind)
        else:
            rows = masked(counts, self.behind)
        total, groups = len(rows.state), len(counts)
        operands = normal(rng, total, groups * max(n, 1), k)
        b = operands.b.reshape(groups, max(n, 1), k)[:, :n]
        sfa, sfb = (
            powers_of_two(rng, shape)
            for shape in (scale_shapes(total, n, k)[0], (groups, -(-n // 128), -(-k // 128)))
        )
        a, product = np.full_like(operands.a, FP8_NAN), np.zeros((total, n))
        poisoned = np.full_like(sfa, np.nan)
        for group, begin, count in rows.segments:
            at = slice(begin, begin + count)
            a[at], poisoned[at] = operands.a[at], sfa[at]
            product[at] = gemm.dense(a[at], sfa[at], b[group], sfb[group])
        shape = (groups, total // groups) if self.kind == "masked" else (total,)
        gap = 8 * self.gaps[2]
        around = torch.full((MARGIN + total + MARGIN, n + gap), CANARY, dtype=torch.int16, device=device)
        around[MARGIN : MARGIN + total, :n] = UNWRITTEN
        out = around[MARGIN : MARGIN + total].view(torch.bfloat16).view(*shape, n + gap)[..., :n]
        tensors = {
            "A": with_gaps(a.reshape(*shape, k), 16 * self.gaps[0], FP8_NAN, device).view(
                torch.float8_e4m3fn
            ),
            "sfa": lying(
                poisoned.reshape(*shape, -1) if sfa.size else sfa.reshape(*shape, sfa.shape[1]),
                self.scales[0],
                device,
                True,
            ),
            "B": with_gaps(np.ascontiguousarray(b), 16 * self.gaps[1], FP8_NAN, device).view(
                torch.float8_e4m3fn
            ),
            "sfb": lying(sfb, self.scales[1], device, False),
            "out": out,
            "index": torch.from_numpy(rows.index).to(device),
        }
        return Call(self.kind, tensors, product, rows.state, around)


def drawn(sizes: st.SearchStrategy[tuple[int, int]], most: int = 300) -> st.SearchStrategy[Drawn]:
    """Any call; most: rows of a group."""
    count = st.one_of(st.just(0), st.integers(1, 9), st.integers(1, most), st.sampled_from([63, 64, 65, 128]))
    return st.builds(
        Drawn,
        kind=st.sampled_from(KINDS),
        size=sizes,
        counts=st.lists(count, min_size=1, max_size=6).map(tuple),
        alignment=st.sampled_from(ALIGNMENTS),
        behind=st.one_of(st.just(0), st.integers(0, 300)),
        scales=st.tuples(st.sampled_from(SCALES), st.sampled_from(SCALES)),
        gaps=st.tuples(*[st.sampled_from([0, 0, 1, 3])] * 3),
        expected_m=st.sampled_from([0, 1, 40, 100_000]),
        seed=st.integers(0, 2**32 - 1),
    )


any_size = st.one_of(
    st.sampled_from(SIZES),
    st.tuples(st.integers(1, 40).map(lambda x: 8 * x), st.integers(1, 30).map(lambda x: 16 * x)),
)


@pytest.fixture(autouse=True)
def _settings(settings_restored: None) -> None:
    """The alignment that a test has set is not left to others."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sf. is ")
def test_right_calls(machine: str) -> None:
    """They compute their groups, and write zeros or nothing elsewhere."""

    @examples(400)
    @given(what=drawn(any_size if machine == "emulator" else st.sampled_from(SIZES)))
    def check(what: Drawn) -> None:
        gl.set_mk_alignment_for_contiguous_layout(what.alignment)
        call = what.make(DEVICE[machine])
        call.run(what.expected_m)
        call.check()

    check()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sf. is ")
def test_right_calls_of_kernels() -> None:
    """The kernels that these calls get on an H100, on the emulator, in any order of its threads."""

    @examples(40)
    @given(what=drawn(st.sampled_from(SIZES[:3]), most=150), num_sms=st.integers(1, 5))
    def check(what: Drawn, num_sms: int) -> None:
        gl.set_mk_alignment_for_contiguous_layout(what.alignment)
        call = what.make("cpu")
        a, sfa, b, sfb, out, index = call.tensors.values()
        m, groups = a.shape[-2], len(b)
        if not m:
            return
        config = launching.configuration(
            what.kind, m, *what.size, groups, what.expected_m, 132, "NVIDIA H100"
        )
        with gl.emulator(seed=what.seed):
            launching.launch(config, (a, sfa), (b, sfb), out, index, num_sms=num_sms * config.cluster)
        call.check()

    check()


def wrong_contents(call: Call, rng: np.random.Generator, alignment: int) -> bool:
    """Spoil one number of the index tensor; False if every number would be right."""
    index, groups = call.tensors["index"], len(call.tensors["B"])
    if not len(index):
        return False
    at = int(rng.integers(len(index)))
    if call.kind == "contiguous":
        inside = at % alignment and int(index[at - 1]) != 0
        index[at] = 0 if inside and rng.integers(2) else int(rng.choice([-2, groups, 2**31 - 1, -(2**31)]))
    elif call.kind == "masked":
        index[at] = int(rng.choice([-1, call.tensors["A"].shape[1] + 1, 2**31 - 1, -(2**31)]))
    else:
        begin = -(-int(index[at - 1]) // alignment) * alignment if at else 0
        begin = min(begin, len(call.tensors["A"]))
        index[at] = int(rng.choice([begin - 1, len(call.tensors["A"]) + 1, 2**31 - 1, -(2**31)]))
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sf. is ")
def test_wrong_contents(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that is no group, a group inside a block, a count or an end that cannot be. On a GPU they are
    looked at if that was asked for."""
    monkeypatch.setattr(settings, "check_contents", True)
    seen = 0

    @examples(200)
    @given(what=drawn(st.sampled_from(SIZES)))
    def check(what: Drawn) -> None:
        nonlocal seen
        gl.set_mk_alignment_for_contiguous_layout(what.alignment)
        call = what.make(DEVICE[machine])
        if not wrong_contents(call, np.random.default_rng(what.seed), what.alignment):
            return
        with pytest.raises(InputError) as refused:
            call.run(what.expected_m)
        assert INDEX[what.kind] in str(refused.value) and "\n" not in str(refused.value)
        assert call.untouched()
        seen += 1

    check()
    assert seen > 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sf. is ")
def test_every_wrong_kind(machine: str) -> None:
    """Operands of every wrong kind are refused, or the product is right."""
    seen = {"refused": 0, "computed": 0}
    names = ("A", "sfa", "B", "sfb", "out", "index")

    @examples(1000)
    @given(
        what=drawn(st.sampled_from(SIZES[:3]), most=70),
        changes=st.dictionaries(st.sampled_from(names), st.sampled_from(list(CHANGES)), max_size=2),
    )
    def check(what: Drawn, changes: dict[str, str]) -> None:
        gl.set_mk_alignment_for_contiguous_layout(what.alignment)
        call = what.make(DEVICE[machine])
        try:
            for name, change in changes.items():
                call.tensors[name] = CHANGES[change](call.tensors[name])
        except NOT_MADE:
            return
        try:
            call.run(what.expected_m)
        except InputError as refusal:
            assert "\n" not in str(refusal) and str(refusal)
            assert call.untouched()
            seen["refused"] += 1
            return
        seen["computed"] += 1
        if set(changes.values()) <= HARMLESS and "out" not in changes:
            call.check()

    check()
    assert seen["refused"] > 300 and seen["computed"] > 200, seen
