"""A plan for the requests of a file: proposed for several lengths that stand for them, judged on all of them.

The planner minimises the seconds of equal sequences, and real ones are not equal. So plans are made for the average and
for the short, the middle and the long third, each with memory for the longest; the judge runs the whole file over each,
as the runtime does: B requests at a time in the file's order, micro-batches that shrink.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from hetero_infer.cost.timeline import recurrence_of
from hetero_infer.planner.check import fit_violations
from hetero_infer.planner.edits import with_size
from hetero_infer.planner.estimate import PlanCosts, estimate_plan, stations_of
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.requests import RequestLengths, average
from hetero_infer.spec.workload import Phase, Workload

MOST_BATCHES = 64  # that are judged, spread evenly over a longer file
BUCKETS = ("short third", "middle third", "long third")


@dataclass(frozen=True)
class Proposal:
    """`plan`, made for `workload` (what it stands for: `lengths`), takes `seconds` for the whole file."""

    lengths: str
    workload: Workload
    plan: Plan
    seconds: float


def representatives(requests: Sequence[RequestLengths], batch_size: int) -> Iterator[tuple[str, Workload]]:
    """Workloads that stand for the requests, each with its name; none twice."""
    by_length = sorted(requests, key=lambda request: request.cache_tokens)
    seen = set()
    for name, part in [("average", by_length), *zip(BUCKETS, _thirds(by_length), strict=True)]:
        if part and (workload := average(part, batch_size)) not in seen:
            seen.add(workload)
            yield name, workload


def propose(request: PlanRequest, find: Callable[[PlanRequest, float], Plan], time_limit_s: float) -> list[Proposal]:
    """For the request's requests, the best first; its workload is the longest of them. `find` makes a plan of a
    request in so many seconds.

    The best of those that `find` made is judged again with every other size of micro-batch, one phase at a time.
    """
    proposals = []
    lengths = [("longest", request.workload), *representatives(request.requests.lengths, request.workload.batch_size)]
    for name, workload in lengths:
        made_for = replace(request, workload=workload, room_for=request.workload)
        plan = find(made_for, time_limit_s / len(lengths))
        proposals.append(Proposal(name, workload, plan, judged_s(plan, request)))
    best = min(proposals, key=lambda proposal: proposal.seconds)
    tuned = best
    for phase in (Phase.DECODE, Phase.PREFILL):
        plans = [with_size(tuned.plan, phase, size) for size in request.workload.micro_batch_sizes]
        fitting = [plan for plan in plans if not fit_violations(plan, request.model)]
        tuned = min(
            [tuned, *(replace(tuned, plan=plan, seconds=judged_s(plan, request)) for plan in fitting)],
            key=lambda proposal: proposal.seconds,
        )
    if tuned.seconds < best.seconds:
        name = f"{best.lengths}, other micro-batches"
        proposals.append(replace(tuned, lengths=name, plan=admitting(tuned.plan, request)))
    return sorted(proposals, key=lambda proposal: proposal.seconds)


def admitting(plan: Plan, request: PlanRequest) -> Plan:
    """The plan with the workload that its memory is for, and what it takes for a full batch of that."""
    plan = replace(plan, workload=request.admitted)
    return replace(plan, estimate=estimate_plan(plan, request.model, request.cluster, request.latency))


def judged_s(plan: Plan, request: PlanRequest) -> float:
    """Seconds of all the request's requests by the recurrence; from some of their batches where there are very many."""
    requests, size = request.requests.lengths, plan.workload.batch_size
    batches = [requests[first : first + size] for first in range(0, len(requests), size)]
    judged = batches[:: -(-len(batches) // MOST_BATCHES)]
    stations = stations_of(PlanCosts(plan, request.model, request.cluster, request.latency))
    sizes = plan.prefill_micro_batch_size, plan.decode_micro_batch_size
    seconds = sum(recurrence_of(stations, batch, *sizes).total_s for batch in judged)
    return seconds * len(requests) / sum(map(len, judged))


def _thirds(ordered: Sequence[RequestLengths]) -> list[Sequence[RequestLengths]]:
    cuts = [len(ordered) * third // 3 for third in range(4)]
    return [ordered[start:stop] for start, stop in itertools.pairwise(cuts)]
