"""The rungs' cards: are the recorded ones of these kernels, how are lines counted, how is ncu read?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gemm_ladder as gl
import pytest
import torch
from gemm_ladder.build import toolchain
from gemm_ladder.cli import main
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures import draw, rung_cards
from gemm_ladder.measure import cards, ncu, records
from gemm_ladder.rungs import rungs
from gemm_ladder.sass import disassembly

REPOSITORY = Path(__file__).resolve().parents[1]
RECORD = REPOSITORY / "figures" / "data" / "cards.json"
COMPILED = [rung for rung in rungs.values() if rung.name != "s0_numpy"]
RAW_PAGE = Path(__file__).parent / "data" / "ncu_raw.csv"  # s7_persistent on an H100; one metric missing
# Of a rung's file, what can be read in one sitting: lines of code, and lines in all, which for s7 include the
# diagram of its mbarriers.
MAX_CODE, MAX_LINES = 250, 280


@pytest.fixture(scope="module")
def collected() -> dict:
    """cards.json's content, of the present sources."""
    if disassembly.find_cuobjdump() is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump")
    try:
        return cards.collect()
    except gl.build.ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")


# -------------------------------------------------------------------------------------- the rungs as they are


def test_the_record_is_of_these_kernels(collected: dict) -> None:
    record = rung_cards.load(RECORD)
    for key in ("sources", "nvcc"):
        if record["meta"][key] != collected["meta"][key]:
            was, now = record["meta"][key], collected["meta"][key]
            pytest.skip(f"figures/data/cards.json is of {key} {was}, and these are {now}")
    assert [{**row, "ncu": None} for row in record["rows"]] == collected["rows"]


def test_every_rung_can_be_read_in_one_sitting(collected: dict) -> None:
    for row in collected["rows"]:
        assert 0 < row["lines"] <= (MAX_CODE if row["rung"] != "s9_production" else 320), row["rung"]
        if row["file"].endswith(".cu"):
            assert len((REPOSITORY / row["file"]).read_text().splitlines()) <= MAX_LINES, row["rung"]


def test_every_rung_says_what_it_changes(collected: dict) -> None:
    names = [row["rung"] for row in collected["rows"]]
    assert names == list(rungs)
    assert [row["below"] for row in collected["rows"]] == [None, None, *names[1:-1]]
    for row in collected["rows"][2:]:
        assert 0 < row["added"] <= row["lines"] and row["removed"] >= 0, row["rung"]
    (interleaved,) = [row for row in collected["rows"] if row["rung"] == "s8_ffma_interleave"]
    assert (interleaved["added"], interleaved["removed"]) == (interleaved["lines"], 0)


def test_what_is_collected(collected: dict) -> None:
    rows = {row["rung"]: row for row in collected["rows"]}
    assert rows["s0_numpy"]["registers"] is None and rows["s0_numpy"]["lines"] > 20
    for rung in COMPILED:
        row = rows[rung.name]
        assert (row["spill_stores"], row["spill_loads"]) == (0, 0), rung.name
        # What one block can have at most.
        assert 16 <= row["registers"] <= 255 and row["threads"] * row["registers"] <= 65536
        assert row["shared_static"] + row["shared_dynamic"] <= 232448
        assert row["threads"] % 32 == 0 and row["cluster"] in (1, 2, 4, 8)
        for counts in row["sass"].values():
            assert counts["FFMA"] >= counts["FFMA, yielding"] and counts["all"] > sum(
                list(counts.values())[:5]
            )
            assert (row["stages"] is not None) == (counts["SYNCS"] > 0) == (counts["UTMALDG"] > 0)
            assert (row["cluster"] > 1) == (counts["UTMALDG, multicast"] > 0)
    top = rows["s7_persistent"]
    assert top["stages"] == "3, 4" and set(top["sass"]) == {"256, 128, 3", "128, 192, 4"}
    assert len(top["setmaxnreg"]) == 2 and all(counts["UTMASTG"] > 0 for counts in top["sass"].values())
    # 128 threads give registers back, and the others take no more than there are.
    few, many = top["setmaxnreg"]
    assert few < top["registers"] < many and 128 * few + (top["threads"] - 128) * many <= 65536


