"""Casts placed as a careless caller would: NaN between and around the rows of x, canaries around what is
written."""

from __future__ import annotations

import dataclasses

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder.arguments import align
from gemm_ladder.casts import launching, operands
from gemm_ladder.casts.kernel import Before, Kind
from gemm_ladder.ref import activations, fp8

DEVICE = {"emulator": "cpu", "gpu": "cuda"}
CODE, SCALE = 0xA5, np.float32(-12345.0)  # no cast writes these
MARGIN = 4096  # elements on each side of a result
CAST = {
    "per_token": fp8.per_token_cast_to_fp8,
    "per_block": fp8.per_block_cast_to_fp8,
    "per_channel": fp8.per_channel_cast_to_fp8,
    "per_channel_turned": fp8.per_channel_cast_to_fp8,
}


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Normal numbers of many magnitudes, some of them rounded to powers of two, with a row of zeros, tiny
    numbers, infinities and a NaN of each sign where there is room."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * np.exp2(rng.integers(-6, 7, shape[-1]))
    x[..., ::3, :] = np.sign(x[..., ::3, :]) * np.exp2(rng.integers(-4, 5, x[..., ::3, :].shape))
    flat = x.reshape(-1, shape[-1])
    if len(flat) > 4:
        flat[1] = 0
        flat[2] = -1e-6
        flat[3, -1] = np.inf
        flat[3, 0] = -np.inf
        flat[4, shape[-1] // 2] = np.nan
    with np.errstate(invalid="ignore"):
        found = torch.from_numpy(x.astype(np.float32))
        if len(flat) > 9:
            found.view(-1, shape[-1])[9, 0] = -torch.nan
    return found.to(dtype)


def spaced(
    x: torch.Tensor, device: str, gap: int = 0, offset: int = 0, column: int = 1, turned: bool = False
) -> torch.Tensor:
    """The same numbers on a device, with NaN around them.

    Args:
        gap: elements between rows, and between groups.
        offset: of the first element in an allocation.
        column: the stride of a row's elements.
        turned: columns are contiguous instead of rows.
    """
    *groups, rows, columns = x.shape
    if turned:
        return spaced(x.mT.contiguous(), device, gap, offset, column).mT
    pitch = columns * column + gap
    strides = [rows * pitch + gap] * len(groups) + [pitch, column]
    span = sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)) + 1
    memory = torch.full((offset + max(span, 0) + 64,), torch.nan, dtype=x.dtype)
    placed = memory.to(device).as_strided(x.shape, strides, offset)
    return placed.copy_(x)


def expected(call: operands.CheckedCast) -> tuple[np.ndarray, np.ndarray]:
    """By ref/: the codes, uint8 [groups, m, k] or turned, and the scales of `Results`."""
    x = call.x.float().cpu().numpy()
    if call.rows is not None:
        index = call.rows.cpu().numpy()
        inside = (index >= 0) & (index < x.shape[1])
        gathered = np.zeros((1, len(index), x.shape[2]), np.float32)
        gathered[0, inside] = x[0, index[inside]]
        x = gathered
    if call.kernel.before == "silu_and_mul":
        x = activations.silu_and_mul(x[..., : call.k], x[..., call.k :])
    elif call.kernel.before == "rms_norm":
        weight = call.weight.float().cpu().numpy()
        x = activations.rms_norm(x.reshape(-1, call.k), weight, call.epsilon).reshape(x.shape)
    pairs = [CAST[call.kernel.kind](group, call.use_ue8m0) for group in x]
    codes, scales = np.stack([one.view(np.uint8) for one, _ in pairs]), np.stack([one for _, one in pairs])
    return codes.swapaxes(1, 2) if call.kernel.kind == "per_channel_turned" else codes, scales


