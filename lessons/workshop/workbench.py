"""What the lessons share that is not a picture: run a small kernel, change a rung, say what is wrong with it.

The notebooks run in this folder, so `import workbench` finds it. Kernels run where DEVICE says: on a Hopper
GPU where there is one, and otherwise on the emulator. What is broken on purpose runs on the emulator only: it
names the fault, where a GPU would hang or be right by luck.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import difflib
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder import arguments, build
from gemm_ladder.figures import lessons, measured, rung_cards
from gemm_ladder.lab.operands import OTHER_ARITHMETIC
from gemm_ladder.measure.variants import changed
from gemm_ladder.ref import emulator, fp8, tensor_core
from gemm_ladder.ref.gemm import BF16
from gemm_ladder.rungs import Rung
from workshop import apart, guesses, printed
from workshop.changes import Change

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == arguments.HOPPER
DEVICE = "cuda" if HOPPER else "cpu"
MAX_STEPS = 2_000_000  # of the emulator's scheduler: a broken loop ends


# ------------------------------------------------------------------------------------------------ the product


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Operands in NumPy: E4M3 a [m, k] and b [n, k], float32 sfa [m, k / 128] and sfb [n / 128, k / 128]."""

    a: np.ndarray
    sfa: np.ndarray
    b: np.ndarray
    sfb: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(m, n, k)"""
        return len(self.a), len(self.b), self.a.shape[1]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the functions of gemm_ladder.ref take."""
        return self.a, self.sfa, self.b, self.sfb


def problem(m: int, n: int, k: int, seed: int = 0) -> Problem:
    """Two matrices of normal numbers, cast to FP8 as DeepSeek-V3 does."""
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((rows, k)).astype(np.float32) for rows in (m, n))
    return Problem(*fp8.per_token_cast_to_fp8(a), *fp8.per_block_cast_to_fp8(b))


def tensor(array: np.ndarray, device: str = DEVICE) -> torch.Tensor:
    """A NumPy array, E4M3 ones too, as a tensor on `device`."""
    if array.dtype == fp8.E4M3:
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn).to(device)
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def multiply(rung: Rung, of: Problem, device: str = DEVICE) -> np.ndarray:
    """The rung's D, BF16 [m, n] as a NumPy array, poisoned with NaN beforehand."""
    m, n, _ = of.shape
    d = torch.full((m, n), torch.nan, dtype=torch.bfloat16, device=device)
    rung((tensor(of.a, device), tensor(of.sfa, device)), (tensor(of.b, device), tensor(of.sfb, device)), d)
    return d.view(torch.int16).cpu().numpy().view(BF16)


def expected(rung: str, of: Problem) -> np.ndarray:
    """The BF16 numbers, bit for bit, that the rung s1_naive or one of those above it must give."""
    on_cuda_cores = OTHER_ARITHMETIC.get(rung) == "CUDA cores"
    model = tensor_core.cuda_core_gemm if on_cuda_cores else tensor_core.gemm
    return model(*of.arrays).view(BF16)


# ------------------------------------------------------------------------- one small kernel, or a changed one


class _Args(ctypes.Structure):
    _fields_ = [("input", ctypes.c_void_p), ("out", ctypes.c_void_p), ("stream", ctypes.c_void_p)]


_AROUND = """#include "launch.cuh"
#include "layout.cuh"
#include "ptx.cuh"

{source}

struct TryArgs {{ const void* in; void* out; void* stream; }};
extern "C" const char* gemm_ladder_launch(const TryArgs* args) {{
    LaunchConfig config{{.blocks = 1, .threads = {threads}, .shared_bytes = {shared_bytes}}};
    config.stream = args->stream;
    return launch({kernel}, config, args->in, args->out);
}}
"""