def test_the_launch_is_read_from_the_kernel(collected: dict) -> None:
    """It is what the launcher asks for, not a constant beside it."""
    config = cards.launch_config(rungs["s5_tma_multicast"])
    row = next(row for row in collected["rows"] if row["rung"] == "s5_tma_multicast")
    assert (config.threads, config.shared_bytes, config.cluster) == (
        row["threads"],
        row["shared_dynamic"],
        row["cluster"],
    )
    assert config.blocks % config.cluster == 0 and config.blocks > 0


# ---------------------------------------------------------------------------------------------- lines of code


def test_code_lines(tmp_path: Path) -> None:
    cuda = tmp_path / "x.cu"
    cuda.write_text("// What it is.\n\nint a;  // kept\n    // not this\n  int b;\n#pragma once\n")
    assert cards.code_lines(cuda) == ["int a;  // kept", "int b;", "#pragma once"]
    python = tmp_path / "x.py"
    python.write_text(
        '"""One.\n\nTwo.\n"""\n# No.\nx = """\n# kept\n"""\n\ndef f():\n    """No."""\n    return 1\n'
    )
    assert cards.code_lines(python) == ['x = """', '"""', "def f():", "return 1"]


@pytest.mark.parametrize(
    ("old", "new", "added", "removed"),
    [("", "abc", 3, 0), ("abc", "", 0, 3), ("abc", "abc", 0, 0), ("abcd", "xbcy", 2, 2), ("ab", "ba", 1, 1)],
)
def test_changed(old: str, new: str, added: int, removed: int) -> None:
    assert cards.changed(list(old), list(new)) == (added, removed)


# -------------------------------------------------------------------------------------------------------- ncu


def test_the_raw_page() -> None:
    found = ncu.figures(ncu.parse(["==PROF== Connected", *RAW_PAGE.read_text().splitlines()]))
    assert found["tensor"] == 73.9 and found["l1"] == 59.0 and found["dram"] == 24.6
    assert found["occupancy"] == 18.8 and found["issue"] == 34.2
    assert found["xu"] is None, "n/a in this file"
    assert sum(found["stalls"].values()) == pytest.approx(100, abs=0.5)
    assert max(found["stalls"], key=found["stalls"].get) == "barrier"
    assert "lg_throttle" not in found["stalls"], "none"
    assert rung_cards.UNITS.keys() | {"occupancy", "stalls"} == found.keys()
    assert found["stalls"].keys() <= {*rung_cards.STALLS, rung_cards.ISSUING}
    assert {*rung_cards.STALLS, rung_cards.ISSUING} == set(ncu.STALLS)


def test_thousands_are_numbers() -> None:
    assert ncu.parse(['"a","b","c"', '"","",""', '"1,234,567.5","(1, 2, 3)","1.5e-05"']) == {
        "a": 1234567.5,
        "c": 1.5e-05,
    }


@pytest.mark.parametrize(
    ("lines", "count"), [([], 0), (['"a"', '"%"'], 0), (['"a"', '"%"', '"1"', '"2"'], 2)]
)
def test_other_than_one_launch(lines: list[str], count: int) -> None:
    with pytest.raises(GemmLadderError, match=f"ncu gives {count} launches as a table; 1 is needed"):
        ncu.parse(lines)


@pytest.fixture
def fake_ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """fake_ncu(text): a program in ncu's place that runs the Python `text` and records its arguments."""

    def install(text: str) -> Path:
        program, log = tmp_path / "ncu", tmp_path / "arguments"
        program.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"with open({str(log)!r}, 'a') as file: print(json.dumps(sys.argv[1:]), file=file)\n{text}\n"
        )
        program.chmod(0o755)
        monkeypatch.setattr(toolchain, "find_tool", lambda name: program)
        return log

    return install


def test_profile(fake_ncu) -> None:
    log = fake_ncu(f"if '--import' in sys.argv: print(open({str(RAW_PAGE)!r}).read())")
    assert ncu.profile(rungs["s8_ffma_interleave"])["tensor"] == 73.9
    first, second = map(json.loads, log.read_text().splitlines())
    assert first[first.index("--kernel-name") + 1] == "regex:^s7_persistent", "the kernel's own name"
    assert first[-3:] == ["-m", "gemm_ladder.measure.ncu", "s8_ffma_interleave"]
    asked = first[first.index("--metrics") + 1].split(",")
    assert set(asked) <= set(RAW_PAGE.read_text().splitlines()[0].strip('"').split('","'))
    assert second[second.index("--import") + 1] == first[first.index("--export") + 1]


