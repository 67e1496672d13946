"""The steady state's closed form beside streams served request by request: equal where it must be, near elsewhere."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hetero_infer.bench.planner.cases import case_request
from hetero_infer.bench.planner.schedules import RandomCosts
from hetero_infer.bench.section import Demand, Section
from hetero_infer.cost.stream import (
    Newcomers,
    Served,
    StreamRun,
    newcomers,
    period_seconds,
    stream,
    with_newcomers,
)
from hetero_infer.cost.timeline import PhaseCosts, station_seconds
from hetero_infer.planner.requests import admitting
from hetero_infer.planner.search import find_plan
from hetero_infer.planner.steady import serve, steady_state
from hetero_infer.spec import Objective, Phase, Workload
from hetero_infer.spec.plan import num_micro_batches
from hetero_infer.spec.requests import RequestLengths, average, longest, read_trace

SEED, COUNT = 20261124, 200
PASSES = 12  # how often each slot is served
AGREES, COMES_NEAR = 1e-9, 0.2
TRACE_REQUESTS = 1200  # of the trace's first, all there from the start
TRACE_MOST = Workload(32, 1792, 257)  # OPT has 2048 positions
TRACE_SIZES = ((1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (2, 16), (4, 32))  # (η, ξ)


@dataclass(frozen=True)
class StreamCase:
    """`first` take the slots, `others` follow; all are there from the start. Costs are constant."""

    costs: RandomCosts
    workload: Workload
    prefill_size: int
    decode_size: int
    first: tuple[int, ...]
    others: tuple[int, ...]

    @property
    def phases(self) -> list[PhaseCosts]:
        micro_batches = num_micro_batches(self.workload.batch_size, self.decode_size)
        return [self.costs.of_phase(phase, micro_batches) for phase in Phase]

    @property
    def coming(self) -> Newcomers:
        return newcomers(self.workload, self.prefill_size, self.decode_size)

    @property
    def closed_form_s(self) -> float:
        return period_seconds(*self.phases, self.coming)

    @property
    def is_station_bound(self) -> bool:
        """And no other station is nearly as slow, which would take long to settle."""
        folded, last = with_newcomers(*self.phases, self.coming.shared), self.costs.num_stages - 1
        stations = sorted([*folded.compute_s, *folded.send_s, *[folded.return_s] * bool(last)])
        is_alone = len(stations) == 1 or stations[-2] < 0.95 * stations[-1]
        return is_alone and folded.micro_batches * folded.slowest_s >= folded.pass_s

    def served(self) -> StreamRun:
        requests = [RequestLengths(64, new_tokens) for new_tokens in (*self.first, *self.others)]

        def stations(phase: Phase, sequences: int, tokens: int) -> list[float]:
            return station_seconds(self.costs, phase, sequences, 0)

        return stream(stations, requests, self.workload.batch_size, self.prefill_size, self.decode_size)

    def settled_period_s(self) -> float:
        """Of n rounds, after which an even stream is as it was before."""
        new_tokens = self.workload.new_tokens
        return self.served().period_s((PASSES - 3) * new_tokens, (PASSES - 2) * new_tokens)

    def uneven_period_s(self) -> float:
        return seconds_for_tokens(self.served().served, self.workload.batch_size)


def seconds_for_tokens(served: Sequence[Served], tokens: int) -> float:
    """At the rate of the middle third: for B tokens, what a period is where rounds are uneven."""
    middle = served[len(served) // 3 : 2 * len(served) // 3]
    got = sum(one.request.new_tokens for one in middle[1:])
    return (middle[-1].last_token_s - middle[0].last_token_s) * tokens / got


def even_case(seed: int) -> StreamCase:
    """Every micro-batch takes the same whole number of prefill micro-batches in every round."""
    rng = random.Random(seed)
    micro_batches, new_tokens = rng.randint(1, 9), rng.choice((2, 3, 4, 6))
    prefill_size, prefills = rng.choice(((1, 1), (2, 1), (1, 2), (2, 2), (1, 3)))
    decode_size = new_tokens * prefill_size * prefills
    workload = Workload(decode_size * micro_batches, 64, new_tokens)
    slots = range(workload.batch_size)
    return StreamCase(
        RandomCosts(seed, rng.randint(1, 5), growing=False),
        workload,
        prefill_size,
        decode_size,
        first=tuple(1 + slot % new_tokens for slot in slots),
        others=(new_tokens,) * (PASSES * len(slots)),
    )


def uneven_case(seed: int) -> StreamCase:
    """Any sizes, and answers of any length around the mean."""
    rng = random.Random(seed)
    workload = Workload(rng.choice((8, 16, 32)), 64, rng.choice((8, 16, 32)))
    sizes = rng.choice(workload.micro_batch_sizes[2:]), rng.choice(workload.micro_batch_sizes)
    lengths = [
        min(1 + int(rng.expovariate(1 / (workload.new_tokens - 0.5))), 256) for _ in range(25 * workload.batch_size)
    ]
    mean = round(statistics.fmean(lengths))
    workload = Workload(workload.batch_size, 64, mean)
    return StreamCase(RandomCosts(seed, rng.randint(1, 5), growing=False), workload, *sizes, (), tuple(lengths))


def measure(shared: Path) -> Section:
    """Nothing of `shared` is needed."""
    seeds = range(SEED, SEED + COUNT)
    even, uneven = ([case for case in map(make, seeds) if case.closed_form_s] for make in (even_case, uneven_case))
    bound = [case for case in even if case.is_station_bound]
    exact = [case.settled_period_s() / case.closed_form_s - 1 for case in bound]
    others = [case.settled_period_s() / case.closed_form_s - 1 for case in even if case not in bound]
    random_ = [case.uneven_period_s() / case.closed_form_s - 1 for case in uneven]
    off = max(map(abs, exact))
    rows = [
        ("even, a station sets the pace", exact),
        ("even, the way round sets it, or two stations", others),
        ("answers of random lengths, any sizes", random_),
    ]
    return Section(
        title="The steady state: served streams beside the closed form",
        header=("streams", "count", "median", "8 of 10 in", "all in"),
        rows=[
            (what, str(len(found)), f"{statistics.median(found):+.1%}", _range(found, 0.1), _range(found, 0.0))
            for what, found in rows
        ],
        demands=[
            Demand(f"even streams that a station bounds: {off:.1e} off at most, {AGREES:.0e} allowed", off <= AGREES),
            Demand(f"no even stream is slower: {max(others):+.1e} at most", max(others) <= AGREES),
        ],
        notes=[f"seeds from {SEED}; constant costs, 1 to 5 stages; seconds for B tokens, relative to the closed form"],
        facts=[{"streams": what, "differences": found} for what, found in rows],
    )


def measure_trace(shared: Path) -> Section:
    """A public trace of conversations, as fast as one plan can serve it."""
    trace = read_trace(shared / "data/traces/azure_conv_2023.csv")
    requests = [replace(one, arrived_s=0.0) for one in trace if one.fits(TRACE_MOST)]
    workload = average(requests, TRACE_MOST.batch_size)
    request = case_request(shared, "opt-30b", {"v100-32": 2, "a100-40": 2}, workload)
    request = replace(request, room_for=longest(requests, workload.batch_size), objective=Objective.STEADY)
    plan = admitting(find_plan(request, time_limit_s=20, gap=1e-3), request)
    rows, off = [], []
    for prefill_size, decode_size in TRACE_SIZES:
        sized = replace(plan, prefill_micro_batch_size=prefill_size, decode_micro_batch_size=decode_size)
        said, served = steady_state(sized, request), serve(sized, request, requests[:TRACE_REQUESTS]).served
        period_s = seconds_for_tokens(served, workload.batch_size)
        off.append(said.period_s / period_s - 1)
        rates = (f"{workload.batch_size / period_s:.1f}", f"{said.tokens_per_s:.1f}")
        rows.append((str(prefill_size), str(decode_size), *rates, f"{off[-1]:+.1%}"))
    worst = max(map(abs, off))
    return Section(
        title="The steady state of a public trace: served request by request, and in closed form",
        header=("η", "ξ", "tokens/s served", "tokens/s in closed form", "its period is off by"),
        rows=rows,
        demands=[Demand(f"within {COMES_NEAR:.0%}: {worst:.1%} off at most", worst <= COMES_NEAR)],
        notes=[
            f"OPT-30B on 2 V100-32 and 2 A100-40 by the roofline, {workload.batch_size} slots; the first "
            f"{TRACE_REQUESTS} of the {len(requests)} requests (of {len(trace)}) that fit the model's positions, on "
            f"average {workload.prompt_tokens} and {workload.new_tokens} tokens, all there from the start"
        ],
        facts=[{"prefill": row[0], "decode": row[1], "period_off": one} for row, one in zip(rows, off, strict=True)],
    )


def _range(values: list[float], left_out: float) -> str:
    """From the least to the most, without a share at either end."""
    ordered = sorted(values)
    cut = int(left_out * len(ordered))
    return f"{ordered[cut]:+.1%} to {ordered[-1 - cut]:+.1%}"
