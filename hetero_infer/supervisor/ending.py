"""`Ending`: why a run ends, with its exit code; of several that arrive together, the one that caused the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Cause(IntEnum):
    """Most telling first: a killed process makes its neighbours fail, and the launcher signal the rest."""

    CERTAIN = 0
    SIGNAL = 1
    PERHAPS_A_CONSEQUENCE = 2


@dataclass(frozen=True)
class Ending:
    exit_code: int
    line: str
    cause: Cause = Cause.CERTAIN


def cause_of(endings: Sequence[Ending]) -> Ending:
    """The first of the most telling ones; `endings` are in order of arrival."""
    return min(endings, key=lambda ending: ending.cause)
