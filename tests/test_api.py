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
from call_arguments import refusal
from cases import place
from gemm_ladder import api, checks, production, settings
from gemm_ladder.errors import InputError
from gemm_ladder.lab.operands import normal
from gemm_ladder.ref import gemm, metrics

DENSE = ("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt", "fp8_fp4_gemm_nt")


CONTIGUOUS = (
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_contiguous",
)


MASKED = (
    "m_grouped_fp8_gemm_nt_masked",
    "fp8_m_grouped_gemm_nt_masked",
    "m_grouped_fp8_fp4_gemm_nt_masked",
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
)


device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def python(code: str) -> str:
    """Run the code in a process of its own and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------------- the names


def test_import_costs_nothing():
    """An import loads neither torch nor NumPy, and using the package on the CPU does not initialise CUDA."""
    assert python(
        "import sys, gemm_ladder as gl; gl.rungs; print('torch' in sys.modules, 'numpy' in sys.modules); "
        "import torch; gl.get_mn_major_tma_aligned_tensor(torch.ones(3, 2)); gl.fp8_gemm_nt; "
        "print(torch.cuda.is_initialized())"
    ).split() == ["False", "False", "False"]


def test_every_way_to_import():
    """In a process of its own, because Python remembers imports."""
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
    """The stub lists every function of api.py, and tab completion shows exactly what the stub lists."""
    functions = {
        name
        for name, value in vars(api).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == api.__name__
    }
    assert {*DENSE, *CONTIGUOUS, *MASKED} <= functions
    assert functions <= {*gl.__all__} == {*dir(gl)}
    with pytest.raises(AttributeError, match="module 'gemm_ladder' has no attribute 'bf16_gemm_nt'"):
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
    """Rows of padding after a group's rows become zeros on the CPU, whatever A holds there."""
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
    """m = 0 and max_m = 0: the arguments are checked, and no kernel is launched."""
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


def test_what_runs_on_a_gpu(monkeypatch):
    """Calls whose tensors are on a GPU go to production.launching, after the checks, and their output is
    marked as written."""
    given, written = [], []
    kernels = types.ModuleType("gemm_ladder.production.launching")
    kernels.queue = lambda call, expected_m: given.append((call, expected_m))
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    monkeypatch.setattr(production, "launching", kernels, raising=False)

    def passed(kind, lhs, rhs, out, rows=None):
        on_gpu = types.SimpleNamespace(is_cuda=True)
        return checks.CheckedCall(kind, "a", "sfa", "b", "sfb", on_gpu, rows, m=lhs[0], n=2, k=3, groups=4)

    monkeypatch.setattr(checks, "call", passed)
    monkeypatch.setattr(torch.autograd.graph, "increment_version", written.append)
    rhs = (None, None)
    gl.fp8_gemm_nt((0, None), rhs, None)  # m = 0: nothing to launch
    gl.fp8_gemm_nt((1, None), rhs, None)
    gl.m_grouped_fp8_gemm_nt_contiguous((1, None), rhs, None, "rows")
    gl.m_grouped_fp8_gemm_nt_masked((1, None), rhs, None, "rows", 7)
    assert len(written) == 3
    assert [(call.kind, call.rows, expected_m) for call, expected_m in given] == [
        ("dense", None, 0),
        ("contiguous", "rows", 0),
        ("masked", "rows", 7),
    ]


# ---------------------------------------------------------------------------------------------- the refusals


OPTIONS = {
    "c": (
        {"c": torch.zeros(1)},
        "c is given; None is needed: an output in BF16 is written on Hopper, not added to",
    ),
    "recipe": ({"recipe": (1, 1, 64)}, "recipe is (1, 1, 64); (1, 128, 128) or None is needed"),
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
        "grouped_layout has shape [128]; [1] is needed: [groups] for groups = 1"
    )
    call = grouped_cases.masked([3], 4, 136, 256)
    operands = (call.lhs, call.rhs, call.out, call.rows)
    for expected_m, message in (
        (-1, "expected_m is -1; 0 or more is needed"),
        (2**63, "expected_m is 9223372036854775808; less than 2^31 is needed"),
        (2.5, "expected_m is of type float; an int is needed"),
        (torch.tensor(3), "expected_m is of type Tensor; an int is needed"),
    ):
        assert refusal(gl.m_grouped_fp8_gemm_nt_masked, *operands, expected_m) == message
    gl.m_grouped_fp8_gemm_nt_masked(*operands, np.int64(3))
    call.check(exact=True)


@pytest.mark.parametrize(
    ("n", "k", "message"),
    [(132, 256, "n is 132; a multiple of 8 is needed"), (136, 200, "k is 200; a multiple of 16 is needed")],
)
def test_sizes(n, k, message):
    placed = place(normal(np.random.default_rng(0), 5, n, k))
    assert refusal(gl.fp8_gemm_nt, placed.lhs, placed.rhs, placed.out) == message
    assert placed.untouched()


@pytest.mark.usefixtures("settings_restored")
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
    """On a GPU they are checked only if that was asked for, and not while a CUDA graph is captured."""
    rows = torch.tensor([5, 0], dtype=torch.int32, device="cuda")
    call = grouped_cases.masked([3, 2], 4, 136, 256, "cuda")
    assert checks.call("masked", call.lhs, call.rhs, call.out, rows)
    monkeypatch.setattr(settings, "check_contents", True)
    assert "masked_m[0] is 5" in refusal(checks.call, "masked", call.lhs, call.rhs, call.out, rows)
    call = grouped_cases.contiguous([128, 128], 136, 256, "cuda")
    call.rows[3] = 1
    assert "m_indices[3] is 1" in refusal(checks.call, "contiguous", call.lhs, call.rhs, call.out, call.rows)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert checks.call("contiguous", call.lhs, call.rhs, call.out, call.rows)


def test_contents_are_asked_for_by_the_environment():
    code = "from gemm_ladder import settings; print(settings.check_contents)"
    assert python(f"import os; os.environ['GEMM_LADDER_CHECK'] = '1'; {code}") == "True"
    assert python(f"import os; os.environ['GEMM_LADDER_CHECK'] = '0'; {code}") == "False"
