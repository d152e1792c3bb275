"""The products, by the names of both generations of DeepGEMM's Python interface.

    out[m, n] = sum over k of A[m, k] * sfa[m, k / 128] * B[n, k] * sfb[n / 128, k / 128]

Every function writes into its output and returns None. With CPU tensors the result is the reference's, and it
is there when the call returns. With GPU tensors the call is queued on the current stream of the tensors'
device, whichever device is current. The first call on a machine for an n, a k and a range of m compiles a
kernel (seconds); later calls, those of other processes too, load it. A CUDA graph can capture a call whose
kernel was compiled before (`gemm_ladder.precompile`).

All functions raise InputError where the arguments cannot be used, before the output is touched, with one
sentence that says what was given and what is needed. The contents of m_indices and masked_m on a GPU are not
looked at, because that would wait for the GPU, unless GEMM_LADDER_CHECK=1 is in the environment when the
package is first used. `gemm_ladder.checks` has the rules in full.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from gemm_ladder import checks, on_cpu
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.production import fast_path
from gemm_ladder.settings import whole_number
from gemm_ladder.training import products as training

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]
Recipe: TypeAlias = tuple[int, ...] | None
# The innermost transform of torch.func that a call is inside of, or None. There tensors of torch's own class
# may stand for others: functionalize's have an address at which there is nothing.
_transform = torch._C._functorch.peek_interpreter_stack


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
) -> None:
    """d = a @ b.T, with scales, for one pair of matrices.

    Args:
        a: (A, sfa). A is float8_e4m3fn [m, k], contiguous. sfa is float32 [m, k / 128], one scale for each
            run of 128 elements of a row, with strides (1, align(m, 4)), as get_mn_major_tma_aligned_tensor
            makes it; other strides are accepted and cost a copy kernel in every call.
        b: (B, sfb). B is float8_e4m3fn [n, k], contiguous. sfb is float32 [ceil(n / 128), k / 128], one scale
            for each block of 128 x 128, contiguous or transposed.
        d: bfloat16 [m, n], contiguous; overwritten.
        c: None. (On Hopper an output in BF16 is written, not added to.)
        recipe, recipe_a, recipe_b: None, or (1, 128, 128), (1, 128) and (128, 128), which is the same. With
            the recipe (1, 1, 128) this is another product, which weight gradients need: sfb is [n, k / 128],
            d is float32, and c may be d or another float32 [m, n] (`gemm_ladder.training.products.gemm`).
        compiled_dims, disable_ue8m0_cast: accepted for compatibility; they change nothing.

    n is a multiple of 8, k a multiple of 128, and m may be 0. All addresses are multiples of 16 bytes, and d
    shares no memory with the other tensors.

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
    if c is not None or not (recipe is recipe_a is recipe_b is None):
        if training.asks_for_this(recipe, recipe_a, recipe_b):
            return training.gemm(a, b, d, c)
        _check_options(c, recipe, recipe_a, recipe_b)
    _dense(a, b, d)


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
    expected_m_for_psum_layout: int | None = None,
    *,
    m_indices: torch.Tensor | None = None,
) -> None:
    """d[i] = a[i] @ b[grouped_layout[i]].T, with scales: a mixture of experts whose rows lie in one matrix.

    Args:
        a: (A, sfa), as for `fp8_gemm_nt`: float8_e4m3fn [m, k] and float32 [m, k / 128].
        b: (B, sfb). B is float8_e4m3fn [groups, n, k], contiguous; sfb is float32 [groups, ceil(n / 128),
            k / 128], contiguous or with its last two dimensions transposed.
        d: bfloat16 [m, n], contiguous; overwritten.
        grouped_layout, m_indices: two names of one tensor, int32 [m], contiguous: the group of each row. All
            rows of a block of get_mk_alignment_for_contiguous_layout() rows belong to one group. Rows of
            padding, which are whole blocks or the last rows of a block, have -1. Whole blocks of padding are
            not read and become zeros in d; rows of padding after a group's are multiplied or become zeros.
        use_psum_layout: False.
        recipe, recipe_a, recipe_b: as for `fp8_gemm_nt`.
        compiled_dims, disable_ue8m0_cast, expected_m_for_psum_layout: accepted for compatibility; they change
            nothing.

    Sizes, addresses and errors: as for `fp8_gemm_nt`.

    Example:
        >>> import torch, gemm_ladder
        >>> a, sfa = gemm_ladder.utils.per_token_cast_to_fp8(torch.randn(256, 512))
        >>> experts = [gemm_ladder.utils.per_block_cast_to_fp8(torch.randn(256, 512)) for _ in range(2)]
        >>> b, sfb = (torch.stack(tensors) for tensors in zip(*experts))
        >>> d = torch.empty(256, 256, dtype=torch.bfloat16)
        >>> rows = torch.tensor([0, 1], dtype=torch.int32).repeat_interleave(128)
        >>> gemm_ladder.m_grouped_fp8_gemm_nt_contiguous((a, sfa), (b, sfb), d, rows)
    """
    if not (recipe is recipe_a is recipe_b is None):
        _check_options(None, recipe, recipe_a, recipe_b)
    if use_psum_layout:
        raise InputError("use_psum_layout is True; False is needed: a layout by indices, one for each row")
    _contiguous(a, b, d, grouped_layout, m_indices)


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
) -> None:
    """d[g, :masked_m[g]] = a[g, :masked_m[g]] @ b[g].T, with scales: experts with room for max_m rows each.

    Args:
        a: (A, sfa). A is float8_e4m3fn [groups, max_m, k], contiguous. sfa is float32 [groups, max_m,
            k / 128] with strides (align(max_m, 4) * k / 128, 1, align(max_m, 4)), as
            get_mn_major_tma_aligned_tensor makes it; other strides cost a copy kernel in every call.
        b: (B, sfb), as for `m_grouped_fp8_gemm_nt_contiguous`.
        d: bfloat16 [groups, max_m, n], contiguous. Only the rows that count are written.
        masked_m: int32 [groups], contiguous: how many of a group's rows count. The others are not read.
        expected_m: about what the mean of masked_m will be: a hint to choose the kernel by. No result depends
            on it.
        recipe, recipe_a, recipe_b: as for `fp8_gemm_nt`.
        compiled_dims, disable_ue8m0_cast: accepted for compatibility; they change nothing.

    Sizes, addresses and errors: as for `fp8_gemm_nt`; max_m and a group's count may be 0.

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
    if not (recipe is recipe_a is recipe_b is None):
        _check_options(None, recipe, recipe_a, recipe_b)
    _masked(a, b, d, masked_m, expected_m)


# Other names of the second generation. DeepGEMM takes FP4 operands by the last three, on other GPUs.
fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked
fp8_fp4_gemm_nt = fp8_gemm_nt
m_grouped_fp8_fp4_gemm_nt_contiguous = m_grouped_fp8_gemm_nt_contiguous
m_grouped_fp8_fp4_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked


def gemm_fp8_fp8_bf16_nt(lhs: Pair, rhs: Pair, out: torch.Tensor, disable_ue8m0_cast: bool = False) -> None:
    """`fp8_gemm_nt` by its first-generation name.

    Args:
        lhs: (A, sfa): float8_e4m3fn [m, k] and float32 [m, k / 128].
        rhs: (B, sfb): float8_e4m3fn [n, k] and float32 [ceil(n / 128), k / 128].
        out: bfloat16 [m, n]; overwritten.
        disable_ue8m0_cast: accepted for compatibility; it changes nothing.

    Strides, sizes, errors and an example: `fp8_gemm_nt`.
    """
    _dense(lhs, rhs, out)


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
        lhs: (A, sfa): float8_e4m3fn [m, k] and float32 [m, k / 128].
        rhs: (B, sfb): float8_e4m3fn [groups, n, k] and float32 [groups, ceil(n / 128), k / 128].
        out: bfloat16 [m, n]; overwritten.
        m_indices, grouped_layout: two names of one tensor, int32 [m]: the group of each row.
        disable_ue8m0_cast: accepted for compatibility; it changes nothing.

    Strides, sizes, errors and an example: `m_grouped_fp8_gemm_nt_contiguous`.
    """
    _contiguous(lhs, rhs, out, grouped_layout, m_indices)


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
        lhs: (A, sfa): float8_e4m3fn [groups, max_m, k] and float32 [groups, max_m, k / 128].
        rhs: (B, sfb): float8_e4m3fn [groups, n, k] and float32 [groups, ceil(n / 128), k / 128].
        out: bfloat16 [groups, max_m, n]; only the rows that count are written.
        masked_m: int32 [groups]: how many of a group's rows count.
        expected_m: about what the mean of masked_m will be: a hint.
        disable_ue8m0_cast: accepted for compatibility; it changes nothing.

    Strides, sizes, errors and an example: `m_grouped_fp8_gemm_nt_masked`.
    """
    _masked(lhs, rhs, out, masked_m, expected_m)


def _dense(lhs: object, rhs: object, out: object) -> None:
    if _transform() is None and _launched(fast_path.queue["dense"](lhs, rhs, out)):
        return
    if list in (type(lhs), type(rhs)):  # the fast path takes tuples
        return _dense(_tuple(lhs), _tuple(rhs), out)
    _run(checks.call("dense", lhs, rhs, out))


def _contiguous(lhs: object, rhs: object, out: object, grouped_layout: object, m_indices: object) -> None:
    if m_indices is None:
        m_indices = grouped_layout
    elif grouped_layout is not None:
        raise InputError(
            "m_indices and grouped_layout are both given; one, two names of one tensor, is needed"
        )
    plain = _transform() is None and not checks.check_contents
    if plain and _launched(fast_path.queue["contiguous"](lhs, rhs, out, m_indices)):
        return
    if list in (type(lhs), type(rhs)):
        return _contiguous(_tuple(lhs), _tuple(rhs), out, None, m_indices)
    _run(checks.call("contiguous", lhs, rhs, out, m_indices))


def _masked(lhs: object, rhs: object, out: object, masked_m: object, expected_m: object) -> None:
    if type(expected_m) is not int or expected_m < 0:
        expected_m = whole_number("expected_m", expected_m)
    plain = _transform() is None and not checks.check_contents
    if plain and _launched(fast_path.queue["masked"](lhs, rhs, out, masked_m, expected_m)):
        return
    if list in (type(lhs), type(rhs)):
        return _masked(_tuple(lhs), _tuple(rhs), out, masked_m, expected_m)
    _run(checks.call("masked", lhs, rhs, out, masked_m), expected_m)


def _tuple(pair: object) -> object:
    return tuple(pair) if isinstance(pair, list) else pair


def _launched(answer: fast_path.Queued) -> bool:
    """Whether the fast path has launched the call.

    Raises:
        LaunchError: the launch was refused.
    """
    if isinstance(answer, bytes):
        raise LaunchError(f"the production kernel: {answer.decode()}")
    return answer is None


def _run(call: checks.CheckedCall, expected_m: int = 0) -> None:
    """What the fast path does not do: a first call, one whose scales were converted, one on the CPU."""
    if not call.m:
        return
    if call.out.is_cuda:
        from gemm_ladder.production import launching  # here: a call on the CPU needs none of it

        launching.queue(call, expected_m)
    else:
        on_cpu.compute(call)


def _check_options(c: object, recipe: object, recipe_a: object, recipe_b: object) -> None:
    if c is not None:
        raise InputError("c is given; None is needed: an output in BF16 is written on Hopper, not added to")
    for name, given, needed in (
        ("recipe", recipe, (1, 128, 128)),
        ("recipe_a", recipe_a, (1, 128)),
        ("recipe_b", recipe_b, (128, 128)),
    ):
        if given is not None and not (isinstance(given, (tuple, list)) and tuple(given) == needed):
            raise InputError(f"{name} is {given!r}; {needed} or None is needed")
