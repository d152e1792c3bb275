"""The products that training calls, by the names of both generations of DeepGEMM.

    d[m, n] = c[m, n] + sum over k of A[m, k] * sfa[m, k / 128] * B[n, k] * sfb[n, k / 128]

`gemm_ladder.fp8_gemm_nt` comes here with the recipe (1, 1, 128). CPU tensors go through a reference in
float64, rounded once to FP32; GPU tensors are queued on the current stream of their device. `operands` says
what is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from gemm_ladder import checks, settings
from gemm_ladder.arguments import FP32_N_MULTIPLE, K_MULTIPLE, SCALE_BLOCK
from gemm_ladder.calls import is_recipe
from gemm_ladder.checks import grouped
from gemm_ladder.errors import InputError
from gemm_ladder.ops import compiling, in_transform, run_uncompiled, seen
from gemm_ladder.training import operands, ops
from gemm_ladder.training.operands import RECIPE, CheckedCall

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def asks_for_this(recipe: object, recipe_a: object, recipe_b: object) -> bool:
    """Whether the recipes of `fp8_gemm_nt` say that both operands have a scale for each 1x128 run."""
    if is_recipe(recipe, RECIPE):
        return recipe_a is None and recipe_b is None
    return recipe is None and is_recipe(recipe_a, (1, SCALE_BLOCK)) and is_recipe(recipe_b, (1, SCALE_BLOCK))


def gemm(a: object, b: object, d: object, c: object = None) -> None:
    """`fp8_gemm_nt` with the recipe (1, 1, 128).

    Args:
        a: (A, sfa): float8_e4m3fn [m, k] and float32 [m, ceil(k / 128)].
        b: (B, sfb): float8_e4m3fn [n, k] and float32 [n, ceil(k / 128)].
        d: float32 [m, n], n a multiple of 4, with contiguous rows at multiples of 16 bytes.
        c: None: d is written. d itself: it is added to. Another float32 [m, n]: d = c + product.

    Raises:
        InputError: the arguments cannot be used; d is untouched.
        LaunchError: the launch was refused.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.
    """
    _dense(a, b, d, c)


def gemm_of_casts(a: Pair, b: Pair, d: torch.Tensor) -> None:
    """`gemm` of what `per_channel_group_quant_fp8` returned for two matrices of as many rows, one or more,
    into a new tensor. Most of what is checked of a call holds of these, and is not asked again."""
    (m, k), n = a[0].shape, b[0].shape[0]
    if k % K_MULTIPLE or n % FP32_N_MULTIPLE or compiling() or seen(d, *a, *b):
        return gemm(a, b, d)  # which refuses these sizes
    checks.runs_on(d.device)
    group = operands.Group(0, k, 0, 0)
    ops.run(CheckedCall((group,), a[0], b[0], a[1], b[1], d, None, m, n))


def wgrad_gemm_fp8_fp8_fp32_nt(lhs: Pair, rhs: Pair, out: torch.Tensor) -> None:
    """out += lhs @ rhs.T, with scales: a weight gradient, by its first-generation name.

    Args:
        lhs: (A, sfa). A is float8_e4m3fn [m, k], with contiguous rows at multiples of 16 bytes; k is a
            multiple of 16. sfa is float32 [m, ceil(k / 128)], one scale for each run of 128 elements of a
            row, or transposed, [ceil(k / 128), m], where that is another shape. Strides (1, align(m, 4)) of
            the first form, as get_mn_major_tma_aligned_tensor makes it, cost no copy.
        rhs: (B, sfb): float8_e4m3fn [n, k] and float32 [n, ceil(k / 128)], likewise.
        out: float32 [m, n], n a multiple of 4, with contiguous rows at multiples of 16 bytes; added to. Every
            sum is that of its old value and the product, rounded once.

    Raises:
        InputError: the arguments cannot be used; out is untouched.
        LaunchError: the launch was refused.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.

    Example:
        >>> import torch, gemm_ladder
        >>> a, b = (gemm_ladder.utils.per_token_cast_to_fp8(torch.randn(rows, 512)) for rows in (64, 96))
        >>> gradient = torch.zeros(64, 96)
        >>> gemm_ladder.wgrad_gemm_fp8_fp8_fp32_nt(a, b, gradient)
    """
    _dense(lhs, rhs, out, out, turned=True)


def k_grouped_fp8_gemm_nt_contiguous(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    ks: Sequence[int] | None = None,
    ks_tensor: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    recipe: Sequence[int] = RECIPE,
    compiled_dims: str = "mn",
    use_psum_layout: bool = False,
    epilogue: None = None,
    *,
    ks_cpu: Sequence[int] | None = None,
    grouped_layout: torch.Tensor | None = None,
) -> None:
    """d[g] = c[g] + a[g] @ b[g].T, with scales, for groups that differ in k: experts' weight gradients.

    Args:
        a: (A, sfa). A is float8_e4m3fn and contiguous: each group's [m, ks[g]], one after the other. sfa is
            float32 [m, sum(ks) / 128], the transpose of a contiguous tensor; other strides cost a copy.
        b: (B, sfb): each group's [n, ks[g]], and float32 [n, sum(ks) / 128].
        d: float32 [groups, m, n], n a multiple of 4, with contiguous rows at multiples of 16 bytes.
        ks, ks_cpu: two names of the k of each group, a list of multiples of 128 on the host. 0: the group's
            d becomes c, or zeros.
        ks_tensor, grouped_layout: two names of the same as int32 [groups] on the device. It is not needed; on
            a GPU its contents are looked at with GEMM_LADDER_CHECK=1 only.
        c: None: d is written. d itself: it is added to. Another float32 [groups, m, n]: d = c + product.
        recipe: (1, 1, 128).
        use_psum_layout, epilogue: False and None.
        compiled_dims: accepted for compatibility; it changes nothing.

    Raises:
        InputError: the arguments cannot be used; d is untouched.
        LaunchError: the launch was refused.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.

    Example:
        >>> import torch, gemm_ladder
        >>> d, ks = torch.empty(2, 64, 96), [128, 384]
        >>> def cast(rows):
        ...     groups = [gemm_ladder.utils.per_token_cast_to_fp8(torch.randn(rows, k)) for k in ks]
        ...     return torch.cat([x.flatten() for x, _ in groups]), torch.cat([sf.T for _, sf in groups]).T
        >>> gemm_ladder.k_grouped_fp8_gemm_nt_contiguous(cast(64), cast(96), d, ks)
    """
    if not is_recipe(recipe, RECIPE):
        raise InputError(f"recipe is {recipe!r}; {RECIPE} is needed")
    if use_psum_layout:
        raise InputError("use_psum_layout is True; False is needed: the k of each group in ks")
    if epilogue is not None:
        raise InputError(f"epilogue is {epilogue!r}; None is needed")
    on_device = _one("ks_tensor", ks_tensor, "grouped_layout", grouped_layout)
    _k_grouped(a, b, d, _one("ks", ks, "ks_cpu", ks_cpu), c, on_device)


def k_grouped_wgrad_gemm_fp8_fp8_fp32_nt(
    lhs: Pair, rhs: Pair, out: torch.Tensor, batch_sizes: Sequence[int]
) -> None:
    """`k_grouped_fp8_gemm_nt_contiguous` by its first-generation name, which adds to its output.

    Args:
        lhs: (A, sfa). A is float8_e4m3fn and contiguous: each group's [m, batch_sizes[g]], one after the
            other. sfa is float32 [sum over g of ceil(batch_sizes[g] / 128), m], or the transpose of that.
        rhs: (B, sfb), likewise with n in m's place.
        out: float32 [groups, m, n], n a multiple of 4, with contiguous rows at multiples of 16 bytes; added
            to.
        batch_sizes: the k of each group, multiples of 16.

    Errors: as `k_grouped_fp8_gemm_nt_contiguous`.
    """
    _k_grouped(lhs, rhs, out, batch_sizes, out, None, K_MULTIPLE, turned=True)


def _dense(lhs: object, rhs: object, d: object, c: object, turned: bool = False) -> None:
    if compiling() and in_transform():
        return run_uncompiled(_dense, lhs, rhs, d, c, turned)
    if (pairs := _seen(lhs, rhs, d, c)) is not None:
        return ops.call("fp8_gemm_nt_1d1d", *pairs, d, None if c is d else c, c is d, turned)
    ops.run(operands.dense(lhs, rhs, d, c, turned))


def _k_grouped(
    lhs: object,
    rhs: object,
    d: object,
    ks: object,
    c: object,
    on_device: object,
    multiple: int = SCALE_BLOCK,
    turned: bool = False,
) -> None:
    if compiling() and in_transform():
        return run_uncompiled(_k_grouped, lhs, rhs, d, ks, c, on_device, multiple, turned)
    if (pairs := _seen(lhs, rhs, d, c)) is not None:
        if not compiling():
            groups, _, _ = checks.sizes("D", cast(torch.Tensor, d), "groups", "m", "n")
            ks = operands.ks_of_groups(ks, groups, multiple)
        others = (ks, None if c is d else c, c is d, multiple, turned)
        return ops.call("k_grouped_fp8_gemm_nt_contiguous", *pairs, d, *others)
    call = operands.k_grouped(lhs, rhs, d, ks, c, multiple, turned)
    if on_device is not None:
        _check_ks_tensor(on_device, call)
    ops.run(call)


def _seen(lhs: object, rhs: object, d: object, c: object) -> tuple[object, ...] | None:
    """The matrices and scales of both pairs if the call goes through torch's dispatcher; otherwise None."""
    if not compiling():
        if not seen(d, c, *(x for pair in (lhs, rhs) if isinstance(pair, (tuple, list)) for x in pair)):
            return None
        operands.described(lhs, rhs, d, c)  # torch would refuse a wrong argument in its own words
    return checks.pair(lhs, "lhs", "(A, sfa)") + checks.pair(rhs, "rhs", "(B, sfb)")


def _check_ks_tensor(given: object, call: CheckedCall) -> None:
    tensor = checks.tensors({"ks_tensor": given})["ks_tensor"]
    checks.same_device({"D": call.d, "ks_tensor": tensor})
    checks.dtype("ks_tensor", tensor, torch.int32)
    checks.shape("ks_tensor", tensor, (len(call.groups),), f"one k for each of {len(call.groups)} groups")
    ks = [group.k for group in call.groups]
    looked_at = (settings.check_contents or not tensor.is_cuda) and not grouped.capturing(tensor.device)
    if looked_at and tensor.tolist() != ks:
        raise InputError(f"ks_tensor is {tensor.tolist()}; the same as ks, {ks}, is needed")


def _one(name: str, value: object, other: str, same: object) -> object:
    if value is not None and same is not None:
        raise InputError(f"{name} and {other} are both given; one, two names of one thing, is needed")
    return same if value is None else value
