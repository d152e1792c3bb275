"""Measuring the casts: what is checked, what is recorded, what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gemm_ladder.cli import main
from gemm_ladder.errors import InputError
from gemm_ladder.figures import casts as figure
from gemm_ladder.figures import draw, measured, readme
from gemm_ladder.measure import casts, casts_peers, records, session, timing

SMALL = (40, 256)
CPU = torch.device("cpu")


@pytest.mark.parametrize("cast", casts.CASTS, ids=str)
def test_ours_and_torchs_are_right(cast: casts.Cast) -> None:
    """And what is not right is found."""
    assert casts.Problem(cast, 300, 256, CPU).wrong() is None
    problem = casts.Problem(cast, *SMALL, CPU)
    assert problem.wrong() is None
    casts.check_peer(problem, problem.ours())
    casts.check_peer(problem, problem.by_torch)
    codes, scales = problem.by_torch()
    with pytest.raises(InputError, match="its relative error is"):
        casts.check_peer(problem, lambda: (codes, 1.1 * scales))


def test_a_wrong_result_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = casts.functions.run

    def wrong(*given: object, **options: object) -> object:
        out = right(*given, **options)
        out.codes.view(torch.uint8)[0, wrong_row, 5] ^= 1
        return out

    monkeypatch.setattr(casts.functions, "run", wrong)
    one_matrix, masked = [(0, 40, 3), (0, 40, 39), (0, 300, 299)], [(-1, 1600, row) for row in (3, 149, 150)]
    for cast, m, wrong_row in (*one_matrix, *masked):
        problem = casts.Problem(casts.CASTS[cast], m, 256, CPU)
        is_cast = wrong_row < problem.valid  # masked, 150 of a group's 200 rows
        assert problem.wrong() == ("its codes are not the reference's" if is_cast else None)


def test_bytes() -> None:
    """Against the tensors themselves."""
    for cast in casts.CASTS:
        problem = casts.Problem(cast, *SMALL, CPU)
        out = casts.operands.results(problem.checked(problem.x, problem.rows), mn_major=False)
        x, codes, scales = (
            one[:, : problem.valid] if cast.masked else one for one in (problem.x, out.codes, out.scales)
        )
        read = x.numel() * 2 * (casts.EXPERTS if cast.gather else 1)
        named = {"rows": cast.gather, "counts": cast.masked, "weight": cast.before == "rms_norm"}
        others = sum(getattr(problem, name).nbytes for name, there in named.items() if there)
        assert cast.bytes(*SMALL) == read + codes.numel() + 4 * scales.numel() + others


# As vLLM 0.33.0 defines them.
VLLM = (
    "per_token_group_fp8_quant(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
    "float fp8_min, float fp8_max, bool scale_ue8m0, bool dummy_is_scale_transposed, "
    "bool dummy_is_tma_aligned) -> ()",
    "silu_and_mul_per_block_quant(Tensor! out, Tensor input, Tensor! scales, int group_size, "
    "Tensor? scale_ub=None, bool is_scale_transposed=False) -> ()",
    "rms_norm_per_block_quant(Tensor! result, Tensor input, Tensor weight, Tensor! scale, float epsilon, "
    "Tensor? scale_ub, Tensor!? residual, int group_size, bool is_scale_transposed) -> ()",
    "persistent_masked_m_silu_mul_quant(Tensor input, Tensor counts, Tensor! y_q, Tensor! y_s, "
    "bool use_ue8m0) -> ()",
)


def test_vllms_casts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its operators get what their schemas want, and their results are checked. Those here cast by torch."""
    problem = casts.Problem(casts.CASTS[0], *SMALL, CPU)
    monkeypatch.setattr(casts_peers.importlib.util, "find_spec", lambda name: None)
    casts_peers.vllm_library.cache_clear()
    with pytest.raises(ImportError, match="no package vllm is installed"):
        casts.PEERS["vllm"](problem)
    monkeypatch.undo()
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise ImportError('vllm itself is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="vllm has no _C_stable_libtorch"):
        casts.PEERS["vllm"](problem)
    file, loaded = tmp_path / "vllm" / "_C_stable_libtorch.abi3.so", []
    file.touch()
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(casts_peers, "VLLM_OPERATORS", "gemm_ladder_like_vllm")
    library = torch.library.Library("gemm_ladder_like_vllm", "DEF")
    current: list[casts.Problem] = []

    def write(codes: torch.Tensor, scales: torch.Tensor) -> None:
        for out, found in zip((codes, scales), current[-1].by_torch(), strict=True):
            out.copy_(found.view(out.shape))

    places = {
        "per_token": (1, 2),
        "silu_and_mul_per_token": (0, 2),
        "rms_norm_per_token": (0, 3),
        "masked_silu_and_mul_per_token": (2, 3),
    }
    for schema, (codes, scales) in zip(VLLM, places.values(), strict=True):
        library.define(schema)
        library.impl(
            schema.partition("(")[0], lambda *given, c=codes, s=scales: write(given[c], given[s]), "CPU"
        )
    for cast in casts.CASTS:
        current.append(casts.Problem(cast, *SMALL, CPU))
        if str(cast) in places:
            call = casts.PEERS["vllm"](current[-1])
            casts.check_peer(current[-1], call)
            assert call()[1].stride()[-2:] == (1, current[-1].x.shape[-2])
        else:
            with pytest.raises(InputError, match="it has no such cast"):
                casts.PEERS["vllm"](current[-1])
    assert loaded == [str(file)]
    casts_peers.vllm_library.cache_clear()


def made_up() -> dict[str, object]:
    """A record with every cast, shape, state and implementation."""
    meta = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": "GPU", "sources": "abcdef" * 10 + "0123"}
    rows = [
        casts.row(cast, m, k, impl, l2, [1.0 + index, 2.0 + index, 4.0 + index])
        for cast in casts.CASTS
        for m, k in casts.SHAPES
        for l2 in timing.L2_STATES
        for index, impl in enumerate(figure.LABELS)
        if impl != "sglang" or cast == casts.CASTS[0]
    ]
    return {"schema": measured.SCHEMA, "meta": meta, "rows": rows}


def test_the_record_is_drawn(tmp_path: Path) -> None:
    data, path = made_up(), tmp_path / "casts.json"
    records.save(data, path)
    assert figure.load(path) == data
    assert draw.recorded(tmp_path) == {"casts": data}
    cells = figure.table(figure.load(path))
    assert len(cells) == 1 + 2 * len(casts.CASTS) * len(casts.SHAPES)
    assert cells[1][:4] == ["per token", "64 x 7168", "dirty", "2.00"] and cells[1][-2:] == ["150%", "0.50"]
    assert "-" not in cells[1] and "-" in cells[-1]
    assert cells[-1][:2] == ["masked, SiLU-and-multiply, per token", "16384 x 7168"]
    assert figure.picture(data).axes
    text = "<!-- table-casts:begin -->\n<!-- table-casts:end -->"
    assert "SiLU-and-multiply, per channel, transposed" in readme.figures_readme(text, {"casts": data})


def test_times_take_the_better_pass() -> None:
    class Timer:
        def __init__(self) -> None:
            self.passes = 0

        def batch(self, jobs: list[timing.Job]) -> list[list[float]]:
            self.passes += 1
            return [[float(self.passes)] * job.calls for job in jobs]

    found = casts.times({"a": list, "b": list}, Timer())
    assert set(found) == {(name, l2) for name in "ab" for l2 in timing.L2_STATES}
    assert all(np.median(us) == 1 for us in found.values())


def test_choices() -> None:
    assert casts.chosen_casts("all") == [*casts.CASTS]
    found = casts.chosen_casts("per_block, gather_per_token")
    assert found == [casts.Cast("per_block"), casts.Cast("per_token", gather=True)]
    assert casts.chosen_shapes("64x7168,1x8") == [(64, 7168), (1, 8)]
    for text in ("64", "0x4", "ax4", "1x2x3"):
        with pytest.raises(InputError, match="is no shape; MxK is needed"):
            casts.chosen_shapes(text)
    with pytest.raises(InputError, match="'per_row' is no cast; all, or some of per_token, per_block"):
        casts.chosen_casts("per_row")


def test_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "find_gpu", lambda: (None, "no GPU"))
    assert main(["casts"]) == 2
    expected = "gemm_ladder: found no GPU; what is measured is time, and a Hopper GPU is needed\n"
    assert capsys.readouterr().err == expected


@pytest.mark.gpu
def test_a_measurement(tmp_path: Path) -> None:
    """Of one small cast, without peers."""
    path = tmp_path / "casts.json"
    assert (
        main(["casts", "--casts", "per_token", "--shapes", "64x512", "--no-peers", "--json", str(path)]) == 0
    )
    rows = figure.load(path)["rows"]
    assert {row["impl"] for row in rows} == {"casts", "copy", "empty"}
    assert {row["l2"] for row in rows} == {"dirty", "clean", "graph"} and all(row["us"] > 0 for row in rows)
