"""A linear programme with HiGHS, and nothing around it: thousands of small ones are solved for one bound."""

import math
from dataclasses import dataclass
from functools import cache

import highspy
import numpy as np

from hetero_infer.planner.fleet.quality import Floats

INFEASIBLE = highspy.HighsModelStatus.kInfeasible
OPTIMAL = highspy.HighsModelStatus.kOptimal


@dataclass(frozen=True)
class Optimum:
    value: float
    x: Floats


def minimise(cost: Floats, rows: Floats, at_least: Floats, at_most: Floats) -> Optimum | None:
    """Over x ≥ 0 with `at_least ≤ rows @ x ≤ at_most`; an infinite value where there is no such x, None where HiGHS
    gives up."""
    columns = len(cost)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns, len(rows)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, np.zeros(columns), np.full(columns, math.inf)
    lp.row_lower_, lp.row_upper_ = at_least, at_most
    row, column = rows.nonzero()
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.searchsorted(row, np.arange(len(rows) + 1))
    lp.a_matrix_.index_ = column
    lp.a_matrix_.value_ = rows[row, column]
    solver = _solver()
    solver.passModel(lp)
    solver.run()
    status = solver.getModelStatus()
    if status == INFEASIBLE:
        return Optimum(math.inf, np.zeros(columns))
    if status != OPTIMAL:
        return None
    return Optimum(solver.getInfo().objective_function_value, np.array(solver.getSolution().col_value))


@cache
def _solver() -> highspy.Highs:
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("presolve", "off")
    return solver
