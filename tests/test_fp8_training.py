"""Training in FP8: what is trained, on what text, what is recorded and what is drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import launched
import pictures
import pytest
import torch
from gemm_ladder.arguments import H100_SMS
from gemm_ladder.cli import main
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures import draw, measured, readme, sheet
from gemm_ladder.figures import fp8_training as figure
from gemm_ladder.layers import Fp8Linear
from gemm_ladder.measure import corpus, fp8_training, records, session, transformer

SIZES = transformer.Sizes(layers=1, width=128, heads=2, hidden=128, context=32)
CPU = torch.device("cpu")
BATCH, STEPS = 4, 12
TEXT = corpus.Corpus("alternating letters", b"ab" * 600 + b"\0", b"ba" * 200 + b"\0", 2)
DPI = 130  # with which draw.py saves


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short schedule; and one thread, as several that share a busy CPU wait for each other."""
    monkeypatch.setattr(fp8_training, "WARM_UP", 4)
    monkeypatch.setattr(fp8_training, "TURN", 6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(seconds: float = 1e6, steps: int = STEPS) -> list[fp8_training.Run]:
    models = fp8_training.runs(SIZES, CPU, BATCH, steps)
    fp8_training.train(models, TEXT, seconds, time.perf_counter(), 1)
    return models


def test_losses_fall_and_fp8_is_close(capsys: pytest.CaptureFixture[str]) -> None:
    """A text of two letters in turn is learned in a few steps, by FP8 as by BF16. The same seed gives the
    same bits."""
    bf16, fp8, other = models = trained()
    for model in models:
        assert model.done == STEPS and len(model.ms) == STEPS and min(model.ms) > 0
        assert set(model.held_out) == {0, 6, 12}
        assert model.held_out[0] == pytest.approx(math.log(256), rel=0.05)
        assert model.held_out[12] < 0.6 * model.held_out[0]
    assert bf16.losses != fp8.losses and bf16.losses != other.losses
    assert fp8.losses[0] == pytest.approx(bf16.losses[0], rel=1e-3)
    assert fp8.held_out[12] == pytest.approx(bf16.held_out[12], rel=0.02)
    again = fp8_training.Run("fp8", 0, SIZES, CPU, BATCH, STEPS)
    again.train(fp8_training.on_device(TEXT.train, CPU), STEPS)
    assert again.losses == fp8.losses
    assert f"step 12 of 12: held out bf16/0 {bf16.held_out[12]:.4f}" in capsys.readouterr().out
    data = record(models)
    assert figure.losses(data, ("fp8", 0), "held_out") == {
        step: round(loss, 5) for step, loss in fp8.held_out.items()
    }
    mean = sum(bf16.losses[:10]) / 10
    assert figure.losses(data, ("bf16", 0), "train") == {10: pytest.approx(mean, abs=1e-5)}


def test_what_a_step_launches() -> None:
    """The list of its kernels has those beside the products, and no others."""
    with launched.noted() as found:
        model = fp8_training.Run("fp8", 0, SIZES, CPU, BATCH, 1)
        model.train(fp8_training.on_device(TEXT.train, CPU), 1)
    listed = fp8_training.kernels(SIZES, BATCH * SIZES.context, H100_SMS, "NVIDIA H200")
    assert found == launched.beside_products(listed)


def record(models: list[fp8_training.Run]) -> dict[str, object]:
    meta = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": "GPU", "sources": "abcdef" * 10 + "0123"}
    meta |= fp8_training.described(models, TEXT)
    meta["times"] = [fp8_training.step_time(one, "eager", one.ms) for one in models]
    return {"schema": measured.SCHEMA, "meta": meta, "rows": [row for one in models for row in one.rows()]}


def test_what_is_in_fp8() -> None:
    """The linears of the layers, from the numbers that the BF16 model begins with."""
    plain, converted = (transformer.make(SIZES, 3, fp8, CPU) for fp8 in (False, True))
    found = {name for name, one in converted.named_modules() if isinstance(one, Fp8Linear)}
    assert found == {f"layers.0.{name}" for name in ("qkv", "out", "up", "down")}
    theirs = dict(converted.named_parameters())
    assert all(torch.equal(one, theirs[name]) for name, one in plain.named_parameters())
    sizes = [
        tuple(plain.get_submodule(f"layers.0.{name}").weight.shape) for name in ("qkv", "out", "up", "down")
    ]
    assert sizes == [*SIZES.linears]
    recorded = fp8_training.SIZES
    assert all(size % 128 == 0 for linear in recorded.linears for size in linear)
    with torch.device("meta"):
        parameters = sum(one.numel() for one in transformer.Transformer(recorded).parameters())
    assert 20e6 < parameters < 40e6


def test_time_up(capsys: pytest.CaptureFixture[str]) -> None:
    """All models have done the same number of steps, one turn at least, and the record says how many."""
    models = trained(seconds=0.0)
    assert [one.done for one in models] == [6] * 3
    assert f"The time is up: 6 of {STEPS} steps are done." in capsys.readouterr().out
    meta = record(models)["meta"]
    assert meta["steps"] == 6 and meta["steps_wanted"] == STEPS


def test_the_rate() -> None:
    rates = [fp8_training.rate(step, 100) for step in range(100)]
    assert rates[:4] == pytest.approx([fp8_training.RATE * part / 4 for part in (1, 2, 3, 4)])
    assert rates[4] == fp8_training.RATE and rates[3:] == sorted(rates[3:], reverse=True)
    assert fp8_training.LAST_RATE < rates[-1] < 1.1 * fp8_training.LAST_RATE


def test_pieces() -> None:
    text = fp8_training.on_device(bytes(range(100)), CPU)
    assert fp8_training.pieces(text, torch.tensor([3, 90]), 4).tolist() == [[3, 4, 5, 6], [90, 91, 92, 93]]
    one, other = fp8_training.held_out_batches(text, 2, 10, 2)
    assert one[:, 0].tolist() == [0, 30] and other[:, -1].tolist() == [69, 99]


def test_the_standard_library(tmp_path: Path) -> None:
    """Files as they are, in the order of their names, without tests and other packages."""
    found = corpus.standard_library()
    meta = found.meta()
    assert meta["train_bytes"] > 5 * meta["held_out_bytes"] > corpus.LEAST_BYTES / 10
    assert found.files == (found.train + found.held_out).count(corpus.END) and len(meta["sha256"]) == 64
    (tmp_path / "test").mkdir()
    for name in ("b.py", "a.py", "a.txt", "test/c.py"):
        (tmp_path / name).write_bytes(name.encode() * 400_000)
    small = corpus.standard_library(tmp_path)
    assert small.held_out == b"a.py" * 400_000 + b"\0" and small.train == b"b.py" * 400_000 + b"\0"
    assert small.files == 2 and small.meta()["sha256"] != meta["sha256"]
    (tmp_path / "a.py").write_text("")
    (tmp_path / "b.py").unlink()
    with pytest.raises(GemmLadderError, match="has 1 bytes of Python sources; 1000000 of the standard"):
        corpus.standard_library(tmp_path)


def made_up(steps: int = 2000) -> dict[str, object]:
    """A record as an H200 could have it."""
    meta = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": "GPU", "sources": "abcdef" * 10 + "0123"}
    meta |= {
        "corpus": TEXT.meta(),
        "model": {
            **vars(fp8_training.SIZES),
            "vocabulary": 256,
            "parameters": 29_000_000,
            "in_fp8": 28_300_000,
        },
        "tokens": 16384,
        "steps": steps,
        "steps_wanted": 2000,
        "times": [
            {
                "linears": linears,
                "seed": seed,
                "mode": mode,
                "steps": 9,
                "ms": ms,
                "ms_p10": ms - 1,
                "ms_p90": ms + 1,
            }
            for linears, seed, mode, ms in (
                *(("bf16", 0, "eager", 14.0), ("fp8", 0, "eager", 16.0), ("bf16", 1, "eager", 14.1)),
                *(("bf16", 0, "compiled", 9.0), ("fp8", 0, "compiled", 10.5)),
                *(("bf16", 0, "graph", 13.0), ("fp8", 0, "graph", 12.5)),
                *(("bf16", 0, "compiled_graph", 8.5), ("fp8", 0, "compiled_graph", 8.25)),
            )
        ],
    }
    rows = []
    for linears, seed, above in (("bf16", 0, 0.0), ("fp8", 0, 0.004), ("bf16", 1, -0.003)):
        for step in range(0, steps + 1, 10):
            loss = 1.0 + above + 4.5 / (1 + step / 60) + 0.01 * math.sin(step * (seed + 1))
            held_out = round(loss + 0.05, 5) if step % 50 == 0 else None
            train = round(loss, 5) if step else None
            rows.append(
                {"linears": linears, "seed": seed, "step": step, "train": train, "held_out": held_out}
            )
    return {"schema": measured.SCHEMA, "meta": meta, "rows": rows}


def test_the_record_is_drawn(tmp_path: Path) -> None:
    data, path = made_up(), tmp_path / "fp8_training.json"
    records.save(data, path)
    assert figure.load(path) == data and draw.recorded(tmp_path) == {"fp8_training": data}
    picture = figure.picture(data)
    pictures.check(pictures.texts(picture))
    assert min(sheet.shown(picture, DPI).values()) >= sheet.SMALLEST - 1e-6
    text = "<!-- table-fp8-training:begin -->\n<!-- table-fp8-training:end -->"
    text = readme.figures_readme(text, {"fp8_training": data})
    assert "| FP8 | 2000 | " in text and "| 16.00 | 10.50 | 12.50 | 8.25 |" in text


def test_what_is_said_of_a_record() -> None:
    data = made_up()
    assert figure.gap(data, "held_out").fp8 == pytest.approx(0.004, abs=2e-5)
    assert figure.gap(data, "train").fp8 == pytest.approx(0.004, abs=2e-5)
    said = figure.verdict(data)
    assert "At the end of 2000 steps of 16384 bytes" in said and said.count("+0.0040 (+0.3") == 2
    assert "At the end of 1500 steps (of the 2000 that were wanted)" in figure.verdict(made_up(1500))


def test_losses_at_the_end_are_means() -> None:
    """Of the last tenth of the steps: one evaluation that is far off says little."""
    data = made_up()
    before = figure.at_the_end(data, figure.FP8, "held_out")
    last = next(row for row in data["rows"][::-1] if row["linears"] == "fp8")
    assert last["step"] == 2000
    last["held_out"] -= 1  # of four evaluations: after steps 1850, 1900, 1950 and 2000
    assert figure.at_the_end(data, figure.FP8, "held_out") == pytest.approx(before - 0.25)


def test_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "find_gpu", lambda: (None, "no GPU"))
    assert main(["train"]) == 2
    expected = "gemm_ladder: found no GPU; what is measured is time, and a Hopper GPU is needed\n"
    assert capsys.readouterr().err == expected
    assert main(["train", "--steps", "0"]) == 2
    assert capsys.readouterr().err == "gemm_ladder: --steps is 0; more than 0 is needed\n"


@pytest.mark.gpu
def test_a_measurement(tmp_path: Path) -> None:
    """A few steps of the real model."""
    path = tmp_path / "losses.json"
    assert main(["train", "--steps", "20", "--batch", "4", "--no-compile", "--json", str(path)]) == 0
    data = figure.load(path)
    assert data["meta"]["steps"] == 20 and len(data["meta"]["times"]) == 3
    ends = [figure.at_the_end(data, run, "held_out") for run in figure.LABELS]
    assert all(1 < end < 5 for end in ends) and ends[1] == pytest.approx(ends[0], rel=0.02)
