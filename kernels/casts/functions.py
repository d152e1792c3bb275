"""The casts that users call, with scales in the layout that the products take, and the operators of torch
behind them.

    codes, scales = silu_and_mul_per_token_group_quant_fp8(hidden)
    gemm_ladder.fp8_gemm_nt((codes, scales), weight, out)

A scale belongs to 128 numbers of a row ("per token"), to 128 x 128 ("per block") or to 128 of a column ("per
channel"). `gemm_ladder.ref.fp8` defines the codes and scales bit by bit, those of zeros, NaN and infinities
too, and `gemm_ladder.ref.activations` what is computed before: a result has these bits on a Hopper GPU and on
the CPU. On another GPU, or where a kernel cannot be built, torch's own operators compute SiLU and RMSNorm,
which may differ in the last bit. The first call of a kernel compiles it. A CUDA graph can capture calls whose
kernel is loaded, after a call or `gemm_ladder.layers.precompile`; others raise LaunchError there.

What masked_m, psum_m and ks hold is looked at on the CPU, and on a GPU only with GEMM_LADDER_CHECK=1, as that
waits for the GPU. Otherwise numbers that make no sense leave a part of the result uninitialised, and nothing
else.

A program of torch.export takes any number of groups, rows and columns, each of which may be dynamic, alone or
with others; NOTES.md beside this file has a table. An example's dynamic sizes have to be 2 or more.
"""

from __future__ import annotations

import functools

import torch
from gemm_ladder import ops, settings
from gemm_ladder.casts import eager, operands, plans
from gemm_ladder.casts.kernel import KERNELS, Before, Kind
from gemm_ladder.casts.operands import Pair

__all__ = [
    "per_block_quant_fp8",
    "per_channel_group_quant_fp8",
    "per_token_group_quant_fp8",
    "rms_norm_per_block_quant_fp8",
    "rms_norm_per_channel_group_quant_fp8",
    "rms_norm_per_token_group_quant_fp8",
    "silu_and_mul_per_block_quant_fp8",
    "silu_and_mul_per_channel_group_quant_fp8",
    "silu_and_mul_per_token_group_quant_fp8",
]


def per_token_group_quant_fp8(
    x: torch.Tensor,
    use_ue8m0: bool = False,
    rows: torch.Tensor | None = None,
    masked_m: torch.Tensor | None = None,
    psum_m: torch.Tensor | None = None,
) -> Pair:
    """The cast for A: a scale for each run of 128 of a row.

    Args:
        x: float32, bfloat16 or float16 [m, k] or [groups, m, k], of any strides.
        use_ue8m0: round each scale up to a power of two; it stays a float32.
        rows: int32 [m'], contiguous: gather. Row i of the result is row rows[i] of the matrix x, as a mixture
            of experts needs them in the contiguous or the psum layout. Where rows[i] is no row of x, such as
            -1 for padding, it is that of a row of zeros.
        masked_m: int32 [groups], contiguous, for the masked layout: of group g only the first masked_m[g]
            rows are cast. The others' codes and scales are not initialised.
        psum_m: int32 [groups], contiguous, for the psum layout, as m_grouped_fp8_gemm_nt_contiguous takes it:
            the rows of the result that belong to a group are cast. The codes and scales of others may not be
            initialised; with `rows`, neither may those of row i where rows[i] is no row of x.

    Returns:
        float8_e4m3fn of x's shape (with `rows` [m', k]), contiguous, and its scales, float32 [(groups,) m,
        ceil(k / 128)], MN-major and TMA-aligned: strides (align(m, 4) * ceil(k / 128), 1, align(m, 4)).

    Raises:
        InputError: a tensor is not of these types, shapes and devices.
    """
    return _call("per_token", "nothing", x, None, 0.0, use_ue8m0, rows, masked_m, None, psum_m)


def silu_and_mul_per_token_group_quant_fp8(
    x: torch.Tensor,
    use_ue8m0: bool = False,
    rows: torch.Tensor | None = None,
    masked_m: torch.Tensor | None = None,
    psum_m: torch.Tensor | None = None,
) -> Pair:
    """SiLU of x's first half times its second half, in FP32, and the cast for A of that.

    Args:
        x: float32, bfloat16 or float16 [m, 2 k] or [groups, m, 2 k], of any strides.
        use_ue8m0, rows, masked_m, psum_m: as for `per_token_group_quant_fp8`.

    Returns:
        float8_e4m3fn [(groups,) m, k] and its scales, as `per_token_group_quant_fp8`.

    Raises:
        InputError: as there, or x has an odd number of columns.
    """
    return _call("per_token", "silu_and_mul", x, None, 0.0, use_ue8m0, rows, masked_m, None, psum_m)