@dataclasses.dataclass
class Placed:
    """A cast, and results with canaries around them."""

    call: operands.CheckedCast
    out: operands.Results
    memory: list[torch.Tensor]

    @classmethod
    def of(cls, kind: Kind, before: Before, x: torch.Tensor, mn_major: bool, **given: object) -> Placed:
        call = operands.check(kind, before, x, **given)
        like = operands.results(call, mn_major)
        if like.inverse_roots is not None:
            like.inverse_roots.fill_(torch.nan)  # all of them have to be written
        found, memory = [], []
        for one, canary in zip(
            (like.codes.view(torch.uint8), like.scales), (CODE, float(SCALE)), strict=True
        ):
            size = one.untyped_storage().nbytes() // one.itemsize
            memory.append(torch.full((MARGIN + size + MARGIN,), canary, dtype=one.dtype, device=x.device))
            found.append(memory[-1].as_strided(one.shape, one.stride(), MARGIN))
        return cls(call, like._replace(codes=found[0].view(torch.float8_e4m3fn), scales=found[1]), memory)

    def run(self, seed: int = 0, num_sms: int = 0) -> None:
        with gl.emulator(seed=seed):
            launching.run(self.call, self.out, num_sms)

    def check(self) -> None:
        """Compare every bit with the reference, and see that nothing else was written."""
        codes, scales = (one.cpu().numpy() for one in (self.out.codes.view(torch.uint8), self.out.scales))
        want_codes, want_scales = expected(self.call)
        written = np.ones(self.call.m, bool)
        if self.call.ks is not None:
            codes, want_codes = in_groups(codes, want_codes, self.call.ks.tolist())
        for group in range(len(codes)):
            if self.call.counts is not None:
                written = np.arange(self.call.m) < self.call.counts[group].item()
                assert (codes[group][~written] == CODE).all() and (scales[group][~written] == SCALE).all()
            if self.call.ends is not None:
                written = self.needed()
            rows = written if self.call.kernel.kind == "per_token" else slice(None)
            np.testing.assert_array_equal(scales[group][rows], want_scales[group][rows])  # NaN equals NaN
            np.testing.assert_array_equal(codes[group][rows], want_codes[group][rows])
        for memory, one, canary in zip(
            self.memory, (self.out.codes.view(torch.uint8), self.out.scales), (CODE, SCALE), strict=True
        ):
            around = memory.clone()
            sizes = list(one.shape)
            if self.call.kernel.kind == "per_channel_turned" and one.dtype == torch.uint8:
                sizes[2] = one.stride(1)  # the padding of its rows belongs to the result, too
            around.as_strided(sizes, one.stride(), MARGIN).fill_(float(canary))
            assert (around == float(canary)).all(), "written around a result"

    def needed(self) -> np.ndarray:
        """bool [m]: the rows that belong to a group of the psum layout and are made of a row of x."""
        call, begin = self.call, 0
        needed = np.zeros(call.m, bool)
        for end in call.ends.tolist():
            needed[begin : max(end, 0)] = True
            begin = max(begin, align(max(end, 0), call.alignment))
        if call.rows is not None:
            rows = call.rows.cpu().numpy()
            needed &= (rows >= 0) & (rows < call.x.shape[1])
        return needed


def in_groups(found: np.ndarray, whole: np.ndarray, ks: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Codes with `ks`, [1, k, m], as found and as expected: the groups' matrices [k, ks] one after the other,
    and after them canaries."""
    _, k, m = whole.shape
    begin, parts = 0, []
    for said in ks:
        end = min(begin + max(said, 0) // 128 * 128, m)
        parts.append(whole[0, :, begin:end].reshape(-1))
        begin = end
    parts.append(np.full(k * (m - begin), CODE, np.uint8))
    return found.reshape(1, 1, -1), np.concatenate(parts).reshape(1, 1, -1)


def weight_for(kind: Before, k: int, dtype: torch.dtype, device: str) -> dict[str, object]:
    """The further arguments that a cast after `kind` needs."""
    if kind != "rms_norm":
        return {}
    generator = torch.Generator().manual_seed(1)
    return {"weight": torch.randn(k, generator=generator).to(dtype).to(device), "eps": 1e-5}


def columns(before: Before, k: int) -> int:
    """Of x, for a result with k of them."""
    return 2 * k if before == "silu_and_mul" else k
