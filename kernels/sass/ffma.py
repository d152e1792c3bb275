"""Rung 8: rewrites the promotion's machine code in the built library.

A promotion is a run of FFMAs, one for each accumulator of a thread. While one warpgroup promotes, the other
one should have the tensor cores. Some of an instruction's 128 bits are the compiler's hints to the scheduler:

    bit 109       0: yield, that is, prefer another warp for the next instruction
    bit 122 + s   reuse: keep the register read in source slot s, because the next instruction reads it there

FFMAs that multiply by the same scale can keep it by reuse. Such an FFMA does not yield, because the kept
value would be lost. DeepGEMM makes every second one yield instead of keeping the scale. It does so in the
machine code, because nvcc did not (interleave_ffma.py, 2025; NVIDIA does not document these bits). ptxas has
since learnt to do it. s7_persistent has 736 promotion FFMAs, ten runs of 64 and one of 96; in each mode
this many yield, and this many keep the scale:

    mode                                           yield   reuse the scale
    "compiler": what nvcc 13.0 makes, untouched    375       343
    "off": no FFMA yields                            0       681
    "full": the first use of a scale in a run,     368       331
        and every second one after it, yields
    9/16: the first 9/16 of a run "full", the      207       489
        rest "off" (DeepGEMM's last choice)

This pass keeps a scale only if the very next instruction reads it; ptxas also keeps it past instructions of
other kinds. (In s3 to s5, nvcc 13.0 makes no FFMA yield.)

The pass changes those two bits of those instructions, in place. It reads the host library (ELF), the fat
binary in it, the machine code file in that (ELF again) and the kernel's instructions. If it does not
understand all of them, it refuses before anything is written.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from gemm_ladder.errors import GemmLadderError, InputError

if TYPE_CHECKING:
    from gemm_ladder.build import SassPass

Mode = str | float | Fraction  # "off", "compiler", "full", or the fraction of every run that is interleaved

DEFAULT_MODE: Mode = "full"  # what s8_ffma_interleave is built with

_YIELD = 1 << 64 + 45  # stored inverted
_REUSE = (1 << 64 + 58, 1 << 64 + 59)  # of the first and of the second source: one of them is the scale

# Instructions, by bits 0 to 15: opcode (9 bits), form of the operands (3), predicate (4; 7 is none).
_OPCODE = 0x1FF
_FFMA = 0x7223  # FFMA Rd, Ra, Rb, Rc
_RZ = 255  # the register that is zero
_QGMMA = 0x79F3  # QGMMA.64xNx32 Rd, gdesc[UR], Rd: WGMMA of FP8, both operands in shared memory
# What may vary in an FFMA: four registers; stall, yield, barriers; reuse of a factor. Modifiers may not.
_FFMA_FIELDS = 0xFF << 16 | 0xFF << 24 | 0xFF << 32 | 0xFF << 64 | 0x1FFFF << 105 | sum(_REUSE)

_ELF_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_ELF_SECTION = struct.Struct("<IIQQQQIIQQ")
_FATBIN_HEADER = struct.Struct("<IHHQ")
_FATBIN_ENTRY = struct.Struct("<HHIQII2HIIIQQQ")
_FATBIN_MAGIC, _CUBIN_KIND, _CUDA_MACHINE = 0xBA55ED50, 2, 190
_SM_90A = (90, 0x100011)  # architecture and flags: 64 bits, Linux, "a"; not compressed, no debug code


class UnknownCodeError(GemmLadderError, ValueError):
    """The file is not what the pass understands; it is left as it was."""


@dataclass(frozen=True)
class Ffma:
    """One FFMA: destination, accumulator, scale, addend.

    Attributes:
        address: in bytes from the file's start.
        word: its 128 bits.
        slot: the source slot of the scale. 1: accumulator, scale; 0: scale, accumulator.
    """

    address: int
    word: int
    slot: int = 1

    @property
    def destination(self) -> int:
        return self.word >> 16 & 0xFF

    @property
    def accumulator(self) -> int:
        return self.word >> 24 + 8 * (1 - self.slot) & 0xFF

    @property
    def scale(self) -> int:
        return self.word >> 24 + 8 * self.slot & 0xFF

    @property
    def addend(self) -> int:
        return self.word >> 64 & 0xFF

    @property
    def stall(self) -> int:
        return self.word >> 64 + 41 & 0xF

    @property
    def yields(self) -> bool:
        return not self.word & _YIELD

    @property
    def reuses(self) -> bool:
        """Whether it keeps the scale."""
        return bool(self.word & _REUSE[self.slot])

    def controlled(self, yields: bool, reuses: bool) -> int:
        """Its word with these two control bits."""
        others = self.word & ~(_YIELD | _REUSE[self.slot])
        return others | (0 if yields else _YIELD) | (_REUSE[self.slot] if reuses else 0)


def sass_pass(mode: Mode) -> SassPass:
    """The pass for gemm_ladder.build. Raises InputError for an unknown mode."""
    from gemm_ladder.build import SassPass

    share = _share(mode)
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    name = f"ffma {'compiler' if share is None else share} {version}"
    return SassPass(name, lambda library: apply(library, mode))


def apply(library: Path, mode: Mode) -> str:
    """Rewrite a built library in place, and return a line for the log.

    Raises UnknownCodeError, with the file as it was, and InputError for an unknown mode.
    """
    old = library.read_bytes()
    new = rewrite(old, mode)
    if new != old:
        with library.open("r+b") as file:
            file.write(new)
        if library.read_bytes() != new:
            raise OSError(f"{library} was not written as it should have been: is the disk full?")
    found = promotions(new)
    ffmas = [ffma for run in found for ffma in run]
    return (
        f"ffma, mode {mode}: {len(ffmas)} FFMAs in {len(found)} run(s); "
        f"{sum(ffma.yields for ffma in ffmas)} yield, {sum(ffma.reuses for ffma in ffmas)} reuse the scale\n"
    )


def rewrite(library: bytes, mode: Mode) -> bytes:
    """The library with its promotions in `mode`, whatever mode they were in. Raises what apply() raises."""
    share = _share(mode)
    found = promotions(library)
    if share is None:
        return library
    new = bytearray(library)
    for run in found:
        for ffma, yields, reuses in _controls(run, share):
            new[ffma.address : ffma.address + 16] = ffma.controlled(yields, reuses).to_bytes(16, "little")
    _verify(library, bytes(new))
    return bytes(new)


def _share(mode: Mode) -> Fraction | None:
    """The fraction of every run that is interleaved, or None: as the compiler left it."""
    if mode == "compiler":
        return None
    try:
        share = Fraction({"off": 0, "full": 1}.get(mode, mode))
    except (TypeError, ValueError, ArithmeticError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise InputError(f'mode is {mode!r}; "off", "compiler", "full" or a fraction from 0 to 1 is needed')
    return share


def _controls(run: list[Ffma], share: Fraction) -> Iterator[tuple[Ffma, bool, bool]]:
    """(instruction, whether it is to yield, whether to reuse its scale)"""
    interleaved = int(len(run) * share)
    uses: Counter[int] = Counter()
    for index, (ffma, following) in enumerate(_pairs(run)):
        yields = index < interleaved and uses[ffma.scale] % 2 == 0
        uses[ffma.scale] += 1
        yield ffma, yields, not yields and may_reuse(ffma, following)


def _pairs(run: list[Ffma]) -> Iterator[tuple[Ffma, Ffma | None]]:
    """Every FFMA with the one after it."""
    return zip(run, [*run[1:], None], strict=True)


def may_reuse(ffma: Ffma, following: Ffma | None) -> bool:
    """Whether the next instruction is the run's following FFMA, and reads the same scale in the same slot."""
    return (
        following is not None
        and following.address == ffma.address + 16
        and (following.slot, following.scale) == (ffma.slot, ffma.scale)
        and ffma.scale != ffma.destination
    )


