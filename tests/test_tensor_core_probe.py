"""The tensor core's model against results of an H100, and the probe that gets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from exact_arithmetic import bits_of
from gemm_ladder.figures import measured
from gemm_ladder.measure import tensor_core as probing
from gemm_ladder.ref import tensor_core

SAMPLE = Path(__file__).parent / "data" / "tensor_core_sample.npz"
SUMMARY = measured.DATA / "tensor_core_probe.json"


def test_results_of_an_h100():
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE.name} does not exist yet: `gemm_ladder tensor-core` makes it on an H100")
    count = 0
    for kind, cases in probing.load_cases(SAMPLE).items():
        for i, (acc, d) in enumerate(zip(cases["acc"], cases["d"], strict=True)):
            one = slice(i, i + 1)
            got = tensor_core.chain(cases["a"][one], cases["b"][one], np.array([[acc]]).view(np.float32))
            assert bits_of(got) == [[d]], f"{kind}, case {i}"
            count += 1
    assert count > 1000


def test_recorded_comparison_with_an_h100():
    if not SUMMARY.exists():
        pytest.skip(f"{SUMMARY.name} does not exist yet: `gemm_ladder tensor-core` makes it on an H100")
    data = json.loads(SUMMARY.read_text(encoding="utf-8"))
    assert [row["kind"] for row in data["rows"]] == list(probing.KINDS)
    assert all(row["equal"] == row["compared"] for row in data["rows"])
    assert sum(row["compared"] for row in data["rows"]) >= 10**6
    assert "H100" in data["meta"]["gpu"]


N_STEP = 88  # the probe compiled for n = 88 and 176


@pytest.fixture(scope="module")
def probes() -> dict:
    return {}


def probe_machine(probes: dict, name: str) -> probing.Machine:
    if name not in probes:
        probes[name] = {"emulator": probing.emulated, "gpu": probing.gpu}[name](N_STEP)
    return probes[name]


@pytest.mark.parametrize("kind", probing.KINDS)
def test_probe(machine, probes, kind):
    answers = probing.probe(kind, probe_machine(probes, machine), [88, 176], tiles=2)
    assert answers.compared == 2 * 64 * (88 + 176)
    assert answers.equal == answers.compared
    assert probing.differences(kind, answers) == []


def test_probe_sees_a_wrong_bit(probes, tmp_path):
    right = probe_machine(probes, "emulator")

    def wrong(kind, operands):
        d = right(kind, operands)
        d.view(np.uint32)[1, 63, 87] ^= 1 << 10
        return d

    kind = "chain: partial sums"
    answers = probing.probe(kind, wrong, [88], tiles=2, kept=20)
    assert (answers.compared, answers.equal) == (11264, 11263)
    (line,) = probing.differences(kind, answers)
    assert line.startswith(f"{kind}, n = 88: acc ")

    probing.save_cases(tmp_path / "cases.npz", {kind: answers}, 20)
    cases = probing.load_cases(tmp_path / "cases.npz")[kind]
    assert len(cases["d"]) == 20 and cases["a"].shape == (20, 128)
    for i in range(20):  # the one that differs is kept, and comes first
        acc = cases["acc"][i : i + 1, np.newaxis].view(np.float32)
        expected = tensor_core.chain(cases["a"][i : i + 1], cases["b"][i : i + 1], acc)
        assert (bits_of(expected) == [[cases["d"][i]]]) == (i > 0)
