"""From a place in a library's machine code to the source line it was compiled from."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
WRAPPERS = "include", "warp.cuh"  # the header of instructions that is the same for both machines

_BACK = (1, 0, 2, 4, 8, 16, 32)
_known: dict[tuple[str, int], list[tuple[str, int]]] = {}


class _Symbol(ctypes.Structure):
    """Dl_info of <dlfcn.h>"""

    _fields_ = (
        ("library", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def offsets(library: ctypes.CDLL, addresses: np.ndarray) -> np.ndarray:
    """Addresses in this process as offsets from the begin of a kernel's library; 0 for those outside it.

    Args:
        library: which exports gemm_ladder_launch, as every kernel's library does.
        addresses: uint64, return addresses of calls; 0 where there is none.

    Returns:
        uint64, of the same length.
    """
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Symbol)]

    def base(address: int) -> int:
        found = _Symbol()
        return found.base or 0 if address and dladdr(address, ctypes.byref(found)) else 0

    mine = base(ctypes.cast(library.gemm_ladder_launch, ctypes.c_void_p).value or 0)
    distinct, places = np.unique(addresses, return_inverse=True)
    inside = [int(address) - mine if base(int(address)) == mine else 0 for address in distinct]
    return np.array(inside, np.uint64)[places]


def lines(library: str, wanted: Iterable[int]) -> dict[int, tuple[str, int] | None]:
    """The lines of a kernel that made calls, by offset: each a file and a line number; None where no tool can
    say.

    Args:
        library: the path of the kernel's library.
        wanted: the calls' return addresses, as offsets from the library's begin.

    Where the compiler has copied functions into one another, it is the innermost line outside the emulator's
    own headers. addr2line, which belongs to the compiler's linker, reads the line table.
    """
    chosen = sorted(set(wanted))
    missing = [offset for offset in chosen if (library, offset) not in _known]
    if missing:
        # A return address is behind the call. A signal comes at an instruction itself, which can be one
        # without a line, such as an empty loop's jump: then what lies before it says where it is.
        answers = _addr2line(library, [offset - back for offset in missing for back in _BACK])
        for offset in missing:
            found = (answers.get(offset - back) for back in _BACK)
            _known[library, offset] = next(filter(None, found), [])
    return {offset: next(iter(_known[library, offset]), None) for offset in chosen}


def chain(library: str, *offsets: int) -> list[str]:
    """As lines(), without folders, such as "s3_wgmma.cu:65": the line of a call, then the lines that call the
    functions which the compiler has copied in there, then the same of each further call, which has called
    the function before it. A call that no tool can place has no line here.
    """
    lines(library, offsets)
    return [f"{Path(file).name}:{number}" for offset in offsets for file, number in _known[library, offset]]


def joined(places: list[str]) -> str:
    """A chain in words, such as "tile.cuh:4, called at gemm.cu:30"."""
    return ", called at ".join(places)


def named(library: str, text: str) -> str:
    """A text of the emulator's, in which places in a library's machine code stand as " {+0x12ab}", with their
    lines instead (chain): such as " (gemm.cu:30)"."""
    return re.sub(
        r" \{\+(0x[0-9a-f]+)\}",
        lambda found: f" ({joined(chain(library, int(found[1], 16))) or 'unknown line'})",
        text,
    )


def _addr2line(library: str, places: list[int]) -> dict[int, list[tuple[str, int]]]:
    """The lines outside the emulator of each place, the innermost first; places without one are left out."""
    asked = "".join(f"{place:#x}\n" for place in places)
    try:
        answered = subprocess.run(
            ["addr2line", "-a", "-i", "-e", library], input=asked, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[int, list[tuple[str, int]]] = {}
    place = 0
    for text in answered.stdout.splitlines():
        if re.fullmatch(r"0x[0-9a-f]+", text):  # -a: the address comes before its lines
            place = int(text, 16)
        elif (matched := re.match(r"(.*[^?]):(\d+)", text)) and not _is_emulator(Path(matched[1])):
            found.setdefault(place, []).append((_named(matched[1], library), int(matched[2])))
    return found


def _is_emulator(file: Path) -> bool:
    return file.is_relative_to(HERE) or file.parts[-2:] == WRAPPERS


def _named(file: str, library: str) -> str:
    """The name that the kernel's #line gives its file. What -fsanitize=alignment adds has the name under
    which torch compiled the file instead, with the same line numbers."""
    return f"{Path(library).stem}.cu" if Path(file).name == "main.cpp" else file
