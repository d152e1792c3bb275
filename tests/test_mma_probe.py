"""The probe of matrix instructions, with the model as the machine, and what a GPU answered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from gemm_ladder import build
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures import measured
from gemm_ladder.measure import mma_inputs, mma_probe
from gemm_ladder.ref.mma import INSTRUCTIONS
from gemm_ladder.sass import disassembly

SAMPLE = Path(__file__).parent / "data" / "mma_sample.npz"
SUMMARY = measured.DATA / "mma_probe.json"


def test_results_of_a_gpu():
    count = 0
    for name, cases in mma_probe.load_cases(SAMPLE).items():
        for i, d in enumerate(cases["d"]):
            assert mma_probe.modelled_case(INSTRUCTIONS[name], cases, i) == d, f"{name}, case {i}"
            count += 1
    assert count > 100 * len(INSTRUCTIONS)


def test_recorded_comparison_with_a_gpu():
    data = json.loads(SUMMARY.read_text(encoding="utf-8"))
    assert [row["instruction"] for row in data["rows"]] == list(INSTRUCTIONS)
    for row in data["rows"]:
        assert row["compared"] >= 2**20 and row["equal"] == row["compared"], row["instruction"]


@pytest.mark.parametrize("name", ["wgmma.f32.bf16.bf16", "wgmma.f16.e5m2.e4m3", "mma.s32.s8.u8.satfinite"])
def test_probe(name, tmp_path):
    instruction = INSTRUCTIONS[name]
    answers = mma_probe.probe(instruction, mma_probe.modelled(instruction), [8, 16], tiles=1)
    forms = mma_probe.forms_of(instruction)
    assert answers.compared == answers.equal == len(answers.counts) * len(forms) * 64 * (8 + 16)
    assert mma_probe.differences(instruction, answers) == []
    mma_probe.save_cases(tmp_path / "sample.npz", mma_probe.sample({name: answers}, 2))
    cases = mma_probe.load_cases(tmp_path / "sample.npz")[name]
    assert len(cases["d"]) == 2 * len(answers.counts)
    assert all(mma_probe.modelled_case(instruction, cases, i) == d for i, d in enumerate(cases["d"]))


def test_probe_sees_a_wrong_bit():
    instruction = INSTRUCTIONS["wgmma.f32.f16.f16"]
    right, wrong_kind = mma_probe.modelled(instruction), mma_inputs.kinds_of(instruction)["one product"]

    def wrong(form, kind, operands):
        d = right(form, kind, operands)
        if form == mma_probe.REGISTERS and kind.a.__qualname__ == wrong_kind.a.__qualname__ and kind.scale_d:
            d[0, 63, 7] ^= 1
        return d

    answers = mma_probe.probe(instruction, wrong, [8], tiles=1, kept=20)
    lines = mma_probe.differences(instruction, answers)
    assert answers.compared - answers.equal == len(lines) > 0
    assert any(line.startswith("wgmma.f32.f16.f16, one product, registers, n = 8: acc ") for line in lines)
    assert answers.counts["one product"]["registers"] == (512, 511)
    assert answers.counts["one product"]["shared"] == (512, 512)
    cases = answers.cases
    assert (cases["d"] != cases["expected"])[: len(lines)].all()  # they come first


@pytest.mark.parametrize(
    ("name", "opcode", "count"),
    [
        # Each form for n = 256, single and in chains of four.
        ("wgmma.f32.tf32.tf32", r"HGMMA\.64x256x8\.F32\.TF32", 2 * (1 + 4)),
        ("wgmma.f16.e4m3.e5m2", r"QGMMA\.64x256x32\.F16\.E4M3\.E5M2", 2 * (1 + 4)),
        ("wgmma.s32.u8.s8.satfinite", r"IGMMA\.64x256x32\.U8\.S8\.SAT", 2 * (1 + 4)),
        ("wgmma.f32.bf16.bf16", r"HGMMA\.64x256x16\.F32\.BF16", 6 * (1 + 4)),
        ("mma.f32.tf32.tf32", r"HMMA\.1688\.F32\.TF32", None),
        ("mma.s32.s8.u8", r"IMMA\.16832\.S8\.U8 ", None),
        # ptxas makes two mma.sync of FP16 of one of FP8, the first with accumulators of zero.
        ("mma.f32.e4m3.e5m2", r"HMMA\.16816\.F32 [^;]*RZ", None),
        ("mma.f16.e5m2.e4m3", r"HMMA\.16816\.F16 [^;]*RZ", None),
    ],
)
@pytest.mark.slow
def test_probe_compiles_to_its_instruction(name, opcode, count):
    if disassembly.find_cuobjdump() is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump")
    built = build.load(mma_probe.SOURCE, target="cuda", defines=mma_probe.defines(INSTRUCTIONS[name], 256))
    code = disassembly.disassemble(built.path).values()
    text = [f"{line.opcode} {line.operands}" for kernel in code for line in kernel]
    found = [line for line in text if re.search(opcode, line)]
    assert len(found) == count if count else found
    assert "C75" not in built.log


def test_probe_refuses_what_it_has_not():
    with pytest.raises(GemmLadderError, match="a part of an instruction's name"):
        mma_probe.main(["--out", "/nonexistent", "--only", "bf16.f16"])


def test_kinds_have_enough_results():
    """main() runs 2 tiles for n = 64, 128, 192, 256: more than 2^20 results of each instruction and form."""
    for instruction in INSTRUCTIONS.values():
        tiles = 2 * (mma_probe.INTEGER_TILES if instruction.a in (5, 6) else 1)
        assert len(mma_inputs.kinds_of(instruction)) * tiles * 64 * 640 > 2**20


def test_what_inputs_hold():
    """Each kind holds what its name says, for the widest and the narrowest type."""
    rng = np.random.default_rng(0)
    for name in ("wgmma.f32.bf16.bf16", "wgmma.f16.e4m3.e4m3", "mma.f32.tf32.tf32"):
        instruction = INSTRUCTIONS[name]
        form = mma_inputs.Format(instruction.a)
        for kind_name, kind in mma_inputs.kinds_of(instruction).items():
            a, b, acc = mma_inputs.make(instruction, kind, rng, 16, 8)
            assert a.dtype == b.dtype == form.dtype and acc.shape == (8, 64, 16)
            nonzero = np.count_nonzero(form.decode(a), axis=-1)
            if kind_name.startswith("one "):
                assert nonzero.max() == 1, (name, kind_name)
            if kind_name.startswith("no products"):
                assert nonzero.max() == 0, (name, kind_name)
            if "special operands" in kind_name:
                assert not np.isfinite(form.decode(a)).all(), (name, kind_name)
