"""The casts by torch's own operators: where there is no Hopper GPU, and where scales cover other than 128."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gemm_ladder.arguments import SCALE_BLOCK, ceil_div
from gemm_ladder.casts.operands import CheckedCast, Results
from gemm_ladder.ops import as_array
from gemm_ladder.ref.fp8 import E4M3_MAX

SMALLEST_AMAX = 1e-4  # so that a block of zeros gets a scale other than 0


def blocks(
    x: torch.Tensor, gran_rows: int, gran_k: int, use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in FP8, with a scale for each gran_rows x gran_k of it.

    Args:
        x: [m, k] of a floating-point type.
        use_ue8m0: round the scales up to powers of two.

    Returns:
        float8_e4m3fn [m, k], and float32 [ceil(m / gran_rows), ceil(k / gran_k)], contiguous.
    """
    rows, columns = x.shape
    padded = F.pad(x.detach().float(), (0, -columns % gran_k, 0, -rows % gran_rows))
    block_rows, block_columns = ceil_div(rows, gran_rows), ceil_div(columns, gran_k)
    parts = padded.view(block_rows, gran_rows, block_columns, gran_k)
    if parts.numel():
        amax = parts.abs().amax(dim=(1, 3), keepdim=True).clamp(min=SMALLEST_AMAX)
    else:  # amax refuses it
        amax = parts.new_empty(block_rows, 1, block_columns, 1)
    scales = over_e4m3_max(amax)
    if use_ue8m0:
        scales = round_up_to_power_of_two(scales)
    codes = to_e4m3(parts * (1 / scales)).view(padded.shape)
    return codes[:rows, :columns].contiguous(), scales.view(block_rows, block_columns)


def over_e4m3_max(amax: torch.Tensor) -> torch.Tensor:
    """amax / 448, rounded once. On a GPU, torch multiplies by a number's reciprocal, which rounds twice."""
    return amax / amax.new_full((), E4M3_MAX)


def to_e4m3(x: torch.Tensor) -> torch.Tensor:
    """float32 in FP8. NaN is 0x7F, as on a GPU; on the CPU torch would keep its sign."""
    return (x if x.is_cuda else torch.where(x.isnan(), torch.nan, x)).to(torch.float8_e4m3fn)


def round_up_to_power_of_two(x: torch.Tensor) -> torch.Tensor:
    """The next power of two, for normal positive float32; NaN and infinity stay. It is done on the bits, as
    log2 would round."""
    mantissa = 0x7FFFFF
    power = ((x.view(torch.int32) + mantissa) & ~mantissa).view(torch.float32)
    return torch.where(x.isfinite(), power, x)


def run(call: CheckedCast, out: Results) -> None:
    """Do a cast, on any device.

    On the CPU the bits are those of the kernel. On a GPU torch's SiLU and RMSNorm may differ from it in the
    last bit. Rows that `call.counts` or `call.ends` leave out are cast, too.
    """
    kind = call.kernel.kind
    for group, codes, scales in zip(_numbers(call), out.codes, out.scales, strict=True):
        if kind in ("per_channel", "per_channel_turned"):
            found, of_runs = blocks(group.mT, 1, SCALE_BLOCK, call.use_ue8m0)
            if call.ks is None:
                codes.copy_(found if kind == "per_channel_turned" else found.mT)
            else:
                _write_groups(codes.view(-1), found, call.ks.tolist())
            scales.copy_(of_runs.mT)
        else:
            found, of_runs = blocks(
                group, 1 if kind == "per_token" else SCALE_BLOCK, SCALE_BLOCK, call.use_ue8m0
            )
            codes.copy_(found)
            scales.copy_(of_runs)


def _write_groups(out: torch.Tensor, codes: torch.Tensor, ks: list[int]) -> None:
    """Write the matrices [k, ks[group]] that codes [k, m] are made of into `out`, one after the other."""
    (k, m), begin = codes.shape, 0
    for said in ks:
        end = min(begin + max(said, 0) // SCALE_BLOCK * SCALE_BLOCK, m)
        out[k * begin : k * end].copy_(codes[:, begin:end].reshape(-1))
        begin = end


def _numbers(call: CheckedCast) -> torch.Tensor:
    """float32 [groups, m, k]: what is cast."""
    x = call.x.float()
    if call.rows is not None:
        inside = (call.rows >= 0) & (call.rows < x.shape[1])
        if x.shape[1]:
            x = x[:, call.rows.where(inside, 0)] * 1
            x[:, ~inside] = 0
        else:
            x = x.new_zeros(1, call.m, x.shape[2])
    if call.kernel.before == "nothing":
        return x
    from gemm_ladder.ref import activations  # here: it takes Numba, which no other cast needs

    if call.kernel.before == "silu_and_mul":
        gate, up = x[..., : call.k], x[..., call.k :]
        if x.is_cuda:
            return F.silu(gate.clamp(min=float(activations.SMALLEST_GATE))) * up  # -infinity makes no NaN
        return torch.from_numpy(activations.silu_and_mul(as_array(gate), as_array(up)))
    assert call.weight is not None
    weight = call.weight.float()
    if x.is_cuda:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + call.epsilon) * weight
    rows = activations.rms_norm(as_array(x.reshape(-1, call.k)), as_array(weight), call.epsilon)
    return torch.from_numpy(rows).view(x.shape)
