"""Why there is no plan, and the nearest changes that make one possible. Asked when it is proven that there is none.

A change is told only with a plan for the changed request in hand, which `check_plan` accepts. How near it is: the
share by which it changes what it changes (a batch of 32 to 24 is 25 %; 2 GiB more on a device of 16 is 12.5 %; a
device more, its memory's share of the cluster's; a looser limit, the perplexity that it adds; bits, theirs). Of each
kind only the nearest counts, and the three nearest kinds are told.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hetero_infer.planner.check import check_plan, missing_mib
from hetero_infer.planner.feasible import Allowed, fitting_plans, held_layers, least_loss_plan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import BITWIDTHS, DEFAULT_GROUP_SIZE, Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.sensitivity import ENDS

TOLD = 3
MOST_NEW_DEVICES = 8
MEMORY_STEP_BYTES = 2**20 // 10  # MiB are told with one decimal
MEMORY_PRECISION = 1e-3  # of what is lacking; the rest is on the safe side
MOST_MORE_BYTES = 2**42


@dataclass(frozen=True)
class Remedy:
    """One change that makes the request feasible; `share` says how near it is, `request` is the changed one."""

    says: str
    share: float
    request: PlanRequest


def why_infeasible(request: PlanRequest, *, time_limit_s: float) -> str:
    """What is lacking, and the three nearest remedies of those found in the time."""
    deadline_s = time.monotonic() + time_limit_s
    short = _least_memory(request, deadline_s)
    lacks = f"; nearest to enough is {_name(short[0])}, which lacks {missing_mib(short[1])}" if short else ""
    ways = ", or ".join(remedy.says for remedy in nearest_remedies(request, deadline_s=deadline_s, short=short))
    return f"{_what_is_lacking(request)}{lacks}; {_ways_out(ways)}"


def nearest_remedies(
    request: PlanRequest, *, deadline_s: float, short: tuple[Device, int] | None = None
) -> list[Remedy]:
    """The nearest first; `short` is the device that lacks least, and by how much. `deadline_s` is monotonic."""
    kinds: list[Callable[[], Remedy | None]] = [
        lambda: _looser_limit(request),
        lambda: _more_memory(request, *short) if short else None,
        lambda: _smaller(request, "batch_size"),
        lambda: _smaller(request, "prompt_tokens"),
        lambda: _other_bits(request),
        lambda: _more_devices(request),
    ]
    found = [remedy for kind in kinds if time.monotonic() < deadline_s and (remedy := kind())]
    return sorted(found, key=lambda remedy: remedy.share)[:TOLD]


def _what_is_lacking(request: PlanRequest) -> str:
    layers, unit, limit = request.model.num_hidden_layers, request.sensitivity.unit, request.omega_limit
    devices, latency = request.cluster.devices, request.latency
    allowed = {choice for device in devices for choice in latency.allowed_choices(device, request.choices)}
    best = sum(min(request.sensitivity.of(layer, choice) for choice in allowed) for layer in range(layers))
    for kind in ENDS:
        of_end = (latency.allowed_choices(device, request.end_choices(kind), kind) for device in devices)
        best += min(request.sensitivity.of_end(kind, choice) for choice in itertools.chain.from_iterable(of_end))
    if best > limit:
        return (
            f"the quality limit Σω ≤ {limit:.6g} {unit} cannot be met: the best choice of every layer gives {best:.6g}"
        )
    plan = least_loss_plan(request)
    if plan is None:
        held = " + ".join(map(str, held_layers(request)))
        return (
            f"at the bits that take least the devices hold {held} of the {layers} decoder layers, whatever their order"
        )
    assert plan.quality
    return (
        f"at bits that fit the devices' memory the quality limit Σω ≤ {limit:.6g} {unit} cannot be met: "
        f"the least found to fit is {plan.quality.predicted:.6g}"
    )


def _ways_out(ways: str) -> str:
    if ways:
        return f"what makes it feasible, the nearest first: {ways}"
    return "no single change of batch, lengths, bits, memory or devices was found to make it feasible"


def _least_memory(request: PlanRequest, deadline_s: float) -> tuple[Device, int] | None:
    """The device that with the fewest bytes more, it alone, makes the request feasible."""
    best: tuple[Device, int] | None = None
    for device in _kinds(request):
        if time.monotonic() < deadline_s:
            num_bytes = _lacking_bytes(request, device, best[1] - 1 if best else MOST_MORE_BYTES)
            if num_bytes:
                best = device, num_bytes
    return best


def _lacking_bytes(request: PlanRequest, device: Device, most_bytes: int) -> int | None:
    def is_enough(steps: int) -> bool:
        return _is_feasible(_with_memory(request, device, steps * MEMORY_STEP_BYTES))

    steps = _least(most_bytes // MEMORY_STEP_BYTES, is_enough, precision=MEMORY_PRECISION)
    return steps and steps * MEMORY_STEP_BYTES


def _with_memory(request: PlanRequest, device: Device, more_bytes: int) -> PlanRequest:
    grown = replace(device, memory_bytes=device.memory_bytes + more_bytes)
    devices = tuple(grown if one == device else one for one in request.cluster.devices)
    return replace(request, cluster=replace(request.cluster, devices=devices))


def _more_memory(request: PlanRequest, device: Device, num_bytes: int) -> Remedy:
    says = f"give {device.name} {missing_mib(num_bytes)} more memory"
    return Remedy(says, num_bytes / device.memory_bytes, _with_memory(request, device, num_bytes))


def _smaller(request: PlanRequest, what: str) -> Remedy | None:
    """The largest batch or prompt that has a plan: memory falls with either."""
    now: int = getattr(request.workload, what)

    def lowered(less: int) -> PlanRequest:
        return replace(request, workload=replace(request.workload, **{what: now - less}))

    less = _least(now - 1, lambda less: _is_feasible(lowered(less)))
    return Remedy(f"lower {what} from {now} to {now - less}", less / now, lowered(less)) if less else None


def _looser_limit(request: PlanRequest) -> Remedy | None:
    plan = least_loss_plan(request)
    if plan is None or plan.quality is None or request.model.stored_choices:
        return None
    needed = math.ceil(math.expm1(plan.quality.predicted) * 1e4) / 1e4
    looser = replace(request, omega_limit=math.log1p(needed), max_perplexity_increase=needed)
    if not _is_feasible(looser):
        return None
    growth = math.expm1(looser.omega_limit - request.omega_limit)
    return Remedy(f"raise max_perplexity_increase to {needed:.4f}", growth, looser)


def _other_bits(request: PlanRequest) -> Remedy | None:
    """One choice more. Bits that the sensitivity lacks are judged by their memory, and that is said."""
    if request.model.stored_choices:
        return None
    bits = sorted(choice.bits for choice in request.choices)
    found = []
    for new in (Choice(n, DEFAULT_GROUP_SIZE if n < 16 else 0) for n in BITWIDTHS if n not in bits):
        says, wider = f"allow {new.bits} bits, too", _with_choice(request, new)
        if new not in request.sensitivity.choices and new.is_quantised:
            says += " (they fit; their loss is not measured yet)"
            wider = replace(wider, omega_limit=math.inf)
        if _is_feasible(wider, _also(request, new)):
            nearest = bits[0] if new.bits < bits[0] else bits[-1]
            found.append(Remedy(says, abs(new.bits / nearest - 1), wider))
    return min(found, key=lambda remedy: remedy.share, default=None)


def _also(request: PlanRequest, new: Choice) -> Allowed:
    return lambda device: (*request.latency.allowed_choices(device, request.choices), new)


def _with_choice(request: PlanRequest, new: Choice) -> PlanRequest:
    """`new` loses nothing where the sensitivity lacks it: so it is with 16 bits, and no other is asked for its loss."""
    table = request.sensitivity
    if new not in table.choices:
        omega = tuple((*row, 0.0) for row in table.omega)
        table = replace(table, choices=(*table.choices, new), omega=omega, errors=None)
    return replace(request, choices=tuple(sorted((*request.choices, new))), sensitivity=table)


def _more_devices(request: PlanRequest) -> Remedy | None:
    """The fewest of one of the cluster's types, by their share of its memory."""
    found = [remedy for kind in _kinds(request) if (remedy := _more_of(request, kind))]
    return min(found, key=lambda remedy: remedy.share, default=None)


