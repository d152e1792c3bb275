"""The tables of README.md and figures/README.md: each stands between a pair of markers, and is written from
the data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from . import casts, everywhere, fp8_training, host, model, parallel, parallel_model, production
from .measured import CEILING, Series, name_of, provenance, series, sizes_of
from .rows import CastsFile, HostFile, LossesFile, ModelFile, ParallelFile, TimesFile
from .rung_cards import resources_table, rungs_table
from .tables import markdown, table, under


def readme(text: str, data: Mapping[str, Any]) -> str:
    """README.md with its table, and what it says of the weights of public models, as the data give them.

    Args:
        text: README.md.
        data: the content of the data files, by name without .json. What is made from a file that is not among
            them stays as it is.
    """
    if "cards" in data:
        text = rewrite(text, "table-rungs", rungs_table(data["cards"], data.get("ladder")))
    if "everywhere" in data:
        text = rewrite(text, "everywhere", everywhere.readme(data["everywhere"]))
    return text


def figures_readme(text: str, data: Mapping[str, Any]) -> str:
    """figures/README.md with its tables as the data give them; arguments as in readme()."""
    bodies = {}
    if "cards" in data:
        bodies["resources"] = resources_table(data["cards"], data.get("ladder"))
    if "ladder" in data:
        bodies |= {l2: times_table(data["ladder"], l2) for l2 in ("dirty", "clean")}
    if "production" in data:
        bodies["production"] = production_table(data["production"])
    if "everywhere" in data:
        bodies["everywhere"] = everywhere_table(data["everywhere"])
    if "host" in data:
        bodies["host"] = host_table(data["host"])
    if "casts" in data:
        bodies["casts"] = casts_table(data["casts"])
    if "parallel" in data:
        bodies["parallel"] = parallel_table(data["parallel"])
    if "model" in data:
        bodies["model"] = model_table(data["model"])
    if "training" in data:
        bodies["training"] = training_table(data["training"])
    if "fp8_training" in data:
        bodies["fp8-training"] = losses_table(data["fp8_training"])
    if "interleave" in data:
        bodies["interleave"] = interleave_table(data["interleave"])
    for name, body in bodies.items():
        text = rewrite(text, f"table-{name}", body)
    return text


def rewrite(text: str, name: str, body: str) -> str:
    """`text` with what stands between <!-- name:begin --> and <!-- name:end --> replaced by `body`.

    Raises ValueError where each of the two markers is not there exactly once, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the text needs {begin} and, after it, {end}, once each")
    head, tail = text.split(begin)[0], text.split(end)[1]
    return f"{head}{begin}\n{body}\n{end}{tail}"


def times_table(ladder: TimesFile, l2: str) -> str:
    """The tables `dirty` and `clean`: TFLOPS of every rung and library at every shape."""
    shown = series(ladder, l2)
    notes = [f"{CEILING}.", *provenance(shown, protocol=True)]
    return f"{markdown(table(shown))}\n\n{under(notes)}".replace("*", r"\*")


def production_table(data: TimesFile) -> str:
    """The table `production`."""
    shown = production.compared(data, "dirty")
    clean = production.times(data, "clean").get(production.RUNG, {})
    cells = production.table(shown)
    cells[0].append("us, L2 clean")
    for row, one in zip(cells[1:], shown, strict=True):
        row.append(f"{clean[one.key]:.2f}" if one.key in clean else "-")
    notes = [
        "us, TFLOPS and GB/s: median, L2 dirty, valid rows only; best peer: the fastest library with the "
        "same scales; ratio: its time over ours.",
        *production.notes(shown, data, protocol=True),
    ]
    return f"{markdown(cells)}\n\n{under(notes)}".replace("*", r"\*")


def everywhere_table(data: Any) -> str:
    """The table `everywhere`: the ratios by m and state, below the picture."""
    notes = [*everywhere.notes(data), *everywhere.provenance_of(data, protocol=True)]
    alt = "The time of the best library over ours by weight and m, in three states"
    return f"![{alt}](everywhere.png)\n\n{markdown(everywhere.table(data))}\n\n{under(notes)}"


def host_table(data: HostFile) -> str:
    """The table `host`."""
    return f"{markdown(host.table(data))}\n\n{under(host.provenance(data, protocol=True))}"


def casts_table(data: CastsFile) -> str:
    """The table `casts`, below the picture."""
    alt = "The time of each cast beside a copy of as many bytes, an empty kernel and other libraries"
    notes = [
        "Of the copy's rate: the copy's time over ours.",
        *casts.provenance(data, protocol=True),
    ]
    return f"![{alt}](casts.png)\n\n{markdown(casts.table(data))}\n\n{under(notes)}"


