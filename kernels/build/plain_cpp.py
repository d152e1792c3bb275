"""CUDA C++ that no C++ compiler reads, written in C++ that means the same on the emulator.

Everything else of CUDA is macros and functions in ref/emulator. Here are the constructs that are not:

    __shared__ float tile[32][33];      a variable that each thread block has one of
    extern __shared__ uint8_t all[];    a block's dynamic shared memory
    kernel<<<grid, block>>>(a, b);      a launch
    __noinline__                        a name that the C++ library uses, so that it cannot be a macro

What a kernel promises by __launch_bounds__ is written once more, as a call at its beginning.
Lines keep their numbers. Declarations in included files are not rewritten, so a kernel's __shared__ variables
belong into its .cu file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from gemm_ladder.errors import InputError

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<directive>(?<![^\n])[ \t]*\#(?:[^\n\\]|\\.)*)
      | (?P<string>R"(?P<mark>[^\s()\\]{0,16})\(.*?\)(?P=mark)"|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<word>[A-Za-z_]\w*)
      | (?P<number>\.?\d(?:[\w.']|[eEpP][+-])*)
      | (?P<mark_>::|->|<<<|>>>|.)""",
    re.X | re.S,
)
_OPENING, _CLOSING = "([{", ")]}"
_QUALIFIERS = {"extern", "static", "volatile", "const", "__shared__", "inline"}


class _Token(NamedTuple):
    kind: str
    text: str
    begin: int
    end: int


def rewritten(text: str, label: str) -> str:
    """The text as C++ for the emulator.

    Args:
        text: of a .cu file.
        label: its name, for refusals.

    Raises:
        InputError: inline PTX, or a __shared__ declaration that cannot be understood.
    """
    if not re.search(
        r"__shared__|__launch_bounds__|__noinline__|<<<|\basm\b|__asm__|TensorMap|CUtensorMap", text
    ):
        return text
    tokens = [token for token in _tokens(text) if token.kind != "space"]
    _check_tensor_maps(text, tokens, label)
    clusters = _cluster_dims(tokens)
    edits: list[tuple[int, int, str]] = []
    scopes: list[str] = []
    at = statement = 0
    while at < len(tokens):
        token = tokens[at]
        if token.text in ("asm", "__asm__", "__asm"):
            raise InputError(
                f"{_place(text, token, label)} is inline PTX, which only a GPU executes: call the function "
                "of ptx.cuh that is named after the instruction."
            )
        if token.text == "__shared__":
            end = _end_of_statement(tokens, at)
            begin = min(statement, at)
            declared = _declaration(tokens[begin:end], "function" in scopes, _place(text, token, label))
            edits.append((tokens[begin].begin, tokens[end].end, declared))
            at = statement = end + 1
            continue
        if token.text == "<<<":
            edits += _launch(tokens, at, clusters)
        if token.text == "__launch_bounds__":
            edits += _bounds(tokens, at)
        if token.text == "__noinline__" and tokens[at - 1].text != "(":
            edits.append((token.begin, token.end, "__attribute__((noinline))"))
        if token.text == "{":
            scopes.append(_scope(tokens, at))
        elif token.text == "}" and scopes:
            scopes.pop()
        if token.text in (";", "{", "}", ":") or token.kind == "directive":
            statement = at + 1
        at += 1
    return _edited(text, edits)


def _check_tensor_maps(text: str, tokens: list[_Token], label: str) -> None:
    """Refuse a kernel whose tensor map is an ordinary parameter: the copy engine cannot read that."""
    for index, token in enumerate(tokens):
        if token.text != "__global__":
            continue
        begin = index + 1
        while begin < len(tokens) and tokens[begin].text not in (";", "{"):
            if tokens[begin].text == "(" and tokens[begin - 1].text not in (
                "__launch_bounds__",
                "__cluster_dims__",
            ):
                break
            begin = _matching(tokens, begin) + 1 if tokens[begin].text == "(" else begin + 1
        if begin >= len(tokens) or tokens[begin].text != "(":
            continue
        for parameter in _split(tokens[begin + 1 : _matching(tokens, begin)]):
            words = {one.text for one in parameter}
            if words & {"TensorMap", "CUtensorMap"} and not words & {"__grid_constant__", "*", "&"}:
                raise InputError(
                    f"{_place(text, parameter[0], label)}: {parameter[-1].text}, a tensor map, is a "
                    "parameter without __grid_constant__, so its address is in a thread's local memory, "
                    "where the copy engine cannot read it: write `const __grid_constant__ TensorMap`."
                )


