"""`Plan`: which device runs which layers at which bits, and in which micro-batches. The two wings meet here."""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Device, device_from_json, device_to_json
from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import kinds_of, read_fields, read_some_fields, read_value
from hetero_infer.spec.files import digest_of, read_json, write_atomically
from hetero_infer.spec.workload import Workload

FORMAT = 1
FIELDS = {"format": int, "model": dict, "cluster": list, "workload": dict, "pipelines": list}
OPTIONAL_FIELDS: dict[str, type] = {"inputs_digest": str, "decided_digest": str}
PIPELINE_FIELDS = {"stages": list, "prefill": dict, "decode": dict}
PROMISE_FIELDS = {"estimate": dict, "quality": dict, "solver": dict}
MODEL_FIELDS = {"path": str, "digest": str, "num_hidden_layers": int}
ONE_LINE_EACH = ("bits", "device_type")  # objects that begin with such a key


@dataclass(frozen=True)
class StagePlan:
    """One stage: its device and the choice of each of its layers, in order.

    The layers of all stages, one after the other, are `[embedding, decoder 0, …, decoder L-1, head]`; so a gap or
    an overlap between stages cannot be written down.
    """

    device: str
    layers: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError(f"the stage on {self.device} has no layer; leave the stage out instead")


@dataclass(frozen=True)
class LayerFit:
    """How the seconds of a `layer` (decoder, embedding or head) at a choice follow from the points measured.

    `method` is interpolation or regression, `holdout_mean` its mean relative error on points it was not shown; None
    where too few were measured for that.
    """

    device_type: str
    layer: str
    choice: str
    phase: str
    method: str
    holdout_mean: float | None = None


@dataclass(frozen=True)
class PlanEstimate:
    """What the plan promises: the recurrence over the real micro-batches, in seconds, for one full batch.

    `closed_form_s` is what the planner minimises, for this plan. `stage_seconds[stage]` holds the compute seconds
    of one full micro-batch per phase, `memory_bytes[stage]` the bytes per part. `source` says for each device type
    whether its seconds were measured or are from the spec sheet, `holdout_mean` how well the measured ones of decoder
    layers predict others that were held out (mean relative error), and `fits` the same for each kind of layer, choice
    and phase that the plan uses.
    """

    prefill_s: float
    decode_s: float
    tokens_per_s: float
    closed_form_s: float
    stage_seconds: tuple[Mapping[str, float], ...]
    memory_bytes: tuple[Mapping[str, int], ...]
    source: Mapping[str, str] = field(default_factory=dict)
    holdout_mean: Mapping[str, float] = field(default_factory=dict)
    fits: tuple[LayerFit, ...] = ()

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s

    def memory_of(self, stage: int) -> int:
        """Bytes of all parts."""
        return sum(self.memory_bytes[stage].values())


@dataclass(frozen=True)
class QualityPlan:
    """Σ ω of the plan's choices beside the limit Ω, both in `unit`: below `allowed` where the plan was tightened,
    above it where it was loosened.

    `measured` is the loss on held-out text, in nats per token more than the unquantised model's, and `held_out` a
    digest of all that it depends on besides this plan's model and bits. None where nobody measured it. `settled` is
    whether it was looked for a faster plan that holds, too.
    """

    max_perplexity_increase: float
    limit: float
    predicted: float
    unit: str
    measured: float | None = None
    held_out: str = ""
    settled: bool = False

    @property
    def allowed(self) -> float:
        """What the bound is in nats per token."""
        return math.log1p(self.max_perplexity_increase)

    @property
    def is_broken(self) -> bool:
        return self.measured is not None and self.measured > self.allowed


@dataclass(frozen=True)
class SolverReport:
    """How sure the plan is the best, in seconds of the closed form.

    `objective` is the least that was found: the plan's own, unless the judge preferred a plan near it. No plan over all
    device orders, subsets and micro-batch sizes is faster than `bound`. `order_bound` is HiGHS's own word on the plan's
    order and sizes. `searched` says what was looked at and what was ruled out.
    """

    name: str
    status: str
    objective: float
    bound: float
    gap: float
    seconds: float
    order_bound: float = 0.0
    searched: str = ""


