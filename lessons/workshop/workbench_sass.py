"""What lesson 10 has that is not a picture: rung s7's machine code, built here, or as it was recorded.

Machine code needs nvcc and cuobjdump, but no GPU. Without them the lesson reads data/promotion.json, which
`python lessons/data/promotion.py` writes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gemm_ladder as gl
from gemm_ladder import build
from gemm_ladder.measure.interleave import MODES
from gemm_ladder.sass import disassembly, ffma
from workshop import guesses, printed, workbench

RECORDED = Path(__file__).resolve().parents[1] / "data" / "promotion.json"
RUNG = gl.rungs["s8_ffma_interleave"]
YIELDING = range(1, 12)  # with another stall the bit has another meaning
SHOWN = "256, 128, 3"  # template arguments of the kernel whose first promotion is looked at


def read() -> dict[str, Any]:
    """Build s7 and read its machine code; what promotion.json holds, but for its "meta".

    Returns:
        "bytes", of the library; "kernels", for each its template arguments, its place in the library in bytes
        and the lengths of its promotions; "listing", one promotion of the kernel SHOWN with the four WGMMAs
        before it: [address, predicate, opcode, operands]; "modes", for each how many FFMAs of the library
        yield and reuse, how many bytes differ from the compiler's, and the words of the listing, in hex;
        "differ", for each promotion how many of its FFMAs are others in mode full, and how many it has.

    Raises:
        ToolchainError: there is no nvcc, or no cuobjdump.
    """
    built = build.compile(RUNG.path, target="cuda")
    library = built.path.read_bytes()
    promotions = ffma.promotions(library)
    kernels = []
    for (name, code), place in zip(
        disassembly.disassemble(built.path).items(), ffma.kernels(library), strict=True
    ):
        arguments = ", ".join(re.findall(r"Li(\d+)E", name))
        runs = [run for run in promotions if place.start <= run[0].address < place.stop]
        if any(one.word != int.from_bytes(_word(library, place, one), "little") for one in code):
            raise ValueError(f"cuobjdump and ffma.kernels read another kernel <{arguments}>")
        kernels.append(
            {"of": arguments, "begin": place.start, "end": place.stop, "runs": [len(run) for run in runs]}
        )
        if arguments == SHOWN:
            listing, where = _listing(code, runs[0][-1].address - place.start), place
    modes = {}
    for name, mode in MODES.items():
        rewritten = ffma.rewrite(library, mode)
        every = [one for run in ffma.promotions(rewritten) for one in run]
        words = [int.from_bytes(_word(rewritten, where, one), "little") for one in listing]
        modes[name] = {
            "yields": sum(one.yields for one in every),
            "reuses": sum(one.reuses for one in every),
            "changed": sum(old != new for old, new in zip(library, rewritten, strict=True)),
            "words": [f"{word:032x}" for word in words],
        }
    full = ffma.promotions(ffma.rewrite(library, MODES["full"]))
    differ = [
        (sum(one.word != other.word for one, other in zip(*pair, strict=True)), len(pair[0]))
        for pair in zip(promotions, full, strict=True)
    ]
    lines = [(one.address, one.predicate, one.opcode, one.operands.replace(".reuse", "")) for one in listing]
    return {"bytes": len(library), "kernels": kernels, "listing": lines, "modes": modes, "differ": differ}


def _word(library: bytes, kernel: slice, one: disassembly.Instruction) -> bytes:
    """Of an instruction, in the library."""
    return library[kernel.start + one.address :][:16]


def _listing(code: list[disassembly.Instruction], end: int) -> list[disassembly.Instruction]:
    """The four WGMMAs before the FFMA at `end`, and all up to that."""
    last = next(i for i, one in enumerate(code) if one.address == end)
    products = [i for i in range(last) if code[i].mnemonic == "QGMMA"]
    return code[products[-4] : last + 1]


@dataclasses.dataclass(frozen=True)
class Code:
    """What `read` returned, here or when it was recorded; `origin` says which."""

    data: dict[str, Any]
    origin: str

    def instructions(self, mode: str) -> list[disassembly.Instruction]:
        """One promotion, from its WGMMAs on. Operands are without ".reuse", which the words have."""
        words = self.data["modes"][mode]["words"]
        return [
            disassembly.Instruction(*line, word=int(word, 16))
            for line, word in zip(self.data["listing"], words, strict=True)
        ]

    def run(self, mode: str) -> list[ffma.Ffma]:
        """Its FFMAs, as the pass sees them."""
        return [ffma.Ffma(one.address, one.word) for one in self.instructions(mode) if one.mnemonic == "FFMA"]


@functools.cache
def code() -> Code:
    """Rung s7's machine code: built here, or recorded where nvcc is missing or unknown to the pass."""
    try:
        return Code(read(), f"built here, by nvcc {build.find_cuda().version}")
    except (build.ToolchainError, ffma.UnknownCodeError) as error:
        data = json.loads(RECORDED.read_text())
        meta = data["meta"]
        return Code(data, f"recorded, by nvcc {meta['nvcc']}, {meta['date']}. None is built here: {error}")


def line(one: disassembly.Instruction, width: int = 48) -> str:
    """As cuobjdump writes it; behind that, after `width` characters, what it does not write: the yield."""
    names = one.operands.split(", ")
    for slot in range(len(names) - 1):
        if one.reuse >> slot & 1:
            names[slot + 1] += ".reuse"
    text = f"{one.predicate} {one.opcode} {', '.join(names)}".strip()
    return f"{text:{width}} yield" if one.yields and one.stall in YIELDING else text


def change(before: list[disassembly.Instruction], after: list[disassembly.Instruction]) -> workbench.Text:
    """The same instructions twice, as a diff."""
    lines = []
    for old, new in zip(before, after, strict=True):
        same = old.word == new.word
        lines += [f"  {line(old)}"] if same else [f"- {line(old)}", f"+ {line(new)}"]
    text = "\n".join(lines)
    return workbench.Text(f"```diff\n{text}\n```", text)


def of_pass(begin: str, end: str) -> workbench.Text:
    """Lines of the pass itself, kernels/sass/ffma.py; `begin` and `end` as `workbench.code` takes them."""
    text = workbench.code(Path(ffma.__file__).read_text(encoding="utf-8"), begin, end).plain
    return workbench.Text(f"```python\n{text}\n```", text)


def refused(attempt: Callable[[], object], guess: str = "") -> None:
    """Print why the pass refuses what `attempt` gives it, or that it does not, and the guess of that name."""
    outcome = "it refuses"
    try:
        attempt()
    except build.ToolchainError as error:
        printed.show(f"This cell needs nvcc. {error}")
        return
    except ffma.UnknownCodeError as error:
        printed.show(error)
    else:
        print("The pass accepts it.")
        outcome = "it rewrites"
    if guess:
        guesses.found(guess, outcome)
