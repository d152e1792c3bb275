"""README.md's tables: each stands between a pair of markers, and is written from the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import host, production
from .measured import CEILING, Data, provenance, series, sizes_of
from .rung_cards import rungs_table
from .tables import markdown, table

PRODUCTION = """![The time of the best peer over that of s7_production, row by row](figures/production.png)

<details>
<summary>In numbers</summary>

{table}

{notes}

</details>

![TFLOPS of every row and rung against operations a byte, under the ceilings](figures/roofline.png)"""
HOST = """![Microseconds of the host for a call, and until a kernel is there](figures/host.png)

{table}

{notes}"""


def readme_table(files: Sequence[Data], l2: str) -> str:
    """What stands in README.md between the markers of the table `l2`."""
    shown = series(files, l2)
    notes = [f"{CEILING}.", *provenance(shown, protocol=True)]
    return f"{markdown(table(shown))}\n\n{_under(notes)}".replace("*", r"\*")


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
    return f"{markdown(cells)}\n\n{_under(provenance(shown))}"


def production_table(rows: Data, peers: Data | None) -> str:
    """What stands in README.md between the markers of the table `production`, with its pictures."""
    shown = production.compared(rows, peers, "dirty")
    clean = production.times(rows, "clean").get(production.RUNG, {})
    cells = production.table(shown)
    cells[0].append("us, L2 clean")
    for row, one in zip(cells[1:], shown, strict=True):
        row.append(f"{clean[one.key]:.2f}" if one.key in clean else "-")
    notes = [
        "us, TFLOPS and GB/s: median, L2 dirty, of the rows that count; best peer: of those with the same "
        "scales; ratio: its time over this.",
        *production.notes(shown, rows, peers, protocol=True),
    ]
    return PRODUCTION.format(table=markdown(cells), notes=_under(notes))


def host_table(calls: Data, peers: Data | None) -> str:
    """What stands in README.md between the markers of the table `host`, with its picture."""
    notes = [*host.provenance(calls, protocol=True), *host.elsewhere(peers)]
    return HOST.format(table=markdown(host.table(calls)), notes=_under(notes))


def _under(notes: Sequence[str]) -> str:
    return "\n".join(f"<sub>{note}</sub><br>" for note in notes)


def readme(text: str, files: Sequence[Data], data: Mapping[str, Data]) -> str:
    """README.md with its tables as the data give them; a file that is not there leaves its table alone.

    Args:
        text: README.md.
        files: ladder.json and peers.json.
        data: the other files, by name without .json.
    """
    for l2 in ("dirty", "clean"):
        text = rewrite(text, f"table-{l2}", readme_table(files, l2))
    if "production" in data:
        text = rewrite(text, "table-production", production_table(data["production"], data.get("peers")))
    if "host" in data:
        text = rewrite(text, "table-host", host_table(data["host"], data.get("peers")))
    if "interleave" in data:
        text = rewrite(text, "table-interleave", interleave_table(data["interleave"]))
    return rewrite(text, "table-rungs", rungs_table(data["cards"], files)) if "cards" in data else text