def try_kernel(
    source: str,
    out: np.ndarray,
    input: np.ndarray | None = None,
    threads: int = 128,
    shared_bytes: int = 0,
    seed: int = 0,
    device: str = DEVICE,
) -> emulator.Run | None:
    """Run one block of a kernel `__global__ void name(const T* in, U* out)`, which fills `out`.

    Returns what the emulator recorded, or None from a GPU.
    """
    kernel = re.search(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", source)[1]
    text = _AROUND.format(source=source, kernel=kernel, threads=threads, shared_bytes=shared_bytes)
    library = build.load(text, target="emulator" if device == "cpu" else "cuda", name=kernel).lib
    if device == "cpu":
        pointer = None if input is None else input.ctypes.data
        with gl.emulator(seed=seed, record=True, max_steps=MAX_STEPS) as run:
            error = emulator.launch(library, _Args(pointer, out.ctypes.data))
    else:
        library.gemm_ladder_launch.restype = ctypes.c_char_p
        gpu_out, gpu_input = (None if x is None else bytes_on_gpu(x) for x in (out, input))
        pointer = None if gpu_input is None else gpu_input.data_ptr()
        stream = torch.cuda.current_stream().cuda_stream
        error = library.gemm_ladder_launch(ctypes.byref(_Args(pointer, gpu_out.data_ptr(), stream)))
        out.reshape(-1).view(np.uint8)[:] = gpu_out.cpu().numpy()
        run = None
    if error is not None:
        raise gl.GemmLadderError(str(error))
    return run


def bytes_on_gpu(array: np.ndarray) -> torch.Tensor:
    """A copy of an array's bytes, which may be read-only, as uint8."""
    return torch.from_numpy(array.reshape(-1).view(np.uint8).copy()).cuda()


# ---------------------------------------------------------------------------------------------- what is wrong


Symptom = gl.EmulatorError | str  # the emulator's error, or what is wrong with the answer


def tried(function: Callable[..., list[Symptom | None]], *args: object) -> list[Symptom | None]:
    """The symptoms that function(*args) finds, looked for in a process of its own: a broken kernel may crash
    or hang. Then that is the only one."""
    try:
        return apart.call(function, *args)
    except apart.Ended as error:
        return [guesses.Crash(error)]


def symptoms(rung: Rung, of: Problem, right: np.ndarray, seeds: Iterable[int]) -> list[Symptom | None]:
    """What is wrong under each schedule of the emulator; None where nothing is."""
    return under_schedules(lambda: difference(multiply(rung, of, "cpu"), right), seeds, MAX_STEPS)


def under_schedules(
    run: Callable[[], str | None], seeds: Iterable[int], max_steps: int
) -> list[Symptom | None]:
    """Call `run`, which returns what is wrong with its answer or None, once under each of the schedules."""
    found: list[Symptom | None] = []
    for seed in seeds:
        try:
            with gl.emulator(seed=seed, max_steps=max_steps):
                found.append(run())
        except gl.EmulatorError as error:
            found.append(error)
    return found


def difference(d: np.ndarray, right: np.ndarray) -> str | None:
    """Where D is not the expected one, bit for bit; None where it is."""
    wrong = d.view(np.uint16) != right.view(np.uint16)
    if not wrong.any():
        return None
    places = []
    for what, axis in (("rows", 1), ("columns", 0)):
        index = np.flatnonzero(wrong.any(axis))
        every = " every" if len(index) == wrong.shape[1 - axis] else ""
        places.append(f"{what} {index[0]} to {index[-1]}{',' + every + ' one' if every else ''}")
    nan = int(np.isnan(d.astype(np.float32)).sum())
    row, column = np.argwhere(wrong)[0]
    return (
        f"wrong answer: {wrong.sum()} of {wrong.size} elements, in {' and '.join(places)}; {nan} are NaN; "
        f"the first, D[{row}, {column}], is {float(d[row, column]):.4g}, not {float(right[row, column]):.4g}"
    )


def break_it(name: str, of: Problem, *changes: tuple[str, str], seeds: int = 8, guess: str = "") -> None:
    """Run a rung with each (old, new) replaced, under some schedules of the emulator; print the symptoms.

    `guess` names a guess of `exercises.guess_break`, to be printed beside them.
    """
    broken = changed(name, *changes)
    found = tried(symptoms, broken, of, expected(name, of), range(seeds))
    show_symptoms(found, fault, Change(gl.rungs[name].source, broken.source), guess)


def show_symptoms(
    found: Sequence[Symptom | None],
    kind: Callable[[Symptom], str],
    change: Change | None = None,
    guess: str = "",
) -> None:
    """Print the first symptom of each kind, with how many schedules have one of it, and the guess."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for symptom in found:
        words = symptom or "nothing: the right answer"
        groups[kind(words)].append(str(words))
    print(f"{len(found)} schedules:")
    for texts in sorted(groups.values(), key=len, reverse=True):
        count = f"  {len(texts)} x "
        first, *rest = texts[0].splitlines()
        below = textwrap.indent(textwrap.dedent("\n".join(rest)), " " * len(count))
        printed.show(f"{count}{first}\n{below}")
    if guess:
        guesses.broken(guess, change, [*map(guesses.outcome, found)])


def fault(symptom: Symptom) -> str:
    """What the emulator names, or what a symptom says first, whatever its numbers."""
    if isinstance(symptom, gl.EmulatorError):
        return str(symptom.what)
    return re.sub(r"0x\w+|\d+(\.\d+)?", "#", str(symptom).split(":")[0])


# ---------------------------------------------------------------------------------------------------- display


class Text:
    """Shown as Markdown where that is possible, and as it is where not."""

    def __init__(self, markdown: str, plain: str | None = None) -> None:
        self.markdown, self.plain = markdown, plain or markdown

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        markdown = lessons.relocated(self.markdown) if lessons.learner() else self.markdown
        return {"text/markdown": markdown, "text/plain": self.plain}


def code(text: str, begin: str, end: str, without: Sequence[tuple[str, str]] = (), instead: str = "") -> Text:
    """The lines of a source from the first that matches `begin` to the next that matches `end`.

    Of these, those between the two of each pair of `without` are left out, and `instead`, a comment, says so.
    """
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if re.search(begin, line))
    last = next(i for i in range(first, len(lines)) if re.search(end, lines[i]))
    lines = lines[first : last + 1]
    for cut, until in without:
        at = next(i for i, line in enumerate(lines) if re.search(cut, line))
        to = next(i for i in range(at, len(lines)) if re.search(until, lines[i]))
        lines[at : to + 1] = [f"{lines[at][: len(lines[at]) - len(lines[at].lstrip())]}// [{instead}]"]
    part = "\n".join(lines)
    return Text(f"```cpp\n{part}\n```", part)


def diff(below: str, rung: str, context: int = 3) -> Text:
    """The change from one rung's file to the next one's, as the files are now.

    A line that only moved to the right or to the left counts as the same.
    """
    old, new = gl.rungs[below], gl.rungs[rung]
    before, after = old.source.splitlines(), new.source.splitlines()
    bare = [[line.strip() for line in lines] for lines in (before, after)]
    found = [f"--- {old.path.name}", f"+++ {new.path.name}"]
    for group in difflib.SequenceMatcher(None, *bare, autojunk=False).get_grouped_opcodes(context):
        (_, i, _, j, _), (_, _, i_end, _, j_end) = group[0], group[-1]
        found.append(f"@@ -{i + 1},{i_end - i} +{j + 1},{j_end - j} @@")
        for what, begin, end, now, until in group:
            if what == "equal":
                found += [f" {line}" for line in after[now:until]]
            else:
                found += [f"-{line}" for line in before[begin:end]]
                found += [f"+{line}" for line in after[now:until]]
    text = "\n".join(found)
    return Text(f"```diff\n{text}\n```", text)


def card(rung: str, again: bool = False) -> Text:
    """The rung's card, as figures/cards has it, under a smaller heading; `again`: folded, but for the line
    that says what limits it, since the lesson before has shown it."""
    text = rung_cards.cards(rung_cards.load(measured.DATA / "cards.json"))[rung]
    shown = "#### " + text.removeprefix("# ").replace("../../", "../")
    if again:
        limit = next((line for line in shown.splitlines() if line.startswith("**")), "")
        shown = f"{limit}\n\n<details><summary>All of the card of {rung}</summary>\n\n{shown}\n\n</details>"
    return Text(shown, text)


def slider(draw: Callable[..., None], **ranges: tuple[int, int] | Sequence[str]) -> object:
    """ipywidgets' sliders for the arguments of `draw`; in a page that cannot run them, a sentence.

    The lesson shows the same picture above it, so that nothing is lost there.
    """
    sentence = f"Run this cell in Jupyter for sliders: {', '.join(ranges)}."
    try:
        import ipywidgets
    except ImportError:
        return Text(sentence)
    if "ipykernel" not in sys.modules:
        return Text(sentence)
    widget = ipywidgets.interactive(draw, **ranges)

    class Sliders:
        def _repr_mimebundle_(self, **options: object) -> dict[str, object]:
            return {**widget._repr_mimebundle_(**options), "text/plain": sentence}

    return Sliders()
