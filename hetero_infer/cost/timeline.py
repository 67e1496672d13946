"""Seconds of the whole schedule, twice: in closed form, which a MILP can minimise, and by the exact recurrence.

Both see the pipeline as a ring of stations: the compute of each stage, each link to the next stage, and the return
of the sampled tokens from the last stage to the first. A station works on one micro-batch at a time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hetero_infer.spec.plan import micro_batch_ranges
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


def recurrence(
    costs: StationCosts, workload: Workload, prefill_size: int, decode_size: int, *, barrier: bool = False
) -> Makespan:
    """Follow every micro-batch through every station: real sizes, a past that grows, no barrier unless asked for.

    Each station serves in the same order: the prefill micro-batches, then the decode micro-batches round by round.
    A decode micro-batch enters stage 0 when the last token of each of its sequences is back and stage 0 is free.
    """
    free_s, early_s, late_s = ([0.0] * (2 * costs.num_stages) for _ in range(3))

    def run(stations: Sequence[float], ready_s: float, prefill_s: float = math.inf) -> float:
        for station, seconds in enumerate(stations):
            ready_s = free_s[station] = max(ready_s, free_s[station]) + seconds
            late = min(seconds, max(0.0, ready_s - prefill_s))
            early_s[station] += seconds - late
            late_s[station] += late
        return ready_s

    token_back_s = [0.0] * workload.batch_size
    for sequences in micro_batch_ranges(workload.batch_size, prefill_size):
        end_s = run(station_seconds(costs, Phase.PREFILL, len(sequences), 0), 0.0)
        token_back_s[sequences.start : sequences.stop] = [end_s] * len(sequences)
    prefill_s = end_s = max(token_back_s)

    micro_batches = micro_batch_ranges(workload.batch_size, decode_size)
    ready_s = [prefill_s if barrier else max(token_back_s[r.start : r.stop]) for r in micro_batches]
    for step in range(workload.new_tokens - 1):
        past_tokens = workload.prompt_tokens + step
        stations = {
            size: station_seconds(costs, Phase.DECODE, size, past_tokens) for size in {len(r) for r in micro_batches}
        }
        for index, sequences in enumerate(micro_batches):
            end_s = ready_s[index] = run(stations[len(sequences)], ready_s[index], prefill_s)
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
