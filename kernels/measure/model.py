"""python -m gemm_ladder model: FP8 in whole layers and in a whole model, against BF16 and DeepGEMM.

Needs a Hopper GPU. A decoder layer of Qwen3-8B, one of DeepSeek-V3, both with random weights, and
all-MiniLM-L6-v2, with its own where a package has them, run in BF16, converted by `gemm_ladder.layers`, with
fused casts, and with DeepGEMM's products. Every result is compared with that in BF16 before it is timed. In a
checkout, figures/data/model.json is renewed. A run that was ended goes on with the next model.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gemm_ladder import launch
from gemm_ladder.build import folders
from gemm_ladder.errors import GemmLadderError, InputError, one_line
from gemm_ladder.figures import measured, tables
from gemm_ladder.figures import model as figure
from gemm_ladder.figures.rows import ModelRow
from gemm_ladder.measure import (
    arithmetic,
    decoder,
    minilm,
    model_cases,
    model_times,
    model_warming,
    peers,
    records,
    session,
    warming,
)
from gemm_ladder.measure.model_cases import MODELS, Case
from gemm_ladder.settings import num_sms_limit

RECORD = "model.json"
SAME = ("gpu", "driver", "cuda", "torch", "sources", "protocol", "deep_gemm", "weights")
# The largest error of a token in the middle of all, relative to what the layer adds: every product has 3.7 %.
MAX_ERROR = 0.15
COMPILE_SECONDS = 40  # that are kept for compiling and measuring a model by torch.compile
PROTOCOL = (
    "one decoder layer, or the whole of MiniLM; BF16 activations; random normal input; every implementation "
    "in one process: they take turns, in an order that is drawn anew in each of "
    f"{model_times.ROUNDS} rounds, and the median counts; calls: the clock on the wall over calls one after "
    "another from Python; graph: a CUDA graph of calls back to back, its time over the calls (a decoder "
    "layer's weights are larger than L2, MiniLM's are not); parts: kernel times from the CUDA profiler, "
    f"without the gaps between kernels, the median of {model_times.REPEATS} calls; a kernel that begins "
    "before the one ahead has ended counts from its own beginning, so parts may add up to more than the "
    "graph's time; prefill: one sequence; decode: a batch of sequences of "
    f"{model_cases.CONTEXT} tokens each, their keys and values in BF16; MiniLM: one sentence, or sentences "
    f"of {model_cases.SENTENCE} tokens, without padding; rel_err: ||out - bf16|| / ||bf16 - input|| of a "
    "token, the median of all; torch.compile with dynamic sizes, of MiniLM each layer; DeepGEMM: masked "
    f"groups have room for whole tiles of {arithmetic.TILE_ROWS} rows, which it writes; simplified: "
    f"{decoder.SIMPLIFIED}"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `model`. Returns 0, or 1 where a result is wrong.

    Raises:
        GemmLadderError: there is no Hopper GPU, or an argument is not usable.
        gemm_ladder.build.ToolchainError, BuildError: a kernel cannot be built.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder model",
        description="Check and time decoder layers and a whole model in FP8 beside BF16 and DeepGEMM.",
    )
    parser.add_argument("--models", default="all", metavar="NAME,...", help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--no-peers", action="store_true", help="no DeepGEMM and no torch.compile")
    parser.add_argument(
        "--seconds", type=float, metavar="N", help="leave out torch.compile where it would take longer"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where everything that was measured is kept, and where an ended run goes on from (default: "
        "model.json in the cache folder)",
    )
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    arguments = parser.parse_args(argv)
    chosen = chosen_models(arguments.models)
    device, found = session.need_gpu("what is measured is time", arguments.json)
    path = arguments.json or folders.folder() / RECORD
    if arguments.fresh:
        path.unlink(missing_ok=True)
    print(f"Found {found}: every result is compared with BF16's, then timed. Kept in {path}\n", flush=True)
    result = on_gpu(chosen, device, path, not arguments.no_peers, arguments.seconds)
    if result.rows:
        show(result)
    session.show_measured(result, ())
    whole = {row["model"] for row in result.rows} == set(MODELS) and not arguments.no_peers
    session.keep(result, None, whole, RECORD, "every model, and the peers")
    return 1 if result.wrong else 0


def chosen_models(text: str) -> list[str]:
    """The models that `text` names. Raises InputError for another name."""
    words = [*MODELS] if text == "all" else [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in MODELS]:
        raise InputError(f"{unknown[0]!r} is no model; all, or some of {', '.join(MODELS)} are needed")
    return words


def show(result: session.Measured[ModelRow]) -> None:
    """Print the times, the parts, and what they mean."""
    for how in figure.HOWS:
        print(f"\n{figure.HOWS[how]}:\n{tables.plain(figure.table(result.data, how))}")
    print(f"\nWhere the time goes:\n{tables.plain(figure.parts_table(result.data))}\n")
    print("\n".join(figure.summary(result.data)))


def on_gpu(
    chosen: Sequence[str],
    device: torch.device,
    path: Path,
    with_peers: bool = True,
    seconds: float | None = None,
) -> session.Measured[ModelRow]:
    """Build the kernels, then check and time every model. What is measured of a model is written to `path`
    when it is complete."""
    deadline = time.monotonic() + (float("inf") if seconds is None else seconds)
    library, version, absent = deep_gemm() if with_peers else (None, None, "")
    trained = weights_are_there()
    meta = {
        **records.machine(device, 0),
        "protocol": PROTOCOL,
        "deep_gemm": version,
        "weights": "trained" if trained else "random",
    }
    result = resumed(path, meta)
    if absent and not any(one["impl"] == "deep_gemm" for one in result.missing):
        result.missing.append({"impl": "deep_gemm", "shape": "every size", "reason": absent})
    todo = [name for name in chosen if name not in {row["model"] for row in result.rows}]
    if not todo:
        return result
    with torch.cuda.device(device), torch.no_grad(), ThreadPoolExecutor(1) as aside:
        building = aside.submit(build, todo, device, library is not None)
        for name in todo:
            if decoder.experts_of(name):
                building.result()  # until then other processes have much of the GPU's memory
            say(f"{name}: weights, conversion")
            part = (
                model_cases.Minilm(device, trained)
                if name == minilm.NAME
                else model_cases.Decoder(name, device, library)
            )
            if isinstance(part, model_cases.Minilm) and trained:
                result.meta |= {
                    "cosine": round(min(part.cosines(minilm.SENTENCES)), 5),
                    "cosine_short": round(min(part.cosines(minilm.SHORT)), 5),
                }
            compiled = ready(part, with_peers, deadline, result)
            if not building.done():
                say("kernels are being compiled")
            building.result()
            measure(part, compiled, device, result)
            save(result, path)
            del part, compiled
            torch.cuda.empty_cache()
    return result


def build(names: Sequence[str], device: torch.device, with_deep_gemm: bool) -> None:
    """Compile what the models need: the casts, our products and, in processes of their own, DeepGEMM's."""
    with torch.cuda.device(device), ThreadPoolExecutor() as pool:
        casts = [pool.submit(kernel.compile, "cuda") for kernel in model_cases.CASTS]
        needed = [cell for name in names if name != minilm.NAME for cell in model_cases.products(name)]
        with contextlib.ExitStack() as stack:
            if with_deep_gemm and any(map(decoder.experts_of, names)):
                stack.enter_context(model_warming.warming())
            num_sms, gpu = launch.usable_sms(device, num_sms_limit()), torch.cuda.get_device_name(device)
            ours = model_cases.configurations(names, num_sms, gpu)
            warming.compile_all(ours, needed if with_deep_gemm else ())
        for cast in casts:
            cast.result()


