"""Reading machine code: what nvcc made of a kernel, through cuobjdump. No GPU is needed."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections import Counter
from pathlib import Path

from gemm_ladder.build import toolchain
from gemm_ladder.errors import ToolchainError


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One SASS instruction, such as `@!P0 FFMA R3, R4, R5, R3`.

    `opcode` has its modifiers ("HGMMA.64x128x16.F32"), `word` is its 128 bits. The control fields of the
    Volta encoding and its successors are in the high half: NVIDIA does not document them; see CuAssembler
    and DeepGEMM.
    """

    address: int
    predicate: str
    opcode: str
    operands: str
    word: int

    @property
    def mnemonic(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def stall(self) -> int:
        """Cycles before the next instruction may issue."""
        return self.word >> 64 + 41 & 0xF

    @property
    def yields(self) -> bool:
        """Whether the scheduler is told to prefer another warp next: the bit is stored inverted."""
        return not self.word >> 64 + 45 & 1

    @property
    def reuse(self) -> int:
        """Four bits, one per source operand: keep this register's value for the next instruction."""
        return self.word >> 64 + 58 & 0xF


@dataclasses.dataclass(frozen=True)
class Resources:
    """What ptxas says of a kernel: registers and bytes per thread, and bytes of static shared memory per
    thread block."""

    stack_frame: int
    spill_stores: int
    spill_loads: int
    registers: int
    shared: int


_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_FIRST_HALF = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]+)\*/\s+(?P<predicate>@!?U?P\w+\s+)?(?P<opcode>[\w.]+)\s*(?P<operands>[^;]*);"
    r"\s*/\* 0x(?P<low>[0-9a-f]{16}) \*/"
)
_SECOND_HALF = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
_RESOURCES = re.compile(
    r"Function properties for (?P<kernel>\S+)\s*\n"
    r"\s*(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s*\n"
    r"(?:.*\n)*?.*Used (?P<registers>\d+) registers(?:.* (?P<shared>\d+) bytes smem)?"
)


def find_cuobjdump() -> Path | None:
    """The toolkit's disassembler, or None where there is none."""
    return toolchain.find_tool("cuobjdump")


def disassemble(library: Path) -> dict[str, list[Instruction]]:
    """The instructions of every kernel in a compiled file, by the kernel's mangled name.

    Raises ToolchainError where there is no cuobjdump.
    """
    tool = find_cuobjdump()
    if tool is None:
        raise ToolchainError("There is no cuobjdump", f"{toolchain.PIP} nvidia-cuda-cuobjdump")
    run = subprocess.run([tool, "-sass", str(library)], stdout=subprocess.PIPE, check=True)
    return parse(run.stdout.decode("utf-8", "replace"))


def parse(text: str) -> dict[str, list[Instruction]]:
    """The instructions in `cuobjdump -sass` output. Raises ValueError where a line is not understood."""
    kernels: dict[str, list[Instruction]] = {}
    first = None
    for line in text.splitlines():
        if match := _FUNCTION.match(line):
            kernels[match[1]] = current = []
        elif match := _FIRST_HALF.match(line):
            first = match
        elif (match := _SECOND_HALF.match(line)) and first:
            current.append(
                Instruction(
                    address=int(first["address"], 16),
                    predicate=(first["predicate"] or "").strip(),
                    opcode=first["opcode"],
                    operands=first["operands"].strip(),
                    word=int(match[1], 16) << 64 | int(first["low"], 16),
                )
            )
            first = None
        elif ";" in line:
            raise ValueError(f"not an instruction: {line!r}")
    return kernels


def count(instructions: list[Instruction]) -> Counter[str]:
    """How often each mnemonic occurs ("FFMA", "QGMMA"), modifiers left out."""
    return Counter(instruction.mnemonic for instruction in instructions)


def resources(log: str) -> dict[str, Resources]:
    """What `ptxas -v` says of every kernel, by the kernel's mangled name."""
    return {
        match["kernel"]: Resources(
            *(int(match[key] or 0) for key in ("stack", "stores", "loads", "registers", "shared"))
        )
        for match in _RESOURCES.finditer(log)
    }
