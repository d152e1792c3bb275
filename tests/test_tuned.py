"""Measured configurations: the package's tables and the user's; and the machine code of what is chosen."""

from __future__ import annotations

import dataclasses
import json
import re

import gemm_ladder as gl
import pytest
from gemm_ladder import build, precompiling
from gemm_ladder.production import choice, launching, tuned, tuner
from gemm_ladder.production import config as configs
from gemm_ladder.production.choice import choose
from gemm_ladder.production.config import Config
from gemm_ladder.sass import disassembly, ffma

# --------------------------------------------------------------------------------------- what was measured


GPU = "NVIDIA Imaginary 1 / 80GB"


@pytest.fixture
def tables(monkeypatch, tmp_path):
    """Empty folders in place of the tables: (the package's, the user's)."""
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    tuned.forget()
    yield tmp_path / "shipped", tmp_path / "cache" / "tables"
    tuned.forget()


def asked(m: int = 100, num_sms: int = 132) -> Config:
    return launching.configuration("dense", m, 4096, 7168, 1, None, num_sms, GPU)


@pytest.mark.parametrize("path", sorted(tuned.SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_tables_are_usable(path):
    """Each entry is a configuration that can be built, and is found for the sizes in its name."""
    table = json.loads(path.read_text())
    assert table
    for key, entry in table.items():
        kind, sizes = key.split()
        groups, m, n, k = map(int, sizes.split("x"))
        found = Config(**entry["config"])
        assert configs.fits(found) and (found.kind, found.n, found.k) == (kind, n, k)
        assert m in choice.STEPS and len(entry["us"]) in (2, 3) and min(entry["us"]) > 0
        gpu = path.stem.replace("_", " ")
        assert dict(tuned.find(gpu, kind, n, k, groups, entry["num_sms"]))[m] == found
        assert tuned.find(gpu, kind, n, k, groups, entry["num_sms"] - 2) == ()
        plan = launching.plan(kind, n, k, groups, entry["num_sms"], gpu)
        assert plan.at(m) == found and len(plan.configs) <= choice.MOST_KERNELS


def test_measured_wins_and_own_wins_over_shipped(tables):
    shipped, own = tables
    # Two that are slow, so that nobody would choose them.
    first, second = Config.of("dense", 4096, 7168, 64, 16), Config.of("dense", 4096, 7168, 256, 16)
    assert asked() == choose("dense", 100, 4096, 7168)
    path = tuned.keep(GPU, first, 104, 1, 132, [12.3456, 11])
    assert path == own / "NVIDIA_Imaginary_1_80GB.json"
    assert asked() == first and asked(m=97) == first and asked(m=104) == first
    assert asked(m=96) != first and asked(m=105) != first, "of another step"
    assert asked(num_sms=78) == choose("dense", 100, 4096, 7168, num_sms=78), "with fewer SMs"
    shipped.mkdir()
    path.rename(shipped / path.name)
    tuned.forget()
    assert asked() == first
    tuned.keep(GPU, second, 104, 1, 132, [11.0])
    tuned.keep(GPU, first, 64, 1, 132, [10.0])
    assert asked() == second and asked(m=64) == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry["config"].update(tile_n=120),
        lambda entry: entry["config"].update(swizzle=3),
        lambda entry: entry["config"].update(n=2112),
        lambda entry: entry["config"].pop("stages"),
        lambda entry: entry.pop("config"),
    ],
)
def test_an_entry_that_is_not_usable_is_none(tables, damage):
    path = tuned.keep(GPU, Config.of("dense", 4096, 7168, 64, 16), 104, 1, 132, [12.0])
    table = json.loads(path.read_text())
    damage(table["dense 1x104x4096x7168"])
    path.write_text(json.dumps(table))
    tuned.forget()
    assert asked() == choose("dense", 100, 4096, 7168)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_table_that_is_none(tables, text):
    path = tuned.keep(GPU, Config.of("dense", 4096, 7168, 64, 16), 104, 1, 132, [12.0])
    path.write_text(text)
    tuned.forget()
    assert asked() == choose("dense", 100, 4096, 7168)


