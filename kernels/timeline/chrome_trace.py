"""Chrome's trace event format, as ui.perfetto.dev and chrome://tracing open it.

Source: "Trace Event Format", the document that the Chromium project publishes for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gemm_ladder.timeline.spans import Span, label, place


def chrome_trace(spans: Iterable[Span], sm: Mapping[int, int], about: Mapping[str, Any]) -> dict[str, Any]:
    """The spans as one JSON object. A block is a process there, an actor a thread of it.

    Args:
        spans: times in microseconds; the emulator's steps are shown as if they were.
        sm: of each block, where known.
        about: goes with it, as "otherData".
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
                "ph": "X",  # a complete event: its beginning and its duration
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