def test_ncus_error_is_passed_on(fake_ncu) -> None:
    fake_ncu("print('==PROF== Connected\\n==ERROR== No permission\\n'); sys.exit(1)")
    with pytest.raises(GemmLadderError, match=r"^ncu fails: ==ERROR== No permission$"):
        ncu.profile(rungs["s3_wgmma"])


def test_no_ncu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_tool", lambda name: None)
    with pytest.raises(gl.build.ToolchainError, match="There is no ncu on PATH or beside nvcc"):
        ncu.version()


# --------------------------------------------------------------------------------------- what limits a kernel


def said(**shares: float) -> dict:
    """ncu's figures: 10% of everything, except for `shares`."""
    return dict.fromkeys([*rung_cards.UNITS, "occupancy"], 10.0) | {
        "stalls": {"selected": 50.0, "not_selected": 20.0, "wait": 10.0, "barrier": 20.0},
        **shares,
    }


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        (said(tensor=80.0, l2=79.9), "Limited by the tensor cores: 80% of the peak."),
        (
            said(l2=61.0),
            "No unit is full; the nearest to its limit is L2: 61% of the peak; a warp waits for a barrier or "
            "WGMMA's results 20% of its time.",
        ),
        (
            said(dram=59.0, stalls={"long_scoreboard": 70.0, "selected": 30.0}),
            "Limited by latency: no unit is over 59% of the peak, that of GPU memory; a warp waits for "
            "global memory or an mbarrier 70% of its time.",
        ),
        (
            said(fma=30.0, tensor=None, stalls={}),
            "Limited by latency: no unit is over 30% of the peak, that of the FP32 pipe.",
        ),
        (
            dict.fromkeys(rung_cards.UNITS) | {"stalls": {}},
            "ncu reports none of the figures that would tell what limits it.",
        ),
    ],
)
def test_limit(figures: dict, sentence: str) -> None:
    assert rung_cards.limit(figures) == sentence


# ------------------------------------------------------------------------------------------------ the command


def record(name: str = "s3_wgmma", **meta: object) -> dict:
    """cards.json of one made-up rung."""
    row = dict.fromkeys(rung_cards.ROW_FIELDS) | {
        **{
            "rung": name,
            "idea": "an idea",
            "file": "kernels/stages/x.cu",
            "lines": 30,
            "setmaxnreg": [40, 232],
        },
        **{
            "below": "s1_naive",
            "added": 10,
            "removed": 3,
            "registers": 168,
            "spill_stores": 4,
            "spill_loads": 8,
        },
        **{
            "shared_static": 24,
            "shared_dynamic": 1000,
            "threads": 128,
            "cluster": 1,
            "sass": {"": {"QGMMA": 4}},
        },
    }
    frame = {"nvcc": "13.0.88", "date": "2025-01-02", "sources": "ab" * 32, "protocol": "How", "ncu": None}
    return {"schema": 1, "meta": frame | meta, "rows": [row]}


def profiled() -> dict:
    machine = {"gpu": "GPU", "driver": "1.2", "ncu": "2025.3", "date": "2025-01-03", "shape": "1x2x3"}
    data = record(ncu=machine | {"protocol": "So"})
    data["rows"][0]["ncu"] = said(tensor=None, l2=99.0)
    return data


def test_a_card() -> None:
    text = rung_cards.cards(profiled())["s3_wgmma"]
    for line in (
        "# s3_wgmma",
        "An idea: [kernels/stages/x.cu](../../kernels/stages/x.cu)",
        "| changed, against s1_naive | +10 -3 |",
        "| registers a thread | 168 (40, 232) |",
        "| spilled, bytes stored and loaded | 4 and 8 |",
        "| shared memory a block, bytes | 1024 |",
        "| stages | - |",
        "| QGMMA | 4 |",
        "**Limited by L2: 99% of the peak.**",
        "| the tensor cores | - |",
        "| issuing | 50.0 |",
        "<sub>Limits: GPU, driver 1.2, ncu 2025.3; 2025-01-03. So.</sub><br>",
    ):
        assert line in text.splitlines(), line
    assert "nvcc 13.0.88; 2025-01-02, kernel sources abababababab." in text
    assert "ncu has not been run on this kernel." in rung_cards.cards(record())["s3_wgmma"]


