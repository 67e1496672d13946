"""What a plan needs, made where it is missing or out of date: profile, sensitivity, plan, quantised layers.

Each is a file that a person can read, and says what it was made from; what still holds is used again.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hetero_infer.measure.neighbours import cpu_neighbours
from hetero_infer.spec import (
    Choice,
    Fleet,
    InfeasibleError,
    InputError,
    ModelSpec,
    Plan,
    ProfileTable,
    RunConfig,
    SensitivityTable,
    Workload,
)
from hetero_infer.spec.cluster import device_to_json
from hetero_infer.spec.config import DEMO_MODEL
from hetero_infer.spec.files import digest_of, read_text
from hetero_infer.spec.gpu_type import GPU_TYPES
from hetero_infer.spec.model import Layer
from hetero_infer.spec.profile import DECODER, EMBEDDING, HEAD
from hetero_infer.spec.requests import RealRequests, RequestLengths, average, longest, read_trace

if TYPE_CHECKING:
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.checkpoint.text import CalibrationWindows
    from hetero_infer.measure.agreement import Prompt
    from hetero_infer.planner.request import PlanRequest
    from hetero_infer.planner.requests import Proposal


def real_requests(config: RunConfig) -> RealRequests:
    """Prompts as long as the model's own tokenizer makes them, answers as long as they may become. None where the
    config gives fixed lengths."""
    path = config.requests or config.arrivals
    if path is None:
        return RealRequests()
    positions = ModelSpec.from_folder(config.model).max_position_embeddings
    most = config.longest or Workload(config.batch_size, positions, 1)
    read = _read_requests if config.requests else _read_arrivals
    found = read(path, config.model, most)
    if not found.lengths:
        raise InputError(
            f"[workload] {path}: none of its {found.left_out} requests can be planned for; each needs a prompt of at "
            f"most {most.prompt_tokens} tokens, and {most.cache_tokens + 1} with its answer"
        )
    return found


def prompts_of(path: Path, folder: "ModelFolder") -> "list[Prompt]":
    """What answers are compared on: a batch file's requests (``.jsonl``), or pieces of a text."""
    from hetero_infer.measure.agreement import prompts_of_text
    from hetero_infer.serving.batch_file import read_lines
    from hetero_infer.serving.served_model import ServedModel

    if path.suffix != ".jsonl":
        return prompts_of_text(folder, path)
    model = ServedModel.of_lengths(folder.path, Workload(1, folder.spec.max_position_embeddings, 1))
    lines = list(read_lines(read_text(path, "requests").encode(), model))
    for line in lines:
        if line.error:
            raise InputError(f"requests {path}: {line.error}")
    if not lines:
        raise InputError(f"requests {path}: there are none")
    return [(line.request.prompt, line.request.max_tokens) for line in lines if line.request]


def _read_requests(path: Path, model_folder: Path, most: Workload) -> RealRequests:
    """As the runtime reads a batch file for a plan for `most`."""
    from hetero_infer.serving.batch_file import read_lines
    from hetero_infer.serving.served_model import ServedModel

    lines = list(read_lines(read_text(path, "requests").encode(), ServedModel.of_lengths(model_folder, most)))
    requests = [line.request for line in lines if line.request]
    lengths = tuple(RequestLengths(len(request.prompt), request.max_tokens) for request in requests)
    return RealRequests(lengths, len(lines) - len(lengths))


def _read_arrivals(path: Path, model_folder: Path, most: Workload) -> RealRequests:
    said = read_trace(path)
    lengths = tuple(request for request in said if request.fits(most))
    return RealRequests(lengths, len(said) - len(lengths))


def with_lengths(config: RunConfig, requests: RealRequests) -> RunConfig:
    """The config with the longest of its real requests, where it does not say lengths."""
    if config.longest:
        return config
    return replace(config, longest=longest(requests.lengths, config.batch_size))


def profile_for(folder: "ModelFolder", config: RunConfig) -> ProfileTable:
    """The profile file, measured first where it lacks this machine's CPU. A GPU type that it does not have at all is
    left to the spec sheet; one that it has in part is an error, because its measurements would go unused."""
    profile = ProfileTable.load_if_there(config.profile)
    missing = {
        device.timed_as: device
        for device in config.cluster.devices
        if not covers(profile, folder.spec, config, device.timed_as)
    }
    in_part = {row.device for row in profile.rows if row.model_name == folder.path.name} & missing.keys()
    for name, device in missing.items():
        if device.is_cpu:
            profile = measure(folder, config, config.profile, name)
        elif name in in_part:
            raise InputError(
                f"profile {config.profile}: it has {name} for {folder.path.name}, but not at these choices and up to "
                f"this batch and these lengths; measure it again ('deepspeed --hostfile {config.hostfile} "
                "launch/measure.py' measures all types), or take its rows out to plan by the spec sheet"
            )
    return profile


