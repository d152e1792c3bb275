"""The digest of the kernels' sources: words and layout change nothing in it, any token does."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from gemm_ladder import build
from gemm_ladder.build import digest

CPP = r"""
// A comment, and a line of code.
#include <cuda/std/cstdint>  // for what
#define TWICE(x) \
    (2 * (x))

template <int kTile>
__global__ void kernel(float* d, int n) {
    /* A comment
       of two lines */
    const char* text = "not // a comment, /* nor this";
    const char quote = '"';  // "
    const char* raw = R"end(// " not /* one)" either)end";
    if (n > 0 && d[n] < 1.5e+3f) d[n] = a + +b - 1'000 * TWICE(n);
}
void start() { kernel<128><<<1, 32>>>(nullptr, 0); }
"""
PYTHON = '''
"""A module."""

import math

LIMITS = (
    1,  # the first
    2,
)


def half(x: float) -> str:
    """A docstring."""
    # A comment.
    if x < 0:
        return "negative  # no comment"
    return f"{math.sqrt(x)!r:>{8}} of {x}"
'''


def tokens(text: str, name: str = "a.cu") -> list[str]:
    return digest.tokens(name, text)


CPP_WORDS: dict[str, Callable[[str], str]] = {
    "other comments": lambda text: text.replace("A comment", "Other words"),
    "no comments": lambda text: text.replace("// A comment, and a line of code.\n", "").replace(
        "// for what", ""
    ),
    "a comment more": lambda text: text.replace("(float* d", "(/* out */ float* d  // here\n"),
    "a comment over two lines": lambda text: text.replace("// for what", "// for \\\n what"),
    "blank lines": lambda text: text.replace("\n", "\n\n").replace("\\\n\n", "\\\n"),
    "indentation": lambda text: text.replace("    ", "\t"),
    "line breaks": lambda text: text.replace("(float* d, int n) {", "(\n    float* d,\n    int n)\n{"),
    "spaces": lambda text: text.replace("a + +b", "a  +\n+b").replace("= '\"'", "='\"'"),
    "a longer continuation": lambda text: text.replace("(x) \\\n    (2 *", "(x)  \\\n \\\n (2 \\\n *"),
    "Windows' line ends": lambda text: text.replace("\n", "\r\n"),
    "no last line end": lambda text: text.rstrip(),
}


@pytest.mark.parametrize("change", CPP_WORDS.values(), ids=CPP_WORDS)
def test_words_and_layout_of_cpp_change_nothing(change: Callable[[str], str]) -> None:
    assert change(CPP) != CPP and tokens(change(CPP)) == tokens(CPP)


CPP_TOKENS = {
    "a name": ("d[n] =", "e[n] ="),
    "a number": ("1.5e+3f", "1.5e-3f"),
    "a digit separator": ("1'000", "1000"),
    "a string": ("not // a", "not // b"),
    "white space in a string": ("not // a", "not //  a"),
    "a character": ("'\"'", "'\\''"),
    "a raw string": ('(// " not', '(//  " not'),
    "++": ("a + +b", "a ++b"),
    "+ +": ("a + +b", "a ++ b"),
    "&&": ("&&", "& &"),
    "a launch": ("<<<1", "<< <1"),
    "a header": ("cuda/std", "cuda//std"),
    "a macro's parameters": ("TWICE(x) \\\n", "TWICE (x) \\\n"),
    "where a macro ends": ("(x) \\\n", "(x)\n"),
    "two words in one": ("const char", "constchar"),
    "two words in one, over two lines": ("const char quote", "const\\\nchar quote"),
    "what is a comment": ("float* d", "float* /* d */"),
    "what is a directive": ("\n#define", " #define"),
}


@pytest.mark.parametrize(("old", "new"), CPP_TOKENS.values(), ids=CPP_TOKENS)
def test_any_token_of_cpp_counts(old: str, new: str) -> None:
    assert old in CPP and tokens(CPP.replace(old, new)) != tokens(CPP)


def test_tokens_of_cpp() -> None:
    """One of each kind, written out."""
    text = "x+++y; // c\n#  define F(a) a \\\n 1\n/**/ # include <a b//c>\n"
    text += 'u8"s"_x R"(\\\n)" \'\\\'\' .5e-3\\\nz ::->* # é'
    assert tokens(text) == [
        *("x", "++", "+", "y", ";"),
        *("\n#", "define", "F(", "a", ")", "a", "1", "\n"),
        *("\n#", "include", "<a b//c>", "\n"),
        *('u8"s"_x', 'R"(\\\n)"', "'\\''", ".5e-3", "\\\n", "z", "::", "->*", "#", "é"),
    ]
    assert tokens("#define S x\\\ny") == ["\n#", "define", "S", "x", "\\\n", "y", "\n"]


