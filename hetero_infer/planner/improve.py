"""A better pipeline with the same devices and cuts: the choices of one stage after the other, the rest as it is."""

import numpy as np

from hetero_infer.planner.least_omega import Floats
from hetero_infer.planner.relaxation import Relaxation
from hetero_infer.planner.space import Pipeline, Space
from hetero_infer.spec.workload import Phase

PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
MOST_SWEEPS = 4


def improve(space: Space, relaxation: Relaxation, pipeline: Pipeline) -> Pipeline:
    """Also brings Σω within Ω, where that is possible so."""
    for _ in range(MOST_SWEEPS):
        before = pipeline
        for stage in range(len(pipeline.picks)):
            pipeline = _improve_stage(space, relaxation, pipeline, stage)
        if pipeline is before:
            break
    return pipeline


def _improve_stage(space: Space, relaxation: Relaxation, pipeline: Pipeline, stage: int) -> Pipeline:
    picks = list(pipeline.picks)
    old = picks[stage]
    options = relaxation.options(old.hop)
    omega = pipeline.omega - old.omega + options.omega
    others = {
        phase: max([0.0, *pipeline.wires[phase], *(p.seconds[phase] for p in picks if p is not old)]) for phase in Phase
    }
    seconds = _objective(
        space,
        {phase: pipeline.passes[phase] - old.seconds[phase] + options.seconds[phase] for phase in Phase},
        {phase: np.maximum(others[phase], options.seconds[phase]) for phase in Phase},
    )
    keeps = omega <= space.omega_limit + 0.5 * space.omega_tolerance
    row = int(np.argmin(np.where(keeps, seconds, np.inf))) if keeps.any() else int(np.argmin(omega))
    picks[stage] = relaxation.pick(old.hop, row)
    found = space.pipeline(picks)
    if space.keeps_quality(pipeline.omega):
        return found if found.seconds < pipeline.seconds and space.keeps_quality(found.omega) else pipeline
    return found if found.omega < pipeline.omega else pipeline


def _objective(space: Space, passes: dict[Phase, Floats], slowest: dict[Phase, Floats]) -> Floats:
    form = space.objective
    period = np.maximum(form.micro_batches[DECODE] * slowest[DECODE], passes[DECODE])
    one = sum(form.passes[phase] * passes[phase] + form.slowest[phase] * slowest[phase] for phase in Phase)
    return np.asarray(one + form.rounds * period)
