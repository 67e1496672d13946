"""Seconds of one layer at any micro-batch size and length: from a measured profile, else from the spec sheet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from hetero_infer.cost.holdout import HoldOut
from hetero_infer.cost.interpolation import Points
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.profile import DECODER, ProfileRow, ProfileTable
from hetero_infer.spec.workload import Phase

if TYPE_CHECKING:
    from hetero_infer.cost.fit import Fit

LayerKind = Literal["decoder", "embedding", "head"]
MEASURED, SPEC_SHEET = "measured", "spec sheet"


@dataclass(frozen=True)
class Source:
    """Where a device's seconds come from: `MEASURED` or `SPEC_SHEET`.

    `holdout` is how well the decoder layers' fits predict what they were not shown, all together; `fits` has the fit
    of each kind of layer, choice and phase.
    """

    word: str
    holdout: HoldOut | None = None
    fits: "Mapping[tuple[str, Choice, Phase], Fit]" = field(default_factory=dict)


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
    """Seconds between and beyond measured points: batch × input tokens in prefill, batch × past tokens in decode.

    Each device type, kind of layer, choice and phase has the fit that predicts its held-out points best
    (`cost/fit.py`). The profile's seconds are those of a device type; `Device.slowdown` is applied here.
    """

    def __init__(self, profile: ProfileTable, model: str) -> None:
        self._model = model
        points: dict[_Key, dict[tuple[int, int], float]] = {}
        for row in profile.rows:
            if row.model_name == model:
                key = row.device, row.layer_kind, row.choice, row.phase
                points.setdefault(key, {})[row.batch, _tokens(row)] = row.seconds
        self._fits = {key: self._best_fit(key, measured) for key, measured in points.items()}
        self._only = {key: _only_values(measured) for key, measured in points.items()}

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
            choice for choice in choices if all((device.timed_as, kind, choice, phase) in self._fits for phase in Phase)
        )

    def knows(self, device: Device) -> bool:
        """Whether anything of the model was measured on such a device."""
        return any(timed_as == device.timed_as for timed_as, *_ in self._fits)

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
        key = device.timed_as, kind, choice, phase
        if key not in self._fits:
            raise InputError(f"{self._where(key)} has no rows; run 'hetero-infer measure' and add them")
        tokens = input_tokens if phase is Phase.PREFILL else past_tokens
        if kind == DECODER:
            self._refuse_to_guess(key, batch, tokens)
        return self._fits[key].model.seconds(batch, tokens) * device.slowdown

    def source(self, device: Device) -> Source:
        used = {key[1:]: fit for key, fit in self._fits.items() if key[0] == device.timed_as}
        return Source(MEASURED, self.holdout(device.timed_as), used)

    def holdout(self, timed_as: str) -> HoldOut | None:
        """Of a decoder layer on a device type, in both phases and at all choices. None if there are too few points."""
        used = [fit for key, fit in self._fits.items() if key[:2] == (timed_as, DECODER)]
        return HoldOut.of(pair for fit in used for pair in fit.held_out)

    def _best_fit(self, key: "_Key", points: Points) -> "Fit":
        from hetero_infer.cost.fit import fits  # brings scipy, without which a plan is checked

        for fit in fits(points, key[-1]):
            return fit
        raise InputError(
            f"{self._where(key)}: {len(points)} points that are no whole grid determine no regression; measure every "
            "batch at every length"
        )

    def _refuse_to_guess(self, key: "_Key", batch: int, tokens: int) -> None:
        """A slope needs two points: one point says nothing about larger ones."""
        for name, asked in (("batch", batch), ("tokens", tokens)):
            only = self._only[key].get(name)
            if only is not None and asked > only:
                raise InputError(
                    f"{self._where(key)} was measured at {name} = {only} only and the workload needs {asked}; "
                    f"run 'hetero-infer measure' with a larger {name} too"
                )

    def _where(self, key: "_Key") -> str:
        device_type, kind, choice, phase = key
        return f"profile: {phase} of {self._model}'s {kind} at {choice} bits on {device_type}"


_Key = tuple[str, str, Choice, Phase]  # device type, kind of layer, …


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


def _only_values(points: Points) -> dict[str, int]:
    """Of the axes with one measured value."""
    values = {name: {size[axis] for size in points} for axis, name in enumerate(("batch", "tokens"))}
    return {name: min(found) for name, found in values.items() if len(found) == 1}


def _tokens(row: ProfileRow) -> int:
    return row.input_tokens if row.phase is Phase.PREFILL else row.past_tokens
