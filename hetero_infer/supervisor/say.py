"""`say`: one line for people, on stderr. Stdout belongs to results."""

import sys

from hetero_infer.spec.errors import one_line


def say(line: object) -> None:
    print(f"hetero-infer: {one_line(line)}", file=sys.stderr, flush=True)
