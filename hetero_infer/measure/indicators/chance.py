"""The indicator that knows nothing: what a real one must beat."""

import random
from collections.abc import Sequence

from hetero_infer.spec import Choice


def random_shapes(num_layers: int, choices: Sequence[Choice], seed: int) -> list[list[float]]:
    """A number from 0 to 1 for every layer and choice, the same for the same seed."""
    draw = random.Random(seed)
    return [[draw.random() for _ in choices] for _ in range(num_layers)]