PYTHON_WORDS: dict[str, Callable[[str], str]] = {
    "other words": lambda text: text.replace("comment.", "word.").replace("docstring", "sentence"),
    "no docstrings": lambda text: text.replace('"""A module."""', "").replace('"""A docstring."""', ""),
    "a longer docstring": lambda text: text.replace("A docstring.", "A docstring\n\n    of two paragraphs."),
    "blank lines": lambda text: text.replace("\n\n", "\n\n\n"),
    "line breaks in brackets": lambda text: text.replace("(\n    1,  # the first\n    2,\n)", "(1, 2,)"),
    "indentation": lambda text: text.replace("        ", "     ").replace("    if", "  if").replace(
        "    return f", "  return f"
    ).replace('    """', '  """').replace("    #", "  #"),
}  # fmt: skip


@pytest.mark.parametrize("change", PYTHON_WORDS.values(), ids=PYTHON_WORDS)
def test_words_and_layout_of_python_change_nothing(change: Callable[[str], str]) -> None:
    assert change(PYTHON) != PYTHON and tokens(change(PYTHON), "a.py") == tokens(PYTHON, "a.py")


PYTHON_TOKENS = {
    "a name": ("LIMITS", "BOUNDS"),
    "a number": ("    2,", "    3,"),
    "a comma": ("    2,\n", "    2\n"),
    "a string": ("# no comment", "# comment"),
    "an f-string's text": ("} of {", "} or {"),
    "an f-string's expression": ("sqrt(x)", "sqrt(y)"),
    "white space in an f-string": ("} of {", "}  of {"),
    "a block": ("    return f", "        return f"),
    "a string that is used": ('"""A docstring."""', 'y = """A docstring."""'),
    "a line": ("import math\n", "import math, re\n"),
}


@pytest.mark.parametrize(("old", "new"), PYTHON_TOKENS.values(), ids=PYTHON_TOKENS)
def test_any_token_of_python_counts(old: str, new: str) -> None:
    assert old in PYTHON and tokens(PYTHON.replace(old, new), "a.py") != tokens(PYTHON, "a.py")


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_every_python_finds_the_same_tokens(version: str, tmp_path: Path) -> None:
    """From 3.12 on, Python's own tokenizer takes an f-string apart."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode != 0:
        pytest.skip(f"needs Python {version}")
    text = PYTHON + 'x = f"""{f"{1}" "a"}\n {{ }} {x:{y}.2f}""" rb"b"  # c\nf"a statement"\nr"a docstring"'
    (tmp_path / "a.py").write_text(text)
    code = (
        f"import sys; sys.path[:0] = [{str(Path(digest.__file__).parent)!r}]\n"
        f"import digest; print(digest.tokens('a.py', open({str(tmp_path / 'a.py')!r}).read()))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{tokens(text, 'a.py')}\n", done.stderr
    assert 'f"""{f"{1}" "a"}\n {{ }} {x:{y}.2f}"""' in tokens(text, "a.py")
    assert tokens(text, "a.py")[-2:] == ['f"a statement"', "NEWLINE"]


# ------------------------------------------------------------------ of the kernels


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two sources that count, and files that do not."""
    monkeypatch.setattr(digest, "KERNELS", tmp_path)
    files = {
        "stages/a.cu": "int a;",
        "sass/ffma.py": "x = 1\n",
        "cli.py": "x = 1\n",
        "measure/probe.cu": "int b;",
        "ref/emulator/c.cuh": "int c;",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_digest_covers_the_kernels_and_their_names(kernels: Path) -> None:
    first = build.sources_digest()
    assert re.fullmatch("[0-9a-f]{64}", first)
    for name in ("cli.py", "measure/probe.cu", "ref/emulator/c.cuh"):
        (kernels / name).write_text("another")
    (kernels / "stages/a.cu").write_text("int  a;  // what it is\n")
    assert build.sources_digest() == first
    found = {first}
    (kernels / "stages/a.cu").write_text("int z;")
    found.add(build.sources_digest())
    (kernels / "sass/ffma.py").write_text("x = 2\n")
    found.add(build.sources_digest())
    (kernels / "stages/a.cu").rename(kernels / "stages/z.cu")
    found.add(build.sources_digest())
    (kernels / "include").mkdir()
    (kernels / "include/new.cuh").write_text("")
    found.add(build.sources_digest())
    assert len(found) == 5


def test_folder_does_not_count(kernels: Path) -> None:
    first = build.sources_digest()
    (kernels / "include").mkdir()
    (kernels / "stages/a.cu").rename(kernels / "include/a.cuh")
    second = build.sources_digest()
    (kernels / "production").mkdir()
    (kernels / "include/a.cuh").rename(kernels / "production/a.cuh")
    assert build.sources_digest() == second != first


def test_digest_sees_all_that_a_compiler_sees_of_the_kernels() -> None:
    """They use no line numbers, and turn no more than a number and names into strings."""
    paths = [path for pattern in digest.SOURCES for path in digest.KERNELS.glob(pattern)]
    assert len(paths) > 15
    strings = set()
    for path in paths:
        if path.suffix != ".py":
            found = tokens(path.read_text(), path.name)
            assert not {"__LINE__", "assert"} & set(found), path
            strings |= {following for one, following in itertools.pairwise(found) if one in ("#", "%:")}
    assert strings == {"N", "NAME", "name", "A", "B", "D"}
