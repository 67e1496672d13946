"""`RequestLengths`: how long the requests really are, of a batch file or of a trace, and the workloads that stand for
them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hetero_infer.spec.csv_file import read_rows
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.files import read_text
from hetero_infer.spec.workload import Workload

TRACE_COLUMNS = {"TIMESTAMP": str, "ContextTokens": int, "GeneratedTokens": int}
PEAK_WINDOW_S = 60.0


@dataclass(frozen=True)
class RequestLengths:
    """One request. `arrived_s` counts from the first of a trace; all of a file are there at once."""

    prompt_tokens: int
    new_tokens: int
    arrived_s: float = 0.0

    @property
    def cache_tokens(self) -> int:
        """As `Workload.cache_tokens`."""
        return self.prompt_tokens + self.new_tokens - 1

    def fits(self, most: Workload) -> bool:
        """Whether a plan for `most` admits it."""
        return self.prompt_tokens <= most.prompt_tokens and self.cache_tokens <= most.cache_tokens


@dataclass(frozen=True)
class RealRequests:
    """Those of a file or a trace that a plan can admit, in its order; `left_out` are longer than that."""

    lengths: tuple[RequestLengths, ...] = ()
    left_out: int = 0


def longest(requests: Sequence[RequestLengths], batch_size: int) -> Workload:
    """The smallest workload that admits them all."""
    prompt_tokens = max(request.prompt_tokens for request in requests)
    return Workload(batch_size, prompt_tokens, max(request.cache_tokens for request in requests) + 1 - prompt_tokens)


def average(requests: Sequence[RequestLengths], batch_size: int) -> Workload:
    """Mean lengths, rounded up."""
    return Workload(
        batch_size,
        -(-sum(request.prompt_tokens for request in requests) // len(requests)),
        -(-sum(request.new_tokens for request in requests) // len(requests)),
    )


def requests_per_s(requests: Sequence[RequestLengths]) -> tuple[float, float]:
    """Of a trace in order of arrival: on average, and in the busiest minute."""
    arrived_s = [request.arrived_s for request in requests]
    lasts_s = arrived_s[-1] - arrived_s[0]
    most = first = 0
    for last, moment_s in enumerate(arrived_s):
        while arrived_s[first] <= moment_s - PEAK_WINDOW_S:
            first += 1
        most = max(most, last - first + 1)
    peak = most / min(PEAK_WINDOW_S, lasts_s) if lasts_s else float("inf")
    return (len(requests) - 1) / lasts_s if lasts_s else float("inf"), peak


def read_trace(path: Path) -> tuple[RequestLengths, ...]:
    """A CSV file with the columns of `TRACE_COLUMNS`, in order of arrival."""
    rows = read_rows(read_text(path, "trace").splitlines(), f"trace {path}", TRACE_COLUMNS, _arrival)
    if len(rows) < 2:
        raise InputError(f"trace {path}: {len(rows)} requests make no stream; give a longer trace")
    rows.sort(key=lambda row: row[0])
    began = rows[0][0]
    return tuple(
        RequestLengths(prompt_tokens, new_tokens, (at - began).total_seconds())
        for at, prompt_tokens, new_tokens in rows
    )


def _arrival(row: Mapping[str, Any]) -> tuple[datetime, int, int]:
    try:
        at = datetime.fromisoformat(row["TIMESTAMP"])
    except ValueError:
        raise InputError(f"TIMESTAMP = {row['TIMESTAMP']!r} is no time like 2023-11-16 18:15:46.68") from None
    if row["ContextTokens"] < 1 or row["GeneratedTokens"] < 1:
        raise InputError("ContextTokens and GeneratedTokens are at least 1")
    return at, row["ContextTokens"], row["GeneratedTokens"]
