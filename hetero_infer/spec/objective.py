"""`Objective`: the count of seconds that the planner minimises."""

from enum import StrEnum


class Objective(StrEnum):
    """`RING` is what the engine's schedules take. `LLM_PQ` is what LLM-PQ's published code counts, for comparison
    only: with one decode micro-batch it counts a single token. `STEADY` is a round of a stream of requests."""

    RING = "ring"
    LLM_PQ = "llm-pq"
    STEADY = "steady"
