"""The casts' kernels, bit by bit, on the emulator and on a GPU; their functions, their operators."""

from __future__ import annotations

import itertools
import warnings

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from building import disassembler_or_skip
from cast_cases import CODE, DEVICE, Placed, columns, expected, numbers, spaced, weight_for
from gemm_ladder import lab, launch
from gemm_ladder.casts import eager, functions, launching, operands, plans
from gemm_ladder.casts.kernel import INPUTS, KERNELS, KINDS, Before, Kernel, Kind
from gemm_ladder.checks import grouped
from gemm_ladder.errors import BuildError, InputError, LaunchError
from gemm_ladder.sass import disassembly
from grouped_cases import ends_of
from torch._subclasses import FakeTensorMode

CASTS = sorted({(kernel.kind, kernel.before) for kernel in KERNELS})
BF16 = torch.bfloat16
# Of the result. Whole tiles, tiles that end inside one, rows of no whole pieces of 8, one number.
SHAPES = ((1, 128), (128, 256), (130, 264), (20, 7), (137, 131), (1, 1))


def place(
    kind: Kind,
    before: Before,
    x: torch.Tensor,
    k: int,
    mn_major: bool = True,
    **given: object,
) -> Placed:
    return Placed.of(kind, before, x, mn_major, **weight_for(before, k, x.dtype, x.device.type), **given)


@pytest.mark.parametrize("dtype", INPUTS, ids=str)
@pytest.mark.parametrize(("kind", "before"), CASTS)
def test_shapes(kind: Kind, before: Before, dtype: torch.dtype, machine: str) -> None:
    for number, (m, k) in enumerate(SHAPES):
        x = numbers((m, columns(before, k)), dtype).to(DEVICE[machine])
        cast = place(kind, before, x, k, mn_major=number % 2 == 0, use_ue8m0=number % 3 == 1)
        cast.run(seed=number)
        cast.check()


@pytest.mark.parametrize(("kind", "before"), CASTS)
def test_strides(kind: Kind, before: Before, machine: str) -> None:
    """Rows apart, an address that is no multiple of 16 bytes, columns apart, columns contiguous."""
    m, k = 20, 144
    for options in (
        {"gap": 8, "offset": 8},
        {"gap": 3},
        {"offset": 1},
        {"column": 2},
        {"turned": True, "gap": 1},
    ):
        x = spaced(numbers((m, columns(before, k)), BF16), DEVICE[machine], **options)
        cast = place(kind, before, x, k)
        cast.run()
        cast.check()
    column = numbers((5, 1), BF16).expand(5, columns(before, k)).to(DEVICE[machine])  # a stride of 0
    cast = place(kind, before, column, k)
    cast.run()
    cast.check()


@pytest.mark.parametrize(("kind", "before"), CASTS)
def test_groups(kind: Kind, before: Before, machine: str) -> None:
    for (groups, m, k), gap in itertools.product(((3, 130, 136), (2, 5, 100)), (0, 8)):
        x = spaced(numbers((groups, m, columns(before, k)), BF16), DEVICE[machine], gap)
        cast = place(kind, before, x, k)
        cast.run()
        cast.check()


@pytest.mark.parametrize(("kind", "before"), CASTS)
def test_gather(kind: Kind, before: Before, machine: str) -> None:
    """Rows in any order, repeated, and indices that are no row's: a row of zeros, and no access outside."""
    device, k = DEVICE[machine], 136
    x = spaced(numbers((12, columns(before, k)), BF16), device, gap=8)
    rows = np.random.default_rng(0).integers(0, 12, 140).astype(np.int32)
    rows[::7] = np.resize([-1, 12, 2**31 - 1, -(2**31), 13], len(rows[::7]))
    cast = place(kind, before, x, k, rows=torch.from_numpy(rows).to(device))
    cast.run()
    cast.check()
    empty = place(kind, before, x[:0], k, rows=torch.tensor([0, -1], dtype=torch.int32, device=device))
    empty.run()
    empty.check()


