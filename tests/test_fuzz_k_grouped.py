"""Calls that are grouped along K, at random: any m, and n and k that are taken, by both generations'
functions, with other strides and types of scales, and C of every kind.

What is right is computed. What is wrong is refused in one sentence, before anything is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from gemm_ladder import settings
from gemm_ladder.errors import InputError
from hypothesis import given
from hypothesis import strategies as st
from random_calls import examples
from training_cases import DEVICE, Placed, place, small_integers
from wrong_operands import CHANGES, NOT_MADE

SCALES = ("as kernels read them", "row by row", "bfloat16", "float8_e8m0fnu", "misaligned", "the other way")
OPERANDS = ("A", "sfa", "B", "sfb", "D", "C")
WRONG_KS: dict[str, Callable[[list[int], int], object]] = {
    "one more": lambda ks, step: [*ks, 0],
    "one less": lambda ks, step: ks[:-1],
    "a longer group": lambda ks, step: [ks[0] + step, *ks[1:]],
    "no multiple": lambda ks, step: [ks[0] + step // 2, *ks[1:]],
    "negative": lambda ks, step: [-step, *ks[1:]],
    "negative beside its opposite": lambda ks, step: [*ks[:-1], ks[-1] + step, -step][1:],
    "beyond 32 bits": lambda ks, step: [2**40, *ks[1:]],
    "no whole number": lambda ks, step: [float(ks[0]), *ks[1:]],
    "one number": lambda ks, step: ks[0],
    "text": lambda ks, step: "1" * len(ks),
    "nothing": lambda ks, step: None,
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a call is made of. `first`: of the first generation's function, which adds to D, takes any
    multiple of 16 for a k, and scales [blocks of K, rows] too."""

    first: bool
    shape: tuple[int, int]
    units: tuple[int, ...]
    c: str
    gap: int
    scales: tuple[str, str]
    seed: int

    @property
    def step(self) -> int:
        return 16 if self.first else 128

    @property
    def ks(self) -> list[int]:
        return [unit * self.step for unit in self.units]

    def make(self, device: str) -> Placed:
        c = "d" if self.first else self.c
        call = place(self.shape, self.ks, device, c, small_integers, self.gap, self.seed)
        (a, sfa), (b, sfb) = call.lhs, call.rhs
        call.lhs = a, self.lying(sfa, self.scales[0])
        call.rhs = b, self.lying(sfb, self.scales[1])
        return call

    def lying(self, scales: torch.Tensor, how: str) -> torch.Tensor:
        """The scales, powers of two that every type holds, in one of SCALES. A square is taken by the first
        generation for [blocks of K, rows], which is what it documents first."""
        if self.first and scales.shape[0] == scales.shape[1]:
            how = "the other way"
        if how == "row by row":
            return scales.contiguous()
        if how == "misaligned":
            flat = torch.cat([scales.new_zeros(1), scales.mT.reshape(-1)])[1:]
            return flat.view(scales.mT.shape).mT
        if how == "the other way":
            return scales.mT.contiguous() if self.first else scales
        return scales if how == "as kernels read them" else scales.to(getattr(torch, how))

    def run(self, call: Placed, ks: object, on_device: torch.Tensor | None = None) -> None:
        if self.first:
            gl.k_grouped_wgrad_gemm_fp8_fp8_fp32_nt(call.lhs, call.rhs, call.d, ks)
        else:
            gl.k_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.d, ks, on_device, call.c)


drawn = st.builds(
    Drawn,
    first=st.booleans(),
    shape=st.tuples(
        st.one_of(st.sampled_from([0, 1, 4, 64, 128, 257]), st.integers(1, 300)),
        st.one_of(st.sampled_from([0, 4, 64, 128, 260]), st.integers(1, 75).map(lambda pieces: 4 * pieces)),
    ),
    units=st.lists(st.one_of(st.just(0), st.integers(0, 9)), min_size=1, max_size=9).map(tuple),
    c=st.sampled_from(["none", "d", "other"]),
    gap=st.sampled_from([0, 16, 48]),
    scales=st.tuples(st.sampled_from(SCALES), st.sampled_from(SCALES)),
    seed=st.integers(0, 2**20),
)


def bits(call: Placed) -> np.ndarray:
    """Everything where D lies and around it, before or after a call."""
    return call.surroundings.cpu().numpy().view(np.uint32).copy()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sf. is ")
def test_right_calls(machine: str) -> None:
    @examples(300)
    @given(what=drawn, as_tensor=st.booleans())
    def check(what: Drawn, as_tensor: bool) -> None:
        call = what.make(DEVICE[machine])
        on_device = torch.tensor(what.ks, dtype=torch.int32, device=DEVICE[machine])
        what.run(call, torch.tensor(what.ks) if as_tensor else what.ks, on_device)
        call.check(bits=machine == "gpu")

    check()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sf. is ")
def test_wrong_ks(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host, or on the device, where they are looked at if that was asked for."""
    monkeypatch.setattr(settings, "check_contents", True)

    @examples(200)
    @given(what=drawn, wrong=st.sampled_from([*WRONG_KS, "on the device"]))
    def check(what: Drawn, wrong: str) -> None:
        call = what.make(DEVICE[machine])
        ks: object = what.ks
        on_device = None
        if wrong == "on the device":
            on_device = torch.tensor(what.ks, dtype=torch.int32, device=DEVICE[machine]) + 128
        else:
            ks = WRONG_KS[wrong](what.ks, what.step)
        if (what.first and wrong == "on the device") or (ks == what.ks and on_device is None):
            return
        if wrong == "a longer group" and not any(what.shape):
            return  # it is as long
        before = bits(call)
        with pytest.raises(InputError) as refused:
            what.run(call, ks, on_device)
        assert "\n" not in str(refused.value) and str(refused.value)
        np.testing.assert_array_equal(bits(call), before)

    check()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sf. is ")
def test_every_wrong_kind(machine: str) -> None:
    """Operands of every wrong kind are refused, or the product is right."""
    seen = {"refused": 0, "computed": 0}

    @examples(500)
    @given(
        what=drawn,
        changes=st.dictionaries(st.sampled_from(OPERANDS), st.sampled_from(list(CHANGES)), max_size=2),
    )
    def check(what: Drawn, changes: dict[str, str]) -> None:
        call = what.make(DEVICE[machine])
        tensors = dict(zip(OPERANDS, (*call.lhs, *call.rhs, call.d, call.c), strict=True))
        try:
            for name, change in changes.items():
                if tensors[name] is not None:
                    tensors[name] = CHANGES[change](tensors[name])
        except NOT_MADE:
            return
        before = bits(call)
        changed = dataclasses.replace(
            call,
            lhs=(tensors["A"], tensors["sfa"]),
            rhs=(tensors["B"], tensors["sfb"]),
            d=tensors["D"],
            c=tensors["C"],
        )
        try:
            what.run(changed, what.ks)
        except InputError as refusal:
            assert "\n" not in str(refusal) and str(refusal)
            np.testing.assert_array_equal(bits(call), before)
            seen["refused"] += 1
            return
        seen["computed"] += 1
        if set(changes.values()) <= {"as it is", "a subclass", "a parameter"}:
            call.check(bits=machine == "gpu")

    check()
    assert seen["refused"] > 100 and seen["computed"] > 100, seen
