"""The command compare: what it times and how, what counts as right, and what it writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gemm_ladder.errors import InputError
from gemm_ladder.figures import draw
from gemm_ladder.figures import measured as measurements
from gemm_ladder.measure import compare, problems, records, session, timing
from gemm_ladder.measure.shapes import DEEPSEEK_V3, EMULATOR, EMULATOR_LIMIT, MEASURED, Shape, parse
from gemm_ladder.rungs import rungs

CPU = torch.device("cpu")
RAGGED = Shape(100, 72, 200)
SMALL = Shape(64, 128, 256)


def codes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.uint8).numpy()


# --------------------------------------------------------------------------------------------- shapes


def test_shapes() -> None:
    assert len(set(DEEPSEEK_V3)) == 18
    assert MEASURED[:18] == DEEPSEEK_V3 and len(set(MEASURED)) == 23
    assert all(m == n == k and n % 128 == 0 for m, n, k in MEASURED[18:])
    assert all(shape.padded <= EMULATOR_LIMIT // 100 for shape in EMULATOR)
    assert Shape(1, 1, 1).padded == 256 * 256 * 128
    assert Shape(257, 256, 129).padded == 512 * 256 * 256
    assert parse("0064x8x128", EMULATOR) == (Shape(64, 8, 128),)
    assert parse("all", EMULATOR) == EMULATOR
    assert parse("1x2X3, 4x5x6,1x2x3", EMULATOR) == (Shape(1, 2, 3), Shape(4, 5, 6))
    assert str(Shape(1, 2, 3)) == "1x2x3"
    assert Shape(2, 3, 256).flops == 2 * 2 * 3 * 256
    assert Shape(2, 3, 256).bytes == 2 * 256 + 3 * 256 + 4 * (2 * 2 + 1 * 2) + 2 * 2 * 3


@pytest.mark.parametrize(
    "text", ["", "1x2", "1x2x3x4", "0x8x128", "-1x8x128", "ax8x128", "64x128x256,", "١x8x128"]
)
def test_bad_shapes(text: str) -> None:
    with pytest.raises(InputError, match="is not a shape; MxNxK is needed"):
        parse(text, EMULATOR)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "1x1x17000000000",
            "'1x1x17000000000' has a number of 2^31 or more; m, n and k below that are needed",
        ),
        (f"1x1x{2**31}", "has a number of 2^31 or more"),
        (f"1x{'9' * 5000}x1", "has a number of 2^31 or more"),
        (f"{2**31 - 1}x8x1024", "is 2.3e+12 bytes; at most 1.1e+12 are taken"),
        (f"{'0' * 5000}x8x128", "is not a shape"),
    ],
)
def test_shapes_beyond_any_machine(text: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse(text, EMULATOR)
    assert said in str(refusal.value) and len(str(refusal.value)) < 200


# -------------------------------------------------------------------------------------- the command


@pytest.mark.usefixtures("fake_gpu")
def test_a_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command prints and writes where there is a Hopper GPU."""
    path = tmp_path / "mine.json"
    argv = [
        "--rungs",
        "s0_numpy,s1_naive",
        "--shapes",
        "64x128x256,100x72x200",
        "--l2",
        "clean",
        "--json",
        str(path),
    ]
    assert compare.main(argv) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Found NVIDIA H100: every rung is checked, then timed beside its peers.")
    for words in (
        "s0_numpy runs on the CPU alone",
        "TFLOPS, L2 cold and clean",
        "deep_gemm at 2 shapes: ",
        f"Written: {path}",
        "The recorded figures are left as they are: they take every rung, shape and state of L2 at once.",
    ):
        assert words in printed
    data = measurements.load(path)
    assert {(row["impl"], row["m"]) for row in data["rows"]} >= {("s1_naive", 64), ("s1_naive", 100)}
    assert {row["l2"] for row in data["rows"]} == {"clean"}


def test_show_measured(capsys: pytest.CaptureFixture[str]) -> None:
    result = session.Measured(meta=dict.fromkeys(measurements.META_FIELDS, "1"))
    result.rows = [records.row("s1_naive", SMALL, "dirty", timing.Timing(1.0, 1.0, 1.0), 0.001)]
    result.errors = {
        "s1_naive": problems.Errors(0.001, 0.01),
        "s3_wgmma": problems.Errors(float("nan"), 1.0),
    }
    for shape in (SMALL, RAGGED):
        result.miss("deep_gemm", shape, "no such library")
    result.wrong = ["s3_wgmma is wrong"]
    session.show_measured(result, ["dirty", "clean"])
    printed = capsys.readouterr().out
    assert "TFLOPS, L2 cold and dirty" in printed and "cold and clean" not in printed
    assert "1.00e-03  1.00e-02  right" in printed and "nan  1.00e+00  WRONG" in printed
    assert "deep_gemm at 2 shapes: no such library" in printed
    assert printed.endswith("s3_wgmma is wrong\n")


