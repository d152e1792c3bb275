"""The models of the matrix instructions against exact rational arithmetic, and for C callers."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from exact_instructions import Model, model_of, slow
from gemm_ladder.measure import mma_inputs
from gemm_ladder.measure.mma_probe import model
from gemm_ladder.ref import mma, tensor_core
from gemm_ladder.ref.mma import INSTRUCTIONS, Instruction, Type, Unit

ROWS, COLUMNS = 5, 4  # of the outputs of each kind that are computed exactly


def storage(type_: Type) -> type:
    return mma.STORAGE[mma.BYTES[type_]]


def cut(instruction: Instruction, name: str, seed: int = 0):
    """A few rows and columns of one kind of input, and the accumulators that they begin with."""
    kind = mma_inputs.kinds_of(instruction)[name]
    operands = mma_inputs.make(instruction, kind, np.random.default_rng(seed), 8, 1)
    a, b, acc = operands.a[0, :ROWS], operands.b[0, :COLUMNS], operands.acc[0, :ROWS, :COLUMNS].copy()
    return a, b, acc if kind.scale_d else np.zeros_like(acc)


def exactly(instruction: Instruction, a, b, acc, of: Model | None = None) -> list[list[int]]:
    return [
        [
            slow(instruction, row.tolist(), column.tolist(), int(c), of)
            for column, c in zip(b, cs, strict=True)
        ]
        for row, cs in zip(a, acc, strict=True)
    ]


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_every_kind_equals_exact_arithmetic(name):
    instruction = INSTRUCTIONS[name]
    for kind in mma_inputs.kinds_of(instruction):
        a, b, acc = cut(instruction, kind)
        assert mma.multiply(instruction, a, b, acc).tolist() == exactly(instruction, a, b, acc), kind


WRONG = {
    "one bit fewer": {"kept": -1},
    "one bit more": {"kept": 1},
    "half of the products at once": {"group": 16},
    "a lower floor": {"floor": -1},
    "a higher floor": {"floor": 1},
    "rounded to nearest": {"nearest": True},
    "FP16 rounded toward zero": {"truncated": True},
    "normalised products": {"normalised": True},
    "aligned by rounding down": {"down": True},
    "clamped after 16 products": {"clamped_often": True},
}
# A floor matters where a product can be so small: not those of FP8, nor those of FP16 beside FP32.
CHANGES = [
    *(("wgmma.f32.bf16.bf16", what) for what in WRONG if what[:4] != "FP16" and what[:7] != "clamped"),
    *(("mma.f32.tf32.tf32", what) for what in ("one bit fewer", "one bit more", "a lower floor")),
    *(
        ("wgmma.f16.f16.f16", what)
        for what in WRONG
        if what != "rounded to nearest" and what[:7] != "clamped"
    ),
    *(
        ("wgmma.f32.e5m2.e4m3", what)
        for what in ("one bit fewer", "one bit more", "half of the products at once")
    ),
    *(("wgmma.f16.e5m2.e5m2", what) for what in ("one bit fewer", "FP16 rounded toward zero")),
    *(
        (name, "clamped after 16 products")
        for name in ("wgmma.s32.s8.s8.satfinite", "mma.s32.u8.s8.satfinite")
    ),
]


@pytest.mark.parametrize(("name", "what"), CHANGES)
def test_kinds_tell_wrong_models_from_the_right_one(name, what):
    instruction = INSTRUCTIONS[name]
    right = model_of(instruction)
    changes = {
        field: getattr(right, field) + change if field in ("kept", "floor") else change
        for field, change in WRONG[what].items()
    }
    wrong = right._replace(**changes)
    for kind in ["sums near the smallest number"] if "floor" in what else mma_inputs.kinds_of(instruction):
        for seed in range(60 if "floor" in what else 2):
            a, b, acc = cut(instruction, kind, seed)
            if exactly(instruction, a, b, acc, wrong) != mma.multiply(instruction, a, b, acc).tolist():
                return
    raise AssertionError(f"no kind of {name} tells it")


def bits(x: float, type_: Type) -> int:
    """The bits of a number that the type has, or of NaN."""
    form = mma_inputs.Format(type_)
    if np.isnan(x):
        return (0x7F if type_ == Type.E4M3 else form.infinity + 1) << form.ignored
    if np.isinf(x):
        return (form.infinity | (form.sign if x < 0 else 0)) << form.ignored
    return int(form.truncated(np.array([x], np.float32))[0])


def one(name: str, products: list[tuple[float, float]], acc: float) -> float:
    """The result of one output; the other products are zeros."""
    instruction = INSTRUCTIONS[name]
    a, b = (
        np.zeros((1, instruction.k), storage(instruction.a)),
        np.zeros((1, instruction.k), storage(instruction.b)),
    )
    for k, (x, y) in enumerate(products):
        a[0, k], b[0, k] = bits(x, instruction.a), bits(y, instruction.b)
    d = storage(instruction.d)
    out = mma.multiply(instruction, a, b, np.array([[bits(acc, instruction.d)]], d))
    return float(out.view(np.float32 if d == np.uint32 else np.float16)[0, 0])


FLOATS = [name for name, x in INSTRUCTIONS.items() if x.d != Type.S32]
WITH_INFINITIES = [name for name in FLOATS if INSTRUCTIONS[name].a != Type.E4M3 != INSTRUCTIONS[name].b]
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("name", FLOATS)
def test_special_values(name):
    assert one(name, [(1, 1), (NAN, 0)], 0) != one(name, [(1, 1)], 0)
    assert np.isnan(one(name, [(NAN, 0)], 1)) and np.isnan(one(name, [], NAN))
    assert np.isnan(one(name, [(NAN, 1)], INFINITY))
    assert one(name, [(1, 1)], INFINITY) == INFINITY and one(name, [], -INFINITY) == -INFINITY
    assert np.copysign(1, one(name, [(-0.0, 1)], -0.0)) == 1
    assert np.copysign(1, one(name, [(-1, 1), (1, 1)], -0.0)) == 1


@pytest.mark.parametrize("name", WITH_INFINITIES)
def test_infinite_operands(name):
    assert one(name, [(INFINITY, 2)], 1) == INFINITY and one(name, [(INFINITY, -2)], 1) == -INFINITY
    assert one(name, [(INFINITY, -INFINITY)], 1) == -INFINITY
    assert np.isnan(one(name, [(INFINITY, 0)], 1)) and np.isnan(one(name, [(INFINITY, -1)], INFINITY))
    assert np.isnan(one(name, [(INFINITY, 1), (1, -INFINITY)], 1))


def test_which_bits_sums_keep():
    bf16 = "wgmma.f32.bf16.bf16"
    assert one(bf16, [(2.0**-13, 2.0**-12), (-(2.0**-13), 2.0**-13), (-1, 1)], 1) == 2.0**-25
    assert one(bf16, [(2.0**-12, 2.0**-13), (1, -1)], 1) == 2.0**-25  # the last bit that survives beside 1
    assert one(bf16, [(2.0**-13, 2.0**-13), (1, -1)], 1) == 0
    assert (
        one(bf16, [(2.0**-12, 2.0**-12)] * 15, 1) == 1 + 15 * 2.0**-24 - 2.0**-24
    )  # 14 is the last even count
    # Beside a zero accumulator, what lies below 2^-158 is lost.
    tiny = (2.0**-100, 2.0**-59)
    assert one(bf16, [tiny, (2.0**-64, 2.0**-85)], 0) == 2.0**-149
    assert one(bf16, [(2.0**120, 2.0**120), (2.0**120, -(2.0**120))], 3) == 0  # 3 is lost beside 2^240
    assert one(bf16, [(2.0**120, 2.0**8)], 0) == INFINITY
    assert one("wgmma.f16.f16.f16", [(2.0**-1, 2.0**-1)], 1024) == 1024
    assert one("wgmma.f16.f16.f16", [(2.0**-1, 1)], 1025) == 1026  # half-way, to even
    assert one("wgmma.f16.f16.f16", [(2.0**-1, 1)], 1024) == 1024
    assert one("wgmma.f16.f16.f16", [(16, 1)], 65504) == INFINITY  # half-way to 2^16
    assert one("wgmma.f16.f16.f16", [(2.0**-14, 2.0**-10)], 0) == 2.0**-24


def test_tf32_ignores_bits_of_nans():
    instruction = INSTRUCTIONS["mma.f32.tf32.tf32"]
    a, b = np.zeros((1, 8), np.uint32), np.full((1, 8), 0x3F800000, np.uint32)
    a[0, 0] = 0x7F800001  # a NaN in FP32, an infinity in TF32
    assert mma.multiply(instruction, a, b, np.zeros((1, 1), np.uint32)) == 0x7F800000


def test_mma_sync_of_fp8_takes_two_sums():
    """A small product survives beside big ones that cancel, if they are in the other half of K."""
    big = [(16, 16), (-16, 16)]
    # In the same half, 25 bits are kept below 2^8; in the other, all.
    tiny = (2.0**-14, 2.0**-14)
    assert one("mma.f32.e5m2.e5m2", [*big, tiny], 0) == 2.0**-28
    assert one("mma.f32.e5m2.e5m2", [big[0], tiny, big[1]], 0) == 0
    # The accumulator is added at the end, to nearest.
    assert one("mma.f32.e4m3.e4m3", [(2.0**-6, 2.0**-6), (2.0**-6, 2.0**-5)], 2.0**12) == 2.0**12 + 2.0**-10


def test_mma_sync_of_fp8_takes_e4m3_as_fp16():
    """2^-9, code 1, is subnormal in E4M3, with the exponent -6, and normal in FP16."""
    instruction = INSTRUCTIONS["mma.f32.e5m2.e4m3"]
    a, b = np.zeros((2, 32), np.uint8), np.zeros((1, 32), np.uint8)
    a[:, 0], a[:, 1] = bits(2.0**15, Type.E5M2), bits(-(2.0**15), Type.E5M2)
    b[0, :2] = 1
    a[:, 4] = bits(2.0**-13, Type.E5M2), bits(2.0**-14, Type.E5M2)
    b[0, 4] = bits(2.0**-6, Type.E4M3)
    # The sums are aligned to 2^(6 - 25), not to 2^(15 - 6 - 25): 2^-19 survives, 2^-20 does not.
    out = mma.multiply(instruction, a, b, np.zeros((2, 1), np.uint32)).view(np.float32)
    assert out.tolist() == [[2.0**-19], [0]]


@pytest.mark.parametrize("kind", mma_inputs.kinds_of(INSTRUCTIONS["wgmma.f32.e4m3.e4m3"]))
def test_the_general_model_has_the_fast_ones_bits(kind):
    instruction = INSTRUCTIONS["wgmma.f32.e4m3.e4m3"]
    operands = mma_inputs.make(
        instruction,
        mma_inputs.kinds_of(instruction)[kind]._replace(scale_d=1),
        np.random.default_rng(0),
        64,
        1,
    )
    a, b, acc = operands.a[0], operands.b[0], operands.acc[0]
    general = acc.copy()
    mma._multiply(*map(int, instruction[:4]), False, a, b, general.view(np.uint8))
    assert np.array_equal(general, mma.multiply(instruction, a, b, acc))
    assert np.array_equal(general, tensor_core.chain(a, b, acc.view(np.float32)).view(np.uint32))


def test_chain_is_one_instruction_after_another():
    for instruction in INSTRUCTIONS.values():
        name = next(kind for kind in mma_inputs.kinds_of(instruction) if kind.startswith("chain"))
        a, b, acc = cut(instruction, name)
        d = acc
        for k in range(0, a.shape[1], instruction.k):
            d = mma.multiply(instruction, a[:, k : k + instruction.k], b[:, k : k + instruction.k], d)
        assert np.array_equal(mma.multiply(instruction, a, b, acc), d)


@pytest.mark.parametrize(
    "name", ["mma.f32.bf16.bf16", "mma.f16.f16.f16", "mma.f32.tf32.tf32", "mma.s32.s8.u8"]
)
def test_half_of_k(name):
    """mma.sync has shapes of 16 bytes of K: the sum is that of half as many products."""
    instruction = INSTRUCTIONS[name]
    a, b, acc = cut(instruction, "any operands and accumulators")
    half = instruction.k // 2
    a[:, half:] = b[:, half:] = 0
    assert np.array_equal(
        mma.multiply(instruction, a[:, :half], b[:, :half], acc), mma.multiply(instruction, a, b, acc)
    )


MMA = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 8, *[ctypes.c_void_p] * 3)


def call(function, instruction: Instruction, a, b, acc) -> np.ndarray:
    d, k_bytes = acc.copy(), a.shape[1] * a.dtype.itemsize
    numbers = *map(int, instruction[:4]), int(instruction.satfinite), len(a), len(b), k_bytes
    assert function(*numbers, a.ctypes.data, b.ctypes.data, d.ctypes.data) == 0
    return d


def test_cfunc_is_multiply_from_many_threads():
    function = MMA(mma.cfunc_address())
    problems = []
    for instruction in INSTRUCTIONS.values():
        for kind in mma_inputs.kinds_of(instruction).values():
            operands = mma_inputs.make(instruction, kind._replace(scale_d=1), np.random.default_rng(0), 24, 1)
            problems.append(
                (instruction, operands.a[0, :16].copy(), operands.b[0], operands.acc[0, :16].copy())
            )
    expected = [mma.multiply(*problem) for problem in problems]
    with ThreadPoolExecutor(8) as pool:
        addresses = set(pool.map(lambda _: mma.cfunc_address(), range(16)))
        results = list(pool.map(lambda problem: call(function, *problem), problems))
    assert len(addresses) == 1
    assert all(np.array_equal(x, y) for x, y in zip(results, expected, strict=True))


@pytest.mark.parametrize(
    "numbers",
    [
        (2, 0, 0, 7, 0, 16, 8, 32),  # no such unit
        (0, 2, 3, 7, 0, 16, 8, 32),  # BF16 and FP16 together
        (0, 9, 0, 7, 0, 16, 8, 32),  # no such type
        (0, -1, 0, 7, 0, 16, 8, 32),
        (0, 2, 2, 3, 0, 16, 8, 32),  # BF16 into FP16
        (0, 0, 0, 7, 1, 16, 8, 32),  # .satfinite of floating-point numbers
        (0, 0, 0, 7, 0, 16, 8, 24),
        (0, 0, 0, 7, 0, 16, 8, 48),
        (0, 0, 0, 7, 0, 16, 8, 0),
        (0, 2, 2, 7, 0, 16, 8, 16),  # mma.sync has it, WGMMA has not
        (1, 0, 0, 7, 0, 16, 8, 16),
    ],
)
def test_cfunc_refuses_what_does_not_exist(numbers):
    a, acc = np.zeros((16, 64), np.uint8), np.full((16, 8), 3, np.uint32)
    assert MMA(mma.cfunc_address())(*numbers, a.ctypes.data, a.ctypes.data, acc.ctypes.data) == 1
    assert (acc == 3).all()


def test_the_cuda_header_has_the_same_types():
    text = (mma_inputs.__file__.rpartition("/measure/")[0]) + "/include/mma_types.cuh"
    with open(text, encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("enum class Type"))
    names = line[line.index("{") + 1 : line.index("}")].replace(" ", "").split(",")
    assert names == [type_.name.lower() for type_ in Type]


def test_names():
    assert len(INSTRUCTIONS) == 40
    found = INSTRUCTIONS["mma.s32.u8.s8.satfinite"]
    assert found == Instruction(Unit.MMA, Type.U8, Type.S8, Type.S32, True) and found.k == 32
    assert all(name == instruction.name for name, instruction in INSTRUCTIONS.items())


@pytest.mark.parametrize(
    ("a", "b", "acc", "words"),
    [
        (np.zeros((4, 16), np.uint8), np.zeros((8, 16), np.uint16), np.zeros((4, 8), np.uint32), "BF16"),
        (np.zeros((4, 16), np.uint16), np.zeros((8, 32), np.uint16), np.zeros((4, 8), np.uint32), "operands"),
        (
            np.zeros((4, 24), np.uint16),
            np.zeros((8, 24), np.uint16),
            np.zeros((4, 8), np.uint32),
            "multiple of 16",
        ),
        (
            np.zeros((4, 16), np.uint16),
            np.zeros((8, 16), np.uint16),
            np.zeros((4, 8), np.uint16),
            "accumulator",
        ),
        (
            np.zeros((4, 16), np.uint16),
            np.zeros((8, 16), np.uint16),
            np.zeros((8, 4), np.uint32),
            "accumulator",
        ),
    ],
)
def test_refusals_say_what_is_needed(a, b, acc, words):
    with pytest.raises(ValueError, match=words):
        mma.multiply(INSTRUCTIONS["wgmma.f32.bf16.bf16"], a, b, acc)


def test_inputs_are_left_as_they_are():
    instruction = INSTRUCTIONS["wgmma.f32.f16.f16"]
    a, b, acc = cut(instruction, "normal operands and accumulators")
    kept = a.copy(), b.copy(), acc.copy()
    kind = mma_inputs.kinds_of(instruction)["normal operands"]
    assert model(instruction, kind, mma_inputs.Operands(a[None], b[None], acc[None])).shape == (
        1,
        ROWS,
        COLUMNS,
    )
    assert all(np.array_equal(x, y) for x, y in zip((a, b, acc), kept, strict=True))
