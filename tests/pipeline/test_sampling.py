"""A token depends on its own logits, seed and position; its distribution is the one that was asked for."""

import pytest
import torch

from hetero_infer.pipeline.sampling import Sampling, sample
from hetero_infer.spec import InputError

# 0.001 quantile of chi-square from above, by degrees of freedom.
CHI_SQUARE = {1: 10.83, 2: 13.82, 4: 18.47}


def random_logits(rows: int, vocabulary: int = 64, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def test_greedy_takes_the_likeliest() -> None:
    logits = random_logits(5)
    assert sample(logits, [Sampling()] * 5, range(5)) == logits.argmax(-1).tolist()


def test_of_equal_logits_greedy_takes_the_first() -> None:
    logits = torch.zeros(3, 40)
    logits[0, [7, 3, 30]] = 1.0
    logits[1, [39, 38]] = 1.0
    assert sample(logits, [Sampling()] * 3, range(3)) == [3, 38, 0]


@pytest.mark.parametrize("seed", range(5))
def test_a_top_p_of_0_leaves_one_token(seed: int) -> None:
    logits = random_logits(4, seed=seed)
    samplings = [Sampling(5.0, 0.0, seed)] * 4
    assert sample(logits, samplings, range(4)) == logits.argmax(-1).tolist()
    assert sample(torch.zeros(1, 10), samplings[:1], [3]) == [0]  # also of equals


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45, 1e-320])
def test_hardly_any_temperature_is_greedy(temperature: float) -> None:
    logits = random_logits(20)
    assert sample(logits, [Sampling(temperature, 1.0, 1)] * 20, range(20)) == logits.argmax(-1).tolist()


def test_a_token_does_not_depend_on_its_row_or_on_the_others() -> None:
    logits = random_logits(6)
    samplings = [Sampling(), Sampling(1.0, 1.0, 5), Sampling(0.8, 0.9, 6), Sampling(2.0, 0.5, 7), *[Sampling(1.5)] * 2]
    positions = [4, 9, 30, 4, 7, 8]
    together = sample(logits, samplings, positions)
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4], [3], [1, 1, 1]):
        tokens = sample(logits[order], [samplings[i] for i in order], [positions[i] for i in order])
        assert tokens == [together[i] for i in order]


def test_seeds_and_positions_give_other_tokens() -> None:
    logits = random_logits(1).expand(50, -1)
    of_seeds = sample(logits, [Sampling(1.5, 1.0, seed) for seed in range(50)], [3] * 50)
    of_positions = sample(logits, [Sampling(1.5, 1.0, 3)] * 50, range(50))
    assert len(set(of_seeds)) > 10 and len(set(of_positions)) > 10
    assert of_seeds != of_positions


@pytest.mark.parametrize("vary", ["seed", "position"])
@pytest.mark.parametrize(
    ("temperature", "top_p", "kept"),
    [(1.0, 1.0, 5), (2.0, 1.0, 5), (0.5, 1.0, 5), (1.0, 0.75, 3), (1.0, 0.69, 2), (2.0, 0.6, 3)],
)
def test_tokens_come_as_often_as_they_should(temperature: float, top_p: float, kept: int, vary: str) -> None:
    """`kept` likeliest tokens are the fewest that hold `top_p`."""
    count = 4000
    weights = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    shuffled = [3, 0, 4, 2, 1]
    logits = torch.empty(5)
    logits[shuffled] = weights.log()
    samplings = [Sampling(temperature, top_p, number if vary == "seed" else 11) for number in range(count)]
    positions = [17] * count if vary == "seed" else list(range(count))
    tokens = sample(logits.expand(count, -1), samplings, positions)
    seen = torch.bincount(torch.tensor(tokens), minlength=5)[shuffled]
    wanted = weights[:kept] ** (1 / temperature)
    wanted *= count / wanted.sum()
    assert not seen[kept:].any()
    assert ((seen[:kept] - wanted) ** 2 / wanted).sum() < CHI_SQUARE[kept - 1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 1.1}, "top_p = 1.1"),
        ({"seed": 2**63}, "seed = 9223372036854775808"),
    ],
)
def test_a_sampling_that_makes_no_sense_is_refused(arguments: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Sampling(**arguments)
