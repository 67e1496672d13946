"""`say`: one line for people, on stderr. Stdout belongs to results."""

import contextlib
import select
import sys

from hetero_infer.spec.errors import one_line

STDERR = 2


def say(line: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever listened has left
        print(f"hetero-infer: {one_line(line)}", file=sys.stderr, flush=True)


def somebody_listens() -> bool:
    """Whether the other end of stderr is still open."""
    poll = select.poll()
    poll.register(STDERR, 0)  # asks for nothing: an end that is closed is reported all the same
    return not poll.poll(0)