def _more_of(request: PlanRequest, kind: Device) -> Remedy | None:
    devices = request.cluster.devices
    most = min(MOST_NEW_DEVICES, request.model.num_hidden_layers - len(devices))
    count = _least(most, lambda n: _is_feasible(_with_more(request, kind, n)))
    if not count:
        return None
    share = count * kind.memory_bytes / sum(device.memory_bytes for device in devices)
    says = f"add {count} {kind.type} with {missing_mib(kind.memory_bytes)}"
    return Remedy(says, share, _with_more(request, kind, count))


def _with_more(request: PlanRequest, kind: Device, count: int) -> PlanRequest:
    more = tuple(replace(kind, host=f"new-{kind.type}", slot=slot) for slot in range(count))
    return replace(request, cluster=replace(request.cluster, devices=(*request.cluster.devices, *more)))


def _least(most: int, is_enough: Callable[[int], bool], precision: float = 0.0) -> int | None:
    """The least of 1 to `most` that is enough, where more is never worse, or up to a share of it more than the least.

    None where not even the most is enough.
    """
    if most < 1 or not is_enough(most):
        return None
    lower, upper = 0, 1
    while upper < most and not is_enough(upper):
        lower, upper = upper, min(4 * upper, most)
    while upper - lower > max(1, precision * upper):
        middle = (lower + upper) // 2
        lower, upper = (lower, middle) if is_enough(middle) else (middle, upper)
    return upper


def _is_feasible(request: PlanRequest, allowed: Allowed | None = None) -> bool:
    plans = fitting_plans(request, allowed)
    return any(not check_plan(plan, request.model, request.sensitivity) for plan in plans)


def _kinds(request: PlanRequest) -> list[Device]:
    """A device of each type and memory."""
    return list({(device.timed_as, device.memory_bytes): device for device in request.cluster.devices}.values())


def _name(device: Device) -> str:
    return f"{device.name} ({device.type})"
