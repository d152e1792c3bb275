"""The text that is compiled: a kernel's source, and what starts the kernel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gemm_ladder.build.job import macros, own_headers
from gemm_ladder.errors import InputError

_KERNEL = re.compile(
    r"__global__(?:\s+(?:static|inline|extern|\"C\"|void|__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)"
    r"|__(?:cluster_dims|maxnreg)__\s*\([^()]*\)))*\s+(\w+)\s*\("
)


def source_text(source: str | Path) -> tuple[str, Path | None]:
    if isinstance(source, str) and ("\n" in source or not source.endswith((".cu", ".cuh"))):
        return source, None
    path = Path(source).absolute()
    if not path.is_file():
        raise InputError(f"The source {path} does not exist.")
    return path.read_text(encoding="utf-8"), path


def kernels_of(text: str) -> list[str]:
    """The names of the __global__ functions, in order."""
    return list(dict.fromkeys(_KERNEL.findall(text)))


def only_kernel(text: str) -> str:
    kernels = kernels_of(text)
    if len(kernels) != 1:
        found = f"has the kernels {', '.join(kernels)}" if kernels else "has no __global__ function"
        raise InputError(f"The source {found}; name one with kernel=.")
    return str(kernels[0])


def check_template(text: str, kernel: str) -> None:
    """Raise InputError for the name of a template without its arguments."""
    if "<" in kernel:
        return
    for found in _KERNEL.finditer(text):
        if found[1] == kernel and re.search(r"\btemplate\s*<[^;{}]*>\s*$", text[: found.start()]):
            raise InputError(
                f'{kernel} is a template; its name with arguments is needed, such as kernel="{kernel}<128>".'
            )


def cluster_dims(text: str, kernel: str) -> str | None:
    """What the kernel's __cluster_dims__ says, as the source has it; None if it has none."""
    for found in _KERNEL.finditer(text):
        if found[1] == _base(kernel) and (dims := re.search(r"__cluster_dims__\s*\(([^()]*)\)", found[0])):
            return dims[1]
    return None


def _base(kernel: str) -> str:
    """A kernel's name without its namespace and template arguments."""
    return kernel.split("<")[0].split("::")[-1].strip()


def whole_text(
    text: str,
    path: Path | None,
    name: str,
    kernel: str,
    cluster: str | None,
    defines: Mapping[str, str | int] | None,
    symbols: Sequence[str],
) -> str:
    """The text that is compiled: the source, and what lab.cuh needs to start its kernel.

    `name` stands in messages for the path of a source that has none.

    The source's own macros and `defines` come after all headers of ours, whose names they could replace.
    """
    headers = ["lab.cuh", *own_headers(text, path.parent if path else None)]
    lines = [*(f"#include <{header}>" for header in headers)]
    lines += [f"#define {macro} {value}" for macro, value in macros(defines).items()]
    # A rung has a launcher of its own, which stays beside the lab's by another name.
    lines += ["#define gemm_ladder_launch launch_of_the_source", f'#line 1 "{path or name}"']
    lines += [text, "#undef gemm_ladder_launch", f"LAB_KERNEL({kernel})"]
    if cluster:
        lines.append(f"LAB_CLUSTER({cluster})")
    lines += [f"LAB_SYMBOL({number}, {name})" for number, name in enumerate(symbols)]
    return "\n".join(lines) + "\n"


def parameter_names(text: str, kernel: str, count: int) -> list[str]:
    """As the source has them, for messages."""
    for found in _KERNEL.finditer(text):
        if found[1] != _base(kernel):
            continue
        depth, begin = 1, found.end()
        end = begin
        while end < len(text) and depth:
            depth += (text[end] in "([{") - (text[end] in ")]}")
            end += 1
        listed = re.sub(r"//[^\n]*|/\*.*?\*/|<[^<>]*>", "", text[begin : end - 1], flags=re.S)
        names = [
            re.findall(r"\w+", one.split("=")[0])[-1] for one in listed.split(",") if re.search(r"\w", one)
        ]
        if len(names) == count:
            return names
    return [f"argument {index}" for index in range(count)]
