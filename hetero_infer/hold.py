"""The bound is held: held-out text decides about a plan. One that breaks the bound gives way to a tighter one, one
that uses little of it to a looser one that is faster.

In: config, request, a text that nothing was calibrated on. Out: the plan file, with what was measured in it, and every
quantised layer of the plan on this host. The plan file says how far a run that was killed had come: its Ω, and whether
the plan was measured with these weights on this text.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hetero_infer import prepare
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.measure.held_out import HeldOutText, loss_increase
from hetero_infer.planner.next_limit import next_limit, uses_enough
from hetero_infer.spec import Fleet, InfeasibleError, InputError, Plan, QualityPlan, RunConfig
from hetero_infer.spec.files import digest_of
from hetero_infer.spec.prose import read_prose
from hetero_infer.supervisor.say import say

if TYPE_CHECKING:
    from hetero_infer.planner.request import PlanRequest
    from hetero_infer.planner.requests import Proposal

MOST_PLANS = 6
LEAST_GAIN = 0.01  # in speed: quantising and measuring a looser plan takes its time


def held_out_text(config: RunConfig) -> HeldOutText | None:
    """`[quality] text`, which must be another than the calibration text, whole and in part. None for a model that is
    quantised already: no plan changes its bits, and the model that it was made from is not there to compare with."""
    folder = ModelFolder(config.model)
    if folder.spec.stored_choices:
        return None
    text = HeldOutText.read(folder, config.text)
    held_out, calibration = (read_prose(path).strip() for path in (config.text, config.calibration))
    if held_out in calibration or calibration in held_out:
        raise InputError(
            f"[quality] text {config.text} and calibration {config.calibration} are the same, or one is a part of the "
            "other; a bound is held on text that nothing was calibrated on: name another one"
        )
    return text


def held_plan(
    config: RunConfig,
    request: "PlanRequest",
    text: HeldOutText,
    tell: Callable[[Sequence["Proposal"]], None] = lambda proposals: None,
) -> Fleet:
    """The plan of the config's plan file or a new one, then others, until one holds on the text and is about as fast
    as the bound lets it be."""
    held = until_held(
        prepare.plan_for(config, request, config.plan, tell),
        lambda fleet: measured(fleet, config, text),
        lambda limit: prepare.new_plan(config, replace(request, omega_limit=limit), config.plan, tell),
        config.text,
    )
    settled = _settled(held)
    if settled != held:
        settled.save(config.plan)
    return settled


def until_held(
    fleet: Fleet, measure: Callable[[Fleet], Fleet], plan_within: Callable[[float], Fleet], text: Path
) -> Fleet:
    """The fastest that holds, of `fleet` and at most `MOST_PLANS - 1` others. `plan_within` makes a plan of a Σω of at
    most so much; that is always below what a broken plan used."""
    held, ceiling = None, math.inf
    for number in itertools.count(1):
        fleet = measure(fleet)
        qualities = [_quality(plan) for plan in fleet.replicas]
        worst = max(qualities, key=lambda quality: quality.measured or 0.0)
        if worst.is_broken:
            say(f"{_figures(worst, text)}: the bound is broken")
            ceiling = min(ceiling, *(quality.predicted for quality in qualities if quality.is_broken))
        else:
            say(f"{_figures(worst, text)}: the bound holds")
            held = fleet
        limit = next_limit(qualities, ceiling)
        if held:
            if number == MOST_PLANS or not _can_be_faster(held, limit):
                return held
        elif limit == 0:
            raise _no_plan_left("the bound is broken, and no limit on Σω is tighter than this plan's", worst, text)
        elif number == MOST_PLANS:
            raise _no_plan_left(f"the bound is broken after {MOST_PLANS} plans; run it again to go on", worst, text)
        say(f"planning again with Σω ≤ {limit:.4g}")
        try:
            fleet = plan_within(limit)
        except InfeasibleError as error:
            raise _no_plan_left(f"the bound is broken, and no plan fits with Σω ≤ {limit:.4g}", worst, text) from error
        if held and _tokens_per_s(fleet) < _tokens_per_s(held) * (1 + LEAST_GAIN):
            say("that plan is no faster than the one that holds, which stays")
            return held


def _can_be_faster(held: Fleet, limit: float) -> bool:
    """Whether a plan within the limit may be another than the one that holds, and was not looked for before."""
    qualities = [_quality(plan) for plan in held.replicas]
    return not (
        uses_enough(qualities)
        or any(quality.settled for quality in qualities)
        or limit <= max(quality.limit for quality in qualities)
    )


def _settled(fleet: Fleet) -> Fleet:
    replicas = (replace(plan, quality=replace(_quality(plan), settled=True)) for plan in fleet.replicas)
    return replace(fleet, replicas=tuple(replicas))


def _tokens_per_s(fleet: Fleet) -> float:
    return sum(plan.estimate.tokens_per_s for plan in fleet.replicas if plan.estimate)


def measured(fleet: Fleet, config: RunConfig, text: HeldOutText) -> Fleet:
    """With the loss of each replica on the text; quantised, measured and saved where that was not done before."""
    prepare.quantise(fleet, config.plan, config, config.checkpoint, fleet.used_devices, progress=True)
    losses: dict[str, float] = {}  # by all that they depend on: replicas may be alike

    def with_loss(plan: Plan) -> Plan:
        shards = ShardStore.of_model(config.checkpoint, text.folder.digest, plan.layer_choices)
        held_out = digest_of(plan.fingerprint, text.digest, asdict(shards.recipe))
        quality = _quality(plan)
        if quality.held_out == held_out:
            return plan
        if held_out not in losses:
            losses[held_out] = loss_increase(text, plan.layer_choices, shards, progress=True)
        return replace(plan, quality=replace(quality, measured=losses[held_out], held_out=held_out, settled=False))

    found = replace(fleet, replicas=tuple(map(with_loss, fleet.replicas)))
    if found != fleet:
        found.save(config.plan)
    return found


def _quality(plan: Plan) -> QualityPlan:
    assert plan.quality, "a plan that the planner made"
    return plan.quality


def _figures(quality: QualityPlan, text: Path) -> str:
    increases = [math.expm1(loss) for loss in (quality.measured or 0.0, quality.predicted, quality.allowed)]
    return "perplexity on {}: {:+.2%} measured, {:+.2%} predicted, {:+.2%} at most".format(text, *increases)


def _no_plan_left(why: str, worst: QualityPlan, text: Path) -> InfeasibleError:
    holds_at = math.ceil(math.expm1(worst.measured or 0.0) * 1e4) / 1e4
    return InfeasibleError(
        f"{why} ({_figures(worst, text)}); raise max_perplexity_increase to {holds_at:.4f}, which this plan holds, "
        "give the devices more memory, or allow more bits in [quality] choices"
    )
