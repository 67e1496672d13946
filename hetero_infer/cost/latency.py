"""Seconds of one layer. In: a measured profile. Out: seconds at any micro-batch size and length."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.profile import DECODER, ProfileRow, ProfileTable
from hetero_infer.spec.workload import Phase

LayerKind = Literal["decoder", "embedding", "head"]


class LatencyModel(Protocol):
    """Where the planner gets its seconds from."""

    def allowed_choices(self, device: Device, choices: Iterable[Choice]) -> tuple[Choice, ...]:
        """Those of `choices` that a decoder layer on `device` has seconds for."""
        ...

    def layer_seconds(
        self,
        device: Device,
        kind: LayerKind,
        choice: Choice,
        phase: Phase,
        batch: int,
        input_tokens: int,
        past_tokens: int,
    ) -> float:
        """Of one layer, for a whole micro-batch of `batch` sequences; the tokens are per sequence."""
        ...


class ProfiledLatency:
    """Bilinear interpolation over the measured grid: batch × input tokens in prefill, batch × past tokens in decode.

    The profile's seconds are those of a device type; `Device.slowdown` is applied here.
    """

    def __init__(self, profile: ProfileTable, model: str) -> None:
        self._model = model
        points: dict[_Key, dict[tuple[int, int], float]] = {}
        for row in profile.rows:
            if row.model.partition("#")[0] == model:
                key = (row.device, row.layer_kind, row.choice, row.phase)
                points.setdefault(key, {})[row.batch, _tokens(row)] = row.seconds
        self._grids = {key: _Grid(seconds, self._where(key)) for key, seconds in points.items()}

    def allowed_choices(self, device: Device, choices: Iterable[Choice]) -> tuple[Choice, ...]:
        """Those measured in both phases. A device type that was never measured is an error, not an empty answer."""
        if not any(key[0] == device.type for key in self._grids):
            raise InputError(
                f"device {device.name}: the profile has no rows of {self._model} on {device.type}; "
                f"run 'hetero-infer measure' on a {device.type} and add its rows"
            )
        return tuple(
            choice for choice in choices if all((device.type, DECODER, choice, phase) in self._grids for phase in Phase)
        )

    def layer_seconds(
        self,
        device: Device,
        kind: LayerKind,
        choice: Choice,
        phase: Phase,
        batch: int,
        input_tokens: int,
        past_tokens: int,
    ) -> float:
        key = (device.type, kind, choice, phase)
        grid = self._grids.get(key)
        if grid is None:
            raise InputError(f"{self._where(key)} has no rows; run 'hetero-infer measure' and add them")
        tokens = input_tokens if phase is Phase.PREFILL else past_tokens
        if kind == DECODER:
            grid.refuse_to_guess(batch, tokens)
        return grid.seconds(batch, tokens) * device.slowdown

    def _where(self, key: "_Key") -> str:
        device_type, kind, choice, phase = key
        return f"profile: {phase} of {self._model}'s {kind} at {choice} bits on {device_type}"


_Key = tuple[str, str, Choice, Phase]


class _Grid:
    """Seconds at every pair of a measured batch and a measured number of tokens."""

    def __init__(self, points: dict[tuple[int, int], float], where: str) -> None:
        self.where = where
        self.batches = sorted({batch for batch, _ in points})
        self.tokens = sorted({tokens for _, tokens in points})
        try:
            self.rows = [[points[batch, tokens] for tokens in self.tokens] for batch in self.batches]
        except KeyError as error:
            batch, tokens = error.args[0]
            raise InputError(f"{where}: batch {batch} × {tokens} tokens is missing; measure the whole grid") from None

    def seconds(self, batch: int, tokens: int) -> float:
        def at(row: int) -> float:
            return _along(self.tokens, self.rows[row].__getitem__, tokens)

        return _along(self.batches, at, batch)

    def refuse_to_guess(self, batch: int, tokens: int) -> None:
        """A slope needs two points: one point says nothing about larger ones."""
        for axis, measured, asked in (("batch", self.batches, batch), ("tokens", self.tokens, tokens)):
            if len(measured) == 1 and asked > measured[0]:
                raise InputError(
                    f"{self.where} was measured at {axis} = {measured[0]} only and the workload needs {asked}; "
                    f"run 'hetero-infer measure' with a larger {axis} too"
                )


def _along(xs: Sequence[int], y: Callable[[int], float], x: float) -> float:
    """`y` at `x`, linear between the measured `xs`; `y(i)` belongs to `xs[i]`.

    Outside, the nearest segment goes on, within reason: upwards it never falls; downwards it never rises, and falls
    no faster than in proportion to `x`. An axis measured at one point only has no slope.
    """
    if len(xs) == 1:
        return y(0)
    i = min(max(bisect_right(xs, x) - 1, 0), len(xs) - 2)
    left, right = y(i), y(i + 1)
    slope = (right - left) / (xs[i + 1] - xs[i])
    if x >= xs[-1]:
        return right + max(slope, 0.0) * (x - xs[-1])
    if x < xs[0]:
        return max(left - max(slope, 0.0) * (xs[0] - x), left * x / xs[0])
    return left + slope * (x - xs[i])


def _tokens(row: ProfileRow) -> int:
    return row.input_tokens if row.phase is Phase.PREFILL else row.past_tokens
