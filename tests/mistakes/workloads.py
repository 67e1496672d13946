"""Mistakes in files that say how long requests really are."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.mistakes.mistake import PLAN, Mistake, both, replaced, written

HEADING = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
LENGTHS = "prompt_tokens = 16\nnew_tokens = 8\n"


def line(prompt: list[int], max_tokens: int) -> str:
    body = {"prompt": prompt, "max_tokens": max_tokens}
    return json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}) + "\n"


def instead_of_lengths(key: str, file: str, content: str) -> Callable[[Path], None]:
    return both(replaced("run.toml", LENGTHS, f"{key} = '{file}'\n"), written(file, content))


def workload_mistakes() -> Iterator[Mistake]:
    both_keys = replaced("run.toml", LENGTHS, "requests = 'in.jsonl'\narrivals = 'trace.csv'\n")
    yield Mistake("[workload] has requests and arrivals; a plan is for one of them", "run.toml", both_keys)
    for key, file in (("requests", "in.jsonl"), ("arrivals", "trace.csv")):
        only = replaced("run.toml", LENGTHS, f"{key} = '{file}'\n")
        yield Mistake("cannot be read (No such file or directory)", file, only, PLAN)
    half = replaced("run.toml", "new_tokens = 8", "requests = 'in.jsonl'")
    yield Mistake("[workload] new_tokens is missing", "run.toml", half, PLAN)
    for objective, where in (("steady", "[paths]\n"), ("llm-pq", "[quality]\n")):
        asked = replaced("run.toml", where, f"[planner]\nobjective = '{objective}'\n{where}")
        stream = replaced("run.toml", LENGTHS, "arrivals = 'trace.csv'\n")
        spoil = asked if objective == "steady" else both(asked, stream)
        yield Mistake(f"objective = {objective}: 'steady' is for [workload] arrivals", "run.toml", spoil)
    for content, says in [
        ("", "none of its 0 requests can be planned for"),
        ("What is a pipeline?\n", "none of its 1 requests can be planned for"),
        (line([1] * 200, 100), "each needs a prompt of at most 256 tokens, and 257 with its answer"),
    ]:
        yield Mistake(says, "in.jsonl", instead_of_lengths("requests", "in.jsonl", content), PLAN)
    for content, says in [
        ("", "the column TIMESTAMP is missing"),
        (HEADING, "0 requests make no stream"),
        (HEADING + "2023-11-16 18:15:46,3,4\n", "1 requests make no stream"),
        ("TIMESTAMP,ContextTokens,GeneratedToken\n", "the column GeneratedToken is not known; did you mean"),
        (HEADING + "2023-11-16 18:15:46,3\n", "row 1: 2 values for 3 columns"),
        (HEADING + "noon,3,4\n", "row 1: TIMESTAMP = 'noon' is no time like"),
        (HEADING + "2023-11-16 18:15:46,0,4\n", "row 1: ContextTokens and GeneratedTokens are at least 1"),
        (HEADING + "2023-11-16 18:15:46,3,4.5\n", "row 1: GeneratedTokens = '4.5' is not a whole number"),
        (HEADING + "2023-11-16 18:15:46,300,4\n" * 2, "none of its 2 requests can be planned for"),
    ]:
        yield Mistake(says, "trace.csv", instead_of_lengths("arrivals", "trace.csv", content), PLAN)
