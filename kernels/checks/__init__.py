"""What a call accepts, checked before anything runs.

What belongs here: the `rules`, one function each, that one tensor or the tensors of any call have to keep;
the tensors of each layout, and their sizes (`layouts`); the contents of index tensors (`grouped`); all of
these together for a call (`products`); and which calls torch.compile is to leave to them (`uncompiled`). What
does not: converting scales (`gemm_ladder.scales`), and what the training products accept
(`gemm_ladder.training.operands`, which uses the rules).

`operands` checks metadata only (device, dtype, shape, stride, address) and never waits for a GPU; it copies
scales that are not in the layout that kernels read. `call` also checks what the production kernels need of
the sizes and, for tensors on the CPU or with GEMM_LADDER_CHECK=1, the contents of index tensors. Every
refusal is one sentence that says what was given and what is needed, and comes before `out` is written.

    A    float8_e4m3fn [m, k], 16-byte aligned
    sfa  float32 [m, ceil(k / 128)], "MN-major, TMA-aligned": stride (1, align(m, 4)), 16-byte aligned.
         Any other stride or address, and a lazily negated view (Tensor.is_neg), is accepted and converted,
         which costs a copy kernel.
    B    float8_e4m3fn [n, k], 16-byte aligned
    sfb  float32 [ceil(n / 128), ceil(k / 128)], contiguous, 16-byte aligned. Another alignment, transposed
         scales and a lazily negated view are accepted and converted.
    out  bfloat16 [m, n], 16-byte aligned, sharing no byte with the others

The elements of a row of A, B and out lie side by side. For the rungs the rows follow each other without gaps;
for the production kernels they may be any multiple of 16 bytes apart, but the matrices of a grouped layout
follow each other without gaps. Scales may also be bfloat16 or float8_e8m0fnu (`scales.as_float32`).

The grouped layouts put a dimension `groups` before B's and sfb's, and have one tensor more:

    contiguous  m_indices int32 [m], contiguous: the group of each row
    masked      masked_m int32 [groups], contiguous: how many rows of each group count; A, sfa and out are
                [groups, max_m, ...], sfa's stride (align(max_m, 4) * ceil(k / 128), 1, align(max_m, 4))
    psum        grouped_layout int32 [groups], contiguous: the row behind each group's last one. The first
                group begins at row 0, and each other one at the next multiple of
                settings.get_mk_alignment_for_contiguous_layout()

No gradient flows through a call: inputs that require grad are refused unless grad mode is off, and an `out`
that requires grad always. All tensors are on one device: the CPU or a Hopper GPU.
"""

from gemm_ladder.checks.layouts import DIMENSIONS, DTYPES, ROWS, SCALES, needed_shape, supported
from gemm_ladder.checks.products import CheckedCall, call, described, operands
from gemm_ladder.checks.rules import (
    aligned,
    dense,
    disjoint,
    dtype,
    flag,
    gapless,
    has_memory,
    in_memory,
    in_no_transform,
    is_distributed,
    no_gradients,
    no_tangents,
    pair,
    runs_on,
    same_device,
    shape,
    sizes,
    stands_for_others,
    tensors,
    two_dimensions,
)

__all__ = [
    "DIMENSIONS",
    "DTYPES",
    "ROWS",
    "SCALES",
    "CheckedCall",
    "aligned",
    "call",
    "dense",
    "described",
    "disjoint",
    "dtype",
    "flag",
    "gapless",
    "has_memory",
    "in_memory",
    "in_no_transform",
    "is_distributed",
    "needed_shape",
    "no_gradients",
    "no_tangents",
    "operands",
    "pair",
    "runs_on",
    "same_device",
    "shape",
    "sizes",
    "stands_for_others",
    "supported",
    "tensors",
    "two_dimensions",
]