def measure(folder: "ModelFolder", config: RunConfig, path: Path, timed_as: str) -> ProfileTable:
    """Time the layers on this machine's device; the rows replace those of the same device type and model in `path`."""
    from hetero_infer.measure.layer_timer import measure_layers

    config = with_lengths(config.for_model(folder.spec), real_requests(config))
    config.workload.refuse_beyond(folder.spec.max_position_embeddings)
    threads, cores = _threads(config, timed_as), os.cpu_count() or 1
    if threads > cores:
        raise InputError(
            f"hostfile {config.hostfile}: {threads} threads for {timed_as}, and this host has {cores} cores"
        )
    measured = measure_layers(
        folder.spec,
        folder.path.name,
        timed_as,
        config.choices,
        config.workload,
        threads,
        cpu_neighbours(config.cluster.devices, timed_as, cores),
        progress=True,
        embedding_choices=config.embedding_choices,
        head_choices=config.head_choices,
    )
    profile = ProfileTable.load_if_there(path).with_measured(measured)
    profile.save(path)
    return profile


def sensitivity_for(folder: "ModelFolder", config: RunConfig) -> SensitivityTable:
    """The sensitivity file; measured first if it is missing or for another model, text, choices or indicator."""
    if folder.spec.stored_choices:
        table = SensitivityTable.of_stored(folder.spec.stored_choices, folder.digest)
        table.save(config.sensitivity)
        return table
    windows = calibration_windows(folder, config)
    if config.sensitivity.exists():
        table = SensitivityTable.load(config.sensitivity)
        has_choices = (
            set(config.choices) <= set(table.choices)
            and set(config.embedding_choices) <= table.embedding.keys()
            and set(config.head_choices) <= table.head.keys()
        )
        made_from = (table.method, table.model_digest, table.text_digest)
        if has_choices and made_from == (config.indicator, folder.digest, windows.digest):
            return table
    return measure_sensitivity(folder, config, windows)


def measure_sensitivity(folder: "ModelFolder", config: RunConfig, windows: "CalibrationWindows") -> SensitivityTable:
    """Measured by the config's indicator, and saved."""
    from hetero_infer.measure.indicators import table as indicators

    table = indicators.measure_sensitivity(
        folder,
        config.choices,
        windows,
        config.indicator,
        embedding_choices=config.embedding_choices,
        head_choices=config.head_choices,
    )
    table.save(config.sensitivity)
    return table


def calibration_windows(folder: "ModelFolder", config: RunConfig) -> "CalibrationWindows":
    from hetero_infer.checkpoint.text import CalibrationWindows

    if folder.spec.stored_choices:
        raise InputError(f"model {folder.path}: quantised already, so there is nothing to calibrate; plan as it is")
    return CalibrationWindows.from_text(
        folder, config.calibration, config.calibration_windows, config.calibration_tokens
    )


def request_for(config: RunConfig) -> "PlanRequest":
    """All that the planner wants to know, from the files of the run."""
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.cost.latency import MeasuredElseSpecSheet, ProfiledLatency
    from hetero_infer.cost.roofline import RooflineLatency
    from hetero_infer.planner.request import PlanRequest

    folder = ModelFolder(config.model)
    requests = real_requests(config)
    config = with_lengths(config.for_model(folder.spec), requests)
    kinds = {device.is_cpu for device in config.cluster.devices}
    if len(kinds) > 1:
        raise InputError(f"hostfile {config.hostfile}: CPUs and GPUs in one pipeline are not supported; use one kind")
    config.workload.refuse_beyond(folder.spec.max_position_embeddings)
    latency = MeasuredElseSpecSheet(
        ProfiledLatency(profile_for(folder, config), folder.path.name), RooflineLatency(folder.spec)
    )
    for device in config.cluster.devices:
        latency.allowed_choices(device, config.choices)  # a type that nobody knows: before ω is measured
    return PlanRequest(
        model=folder.spec,
        model_facts={
            "path": "demo" if config.model == DEMO_MODEL else str(config.model),
            "digest": folder.digest,
            "num_hidden_layers": folder.spec.num_hidden_layers,
        },
        cluster=config.cluster,
        workload=average(requests.lengths, config.batch_size) if config.arrivals else config.workload,
        latency=latency,
        sensitivity=sensitivity_for(folder, config),
        choices=config.choices,
        embedding_choices=config.embedding_choices,
        head_choices=config.head_choices,
        omega_limit=math.log1p(config.max_perplexity_increase),
        max_perplexity_increase=config.max_perplexity_increase,
        room_for=config.workload if config.arrivals else None,
        objective=config.planner_objective,
        requests=requests,
    )


