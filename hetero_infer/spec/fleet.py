"""`Fleet`: what plan.json holds: one pipeline, or replicas of the model that share a batch."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hetero_infer.spec.cluster import Device
from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import read_fields
from hetero_infer.spec.files import digest_of, read_json
from hetero_infer.spec.plan import (
    FIELDS,
    FORMAT,
    OPTIONAL_FIELDS,
    PIPELINE_FIELDS,
    PROMISE_FIELDS,
    Plan,
    SolverReport,
    read_pipeline,
    read_promises,
    read_shared,
    read_solver,
    save_json,
)
from hetero_infer.spec.workload import Workload


@dataclass(frozen=True)
class Fleet:
    """Each replica is the plan of one pipeline, with its share of the batch as its workload. All know all devices of
    the hostfile, and use different ones. `solver` says how sure the division is the best; of one pipeline its plan
    does."""

    replicas: tuple[Plan, ...]
    solver: SolverReport | None = None

    def __post_init__(self) -> None:
        assert self.replicas and all(_in_common(one) == _in_common(self.replicas[0]) for one in self.replicas)
        for user in self.used_devices:
            if self.used_devices.count(user) > 1:
                raise InputError(f"{user} is in two pipelines; a device has at most one stage")

    @classmethod
    def over(cls, devices: Iterable[Device], replicas: Iterable[Plan], solver: SolverReport | None = None) -> "Fleet":
        """Of replicas that were planned each for its own part of `devices`, which are all of the hostfile."""
        devices = tuple(devices)
        return cls(tuple(replace(replica, devices=devices) for replica in replicas), solver)

    @property
    def model(self) -> Mapping[str, Any]:
        return self.replicas[0].model

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.replicas[0].devices

    @property
    def workload(self) -> Workload:
        """Of all replicas together."""
        shares = (replica.workload.batch_size for replica in self.replicas)
        return replace(self.replicas[0].workload, batch_size=sum(shares))

    @property
    def inputs_digest(self) -> str:
        return self.replicas[0].inputs_digest

    @property
    def decision_digest(self) -> str:
        """Of stages, micro-batches and shares."""
        if len(self.replicas) == 1:
            return self.replicas[0].decision_digest
        return digest_of({"replicas": [[one.decision_digest, one.workload.batch_size] for one in self.replicas]})

    @property
    def is_edited(self) -> bool:
        """Whether a hand changed what the planner decided."""
        return self.decision_digest != self.replicas[0].decided_digest

    def made_from(self, inputs_digest: str) -> "Fleet":
        """As the planner leaves it: with the digests of what it was made from and of what was decided."""
        decided = self.decision_digest
        replicas = (replace(one, inputs_digest=inputs_digest, decided_digest=decided) for one in self.replicas)
        return replace(self, replicas=tuple(replicas))

    @property
    def used_devices(self) -> tuple[str, ...]:
        return tuple(stage.device for replica in self.replicas for stage in replica.stages)

    def stage_on(self, device: str) -> tuple[Plan, int]:
        """The replica that uses the device, and its stage there."""
        return next(
            (replica, stage)
            for replica in self.replicas
            for stage, its in enumerate(replica.stages)
            if its.device == device
        )

    def to_json(self) -> dict[str, Any]:
        """Of one pipeline, its plan; of several, each has its share and its promises to itself."""
        if len(self.replicas) == 1:
            return self.replicas[0].to_json()
        pipelines = [
            {"batch_size": one.workload.batch_size, **one.pipeline_json(), **one.promises_json()}
            for one in self.replicas
        ]
        shared = self.replicas[0].shared_json() | {"workload": asdict(self.workload)}
        return {**shared, "pipelines": pipelines, "solver": self.solver and asdict(self.solver)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> "Fleet":
        pipelines = content.get("pipelines")
        if not isinstance(pipelines, list) or len(pipelines) < 2:
            return cls((Plan.from_json(content, where),))
        content = read_fields(content, FIELDS, where, OPTIONAL_FIELDS | {"solver": dict})
        shared = read_shared(content, where)
        replicas = tuple(
            _read_replica(pipeline, shared, f"{where}, pipelines[{number}]")
            for number, pipeline in enumerate(pipelines)
        )
        solver = read_solver(content.get("solver"), f"{where}, solver")
        with located(where):
            fleet = cls(replicas, solver)
            shares, batch_size = fleet.workload.batch_size, shared["workload"].batch_size
            if shares != batch_size:
                raise InputError(
                    f"its pipelines' batch_size add up to {shares}, its workload's is {batch_size}; make both the same"
                )
            return fleet

    def save(self, path: Path) -> None:
        save_json(self.to_json(), path)

    @classmethod
    def load(cls, path: Path) -> "Fleet":
        return cls.from_json(read_json(path, "plan", FORMAT), f"plan {path}")


def _read_replica(content: object, shared: Mapping[str, Any], where: str) -> Plan:
    pipeline = read_fields(content, {"batch_size": int, **PIPELINE_FIELDS}, where, PROMISE_FIELDS)
    facts = read_pipeline(pipeline, where)
    promises = read_promises(pipeline, len(facts["stages"]), where)
    with located(where):
        workload = replace(shared["workload"], batch_size=pipeline["batch_size"])
        return Plan(**{**shared, "workload": workload}, **facts, **promises)


def _in_common(replica: Plan) -> tuple[object, ...]:
    tokens = (replica.workload.prompt_tokens, replica.workload.new_tokens)
    return replica.model, replica.devices, tokens, replica.inputs_digest, replica.decided_digest
