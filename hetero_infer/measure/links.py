"""Seconds of messages of several sizes from one rank to another, over the transport that the pipeline uses.

One rank sends, the other answers with a few bytes: so it is the direction from sender to receiver that is timed, as
activations take it. Of each size the shortest exchange counts, because what else the hosts do only adds to it; the
answer's way is taken for half of the shortest of all.
"""

import time

import torch
import torch.distributed

SIZES = tuple(2**power for power in range(10, 25, 2))  # 1 KiB to 16 MiB: a token's activations to a prompt's
ANSWER_BYTES = 64
NUM_SWEEPS = 3  # so that other work on the hosts does not meet all exchanges of a size
WARM_UPS, MIN_REPETITIONS, MAX_REPETITIONS, ENOUGH_S = 2, 3, 100, 0.1  # per sweep and size


def time_messages(receiver: int, device: torch.device) -> list[tuple[int, float]]:
    """The sender's side: bytes and seconds of each size. `device` is where the messages lie."""
    answer = torch.empty(ANSWER_BYTES, dtype=torch.uint8, device=device)

    def exchange(message: torch.Tensor) -> float:
        began_s = time.perf_counter()
        torch.distributed.send(message, receiver)
        torch.distributed.recv(answer, receiver)
        answer[0].item()  # on CUDA it is there only now
        return time.perf_counter() - began_s

    shortest_s: dict[int, float] = {}
    for size in SIZES * NUM_SWEEPS:
        message = torch.zeros(size, dtype=torch.uint8, device=device)
        longest_s = max(exchange(message) for _ in range(WARM_UPS))
        repetitions = max(MIN_REPETITIONS, min(MAX_REPETITIONS, int(ENOUGH_S / longest_s)))
        torch.distributed.send(torch.tensor([repetitions], device=device), receiver)
        shortest_s[size] = min(shortest_s.get(size, longest_s), *(exchange(message) for _ in range(repetitions)))
    back_s = min(shortest_s.values()) / 2
    return [(size, seconds - back_s) for size, seconds in shortest_s.items()]


def answer_messages(sender: int, device: torch.device) -> None:
    """The receiver's side."""
    answer = torch.zeros(ANSWER_BYTES, dtype=torch.uint8, device=device)
    repetitions = torch.empty(1, dtype=torch.int64, device=device)
    for size in SIZES * NUM_SWEEPS:
        message = torch.empty(size, dtype=torch.uint8, device=device)
        _answer(message, answer, sender, WARM_UPS)
        torch.distributed.recv(repetitions, sender)
        _answer(message, answer, sender, int(repetitions))


def _answer(message: torch.Tensor, answer: torch.Tensor, sender: int, count: int) -> None:
    for _ in range(count):
        torch.distributed.recv(message, sender)
        torch.distributed.send(answer, sender)