def test_which_ffmas_the_tuner_tries(monkeypatch):
    """For a large tile, every other way of interleaving that the pass can make."""
    rewritten = {"off": True, "9/16": True, "full": False}

    def built(found: list[Config], target: str) -> list[build.Built]:
        assert target == "cuda"
        return [build.Built(None, "", 0.0, True, target, rewritten.get(one.interleave)) for one in found]

    monkeypatch.setattr(tuner, "build_all", built)
    config = Config.of("dense", 4096, 7168, 256, 128)
    tried = tuner.interleaved(config)
    assert [one.interleave for one in tried] == ["off", "9/16"]
    assert {dataclasses.replace(one, interleave="compiler") for one in tried} == {config}
    off = dataclasses.replace(config, interleave="off")
    assert [one.interleave for one in tuner.interleaved(off)] == ["compiler", "9/16"]
    assert tuner.interleaved(Config.of("dense", 4096, 7168, 64, 64)) == []


# ------------------------------------------------------------------------------------------- machine code


def sample() -> list[Config]:
    """Of what is chosen for some products, and of what the tables have, one of each kind of configuration."""
    weights = ((2112, 7168), (7168, 2048), (1280, 8192), (5120, 3072))
    rows = [("dense", 1, m, n, k) for m in (1, 64, 200, 512, 1024, 4096) for n, k in weights]
    rows += [(kind, 8, m, 4096, 1536) for kind in ("contiguous", "masked") for m in (1024, 65536)]
    found = [choose(kind, m, n, k, groups) for kind, groups, m, n, k in rows]
    for path in sorted(tuned.SHIPPED.glob("*.json")):
        found += [Config(**entry["config"]) for entry in json.loads(path.read_text()).values()]
    kinds = {}
    for one in found:
        key = one.kind, one.tile_m, one.share, one.blocks_an_sm, one.interleave, one.tail is None
        kinds.setdefault(key, one)
    return list(kinds.values())


@pytest.fixture
def nvcc():
    try:
        gl.build.find_cuda()
    except gl.build.ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")


@pytest.mark.slow
@pytest.mark.usefixtures("nvcc")
def test_chosen_kernels_compile_well():
    """No registers spilled, no WGMMA serialised (C75xx), no other warning, no code that the FFMAs' pass does
    not understand; two at a time."""
    chosen = sample()
    assert len(chosen) > 15
    for one, built in zip(chosen, precompiling.build_all(chosen, "cuda"), strict=True):
        (used,) = disassembly.resources(built.log).values()
        assert (used.stack_frame, used.spill_stores, used.spill_loads) == (0, 0, 0), one.name
        assert not re.findall(r"^.*(?:\bC75\d\d\b|\bwarning\b).*$", built.log, re.M | re.I), one.name
        assert ("ffma, mode" in built.log) == (one.interleave != "compiler"), one.name


@pytest.mark.slow
@pytest.mark.usefixtures("nvcc")
def test_interleaved_where_the_pass_understands_the_code(monkeypatch, tmp_path):
    built = Config.of("dense", 4096, 7168, 256, 128, interleave="9/16").compile("cuda")
    assert re.search(r"ffma, mode 9/16: \d+ FFMAs in \d+ run\(s\); \d+ yield", built.log)
    ffmas = [one for run in ffma.promotions(built.path.read_bytes()) for one in run]
    assert 0 < sum(one.yields for one in ffmas) < len(ffmas) * 9 / 16

    def refuse(library: bytes, mode: str) -> bytes:
        raise ffma.UnknownCodeError("The library is not rewritten: it is too strange.")

    monkeypatch.setattr(ffma, "rewrite", refuse)
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path))
    plain, other = (Config.of("dense", 64, 128, 64, 16, interleave=mode) for mode in ("compiler", "full"))
    assert other.compile("cuda").log.endswith("The library is not rewritten: it is too strange.\n")
    code = [disassembly.disassemble(one.compile("cuda").path) for one in (plain, other)]
    assert list(code[0].values()) == list(code[1].values()), "it runs as the compiler made it"
