"""A tile that is read otherwise than it was loaded: no fault, but the emulator's note says which two
instructions do not fit."""

from __future__ import annotations

import re

import gemm_ladder as gl
import ml_dtypes
import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.cli import main

PRODUCT = """
#include "layout.cuh"
#include "mma.cuh"
#include "ptx.cuh"

__global__ void product(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* d) {
    const uint32_t smem = ptx::shared_memory(), tile_b = smem + 64 * 128, full = smem + 4 * 64 * 128;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(full, 2 * 64 * 128);
        ptx::cp_async_bulk_tensor_2d(smem, &a, full, 0, 0);  // A
        ptx::cp_async_bulk_tensor_2d(tile_b, &b, full, 0, 0);  // B
    }
    __syncthreads();
    ptx::mbarrier_wait_parity(full, 0);
    AFTER_LOAD
    float sums[32];
    ptx::wgmma_fence();
    for (int k = 0; k < 64; k += 16)
        ptx::wgmma<ptx::Type::f32, ptx::Type::bf16, ptx::Type::bf16, 64>(  // the products
            sums, advance(smem_descriptor(smem) CHANGE_A, 2 * k),
            advance(smem_descriptor(tile_b) CHANGE_B, 2 * k), k != 0);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 32; ++i) d[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + column + i % 2] = sums[i];
}
"""
LINES = PRODUCT.splitlines()
CHANGES = "CHANGE_A", "CHANGE_B", "AFTER_LOAD"


def line(text: str) -> int:
    """The number of the line that has the text."""
    return next(number for number, one in enumerate(LINES, 1) if text in one)


def product(swizzle: int = 128, **changes: str) -> tuple[list[str], bool]:
    """The notes of one launch, and whether D is right."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((64, 64)).astype(ml_dtypes.bfloat16) for _ in range(2))
    d = np.zeros((64, 64), np.float32)
    maps = [lab.tensor_map(one, (64, 64), swizzle=swizzle) for one in (a, b)]
    defines = {**dict.fromkeys(CHANGES, ""), **changes}
    result = lab.run(PRODUCT, *maps, d, block=128, shared_bytes=5 * 64 * 128, defines=defines)
    right = np.allclose(d, a.astype(np.float32) @ b.astype(np.float32).T, atol=1e-4)
    return result.notes, right


def test_a_tile_that_is_read_as_it_was_loaded_needs_no_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert product() == ([], True)
    assert capsys.readouterr().err == ""


def test_another_type() -> None:
    """An array of FP16 that BF16 WGMMAs multiply. Bits as integers may be of any type."""
    d = np.zeros((64, 64), np.float32)
    launch = {"block": 128, "shared_bytes": 5 * 64 * 128, "defines": dict.fromkeys(CHANGES, "")}
    for dtype, said in ((np.float16, ["A", "B"]), (np.uint16, [])):
        maps = [lab.tensor_map(np.ones((64, 64), dtype), (64, 64), swizzle=128) for _ in range(2)]
        where = f"product.cu:{line('// the products')}"
        assert lab.run(PRODUCT, *maps, d, **launch).notes == [
            f"a WGMMA ({where}) reads its {which} as bf16 from a tile that a TMA load "
            f"(product.cu:{line(f'  // {which}')}) has brought by a tensor map of f16 elements"
            for which in said
        ]


def test_another_swizzle(capsys: pytest.CaptureFixture[str]) -> None:
    notes, right = product(swizzle=0)
    assert not right
    place = f"product.cu:{line('// the products')}"
    assert notes == [
        f"a WGMMA ({place}) reads its {which} by a descriptor with a swizzle of 128 bytes, from a tile that "
        f"a TMA load (product.cu:{line(f'  // {which}')}) has laid out without a swizzle"
        for which in "AB"
    ]
    assert capsys.readouterr().err == "".join(f"note: {note}\n" for note in notes)


@pytest.mark.parametrize(("bits", "said"), [(1, "64"), (2, "32")])
def test_a_descriptor_of_another_swizzle(bits: int, said: str) -> None:
    """Bits 62 and 63 of the descriptor: 1 is 128 bytes, 2 is 64, 3 is 32. These are added to the 1."""
    (note,), right = product(CHANGE_B=f"+ (uint64_t({bits}) << 62)")
    assert not right
    assert f"reads its B by a descriptor with a swizzle of {said} bytes, from a tile that a TMA load" in note
    assert note.endswith("has laid out with a swizzle of 128 bytes")


def test_another_stride() -> None:
    """16 rows, and not 8, from one group of eight rows to the next."""
    (note, of_b), right = product(CHANGE_A="+ (uint64_t(1024 >> 4) << 32)")
    assert not right
    assert "reads its A by a descriptor whose offsets do not fit the tile of a TMA load" in note
    assert note.endswith(
        ": row 0 at byte 0 of K is row 0 at byte 0 of the box, "
        "and row 8 at byte 0 of K is row 16 at byte 0 of the box"
    )
    assert f"(product.cu:{line('  // B')}): row 32 at byte 0 of K is row 0 at byte 0" in of_b  # A runs into B


def test_a_tile_that_is_read_from_its_middle_on() -> None:
    """32 rows too far: half of B's tile, and what lies behind it."""
    behind = "if (threadIdx.x == 0) { ptx::mbarrier_arrive_expect_tx(full, 64 * 128);"
    behind += " ptx::cp_async_bulk_tensor_2d(smem + 2 * 64 * 128, &a, full, 0, 0); }"
    behind += " ptx::mbarrier_wait_parity(full, 1);"
    (note,), right = product(CHANGE_B="+ (32 * 128 >> 4)", AFTER_LOAD=behind)
    assert not right
    assert re.search(
        r"reads its B by a descriptor that begins inside of the tile of a TMA load \(product.cu:13\), "
        "at its row 32, and from row 32 on is in another tile$",
        note,
    )