@pytest.mark.parametrize("before", ["nothing", "silu_and_mul", "rms_norm"])
def test_grouped_along_k(before: Before, machine: str) -> None:
    """Each group's codes are a matrix of their own. Counts may be nonsense: nothing outside is written."""
    m, k = 640, 136
    x = numbers((m, columns(before, k)), BF16).to(DEVICE[machine])
    for ks in ([256, 0, 128, 256], [128, 200, -5, 2**31 - 1, 128], [], [-(2**31), 127, 384]):
        cast = place(
            "per_channel_turned", before, x, k, ks=torch.tensor(ks, dtype=torch.int32, device=x.device)
        )
        cast.run()
        cast.check()


@pytest.mark.parametrize("before", ["nothing", "silu_and_mul", "rms_norm"])
def test_masked(before: Before, machine: str) -> None:
    """Rows that do not count are neither read, which would be NaN, nor written; counts may be nonsense."""
    groups, m, k = 4, 18, 136
    x = numbers((groups, m, columns(before, k)), BF16).to(DEVICE[machine])
    counts = torch.tensor([0, 7, 18, 1000], dtype=torch.int32, device=x.device)
    cast = place("per_token", before, x, k, masked_m=counts)
    cast.run()
    cast.check()


@pytest.mark.parametrize(("kind", "before"), CASTS)
def test_many_runs_and_long_rows(kind: Kind, before: Before, machine: str) -> None:
    """What a thread does for several runs, where there are more than 256 for an SM; RMSNorm of rows that it
    holds in one, two and four pieces, and of rows that it reads twice."""
    for m, k in ((37, 1024), (2, 2048), (2, 2056), (3, 6152), (2, 8208)):
        x = numbers((m, columns(before, k)), BF16).to(DEVICE[machine])
        cast = place(kind, before, x, k)
        cast.run(num_sms=1)
        cast.check()


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_a_large_matrix(dtype: torch.dtype, machine: str) -> None:
    """Per token, with so many runs that neighbouring ones are of other rows: groups that end inside of what a
    warp casts, with counts and without, rows of broken runs, gaps between rows; seven rows have no such
    kernel."""
    counts = torch.tensor([0, 9, 500], dtype=torch.int32, device=DEVICE[machine])
    for shape, gap, given in (
        ((67, 2048), 0, {}),
        ((3, 43, 1024), 16, {}),
        ((3, 43, 1024), 8, {"masked_m": counts}),
        ((250, 400), 0, {"use_ue8m0": True}),
        ((130, 7, 144), 8, {}),
    ):
        x = spaced(numbers(shape, dtype), DEVICE[machine], gap=gap, offset=8)
        cast = place("per_token", "nothing", x, shape[-1], **given)
        for seed in range(2):
            cast.run(seed=seed, num_sms=1)
            cast.check()


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_silu_of_many_whole_runs(kind: Kind, dtype: torch.dtype, machine: str) -> None:
    """Whose next run, or tile, is loaded while one is cast: rows of one run with gaps between them, and rows
    of three, which divide no step of a CTA's. The last tile has one row, two, or all."""
    for m, k, gap in ((257, 128, 16), (130, 384, 0), (256, 384, 8)):
        x = spaced(numbers((m, 2 * k), dtype), DEVICE[machine], gap=gap, offset=8)
        cast = place(kind, "silu_and_mul", x, k, use_ue8m0=m == 257)
        for seed in range(3):
            cast.run(seed=seed, num_sms=1)
            cast.check()


@pytest.mark.parametrize("said", [[3, 0, 30, 1000, -1, 17], [0, 0, 0, 0, 0, 1], [0] * 6, None], ids=str)
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_silu_of_groups_of_whole_runs(dtype: torch.dtype, said: list[int] | None, machine: str) -> None:
    """Whose rows that count follow each other; counts may be nonsense."""
    x = spaced(numbers((6, 30, 512), dtype), DEVICE[machine], gap=16, offset=8)
    counts = None if said is None else torch.tensor(said, dtype=torch.int32, device=x.device)
    cast = place("per_token", "silu_and_mul", x, 256, masked_m=counts)
    for seed in range(2):
        cast.run(seed=seed, num_sms=1)
        cast.check()


