"""Chrome's trace event format, which ui.perfetto.dev and chrome://tracing open.

Source: "Trace Event Format", published by the Chromium project.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gemm_ladder.timeline.spans import Span, label, place


def chrome_trace(spans: Iterable[Span], sm: Mapping[int, int], about: Mapping[str, Any]) -> dict[str, Any]:
    """The spans as one JSON object. In the trace a thread block is a process, and an actor a thread of it.

    Args:
        spans: times in microseconds; the emulator's steps are shown as microseconds.
        sm: the SM of each thread block, where it is known.
        about: written to the trace as "otherData".
    """
    threads: dict[tuple[int, str, int], int] = {}  # by actor
    events: list[dict[str, Any]] = []
    for span in sorted(spans, key=lambda span: (span.block, *place(span), span.begin)):
        if span.block not in {block for block, _, _ in threads}:
            where = f", SM {sm[span.block]}" if span.block in sm else ""
            events.append(_metadata("process_name", span.block, 0, name=f"block {span.block}{where}"))
        actor = span.block, span.unit, span.index
        if actor not in threads:
            thread = threads[actor] = len(threads)
            events.append(_metadata("thread_name", span.block, thread, name=label(span)))
            events.append(_metadata("thread_sort_index", span.block, thread, sort_index=thread))
        events.append(
            {
                "name": f"wait: {span.on}" if span.on else span.what,
                "cat": span.what,
                "ph": "X",  # a complete event, with its begin and its duration
                "pid": span.block,
                "tid": threads[actor],
                "ts": round(span.begin, 3),
                "dur": round(span.end - span.begin, 3),
                "args": {"role": span.role} | ({"bytes": span.bytes} if span.bytes else {}),
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": dict(about)}


def _metadata(what: str, pid: int, tid: int, **value: str | int) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": value}
