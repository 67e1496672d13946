"""A lower bound on the seconds of all pipelines of one pair (η, ξ): layers as a fluid that any class may take.

The linear programme drops contiguity, order, whole layers and who stands where, and keeps memory, quality and the
closed form: a class is as fast as all its devices together. It costs milliseconds, so the search orders the pairs by
it and never looks into those that it rules out.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import linprog

from hetero_infer.planner.exact.arrays import Floats
from hetero_infer.planner.exact.stage_options import Position
from hetero_infer.planner.objective import ClosedForm
from hetero_infer.planner.problem import QUALITY_TOLERANCE, Counts, Ends, StageTerms
from hetero_infer.spec.workload import Phase

ROUNDING = 1e-12  # of the sums that make a bound of a dual solution
OPTIMAL, INFEASIBLE = 0, 2  # of linprog


def fluid_bound_s(
    objective: ClosedForm,
    classes: Sequence[Mapping[Position, StageTerms]],
    multiplicity: Sequence[int],
    omega: Sequence[Counts],
    omega_limit: float,
) -> float:
    """No pipeline takes fewer seconds; infinite where not even the fluid fits.

    Columns: layers of class c at choice b, shares of layer i at choice b on whatever class, and the slowest station
    of each phase and the period.
    """
    num_layers, choices = len(omega), tuple(omega[0])
    columns = [(c, choice) for c, terms in enumerate(classes) for choice in terms["middle"].choices]
    shares = [(i, choice) for i in range(num_layers) for choice in choices]
    num_columns = len(columns) + len(shares) + 3
    slowest = dict(zip(Phase, np.eye(num_columns)[-3:-1], strict=True))
    period = np.eye(num_columns)[-1]
    layer_s = {phase: np.zeros((len(classes), num_columns)) for phase in Phase}
    used = np.zeros((len(classes), num_columns))
    for column, (c, choice) in enumerate(columns):
        terms = classes[c]["middle"]
        room_bytes = max(1, *(one.room_bytes for one in classes[c].values()))
        used[c, column] = terms.layer_bytes[choice] / (multiplicity[c] * room_bytes)
        for phase in Phase:
            layer_s[phase][c, column] = terms.layer_s[phase][choice]
    end_s = {
        Phase.PREFILL: _least_of_ends(classes, lambda ends: ends.seconds[Phase.PREFILL]),
        Phase.DECODE: _least_of_ends(classes, lambda ends: ends.seconds[Phase.DECODE]),
    }
    if math.isinf(end_s[Phase.PREFILL]):
        return math.inf
    scale_s = max(layer_s[phase].max() for phase in Phase) * num_layers or 1.0
    passes = {phase: layer_s[phase].sum(axis=0) / scale_s for phase in Phase}

    rows, limits = [*used], [1.0] * len(classes)
    for phase in Phase:
        for c, row in enumerate(layer_s[phase]):
            rows.append(row / scale_s / multiplicity[c] - slowest[phase])
            limits.append(0.0)
    rows.append(objective.micro_batches[Phase.DECODE] * slowest[Phase.DECODE] - period)
    rows.append(passes[Phase.DECODE] - period)
    limits += [0.0, -end_s[Phase.DECODE] / scale_s]
    if math.isfinite(omega_limit):
        end_losses = (ends.omega for terms in classes for one in terms.values() for ends in one.ends)
        omega_scale = max(*(max(row.values()) for row in omega), *end_losses) or 1.0
        quality = np.zeros(num_columns)
        quality[len(columns) : -3] = [omega[i][choice] / omega_scale for i, choice in shares]
        rows.append(quality)
        limits.append(
            (omega_limit - _least_of_ends(classes, lambda ends: ends.omega)) / omega_scale + QUALITY_TOLERANCE
        )

    equal = np.zeros((num_layers + len(choices), num_columns))
    for column, (_, choice) in enumerate(columns):
        equal[num_layers + choices.index(choice), column] = 1
    for column, (i, choice) in enumerate(shares, len(columns)):
        equal[num_layers + choices.index(choice), column] = -1
        equal[i, column] = 1
    cost = objective.rounds * period
    for phase in Phase:
        cost = cost + objective.passes[phase] * passes[phase] + objective.slowest[phase] * slowest[phase]
    programme = (cost, np.array(rows), np.array(limits), equal, np.array([1.0] * num_layers + [0.0] * len(choices)))
    result = linprog(*programme, method="highs")
    if result.status == INFEASIBLE:
        return math.inf
    if result.status != OPTIMAL:
        return 0.0
    # Some optimum has no more than this in any column: in `scale_s` all layers on one device take at most 1.
    longest_period = max(objective.micro_batches[Phase.DECODE], 1) + end_s[Phase.DECODE] / scale_s
    most = np.array([num_layers] * len(columns) + [1] * len(shares) + [1, 1, longest_period])
    bound = _dual_bound(*programme, most, result.ineqlin.marginals, result.eqlin.marginals)
    ends_s = sum(objective.passes[phase] * end_s[phase] for phase in Phase)
    return max(0.0, bound * scale_s + ends_s)


def _dual_bound(
    cost: Floats,
    rows: Floats,
    limits: Floats,
    equal: Floats,
    totals: Floats,
    most: Floats,
    prices: Floats,
    equal_prices: Floats,
) -> float:
    """No x with `rows @ x ≤ limits`, `equal @ x = totals` and `0 ≤ x ≤ most` costs less, whatever the prices: those
    that a solver found best need not be exact for that."""
    prices = np.minimum(prices, 0.0)
    terms = [*(prices * limits), *(equal_prices * totals)]
    terms += list(np.minimum(cost - prices @ rows - equal_prices @ equal, 0.0) * most)
    return math.fsum(terms) - ROUNDING * math.fsum(map(abs, terms))


def _least_of_ends(classes: Sequence[Mapping[Position, StageTerms]], value: Callable[[Ends], float]) -> float:
    """Of an embedding and a head, wherever they stand; infinite where one of them may stand nowhere."""

    def least(position: Position) -> float:
        return min((value(ends) for terms in classes for ends in terms[position].ends), default=math.inf)

    return min(least("first") + least("last"), least("only"))
