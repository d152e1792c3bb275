"""Measuring layers that GPUs share: what is asked for, what is recorded and drawn, and the model on paper."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gemm_ladder import layers, precompiling
from gemm_ladder.cli import main
from gemm_ladder.errors import GemmLadderError, InputError
from gemm_ladder.figures import draw, measured, parallel_model, readme, sheet
from gemm_ladder.figures import parallel as figure
from gemm_ladder.layers import Fp8Experts
from gemm_ladder.measure import parallel, parallel_ranks, rank_timing, records, session
from gemm_ladder.production.config import Config


def made_up() -> dict[str, Any]:
    """A record with every size and implementation."""
    meta = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": "GPU", "sources": "abcdef" * 10 + "0123"}
    meta |= {"nccl": "2.28", "plan": dataclasses.asdict(parallel_ranks.Plan())}
    rows = []
    for tokens in parallel_ranks.Plan().tokens:
        for what, impls in (("experts", ("one", "sums", "rows", "everywhere")), ("mlp", ("one", "sums"))):
            for index, impl in enumerate(impls):
                steps = {"products": 0} if impl == "one" else {"dispatch": 0, "products": 1, "combine": 2}
                times = [[100.0 + tokens / (1 + index)] * 3 for _ in steps]
                found = rank_timing.Found([sum(one) for one in zip(*times, strict=True)], times)
                rows.append(rank_timing.row(what, impl, 1 + bool(index), tokens, found, steps, 1 << 20, 1e-3))
    for index, impl in enumerate(("one", "sums", "rows")):
        us = rank_timing.Found([90.0 / (1 + index)], [[30.0 / (1 + index)], [60.0 / (1 + index)]])
        passes = {"forward": 0, "backward": 1}
        rows.append(rank_timing.row("training", impl, 1 + bool(index), 4096, us, passes, 1 << 20, 1e-3))
    sent = rank_timing.Found([10.0], [[10.0]])
    for ranks, impl in ((1, "one_graph"), (2, "everywhere_graph")):
        us = rank_timing.Found([30.0 / ranks], [[30.0 / ranks]])
        rows.append(rank_timing.row("experts", impl, ranks, 128, us, {}, 1 << 20, 0.0))
    rows.append(rank_timing.row("all_to_all", "nccl", 2, 0, sent, {"combine": 0}, 1 << 20, 0.0))
    more = rank_timing.Found([1010.0], [[1010.0]])
    rows.append(rank_timing.row("all_to_all", "nccl", 2, 0, more, {"combine": 0}, (1 << 20) + 10**8, 0.0))
    return {"schema": measured.SCHEMA, "meta": meta, "rows": rows}


def test_the_record_is_drawn(tmp_path: Path) -> None:
    data, path = made_up(), tmp_path / "parallel.json"
    records.save(data, path)
    assert figure.load(path)["rows"] == data["rows"]
    assert draw.recorded(tmp_path).keys() == {"parallel"}
    cells = figure.table(figure.load(path))
    assert len(cells) == 1 + 6 * len(parallel_ranks.Plan().tokens) + 2
    assert [row[2:5] + row[7:8] for row in cells if "graph" in row[2]] == [
        ["1 GPU, graph", "30", "-", "1.00"],
        ["2 GPUs, all, graph", "15", "-", "2.00"],
    ]
    assert cells[1][:4] == ["Mixture of experts", "128", "1 GPU", "228"] and cells[1][-2:] == ["-", "-"]
    assert cells[2][2] == "2 GPUs, sums" and cells[2][-3:] == ["0.46", "1.0", "1.0e-03"]
    assert figure.transfers(data)[1] == ["all_to_all", "2", "1.05", "10", "105"]
    assert [row[1:7] for row in figure.training(figure.load(path))[1:]] == [
        ["4096", "1 GPU", "90", "30", "60", "1.00"],
        ["4096", "2 GPUs, sums", "45", "15", "30", "2.00"],
        ["4096", "2 GPUs, rows", "30", "10", "20", "3.00"],
    ]
    picture = figure.picture(data)
    for text, size in sheet.shown(picture, 130).items():
        assert size >= sheet.SMALLEST - 1e-6, text
    text = "<!-- table-parallel:begin -->\n<!-- table-parallel:end -->"
    assert "CUDA graph, pays up to" in readme.figures_readme(text, {"parallel": data})


def measured_rows(
    one: dict[int, float], two: dict[int, float], graphs: dict[int, tuple[float, float]]
) -> list[Any]:
    """Rows of a mixture, and transfers of 20 us and 100 GB/s."""
    times = [("experts", "one", 1, tokens, us, 0) for tokens, us in one.items()]
    times += [("experts", "sums", 2, tokens, us, 0) for tokens, us in two.items()]
    for tokens, (alone, shared) in graphs.items():
        times += [("experts", "one_graph", 1, tokens, alone, 0)]
        times += [("experts", "everywhere_graph", 2, tokens, shared, 0)]
    times += [("all_to_all", "nccl", 2, 0, 20.0, 0), ("all_to_all", "nccl", 2, 0, 1020.0, 10**8)]
    names = ("what", "impl", "ranks", "tokens", "us", "bytes")
    return [dict(zip(names, row, strict=True)) for row in times]


def test_the_model() -> None:
    """Its bytes are counted, its limits as they have to be, its times sums of what was measured."""
    layer = parallel_model.Layer()
    assert layer.row_bytes == 7168 + 224 + 48 and layer.weight_bytes == 3 * 7168 * 2048
    assert parallel_model.reaches(layer, 1) == 1 and parallel_model.reaches(layer, 256) == 8 / 256
    assert parallel_model.reaches(layer._replace(top_k=1), 8) == 1 / 8
    row, chance = layer.row_bytes + 2 * layer.hidden, parallel_model.reaches(layer, 2)
    travel = [40 + 1e6 * tokens / 2 * row / 100e9 for tokens in (100, 300)]
    two = {100: 500 + 40 + chance * (travel[0] - 40) + 700, 300: 900 + 40 + chance * (travel[1] - 40) + 900}
    rows = measured_rows({100: 1000.0, 300: 1800.0}, two, {100: (600.0, 300 + travel[0] + 50)})
    known = parallel_model.measured(layer, rows)
    assert known.fixed_us == 20 and known.rate == pytest.approx(100e9)
    assert known.rest["calls"] == pytest.approx((700, 800, 900))
    assert known.rest["graph"] == pytest.approx((50, 50, 50))
    for tokens, calls, graph in ((100, 1000, 600), (200, 1400, 1000), (300, 1800, 1400), (600, 3600, 2800)):
        assert parallel_model.one(layer, known, "calls", tokens) == pytest.approx(calls)
        assert parallel_model.one(layer, known, "graph", tokens) == pytest.approx(graph)
    single = parallel_model.one(layer, known, "calls", 1)
    assert single == pytest.approx(1000 * (8 / 256) / (1 - (1 - 8 / 256) ** 100))
    assert parallel_model.shared(layer, known, "calls", 300, 1) == (1800, 0, 0, 0, 0)
    for rest, us in (("least", 700), ("mean", 800), ("most", 900)):
        found = parallel_model.shared(layer, known, "calls", 100, 2, rest).us
        assert found == pytest.approx(two[100] - 700 + us)
    cells = [*parallel_model.checks(layer, known, rows)]
    assert [one[-1] for one in cells[1:]] == [f"{100 / two[100]:+.0%}", f"{-100 / two[300]:+.0%}", "+0%"]
    far = parallel_model.shared(layer, known, "calls", 16384, 16)
    reached = 1024 * parallel_model.reaches(layer, 16)
    assert far.outside == pytest.approx(reached * 8 * row) and far.inside == pytest.approx(reached * 7 * row)
    assert far.travel == pytest.approx(40 + far.outside / 50e3)
    everywhere = parallel_model.shared(layer, known, "graph", 16384, 8)
    assert everywhere.inside == 1024 * 2 * 7 * row and everywhere.outside == 0
    assert everywhere.travel == pytest.approx(40 + everywhere.inside / 100e3)


def test_where_sharing_pays() -> None:
    """Between two numbers of tokens, which are wider apart where the rest is less; or nowhere."""
    layer = parallel_model.Layer()
    rows = measured_rows({128: 3000.0, 16384: 14000.0}, {128: 2300.0, 16384: 8300.0}, {})
    known = parallel_model.measured(layer, rows)
    assert {*known.one} == {"calls"}
    for ranks in parallel_model.RANKS[1:]:
        least, mean, most = (
            parallel_model.pays(layer, known, "calls", ranks, rest) for rest in parallel_model.Rest._fields
        )
        assert least and mean and most
        assert least[0] <= mean[0] <= most[0] < most[1] <= mean[1] <= least[1]
        for each, pays in ((0.9 * mean[0], False), (mean[0], True), (mean[1], True), (1.1 * mean[1], False)):
            us = parallel_model.shared(layer, known, "calls", each * ranks, ranks).us
            assert (us < parallel_model.one(layer, known, "calls", each)) is pays
    never = known._replace(rest={"calls": parallel_model.Rest(1e6, 1e6, 1e6)})
    assert parallel_model.pays(layer, never, "calls", 8) is None
    assert [*parallel_model.limits(layer, never)][1] == ["8", *["never (never to never)"] * 2]
    assert len({len(row) for row in parallel_model.table(layer, known)}) == 1


def test_plans() -> None:
    assert parallel.planned("1,2", None, 256) == parallel_ranks.Plan()
    trained = parallel_ranks.Mixture((64, 128))
    expected = parallel_ranks.Plan((2,), (64, 128), experts=32, training=trained)
    assert parallel.planned("2", "64, 128", 32) == expected
    for given, words in (
        (("1,x", None, 256), "--ranks is '1,x'; positive numbers, with commas between them, are needed"),
        (("0", None, 256), "--ranks is '0'"),
        (("2", "", 256), "--tokens is ''"),
        (("1,2", "63", 256), "--tokens is 63; multiples of 2, a share for each GPU, are needed"),
        (("2", None, 7), "--experts is 7; 8 or more are needed"),
    ):
        with pytest.raises(InputError) as refused:
            parallel.planned(*given)
        assert words in str(refused.value)


def test_too_few_gpus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "find_gpu", lambda: (torch.device("cuda", 0), "NVIDIA H100"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(["parallel"]) == 2
    assert capsys.readouterr().err == "gemm_ladder: found 1 GPUs; 2 are needed\n"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9 - index, 0))
    with pytest.raises(GemmLadderError, match=r"GPU 1 is no Hopper GPU; the first 2 have to be"):
        parallel.need_gpus(2)


def test_a_process_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and the others are ended; so are those that take too long."""
    ends = "import sys, time\nsys.argv[2] == '1' and sys.exit('no memory')\ntime.sleep(60)"
    (tmp_path / "ends.py").write_text(ends)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(parallel, "MODULE", "ends")
    with pytest.raises(GemmLadderError, match=r"the process of GPU 1 fails: no memory"):
        parallel.in_processes(parallel_ranks.Plan(), tmp_path)
    monkeypatch.setattr(parallel, "SECONDS", 0.3)
    with pytest.raises(GemmLadderError, match=r"the processes take more than 0\.3 s"):
        parallel.in_processes(parallel_ranks.Plan(ranks=(1,)), tmp_path)