# --------------------------------------------------------------------------------------- what is kept


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository to write into: the tables' markers, and a place for the data."""
    (tmp_path / "figures" / "data").mkdir(parents=True)
    tables = ("dirty", "clean", "interleave")
    markers = [f"<!-- table-{name}:{end} -->" for name in tables for end in ("begin", "end")]
    (tmp_path / "figures" / "README.md").write_text("\n".join(markers))
    (tmp_path / "README.md").write_text("")
    monkeypatch.setattr(records, "checkout_root", lambda: tmp_path)
    return tmp_path


def a_result() -> session.Measured:
    result = session.Measured(
        meta=dict.fromkeys(measurements.META_FIELDS, "1") | {"sources": "0123456789ab" + 52 * "0"}
    )
    for l2 in ("dirty", "clean"):
        for shape in DEEPSEEK_V3:
            result.rows.append(records.row("s3_wgmma", shape, l2, timing.Timing(9.0, 8.0, 10.0), 0.001))
    return result


def test_a_whole_run_renews_the_record(checkout: Path) -> None:
    result = a_result()
    session.keep(result, checkout / "mine.json", whole=True)
    for path in (checkout / "figures" / "data" / "ladder.json", checkout / "mine.json"):
        assert measurements.load(path) == result.data
    text = (checkout / "figures" / "README.md").read_text()
    assert "| 64 x 2112 x 7168 |" in text and "kernel sources 0123456789ab." in text
    assert (checkout / "figures" / "ladder.png").stat().st_size > 10_000


def test_another_record(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = a_result()
    session.keep(result, None, whole=True)
    session.keep(result, None, whole=True, record="interleave.json")
    assert measurements.load(checkout / "figures" / "data" / "interleave.json") == result.data
    assert "Renewed: figures/data/interleave.json" in capsys.readouterr().out
    assert "| 64 x 2112 x 7168 | 9.0 (8.0 to 10.0) |" in (checkout / "figures" / "README.md").read_text()


@pytest.mark.parametrize(("whole", "wrong"), [(False, []), (True, ["s1_naive is wrong"])])
def test_a_partial_run_or_a_wrong_rung_leaves_the_record_as_it_is(
    checkout: Path, whole: bool, wrong: list[str]
) -> None:
    result = dataclasses.replace(a_result(), wrong=wrong)
    session.keep(result, checkout / "mine.json", whole)
    assert json.loads((checkout / "mine.json").read_text()) == result.data
    assert not (checkout / "figures" / "data" / "ladder.json").exists()


def test_the_record_is_kept_before_the_file(checkout: Path) -> None:
    """If the file given cannot be written after the run, the record is still kept."""
    result = a_result()
    (checkout / "mine.json").mkdir()
    with pytest.raises(InputError, match=r"mine\.json cannot be written \(Is a directory\)"):
        session.keep(result, checkout / "mine.json", whole=True)
    assert measurements.load(checkout / "figures" / "data" / "ladder.json") == result.data


def test_an_installed_package_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw, "HERE", tmp_path / "site-packages" / "gemm_ladder" / "figures")
    session.keep(a_result(), None, whole=True)
    assert "not a checkout" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*"))


def test_recorded_times_are_those_that_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """A rung's own command does not print what its lesson asks the reader to guess of the others."""
    size, ladder = Shape(4096, 7168, 16384), measurements.recorded()
    compare.show_recorded(compare.only(ladder, [rungs["s3_wgmma"]], [size]), "dirty")
    head, table = capsys.readouterr().out.split("\n", 1)
    assert head.startswith("RECORDED, not measured here")
    assert "s3_wgmma" in table and "4096 x 7168 x 16384" in table and "cuBLASLt" in table
    assert "s4_tma" not in table and "64 x 7168" not in table
    compare.show_recorded(compare.only(ladder, [rungs["s3_wgmma"]], [Shape(64, 128, 256)]), "dirty")
    assert capsys.readouterr().out.startswith("No figures are recorded for a dirty L2 at these shapes")