@dataclass(frozen=True)
class Plan:
    """`model` names what was planned for: `path`, `digest` and `num_hidden_layers`."""

    model: Mapping[str, Any]
    devices: tuple[Device, ...]
    workload: Workload
    stages: tuple[StagePlan, ...]
    prefill_micro_batch_size: int
    decode_micro_batch_size: int
    estimate: PlanEstimate | None = None
    quality: QualityPlan | None = None
    solver: SolverReport | None = None
    inputs_digest: str = ""
    decided_digest: str = ""  # the planner's `decision_digest`; another one means that somebody edited the plan

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"the device {name} stands twice in the cluster")
        users = [stage.device for stage in self.stages]
        for user in users:
            if user not in names:
                raise InputError(f"a stage stands on {user}, which is no device of the plan: {', '.join(names)}")
            if users.count(user) > 1:
                raise InputError(f"{user} has two stages; a device has at most one")
        layers = sum(len(stage.layers) for stage in self.stages)
        if layers != self.model["num_hidden_layers"] + 2:
            raise InputError(
                f"its stages have {layers} layers, the model has {self.model['num_hidden_layers']} "
                "decoder layers, an embedding and a head; move layers between stages, but keep them all"
            )
        for name in ("prefill_micro_batch_size", "decode_micro_batch_size"):
            size = getattr(self, name)
            if type(size) is not int or not 1 <= size <= self.workload.batch_size:
                raise InputError(
                    f"{name} = {size!r} for a batch of {self.workload.batch_size}: a whole number from 1 to that"
                )

    @property
    def bounds(self) -> tuple[int, ...]:
        """Stage `j` has the pipeline layers `bounds[j]` to `bounds[j + 1]`."""
        return (0, *itertools.accumulate(len(stage.layers) for stage in self.stages))

    @property
    def layer_choices(self) -> tuple[Choice, ...]:
        return tuple(itertools.chain.from_iterable(stage.layers for stage in self.stages))

    @property
    def decoder_choices(self) -> tuple[Choice, ...]:
        return self.layer_choices[1:-1]

    @property
    def embedding_choice(self) -> Choice:
        return self.layer_choices[0]

    @property
    def head_choice(self) -> Choice:
        return self.layer_choices[-1]

    @property
    def decision_digest(self) -> str:
        """Of stages and micro-batches."""
        stages = [[stage.device, *map(str, stage.layers)] for stage in self.stages]
        return digest_of({"stages": stages, "sizes": [self.prefill_micro_batch_size, self.decode_micro_batch_size]})

    @property
    def fingerprint(self) -> str:
        """Of the model at these bits: pipelines that share it give the same tokens, wherever its layers stand."""
        return digest_of(self.model["digest"], " ".join(map(str, self.layer_choices)))

    def decoder_range(self, stage: int) -> range:
        """Indices of the decoder layers that `stage` runs."""
        start, stop = self.bounds[stage : stage + 2]
        return range(max(0, start - 1), min(stop - 1, self.model["num_hidden_layers"]))

    def device_of(self, stage: int) -> Device:
        return next(device for device in self.devices if device.name == self.stages[stage].device)

    def to_json(self) -> dict[str, Any]:
        return {**self.shared_json(), "pipelines": [self.pipeline_json()], **self.promises_json()}

    def shared_json(self) -> dict[str, Any]:
        """What a file says once, of however many pipelines."""
        return {
            "format": FORMAT,
            "inputs_digest": self.inputs_digest,
            "decided_digest": self.decided_digest,
            "model": dict(self.model),
            "cluster": [device_to_json(device) for device in self.devices],
            "workload": asdict(self.workload),
        }

    def pipeline_json(self) -> dict[str, Any]:
        return {
            "stages": [
                {"device": stage.device, "layers": [choice.to_json() for choice in stage.layers]}
                for stage in self.stages
            ],
            "prefill": _phase_json(self.prefill_micro_batch_size, self.workload.batch_size),
            "decode": _phase_json(self.decode_micro_batch_size, self.workload.batch_size),
        }

    def promises_json(self) -> dict[str, Any]:
        return {
            "estimate": self.estimate and {**asdict(self.estimate), "total_s": self.estimate.total_s},
            "quality": self.quality and asdict(self.quality),
            "solver": self.solver and asdict(self.solver),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> "Plan":
        """`content` as `to_json` makes it, or as a hand left it: everything in it is checked."""
        content = read_fields(content, FIELDS, where, OPTIONAL_FIELDS | PROMISE_FIELDS)
        if len(content["pipelines"]) != 1:
            raise InputError(f"{where}: it has {len(content['pipelines'])} pipelines; one is wanted here")
        pipeline = read_fields(content["pipelines"][0], PIPELINE_FIELDS, f"{where}, pipelines[0]")
        facts = read_shared(content, where) | read_pipeline(pipeline, where)
        promises = read_promises(content, len(facts["stages"]), where)
        with located(where):
            return cls(**facts, **promises)

    def save(self, path: Path) -> None:
        save_json(self.to_json(), path)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        return cls.from_json(read_json(path, "plan", FORMAT), f"plan {path}")


def num_micro_batches(batch_size: int, micro_batch_size: int) -> int:
    return -(-batch_size // micro_batch_size)


def micro_batch_ranges(batch_size: int, micro_batch_size: int) -> tuple[range, ...]:
    """The sequences of each micro-batch; the last one may be smaller."""
    return tuple(
        range(first, min(first + micro_batch_size, batch_size)) for first in range(0, batch_size, micro_batch_size)
    )


def read_shared(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of `Plan` from what `shared_json` wrote."""
    model = read_some_fields(content["model"], MODEL_FIELDS, f"{where}, model")
    workload = read_fields(content["workload"], kinds_of(Workload), f"{where}, workload")
    devices = tuple(
        device_from_json(device, f"{where}, cluster[{rank}]") for rank, device in enumerate(content["cluster"])
    )
    with located(where):
        return {
            "model": {**content["model"], **model},
            "devices": devices,
            "workload": Workload(**workload),
            "inputs_digest": content.get("inputs_digest", ""),
            "decided_digest": content.get("decided_digest", ""),
        }


def read_pipeline(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same of `pipeline_json`."""
    sizes = {
        f"{phase}_micro_batch_size": read_fields(
            content[phase], {"micro_batch_size": int}, f"{where}, {phase}", {"micro_batches": int}
        )["micro_batch_size"]
        for phase in ("prefill", "decode")
    }
    return {"stages": tuple(_read_stage(s, f"{where}, stages[{j}]") for j, s in enumerate(content["stages"])), **sizes}


def read_promises(content: Mapping[str, Any], num_stages: int, where: str) -> dict[str, Any]:
    """The same of `promises_json`, for a pipeline of so many stages."""
    estimate, quality, solver = (content.get(part) for part in PROMISE_FIELDS)
    if estimate is not None:
        estimate = _read_estimate(estimate, num_stages, f"{where}, estimate")
    if quality is not None:
        kinds = kinds_of(QualityPlan)
        optional = {"measured": float, **{name: kinds.pop(name) for name in ("held_out", "settled")}}
        required = {name: kind for name, kind in kinds.items() if name not in optional}
        quality = QualityPlan(**read_fields(quality, required, f"{where}, quality", optional))
    return {"estimate": estimate, "quality": quality, "solver": read_solver(solver, f"{where}, solver")}


def read_solver(content: object, where: str) -> SolverReport | None:
    """`order_bound` and `searched` came later: an older plan has none."""
    kinds = kinds_of(SolverReport)
    optional = {name: kinds.pop(name) for name in ("order_bound", "searched")}
    return None if content is None else SolverReport(**read_fields(content, kinds, where, optional))


def save_json(content: Mapping[str, Any], path: Path) -> None:
    write_atomically(path, _one_line_per_layer(json.dumps(content, indent=1)) + "\n")


def _read_stage(content: object, where: str) -> StagePlan:
    said = read_fields(content, {"device": str, "layers": list}, where)
    layers = tuple(Choice.from_json(layer, f"{where}, layers[{n}]") for n, layer in enumerate(said["layers"]))
    with located(where):
        return StagePlan(said["device"], layers)


def _read_estimate(content: object, num_stages: int, where: str) -> PlanEstimate | None:
    """None where a hand changed the number of stages. `total_s` follows from the others and is not read."""
    kinds = kinds_of(PlanEstimate)
    optional = {"source": dict, "holdout_mean": dict, "fits": list, "total_s": float}
    required = {name: kind for name, kind in kinds.items() if name not in optional}
    said = read_fields(content, required, where, optional)
    said.pop("total_s", None)
    for part, of_device in (("source", str), ("holdout_mean", float)):
        for device, value in said.get(part, {}).items():
            read_value(value, of_device, f"{where}: {part} {device}")
    said["fits"] = tuple(_read_fit(fit, f"{where}: fits[{n}]") for n, fit in enumerate(said.get("fits", [])))
    for part, kind in (("stage_seconds", float), ("memory_bytes", int)):
        for stage, entries in enumerate(said[part]):
            for key, value in read_value(entries, dict, f"{where}: {part}[{stage}]").items():
                read_value(value, kind, f"{where}: {part}[{stage}] {key}")
        said[part] = tuple(said[part])
    is_of_these_stages = len(said["stage_seconds"]) == len(said["memory_bytes"]) == num_stages
    return PlanEstimate(**said) if is_of_these_stages else None


def _read_fit(content: object, where: str) -> LayerFit:
    required = {name: kind for name, kind in kinds_of(LayerFit).items() if name != "holdout_mean"}
    return LayerFit(**read_fields(content, required, where, {"holdout_mean": float}))


def _phase_json(micro_batch_size: int, batch_size: int) -> dict[str, int]:
    return {
        "micro_batch_size": micro_batch_size,
        "micro_batches": num_micro_batches(batch_size, micro_batch_size),
    }


def _one_line_per_layer(text: str) -> str:
    """Put each choice and each fit on one line, so that a person can read and edit the layers."""
    lines: list[str] = []
    firsts = tuple(f'"{key}"' for key in ONE_LINE_EACH)
    for line in text.splitlines():
        begun = bool(lines) and lines[-1].lstrip().startswith(tuple("{" + first for first in firsts))
        inside = begun and not lines[-1].rstrip(",").endswith("}")
        if line.lstrip().startswith(firsts) and lines[-1].strip() == "{":
            lines[-1] += line.strip()
        elif inside:
            lines[-1] += (" " if line.strip() not in ("}", "},") else "") + line.strip()
        else:
            lines.append(line)
    return "\n".join(lines)