def rms_norm_per_token_group_quant_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    use_ue8m0: bool = False,
    rows: torch.Tensor | None = None,
    masked_m: torch.Tensor | None = None,
    psum_m: torch.Tensor | None = None,
) -> Pair:
    """x / sqrt(mean of its row's squares + eps) * weight, in FP32, and the cast for A of that.

    Args:
        x: float32, bfloat16 or float16 [m, k] or [groups, m, k], of any strides.
        weight: [k], of x's type.
        eps: 0 or larger.
        use_ue8m0, rows, masked_m, psum_m: as for `per_token_group_quant_fp8`.

    Returns:
        As `per_token_group_quant_fp8`.

    Raises:
        InputError: as there, or weight or eps is not as above.
    """
    return _call("per_token", "rms_norm", x, weight, eps, use_ue8m0, rows, masked_m, None, psum_m)


def per_block_quant_fp8(x: torch.Tensor, use_ue8m0: bool = False, rows: torch.Tensor | None = None) -> Pair:
    """The cast for B: a scale for each block of 128 x 128.

    Args:
        x: float32, bfloat16 or float16 [n, k] or [groups, n, k], of any strides.
        use_ue8m0, rows: as for `per_token_group_quant_fp8`.

    Returns:
        float8_e4m3fn of x's shape, contiguous, and its scales, float32 [(groups,) ceil(n / 128),
        ceil(k / 128)], contiguous.

    Raises:
        InputError: as `per_token_group_quant_fp8`.
    """
    return _call("per_block", "nothing", x, None, 0.0, use_ue8m0, rows, None, None)


def silu_and_mul_per_block_quant_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, rows: torch.Tensor | None = None
) -> Pair:
    """SiLU of x's first half times its second half, in FP32, and the cast for B of that.

    Args:
        x: float32, bfloat16 or float16 [n, 2 k] or [groups, n, 2 k], of any strides.
        use_ue8m0, rows: as for `per_token_group_quant_fp8`.

    Returns:
        As `per_block_quant_fp8`, of [(groups,) n, k].

    Raises:
        InputError: as there, or x has an odd number of columns.
    """
    return _call("per_block", "silu_and_mul", x, None, 0.0, use_ue8m0, rows, None, None)


def rms_norm_per_block_quant_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    use_ue8m0: bool = False,
    rows: torch.Tensor | None = None,
) -> Pair:
    """x / sqrt(mean of its row's squares + eps) * weight, in FP32, and the cast for B of that.

    x is read twice, as a block has parts of 128 rows.

    Args:
        x: float32, bfloat16 or float16 [n, k] or [groups, n, k], of any strides.
        weight, eps: as for `rms_norm_per_token_group_quant_fp8`.
        use_ue8m0, rows: as for `per_token_group_quant_fp8`.

    Returns:
        As `per_block_quant_fp8`.

    Raises:
        InputError: as there, or weight or eps is not as above.
    """
    return _call("per_block", "rms_norm", x, weight, eps, use_ue8m0, rows, None, None)


def per_channel_group_quant_fp8(
    x: torch.Tensor,
    use_ue8m0: bool = False,
    rows: torch.Tensor | None = None,
    transposed: bool = True,
    ks: torch.Tensor | None = None,
) -> Pair:
    """The cast for weight gradients: a scale for each run of 128 of a column.

    Args:
        x: float32, bfloat16 or float16 [k, n] or [groups, k, n], of any strides; k counts the tokens.
        use_ue8m0, rows: as for `per_token_group_quant_fp8`.
        transposed: give the result as the products with FP32 output take it, with the tokens side by side.
        ks: int32 [groups], contiguous, on x's device: give it as the products that are grouped along K take
            it. Group g has the next ks[g] rows of the matrix [k, n], a multiple of 128.

    Returns:
        If transposed, float8_e4m3fn [(groups,) n, k], rows align(k, 16) apart, and its scales, float32
        [(groups,) n, ceil(k / 128)], MN-major and TMA-aligned. Otherwise the same numbers as
        [(groups,) k, n], contiguous, and [(groups,) ceil(k / 128), n], rows align(n, 4) apart. With ks the
        codes are one-dimensional: the [n, ks[g]] of the groups, each contiguous, one after the other.

    Raises:
        InputError: as `per_token_group_quant_fp8`.
    """
    kind: Kind = "per_channel_turned" if transposed else "per_channel"
    return _call(kind, "nothing", x, None, 0.0, use_ue8m0, rows, None, ks)