def times(sources: str) -> dict:
    """ladder.json: a rung and the ceiling at the shape of the table."""
    meta = {
        **dict.fromkeys(("gpu", "num_sms", "driver", "cuda", "nvcc", "torch", "date"), "1"),
        "power_limit_w": 7,
    }
    m, n, k = rung_cards.SHOWN
    row = {"kind": "dense", "l2": "dirty", "m": m, "n": n, "k": k}
    rows = [
        {**row, "impl": impl, "tflops": t}
        for impl, t in (("s3_wgmma", 300.0), ("cublaslt_tensorwise", 1500.0))
    ]
    return {"schema": 1, "meta": meta | {"sources": sources}, "rows": rows}


def test_the_tables_of_rungs() -> None:
    line = "| [s3_wgmma](kernels/stages/x.cu) | an idea | 30 | {} | {} |"
    assert line.format(300, "20%") in rung_cards.rungs_table(record(), times("ab" * 32))
    assert line.format("-", "-") in rung_cards.rungs_table(record(), None)

    line = "| [s3_wgmma](cards/s3_wgmma.md) | 30 | +10 -3 | 168 (40, 232) | 1.0 KiB | 128 | - |"
    fresh, alone = (rung_cards.resources_table(record(), ladder) for ladder in (times("ab" * 32), None))
    assert line in fresh and line in alone and "have changed" not in fresh + alone
    assert "The kernels have changed between the two" in rung_cards.resources_table(
        record(), times("cd" * 32)
    )


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository to write into, with made-up cards, so that nothing has to be compiled."""
    (tmp_path / "figures" / "data").mkdir(parents=True)
    for path, tables in {
        "README.md": ("rungs",),
        "figures/README.md": ("dirty", "clean", "resources"),
    }.items():
        markers = [f"<!-- table-{name}:{end} -->" for name in tables for end in ("begin", "end")]
        (tmp_path / path).write_text("\n".join(markers))
    data = Path("figures", "data", "ladder.json")
    (tmp_path / data).write_bytes((REPOSITORY / data).read_bytes())
    monkeypatch.setattr(records, "checkout_root", lambda: tmp_path)
    monkeypatch.setattr(cards, "collect", record)
    return tmp_path


def test_the_command_renews_record_cards_and_table(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cards"]) == 0
    assert rung_cards.load(checkout / "figures" / "data" / "cards.json") == record()
    assert (checkout / "figures" / "cards" / "s3_wgmma.md").read_text() == rung_cards.cards(record())[
        "s3_wgmma"
    ]
    assert "| an idea | 30 |" in (checkout / "README.md").read_text()
    assert "| 30 | +10 -3 |" in (checkout / "figures" / "README.md").read_text()
    assert "Renewed: figures/data/cards.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "kept"), [({}, True), ({"sources": "cd" * 32}, False), ({"nvcc": "13.1.0"}, False)]
)
def test_ncus_figures_are_kept_only_for_the_same_kernels(
    checkout: Path, capsys: pytest.CaptureFixture[str], changed: dict, kept: bool
) -> None:
    path = checkout / "figures" / "data" / "cards.json"
    old = profiled()
    old["meta"] |= changed
    path.write_text(json.dumps(old))
    assert main(["cards"]) == 0
    new = rung_cards.load(path)
    assert new == (profiled() if kept else record())
    printed = capsys.readouterr().out
    assert ("s3_wgmma: Limited by L2" in printed) == kept and ("ncu's figures are dropped" in printed) != kept


def test_ncu_needs_a_gpu(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["cards", "--ncu"]) == 2
    assert "found no CUDA GPU that torch can use; ncu runs the rungs" in capsys.readouterr().err
    assert not (checkout / "figures" / "data" / "cards.json").exists()


def test_an_installed_package_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw, "HERE", tmp_path / "site-packages" / "gemm_ladder" / "figures")
    monkeypatch.setattr(cards, "collect", record)
    assert main(["cards"]) == 0
    assert "not a checkout" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*"))


@pytest.mark.gpu
def test_the_program_that_ncu_looks_at() -> None:
    """It launches the rung without an error."""
    subprocess.run([sys.executable, "-m", "gemm_ladder.measure.ncu", "s3_wgmma"], check=True)