def plan_for(
    config: RunConfig,
    request: "PlanRequest",
    path: Path,
    tell: Callable[[Sequence["Proposal"]], None] = lambda proposals: None,
) -> Fleet:
    """The plan at `path` if it was made from the same inputs, else a new one, saved there.

    A plan for a file of requests is the best of several, which `tell` is told.
    """
    digest = _inputs_digest(config, request)
    if path.exists():
        old = Fleet.load(path)
        if old.is_edited:
            raise InputError(
                f"plan {path} was edited by hand, and a new one would be written over it; give it as --plan to "
                "launch/serve.py or launch/batch.py, or move it away"
            )
        if old.inputs_digest == digest:
            return old
    return new_plan(config, request, path, tell)


def new_plan(
    config: RunConfig,
    request: "PlanRequest",
    path: Path,
    tell: Callable[[Sequence["Proposal"]], None] = lambda proposals: None,
) -> Fleet:
    """Within the request's Ω, which may be tighter than the bound that `plan_for` knows a plan by. Saved at `path`."""
    from hetero_infer.planner.fleet.fleet import plan_fleet, plan_one_or_several
    from hetero_infer.planner.requests import admitting, propose
    from hetero_infer.planner.search import find_plan

    def find(request: "PlanRequest", time_limit_s: float) -> Plan:
        return admitting(find_plan(request, time_limit_s=time_limit_s, gap=config.planner_gap), request)

    time_limit_s, gap = config.planner_time_limit_s, config.planner_gap
    if config.requests:
        proposals = propose(request, find, time_limit_s)
        tell(proposals)
        fleet = Fleet((proposals[0].plan,))
    elif config.planner_replicas is None:
        fleet = plan_one_or_several(request, time_limit_s=time_limit_s, gap=gap)
    elif config.planner_replicas > 1:
        fleet = plan_fleet(request, time_limit_s=time_limit_s, gap=gap, replicas=config.planner_replicas)
    else:
        fleet = Fleet((find(request, time_limit_s),))
    fleet = fleet.made_from(_inputs_digest(config, request))
    fleet.save(path)
    return fleet


def quantise(
    fleet: Fleet, plan_path: Path, config: RunConfig, checkpoint: Path, devices: Collection[str], progress: bool
) -> Path:
    """See to it that `checkpoint` has the quantised layers that the stages on `devices` need. Gives the folder where
    they are: the model's own if it is quantised already."""
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.checkpoint.quantise import quantise_layers
    from hetero_infer.planner.check import fit_violations

    folder = ModelFolder(config.model)
    refuse_other_model(fleet, plan_path, config, folder.digest)
    violations = [violation for replica in fleet.replicas for violation in fit_violations(replica, folder.spec)]
    if violations:
        raise InfeasibleError(f"plan {plan_path}: {'; '.join(violations)}")
    wanted: dict[tuple[Choice, ...], list[tuple[Layer, Choice]]] = defaultdict(list)  # by what their weights depend on
    for replica, stage in map(fleet.stage_on, devices):
        for position in range(*replica.bounds[stage : stage + 2]):
            layer, choice = folder.spec.layer_at(position), replica.layer_choices[position]
            folder.spec.refuse_unlike_stored(layer, choice)
            wanted[replica.layer_choices if config.gptq.sequential else ()].append((layer, choice))
    if folder.spec.stored_choices:
        return folder.path
    windows = calibration_windows(folder, config)
    for layer_choices, layers in wanted.items():
        quantise_layers(folder, layers, windows, checkpoint, config.gptq, layer_choices, progress)
    return checkpoint


def export(plan: Plan, config: RunConfig, checkpoint: Path, directory: Path) -> str:
    """The plan's model as a Hugging Face folder, of layers that were quantised before; what it says of itself."""
    from hetero_infer.checkpoint.export import export_model
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.checkpoint.shards import ShardStore

    folder = ModelFolder(config.model)
    shards = None if folder.spec.stored_choices else ShardStore.of_model(checkpoint, folder.digest, plan.layer_choices)
    return export_model(folder, plan.layer_choices, shards, directory)