@pytest.mark.parametrize(
    "ends",
    [
        *(ends_of(counts) for counts in ([5, 0, 172, 0, 30], [128, 1, 128, 129], [0] * 7 + [1], [520], [0])),
        ends_of([1] + [0] * 290 + [130, 3] + [0] * 9),
        *([-5, 700, 3, 100], [2**31 - 1, -(2**31)], [500, 3, 500], [200] + [3] * 600 + [500]),
    ],
    ids=str,
)
def test_the_psum_layout(ends: list[int], machine: str) -> None:
    """SiLU of whole runs, and a gather, write the rows that belong to groups, and no others; the padding of x
    is not read, which would be NaN. Ends may be nonsense."""
    m = 520
    end = torch.tensor(ends, dtype=torch.int32, device=DEVICE[machine])
    x = spaced(numbers((m, 512), BF16), DEVICE[machine], gap=16, offset=8)
    of_silu = place("per_token", "silu_and_mul", x, 256, psum_m=end)
    x[~torch.from_numpy(of_silu.needed())] = torch.nan
    rows = torch.arange(m, dtype=torch.int32)[torch.randperm(m, generator=torch.Generator().manual_seed(0))]
    rows[~torch.from_numpy(of_silu.needed())] = -1
    tokens = numbers((m, 384), BF16).to(DEVICE[machine])
    gather = place("per_token", "nothing", tokens, 384, psum_m=end, rows=rows.to(DEVICE[machine]))
    for cast in (of_silu, gather):
        for seed in range(2):
            cast.run(seed=seed, num_sms=1)
            cast.check()
        assert (cast.out.codes[0].view(torch.uint8)[~torch.from_numpy(cast.needed())] == CODE).all()


@pytest.mark.parametrize(("kind", "before"), [one for one in CASTS if one[0] == "per_token"])
def test_the_psum_layout_by_other_kernels(kind: Kind, before: Before, machine: str) -> None:
    """Which cast the padding, too: of FP32, of broken runs, of few rows, of more groups than a table has room
    for; with a gather and without."""
    few, many = [2, 130], ends_of([2] + [0] * 2100)
    for m, k, dtype, said in (
        *((3, 256, BF16, [2]), (600, 136, BF16, few), (300, 128, torch.float32, few)),
        (300, 128, BF16, many),
    ):
        ends = torch.tensor(said, dtype=torch.int32, device=DEVICE[machine])
        x = numbers((m, columns(before, k)), dtype).to(DEVICE[machine])
        rows = torch.arange(-1, m - 1, dtype=torch.int32, device=x.device)
        for given in ({}, {"rows": rows}):
            cast = place(kind, before, x, k, psum_m=ends, **given)
            cast.run(num_sms=1)
            cast.check()


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_rms_norm_of_many_whole_rows(dtype: torch.dtype, machine: str) -> None:
    """Whose next row is loaded while one is cast, by one warp, by two and by four, each with all its pieces,
    with one fewer, and with some lanes' alone; some with gaps between the rows, and fewer rows than thread
    blocks. Rows of no whole runs, and fewer than six an SM, have another kernel."""
    for m, k, gap in (
        (6, 256, 0),
        (35, 384, 8),
        (33, 1024, 0),
        (18, 1408, 16),
        (34, 2048, 0),
        (17, 2176, 16),
        (10, 3456, 0),
        (9, 4096, 0),
        (6, 4224, 8),
        (9, 5120, 8),
        (6, 7168, 0),
        (6, 8064, 0),
        (13, 5128, 8),
        (5, 4096, 0),
    ):
        x = spaced(numbers((m, k), dtype), DEVICE[machine], gap=gap, offset=8)
        cast = place("per_token", "rms_norm", x, k, use_ue8m0=m == 9)
        for seed in range(2):
            cast.run(seed=seed, num_sms=1)
            cast.check()


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_rms_norm_of_tiles_of_many_whole_rows(dtype: torch.dtype, machine: str) -> None:
    """Whose roots are found as there."""
    for m, k, gap in ((35, 384, 8), (18, 1408, 0), (10, 3456, 16), (6, 7168, 0)):
        x = spaced(numbers((m, k), dtype), DEVICE[machine], gap=gap, offset=8)
        cast = place("per_block", "rms_norm", x, k)
        cast.run(num_sms=1)
        cast.check()


