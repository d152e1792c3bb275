"""The scales in the layouts that kernels read."""

from __future__ import annotations

import torch
from gemm_ladder import arguments, checks
from gemm_ladder.arguments import SCALE_BLOCK, TMA_ALIGNMENT
from gemm_ladder.errors import InputError
from gemm_ladder.ref import layouts


def get_mn_major_tma_aligned_tensor(sf: torch.Tensor) -> torch.Tensor:
    """A's scales, "MN-major, TMA-aligned": m contiguous, the stride along k a multiple of 16 bytes.

    Args:
        sf: float32 [m, k / 128] or [groups, m, k / 128], of any strides.

    Returns:
        The same numbers with strides (1, align(m, 4)) or (align(m, 4) * k / 128, 1, align(m, 4)); `sf` itself
        where it has them. What is between m and align(m, 4) is not defined.

    Raises:
        InputError: another type, or another number of dimensions.
    """
    checks.same_device({"sf": sf})
    checks.dtype("sf", sf, torch.float32)
    if sf.dim() not in (2, 3):
        raise InputError(
            f"sf has shape {list(sf.shape)}; 2 dimensions, or 3 with groups, are needed: [m, k / 128]"
        )
    return checks.mn_major(sf.resolve_neg())


def get_col_major_tma_aligned_tensor(x: torch.Tensor) -> torch.Tensor:
    """get_mn_major_tma_aligned_tensor, as the first generation calls it."""
    return get_mn_major_tma_aligned_tensor(x)


def transform_sf_into_required_layout(
    sf: torch.Tensor,
    mn: int,
    k: int,
    recipe: tuple[int, ...],
    num_groups: int | None = None,
    is_sfa: bool | None = None,
    disable_ue8m0_cast: bool = False,
) -> torch.Tensor:
    """An operand's scales as the products take them without a conversion.

    Args:
        sf: float32 [(num_groups,) ceil(mn / gran_mn), ceil(k / gran_k)].
        mn, k: the operand's rows (m of A, n of B) and columns.
        recipe: what one scale covers, (gran_mn, gran_k); or (gran_m, gran_n, gran_k), of which `is_sfa`
            chooses: (1, 128) for A, (128, 128) for B.
        num_groups: of a grouped operand.
        is_sfa: whether they are A's; needed with a recipe of three.
        disable_ue8m0_cast: no matter: on Hopper scales stay float32.

    Returns:
        A's in the layout of get_mn_major_tma_aligned_tensor, B's contiguous; `sf` itself where it is so.

    Raises:
        InputError: another recipe, type or shape.
    """
    granularity = tuple(recipe)
    if len(granularity) == 3:
        if is_sfa is None:
            raise InputError(f"recipe is {recipe} without is_sfa; True for A's scales or False is needed")
        granularity = (granularity[0 if is_sfa else 1], granularity[2])
    if granularity not in ((1, SCALE_BLOCK), (SCALE_BLOCK, SCALE_BLOCK)):
        raise InputError(f"recipe is {recipe}; a scale for (1, 128) or for (128, 128) elements is needed")
    checks.same_device({"sf": sf})
    checks.dtype("sf", sf, torch.float32)
    needed = (arguments.ceil_div(mn, granularity[0]), arguments.ceil_div(k, granularity[1]))
    if num_groups is not None:
        needed = (num_groups, *needed)
    checks.shape("sf", sf, needed, f"for mn = {mn}, k = {k}, recipe {recipe} and num_groups {num_groups}")
    sf = sf.resolve_neg()
    return checks.mn_major(sf) if granularity[0] == 1 else sf.contiguous()


def get_tma_aligned_size(x: int, element_size: int) -> int:
    """`x` elements of element_size bytes (1, 2, 4, 8 or 16), rounded up to a multiple of 16 bytes.

    Raises:
        InputError: 16 bytes are not a whole number of such elements.
    """
    if element_size < 1 or TMA_ALIGNMENT % element_size:
        raise InputError(f"element_size is {element_size}; a divisor of {TMA_ALIGNMENT} is needed")
    return layouts.tma_aligned_size(x, element_size)


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return arguments.ceil_div(x, y)
