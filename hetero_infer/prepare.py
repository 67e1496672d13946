"""What a plan needs, made where it is missing or out of date: profile, sensitivity, plan, quantised layers.

Each is a file that a person can read, and says what it was made from; what still holds is used again.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hetero_infer.spec import (
    Choice,
    InfeasibleError,
    InputError,
    Plan,
    ProfileRow,
    ProfileTable,
    RunConfig,
    SensitivityTable,
)
from hetero_infer.spec.cluster import device_to_json
from hetero_infer.spec.config import DEMO_MODEL
from hetero_infer.spec.files import digest_of

if TYPE_CHECKING:
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.checkpoint.text import CalibrationWindows
    from hetero_infer.planner.request import PlanRequest


def profile_for(folder: "ModelFolder", config: RunConfig) -> ProfileTable:
    """The profile file; measured first where it lacks this machine's CPU."""
    profile = _profile_at(config.profile)
    missing = sorted({d.type for d in config.cluster.devices if not _covers(profile, folder, config, d.type)})
    if not missing:
        return profile
    if missing != ["cpu"]:
        raise InputError(
            f"profile {config.profile}: no measurements of {', '.join(missing)} for {folder.path.name} at these "
            f"choices and this batch; run 'hetero-infer measure --device {missing[-1]}' on a host that has one, and "
            "bring the file here"
        )
    return measure(folder, config, config.profile, "cpu")


def measure(folder: "ModelFolder", config: RunConfig, path: Path, device_type: str) -> ProfileTable:
    """Time the layers on this machine's device; the rows replace those of the same device type and model in `path`."""
    from hetero_infer.measure.layer_timer import measure_layers

    threads = {device.threads for device in config.cluster.devices if device.type == device_type} or {1}
    if len(threads) > 1:
        raise InputError(f"hostfile {config.hostfile}: {device_type} devices with {sorted(threads)} threads; say one")
    old = _profile_at(path)
    kept = tuple(row for row in old.rows if (row.device, _model_of(row)) != (device_type, folder.path.name))
    measured = measure_layers(
        folder.spec,
        folder.path.name,
        device_type,
        config.choices,
        config.workload,
        threads.pop(),
        _neighbours(config, device_type),
        progress=True,
    )
    profile = ProfileTable((*kept, *measured.rows), {**old.header, **measured.header})
    profile.save(path)
    return profile


def _profile_at(path: Path) -> ProfileTable:
    return ProfileTable.load(path) if path.exists() else ProfileTable(())


def sensitivity_for(folder: "ModelFolder", config: RunConfig) -> SensitivityTable:
    """The sensitivity file; measured first if it is missing or for another model, text or choices."""
    windows = calibration_windows(folder, config)
    if config.sensitivity.exists():
        table = SensitivityTable.load(config.sensitivity)
        if (table.model_digest, table.text_digest) == (folder.digest, windows.digest) and set(config.choices) <= set(
            table.choices
        ):
            return table
    from hetero_infer.measure.indicator import measure_sensitivity

    table = measure_sensitivity(folder, config.choices, windows)
    table.save(config.sensitivity)
    return table


def calibration_windows(folder: "ModelFolder", config: RunConfig) -> "CalibrationWindows":
    from hetero_infer.checkpoint.text import CalibrationWindows

    return CalibrationWindows.from_text(
        folder, config.calibration, config.calibration_windows, config.calibration_tokens
    )


def request_for(config: RunConfig) -> "PlanRequest":
    """All that the planner wants to know, from the files of the run."""
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.cost.latency import ProfiledLatency
    from hetero_infer.planner.request import PlanRequest

    folder = ModelFolder(config.model)
    kinds = {device.is_cpu for device in config.cluster.devices}
    if len(kinds) > 1:
        raise InputError(f"hostfile {config.hostfile}: CPUs and GPUs in one pipeline are not supported; use one kind")
    if config.workload.cache_tokens > folder.spec.max_position_embeddings:
        raise InputError(
            f"workload: {config.workload.prompt_tokens} prompt and {config.workload.new_tokens} new tokens pass the "
            f"model's {folder.spec.max_position_embeddings} positions; plan for fewer"
        )
    return PlanRequest(
        model=folder.spec,
        model_facts={
            "path": "demo" if config.model == DEMO_MODEL else str(config.model),
            "digest": folder.digest,
            "num_hidden_layers": folder.spec.num_hidden_layers,
        },
        cluster=config.cluster,
        workload=config.workload,
        latency=ProfiledLatency(profile_for(folder, config), folder.path.name),
        sensitivity=sensitivity_for(folder, config),
        choices=config.choices,
        omega_limit=math.log1p(config.max_perplexity_increase),
        max_perplexity_increase=config.max_perplexity_increase,
    )


