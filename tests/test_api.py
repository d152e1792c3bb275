"""The public API: every name of both generations, its results, its refusals, and what an import costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import gemm_ladder as gl
import grouped_cases
import numpy as np
import pytest
import torch
from cases import normal, place
from gemm_ladder import api, checks, production, settings, testing, utils
from gemm_ladder.errors import InputError
from gemm_ladder.ref import fp8, gemm, layouts, metrics

DENSE = ("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt")
CONTIGUOUS = ("m_grouped_fp8_gemm_nt_contiguous", "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous")
MASKED = (
    "m_grouped_fp8_gemm_nt_masked",
    "fp8_m_grouped_gemm_nt_masked",
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
)
device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def python(code: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def unset():
    """No test's setting is another's."""
    yield
    settings.set_num_sms(0)
    settings.set_mk_alignment_for_contiguous_layout(128)


# ------------------------------------------------------------------------------------------------- the names


def test_import_costs_nothing():
    """Neither torch, nor CUDA, nor a compiler; and CUDA is not initialised by the first use on a CPU."""
    assert python(
        "import sys, gemm_ladder as gl; gl.rungs; print('torch' in sys.modules, 'numpy' in sys.modules); "
        "import torch; gl.get_mn_major_tma_aligned_tensor(torch.ones(3, 2)); gl.fp8_gemm_nt; "
        "print(torch.cuda.is_initialized())"
    ).split() == ["False", "False", "False"]


def test_every_way_to_import():
    """In a process of its own, since an import is remembered."""
    assert (
        python(
            "import gemm_ladder as deep_gemm\n"
            "from gemm_ladder.utils import per_token_cast_to_fp8\n"
            "import gemm_ladder.testing\n"
            "from gemm_ladder import bench, bench_kineto, calc_diff, ceil_div, get_num_sms\n"
            "from gemm_ladder.testing import bench as of_testing\n"
            "assert deep_gemm.utils.per_token_cast_to_fp8 is per_token_cast_to_fp8\n"
            "assert deep_gemm.testing.calc_diff is calc_diff and of_testing is bench is deep_gemm.bench\n"
            "assert all(hasattr(deep_gemm, name) for name in deep_gemm.__all__)\n"
            "assert {*deep_gemm.__all__} <= {*dir(deep_gemm)}\n"
            "from gemm_ladder import *\n"
            "print(fp8_gemm_nt.__name__)"
        )
        == "fp8_gemm_nt"
    )


def test_the_functions_of_the_api_are_public():
    """The stub names all of the API module's functions; what tab completion shows is what it names."""
    functions = {
        name
        for name, value in vars(api).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == api.__name__
    }
    assert functions == {*DENSE, *CONTIGUOUS, *MASKED}
    assert functions <= {*gl.__all__} == {*dir(gl)}
    with pytest.raises(AttributeError, match="gemm_ladder attribute bf16_gemm_nt"):
        _ = gl.bf16_gemm_nt


# ----------------------------------------------------------------------------------------------- the results


@device
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("shape", [(1, 8, 128), (65, 136, 384), (130, 264, 256)], ids=str)
def test_dense(name, shape, device):
    operands = normal(np.random.default_rng(sum(shape)), *shape)
    placed = place(operands, device)
    assert getattr(gl, name)(placed.lhs, placed.rhs, placed.out) is None
    if device == "cpu":
        np.testing.assert_array_equal(placed.bits(), gemm.to_bf16(operands.exact()).view(np.uint16))
    else:
        values = (placed.bits().astype(np.uint32) << 16).view(np.float32)
        assert metrics.max_row_error(values, operands.exact()) < grouped_cases.MAX_ROW_ERROR


@device
@pytest.mark.parametrize("name", CONTIGUOUS)
@pytest.mark.parametrize("keyword", ["m_indices", "grouped_layout"])
@pytest.mark.parametrize(
    ("counts", "padding"),
    [([128], 0), ([256, 0, 128], 1), ([0, 384, 0, 128], 0), ([0, 0], 2)],
    ids=["one", "empty_group", "huge_group", "only_padding"],
)
def test_contiguous(name, keyword, counts, padding, device):
    call = grouped_cases.contiguous(counts, 136, 256, device, padding)
    assert getattr(gl, name)(call.lhs, call.rhs, call.out, **{keyword: call.rows}) is None
    call.check(exact=device == "cpu")


def test_contiguous_rows_of_padding_after_a_group():
    """On the CPU they are zeros, whatever A holds there; neither layout of the blocks is refused."""
    call = grouped_cases.contiguous([130, 0, 1], 136, 256, padding=1)
    gl.m_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.out, call.rows)
    call.check(exact=True)