def refuse_other_model(plan: Fleet, path: Path, config: RunConfig, digest: str) -> None:
    """`digest` is that of the config's model, and must be the plan's."""
    if plan.model["digest"] != digest:
        raise InputError(
            f"plan {path}: it is for the model {plan.model['digest']} ({plan.model['path']}), and {config.model} is "
            f"{digest}; plan again, or name that model under [model] path"
        )


def refuse_plan_for_another(plan: Fleet, path: Path, config: RunConfig, digest: str) -> None:
    """A plan's model, devices and workload are those of the config."""
    refuse_other_model(plan, path, config, digest)
    devices = config.cluster.devices
    planned, there = ([device.name for device in ones] for ones in (plan.devices, devices))
    if planned != there:
        raise InputError(
            f"plan {path}: it is for the devices {', '.join(planned)}, and hostfile {config.hostfile} has "
            f"{', '.join(there)}; plan again, or name that hostfile"
        )
    compared = [
        (f"{key} of {mine.name}", value, device_to_json(other)[key], f"hostfile {config.hostfile}")
        for mine, other in zip(plan.devices, devices, strict=True)
        for key, value in device_to_json(mine).items()
    ]
    compared += [
        (key, value, asdict(config.workload)[key], "the config") for key, value in asdict(plan.workload).items()
    ]
    for what, in_plan, said, where in compared:
        if in_plan != said:
            raise InputError(f"plan {path}: {what} is {in_plan} in it, and {said} in {where}; make both the same")


def covers(profile: ProfileTable, spec: ModelSpec, config: RunConfig, timed_as: str) -> bool:
    """Whether the profile has the device type at every choice, up to the workload's batch and lengths."""
    workload = config.workload
    rows = [
        row
        for row in profile.rows
        if row.device == timed_as
        and row.model_name == config.model.name
        and (row.hidden_size, row.intermediate_size) == (spec.hidden_size, spec.intermediate_size)
    ]

    def reach(kind: str, choice: Choice, field: str) -> int:
        return max((getattr(row, field) for row in rows if (row.layer_kind, row.choice) == (kind, choice)), default=0)

    layers = [
        *((DECODER, choice) for choice in config.choices),
        *((EMBEDDING, choice) for choice in config.embedding_choices),
        *((HEAD, choice) for choice in config.head_choices),
    ]

    said = {fact: profile.header.get(f"{timed_as}.{fact}") for fact in ("threads", "neighbours", "cores")}
    cores = int(said["cores"] or 0) or os.cpu_count() or 1
    wanted = {
        "threads": str(_threads(config, timed_as)),
        "neighbours": str(cpu_neighbours(config.cluster.devices, timed_as, cores)),
    }
    return wanted.items() <= said.items() and all(
        reach(*layer, "batch") >= workload.batch_size
        and reach(*layer, "input_tokens") >= workload.prompt_tokens
        and reach(*layer, "past_tokens") >= workload.cache_tokens - 1
        for layer in layers
    )


def _threads(config: RunConfig, timed_as: str) -> int:
    return max((device.threads for device in config.cluster.devices if device.timed_as == timed_as), default=1)


def _inputs_digest(config: RunConfig, request: "PlanRequest") -> str:
    """Of everything the plan depends on."""
    devices = request.cluster.devices
    return digest_of(
        {
            "model": request.model_facts["digest"],
            "devices": [device_to_json(device) for device in devices],
            "link": asdict(request.cluster.default_link),
            "links": [
                [*pair, *asdict(request.cluster.links[pair]).values()]
                for pair in request.cluster.host_pairs
                if pair in request.cluster.links
            ],
            "spec_sheet": [asdict(GPU_TYPES[name]) for name in sorted({d.type for d in devices} & GPU_TYPES.keys())],
            "workload": [asdict(request.workload), asdict(request.admitted), request.objective],
            "requests": [asdict(one) for one in request.requests.lengths] if config.requests else [],
            "choices": [
                [choice.to_json() for choice in choices]
                for choices in (request.choices, request.embedding_choices, request.head_choices)
            ],
            "max_perplexity_increase": request.max_perplexity_increase,
            "planner": [
                *(config.planner_time_limit_s, config.planner_gap),
                *(config.planner_objective, config.planner_replicas),
            ],
        },
        config.profile.read_bytes() if config.profile.exists() else b"",
        config.sensitivity.read_bytes(),
    )