def parallel_table(data: ParallelFile) -> str:
    """The table `parallel`, below the picture: what was measured, the transfers alone, and the model."""
    alt = "The time of layers on one GPU and on two, with its parts, and a model for up to 64 GPUs"
    layer, rows = parallel.model_of(data), data["rows"]
    known = parallel_model.measured(layer, rows)
    notes = [
        "Model: us = time on one GPU / GPUs + travel + rest. Measured: the time on one GPU; a transfer "
        f"between two, {known.fixed_us:.0f} us and {known.rate / 1e9:.0f} GB/s; the rest, which is what two "
        "GPUs take besides: the mean of what was found at these sizes, so the errors here say how well one "
        "number does for all sizes, no more. Assumed: the same transfers among 8 GPUs, and the same rest for "
        f"more GPUs; to other machines {parallel_model.INFINIBAND / 1e9:.0f} GB/s a GPU, as InfiniBand's "
        "data sheet says; tokens and experts spread evenly; fewer than "
        f"{min(known.one['calls'])} tokens, which were not measured, take less as fewer experts have a row.",
        "Pays from, up to: the tokens a GPU between which sharing is faster than all experts on each GPU, if "
        "they had room; in brackets, with the least and the most rest that was measured, which says nothing "
        "about what is assumed. Python: called from there, a token goes once to each GPU that has one of its "
        "experts. CUDA graph: every token goes to every GPU, which is more the more GPUs there are.",
        *parallel.provenance(data, protocol=True),
    ]
    model_tables = (parallel_model.checks(layer, known, rows), parallel_model.limits(layer, known))
    tables = (
        parallel.table(data),
        parallel.training(data),
        parallel.transfers(data),
        *([*one] for one in model_tables),
    )
    return "\n\n".join([f"![{alt}](parallel.png)", *map(markdown, tables), under(notes)])


def model_table(data: ModelFile) -> str:
    """The table `model`: what it means, the pictures, the times and the parts."""
    means = "\n".join(f"- {line}" if not line.startswith(" ") else line for line in model.summary(data))
    graph, calls = (f"{words}:\n\n{markdown(model.table(data, how))}" for how, words in model.HOWS.items())
    return "\n\n".join(
        [
            means,
            "![The kernel time of a decoder layer by part, in BF16 and in FP8](layers.png)",
            "![How many times as fast MiniLM is in FP8, by tokens](minilm.png)",
            f"{graph}\n\n{calls}",
            f"<details>\n<summary>Where the time goes</summary>\n\n{markdown(model.parts_table(data))}\n\n"
            "</details>",
            under(model.notes(data)),
        ]
    )


def training_table(data: TimesFile) -> str:
    """The table `training`: microseconds of the training kernels and of DeepGEMM's, in both states of L2."""
    found = {l2: production.times(data, l2) for l2 in ("dirty", "clean")}
    cells, ratios = [["D += A B^T", "m x n x k"]], {l2: [] for l2 in found}
    for l2 in found:
        cells[0] += [f"us, {l2}", "DeepGEMM us", "ratio"]
    for key in dict.fromkeys(map(production.key_of, data["rows"])):
        kind, groups, *sizes = key
        line = [kind if kind == "dense" else f"{groups} groups along k", " x ".join(map(str, sizes))]
        for l2, times in found.items():
            us, theirs = times["training"][key], times["deep_gemm"][key]
            ratios[l2].append(theirs / us)
            line += [f"{us:.1f}", f"{theirs:.1f}", f"{theirs / us:.3f}"]
        cells.append(line)
    means = ", ".join(f"{statistics.geometric_mean(all_):.3f} with L2 {l2}" for l2, all_ in ratios.items())
    shown = [Series(impl, {}, data["meta"]) for impl in ("training", "deep_gemm")]
    notes = [
        "Ratio: DeepGEMM's time over ours; where there are groups, a group has about k of K.",
        f"Geometric mean of the ratios: {means}.",
        *provenance(shown, protocol=True),
    ]
    return f"{markdown(cells)}\n\n{under(notes)}"


def losses_table(data: LossesFile) -> str:
    """The table `fp8-training`, below the picture."""
    alt = "The losses of a model trained with FP8 linears and with BF16 ones, and the time of a step"
    notes = [
        "Held out: after the last step; training: the mean of the last "
        f"{fp8_training.LAST:.0%} of the steps.",
        *fp8_training.about(data),
        *fp8_training.provenance(data, protocol=True),
    ]
    found = fp8_training.verdict(data)
    return f"![{alt}](fp8_training.png)\n\n{found}\n\n{markdown(fp8_training.table(data))}\n\n{under(notes)}"


def interleave_table(data: TimesFile) -> str:
    """The table `interleave`: microseconds of each mode, with their spread."""
    shown = series(data, "dirty")
    modes = list(dict.fromkeys(row["impl"] for row in data["rows"]))
    found = {(row["m"], row["n"], row["k"], row["impl"]): row for row in data["rows"]}
    cells = [["m x n x k", *modes]]
    for size in sizes_of(shown):
        rows = [found[(*size, mode)] for mode in modes]
        spread = [f"{row['us']:.1f} ({row['us_p10']:.1f} to {row['us_p90']:.1f})" for row in rows]
        cells.append([name_of(size), *spread])
    return f"{markdown(cells)}\n\n{under(provenance(shown))}"
