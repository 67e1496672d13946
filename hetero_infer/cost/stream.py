"""A stream of requests: the steady state in closed form, which a MILP can minimise, and served request by request.

A sequence keeps its slot until its last token, then a newcomer takes it. In a round every decode micro-batch goes once
round the ring, and newcomers are prefilled between them: with n tokens each, ρ = B / n a round. A slot gets a token a
round, from its prefill or from a decode, so a round brings B tokens.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from hetero_infer.cost.timeline import PhaseCosts, Stations
from hetero_infer.spec.plan import micro_batch_ranges, num_micro_batches
from hetero_infer.spec.requests import RequestLengths
from hetero_infer.spec.workload import Phase, Workload


@dataclass(frozen=True)
class Newcomers:
    """The prefill micro-batches of a round: `shared` go before each decode micro-batch, `alone` are waited for by all.

    One that is followed by others of its kind is spread over the stations, as they are. A rare one is not: wherever it
    is, the decode micro-batches soon stand behind it.
    """

    shared: float
    alone: float


def newcomers(workload: Workload, prefill_size: int, decode_size: int) -> Newcomers:
    """In the steady state of requests as long as the workload's: ρ / η prefill micro-batches a round.

    At one for each decode micro-batch or more, all are shared; at very few, all are alone. In between it is a guess
    that is linear in how many there are.
    """
    micro_batches = num_micro_batches(workload.batch_size, decode_size)
    prefills = workload.batch_size / workload.new_tokens / prefill_size
    alone = min(1.0, prefills) * max(0.0, 1 - prefills / micro_batches)
    return Newcomers((prefills - alone) / micro_batches, alone)


def with_newcomers(prefill: PhaseCosts, decode: PhaseCosts, shared: float) -> PhaseCosts:
    """Decode with each micro-batch's share of the prefill folded into it, station by station."""

    def both(decode_s: Iterable[float], prefill_s: Iterable[float]) -> tuple[float, ...]:
        return tuple(d + shared * p for d, p in zip(decode_s, prefill_s, strict=True))

    return PhaseCosts(
        both(decode.compute_s, prefill.compute_s),
        both(decode.send_s, prefill.send_s),
        decode.return_s + shared * prefill.return_s,
        decode.micro_batches,
    )


def period_seconds(prefill: PhaseCosts, decode: PhaseCosts, coming: Newcomers) -> float:
    """Of a round, in which B tokens come: max(md · M, L) + alone · L_p. docs/planner.md says when it is exact."""
    folded = with_newcomers(prefill, decode, coming.shared)
    return max(folded.micro_batches * folded.slowest_s, folded.pass_s) + coming.alone * prefill.pass_s


@dataclass(frozen=True)
class Served:
    """When a request's first and last token were back."""

    request: RequestLengths
    first_token_s: float
    last_token_s: float


@dataclass
class StreamRun:
    """`served` in the order in which they finish; `rounds_s` are the moments at which a round begins."""

    served: list[Served] = field(default_factory=list)
    rounds_s: list[float] = field(default_factory=list)

    def period_s(self, first: int, last: int) -> float:
        """Of the rounds from `first` to before `last`, on average."""
        return (self.rounds_s[last] - self.rounds_s[first]) / (last - first)


@dataclass
class _Slot:
    request: RequestLengths
    first_token_s: float
    back_s: float  # its newest token
    tokens: int = 1

    @property
    def is_done(self) -> bool:
        return self.tokens == self.request.new_tokens

    @property
    def past_tokens(self) -> int:
        return self.request.prompt_tokens + self.tokens - 1


def stream(
    stations: Stations, requests: Iterable[RequestLengths], batch_size: int, prefill_size: int, decode_size: int
) -> StreamRun:
    """Serve every request, in order of arrival; `stations(phase, sequences, tokens)` are the seconds at each station.

    Decode micro-batches have their turns one after the other. A turn waits for the micro-batch's tokens; sequences
    that finished with them leave; newcomers, η at a time or all that wait, are prefilled into free slots; then the
    others go once round. A newcomer decodes from the next turn of its slot's micro-batch on. Each station serves in
    the order in which stage 0 does.
    """
    waiting = deque(sorted(requests, key=lambda request: request.arrived_s))
    free, slots = deque(range(batch_size)), dict[int, _Slot]()
    free_s: list[float] = []
    run = StreamRun()
    idle_until_s = 0.0

    def pass_through(phase: Phase, sequences: int, tokens: int, ready_s: float) -> float:
        seconds = stations(phase, sequences, tokens)
        free_s.extend([0.0] * (len(seconds) - len(free_s)))
        for station, takes_s in enumerate(seconds):
            ready_s = free_s[station] = max(ready_s, free_s[station]) + takes_s
        return ready_s

    while waiting or slots:
        run.rounds_s.append(max([idle_until_s, *free_s[:1]]))
        is_idle = True
        for micro_batch in micro_batch_ranges(batch_size, decode_size):
            there = [slot for slot in micro_batch if slot in slots]
            turn_s = max([idle_until_s, *free_s[:1], *(slots[slot].back_s for slot in there)])
            for slot in there:
                if slots[slot].is_done:
                    done = slots.pop(slot)
                    run.served.append(Served(done.request, done.first_token_s, done.back_s))
                    free.append(slot)
            staying = [slot for slot in there if slot in slots]
            while newcomers := [
                request for request in itertools.islice(waiting, prefill_size) if request.arrived_s <= turn_s
            ]:
                if len(newcomers) > len(free):
                    break
                mean_tokens = -(-sum(request.prompt_tokens for request in newcomers) // len(newcomers))
                back_s = pass_through(Phase.PREFILL, len(newcomers), mean_tokens, turn_s)
                for request in newcomers:
                    waiting.popleft()
                    slots[free.popleft()] = _Slot(request, back_s, back_s)
                is_idle = False
            if staying:
                past_tokens = max(slots[slot].past_tokens for slot in staying)
                back_s = pass_through(Phase.DECODE, len(staying), past_tokens, turn_s)
                for slot in staying:
                    slots[slot].tokens += 1
                    slots[slot].back_s = back_s
                is_idle = False
        if is_idle and waiting:
            idle_until_s = max(idle_until_s, waiting[0].arrived_s)
    return run
