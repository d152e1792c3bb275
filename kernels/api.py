"""The products, by the names of both generations of DeepGEMM's Python interface.

    out[m, n] = sum over k of A[m, k] * sfa[m, k / 128] * B[n, k] * sfb[n / 128, k / 128]

    lhs, a       (A, sfa): float8_e4m3fn [m, k]; float32 [m, k / 128], best as
                 get_mn_major_tma_aligned_tensor makes it: another layout costs a copy kernel in every call
    rhs, b       (B, sfb): float8_e4m3fn [n, k] or [groups, n, k]; float32 [(groups,) ceil(n / 128), k / 128]
    out, d       bfloat16 [m, n], overwritten
    m_indices, grouped_layout
                 int32 [m], the contiguous layout: the group of each row, one for all rows of a block of
                 get_mk_alignment_for_contiguous_layout() rows; -1 for rows of padding, whole blocks or the
                 last rows of a block. A block of padding is not read and its rows of `out` become zeros; the
                 rows of padding after a group's are multiplied or become zeros.
    masked_m     int32 [groups], the masked layout: A is [groups, max_m, k], `out` [groups, max_m, n], and
                 masked_m[g] of a group's rows count. The others are not read and in `out` left as they were.
    expected_m   about what masked_m's mean will be: a hint, no result depends on it
    c            None: `out` is not added to
    recipe, recipe_a, recipe_b
                 None, or what they have to be: (1, 128, 128), (1, 128), (128, 128)
    compiled_dims, disable_ue8m0_cast, expected_m_for_psum_layout
                 taken, and no matter: kernels are compiled for n and k, and Hopper's scales are float32
    use_psum_layout
                 False

n is a multiple of 8, k of 128; m, max_m and a group's rows may be 0. Layouts in full: `gemm_ladder.checks`.
Each returns None. With CPU tensors the result is the reference's, and there when the call returns. With GPU
tensors the call is queued on the current stream of their device, whichever device is current; a CUDA graph
can capture it if its kernel was compiled before (`precompile`). The first call on a machine for an n and k
compiles (seconds); later ones, those of other processes too, load.

All raise InputError where the arguments cannot be used, before `out` is touched, with one sentence that says
what was given and what is needed. Of m_indices and masked_m on a GPU the contents are not looked at, for that
would wait for the GPU, unless GEMM_LADDER_CHECK=1 is in the environment when the package is first used.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TypeAlias

import torch
from gemm_ladder import calls, on_cpu, queueing
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.settings import whole_number

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
) -> None:
    """d = a @ b.T (module docstring)."""
    if not (c is recipe is recipe_a is recipe_b is None):
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
    """d[i] = a[i] @ b[m_indices[i]].T, with m_indices by either of its names (module docstring)."""
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
    """d[g, :masked_m[g]] = a[g, :masked_m[g]] @ b[g].T (module docstring)."""
    if not (recipe is recipe_a is recipe_b is None):
        _check_options(None, recipe, recipe_a, recipe_b)
    _masked(a, b, d, masked_m, expected_m)


fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked


def gemm_fp8_fp8_bf16_nt(lhs: Pair, rhs: Pair, out: torch.Tensor, disable_ue8m0_cast: bool = False) -> None:
    """fp8_gemm_nt, as the first generation calls it."""
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
    """m_grouped_fp8_gemm_nt_contiguous, as the first generation calls it."""
    _contiguous(lhs, rhs, out, grouped_layout, m_indices)


def m_grouped_gemm_fp8_fp8_bf16_nt_masked(
    lhs: Pair,
    rhs: Pair,
    out: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    disable_ue8m0_cast: bool = False,
) -> None:
    """m_grouped_fp8_gemm_nt_masked, as the first generation calls it."""
    _masked(lhs, rhs, out, masked_m, expected_m)


def _dense(lhs: object, rhs: object, out: object) -> None:
    if _done(queueing.dense(lhs, rhs, out)):
        return
    operands = calls.dense(lhs, rhs, out)
    if operands[5]:  # m
        (_on_gpu() if operands[4].is_cuda else on_cpu).dense(*operands)


def _contiguous(lhs: object, rhs: object, out: object, grouped_layout: object, m_indices: object) -> None:
    if m_indices is None:
        m_indices = grouped_layout
    elif grouped_layout is not None:
        raise InputError(
            "m_indices and grouped_layout are both given; one, two names of one tensor, is needed"
        )
    if not calls.check_contents and _done(queueing.contiguous(lhs, rhs, out, m_indices)):
        return
    operands = calls.contiguous(lhs, rhs, out, m_indices)
    if operands[6]:  # m
        (_on_gpu() if operands[4].is_cuda else on_cpu).contiguous(*operands)


def _masked(lhs: object, rhs: object, out: object, masked_m: object, expected_m: object) -> None:
    if type(expected_m) is not int or expected_m < 0:
        expected_m = whole_number("expected_m", expected_m)
    if not calls.check_contents and _done(queueing.masked(lhs, rhs, out, masked_m, expected_m)):
        return
    operands = calls.masked(lhs, rhs, out, masked_m)
    if operands[6]:  # max_m
        (_on_gpu() if operands[4].is_cuda else on_cpu).masked(*operands, expected_m)


def _done(queued: queueing.Queued) -> bool:
    """Whether nothing is left to do.

    Raises:
        LaunchError: the launch was refused.
    """
    if queued:
        raise LaunchError(f"the production kernel: {queued.decode()}")
    return queued is None


@functools.cache
def _on_gpu() -> ModuleType:
    """The kernels: imported by the first call that needs them."""
    from gemm_ladder import production

    return production


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
