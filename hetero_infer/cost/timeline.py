"""Seconds of the whole schedule, twice: in closed form, which a MILP can minimise, and by the exact recurrence.

Both see the pipeline as a ring of stations: the compute of each stage, each link to the next stage, and the return
of the sampled tokens from the last stage to the first. A station works on one micro-batch at a time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from hetero_infer.spec.plan import micro_batch_ranges
from hetero_infer.spec.requests import RequestLengths
from hetero_infer.spec.workload import Phase, Workload


@dataclass(frozen=True)
class PhaseCosts:
    """Seconds of one full micro-batch at every station of one phase, and how many micro-batches there are."""

    compute_s: Sequence[float]
    send_s: Sequence[float]
    return_s: float
    micro_batches: int

    @property
    def pass_s(self) -> float:
        """One micro-batch once round the ring: L = Σ c + Σ s + r."""
        return sum(self.compute_s) + sum(self.send_s) + self.return_s

    @property
    def slowest_s(self) -> float:
        """The slowest station: M = max(c, s, r)."""
        return max(*self.compute_s, *self.send_s, self.return_s)


def prefill_seconds(costs: PhaseCosts) -> float:
    """L + (m - 1) M: a line of stations that every micro-batch passes once."""
    return costs.pass_s + (costs.micro_batches - 1) * costs.slowest_s


def decode_seconds(costs: PhaseCosts, new_tokens: int) -> float:
    """(n - 2) P + L + (m - 1) M with P = max(m M, L), for the n - 1 tokens that follow the prefill's.

    A micro-batch starts its next token when the last one came back, so a round takes the period P: either the
    slowest station is never idle (m M) or every micro-batch waits for its own token (L). The last round drains.
    docs/decisions/0002-closed-form.md has the proof.
    """
    if new_tokens < 2:
        return 0.0
    period_s = max(costs.micro_batches * costs.slowest_s, costs.pass_s)
    return (new_tokens - 2) * period_s + prefill_seconds(costs)


class StationCosts(Protocol):
    """Seconds at each station for a micro-batch of `batch` sequences that have `past_tokens` in their cache."""

    @property
    def num_stages(self) -> int: ...

    def compute_s(self, stage: int, phase: Phase, batch: int, past_tokens: int) -> float: ...

    def send_s(self, stage: int, phase: Phase, batch: int) -> float:
        """From `stage` to the next."""
        ...

    def return_s(self, phase: Phase, batch: int) -> float:
        """From the last stage to the first; not asked when they are the same."""
        ...


@dataclass(frozen=True)
class Makespan:
    """`prefill_s` ends when the last prompt's token is back, `decode_s` is what follows.

    `busy_s[phase][stage]` is how long a stage computes in that time; some of the first may be work on early tokens.
    """

    prefill_s: float
    decode_s: float
    busy_s: Mapping[Phase, tuple[float, ...]]

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s

    def idle_share(self, stage: int) -> float:
        """Of the whole time: 1 - busy / makespan."""
        return max(0.0, 1 - sum(busy_s[stage] for busy_s in self.busy_s.values()) / self.total_s)

    def phase_idle_share(self, stage: int, phase: Phase) -> float:
        """Of one phase's time; 0 where the phase takes none."""
        seconds = self.prefill_s if phase is Phase.PREFILL else self.decode_s
        return max(0.0, 1 - self.busy_s[phase][stage] / seconds) if seconds else 0.0


Stations = Callable[[Phase, int, int], Sequence[float]]  # of so many sequences with so many prompt or past tokens


def recurrence(
    costs: StationCosts, workload: Workload, prefill_size: int, decode_size: int, *, barrier: bool = False
) -> Makespan:
    """Follow every micro-batch through every station: real sizes, a past that grows, no barrier unless asked for."""

    @cache
    def stations(phase: Phase, batch: int, tokens: int) -> list[float]:
        return station_seconds(costs, phase, batch, 0 if phase is Phase.PREFILL else tokens)

    requests = [RequestLengths(workload.prompt_tokens, workload.new_tokens)] * workload.batch_size
    return recurrence_of(stations, requests, prefill_size, decode_size, barrier=barrier)


def recurrence_of(
    stations: Stations,
    requests: Sequence[RequestLengths],
    prefill_size: int,
    decode_size: int,
    *,
    barrier: bool = False,
) -> Makespan:
    """The same for one batch of requests of any lengths, whose micro-batches shrink as their sequences finish.

    Each station serves in the same order: the prefill micro-batches, then the decode micro-batches round by round.
    A decode micro-batch enters stage 0 when the last token of each of its sequences is back and stage 0 is free. One
    without sequences goes round once more, empty, and stage 0 takes it back before it goes on: the schedules do so.
    A prefill micro-batch takes as long as one of prompts of mean length: rows lie side by side, without padding. A
    decode micro-batch attends over its longest past.
    """
    prefills = micro_batch_ranges(len(requests), prefill_size)
    prompts = [[requests[sequence].prompt_tokens for sequence in sequences] for sequences in prefills]
    prefill_stations = [stations(Phase.PREFILL, len(tokens), -(-sum(tokens) // len(tokens))) for tokens in prompts]
    free_s, early_s, late_s = ([0.0] * len(prefill_stations[0]) for _ in range(3))

    def run(stations_s: Sequence[float], ready_s: float, prefill_s: float = math.inf) -> float:
        for station, seconds in enumerate(stations_s):
            ready_s = free_s[station] = max(ready_s, free_s[station]) + seconds
            late = min(seconds, max(0.0, ready_s - prefill_s))
            early_s[station] += seconds - late
            late_s[station] += late
        return ready_s

    token_back_s = [0.0] * len(requests)
    for sequences, seconds in zip(prefills, prefill_stations, strict=True):
        end_s = run(seconds, 0.0)
        token_back_s[sequences.start : sequences.stop] = [end_s] * len(sequences)
    prefill_s = end_s = max(token_back_s)

    micro_batches = micro_batch_ranges(len(requests), decode_size)
    ready_s = [prefill_s if barrier else max(token_back_s[r.start : r.stop]) for r in micro_batches]
    retired: set[int] = set()
    taken_s = 0.0  # the last empty message, by stage 0
    for step in range(max(request.new_tokens for request in requests) - 1):
        for index, sequences in enumerate(micro_batches):
            if index in retired:
                taken_s = max(taken_s, ready_s[index])
                continue
            there = [requests[s] for s in sequences if requests[s].new_tokens > step + 1]
            past_tokens = max((request.prompt_tokens for request in there), default=0) + step
            seconds = stations(Phase.DECODE, len(there), past_tokens)
            end_s = ready_s[index] = run(seconds, max(ready_s[index], taken_s), prefill_s)
            if not there:
                retired.add(index)
    busy_s = {Phase.PREFILL: tuple(early_s[::2]), Phase.DECODE: tuple(late_s[::2])}  # every other station is a stage
    return Makespan(prefill_s, end_s - prefill_s, busy_s)


def station_seconds(costs: StationCosts, phase: Phase, batch: int, past_tokens: int) -> list[float]:
    """Compute and send of each stage in turn, and the return last: none where there is one stage."""
    last = costs.num_stages - 1
    stations = []
    for stage in range(costs.num_stages):
        stations.append(costs.compute_s(stage, phase, batch, past_tokens))
        if stage < last:
            stations.append(costs.send_s(stage, phase, batch))
    stations.append(costs.return_s(phase, batch) if last else 0.0)
    return stations