def plan_for(config: RunConfig, request: "PlanRequest", path: Path) -> Plan:
    """The plan at `path` if it was made from the same inputs, else a new one, saved there."""
    digest = _inputs_digest(config, request)
    if path.exists():
        old = Plan.load(path)
        if old.decision_digest != old.decided_digest:
            raise InputError(
                f"plan {path} was edited by hand, and a new one would be written over it; give it as --plan to "
                "launch/serve.py or launch/batch.py, or move it away"
            )
        if old.inputs_digest == digest:
            return old
    from hetero_infer.planner.search import find_plan

    plan = find_plan(request, time_limit_s=config.planner_time_limit_s, gap=config.planner_gap)
    plan = replace(plan, inputs_digest=digest, decided_digest=plan.decision_digest)
    plan.save(path)
    return plan


def quantise(plan: Plan, config: RunConfig, checkpoint: Path, stages: Iterable[int], progress: bool) -> None:
    """See to it that `checkpoint` has the quantised layers that `stages` of the plan need."""
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.checkpoint.quantise import quantise_layers
    from hetero_infer.planner.check import memory_violations

    folder = ModelFolder(config.model)
    if folder.digest != plan.model["digest"]:
        raise InputError(f"the plan is for the model {plan.model['digest']}, {config.model} is {folder.digest}")
    missing = memory_violations(plan, folder.spec)
    if missing:
        raise InfeasibleError("; ".join(missing))
    wanted = [(layer, plan.decoder_choices[layer]) for stage in stages for layer in plan.decoder_range(stage)]
    windows = calibration_windows(folder, config)
    quantise_layers(folder, wanted, windows, checkpoint, progress)


def _covers(profile: ProfileTable, folder: "ModelFolder", config: RunConfig, device_type: str) -> bool:
    """Whether the profile has the device type at every choice, up to the workload's batch and lengths."""
    spec, workload = folder.spec, config.workload
    rows = [
        row
        for row in profile.rows
        if row.device == device_type
        and _model_of(row) == folder.path.name
        and (row.hidden_size, row.intermediate_size) == (spec.hidden_size, spec.intermediate_size)
    ]

    def reach(choice: Choice, field: str) -> int:
        return max(
            (getattr(row, field) for row in rows if row.layer_kind == "decoder" and row.choice == choice), default=0
        )

    threads = {device.threads for device in config.cluster.devices if device.type == device_type}
    conditions = [profile.header.get(f"{device_type}.{fact}") for fact in ("threads", "neighbours")]
    return all([str(count), str(_neighbours(config, device_type))] == conditions for count in threads) and all(
        reach(choice, "batch") >= workload.batch_size
        and reach(choice, "input_tokens") >= workload.prompt_tokens
        and reach(choice, "past_tokens") >= workload.cache_tokens - 1
        for choice in config.choices
    )


def _neighbours(config: RunConfig, device_type: str) -> int:
    """Devices of one host that compute beside the one measured, as far as there are cores for them."""
    slots = Counter(device.host for device in config.cluster.devices if device.is_cpu and device_type == "cpu")
    return max(0, min(max(slots.values(), default=1), os.cpu_count() or 1) - 1)


def _model_of(row: ProfileRow) -> str:
    return row.model.partition("#")[0]


def _inputs_digest(config: RunConfig, request: "PlanRequest") -> str:
    """Of everything the plan depends on."""
    return digest_of(
        {
            "model": request.model_facts["digest"],
            "devices": [device_to_json(device) for device in request.cluster.devices],
            "link": asdict(request.cluster.default_link),
            "workload": asdict(request.workload),
            "choices": [choice.to_json() for choice in request.choices],
            "max_perplexity_increase": request.max_perplexity_increase,
            "planner": [config.planner_time_limit_s, config.planner_gap],
        },
        config.profile.read_bytes(),
        config.sensitivity.read_bytes(),
    )
