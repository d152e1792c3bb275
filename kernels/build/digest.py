"""A digest of the kernels' sources that a measurement records: it says which kernels were measured.

The digest is of tokens. A comment, a line break or an indentation changes no kernel, so it changes no digest
either, and a comment can be mended without measuring again. A file counts under its base name, so moving a
file to another folder changes nothing.

Whatever a compiler can notice changes the digest, with two exceptions, which the kernels do without: a line's
number (`__LINE__`, `assert`), and white space between the tokens of a macro's argument that `#` turns into a
string.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1]
# Below kernels/. Not covered: measure/*.cu, which probe the hardware and are no kernels of the ladder; the
# emulator's headers, which no GPU runs; fast_path.cpp, which runs on the host; and the choice of a
# configuration, because the recorded files name the configurations that ran.
SOURCES = (
    "stages/*.cu",
    "include/*.cuh",
    "production/*.cuh",
    "training/*.cuh",
    "casts/*.cuh",
    "layers/*.cuh",
    "sass/ffma.py",
)

_SUFFIX = r"(?:[A-Za-z_]\w*)?"  # of a user-defined literal
# The longest first: a lexer takes as many characters as make a token, so `a ++b` is not `a + +b`.
_PUNCTUATORS = (
    *("<<<", ">>>", "%:%:", "...", "<=>", "<<=", ">>=", "->*"),
    *("<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "++", "--", "->", "::", ".*", "##"),
    *("+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<:", ":>", "<%", "%>", "%:"),
)
_CPP_TOKEN = re.compile(
    r"(?P<newline>\n)"
    # A backslash at a line's end joins two lines. With no space beside it, it may also join two words into
    # one: there it is a token.
    r"|(?P<space>[ \t\f\v]+|(?<=\s)\\\n|\\\n(?=\s)|/\*.*?\*/|//(?:\\\n|[^\n])*)"
    r'|(?P<raw>(?:u8|[uUL])?R"(?P<delimiter>[^()\\\s]{0,16})\(.*?\)(?P=delimiter)"' + _SUFFIX + ")"
    r'|(?P<string>(?:u8|[uUL])?"(?:\\.|[^"\\\n])*"' + _SUFFIX + ")"
    r"|(?P<character>(?:u8|[uUL])?'(?:\\.|[^'\\\n])+'" + _SUFFIX + ")"
    r"|(?P<number>\.?\d(?:'\w|[eEpP][+-]|[\w.])*)"
    r"|(?P<word>[^\W\d]\w*)"
    r"|(?P<punctuator>\\\n|" + "|".join(map(re.escape, _PUNCTUATORS)) + r"|.)",
    re.DOTALL,
)
_HEADER_NAME = re.compile(r"[ \t]*(<[^>\n]*>)")
# Tokens of Python with no text that counts: a new indentation is one token, however deep it is.
_LAYOUT = {tokenize.NEWLINE: "NEWLINE", tokenize.INDENT: "INDENT", tokenize.DEDENT: "DEDENT"}
# From Python 3.12 on an f-string is many tokens (and from 3.14 on a t-string); before, it is one.
_OPENS = {getattr(tokenize, name, None) for name in ("FSTRING_START", "TSTRING_START")} - {None}
_CLOSES = {getattr(tokenize, name, None) for name in ("FSTRING_END", "TSTRING_END")} - {None}


def sources_digest() -> str:
    """SHA-256 (hex) of the tokens of the kernels' sources, SOURCES, and of the files' names."""
    paths = [path for pattern in SOURCES for path in KERNELS.glob(pattern)]
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths}
    assert len(texts) == len(paths), "two of the kernels' sources have the same name"
    return digest_of(texts)


def digest_of(texts: Mapping[str, str]) -> str:
    """SHA-256 (hex) of the tokens of source files, given as {base name: text}."""
    files = [[name, tokens(name, texts[name])] for name in sorted(texts)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def tokens(name: str, text: str) -> list[str]:
    """The tokens of a file, which is Python if its name ends in .py, and else C++ or CUDA."""
    text = text.replace("\r\n", "\n")
    return list(_python_tokens(text) if name.endswith(".py") else _cpp_tokens(text))


def _cpp_tokens(text: str) -> Iterator[str]:
    """The tokens of C++. A preprocessor directive begins with the token "\\n#" and ends with "\\n"."""
    line_begins = True  # nothing but white space and comments so far on this line
    directive: list[str] | None = None  # its tokens so far
    at = 0
    while match := _CPP_TOKEN.match(text, at):
        at, kind, token = match.end(), match.lastgroup, match[0]
        if kind == "space":
            continue
        if kind == "newline":
            if directive is not None:
                yield "\n"
            directive, line_begins = None, True
            continue
        if line_begins and token in ("#", "%:"):
            directive, token = [], "\n#"
        elif directive is not None:
            directive.append(token)
            if directive == ["define", token] and text[at : at + 1] == "(":
                token += "("  # a macro with parameters: `#define F(x)` is not `#define F (x)`
                at += 1
            elif directive in (["include"], ["include_next"]) and (header := _HEADER_NAME.match(text, at)):
                yield token
                at, token = header.end(), header[1]  # one token: it may have a space or // in it
        line_begins = False
        yield token
    if directive is not None:
        yield "\n"


def _python_tokens(text: str) -> Iterator[str]:
    """The tokens of Python, the same for every version; without statements that are only a string."""
    lines = io.StringIO(text).readlines()
    statement: list[str] = []
    only_strings = True
    nested, start = 0, (0, 0)  # f-strings that are open, and where the outermost one begins
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _OPENS:
            start = start if nested else token.start
            nested += 1
        if nested:
            nested -= token.type in _CLOSES
            if not nested:
                statement.append(_between(lines, start, token.end))
                only_strings = False
        elif token.type in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            pass
        elif token.type == tokenize.NEWLINE:
            if not only_strings:
                yield from [*statement, _LAYOUT[token.type]]
            statement, only_strings = [], True
        elif token.type in _LAYOUT:
            yield _LAYOUT[token.type]
        else:
            statement.append(token.string)
            only_strings = only_strings and token.type == tokenize.STRING and not _is_formatted(token.string)


def _is_formatted(literal: str) -> bool:
    """Whether a string literal is an f-string: one token, and of the type STRING, before Python 3.12."""
    return "f" in literal.partition(literal[-1])[0].lower()


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text between two positions, each of them (line, counted from 1; column)."""
    found = lines[start[0] - 1 : end[0]]
    found[-1] = found[-1][: end[1]]
    found[0] = found[0][start[1] :]
    return "".join(found)