def _tokens(text: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(text):
        yield _Token(str(found.lastgroup).rstrip("_"), found[0], found.start(), found.end())


def _place(text: str, token: _Token, label: str) -> str:
    number, name = _line(text, token.begin)
    return f"{name or label}:{number}"


def _line(text: str, at: int) -> tuple[int, str]:
    """The number of a line, and its file if a #line directive before it says so."""
    number, begin, name = 1, 0, ""
    for found in re.finditer(r'^#line (\d+)(?: "([^"\n]*)")?[^\n]*\n', text[:at], re.M):
        number, begin, name = int(found[1]), found.end(), (found[2] or name).rpartition("/")[2]
    return number + text.count("\n", begin, at), name


def _scope(tokens: list[_Token], at: int) -> str:
    """What a "{" begins: "namespace", "class" or "function", which stands for all else."""
    for token in reversed(tokens[max(at - 40, 0) : at]):
        if token.text in ("namespace",) or token.kind == "string":
            return "namespace"
        if token.text in ("struct", "class", "union", "enum"):
            return "class"
        if token.text in (";", "}", "{", ")"):
            break
    return "function"


def _end_of_statement(tokens: list[_Token], at: int) -> int:
    """The index of the ";" that ends the statement."""
    depth = 0
    for index in range(at, len(tokens)):
        text = tokens[index].text
        depth += (text in _OPENING) - (text in _CLOSING)
        if text == ";" and depth == 0:
            return index
    return len(tokens) - 1


def _declaration(tokens: list[_Token], local: bool, place: str) -> str:
    """The C++ for one declaration of __shared__ variables."""
    external = any(token.text == "extern" for token in tokens)
    alignments, kept = [], []
    index = 0
    while index < len(tokens):
        text = tokens[index].text
        if text in ("alignas", "__align__", "__attribute__"):
            end = _matching(tokens, index + 1)
            inner = "".join(token.text for token in tokens[index + 2 : end])
            aligned = re.fullmatch(r"\(aligned\((.*)\)\)", inner)
            alignments.append(aligned[1] if aligned else inner)
            index = end + 1
            continue
        if text not in _QUALIFIERS or text in ("volatile", "const"):
            kept.append(tokens[index])
        index += 1
    parts = _split(kept)
    name_at = next((i for i in range(len(parts[0])) if _is_name(parts[0], i)), None)
    if name_at is None or name_at == 0:
        raise InputError(f"{place}: this __shared__ declaration cannot be read; write one variable a line.")
    kind = _joined(parts[0][:name_at])
    declarators = [parts[0][name_at:], *parts[1:]]
    alignment = f"({', '.join(alignments)})" if alignments else "1"
    lines = []
    for declarator in declarators:
        begin = next(index for index, token in enumerate(declarator) if token.text != "*")
        stars, name, dimensions = declarator[:begin], declarator[begin].text, _joined(declarator[begin + 1 :])
        if external:
            body = f"static_cast<{kind}*>(emulator::dynamic_shared_memory())"
            lines.append(
                f"{kind}* const {name} = {body};"
                if local
                else f"inline {kind}* emulator_{name}() {{ return {body}; }}{_named(name)}"
            )
            continue
        full = f"{kind}{'*' * len(stars)}{dimensions}"
        key = f'static constexpr auto emulator_about_{name} = emulator::SharedVariable::of<{full}>("{name}");'
        body = f"emulator::shared<{full}>(emulator_about_{name}, {alignment})"
        lines.append(
            f"{key} auto& {name} = {body};"
            if local
            else f"{key} inline auto& emulator_{name}() {{ return {body}; }}{_named(name)}"
        )
    return " ".join(lines)


def _named(name: str) -> str:
    """What lets a variable's name stand for the function that finds the variable."""
    return f"\n#define {name} (emulator_{name}())\n"


def _is_name(tokens: list[_Token], index: int) -> bool:
    """Whether the declared name is at the index: the last word before the first [ or the end."""
    if tokens[index].kind != "word":
        return False
    following = tokens[index + 1].text if index + 1 < len(tokens) else "["
    return following == "["


def _split(tokens: list[_Token]) -> list[list[_Token]]:
    """Split at commas outside of brackets and template arguments."""
    parts: list[list[_Token]] = [[]]
    depth = angles = 0
    for token in tokens:
        depth += (token.text in _OPENING) - (token.text in _CLOSING)
        if depth == 0:
            angles += (token.text == "<") - (token.text == ">") - 3 * (token.text == ">>>")
        if token.text == "," and depth == 0 and angles <= 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _matching(tokens: list[_Token], at: int) -> int:
    """The index of the bracket that closes the one at `at`."""
    depth = 0
    for index in range(at, len(tokens)):
        depth += (tokens[index].text in _OPENING) - (tokens[index].text in _CLOSING)
        if depth == 0:
            return index
    return len(tokens) - 1


def _joined(tokens: list[_Token]) -> str:
    return re.sub(r"\s*(::|[<>\[\]*])\s*", r"\1", " ".join(token.text for token in tokens))


def _cluster_dims(tokens: list[_Token]) -> dict[str, str]:
    """What the __cluster_dims__ of each kernel says, by the kernel's name."""
    found = {}
    for index, token in enumerate(tokens[:-1]):
        if token.text != "__cluster_dims__" or tokens[index + 1].text != "(":
            continue
        end = _matching(tokens, index + 1)
        after = end + 1
        while after < len(tokens) and tokens[after].text not in (";", "{"):
            if tokens[after].text == "(":
                if tokens[after - 1].text != "__launch_bounds__":
                    found[tokens[after - 1].text] = _joined(tokens[index + 2 : end])
                    break
                after = _matching(tokens, after)
            after += 1
    return found


def _launch(tokens: list[_Token], at: int, clusters: dict[str, str]) -> list[tuple[int, int, str]]:
    """The edits that turn kernel<<<...>>>(arguments) into a call of emulator::start."""
    begin = at - 1
    if tokens[begin].text == ">":  # template arguments
        depth = 0
        while begin >= 0:
            depth += (tokens[begin].text == ">") - (tokens[begin].text == "<")
            begin -= 1
            if depth == 0:
                break
    cluster = f"dim3({clusters.get(tokens[begin].text, '1')})"
    while begin >= 2 and tokens[begin - 1].text == "::":
        begin -= 2
    end = next((i for i in range(at, len(tokens)) if tokens[i].text == ">>>"), None)
    if end is None:
        return []
    return [
        (tokens[begin].begin, tokens[begin].begin, f"emulator::start({cluster}, "),
        (tokens[at].begin, tokens[at].end, ", "),
        (tokens[end].begin, tokens[end].end, ")"),
    ]


def _bounds(tokens: list[_Token], at: int) -> list[tuple[int, int, str]]:
    """The edit that gives a kernel's bounds to emulator::launch_bounds, where its body begins."""
    end = _matching(tokens, at + 1)
    body = end + 1
    while body < len(tokens) and tokens[body].text not in (";", "{"):
        body = _matching(tokens, body) + 1 if tokens[body].text == "(" else body + 1
    if body >= len(tokens) or tokens[body].text == ";":  # a declaration
        return []
    place, bounds = tokens[body].end, _joined(tokens[at + 2 : end])
    return [(place, place, f" emulator::launch_bounds({bounds});")]


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    """Apply the edits. What a replaced text had in lines, its replacement has too."""
    for begin, end, new in sorted(edits, reverse=True):
        old = text[begin:end]
        if "\n" in new:  # a directive needs a line of its own, and the next line its number
            line, _ = _line(text, end)
            new = f"\n{new}#line {line}\n"
            rest = text[end:].split("\n", 1)
            text = text[:begin] + new + " " + "\n".join(rest)
            continue
        text = text[:begin] + new + "\n" * old.count("\n") + text[end:]
    return text