Part = model_cases.Decoder | model_cases.Minilm
Compiled = dict[str, Callable[..., torch.Tensor]]


def ready(part: Part, with_peers: bool, deadline: float, result: session.Measured[ModelRow]) -> Compiled:
    """Compile a model by torch.compile, at every size. What fails, or would take too long, is noted."""
    compiled: Compiled = {}
    torch._dynamo.reset()
    for name, run in part.compiled().items() if with_peers else ():
        if time.monotonic() + COMPILE_SECONDS > deadline:
            note(result, name, part.name, "there was no time left to compile it")
            continue
        begun = time.monotonic()
        try:
            for case in part.cases({name: run}):
                case.calls[name]()
        except Exception as error:  # torch.compile may fail with any exception
            note(result, name, part.name, one_line(error))
            continue
        compiled[name] = run
        say(f"{part.name}: {name} took {time.monotonic() - begun:.0f} s to compile")
    return compiled


def measure(part: Part, compiled: Compiled, device: torch.device, result: session.Measured[ModelRow]) -> None:
    """Check and time a model at every size."""
    cases = []
    for case in part.cases(compiled):
        errors = check(case, result)
        found = times(case, device, result)
        of_case = [row(case, impl, how, us, errors[impl]) for (impl, how), us in found.items()]
        result.rows += of_case
        cases.append((case, of_case))
        say(
            f"{case}: "
            + ", ".join(f"{one['impl']} {one['us']:.0f}" for one in of_case if one["how"] == "graph")
        )
    marked = [
        (one, case.marked[one["impl"]])
        for case, of_case in cases
        for one in of_case
        if one["how"] == "graph" and one["impl"] in case.marked
    ]
    found_parts = model_times.parts([run for _, run in marked])
    for (one, _), parts in zip(marked, found_parts, strict=True):
        one["parts"] = parts


