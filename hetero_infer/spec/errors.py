"""The errors a user can cause or meet. Each says what, where and the way out; each has an exit code."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_REASON = 300  # characters


class HeteroInferError(Exception):
    """Something failed while running."""

    exit_code = 1


class InputError(HeteroInferError):
    """A file, flag or request that cannot be used as it is."""

    exit_code = 2


class InfeasibleError(HeteroInferError):
    """No plan meets every constraint."""

    exit_code = 3


@contextmanager
def located(where: str) -> Iterator[None]:
    """An `InputError` of a value that does not know its file says `where` it stands."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def one_line(error: object) -> str:
    """What other packages say may have several lines."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def brief(error: BaseException) -> str:
    """What other packages say, where they like to list all that they know."""
    return textwrap.shorten(str(error) or repr(error), LONGEST_REASON)
