"""A better pipeline with the same devices and cuts: the choices of one stage after the other, the rest as it is."""

import numpy as np

from hetero_infer.planner.exact.arrays import Floats
from hetero_infer.planner.exact.relaxation import Relaxation
from hetero_infer.planner.exact.space import Pipeline, Space
from hetero_infer.planner.exact.stage_options import IntervalOptions
from hetero_infer.spec.workload import Phase

DECODE = Phase.DECODE
MOST_SWEEPS = 4
SAME_SPEED = 1e-10  # a plan that is slower by less than this share is as fast


def improve(space: Space, relaxation: Relaxation, pipeline: Pipeline) -> Pipeline:
    """Also brings Σω within Ω, where that is possible so."""
    for _ in range(MOST_SWEEPS):
        before = pipeline
        for stage in range(len(pipeline.picks)):
            pipeline = _improve_stage(space, relaxation, pipeline, stage)
        if pipeline is before:
            break
    return pipeline


def lose_less(space: Space, relaxation: Relaxation, pipeline: Pipeline) -> Pipeline:
    """As fast, and with less Σω where a stage has time to spare."""
    for stage, old in enumerate(pipeline.picks):
        options = relaxation.options(old.hop)
        seconds = _with_stage(space, pipeline, stage, options)
        as_fast = seconds <= pipeline.seconds * (1 + SAME_SPEED)
        if as_fast.any():
            row = int(np.argmin(np.where(as_fast, options.omega, np.inf)))
            found = space.pipeline(
                [*pipeline.picks[:stage], relaxation.pick(old.hop, row), *pipeline.picks[stage + 1 :]]
            )
            if found.omega < pipeline.omega and found.seconds <= pipeline.seconds * (1 + SAME_SPEED):
                pipeline = found
    return pipeline


def _improve_stage(space: Space, relaxation: Relaxation, pipeline: Pipeline, stage: int) -> Pipeline:
    picks = list(pipeline.picks)
    old = picks[stage]
    options = relaxation.options(old.hop)
    omega = pipeline.omega - old.omega + options.omega
    seconds = _with_stage(space, pipeline, stage, options)
    keeps = omega <= space.omega_limit + 0.5 * space.omega_tolerance
    row = int(np.argmin(np.where(keeps, seconds, np.inf))) if keeps.any() else int(np.argmin(omega))
    picks[stage] = relaxation.pick(old.hop, row)
    found = space.pipeline(picks)
    if space.keeps_quality(pipeline.omega):
        return found if found.seconds < pipeline.seconds and space.keeps_quality(found.omega) else pipeline
    return found if found.omega < pipeline.omega else pipeline


def _with_stage(space: Space, pipeline: Pipeline, stage: int, options: IntervalOptions) -> Floats:
    """The objective with each option for one stage, the others as they are."""
    form, old = space.objective, pipeline.picks[stage]
    passes = {phase: pipeline.passes[phase] - old.seconds[phase] + options.seconds[phase] for phase in Phase}
    slowest = {
        phase: np.maximum(
            max([0.0, *pipeline.wires[phase], *(p.seconds[phase] for p in pipeline.picks if p is not old)]),
            options.seconds[phase],
        )
        for phase in Phase
    }
    period = np.maximum(form.micro_batches[DECODE] * slowest[DECODE], passes[DECODE])
    once = sum(form.passes[phase] * passes[phase] + form.slowest[phase] * slowest[phase] for phase in Phase)
    return np.asarray(once + form.rounds * period)
