"""Seconds of one layer at any micro-batch size and length: from a measured profile, else from the spec sheet."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from hetero_infer.cost.holdout import HoldOut, every_second
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.profile import DECODER, ProfileRow, ProfileTable
from hetero_infer.spec.workload import Phase

LayerKind = Literal["decoder", "embedding", "head"]
MEASURED, SPEC_SHEET = "measured", "spec sheet"


@dataclass(frozen=True)
class Source:
    """Where a device's seconds come from: `MEASURED`, with how well that predicts what it was not shown, or
    `SPEC_SHEET`."""

    word: str
    holdout: HoldOut | None = None


class LatencyModel(Protocol):
    """Where the planner gets its seconds from."""

    def allowed_choices(
        self, device: Device, choices: Iterable[Choice], kind: LayerKind = "decoder"
    ) -> tuple[Choice, ...]:
        """Those of `choices` that a layer of the `kind` has seconds for on `device`."""
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

    def source(self, device: Device) -> Source: ...


class ProfiledLatency:
    """Bilinear interpolation over the measured grid: batch × input tokens in prefill, batch × past tokens in decode.

    The profile's seconds are those of a device type; `Device.slowdown` is applied here.
    """

    def __init__(self, profile: ProfileTable, model: str) -> None:
        self._model = model
        self._rows = tuple(row for row in profile.rows if row.model_name == model)
        points: dict[_Key, dict[tuple[int, int], float]] = {}
        for row in self._rows:
            points.setdefault(_key(row), {})[row.batch, _tokens(row)] = row.seconds
        self._grids = {key: _Grid(seconds, self._where(key)) for key, seconds in points.items()}

    def allowed_choices(
        self, device: Device, choices: Iterable[Choice], kind: LayerKind = "decoder"
    ) -> tuple[Choice, ...]:
        """Those measured in both phases. A device type that was never measured is an error, not an empty answer."""
        if not self.knows(device):
            raise InputError(
                f"device {device.name}: the profile has no rows of {self._model} on {device.timed_as}; "
                f"run 'hetero-infer measure' on a {device.timed_as} and add its rows"
            )
        return tuple(
            choice
            for choice in choices
            if all((device.timed_as, kind, choice, phase) in self._grids for phase in Phase)
        )

    def knows(self, device: Device) -> bool:
        """Whether anything of the model was measured on such a device."""
        return any(row.device == device.timed_as for row in self._rows)

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
        return self._measured_s((device.timed_as, kind, choice, phase), batch, input_tokens, past_tokens) * (
            device.slowdown
        )

    def source(self, device: Device) -> Source:
        return Source(MEASURED, self.holdout(device.timed_as))

    def holdout(self, timed_as: str) -> HoldOut | None:
        """Every second batch and length of a decoder layer's grid, predicted from the others. None if the grids are
        too small for it."""
        rows = [row for row in self._rows if row.device == timed_as and row.layer_kind == DECODER]
        held = {row for row in rows if _is_held_out(row, self._grids[_key(row)])}
        rest = ProfiledLatency(ProfileTable(tuple(row for row in rows if row not in held)), self._model)
        return HoldOut.of((rest._measured_s(_key(row), *_sizes(row)), row.seconds) for row in held)

    def _measured_s(self, key: "_Key", batch: int, input_tokens: int, past_tokens: int) -> float:
        _, kind, _, phase = key
        grid = self._grids.get(key)
        if grid is None:
            raise InputError(f"{self._where(key)} has no rows; run 'hetero-infer measure' and add them")
        tokens = input_tokens if phase is Phase.PREFILL else past_tokens
        if kind == DECODER:
            grid.refuse_to_guess(batch, tokens)
        return grid.seconds(batch, tokens)

    def _where(self, key: "_Key") -> str:
        device_type, kind, choice, phase = key
        return f"profile: {phase} of {self._model}'s {kind} at {choice} bits on {device_type}"


_Key = tuple[str, str, Choice, Phase]


class MeasuredElseSpecSheet:
    """Each device's seconds from the profile if it has its type, else from the spec sheet."""

    def __init__(self, profiled: ProfiledLatency, spec_sheet: LatencyModel) -> None:
        self._profiled = profiled
        self._spec_sheet = spec_sheet

    def _of(self, device: Device) -> LatencyModel:
        return self._profiled if self._profiled.knows(device) else self._spec_sheet

    def allowed_choices(
        self, device: Device, choices: Iterable[Choice], kind: LayerKind = "decoder"
    ) -> tuple[Choice, ...]:
        return self._of(device).allowed_choices(device, choices, kind)

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
        return self._of(device).layer_seconds(device, kind, choice, phase, batch, input_tokens, past_tokens)

    def source(self, device: Device) -> Source:
        return self._of(device).source(device)


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


def _key(row: ProfileRow) -> _Key:
    return row.device, row.layer_kind, row.choice, row.phase


def _sizes(row: ProfileRow) -> tuple[int, int, int]:
    return row.batch, row.input_tokens, row.past_tokens


def _tokens(row: ProfileRow) -> int:
    return row.input_tokens if row.phase is Phase.PREFILL else row.past_tokens


def _is_held_out(row: ProfileRow, grid: _Grid) -> bool:
    return row.batch in every_second(grid.batches) or _tokens(row) in every_second(grid.tokens)
