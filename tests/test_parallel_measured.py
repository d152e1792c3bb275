"""Measuring layers that GPUs share: what is asked for, what is recorded and drawn, and the model on paper."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gemm_ladder import precompiling
from gemm_ladder.cli import main
from gemm_ladder.errors import GemmLadderError, InputError
from gemm_ladder.figures import draw, measured, parallel_model, readme, sheet
from gemm_ladder.figures import parallel as figure
from gemm_ladder.measure import parallel, parallel_ranks, rank_timing, records, session


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
    sent = rank_timing.Found([10.0], [[10.0]])
    for ranks, impl in ((1, "one_graph"), (2, "everywhere_graph")):
        us = rank_timing.Found([30.0 / ranks], [[30.0 / ranks]])
        rows.append(rank_timing.row("experts", impl, ranks, 128, us, {}, 1 << 20, 0.0))
    rows.append(rank_timing.row("all_to_all", "nccl", 2, 0, sent, {"combine": 0}, 1 << 20, 0.0))
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
    picture = figure.picture(data)
    for text, size in sheet.shown(picture, 130).items():
        assert size >= sheet.SMALLEST - 1e-6, text
    text = "<!-- table-parallel:begin -->\n<!-- table-parallel:end -->"
    assert "pays up to, tokens a GPU" in readme.figures_readme(text, {"parallel": data})


def test_the_model() -> None:
    """Its bytes are counted, its limits as they have to be."""
    layer = parallel_model.Layer()
    assert layer.row_bytes == 7168 + 224 + 48 and layer.weight_bytes == 3 * 7168 * 2048
    assert parallel_model.reaches(layer, 1) == 1 and parallel_model.reaches(layer, 256) == 8 / 256
    assert parallel_model.reaches(layer._replace(top_k=1), 8) == 1 / 8
    one, two = (parallel_model.shared(layer, 16384, ranks) for ranks in (1, 2))
    assert one == parallel_model.alone(layer, 16384, 1) and one.dispatch == one.inside == 0
    assert one.products == pytest.approx(16384 * 8 * 6 * 7168 * 2048 / parallel_model.FP8 * 1e6)
    assert two.products == pytest.approx(one.products / 2) and two.outside == 0
    assert two.inside == pytest.approx(8192 * parallel_model.reaches(layer, 2) * (7440 + 14336))
    passed = parallel_model.shared(layer, 16384, 8, passed_on=True)
    assert passed == pytest.approx(parallel_model.shared(layer, 16384, 8))
    far, once = (parallel_model.shared(layer, 16384, 16, passed_on) for passed_on in (False, True))
    chance = parallel_model.reaches(layer, 16)
    row = layer.row_bytes + 2 * layer.hidden
    assert far.outside == pytest.approx(1024 * chance * 8 * row)
    assert once.outside == pytest.approx(1024 * parallel_model.reaches(layer, 2) * row)
    assert far.inside + far.outside == pytest.approx(1024 * chance * 15 * row)
    assert once.inside == pytest.approx(1024 * chance * 14 * row) and once.us < far.us
    few = parallel_model.shared(layer, 1, 1).products
    assert few == pytest.approx(8 * layer.weight_bytes / parallel_model.MEMORY * 1e6)
    for ranks in parallel_model.RANKS[1:]:
        limit = parallel_model.stops_paying(layer, ranks)
        pays = [
            parallel_model.shared(layer, each * ranks, ranks).us
            < parallel_model.alone(layer, each * ranks, ranks).us
            for each in (0.99 * limit, 1.1 * limit)
        ]
        assert limit > 100 and pays == [True, False]
    assert len({len(row) for row in parallel_model.table()}) == 1


def test_plans() -> None:
    assert parallel.planned("1,2", None, 256) == parallel_ranks.Plan()
    assert parallel.planned("2", "64, 128", 32) == parallel_ranks.Plan((2,), (64, 128), experts=32)
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
    assert {config.kind for config in built} >= {"dense", "masked", "psum"}
    sizes = {(config.n, config.k) for config in built}
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
    }
    assert all(row["us"] > 0 for row in rows)
