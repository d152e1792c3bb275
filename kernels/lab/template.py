"""`lab new`: a file that begins as a copy of a rung."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from gemm_ladder.errors import InputError
from gemm_ladder.lab.cases import OperandType
from gemm_ladder.lab.given import ENTRY
from gemm_ladder.rungs import Rung, rungs

WIDTH = 120  # columns of a CUDA file
# What the launcher is given, as comments of the file.
FP8_GIVEN = (
    "//   at the end, starts it, and is given shapes whose n is a multiple of 8 and whose k is one of",
    "//   128. For a shape that the kernel does not support it returns a sentence;",
)
BF16_GIVEN = (
    "//   at the end, starts it, and is given shapes whose n is a multiple of 8 and whose k is one of 64.",
    "//   For a shape that the kernel does not support it returns a sentence;",
    "// - of GemmArgs, a and b point to BF16 numbers, and sfa and sfb are null: D = A B^T. The rung below",
    "//   still multiplies FP8 numbers, with scales;",
)


def copied() -> list[str]:
    """The rungs that can be copied: those that are one .cu file of their own."""
    return [name for name, rung in rungs.items() if _is_one_file(rung)]


def new(path: Path, rung: str, operands: OperandType = "fp8") -> str:
    """Write a file with the rung's source, its kernel named after the file, and what is to be done.

    Args:
        operands: of the kernel that is to come of it, as the judge takes them; the source is the rung's.

    Returns:
        What was written.

    Raises:
        InputError: the path is no .cu file's, or exists, or its name is no C++ name; or the rung is not one
            .cu file of its own, or cannot be written.
        UnknownRungError: there is no such rung.
    """
    source = rungs[rung]
    if not _is_one_file(source):
        raise InputError(
            f"{rung} is not one .cu file of its own; one of {', '.join(copied())} is needed for --from."
        )
    if path.suffix != ".cu" or not re.fullmatch(r"[A-Za-z_]\w*", path.stem):
        raise InputError(
            f"{path} is given; a name such as my_rung.cu is needed, letters, digits and _ before the .cu, "
            "because the kernel gets it too."
        )
    if path.exists():
        raise InputError(f"{path} exists; a name that does not is needed.")
    text = adapted(source.source, rung, path, operands)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); another place is needed.") from None
    return text


def adapted(source: str, rung: str, path: Path, operands: OperandType = "fp8") -> str:
    """A rung's source as that of another file."""
    lines = source.splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("//"))
    header = [line for line in lines[:end] if "python -m gemm_ladder" not in line]
    while "//" in header[1:3] and header[1] == header[2]:  # two empty lines, where a command was
        del header[1]
    option, given = ("", FP8_GIVEN) if operands == "fp8" else (f" --operands {operands}", BF16_GIVEN)
    title = re.sub(r"^// Rung \d+: ", "", header[0])
    comment = [
        f"// {path.stem}: TODO: what it adds to {rung} ({title.rstrip('.')}), in one line.",
        "//",
        f"//   python -m gemm_ladder lab judge {path.name}{option}",
        "//",
        "// TODO:",
        f"// - change one thing of the kernel, and let the judge say whether it is right. `{ENTRY}`,",
        *given,
        "// - rewrite this comment. What follows is the one of the rung.",
        *header[1:],
    ]
    first = textwrap.fill(comment[0], WIDTH, subsequent_indent="// ", break_on_hyphens=False)
    return "\n".join([first, *comment[1:], *_renamed(lines[end:], rung, path.stem)]) + "\n"


def _renamed(lines: list[str], rung: str, name: str) -> list[str]:
    """The rung's code with another name: what was aligned behind the name is so again, and a line that is too
    long is broken there."""
    found, aligned = [], 0  # the column at which the parameters of the function with the name were aligned
    for line in lines:
        new = re.sub(rf"\b{rung}\b", name, line)
        if aligned and len(line) - len(line.lstrip()) == aligned:
            new = " " * (aligned + len(name) - len(rung)) + line.lstrip()
        else:
            call = re.search(rf"\b{rung}\(", line)
            aligned = call.end() if call else 0
        if len(new) > WIDTH and (argument := re.search(rf"\((?={name}, )", new)):
            behind = argument.end() + len(name) + 1
            found.append(new[:behind])
            new = " " * argument.end() + new[behind:].lstrip()
        found.append(new)
    return found


def _is_one_file(rung: Rung) -> bool:
    return rung.path.suffix == ".cu" and rung.path.stem == rung.name