@pytest.mark.parametrize("name", functions.__all__)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_functions(name: str, device: str) -> None:
    """Their results are those of the reference, in the layouts that the products take."""
    function = getattr(gl, name)
    silu, block, channel = "silu" in name, "block" in name, "channel" in name
    x = numbers((2, 20, 272 if silu else 136), BF16).to(device)
    others = (torch.ones(136, dtype=BF16, device=device),) if "rms_norm" in name else ()
    for given in (x, x[0]):
        codes, scales = function(given, *others)
        kind: Kind = "per_block" if block else "per_channel_turned" if channel else "per_token"
        before: Before = "silu_and_mul" if silu else "rms_norm" if others else "nothing"
        call = operands.check(kind, before, given, *(*others, 1e-6)[: 2 * len(others)])
        want_codes, want_scales = expected(call)
        want_scales = want_scales.swapaxes(1, 2) if channel else want_scales
        if given.dim() == 2:
            want_codes, want_scales = want_codes[0], want_scales[0]
        np.testing.assert_array_equal(codes.view(torch.uint8).cpu().numpy(), want_codes)
        np.testing.assert_array_equal(scales.cpu().numpy(), want_scales)
        if not block:
            assert gl.get_mn_major_tma_aligned_tensor(scales).data_ptr() == scales.data_ptr()
        assert codes.stride(-1) == 1 and codes.stride(-2) % 8 == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_results_are_operands(device: str) -> None:
    """Of the dense product, the weight gradient and the contiguous layout, without a conversion."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(rows, 272, generator=generator).to(device) for rows in (96, 128))
    out = torch.empty(96, 128, dtype=BF16, device=device)
    gl.fp8_gemm_nt(gl.per_token_group_quant_fp8(x), gl.per_block_quant_fp8(w), out)
    assert gl.calc_diff(out, x @ w.T) < 1e-3
    dy = torch.randn(96, 128, generator=generator).to(device)
    gradient = torch.empty(128, 272, device=device)
    pairs = gl.per_channel_group_quant_fp8(dy), gl.per_channel_group_quant_fp8(x)
    gl.fp8_gemm_nt(*pairs, gradient, recipe=(1, 1, 128))
    assert gl.calc_diff(gradient, dy.T @ x) < 1e-3
    ks = [256, 0, 128]
    tokens, others = (torch.randn(384, n, generator=generator).to(device) for n in (128, 144))
    sums = torch.zeros(3, 128, 144, device=device)
    counts = torch.tensor(ks, dtype=torch.int32, device=device)
    pairs = (gl.per_channel_group_quant_fp8(one, ks=counts) for one in (tokens, others))
    gl.k_grouped_fp8_gemm_nt_contiguous(*pairs, sums, ks, counts, c=sums)
    expected = [one.T @ other for one, other in zip(tokens.split(ks), others.split(ks), strict=True)]
    assert gl.calc_diff(sums, torch.stack(expected)) < 1e-3
    rows = torch.full((256,), -1, dtype=torch.int32, device=device)
    rows[:50] = torch.arange(50, 0, -1)
    rows[128:140] = torch.arange(12)
    experts = torch.stack([w, 2 * w])
    out = torch.empty(256, 128, dtype=BF16, device=device)
    groups = torch.arange(256, device=device, dtype=torch.int32) // 128
    lhs = gl.per_token_group_quant_fp8(x, rows=rows)
    gl.m_grouped_fp8_gemm_nt_contiguous(lhs, gl.per_block_quant_fp8(experts), out, groups)
    assert gl.calc_diff(out[:50], x[rows[:50].long()] @ w.T) < 1e-3
    assert gl.calc_diff(out[128:140], x[:12] @ (2 * w).T) < 1e-3
    assert not out[50:128].any() and not out[140:].any()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", [functions._operator(*cast) for cast in CASTS])
def test_operators(name: str, device: str) -> None:
    x = torch.randn(20, 272, generator=torch.Generator().manual_seed(0)).to(device)
    weight = torch.ones(272, device=device) if "rms_norm" in name else None
    rows = torch.tensor([3, -1, 5], dtype=torch.int32, device=device)
    operator = getattr(torch.ops.gemm_ladder, name).default
    cases = [(x, weight, 1e-6, True, None, None, None), (x, weight, 1e-6, False, rows, None, None)]
    if "per_token" in name:
        # All rows: the others' results are not initialised, and here two calls' results are compared.
        counts = torch.tensor([10, 10], dtype=torch.int32, device=device)
        cases.append((x.view(2, 10, 272), weight, 1e-6, False, None, counts, None))
        cases.append((x, weight, 1e-6, False, None, None, None, counts[:1] * 2))
    if name.endswith("_transposed"):
        ks = torch.tensor([128, 0, 128], dtype=torch.int32, device=device)
        cases.append((x.repeat(13, 1)[:256], weight, 1e-6, False, None, None, ks))
    for arguments in cases:
        found = torch.library.opcheck(operator, arguments)
        assert set(found.values()) == {"SUCCESS"} and len(found) >= 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_inside_of_a_transform(device: str) -> None:
    """Of torch.func, which makes new tensors there ones without memory: what it does not differentiate is
    cast as elsewhere."""
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(device)
    codes, scales = gl.per_token_group_quant_fp8(x)

    def used(y: torch.Tensor) -> torch.Tensor:
        inside = gl.per_token_group_quant_fp8(x)
        assert torch.equal(inside[1], scales)
        return (y * inside[0].float()).sum()

    assert torch.equal(torch.func.grad(used)(torch.ones_like(x)), codes.float())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_torch_sees_the_functions(device: str) -> None:
    """Compiled, profiled, and without memory."""
    x = torch.randn(20, 272, generator=torch.Generator().manual_seed(0)).to(device)

    def used(x: torch.Tensor) -> torch.Tensor:
        codes, scales = gl.silu_and_mul_per_token_group_quant_fp8(x * 2)
        return codes.float() * scales.repeat_interleave(128, 1)[:, :136]

    torch._dynamo.reset()
    for given in (x, x.clone().requires_grad_()):
        found = torch.compile(used, backend="aot_eager", fullgraph=True)(given)
        assert torch.equal(found, used(x)) and not found.requires_grad and not used(given).requires_grad
    with torch.profiler.profile() as profile:
        codes, scales = gl.silu_and_mul_per_token_group_quant_fp8(x)
    names = [one.key for one in profile.key_averages()]
    assert "gemm_ladder::silu_and_mul_per_token_group_quant_fp8" in names
    with FakeTensorMode() as mode:
        fake = gl.silu_and_mul_per_token_group_quant_fp8(mode.from_tensor(x))
    for one, other in zip(fake, (codes, scales), strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def test_silu_and_norm_are_torchs() -> None:
    """Up to rounding: the reference is what models compute."""
    x, weight = torch.randn(40, 512), torch.randn(256)
    gate, up = x.chunk(2, 1)
    call = operands.check("per_token", "silu_and_mul", x)
    torch.testing.assert_close(eager._numbers(call)[0], torch.nn.functional.silu(gate) * up)
    call = operands.check("per_token", "rms_norm", gate, weight, 1e-5)
    norm = torch.nn.functional.rms_norm(gate, (256,), weight, 1e-5)
    torch.testing.assert_close(eager._numbers(call)[0], norm)


ARITHMETIC = """
#include "cast_numbers.cuh"
__global__ void arithmetic(const float* x, float* scales, float* inverses, float* of_x, int count) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const Scale scale = scale_of(__float_as_uint(x[i]), false);
        scales[i] = scale.value, inverses[i] = scale.inverse, of_x[i] = inverse_of(x[i]);
    }
}
"""


@pytest.mark.parametrize("exponent", [114, 127, 200, 252])
def test_divisions_are_rounded_once(exponent: int, machine: str) -> None:
    """The kernels' branch-free quotients and reciprocals, on a GPU of every mantissa."""
    mantissas = np.arange(0, 2**23, 1 if machine == "gpu" else 2**11 - 1, dtype=np.uint32)
    x = torch.from_numpy((mantissas | np.uint32(exponent << 23)).view(np.float32)).to(DEVICE[machine])
    outs = [torch.zeros_like(x) for _ in range(3)]
    lab.run(ARITHMETIC, x, *outs, len(x), grid=256 if machine == "gpu" else 2, block=256)
    scales, inverses, of_x = (out.cpu().numpy() for out in outs)
    numbers = x.cpu().numpy()
    np.testing.assert_array_equal(of_x, np.float32(1) / numbers)
    np.testing.assert_array_equal(scales, np.maximum(numbers, np.float32(1e-4)) / np.float32(448))
    np.testing.assert_array_equal(inverses, np.float32(1) / scales)