def wrong_reuse(run: list[Ffma]) -> list[Ffma]:
    """Those that keep a scale which the next instruction does not read, or which a yield may lose."""
    pairs = [pair for pair in _pairs(run) if pair[0].reuses]
    return [ffma for ffma, following in pairs if ffma.yields or not may_reuse(ffma, following)]


def _verify(old: bytes, new: bytes) -> None:
    """Nothing but the two bits of promotion FFMAs differs, and no reuse is wrong."""
    blanked = [bytearray(old), bytearray(new)]
    ffmas = [ffma for run in promotions(old) for ffma in run]
    for library in blanked:
        for ffma in ffmas:
            at = slice(ffma.address, ffma.address + 16)
            word = int.from_bytes(library[at], "little")
            library[at] = replace(ffma, word=word).controlled(False, False).to_bytes(16, "little")
    _require(blanked[0] == blanked[1], "the rewriting changes more than control bits")
    _require(not any(wrong_reuse(run) for run in promotions(new)), "the rewriting reuses what may be lost")


# ------------------------------------------------------------------ reading a library


def promotions(library: bytes) -> list[list[Ffma]]:
    """The promotions in the library's kernels. One is a run: the FFMAs between two groups of WGMMAs, which
    multiply what the first group left.

    Raises UnknownCodeError where a kernel has no run, or has an FFMA that belongs to none.
    """
    return [run for kernel in kernels(library) for run in _promotions(library, kernel)]


