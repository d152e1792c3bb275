"""The products, by the names of both generations of DeepGEMM's Python interface.

    out[m, n] = sum over k of A[m, k] * sfa[m, k / 128] * B[n, k] * sfb[n / 128, k / 128]

Every function writes into its output and returns None. With CPU tensors the result is the reference's, and it
is there when the call returns. With GPU tensors the call is queued on the current stream of the tensors'
device, whichever device is current. The first call on a machine for an n, a k and a range of m compiles a
kernel (seconds); later calls, those of other processes too, load it. A CUDA graph can capture a call whose
kernel was compiled before (`gemm_ladder.precompile`).

All functions raise InputError where the arguments cannot be used, before the output is touched, with one
sentence that says what was given and what is needed. The contents of m_indices, masked_m and grouped_layout
on a GPU are not looked at, because that would wait for the GPU, unless GEMM_LADDER_CHECK=1 is in the
environment when the package is first used. `gemm_ladder.checks` has the rules in full. In torch.compile and
torch.export a call becomes an operator of `gemm_ladder.ops`. A process that loads what torch.export has saved
imports `gemm_ladder` before. This module registers all operators, those of the casts and of scales' layouts,
too, but for those of layers.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from gemm_ladder import calls, checks
from gemm_ladder import layout as _layout  # noqa: F401 # it defines operators, as the next two do
from gemm_ladder.casts import functions as _casts  # noqa: F401
from gemm_ladder.errors import InputError
from gemm_ladder.training import products as training
from gemm_ladder.utils import math as _math  # noqa: F401

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]
Recipe: TypeAlias = tuple[int, ...] | None


def fp8_gemm_nt(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Recipe = None,
    recipe_a: Recipe = None,
    recipe_b: Recipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    alpha: float | None = None,
    epilogue: None = None,
) -> None:
    """d = a @ b.T, with scales, for one pair of matrices.

    Args:
        a: (A, sfa). A is float8_e4m3fn [m, k]. sfa is float32 [m, ceil(k / 128)], one scale for each run of
            128 elements of a row, with strides (1, align(m, 4)), as get_mn_major_tma_aligned_tensor makes it;
            other strides are accepted and cost a copy kernel in every call.
        b: (B, sfb). B is float8_e4m3fn [n, k]. sfb is float32 [ceil(n / 128), ceil(k / 128)], one scale for
            each block of 128 x 128, contiguous or transposed.
        d: bfloat16 [m, n]; overwritten.
        c: None. (On Hopper an output in BF16 is written, not added to.)
        recipe, recipe_a, recipe_b: None, or (1, 128, 128), (1, 128) and (128, 128), which is the same. With
            the recipe (1, 1, 128) this is another product, which weight gradients need: sfb is [n, k / 128],
            d is float32, and c may be d or another float32 [m, n] (`gemm_ladder.training.products.gemm`).
        compiled_dims, disable_ue8m0_cast: accepted for compatibility; they change nothing.
        alpha, epilogue: None.

    n is a multiple of 8 and k of 16; each of m, n and k may be 0. The elements of a row of A, B and d lie
    side by side, and the rows a multiple of 16 bytes apart. All addresses are multiples of 16 bytes, and d
    shares no memory with the other tensors. A, sfa and d may have more leading dimensions, such as [b, s, k]
    for m = b * s. Scales may also be bfloat16 or float8_e8m0fnu, which costs a conversion in every call.

    Raises:
        InputError: the arguments cannot be used; d is untouched.
        LaunchError: the launch was refused.
        gemm_ladder.build.ToolchainError, BuildError: the kernel could not be compiled.

    Example:
        >>> import torch, gemm_ladder
        >>> x, w = torch.randn(64, 512), torch.randn(256, 512)
        >>> a, sfa = gemm_ladder.utils.per_token_cast_to_fp8(x)
        >>> b, sfb = gemm_ladder.utils.per_block_cast_to_fp8(w)
        >>> d = torch.empty(64, 256, dtype=torch.bfloat16)
        >>> gemm_ladder.fp8_gemm_nt((a, gemm_ladder.get_mn_major_tma_aligned_tensor(sfa)), (b, sfb), d)
    """
    if not (
        c is None
        and recipe is None
        and recipe_a is None
        and recipe_b is None
        and alpha is None
        and epilogue is None
    ):
        if training.asks_for_this(recipe, recipe_a, recipe_b):
            calls.check_options(None, None, None, None, alpha, epilogue)
            return training.gemm(a, b, d, c)
        calls.check_options(c, recipe, recipe_a, recipe_b, alpha, epilogue)
    calls.dense(a, b, d)


def m_grouped_fp8_gemm_nt_contiguous(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    grouped_layout: torch.Tensor | None = None,
    recipe: Recipe = None,
    recipe_a: Recipe = None,
    recipe_b: Recipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
    expected_m_for_psum_layout: int | None = None,
    epilogue: None = None,
    *,
    m_indices: torch.Tensor | None = None,
) -> None:
    """d[i] = a[i] @ b[grouped_layout[i]].T, with scales: a mixture of experts whose rows lie in one matrix.

    Args:
        a: (A, sfa), as for `fp8_gemm_nt`: float8_e4m3fn [m, k] and float32 [m, ceil(k / 128)].
        b: (B, sfb). B is float8_e4m3fn [groups, n, k]; sfb is float32 [groups, ceil(n / 128), ceil(k / 128)],
            contiguous or with its last two dimensions transposed.
        d: bfloat16 [m, n]; overwritten.
        grouped_layout, m_indices: two names of one tensor, int32 [m], contiguous: the group of each row. All
            rows of a block of get_mk_alignment_for_contiguous_layout() rows belong to one group. Rows of
            padding, which are whole blocks or the last rows of a block, have -1. Whole blocks of padding are
            not read and become zeros in d; rows of padding after a group's are multiplied or become zeros.
        use_psum_layout: grouped_layout is int32 [groups] instead: the row behind each group's last one. The
            first group begins at row 0, each other one at the next multiple of the alignment. The rows from a
            group's end to there become zeros in d; what lies behind the last group's padding is left as it
            was.
        ensure_zero_padding: accepted for compatibility; the padding of a psum layout is always zeros.
        expected_m_for_psum_layout: about how many rows a group of a psum layout will have: a hint, as
            expected_m is for `m_grouped_fp8_gemm_nt_masked`. None: an equal share of m.
        recipe, recipe_a, recipe_b, epilogue: as for `fp8_gemm_nt`.
        compiled_dims, disable_ue8m0_cast: accepted for compatibility; they change nothing.

    Sizes, strides, addresses and errors: as for `fp8_gemm_nt`; the groups of B follow each other without
    gaps.

    Example:
        >>> import torch, gemm_ladder
        >>> a, sfa = gemm_ladder.utils.per_token_cast_to_fp8(torch.randn(256, 512))
        >>> experts = [gemm_ladder.utils.per_block_cast_to_fp8(torch.randn(256, 512)) for _ in range(2)]
        >>> b, sfb = (torch.stack(tensors) for tensors in zip(*experts))
        >>> d = torch.empty(256, 256, dtype=torch.bfloat16)
        >>> rows = torch.tensor([0, 1], dtype=torch.int32).repeat_interleave(128)
        >>> gemm_ladder.m_grouped_fp8_gemm_nt_contiguous((a, sfa), (b, sfb), d, rows)
    """
    if not (recipe is None and recipe_a is None and recipe_b is None and epilogue is None):
        calls.check_options(None, recipe, recipe_a, recipe_b, None, epilogue)
    if use_psum_layout:
        calls.psum(a, b, d, grouped_layout, m_indices, expected_m_for_psum_layout)
    else:
        calls.contiguous(a, b, d, grouped_layout, m_indices)


def m_grouped_fp8_gemm_nt_masked(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    recipe: Recipe = None,
    recipe_a: Recipe = None,
    recipe_b: Recipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    epilogue: None = None,
    *,
    enable_overlap: bool = False,
    max_block_n: int | None = None,
    signal: torch.Tensor | None = None,
) -> None:
    """d[g, :masked_m[g]] = a[g, :masked_m[g]] @ b[g].T, with scales: experts with room for max_m rows each.

    Args:
        a: (A, sfa). A is float8_e4m3fn [groups, max_m, k]. sfa is float32 [groups, max_m, ceil(k / 128)] with
            strides (align(max_m, 4) * ceil(k / 128), 1, align(max_m, 4)), as get_mn_major_tma_aligned_tensor
            makes it; other strides cost a copy kernel in every call.
        b: (B, sfb), as for `m_grouped_fp8_gemm_nt_contiguous`.
        d: bfloat16 [groups, max_m, n]. Only the rows that count are written.
        masked_m: int32 [groups], contiguous: how many of a group's rows count. The others are not read.
        expected_m: about what the mean of masked_m will be: a hint to choose the kernel by. No result depends
            on it.
        recipe, recipe_a, recipe_b, epilogue: as for `fp8_gemm_nt`.
        compiled_dims, disable_ue8m0_cast: accepted for compatibility; they change nothing.
        enable_overlap, max_block_n, signal: False and None. (In SGLang's DeepGEMM another kernel learns by
            them which tiles are done.)

    Sizes, strides, addresses and errors: as for `fp8_gemm_nt`; the groups of A, B and d follow each other
    without gaps, and max_m and a group's count may be 0.

    Example:
        >>> import torch, gemm_ladder
        >>> tokens = [gemm_ladder.utils.per_token_cast_to_fp8(torch.randn(64, 512)) for _ in range(2)]
        >>> experts = [gemm_ladder.utils.per_block_cast_to_fp8(torch.randn(256, 512)) for _ in range(2)]
        >>> a, sfa = (torch.stack(tensors) for tensors in zip(*tokens))
        >>> b, sfb = (torch.stack(tensors) for tensors in zip(*experts))
        >>> d = torch.empty(2, 64, 256, dtype=torch.bfloat16)
        >>> masked_m = torch.tensor([3, 64], dtype=torch.int32)
        >>> gemm_ladder.m_grouped_fp8_gemm_nt_masked((a, sfa), (b, sfb), d, masked_m, expected_m=32)
    """
    if not (recipe is None and recipe_a is None and recipe_b is None and epilogue is None):
        calls.check_options(None, recipe, recipe_a, recipe_b, None, epilogue)
    if enable_overlap or max_block_n is not None or signal is not None:
        raise InputError(
            "enable_overlap, max_block_n or signal is given; False and None are needed: no kernel here says "
            "which of its tiles are done"
        )
    calls.masked(a, b, d, masked_m, expected_m)


# Other names.


def gemm_fp8_fp8_bf16_nt(lhs: Pair, rhs: Pair, out: torch.Tensor, disable_ue8m0_cast: bool = False) -> None:
    """`fp8_gemm_nt` by its first-generation name.

    Args:
        lhs: (A, sfa): float8_e4m3fn [m, k] and float32 [m, ceil(k / 128)].
        rhs: (B, sfb): float8_e4m3fn [n, k] and float32 [ceil(n / 128), ceil(k / 128)].
        out: bfloat16 [m, n]; overwritten.
        disable_ue8m0_cast: accepted for compatibility; it changes nothing.

    Strides, sizes, errors and an example: `fp8_gemm_nt`.
    """
    calls.dense(lhs, rhs, out)


def m_grouped_gemm_fp8_fp8_bf16_nt_contiguous(
    lhs: Pair,
    rhs: Pair,
    out: torch.Tensor,
    m_indices: torch.Tensor | None = None,
    disable_ue8m0_cast: bool = False,
    *,
    grouped_layout: torch.Tensor | None = None,
) -> None:
    """`m_grouped_fp8_gemm_nt_contiguous` by its first-generation name.

    Args:
        lhs: (A, sfa): float8_e4m3fn [m, k] and float32 [m, ceil(k / 128)].
        rhs: (B, sfb): float8_e4m3fn [groups, n, k] and float32 [groups, ceil(n / 128), ceil(k / 128)].
        out: bfloat16 [m, n]; overwritten.
        m_indices, grouped_layout: two names of one tensor, int32 [m]: the group of each row.
        disable_ue8m0_cast: accepted for compatibility; it changes nothing.

    Strides, sizes, errors and an example: `m_grouped_fp8_gemm_nt_contiguous`.
    """
    calls.contiguous(lhs, rhs, out, grouped_layout, m_indices)


def m_grouped_gemm_fp8_fp8_bf16_nt_masked(
    lhs: Pair,
    rhs: Pair,
    out: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    disable_ue8m0_cast: bool = False,
) -> None:
    """`m_grouped_fp8_gemm_nt_masked` by its first-generation name.

    Args:
        lhs: (A, sfa): float8_e4m3fn [groups, max_m, k] and float32 [groups, max_m, ceil(k / 128)].
        rhs: (B, sfb): float8_e4m3fn [groups, n, k] and float32 [groups, ceil(n / 128), ceil(k / 128)].
        out: bfloat16 [groups, max_m, n]; only the rows that count are written.
        masked_m: int32 [groups]: how many of a group's rows count.
        expected_m: about what the mean of masked_m will be: a hint.
        disable_ue8m0_cast: accepted for compatibility; it changes nothing.

    Strides, sizes, errors and an example: `m_grouped_fp8_gemm_nt_masked`.
    """
    calls.masked(lhs, rhs, out, masked_m, expected_m)


def fp8_gemm_nn(a: Pair, b: Pair, d: torch.Tensor, *args: Any, **keywords: Any) -> None:
    """`fp8_gemm_nt` with (B, sfb) given transposed: B [k, n], sfb [ceil(k / 128), ceil(n / 128)].

    Like there, the elements of a row of B^T lie side by side, so B is the transpose of a matrix that does.
    The other arguments, errors and an example: `fp8_gemm_nt`.
    """
    fp8_gemm_nt(a, _transposed(b, "b"), d, *args, **keywords)


def fp8_gemm_tn(a: Pair, b: Pair, d: torch.Tensor, *args: Any, **keywords: Any) -> None:
    """`fp8_gemm_nt` with (A, sfa) given transposed, A [k, m] and sfa [ceil(k / 128), m], and (B, sfb), too.

    Strides: as for `fp8_gemm_nn`. The other arguments, errors and an example: `fp8_gemm_nt`.
    """
    fp8_gemm_nt(_transposed(a, "a"), _transposed(b, "b"), d, *args, **keywords)


def fp8_gemm_tt(a: Pair, b: Pair, d: torch.Tensor, *args: Any, **keywords: Any) -> None:
    """`fp8_gemm_nt` with (A, sfa) given transposed: A [k, m], sfa [ceil(k / 128), m].

    Strides: as for `fp8_gemm_nn`. The other arguments, errors and an example: `fp8_gemm_nt`.
    """
    fp8_gemm_nt(_transposed(a, "a"), b, d, *args, **keywords)


def m_grouped_fp8_gemm_nn_contiguous(a: Pair, b: Pair, d: torch.Tensor, *args: Any, **keywords: Any) -> None:
    """`m_grouped_fp8_gemm_nt_contiguous` with (B, sfb) given transposed: B [groups, k, n], sfb [groups,
    ceil(k / 128), ceil(n / 128)].

    Strides: as for `fp8_gemm_nn`. The other arguments, errors and an example:
    `m_grouped_fp8_gemm_nt_contiguous`.
    """
    m_grouped_fp8_gemm_nt_contiguous(a, _transposed(b, "b"), d, *args, **keywords)


def _transposed(pair: object, name: str) -> Pair:
    """Both tensors of a pair with their last two dimensions exchanged."""
    given = dict(
        zip(
            (f"the matrix of {name}", f"the scales of {name}"),
            checks.pair(pair, name, "of a matrix and its scales"),
            strict=True,
        )
    )
    matrix, scales = (
        checks.two_dimensions(each, tensor).mT for each, tensor in checks.tensors(given).items()
    )
    return matrix, scales


fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked
# DeepGEMM takes FP4 operands by these, on other GPUs.
fp8_fp4_gemm_nt = fp8_gemm_nt
fp8_fp4_gemm_nn = fp8_gemm_nn
fp8_fp4_gemm_tn = fp8_gemm_tn
fp8_fp4_gemm_tt = fp8_gemm_tt
m_grouped_fp8_fp4_gemm_nt_contiguous = m_grouped_fp8_gemm_nt_contiguous
m_grouped_fp8_fp4_gemm_nn_contiguous = m_grouped_fp8_gemm_nn_contiguous
m_grouped_fp8_fp4_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked
