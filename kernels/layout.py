"""Converting scales to the layouts that the kernels read."""

from __future__ import annotations

import torch
from gemm_ladder import checks, ops, scales
from gemm_ladder.arguments import SCALE_BLOCK, TMA_ALIGNMENT, ceil_div
from gemm_ladder.errors import InputError
from gemm_ladder.ref import layouts
from gemm_ladder.settings import whole_number

__all__ = [
    "ceil_div",
    "get_col_major_tma_aligned_tensor",
    "get_mn_major_tma_aligned_packed_ue8m0_tensor",
    "get_mn_major_tma_aligned_tensor",
    "get_tma_aligned_size",
    "transform_sf_into_required_layout",
]


def get_mn_major_tma_aligned_tensor(sf: torch.Tensor) -> torch.Tensor:
    """A's scales, "MN-major, TMA-aligned": m contiguous, the stride along k a multiple of 16 bytes.

    Args:
        sf: float32 [m, k / 128] or [groups, m, k / 128], of any strides.

    Returns:
        The same numbers with strides (1, align(m, 4)) or (align(m, 4) * k / 128, 1, align(m, 4)), in the
        memory of `sf` if it has them. The padding between m and align(m, 4) is not initialised.

    Raises:
        InputError: another type, or another number of dimensions.
    """
    if ops.compiling() or ops.seen(sf):
        if not ops.compiling():
            _described(sf)
        elif ops.in_transform():
            return ops.run_uncompiled(get_mn_major_tma_aligned_tensor, sf)
        found: torch.Tensor = torch.ops.gemm_ladder.get_mn_major_tma_aligned_tensor(sf)
        return found
    return _mn_major(sf)


def _described(sf: torch.Tensor) -> None:
    """Refuse what is no tensor of scales, by what can be said without its memory."""
    _scales(sf)
    checks.in_no_transform("sf", sf)
    if sf.dim() not in (2, 3):
        raise InputError(
            f"sf has shape {list(sf.shape)}; 2 dimensions, or 3 with groups, are needed: [m, k / 128]"
        )


def _mn_major(sf: torch.Tensor) -> torch.Tensor:
    _described(sf)
    checks.has_memory("sf", sf)
    found = scales.mn_major(sf.resolve_neg())
    strides = scales.mn_major_strides(found.shape)
    # Strides of dimensions of size 1 matter to nothing but a caller who looks at them.
    return found if found.stride() == strides else found.as_strided(found.shape, strides)


def _new_mn_major(sf: torch.Tensor) -> torch.Tensor:
    """As the function above, but never in the memory of `sf`, as an operator promises."""
    found = _mn_major(sf)
    if found.untyped_storage().data_ptr() != sf.untyped_storage().data_ptr():
        return found
    return torch.empty_strided(found.shape, found.stride(), dtype=found.dtype, device=found.device).copy_(
        found
    )


def _fake_mn_major(sf: torch.Tensor) -> torch.Tensor:
    return sf.new_empty_strided(sf.shape, scales.mn_major_strides(sf.shape, ops.symbolic_ceil_div))


ops.define("get_mn_major_tma_aligned_tensor(Tensor sf) -> Tensor", _new_mn_major, _fake_mn_major)


def get_col_major_tma_aligned_tensor(x: torch.Tensor) -> torch.Tensor:
    """`get_mn_major_tma_aligned_tensor` by its first-generation name."""
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
        recipe: the elements that one scale covers, (gran_mn, gran_k): (1, 128) for A, (128, 128) for B. Or
            (gran_m, gran_n, gran_k), of which `is_sfa` selects two.
        num_groups: how many groups a grouped operand has.
        is_sfa: whether the scales are A's; needed with a recipe of three numbers.
        disable_ue8m0_cast: accepted for compatibility; on Hopper scales stay float32.

    Returns:
        A's scales in the layout of get_mn_major_tma_aligned_tensor, B's contiguous; `sf` itself if it has
        that layout.

    Raises:
        InputError: the recipe, the type or the shape is another.
    """
    mn, k = whole_number("mn", mn), whole_number("k", k)
    if not isinstance(recipe, (tuple, list)):
        raise InputError(f"recipe is of type {type(recipe).__name__}; a tuple of two or three ints is needed")
    granularity = tuple(recipe)
    if len(granularity) == 3:
        if is_sfa is None:
            raise InputError(f"recipe is {recipe} without is_sfa; True for A's scales or False is needed")
        granularity = (granularity[0 if is_sfa else 1], granularity[2])
    if granularity not in ((1, SCALE_BLOCK), (SCALE_BLOCK, SCALE_BLOCK)):
        raise InputError(f"recipe is {recipe}; a scale for (1, 128) or for (128, 128) elements is needed")
    _scales(sf)
    groups = () if num_groups is None else (num_groups,)
    needed = (*groups, ceil_div(mn, granularity[0]), ceil_div(k, granularity[1]))
    checks.shape("sf", sf, needed, f"for mn = {mn}, k = {k}, recipe {recipe} and num_groups {num_groups}")
    sf = sf.resolve_neg()
    return scales.mn_major(sf) if granularity[0] == 1 else sf.contiguous()


def get_mn_major_tma_aligned_packed_ue8m0_tensor(sf: torch.Tensor) -> torch.Tensor:
    """Scales as GPUs after Hopper read them: their exponents, four along k in an int, MN-major. No kernel
    here reads it.

    Args:
        sf: float32 [(groups,) mn, count], powers of two.

    Returns:
        int32 [(groups,) mn, ceil(count / 4)] with strides (aligned * ceil(count / 4), 1, aligned), aligned =
        mn rounded up to 4. Exponents beyond `count` are 0.

    Raises:
        InputError: another type or shape, or a number that is no power of two.
    """
    _scales(sf)
    if sf.dim() not in (2, 3):
        raise InputError(f"sf has shape {list(sf.shape)}; 2 or 3 dimensions are needed")
    packed = scales.pack_ue8m0_to_int(torch.nn.functional.pad(sf, (0, -sf.shape[-1] % 4)))
    strides = scales.mn_major_strides(packed.shape)
    return torch.empty_strided(packed.shape, strides, dtype=torch.int32, device=sf.device).copy_(packed)


def _scales(sf: object) -> None:
    """Refuse what is no float32 tensor on the CPU or a GPU."""
    given = checks.tensors({"sf": sf})
    checks.same_device(given)
    checks.dtype("sf", given["sf"], torch.float32)


def get_tma_aligned_size(x: int, element_size: int) -> int:
    """The smallest number of elements, at least `x`, that take a multiple of 16 bytes.

    Args:
        x: elements.
        element_size: bytes of an element: 1, 2, 4, 8 or 16.

    Raises:
        InputError: element_size is no divisor of 16.
    """
    x, element_size = whole_number("x", x), whole_number("element_size", element_size)
    if element_size < 1 or TMA_ALIGNMENT % element_size:
        raise InputError(f"element_size is {element_size}; a divisor of {TMA_ALIGNMENT} is needed")
    return layouts.tma_aligned_size(x, element_size)
