"""The command line: exit statuses, one-sentence refusals, and what it shows where there is no Hopper GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gemm_ladder import errors
from gemm_ladder.cli import COMMANDS, main
from gemm_ladder.figures import measured
from gemm_ladder.measure import compare, records, session, shapes
from gemm_ladder.rungs import Rung, Rungs, rungs

Output = pytest.CaptureFixture[str]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def refusal(capsys: Output, *argv: str) -> str:
    """What a command says when it refuses: one line on stderr, nothing on stdout, exit status 2."""
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gemm_ladder: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["interleave"], "found no CUDA GPU that torch can use; the modes differ in speed alone"),
        (["compile"], f"'compile' is not a command; one of {', '.join(COMMANDS)} is needed"),
        (["compare", "--shapes", "64x128"], "'64x128' is not a shape; MxNxK is needed"),
        (["compare", "--shapes", ""], "'' is not a shape"),
        (["compare", "--rungs", "s1_naive,s9"], "'s9' is not a rung's name; one of s0_numpy, s1_naive,"),
        (["compare", "--shapes", "4096x7168x16384"], "4.8e+11 pairs, in whole tiles; the emulator takes at"),
        (["compare", "--shapes", "200000x1x1280"], "6.6e+10 pairs, in whole tiles"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_refusals(capsys: Output, argv: list[str], said: str) -> None:
    assert said in refusal(capsys, *argv)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none/x.json", "is in no folder; one that exists is needed"),
        (".", "is a folder; a file's name is needed"),
        ("/proc/x.json", "cannot be written (No such file or directory); another is needed"),
    ],
)
def test_json_that_cannot_be_written(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, said: str
) -> None:
    """Refused before anything is measured."""
    monkeypatch.setattr(session, "find_gpu", lambda: (torch.device("cuda", 0), "GPU"))
    assert said in refusal(capsys, "compare", "--json", str(tmp_path / path))


def test_json_is_left_as_it_was(tmp_path: Path) -> None:
    """Testing whether a file can be written neither creates nor empties it."""
    path = tmp_path / "x.json"
    records.refuse_unwritable(path)
    assert not path.exists()
    path.write_text("mine")
    records.refuse_unwritable(path)
    assert path.read_text() == "mine"


def test_help(capsys: Output) -> None:
    assert main(["--help"]) == 0
    assert "compare" in (shown := capsys.readouterr().out) and "doctor" in shown
    with pytest.raises(SystemExit) as exit:
        main(["compare", "--help"])
    assert exit.value.code == 0
    assert "s3_wgmma" in capsys.readouterr().out


def test_unknown_option(capsys: Output) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["compare", "--l2", "warm"])
    assert exit.value.code == 2
    assert "invalid choice: 'warm'" in capsys.readouterr().err


@pytest.mark.usefixtures("no_gpu")
def test_emulator(capsys: Output) -> None:
    assert main(["compare", "--rungs", "s0_numpy,s1_naive,s3_wgmma", "--shapes", "64x128x256,8x10x128"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Found no CUDA GPU that torch can use: every rung runs on the emulator")
    lines = [
        line for line in printed.splitlines() if line.startswith(("s0_numpy ", "s1_naive ", "s3_wgmma "))
    ]
    assert len(lines) == 6 and sum(line.endswith("right") for line in lines) == 5
    assert "not run: s3_wgmma is given n = 10; a multiple of 8 is needed" in lines[-1]
    assert "TFLOPS" not in printed and "No figures are recorded for a dirty L2 at these shapes" in printed


@pytest.mark.usefixtures("no_gpu")
def test_recorded_times(capsys: Output) -> None:
    assert main(["compare", "--rungs", "s0_numpy"]) == 0
    here, recorded = capsys.readouterr().out.split("RECORDED, not measured here: ")
    assert "TFLOPS" not in here
    assert f"TFLOPS on {measured.recorded()['meta']['gpu']}" in recorded and "4096 x 7168 x 16384" in recorded
    asked = compare.only(measured.recorded(), [rungs["s0_numpy"]], None)
    for sentence in measured.provenance(measured.series(asked, "dirty")):
        assert f"recorded: {sentence}" in recorded


@pytest.mark.usefixtures("no_gpu")
def test_json_of_the_emulator(capsys: Output, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    arguments = ["--rungs", "s0_numpy,s3_wgmma", "--shapes", "64x128x256,8x10x128", "--json", str(path)]
    assert main(["compare", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "What the emulator ran is kept; no GPU was timed." in printed and f"Written: {path}" in printed
    data = json.loads(path.read_text())
    assert data["meta"]["machine"] == "emulator" and len(data["meta"]["sources"]) == 64
    ran, refused = data["rows"][2:]
    assert (ran["impl"], ran["m"], ran["n"], ran["k"]) == ("s3_wgmma", 64, 128, 256)
    assert (ran["outcome"], ran["reason"], ran["verdict"]) == ("right", None, "right")
    assert 0 < ran["relative_error"] < 3e-3 and ran["seconds"] >= 0
    reason = "s3_wgmma is given n = 10; a multiple of 8 is needed"
    assert (refused["outcome"], refused["reason"]) == ("not run", reason)
    assert refused["verdict"] == f"not run: {reason}" and "seconds" not in refused


@pytest.mark.usefixtures("no_gpu")
def test_without_progress_bars(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["compare", "--rungs", "s0_numpy", "--shapes", "8x8x128"]) == 0
    assert capsys.readouterr().out.splitlines()[3].endswith("right")


class Lazy(Rung):
    """Writes nothing."""

    def _run(self, gemm: object) -> None:
        pass


class Faulty(Rung):
    """The emulator finds a fault in it."""

    def _run(self, gemm: object) -> None:
        raise errors.EmulatorError("emulator: deadlock")


class Misleading(Rung):
    """Is refused, with a reason that begins like a verdict."""

    def supports(self, m: int, n: int, k: int) -> str:
        return "WRONG: so it says"


@pytest.mark.usefixtures("no_gpu")
def test_the_outcome_is_not_read_from_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rung that is not run is not wrong, whatever its reason says."""
    row = compare.emulate(Misleading("s1_naive", "refused"), shapes.Shape(64, 128, 128))
    assert (row["outcome"], row["verdict"]) == ("not run", "not run: WRONG: so it says")
    monkeypatch.setattr(compare, "rungs", Rungs(Misleading("s1_naive", "refused")))
    monkeypatch.setattr(compare, "on_emulator", lambda *given: [row | {"verdict": "WRONG"}])
    assert main(["compare", "--shapes", "64x128x128"]) == 0
    monkeypatch.setattr(compare, "on_emulator", lambda *given: [row | {"outcome": "wrong"}])
    assert main(["compare", "--shapes", "64x128x128"]) == 1


