"""Whether two versions of the kernels' sources make the same machine code. No GPU is needed.

A name can be changed, or an expression written in another way, and the compiler makes the same instructions
of it. Then what was measured of one version holds for the other.

What is compared is each library whole: all of its kernels, also those that nobody timed. The rungs and the
production kernels stand for most recorded files; `of_file` lists the libraries of those files that time
others. A list has what Python launches today: if it chose other kernels when a file was measured, nothing
here sees that.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gemm_ladder import build
from gemm_ladder.arguments import H100_SMS
from gemm_ladder.build import digest
from gemm_ladder.build.job import KERNELS
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.errors import BuildError
from gemm_ladder.measure import casts, fp8_training, model, model_cases, parallel, training
from gemm_ladder.measure.operands import held_rows
from gemm_ladder.measure.parallel_ranks import Plan
from gemm_ladder.measure.shapes import MASKED_MAX_M, MEASURED, PRODUCTS, Product
from gemm_ladder.precompiling import Compiled
from gemm_ladder.production import launching
from gemm_ladder.production.config import Config
from gemm_ladder.sass import disassembly

GPUS = ("NVIDIA H100 80GB HBM3", "NVIDIA H200")  # that the recorded files are of
CASTS_TEXT = "casts/kernel.py"  # below kernels/: writes the text that casts are compiled from
ROOMS = ("include", "production", "training", "casts", "layers")  # with headers
Instructions = list[tuple[str, str, str, int]]
Source = Path | str  # a file, or text that includes files


def of_file(file: str) -> list[Compiled]:
    """The libraries whose kernels are launched when a file of LISTS is measured, each text once."""
    return list({one.source(): one for gpu in GPUS for one in LISTS[file](gpu)}.values())


def _of_fp8_training(gpu: str) -> Sequence[Compiled]:
    tokens = fp8_training.BATCH * fp8_training.SIZES.context
    return fp8_training.kernels(fp8_training.SIZES, tokens, H100_SMS, gpu)


# Recorded files of other kernels than the rungs and the production kernels of PRODUCTS and MEASURED: what is
# launched on a GPU of a name.
LISTS: dict[str, Callable[[str], Sequence[Compiled]]] = {
    casts.RECORD: lambda _: [one.kernel for one in casts.CASTS],
    training.RECORD: lambda _: [*training.configurations(training.PRODUCTS, H100_SMS).values()],
    fp8_training.RECORD: _of_fp8_training,
    model.RECORD: lambda gpu: [
        *(*model_cases.CASTS, *model_cases.OWN),
        *model_cases.configurations(model_cases.MODELS, H100_SMS, gpu),
    ],
    parallel.RECORD: lambda gpu: [*parallel.BESIDE, *parallel.needed(Plan(), H100_SMS, gpu)],
}


def differing_kernels(earlier: Path, file: str | None = None) -> list[str]:
    """The names of the libraries whose machine code differs, of those that are timed.

    Args:
        earlier: a folder with the earlier sources, as they are below kernels/; the present ones are this
            package's.
        file: one of LISTS; None: the rungs and the production kernels.

    Returns:
        Those names, also of what does not build from the earlier sources. Of `file` it is the first that is
        found: the others, which may be a hundred, need not be compiled then.

    Raises:
        gemm_ladder.build.ToolchainError: there is no nvcc, or no cuobjdump.
        gemm_ladder.build.BuildError: a present kernel does not build.
    """
    sources: list[tuple[str, Source, Source | None]]
    if file is None:
        texts = [*_rungs(), *_production()]
        sources = [(name, _source(KERNELS, text), _source(earlier, text)) for name, text in texts]
    else:
        sources = [(one.name, one.source(), _earlier_text(one, earlier)) for one in of_file(file)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        same = pool.map(lambda one: _same(one[1], one[2], earlier), sources)
        differing = (name for (name, *_), is_same in zip(sources, same, strict=True) if not is_same)
        if file is None:
            return [*differing]
        first = [*itertools.islice(differing, 1)]
        pool.shutdown(cancel_futures=True)
        return first


def _rungs() -> Iterator[tuple[str, str]]:
    """(name, path below kernels/) of every rung that is a file."""
    for path in sorted((KERNELS / "stages").glob("*.cu")):
        yield path.stem, f"stages/{path.name}"


def _production() -> Iterator[tuple[str, str]]:
    """(name, text) of the production kernel of every product that is timed, as calls on GPUS choose it."""
    products = [*PRODUCTS, *(Product("dense", 1, shape) for shape in MEASURED)]
    chosen = [_configuration(product, gpu) for gpu in GPUS for product in products]
    for text in dict.fromkeys(config.source() for config in chosen):
        yield next(config.name for config in chosen if config.source() == text), text


def _configuration(product: Product, gpu: str) -> Config:
    kind, groups, (m, n, k) = product
    rows = MASKED_MAX_M if kind == "masked" else sum(held_rows(product))
    return launching.configuration(kind, rows, n, k, groups, m, H100_SMS, gpu)


def _source(folder: Path, source: str) -> Source:
    """A path below `folder`, or text that includes files from there."""
    return folder / source if source.endswith(".cu") else source


def _earlier_text(library: Compiled, earlier: Path) -> str | None:
    """The text of a library with which the earlier sources are compiled: for a cast that of the earlier
    kernel.py, as it names what cast_start.cuh had then. None if there is no such cast."""
    if not isinstance(library, Kernel):
        return library.source()
    try:
        spec = importlib.util.spec_from_file_location("earlier_kernel", earlier / CASTS_TEXT)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        text: str = module.Kernel(*library).source()
    except Exception:  # whatever an earlier version may raise
        return None
    return text


def _same(now: Source, then: Source | None, earlier: Path) -> bool:
    """Whether both make the same instructions, `then` with the headers of the folder `earlier`."""
    if then is None or (isinstance(then, Path) and not then.is_file()):
        return False
    jobs = (_job(now), _job(then, earlier))
    if _read(jobs[0]) == _read(jobs[1]):
        return True
    present = _instructions(jobs[0])
    try:
        return present == _instructions(jobs[1])
    except BuildError:
        return False


def _job(source: Source, folder: Path | None = None) -> build.Job:
    """The build of a source; headers come from `folder` first, if there is one."""
    flags = [f"-I{folder / name}" for name in ROOMS] if folder else []
    return build.Job.of(source, "cuda", "same_code", extra_flags=flags)


def _read(job: build.Job) -> dict[str, list[str]]:
    """The tokens of what a build reads: of its text, and of each header by its name."""
    headers = {Path(path).name: _tokens(path) for path in job.included}
    return {"": digest.tokens("source.cu", job.text), **headers}


@functools.cache
def _tokens(path: str) -> list[str]:
    return digest.tokens(path, Path(path).read_text(encoding="utf-8"))


def _instructions(job: build.Job) -> Sequence[Instructions]:
    """Each kernel's instructions."""
    return [
        [(one.predicate, one.opcode, one.operands, one.word) for one in kernel]
        for kernel in disassembly.disassemble(build.make(job).path).values()
    ]
