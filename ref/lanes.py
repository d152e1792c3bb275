"""Vectors of 32 lanes in Numba code: the CPU's vector registers, without relying on a compiler to find them.

Numba's compiler turns some loops into vector instructions, and misses the loops over K of tensor_core.py,
which take most of an emulated kernel's time. There each step is written down as one operation on 32 numbers.
LLVM compiles it for the CPU at hand: FP32 numbers take two instructions with AVX-512, four with AVX2 and
eight with NEON.

NOTES: Numba's cache on disk looks at the file of a compiled function alone. After a change of this file,
touch tensor_core.py, or what was compiled before is used.
"""

from __future__ import annotations

from llvmlite import ir

LANES = 32
INT8, INT32, FLOAT32 = ir.IntType(8), ir.IntType(32), ir.FloatType()


class Lanes:
    """A value of 32 lanes of one type, while code is generated. Python's operators work lane by lane, with
    another value of the same type or with a number; comparisons and shifts are those of signed integers."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @classmethod
    def load(cls, builder: ir.IRBuilder, element: ir.Type, address: ir.Value) -> Lanes:
        """32 numbers at an address, which need not be aligned to more than one of them."""
        pointer = builder.inttoptr(address, ir.VectorType(element, LANES).as_pointer())
        loaded = builder.load(pointer)
        loaded.align = size_of(element)
        return cls(builder, loaded)

    @classmethod
    def repeat(cls, builder: ir.IRBuilder, element: ir.Type, address: ir.Value) -> Lanes:
        """The one number at an address, in each lane."""
        scalar = builder.load(builder.inttoptr(address, element.as_pointer()))
        scalar.align = size_of(element)
        vector = ir.VectorType(element, LANES)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, INT32(0))
        spread = ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES)
        return cls(builder, builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), spread))

    def store(self, address: ir.Value) -> None:
        stored = self.builder.store(self.value, self.builder.inttoptr(address, self.value.type.as_pointer()))
        stored.align = size_of(self.value.type.element)

    def number(self, value: float) -> Lanes:
        """A constant of this value's type, in each lane."""
        return Lanes(self.builder, ir.Constant(self.value.type, [value] * LANES))

    def _with(self, other: Lanes | float) -> ir.Value:
        return (other if isinstance(other, Lanes) else self.number(other)).value

    def _is_float(self) -> bool:
        return self.value.type.element == FLOAT32

    def __add__(self, other: Lanes | float) -> Lanes:
        add = self.builder.fadd if self._is_float() else self.builder.add
        return Lanes(self.builder, add(self.value, self._with(other)))

    def __mul__(self, other: Lanes | float) -> Lanes:
        multiply = self.builder.fmul if self._is_float() else self.builder.mul
        return Lanes(self.builder, multiply(self.value, self._with(other)))

    def __rsub__(self, number: float) -> Lanes:
        return Lanes(self.builder, self.builder.sub(self.number(number).value, self.value))

    def __and__(self, other: Lanes | int) -> Lanes:
        return Lanes(self.builder, self.builder.and_(self.value, self._with(other)))

    def __or__(self, other: Lanes | int) -> Lanes:
        return Lanes(self.builder, self.builder.or_(self.value, self._with(other)))

    def __lshift__(self, bits: int) -> Lanes:
        return Lanes(self.builder, self.builder.shl(self.value, self._with(bits)))

    def __rshift__(self, bits: int) -> Lanes:
        return Lanes(self.builder, self.builder.ashr(self.value, self._with(bits)))

    def compare(self, relation: str, other: Lanes | int) -> Lanes:
        """Of integers: one bit a lane. relation: as in C, "==" for example."""
        return Lanes(self.builder, self.builder.icmp_signed(relation, self.value, self._with(other)))

    def choose(self, yes: Lanes, no: Lanes | float) -> Lanes:
        """Of the bits that compare() gives: `yes` where they are 1, `no` elsewhere."""
        return Lanes(self.builder, self.builder.select(self.value, yes.value, yes._with(no)))

    def max(self, other: Lanes | int) -> Lanes:
        return self.compare(">", other).choose(self, other)

    def bits(self, element: ir.Type) -> Lanes:
        """The same bits as another type of the same size."""
        return Lanes(self.builder, self.builder.bitcast(self.value, ir.VectorType(element, LANES)))

    def to_int32(self) -> Lanes:
        """Of FP32: truncated toward zero. Of smaller integers: the same number."""
        convert = self.builder.fptosi if self._is_float() else self.builder.sext
        return Lanes(self.builder, convert(self.value, ir.VectorType(INT32, LANES)))

    def to_int8(self) -> Lanes:
        """Of int32: the low 8 bits."""
        return Lanes(self.builder, self.builder.trunc(self.value, ir.VectorType(INT8, LANES)))

    def interleave(self, other: Lanes) -> tuple[Lanes, Lanes]:
        """This value's first number, the other's first, this one's second and so on, as two values."""

        def take(first: int) -> Lanes:
            order = [at + lane for at in range(first, first + LANES // 2) for lane in (0, LANES)]
            mask = ir.Constant(ir.VectorType(INT32, LANES), order)
            return Lanes(self.builder, self.builder.shuffle_vector(self.value, other.value, mask))

        return take(0), take(LANES // 2)

    def to_float32(self) -> Lanes:
        return Lanes(self.builder, self.builder.sitofp(self.value, ir.VectorType(FLOAT32, LANES)))


def transpose(rows: list[Lanes]) -> list[Lanes]:
    """LANES values of a matrix's rows -> those of its columns."""
    for _ in range(LANES.bit_length() - 1):
        halves = zip(rows[: LANES // 2], rows[LANES // 2 :], strict=True)
        rows = [half for one, other in halves for half in one.interleave(other)]
    return rows


def size_of(element: ir.Type) -> int:
    """Bytes of a number."""
    return 4 if element == FLOAT32 else element.width // 8