def check(case: Case, result: session.Measured[ModelRow]) -> dict[str, float]:
    """The error of each implementation. What fails is noted, and no longer among the case's calls; what is
    wrong as well."""
    expected = case.calls["bf16"]().float()
    errors = {}
    for name, call in list(case.calls.items()):
        try:
            errors[name] = error_of(call(), expected, case.before)
        except Exception as error:  # a library may refuse with any exception
            note(result, name, str(case), one_line(error))
        else:
            if errors[name] <= MAX_ERROR:
                continue
            sentence = (
                f"{name} at {case}: its relative error is {errors[name]:.2g}; at most {MAX_ERROR} is right"
            )
            if name == "deep_gemm":
                note(result, name, str(case), sentence)
            else:
                result.wrong.append(sentence)
        del case.calls[name]
    return errors


def error_of(out: torch.Tensor, expected: torch.Tensor, before: torch.Tensor | None) -> float:
    """The error of a token in the middle of all, over what was added to `before`; infinite where a number is
    not finite. In a mixture of experts few tokens go to other experts, whose errors are large."""
    if not out.isfinite().all():
        return float("inf")
    added = expected if before is None else expected - before
    return float(((out - expected).norm(dim=-1) / added.norm(dim=-1)).median())


def times(
    case: Case, device: torch.device, result: session.Measured[ModelRow]
) -> dict[tuple[str, str], Sequence[float]]:
    """Microseconds by implementation and by how it is called. What cannot be captured is noted."""
    calls = {name: model_times.as_called(call, device) for name, call in case.calls.items()}
    found: dict[tuple[str, str], Sequence[float]] = {
        (name, "calls"): us for name, us in model_times.in_turns(calls).items()
    }
    graphs = {}
    for name, call in case.calls.items():
        try:
            graphs[name] = model_times.in_graph(call, device)
        except RuntimeError as error:
            note(result, name, f"{case} in a graph", one_line(error))
    return found | {(name, "graph"): us for name, us in model_times.in_turns(graphs).items()}


def row(case: Case, impl: str, how: str, us: Sequence[float], error: float) -> ModelRow:
    """One row of figures/data/model.json, without its parts."""
    median = float(np.median(us))
    return {
        "model": case.model,
        "phase": case.phase,
        "tokens": case.tokens,
        "context": case.context,
        "impl": impl,
        "how": how,
        "us": round(median, 3),
        "us_least": round(min(us), 3),
        "us_most": round(max(us), 3),
        "tokens_s": round(case.tokens / median * 1e6),
        "rel_err": float(f"{error:.3g}"),
        "parts": {},
    }


def deep_gemm() -> tuple[ModuleType | None, str | None, str]:
    """DeepGEMM and its version; or neither, and why it cannot be imported."""
    try:
        library = peers.deep_gemm_library()
    except Exception as reason:  # a library may fail to load with any exception
        return None, None, one_line(reason)
    return library, str(getattr(library, "__version__", "unknown")), ""


def weights_are_there() -> bool:
    """Whether the package with MiniLM's weights is installed."""
    try:
        minilm.folder()
    except GemmLadderError:
        return False
    return True


def resumed(path: Path, meta: dict[str, Any]) -> session.Measured[ModelRow]:
    """What an earlier run left in `path` if it was one of the same GPU, libraries and sources; else nothing.

    Raises:
        InputError: the file is there and is not one that a run wrote.
    """
    if not path.exists():
        return session.Measured(meta)
    try:
        earlier = figure.load(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a file that this command wrote ({error}); another is needed"
        ) from None
    before: dict[str, Any] = {**earlier["meta"]}
    if any(before.get(name) != meta.get(name) for name in SAME):
        return session.Measured(meta)
    missing = before.pop("not_measured", [])
    return session.Measured(before, earlier["rows"], missing=missing)


def save(result: session.Measured[ModelRow], path: Path) -> None:
    records.keep_whole(result.data, path)
    measured.check(result.data, path.name, figure.META_FIELDS, figure.ROW_FIELDS)


def note(result: session.Measured[ModelRow], impl: str, shape: str, reason: str) -> None:
    result.missing.append({"impl": impl, "shape": shape, "reason": reason})


def say(line: str) -> None:
    print(line, flush=True)