def silu_and_mul_per_channel_group_quant_fp8(
    x: torch.Tensor,
    use_ue8m0: bool = False,
    rows: torch.Tensor | None = None,
    transposed: bool = True,
    ks: torch.Tensor | None = None,
) -> Pair:
    """SiLU of x's first half times its second half, in FP32, and the cast for weight gradients of that.

    Args:
        x: float32, bfloat16 or float16 [k, 2 n] or [groups, k, 2 n], of any strides.
        use_ue8m0, rows, transposed, ks: as for `per_channel_group_quant_fp8`.

    Returns:
        As `per_channel_group_quant_fp8`.

    Raises:
        InputError: as there, or x has an odd number of columns.
    """
    kind: Kind = "per_channel_turned" if transposed else "per_channel"
    return _call(kind, "silu_and_mul", x, None, 0.0, use_ue8m0, rows, None, ks)


def rms_norm_per_channel_group_quant_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    use_ue8m0: bool = False,
    rows: torch.Tensor | None = None,
    transposed: bool = True,
    ks: torch.Tensor | None = None,
) -> Pair:
    """x / sqrt(mean of its row's squares + eps) * weight, in FP32, and the cast for weight gradients of that.

    x is read twice, as a scale belongs to parts of 128 rows.

    Args:
        x: float32, bfloat16 or float16 [k, n] or [groups, k, n], of any strides; k counts the tokens.
        weight: [n], of x's type.
        eps: as for `rms_norm_per_token_group_quant_fp8`.
        use_ue8m0, rows, transposed, ks: as for `per_channel_group_quant_fp8`.

    Returns:
        As `per_channel_group_quant_fp8`.

    Raises:
        InputError: as there, or weight or eps is not as above.
    """
    kind: Kind = "per_channel_turned" if transposed else "per_channel"
    return _call(kind, "rms_norm", x, weight, eps, use_ue8m0, rows, None, ks)


def run(call: operands.CheckedCast, mn_major: bool) -> operands.Results:
    """Do a checked cast, by its kernel where that can run, else by torch's operators.

    Args:
        mn_major: as for operands.results().
    """
    out = operands.results(call, mn_major)
    if out.codes.numel() and not _done_by_kernel(call, out):
        eager.run(call, out)
    return out


def _done_by_kernel(call: operands.CheckedCast, out: operands.Results) -> bool:
    """Have the kernel do a cast, if it can."""
    if not call.x.is_cuda:
        return False
    from gemm_ladder.casts import launching  # here: a cast on the CPU needs none of it

    if launching.why_not(call.kernel, call.x.device):
        return False
    launching.run(call, out)
    return True


def _call(kind: Kind, before: Before, *given: object) -> Pair:
    """A cast, without a history for autograd; through its operator where torch compiles, somebody wants to
    see it, or a transform of torch.func would give the results no memory."""
    if ops.compiling():
        if ops.in_transform():
            return ops.run_uncompiled(_call, kind, before, *given)
    elif ops.transform() is not None:
        operands.check(kind, before, *given)  # refuses tensors that stand for others there
    elif not ops.seen(*given):
        return _compute(kind, before, *given)
    detached = [one.detach() if isinstance(one, torch.Tensor) else one for one in given]
    found: Pair = getattr(torch.ops.gemm_ladder, _operator(kind, before))(*detached)
    return found


def _compute(kind: Kind, before: Before, *given: object) -> Pair:
    key = plans.key_of(kind, before, *given)
    if (done := plans.run(key, *given)) is not None:
        return done
    call = operands.check(kind, before, *given)
    if settings.check_contents or not call.x.is_cuda:
        operands.contents(call)
    out = run(call, True)
    found = operands.as_returned(call, out)
    if call.x.is_cuda:
        plans.add(key, call, out, found)
    return found


def _fake(kind: Kind, before: Before, *given: object) -> Pair:
    """The results without memory."""
    call = operands.described(kind, before, *given, divided=ops.symbolic_ceil_div)
    codes, scales = operands.as_returned(call, operands.results(call, True, ops.symbolic_ceil_div))
    if call.ks is not None and before == "silu_and_mul":
        # Their number is m times a symbol of half of x's columns, which torch could not find in it.
        codes = codes.new_empty(ops.symbolic_ceil_div(call.m * call.k, 1))
    return codes, scales


def _operator(kind: Kind, before: Before) -> str:
    prefix = "" if before == "nothing" else f"{before}_"
    group = "" if kind == "per_block" else "_group"
    return f"{prefix}{kind.removesuffix('_turned')}{group}_quant_fp8" + "_transposed" * kind.endswith(
        "_turned"
    )


def _define(kind: Kind, before: Before) -> None:
    """Register the operator of a cast."""

    ops.define(
        f"{_operator(kind, before)}(Tensor x, Tensor? weight, float eps, bool use_ue8m0, Tensor? rows, "
        "Tensor? masked_m, Tensor? ks, Tensor? psum_m=None) -> (Tensor, Tensor)",
        functools.partial(_compute, kind, before),
        functools.partial(_fake, kind, before),
    )


for _kind, _before in sorted({(kernel.kind, kernel.before) for kernel in KERNELS}):
    _define(_kind, _before)
