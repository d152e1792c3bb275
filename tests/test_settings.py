"""The settings of a process, the layouts of the scales, and the casts."""

from __future__ import annotations

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import refusal
from gemm_ladder import settings, utils
from gemm_ladder.ref import fp8, layouts

pytestmark = pytest.mark.usefixtures("settings_restored")


def test_num_sms():
    """Saving and restoring the setting leaves it as it was."""
    found = gl.get_num_sms()
    assert found == (
        torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else 0
    )
    gl.set_num_sms(78)
    assert gl.get_num_sms() == settings.num_sms_limit() == 78
    gl.set_num_sms(0)
    assert gl.get_num_sms() == found and settings.num_sms_limit() == 0
    assert refusal(gl.set_num_sms, -2) == "num_sms is -2; 0 or more is needed"
    assert refusal(gl.set_num_sms, "8") == "num_sms is of type str; an int is needed"


def test_alignment():
    assert gl.get_m_alignment_for_contiguous_layout() == gl.get_mk_alignment_for_contiguous_layout() == 128
    assert gl.get_theoretical_mk_alignment_for_contiguous_layout() == 128
    assert gl.get_theoretical_mk_alignment_for_contiguous_layout(expected_m=16) == 128
    gl.set_mk_alignment_for_contiguous_layout(256)
    assert gl.get_m_alignment_for_contiguous_layout() == gl.get_mk_alignment_for_contiguous_layout() == 256
    for number in (2**31, 2**64, 2**70):  # too large for a kernel, or for the fast path
        assert refusal(gl.set_mk_alignment_for_contiguous_layout, number) == (
            f"alignment is {number}; less than 2^31 is needed"
        )
        assert refusal(gl.set_num_sms, number) == f"num_sms is {number}; less than 2^31 is needed"
    for alignment in (0, 32, 100):
        assert refusal(gl.set_mk_alignment_for_contiguous_layout, alignment) == (
            f"an alignment of {alignment} rows is given; a multiple of 64 is needed"
        )


@pytest.mark.parametrize("name", ["get_mn_major_tma_aligned_tensor", "get_col_major_tma_aligned_tensor"])
@pytest.mark.parametrize("shape", [(5, 3), (1, 4), (2, 6, 3), (0, 2)], ids=str)
def test_mn_major(name, shape):
    scales = torch.randn(shape)
    made = getattr(gl, name)(scales)
    expected = layouts.get_mn_major_tma_aligned(scales.numpy())
    np.testing.assert_array_equal(made.numpy(), expected)
    if scales.numel():
        assert made.stride() == tuple(stride // 4 for stride in expected.strides)
        assert getattr(gl, name)(made) is made
    negated = getattr(gl, name)(torch._neg_view(scales))
    assert not negated.is_neg() and torch.equal(negated, -scales)


def test_mn_major_refuses():
    assert refusal(gl.get_mn_major_tma_aligned_tensor, torch.ones(4)) == (
        "sf has shape [4]; 2 dimensions, or 3 with groups, are needed: [m, k / 128]"
    )
    assert refusal(gl.get_mn_major_tma_aligned_tensor, torch.ones(4, 4).int()) == (
        "sf is int32; float32 is needed"
    )
    assert "a torch.Tensor is needed" in refusal(gl.get_mn_major_tma_aligned_tensor, np.ones((4, 4)))


def test_transform_sf():
    of_a, of_b = torch.randn(5, 3), torch.randn(2, 3)
    transform = gl.transform_sf_into_required_layout
    for recipe in ({"recipe": (1, 128, 128), "is_sfa": True}, {"recipe": (1, 128)}):
        made = transform(of_a, 5, 384, **recipe)
        assert torch.equal(made, of_a) and made.stride() == (1, 8)
    for recipe in ({"recipe": (1, 128, 128), "is_sfa": False}, {"recipe": [128, 128]}):
        made = transform(of_b.T.contiguous().T, 136, 384, **recipe)
        assert torch.equal(made, of_b) and made.is_contiguous()
    grouped = transform(torch.randn(4, 5, 3), 5, 384, (1, 128), num_groups=4, disable_ue8m0_cast=True)
    assert grouped.stride() == (24, 1, 8)
    assert refusal(transform, of_a, 5, 384, (1, 128, 128)) == (
        "recipe is (1, 128, 128) without is_sfa; True for A's scales or False is needed"
    )
    assert refusal(transform, of_a, 5, 384, (1, 32)) == (
        "recipe is (1, 32); a scale for (1, 128) or for (128, 128) elements is needed"
    )
    assert refusal(transform, of_a, 5, 256, (1, 128)) == (
        "sf has shape [5, 3]; [5, 2] is needed: for mn = 5, k = 256, recipe (1, 128) and num_groups None"
    )


def test_small_numbers():
    assert [gl.ceil_div(x, 128) for x in (0, 1, 128, 129)] == [0, 1, 1, 2]
    assert [gl.get_tma_aligned_size(5, size) for size in (1, 2, 4, 8, 16)] == [16, 8, 8, 6, 5]
    assert refusal(gl.get_tma_aligned_size, 5, 3) == "element_size is 3; a divisor of 16 is needed"


@pytest.mark.parametrize("name", ["per_token_cast_to_fp8", "per_block_cast_to_fp8"])
@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_casts(name, use_ue8m0, dtype):
    """The casts give the bits of ref.fp8. A wrong rounding of the scales would show at powers of two."""
    generator = torch.Generator().manual_seed(0)
    for shape, gran_k in (((130, 300), 128), ((3, 128), 128), ((40, 100), 32), ((0, 256), 128)):
        x = torch.randn(shape, generator=generator) * torch.logspace(-4, 4, shape[1])
        x[::2] = x[::2].sign() * 2.0 ** torch.randint(-6, 6, (1, shape[1]), generator=generator)
        x = x.to(dtype)
        made, scales = getattr(gl.utils, name)(x, use_ue8m0, gran_k)
        expected, expected_scales = getattr(fp8, name)(x.float().numpy(), use_ue8m0, gran_k)
        assert made.dtype == torch.float8_e4m3fn and made.is_contiguous() and scales.is_contiguous()
        np.testing.assert_array_equal(made.view(torch.uint8).numpy(), expected.view(np.uint8))
        np.testing.assert_array_equal(scales.numpy().view(np.int32), expected_scales.view(np.int32))


def test_casts_refuse():
    needed = "a float32, bfloat16 or float16 matrix is needed"
    assert refusal(utils.per_token_cast_to_fp8, torch.ones(3)) == f"x is torch.float32 [3]; {needed}"
    assert (
        refusal(utils.per_block_cast_to_fp8, torch.ones(3, 3).int()) == f"x is torch.int32 [3, 3]; {needed}"
    )
    assert refusal(utils.per_token_cast_to_fp8, np.ones((3, 3))) == f"x is of type ndarray; {needed}"
    assert refusal(utils.per_token_cast_to_fp8, torch.ones(3, 3), gran_k=0) == (
        "gran_k is 0; 1 or more is needed"
    )


def test_a_cast_is_taken_as_it_is():
    """The results of the casts can be passed to the products as they are."""
    x, w = torch.randn(70, 256), torch.randn(136, 256)
    out = torch.empty(70, 136, dtype=torch.bfloat16)
    gl.fp8_gemm_nt(utils.per_token_cast_to_fp8(x, False), utils.per_block_cast_to_fp8(w, False), out)
    assert gl.calc_diff(out, x @ w.T) < 1e-3