def _promotions(library: bytes, kernel: slice) -> list[list[Ffma]]:
    found: list[list[Ffma]] = []
    run: list[Ffma] = []
    accumulators = range(0)
    for address in range(kernel.start, kernel.stop, 16):
        word = int.from_bytes(library[address : address + 16], "little")
        if word & _OPCODE == _QGMMA & _OPCODE:
            _require(word & 0xFFFF == _QGMMA, f"the QGMMA at {address:#x} is of another form")
            if run:
                found.append(_checked(run, accumulators))
                run = []
            first, n = word >> 16 & 0xFF, ((word >> 53 & 0x1F) + 1) * 8
            accumulators = range(first, first + n // 2)
        elif word & _OPCODE == _FFMA & _OPCODE:
            first, second = (word >> at & 0xFF in accumulators for at in (24, 32))
            slot = 0 if second and not first else 1
            known = word & ~_FFMA_FIELDS == _FFMA and not word & _REUSE[1 - slot]
            _require(known, f"the FFMA at {address:#x} is of another form")
            run.append(Ffma(address, word, slot))
    if run:
        found.append(_checked(run, accumulators))
    _require(bool(found), "a kernel has no promotion")
    return found


def _checked(run: list[Ffma], accumulators: range) -> list[Ffma]:
    """The run, if it is a promotion: it reads every accumulator once, and all scales equally often."""
    where = f"the run of {len(run)} FFMAs at {run[0].address:#x}"
    multiplied, destinations = {ffma.accumulator for ffma in run}, {ffma.destination for ffma in run}
    addends = [
        ffma.addend for ffma in run if ffma.addend != _RZ
    ]  # the first K block of a tile adds to nothing
    scales = Counter(ffma.scale for ffma in run)
    _require(
        len(run) == len(accumulators) and multiplied == set(accumulators),
        f"{where} does not multiply each of the WGMMA's {len(accumulators)} accumulators once",
    )
    _require(
        len(destinations) == len(run) and len(set(addends)) == len(addends),
        f"{where} does not add to a register for each",
    )
    _require(
        len(scales) % 2 == 0 and len(set(scales.values())) == 1,
        f"{where} has not a scale for each half of its rows, or for each of some columns",
    )
    written: set[int] = set()
    for ffma in run:
        read = (ffma.accumulator, ffma.scale, ffma.addend)
        _require(written.isdisjoint(read), f"{where} changes what it reads")
        written.add(ffma.destination)
    _require(multiplied.isdisjoint(scales), f"{where} has a scale among its accumulators")
    # A stall of 0, or of 12 and more, gives the yield bit another meaning.
    _require(all(1 <= ffma.stall <= 11 for ffma in run), f"{where} has an unknown stall")
    return run


def kernels(library: bytes) -> list[slice]:
    """Where in the file the instructions of each of its kernels, for sm_90a, are."""
    try:
        fatbin = _one(_sections(library, 0), ".nv_fatbin")
        magic, version, length, size = _FATBIN_HEADER.unpack_from(library, fatbin.start)
        entry = fatbin.start + length
        known = (magic, version, length) == (_FATBIN_MAGIC, 1, _FATBIN_HEADER.size)
        _require(known and entry + size == fatbin.stop, "its .nv_fatbin is not one fat binary")
        fields = _FATBIN_ENTRY.unpack_from(library, entry)
        kind, _, length, size, compressed, _, _, _, arch, _, _, flags, _, original = fields
        _require(entry + length + size == fatbin.stop, "its fat binary has not one entry")
        _require(compressed == original == 0, "its machine code is compressed")
        _require(kind == _CUBIN_KIND and (arch, flags) == _SM_90A, "it is not machine code for sm_90a alone")
        sections = _sections(library[: fatbin.stop], entry + length, _CUDA_MACHINE)
        found = [where for label, where in sections if label.startswith(".text.")]
    except (struct.error, IndexError, OverflowError) as error:
        raise UnknownCodeError(f"The library is not rewritten: it is damaged ({error}).") from error
    _require(bool(found), "it has no kernel")
    whole = all(where.stop > where.start and (where.stop - where.start) % 16 == 0 for where in found)
    _require(whole, "a kernel is cut")
    return found


def _one(sections: list[tuple[str, slice]], name: str) -> slice:
    """The only section whose name begins with `name`."""
    found = [where for label, where in sections if label.startswith(name)]
    _require(len(found) == 1, f"it has {len(found)} sections {name}, and one is expected")
    return found[0]


def _sections(file: bytes, start: int, machine: int | None = None) -> list[tuple[str, slice]]:
    """(name, where in `file`) of every section with content, of the 64-bit ELF that begins at `start`."""
    header = _ELF_HEADER.unpack_from(file, start)
    magic, bits, order, _, found, _, _, _, table, _, _, _, _, size, count, names = header
    _require((magic, bits, order) == (b"\x7fELF", 2, 1) and size == _ELF_SECTION.size, "it is not 64-bit ELF")
    _require(machine in (None, found), "its machine code is not CUDA's")
    headers = [_ELF_SECTION.unpack_from(file, start + table + index * size) for index in range(count)]
    text = start + headers[names][4]
    sections = []
    for name, kind, _, _, offset, length, *_ in headers:
        if kind in (0, 8):  # NULL and NOBITS have nothing in the file
            continue
        _require(start + offset + length <= len(file), "a section lies outside the file")
        label = file[text + name :].partition(b"\0")[0].decode(errors="replace")
        sections.append((label, slice(start + offset, start + offset + length)))
    return sections


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UnknownCodeError(f"The library is not rewritten: {sentence}.")