def test_what_threads_have_stored_may_lie_as_they_like() -> None:
    """They lay out again what a load without a swizzle has brought, for WGMMAs with one."""
    again = """
        for (uint32_t at = 16 * threadIdx.x; at < 2 * 64 * 128; at += 16 * 128) {
            const uint4 piece = ptx::ld_shared<uint4>(smem + at);
            ptx::st_shared(smem + 2 * 64 * 128 + (at ^ (at >> 3 & 112)), piece);
        }
        __syncthreads();
        for (uint32_t at = 16 * threadIdx.x; at < 2 * 64 * 128; at += 16 * 128)
            ptx::st_shared(smem + at, ptx::ld_shared<uint4>(smem + 2 * 64 * 128 + at));
        ptx::fence_proxy_async();
        __syncthreads();
    """
    assert product(swizzle=0, AFTER_LOAD=" ".join(again.split())) == ([], True)


MATRICES = """
#include "ptx.cuh"
#include "fragments.cuh"

__global__ void matrices(const __grid_constant__ TensorMap map, uint32_t* out) {
    __shared__ alignas(1024) uint8_t tile[8 * 128];
    __shared__ uint64_t full;
    const uint32_t barrier = __cvta_generic_to_shared(&full), to = __cvta_generic_to_shared(tile);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(barrier, sizeof tile);
        ptx::cp_async_bulk_tensor_2d(to, &map, barrier, 0, 0);
    }
    __syncwarp();
    ptx::mbarrier_wait_parity(barrier, 0);
    uint32_t r[4];
    const uint32_t row = threadIdx.x % 8, column = threadIdx.x / 8;
    ptx::ldmatrix<4>(r, to + row * 128 + ((column ^ (SWIZZLED ? row : 0)) * 16));
    for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = r[i];
}
"""


@pytest.mark.parametrize("loaded", [0, 128])
@pytest.mark.parametrize("read", [0, 128])
def test_ldmatrix(loaded: int, read: int) -> None:
    tile, out = np.arange(8 * 64, dtype=np.int16).reshape(8, 64), np.zeros((32, 4), np.uint32)
    tensor_map = lab.tensor_map(tile, (8, 64), swizzle=loaded)
    found = lab.run(MATRICES, tensor_map, out, block=32, defines={"SWIZZLED": int(read == 128)})
    lane, column = np.meshgrid(np.arange(32), np.arange(4), indexing="ij")
    expected = tile.view(np.uint32)[lane // 4, column * 4 + lane % 4]
    assert np.array_equal(out, expected) == (loaded == read)
    if loaded == read:
        assert found.notes == []
        return
    (note,) = found.notes
    laid_out = "with a swizzle of 128 bytes" if loaded else "without a swizzle"
    assert note == (
        "an ldmatrix (matrices.cu:19) reads the eight rows of one matrix from different columns of a tile, "
        f"which a TMA load (matrices.cu:13) has laid out {laid_out}"
    )


def test_a_sweep_and_the_command_say_it_too(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    tile, out = np.zeros((8, 64), np.int16), np.zeros((32, 4), np.uint32)
    defines = {"SWIZZLED": 0}
    found = lab.sweep(
        MATRICES, lab.tensor_map(tile, (8, 64), swizzle=128), out, block=32, defines=defines, seeds=3
    )
    assert found.sound and len(found.notes) == 1
    assert str(found).splitlines()[1] == f"note: {found.notes[0]}"
    path = tmp_path_factory.mktemp("notes") / "matrices.cu"
    path.write_text(MATRICES)
    words = ["map:int16[8,64]=arange:8x64:128B", "uint32[32,4]=0", "--block", "32", "--define", "SWIZZLED=0"]
    assert main(["lab", "run", str(path), *words]) == 0
    assert f"note: {found.notes[0]}" in capsys.readouterr().err


def test_the_judge_says_it_of_a_wrong_result() -> None:
    """Of a rung whose tensor map of A has no swizzle."""
    text = gl.rungs["s4_tma"].path.read_text()
    changed = re.sub(r"(tensor_map_2d\(&map_a,.*)Swizzle::k128B", r"\1Swizzle::kNone", text)
    assert changed != text
    verdict = gl.judge(changed, seconds=2, device="cpu", cases=["one_tile"])
    assert not verdict.right
    notes = [text for label, text in verdict.wrong.details if label == "note"]
    assert (
        len(notes) == 1 and "reads its A by a descriptor with a swizzle of 128 bytes, from a tile" in notes[0]
    )