def test_make_measure_runs_commands_only() -> None:
    """And of gemm_ladder alone: a measurement is not a test."""
    text = (Path(__file__).parents[1] / "Makefile").read_text()
    recipe = re.search(r"^measure:.*\n((?:\t.+\n)+)", text, re.M)[1].splitlines()
    found = [re.fullmatch(r"\t-?\$\(BIN\)/python -m gemm_ladder ([a-z-]+).*", line) for line in recipe]
    assert all(found) and {one[1] for one in found} <= set(COMMANDS)
    assert not re.search(r"\b(tests|lessons)/", "".join(recipe))


@pytest.mark.parametrize(
    ("kind", "said"), [(Lazy, "WRONG: its relative error is nan"), (Faulty, "WRONG: emulator: deadlock")]
)
@pytest.mark.usefixtures("no_gpu")
def test_a_wrong_rung(capsys: Output, monkeypatch: pytest.MonkeyPatch, kind: type[Rung], said: str) -> None:
    """The exit status is 1, and the other rungs still run."""
    monkeypatch.setattr(compare, "rungs", Rungs(kind("s1_naive", "wrong"), rungs["s0_numpy"]))
    assert main(["compare", "--shapes", "64x128x128"]) == 1
    printed = capsys.readouterr().out
    assert said in printed
    assert any(line.startswith("s0_numpy") and line.endswith("right") for line in printed.splitlines())


def test_another_gpu(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is only an older GPU, the emulator runs, and the command says so."""
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "get_device_name": "NVIDIA A100",
        "get_device_capability": (8, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, value=value: value)
    assert main(["compare", "--rungs", "s0_numpy", "--shapes", "8x8x128"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Found NVIDIA A100 (compute capability 8.0), ")
    assert "and no Hopper GPU (9.0): every rung runs on the emulator" in printed.splitlines()[0]


def test_the_first_hopper_gpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [("A100", (8, 0)), ("H100", (9, 0)), ("H200", (9, 0))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: gpus[index][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpus[index][1])
    assert session.find_gpu() == (torch.device("cuda", 1), "H100")


def test_no_compiler(tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
        "GEMM_LADDER_CACHE": str(tmp_path / "cache"),
    }
    environment.pop("CXX", None)
    ran = subprocess.run(
        [sys.executable, "-m", "gemm_ladder", "compare", "--rungs", "s1_naive"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("gemm_ladder: There is no C++ compiler on PATH: install")
    assert ran.stderr.count("\n") == 1


def test_a_closed_pipe() -> None:
    """`compare | head -1` ends without a traceback."""
    command = [sys.executable, "-m", "gemm_ladder", "compare", "--rungs", "s0_numpy", "--shapes", "8x8x128"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_the_command_line_needs_nothing_to_start() -> None:
    """Help, and the refusal of an unknown command, do not import torch."""
    script = """if True:
        import sys
        from gemm_ladder.cli import main
        main(["--help"])
        main(["nonsense"])
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", script], check=True)