@device
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    ("counts", "max_m"),
    [([64], 64), ([3, 0, 70, 1], 70), ([0, 0], 5), ([129, 200], 200), ([1, 127], 130)],
    ids=["full", "ragged", "no_rows", "beyond_a_tile", "padded_scales"],
)
def test_masked(name, counts, max_m, device):
    call = grouped_cases.masked(counts, max_m, 136, 256, device)
    assert getattr(gl, name)(call.lhs, call.rhs, call.out, masked_m=call.rows, expected_m=64) is None
    call.check(exact=device == "cpu")


@device
def test_nothing_to_compute(device):
    """m = 0 and max_m = 0: checked, and no kernel asked."""
    nothing = place(normal(np.random.default_rng(0), 0, 136, 256), device)
    gl.fp8_gemm_nt(nothing.lhs, nothing.rhs, nothing.out)
    call = grouped_cases.contiguous([0, 0], 136, 256, device)
    gl.m_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.out, call.rows)
    call.check(exact=True)
    call = grouped_cases.masked([0, 0], 0, 136, 256, device)
    gl.m_grouped_fp8_gemm_nt_masked(call.lhs, call.rhs, call.out, call.rows, 0)
    call.check(exact=True)
    with pytest.raises(InputError, match="out is float32; bfloat16 is needed"):
        gl.fp8_gemm_nt(nothing.lhs, nothing.rhs, nothing.out.float())


@device
def test_scales_of_other_layouts(device):
    """Row-major scales of A and transposed ones of B are converted."""
    for call, product in (
        (grouped_cases.contiguous([128, 256], 264, 384, device), gl.m_grouped_fp8_gemm_nt_contiguous),
        (grouped_cases.masked([5, 6], 6, 264, 384, device), gl.m_grouped_fp8_gemm_nt_masked),
    ):
        (a, sfa), (b, sfb) = call.lhs, call.rhs
        expected_m = {} if product is gl.m_grouped_fp8_gemm_nt_contiguous else {"expected_m": 6}
        product((a, sfa.contiguous()), (b, sfb.mT.contiguous().mT), call.out, call.rows, **expected_m)
        call.check(exact=device == "cpu")


def test_inputs_that_require_grad():
    placed = place(operands := normal(np.random.default_rng(5), 5, 136, 256))
    lhs, rhs = (tuple(x.detach().requires_grad_() for x in pair) for pair in (placed.lhs, placed.rhs))
    gl.fp8_gemm_nt(lhs, rhs, placed.out)
    np.testing.assert_array_equal(placed.bits(), gemm.to_bf16(operands.exact()).view(np.uint16))


def test_what_runs_on_a_gpu(monkeypatch):
    """Calls whose tensors are on a GPU go to production.launching, as `checks` has passed them."""
    given = []
    kernels = types.ModuleType("gemm_ladder.production.launching")
    kernels.queue = lambda call, expected_m: given.append((call, expected_m))
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    monkeypatch.setattr(production, "launching", kernels, raising=False)

    def passed(kind, lhs, rhs, out, rows=None):
        on_gpu = types.SimpleNamespace(is_cuda=True)
        return checks.CheckedCall(kind, "a", "sfa", "b", "sfb", on_gpu, rows, m=lhs, n=2, k=3, groups=4)

    monkeypatch.setattr(checks, "call", passed)
    gl.fp8_gemm_nt(0, None, None)  # m = 0: nothing to launch
    gl.fp8_gemm_nt(1, None, None)
    gl.m_grouped_fp8_gemm_nt_contiguous(1, None, None, "rows")
    gl.m_grouped_fp8_gemm_nt_masked(1, None, None, "rows", 7)
    assert [(call.kind, call.rows, expected_m) for call, expected_m in given] == [
        ("dense", None, 0),
        ("contiguous", "rows", 0),
        ("masked", "rows", 7),
    ]


# ---------------------------------------------------------------------------------------------- the refusals


