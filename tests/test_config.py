"""The configurations of the production kernels: their rules, and the sizes that follow from them."""

from __future__ import annotations

import dataclasses
import re

import pytest
from gemm_ladder.build import job
from gemm_ladder.errors import InputError
from gemm_ladder.production import config as configs
from gemm_ladder.production.config import Config


def config(**fields: object) -> Config:
    given = {"kind": "dense", "n": 4096, "k": 7168, "tile_m": 128, "tile_n": 128, **fields}
    return dataclasses.replace(Config.of("dense", 4096, 7168, 128, 128), **given)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "sparse"}, "kind is 'sparse'; it must be one of dense, contiguous, masked"),
        ({"share": "C"}, "share is 'C'; it must be one of nothing, A, B, K"),
        ({"stages": 0}, "stages is 0; it must be positive"),
        ({"unroll": 0}, "unroll is 0; it must be positive"),
        ({"group_m": 0}, "group_m is 0; it must be positive"),
        ({"group_n": -1}, "group_n is -1; it must not be negative"),
        ({"n": 4097}, "n is 4097; it must be a multiple of 8"),
        ({"k": 7000}, "k is 7000; it must be a multiple of 16"),
        ({"consumers_n": 3}, "consumers is 6; it must be 1 or 2 (consumers_m * consumers_n)"),
        ({"tile_m": 64}, "tile_m is 64; it must be a multiple of 64 * consumers_m"),
        ({"tile_m": 384, "tile_n": 16}, "tile_m is 384; it must be at most 256"),
        ({"tile_n": 120}, "tile_n is 120; it must be a multiple of 16"),
        ({"tile_n": 272}, "tile_n is 272; it must be at most 256"),
        ({"tile_m": 256, "tile_n": 144}, "accumulators is 216; it must be at most 192"),
        ({"tile_m": 64, "tile_n": 240, "consumers_m": 1}, "accumulators is 240;"),
        ({"stages": 7}, "shared_bytes is 269824; it must be at most 232448"),
        ({"cluster": 2}, "cluster is 2; it must be 1 where nothing is shared"),
        ({"share": "A"}, "cluster is 1; it must be 1 where nothing is shared, else more"),
        ({"share": "A", "cluster": 3}, "cluster is 3; it must be 1, 2, 4 or 8"),
        ({"share": "B", "cluster": 4, "tile_n": 112}, "tile_n is 112; it must be a multiple of 8 * cluster"),
        ({"kind": "contiguous", "share": "B", "cluster": 2}, "share is 'B'; it must not be B"),
        (
            {"kind": "contiguous", "tile_m": 256, "tile_n": 32, "consumers_m": 1, "stages": 3},
            "tile_m is 256; it must be at most 128 * consumers_m in the contiguous and psum layouts",
        ),
        (
            {"kind": "contiguous", "alignment": 64},
            "alignment is 64; it must be a multiple of 64 * consumers_m",
        ),
        ({"kind": "psum", "alignment": 64}, "alignment is 64; it must be a multiple of tile_m"),
        ({"kind": "masked", "share": "K", "cluster": 2, "stages": 3}, "share is 'K'; it must not be K"),
        ({"tail_m": 256}, "tail_m is 256; it must be positive if tail_n is, or else both 0"),
        ({"tail_m": -64, "tail_n": -64}, "tail_m is -64; it must be positive if tail_n is, or else both 0"),
        (
            {"kind": "masked", "tail_m": 256, "tail_n": 64, "stages": 4},
            "tail_m is 256; it must be 0 in a grouped layout",
        ),
        ({"share": "K", "cluster": 2, "stages": 3, "tail_m": 128, "tail_n": 64}, "and where K is split"),
        (
            {"tail_m": 64, "tail_n": 64},
            "tail_m is 64; it must make, with tail_n, a tile that the other fields suit",
        ),
        (
            {"tail_m": 256, "tail_n": 256, "stages": 1},
            "tail_m is 256; it must make, with tail_n, a tile that the other",
        ),
        ({"tail_m": 256, "tail_n": 128}, "shared_bytes is 322048; it must be at most 232448"),
    ],
    ids=str,
)
def test_rules(fields, sentence):
    assert configs.fits(config())
    with pytest.raises(InputError, match=re.escape(sentence)) as caught:
        config(**fields).check()
    assert "\n" not in str(caught.value)
    assert not configs.fits(config(**fields))


def test_source():
    assert Config.of("masked", 584, 768, 64, 112, cluster=2, share="A").source() == (
        '#include "start.cuh"\n'
        "constexpr Config kConfig{.kind = Kind::kMasked, .n = 584, .k = 768, .tile_m = 64, .tile_n = 112, "
        ".consumers_m = 1, .consumers_n = 1, .stages = 7, .cluster = 2, .share = Share::kA, .group_m = 8, "
        ".group_n = 0, .unroll = 4, .blocks_an_sm = 1, .stream_b = false, .prefetch = 0, .tail_m = 0, "
        ".tail_n = 0, .alignment = 128};\n"
        'extern "C" const char* gemm_ladder_launch(const GroupedArgs* args) '
        "{ return start<kConfig>(*args); }\n"
    )


def test_fields_are_those_in_cpp():
    text = (job.KERNELS / "production" / "config.cuh").read_text()
    body = re.sub(r"//.*", "", re.search(r"struct Config \{(.*?)\};", text, re.S)[1])
    names = [name for line in re.findall(r"\w+ ([\w, ]+)(?: = false)?;", body) for name in line.split(", ")]
    assert [*names, "interleave"] == [field.name for field in dataclasses.fields(Config)]  # a matter of bits


def test_registers_decide_the_unrolling():
    """A tile of 128x192 leaves no registers for a longer loop body; with two slices a longer one pays."""
    assert Config.of("dense", 4096, 7168, 128, 192).unroll == 1
    assert Config.of("dense", 4096, 7168, 256, 128).unroll == 8
    assert Config.of("dense", 4096, 7168, 64, 64).unroll == 4
    assert Config.of("dense", 4096, 7168, 128, 192, tail_m=256, tail_n=64).unroll == 8, "measured"


def test_parts():
    """The main tile gets whole rows of tiles that fill whole waves; the tail tile gets the rest."""
    one = config(n=2112, tile_n=192, tail_m=256, tail_n=64)
    assert [(part.tile_m, part.tile_n, rows) for part, rows in one.parts(4096, 132)] == [
        (128, 192, 3072),
        (256, 64, 1024),
    ]
    assert one.parts(3072, 132) == [(one, 3072)], "two whole waves leave nothing over"
    assert one.parts(1500, 132) == [(one, 1500)], "not one whole wave"
    assert [rows for _, rows in one.parts(4096, 100)] == [27 * 128, 4096 - 27 * 128], "of 300 tiles, 297"
    assert one.parts(3000, 132) == [(one, 3000)], "the last rows of whole waves are ragged"
    pairs = config(n=2112, tile_n=192, tail_m=256, tail_n=64, share="B", cluster=2, stages=3)
    assert [rows for _, rows in pairs.parts(4096, 132)] == [3072, 1024]
    assert config(n=2112).parts(4096, 132) == [(config(n=2112), 4096)]
    assert one.stage_bytes == 42 * 1024 and one.output_bytes == 2 * 64 * 192 * 2, "the larger of both"
