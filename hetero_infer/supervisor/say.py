"""`say`: one line for people, on stderr. Stdout belongs to results."""

import sys


def say(line: object) -> None:
    print(f"hetero-infer: {line}", file=sys.stderr, flush=True)