@pytest.mark.usefixtures("fake_gpu")
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the processes leave is shown and written; kernels for every size are built before."""
    data, built = made_up(), []
    monkeypatch.setattr(parallel, "need_gpus", lambda count: None)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 3))
    monkeypatch.setattr(precompiling, "build_all", lambda configs, target: built.extend(configs))

    trained: list[Fp8Experts] = []
    monkeypatch.setattr(layers, "precompile", lambda layer, *_, **__: trained.append(layer))

    def work(plan: parallel_ranks.Plan, folder: Path) -> None:
        if plan.graph_tokens:
            raise GemmLadderError("the process of GPU 1 fails: no graph")
        (folder / "rows.json").write_text(json.dumps({"rows": data["rows"], "wrong": ["one is wrong"]}))

    monkeypatch.setattr(parallel, "in_processes", work)
    path = tmp_path / "parallel.json"
    assert main(["parallel", "--json", str(path)]) == 1
    said = capsys.readouterr().out
    assert "CUDA graph at experts: the process of GPU 1 fails: no graph" in said
    assert "one is wrong" in said and "left as they are: a result is wrong" in said
    assert "2 GPUs, sums" in said and figure.load(path)["meta"]["nccl"] == "2.28.3"
    assert {*parallel.BESIDE} < {*built}
    configs = [one for one in built if isinstance(one, Config)]
    assert {config.kind for config in configs} >= {"dense", "masked", "psum"}
    assert [layer.num_experts for layer in trained] == [64, 32]
    sizes = {(config.n, config.k) for config in configs}
    assert sizes >= {(4096, 7168), (7168, 2048), (9216, 7168), (7168, 9216)}


@pytest.mark.gpu
def test_a_measurement(tmp_path: Path) -> None:
    """Of a few experts, on two GPUs."""
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs two GPUs: torch finds {count}")
    path = tmp_path / "parallel.json"
    assert main(["parallel", "--experts", "8", "--tokens", "64", "--json", str(path)]) == 0
    rows = figure.load(path)["rows"]
    assert {(row["what"], row["impl"]) for row in rows if row["tokens"]} == {
        *(
            ("experts", impl)
            for impl in ("one", "sums", "rows", "everywhere", "one_graph", "everywhere_graph")
        ),
        *(("mlp", impl) for impl in ("one", "sums")),
        *(("training", impl) for impl in ("one", "sums", "rows")),
    }
    assert all(row["us"] > 0 for row in rows)