def refusal(function, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as refused:
        function(*arguments, **keywords)
    assert "\n" not in str(refused.value)
    return str(refused.value)


OPTIONS = {
    "c": (
        {"c": torch.zeros(1)},
        "c is given; None is needed: an output in BF16 is written on Hopper, not added to",
    ),
    "recipe": ({"recipe": (1, 1, 128)}, "recipe is (1, 1, 128); (1, 128, 128) or None is needed"),
    "recipe_a": ({"recipe_a": (1, 32)}, "recipe_a is (1, 32); (1, 128) or None is needed"),
    "recipe_b": ({"recipe_b": 128}, "recipe_b is 128; (128, 128) or None is needed"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options(options, message):
    placed = place(normal(np.random.default_rng(0), 5, 136, 256))
    assert refusal(gl.fp8_gemm_nt, placed.lhs, placed.rhs, placed.out, **options) == message
    if "c" not in options:
        call = grouped_cases.contiguous([128], 136, 256)
        operands = (call.lhs, call.rhs, call.out, call.rows)
        assert refusal(gl.m_grouped_fp8_gemm_nt_contiguous, *operands, **options) == message
        assert refusal(gl.m_grouped_fp8_gemm_nt_masked, *operands, 1, **options) == message
    assert placed.untouched()


def test_options_that_change_nothing():
    placed = place(operands := normal(np.random.default_rng(0), 5, 136, 256))
    gl.fp8_gemm_nt(
        *(placed.lhs, placed.rhs, placed.out, None, [1, 128, 128], (1, 128), (128, 128)),
        compiled_dims="mnk",
        disable_ue8m0_cast=True,
    )
    np.testing.assert_array_equal(placed.bits(), gemm.to_bf16(operands.exact()).view(np.uint16))


def test_grouped_arguments():
    call = grouped_cases.contiguous([128], 136, 256)
    operands = (call.lhs, call.rhs, call.out)
    function = gl.m_grouped_fp8_gemm_nt_contiguous
    assert refusal(function, *operands, call.rows, m_indices=call.rows) == (
        "m_indices and grouped_layout are both given; one, two names of one tensor, is needed"
    )
    assert refusal(function, *operands) == "m_indices is of type NoneType; a torch.Tensor is needed"
    assert refusal(function, *operands, call.rows, use_psum_layout=True) == (
        "use_psum_layout is True; False is needed: a layout by indices, one for each row"
    )
    call = grouped_cases.masked([3], 4, 136, 256)
    operands = (call.lhs, call.rhs, call.out, call.rows)
    for expected_m, message in (
        (-1, "expected_m is -1; 0 or more is needed"),
        (2.5, "expected_m is of type float; an int is needed"),
        (torch.tensor(3), "expected_m is of type Tensor; an int is needed"),
    ):
        assert refusal(gl.m_grouped_fp8_gemm_nt_masked, *operands, expected_m) == message
    gl.m_grouped_fp8_gemm_nt_masked(*operands, np.int64(3))
    call.check(exact=True)


@pytest.mark.parametrize(
    ("n", "k", "message"),
    [(132, 256, "n is 132; a multiple of 8 is needed"), (136, 192, "k is 192; a multiple of 128 is needed")],
)
def test_sizes(n, k, message):
    placed = place(normal(np.random.default_rng(0), 5, n, k))
    assert refusal(gl.fp8_gemm_nt, placed.lhs, placed.rhs, placed.out) == message
    assert placed.untouched()


def test_contents_of_m_indices():
    for row, value, message in (
        (0, 2, "m_indices[0] is 2; -1 or a group below 2 is needed"),
        (255, -2, "m_indices[255] is -2; -1 or a group below 2 is needed"),
        (0, -1, "m_indices[1] is 0 after -1; a group that begins at a multiple of 128 rows is needed"),
        (100, 1, "m_indices[100] is 1 after 0; a group that begins at a multiple of 128 rows is needed"),
        (100, -1, "m_indices[101] is 0 after -1; a group that begins at a multiple of 128 rows is needed"),
    ):
        call = grouped_cases.contiguous([128, 128], 136, 256)
        call.rows[row] = value
        operands = (call.lhs, call.rhs, call.out, call.rows)
        assert refusal(gl.m_grouped_fp8_gemm_nt_contiguous, *operands) == message
        assert call.untouched()
    settings.set_mk_alignment_for_contiguous_layout(256)
    call = grouped_cases.contiguous([128, 128], 136, 256)
    assert "m_indices[128] is 1 after 0; a group that begins at a multiple of 256 rows" in refusal(
        gl.m_grouped_fp8_gemm_nt_contiguous, call.lhs, call.rhs, call.out, call.rows
    )


@pytest.mark.parametrize("count", [-1, 5])
def test_contents_of_masked_m(count):
    call = grouped_cases.masked([3, 2, 4], 4, 136, 256)
    call.rows[1] = count
    assert refusal(gl.m_grouped_fp8_gemm_nt_masked, call.lhs, call.rhs, call.out, call.rows, 3) == (
        f"masked_m[1] is {count}; a number from 0 to max_m = 4 is needed"
    )
    assert call.untouched()


@pytest.mark.gpu
def test_contents_on_a_gpu(monkeypatch):
    """Looked at only where that was asked for, and not while a graph is captured."""
    rows = torch.tensor([5, 0], dtype=torch.int32, device="cuda")
    call = grouped_cases.masked([3, 2], 4, 136, 256, "cuda")
    assert checks.call("masked", call.lhs, call.rhs, call.out, rows)
    monkeypatch.setattr(checks, "check_contents", True)
    assert "masked_m[0] is 5" in refusal(checks.call, "masked", call.lhs, call.rhs, call.out, rows)
    call = grouped_cases.contiguous([128, 128], 136, 256, "cuda")
    call.rows[3] = 1
    assert "m_indices[3] is 1" in refusal(checks.call, "contiguous", call.lhs, call.rhs, call.out, call.rows)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert checks.call("contiguous", call.lhs, call.rhs, call.out, call.rows)


def test_contents_are_asked_for_by_the_environment():
    code = "from gemm_ladder import checks; print(checks.check_contents)"
    assert python(f"import os; os.environ['GEMM_LADDER_CHECK'] = '1'; {code}") == "True"
    assert python(f"import os; os.environ['GEMM_LADDER_CHECK'] = '0'; {code}") == "False"


# --------------------------------------------------------------------------------- settings, layouts, casts


def test_num_sms():
    """A region bracketed with the two leaves what it found."""
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
    for alignment in (0, 64, 192):
        assert refusal(gl.set_mk_alignment_for_contiguous_layout, alignment) == (
            f"an alignment of {alignment} rows is given; a multiple of 128 is needed"
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
    """Bit for bit those of ref.fp8; an overflow of the scales' rounding would show at powers of two."""
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
    """The casts' results are operands without another step."""
    x, w = torch.randn(70, 256), torch.randn(136, 256)
    out = torch.empty(70, 136, dtype=torch.bfloat16)
    gl.fp8_gemm_nt(utils.per_token_cast_to_fp8(x, False), utils.per_block_cast_to_fp8(w, False), out)
    assert gl.calc_diff(out, x @ w.T) < 1e-3


# --------------------------------------------------------------------------------------------------- testing


def test_calc_diff():
    x, y = torch.randn(30, 20), torch.randn(30, 20)
    assert gl.calc_diff(x, y) == metrics.calc_diff(x.numpy(), y.numpy())
    assert gl.calc_diff(x.bfloat16(), x.bfloat16().double()) == 0 and gl.calc_diff(0 * x, 0 * x) == 0
    assert np.isnan(gl.calc_diff(x, x / 0 - x / 0))
    with pytest.raises(ValueError, match="one shape is needed"):
        gl.calc_diff(x, y[0])


@pytest.mark.parametrize("gpu", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_bench(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    called = []
    seconds = testing.bench(lambda: called.append(0), num_warmups=2, num_tests=3, high_precision=gpu)
    assert len(called) == 5 and 0 <= seconds < 1
    assert refusal(testing.bench, print, num_tests=0) == "num_tests is 0; 1 or more is needed"


def test_bench_kineto_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(testing.bench_kineto, print, "gemm") == (
        "torch finds no CUDA device; bench_kineto needs one, and bench times calls without"
    )


@pytest.mark.gpu
def test_bench_kineto(tmp_path):
    x = torch.zeros(1 << 20, device="cuda")
    trace = tmp_path / "trace.json"
    seconds = testing.bench_kineto(x.sin, "sin", num_tests=3, trace_path=str(trace))
    assert 1e-6 < seconds < 1e-3 and "sin" in trace.read_text()
    assert len(testing.bench_kineto(x.cos, ("cos",), num_tests=3, flush_l2=False)) == 1


def test_mean_seconds():
    ran = [("memset", 9.0), ("gemm<64>", 1.0), ("memset", 9.0), ("gemm<64>", 2.0), ("gemm<128>", 6.0)]
    assert testing.mean_seconds(ran, "gemm<64>") == 1.5e-6
    assert testing.mean_seconds(ran, "gemm", several=True) == 3e-6
    assert refusal(testing.mean_seconds, ran, "gemm") == (
        "'gemm' is a part of 2 kernels' names, gemm<128>, gemm<64>; "
        "a part of one, or with_multiple_kernels=True, is needed"
    )
    assert refusal(testing.mean_seconds, ran, "mma") == (
        "'mma' is a part of no kernel's name; one of those that ran is needed: gemm<128>, gemm<64>, memset"
    )