X = torch.ones(4, 6)
INT = torch.zeros(4, dtype=torch.int32)


def freed(x: torch.Tensor) -> torch.Tensor:
    """A tensor whose storage is empty."""
    x.untyped_storage().resize_(0)
    return x


REFUSED = {
    "x is torch.int32 [4]; a float32, bfloat16 or float16 matrix, or three dimensions": lambda: (
        gl.per_token_group_quant_fp8(INT)
    ),
    "x is of type ndarray; a torch.Tensor is needed": lambda: gl.per_block_quant_fp8(X.numpy()),
    "x has 5 columns; an even number, for gates": lambda: gl.silu_and_mul_per_block_quant_fp8(X[:, :5]),
    "weight has shape [4]; [6] is needed": lambda: gl.rms_norm_per_token_group_quant_fp8(X, X[:, 0]),
    "weight is bfloat16; float32 is needed": lambda: gl.rms_norm_per_token_group_quant_fp8(
        X, X[0].bfloat16()
    ),
    "weight is of type NoneType; a torch.Tensor is needed": lambda: gl.rms_norm_per_token_group_quant_fp8(
        X, None
    ),
    "eps is nan; a number, 0 or larger, that FP32 can hold, is needed": lambda: (
        gl.rms_norm_per_token_group_quant_fp8(X, X[0], float("nan"))
    ),
    "eps is 1e+39; a number, 0 or larger, that FP32 can hold, is needed": lambda: (
        gl.rms_norm_per_token_group_quant_fp8(X, X[0], 1e39)
    ),
    "eps is of type NoneType; an int or a float is needed": lambda: gl.rms_norm_per_token_group_quant_fp8(
        X, X[0], None
    ),
    "eps is of type bool; an int or a float is needed": lambda: gl.rms_norm_per_block_quant_fp8(
        X, X[0], True
    ),
    "eps is an int of more than 20 digits; a number, 0 or larger": lambda: gl.rms_norm_per_block_quant_fp8(
        X, X[0], 10**5000
    ),
    "use_ue8m0 is of type Tensor; a bool is needed": lambda: gl.silu_and_mul_per_block_quant_fp8(X, X[0]),
    "x has a storage of 0 bytes; 96, for all of its elements": lambda: gl.per_token_group_quant_fp8(
        freed(X.clone())
    ),
    "x has a storage of 0 bytes; 48, for all of its elements": lambda: gl.per_block_quant_fp8(
        freed(torch._neg_view(torch.ones(2, 6)))
    ),
    "weight has a storage of 0 bytes; 44, for all of its elements": lambda: (
        gl.rms_norm_per_token_group_quant_fp8(X, freed(torch.ones(12)[::2]))
    ),
    "rows is int64; int32 is needed": lambda: gl.per_channel_group_quant_fp8(X, rows=INT.long()),
    "rows has strides (2,); contiguous rows": lambda: gl.per_token_group_quant_fp8(X, rows=INT[::2]),
    "rows is a lazily negated view; the numbers": lambda: gl.per_token_group_quant_fp8(
        X, rows=torch._neg_view(INT)
    ),
    "x has shape [1, 4, 6]; 2 dimensions, [m, k], are needed": lambda: gl.per_token_group_quant_fp8(
        X[None], rows=INT
    ),
    "masked_m has shape [4]; [2] is needed": lambda: gl.per_token_group_quant_fp8(
        X.view(2, 2, 6), masked_m=INT
    ),
    "masked_m[1] is 3; a number from 0 to max_m = 2 is needed": lambda: gl.per_token_group_quant_fp8(
        X.view(2, 2, 6), masked_m=torch.tensor([0, 3], dtype=torch.int32)
    ),
    "psum_m[1] is 3; a row from 4, where group 1 begins, to m = 4 is needed": lambda: (
        gl.per_token_group_quant_fp8(X, psum_m=torch.tensor([1, 3], dtype=torch.int32))
    ),
    "x has shape [2, 2, 6]; 2 dimensions, [m, k]": lambda: gl.silu_and_mul_per_token_group_quant_fp8(
        X.view(2, 2, 6), psum_m=INT
    ),
    "psum_m is int64; int32": lambda: gl.per_token_group_quant_fp8(X, psum_m=INT.long()),
    "psum_m is given for a cast that is not per token": lambda: torch.ops.gemm_ladder.per_block_quant_fp8(
        X, None, 0.0, False, None, None, None, INT
    ),
    "ks[1] is 200; a multiple of 128 from 0 to 128, the rows that are left": lambda: (
        gl.per_channel_group_quant_fp8(torch.ones(256, 6), ks=torch.tensor([128, 200], dtype=torch.int32))
    ),
    "ks[0] is 384; a multiple of 128 from 0 to 256": lambda: gl.silu_and_mul_per_channel_group_quant_fp8(
        torch.ones(256, 6), ks=torch.tensor([384], dtype=torch.int32)
    ),
    "masked_m is given for a cast that is not per token": lambda: torch.ops.gemm_ladder.per_block_quant_fp8(
        X.view(2, 2, 6), None, 0.0, False, None, INT[:2], None
    ),
    "ks is given for codes that are not transposed; transposed=True": lambda: gl.per_channel_group_quant_fp8(
        X, transposed=False, ks=INT
    ),
    "there are 4 rows; with ks a multiple of 128 is needed": lambda: gl.per_channel_group_quant_fp8(
        X, ks=INT
    ),
    "x is on cpu and rows on meta; one device": lambda: gl.per_token_group_quant_fp8(X, rows=INT.to("meta")),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals(sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        REFUSED[sentence]()
    assert str(refused.value).startswith(sentence)


def test_more_runs_than_an_index_can_count() -> None:
    x = torch.ones(1, 1).expand(2**30, 300)
    with pytest.raises(InputError, match=r"^x has 3221225472 runs of 128 numbers; at most 2\^31 - 1 are"):
        gl.per_token_group_quant_fp8(x)


@pytest.mark.gpu
def test_utils_use_the_kernels() -> None:
    """One kernel a call, and bits of the reference, that torch's operators give as well."""
    x = numbers((300, 520), BF16).cuda()
    for kind in ("per_token", "per_block", "per_channel"):
        cast = getattr(gl.utils, f"{kind}_cast_to_fp8")
        cast(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            codes, scales = cast(x)
            torch.cuda.synchronize()
        kernels = [one.key for one in profile.key_averages() if "fp8_cast" in one.key]
        assert len(kernels) == 1, kernels
        assert codes.is_contiguous() and scales.is_contiguous()
        call = operands.check(kind, "nothing", x)
        by_torch = operands.results(call, mn_major=False)
        eager.run(call, by_torch)
        assert torch.equal(codes.view(torch.uint8), by_torch.codes[0].view(torch.uint8))
        np.testing.assert_array_equal(scales.cpu(), by_torch.scales[0].cpu())


@pytest.mark.gpu
def test_captured_casts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a CUDA graph: refused where the kernel is not loaded, and not done by torch's operators."""
    monkeypatch.setattr(launching, "_libraries", {})
    monkeypatch.setattr(plans, "_plans", {})
    x = torch.randn(70, 300, device="cuda")
    given, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
    refused = "fp8_cast_per_token_fp32 is not loaded; the same call, or"
    with pytest.raises(LaunchError, match=refused), torch.cuda.graph(torch.cuda.CUDAGraph()):
        gl.per_token_group_quant_fp8(given)
    expected = gl.per_token_group_quant_fp8(x)
    with torch.cuda.graph(graph):
        found = gl.per_token_group_quant_fp8(given)
    given.copy_(x)
    graph.replay()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.float(), other.float())


def test_a_kernel_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's operators do its work; a warning says so once."""
    kernel, cuda = Kernel("per_token", "nothing", BF16), torch.device("cuda", 0)

    def broken(kernel: Kernel, target: str) -> None:
        raise BuildError("no compiler", "")

    monkeypatch.setattr(Kernel, "compile", broken)
    monkeypatch.setattr(launching, "_libraries", {})
    monkeypatch.setattr(launch, "is_hopper", lambda device: True)
    monkeypatch.setattr(grouped, "capturing", lambda device: False)
    with pytest.warns(UserWarning, match=r"cannot be built, and torch's own operators do its work: no comp"):
        assert launching.why_not(kernel, cuda)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert launching.why_not(kernel, cuda) == f"{kernel.name} could not be built"


@pytest.mark.slow
@pytest.mark.parametrize("before", ["silu_and_mul", "rms_norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_fp32_is_spilled(kind: Kind, before: Before) -> None:
    """Its pieces take twice as many registers."""
    disassembler_or_skip()
    for name, used in disassembly.resources(Kernel(kind, before, torch.float32).compile("cuda").log).items():
        assert (used.stack_frame, used.spill_stores, used.spill_loads) == (0, 0, 0), name


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [one for one in KERNELS if one.dtype == BF16], ids=lambda one: one.name)
def test_machine_code(kernel: Kernel) -> None:
    """Nothing is spilled, and where rows lie at multiples of 16 bytes they are loaded so."""
    disassembler_or_skip()
    built = kernel.compile("cuda")
    for name, used in disassembly.resources(built.log).items():
        assert (used.stack_frame, used.spill_stores, used.spill_loads) == (0, 0, 0), name
    wide = []
    for name, instructions in disassembly.disassemble(built.path).items():
        opcodes = [one.opcode for one in instructions]
        in_pieces = "LDG.E.128" in opcodes
        assert in_pieces != ("LDG.E.U16" in opcodes), name
        if "row_roots" in name:
            continue  # it stores a number a row
        wide.append(in_pieces)
        stored = (
            "STG.E.128" if kernel.kind == "per_channel_turned" else "STG.E.64" if in_pieces else "STG.E.U8"
        )
        assert stored in opcodes, name
    assert wide.count(False) == 1 and wide.count(True) >= 1


def test_kinds_have_names() -> None:
    assert len({kernel.name for kernel in KERNELS}) == len(KERNELS) == 3 * 3 * len(KINDS)
