"""README.md's tables: each stands between a pair of markers, and is written from the data."""

from __future__ import annotations

from collections.abc import Sequence

from .measured import CEILING, Data, provenance, series, sizes_of
from .rung_cards import rungs_table
from .tables import markdown, table


def readme_table(files: Sequence[Data], l2: str) -> str:
    """What stands in README.md between the markers of the table `l2`."""
    shown = series(files, l2)
    notes = [f"{CEILING}.", *provenance(shown, protocol=True)]
    body = markdown(table(shown)) + "\n\n" + "\n".join(f"<sub>{note}</sub><br>" for note in notes)
    return body.replace("*", r"\*")


def rewrite(text: str, name: str, body: str) -> str:
    """`text` with what stands between <!-- name:begin --> and <!-- name:end --> replaced.

    Raises ValueError where the markers are not there once each, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the text needs {begin} and, after it, {end}, once each")
    head, tail = text.split(begin)[0], text.split(end)[1]
    return f"{head}{begin}\n{body}\n{end}{tail}"


def interleave_table(data: Data) -> str:
    """What stands in README.md between the markers of the table `interleave`: microseconds, with spread."""
    shown = series([data], "dirty")
    modes = list(dict.fromkeys(row["impl"] for row in data["rows"]))
    found = {(row["m"], row["n"], row["k"], row["impl"]): row for row in data["rows"]}
    cells = [["m x n x k", *modes]]
    for size in sizes_of(shown):
        rows = [found[(*size, mode)] for mode in modes]
        spread = [f"{row['us']:.1f} ({row['us_p10']:.1f} to {row['us_p90']:.1f})" for row in rows]
        cells.append([" x ".join(map(str, size)), *spread])
    (note,) = provenance(shown)
    return f"{markdown(cells)}\n\n<sub>{note}</sub><br>"


def readme(
    text: str, files: Sequence[Data], interleave: Data | None = None, cards: Data | None = None
) -> str:
    """README.md with its tables as the data give them; a file that is not there leaves its table alone."""
    for l2 in ("dirty", "clean"):
        text = rewrite(text, f"table-{l2}", readme_table(files, l2))
    if interleave:
        text = rewrite(text, "table-interleave", interleave_table(interleave))
    return rewrite(text, "table-rungs", rungs_table(cards, files)) if cards else text
