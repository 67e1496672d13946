"""Chrome's trace format, which ui.perfetto.dev and chrome://tracing draw: a track per station, a box per micro-batch.

In: spans, predicted or measured; both have the same names. Out: the file's text.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hetero_infer.spec import Phase

COLOURS = {Phase.PREFILL: "rail_response", Phase.DECODE: "rail_animation"}  # of the names that chrome://tracing knows
NANOSECONDS = 1e9


@dataclass(frozen=True)
class Span:
    """A station (`track`) works on something from `start_s` to `end_s`; `facts` are shown when it is clicked on."""

    track: str
    name: str
    phase: Phase
    start_s: float
    end_s: float
    facts: Mapping[str, int | float | str] = field(default_factory=dict)


def chrome_trace(spans: Iterable[Span], title: str) -> str:
    """Tracks stand in the order in which they first work. Times are whole nanoseconds, so that none overlap."""
    spans = sorted(spans, key=lambda span: (span.start_s, span.end_s))
    thread_of = {track: number for number, track in enumerate(dict.fromkeys(span.track for span in spans))}
    events = [_name("process_name", 0, title)]
    events += [_name("thread_name", thread, track) for track, thread in thread_of.items()]
    for span in spans:
        start_ns, end_ns = round(span.start_s * NANOSECONDS), round(span.end_s * NANOSECONDS)
        events.append(
            {
                "ph": "X",
                "name": span.name,
                "cat": span.phase.value,
                "cname": COLOURS[span.phase],
                "pid": 0,
                "tid": thread_of[span.track],
                "ts": start_ns / 1e3,  # the format's unit is the microsecond
                "dur": (end_ns - start_ns) / 1e3,
                "args": dict(span.facts),
            }
        )
    lines = ",\n".join(json.dumps(event, ensure_ascii=False) for event in events)
    return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'


def _name(what: str, thread: int, name: str) -> dict[str, object]:
    return {"ph": "M", "name": what, "pid": 0, "tid": thread, "args": {"name": name}}
