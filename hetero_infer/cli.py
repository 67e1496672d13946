"""The `hetero-infer` command: parse, call, write. Each verb imports what it needs and nothing else."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetero_infer import __version__
from hetero_infer.spec import UNQUANTISED, Fleet, HeteroInferError, InputError, Link, Objective, Plan, RunConfig
from hetero_infer.spec.errors import one_line
from hetero_infer.spec.sensitivity import METHODS

if TYPE_CHECKING:
    from hetero_infer.planner.request import PlanRequest
    from hetero_infer.planner.requests import Proposal


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    # Threads that spin while they wait take the other threads' cores on a busy machine: 8 s became more than 60.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except HeteroInferError as error:
        return _end(one_line(error), error.exit_code)
    except OSError as error:  # what we write tells its own; this is a file that vanished, or stdout
        return _end(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        return _end("this machine has too little memory for it; lower batch_size or the tokens, or use another one", 1)
    except KeyboardInterrupt:
        return _end("interrupted", 1)


def _is_lack_of_memory(error: Exception) -> bool:
    """Torch has no type for it on a CPU."""
    return isinstance(error, MemoryError) or any(
        words in str(error).lower() for words in ("can't allocate memory", "out of memory", "storage size calculation")
    )


def _end(line: str, exit_code: int) -> int:
    """What was not yet written to stdout is lost: Python would try again, and complain."""
    print(f"hetero-infer: {line}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code


def _devices(args: argparse.Namespace) -> int:
    from hetero_infer import inventory
    from hetero_infer.spec import Cluster
    from hetero_infer.spec.config import DEFAULT_LINK

    if args.config:
        config = RunConfig.load(args.config)
        found = inventory.of_run(replace(config, hostfile=args.hostfile or config.hostfile))
    elif args.hostfile:
        found = inventory.of_cluster(Cluster.from_hostfile(args.hostfile, Link(**DEFAULT_LINK)))
    else:
        found = inventory.of_this_machine()
    _show(args, found.to_json(), str(found))
    return 0


def _measure(args: argparse.Namespace) -> int:
    from hetero_infer import prepare
    from hetero_infer.checkpoint.model_folder import ModelFolder

    config = RunConfig.load(args.config).writing_to("profile", args.output)
    path = config.profile
    profile = prepare.measure(ModelFolder(config.model), config, path, args.device)
    off = profile.header.get(f"{args.device}.holdout_mean")
    facts = {"profile": str(path), "rows": len(profile.rows), "holdout_mean": off and float(off)}
    held_out = f", held-out points {float(off):.1%} off" if off else ""
    _show(args, facts, f"{path}: {len(profile.rows)} points{held_out}")
    return 0


def _sensitivity(args: argparse.Namespace) -> int:
    from hetero_infer import prepare
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.report import text_table
    from hetero_infer.spec.sensitivity import ENDS

    config = RunConfig.load(args.config).writing_to("sensitivity", args.output)
    config = replace(config, indicator=args.method or config.indicator)
    folder = ModelFolder(config.model)
    table = prepare.measure_sensitivity(folder, config, prepare.calibration_windows(folder, config))
    path = config.sensitivity
    choices = sorted({*table.choices, *table.embedding, *table.head})
    omega = {str(layer): dict(zip(table.choices, values, strict=True)) for layer, values in enumerate(table.omega)}
    omega |= {kind: table.of_kind(kind) for kind in ENDS}
    rows = [["layer", *map(str, choices)]]
    rows += [
        [layer, *(f"{of[choice]:.5f}" if choice in of else "" for choice in choices)] for layer, of in omega.items()
    ]
    facts = {"sensitivity": str(path), "method": table.method, "omega": table.omega}
    facts |= {kind: {str(choice): value for choice, value in table.of_kind(kind).items()} for kind in ENDS}
    _show(args, facts, f"{text_table(rows)}\n{table.unit}, by {table.method}, {path}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from hetero_infer import prepare
    from hetero_infer.planner.answers.pareto import pareto_front
    from hetero_infer.planner.baselines.uniform import why_not_uniform
    from hetero_infer.planner.compare import all_planners, compare
    from hetero_infer.report import based_on, comparison_text, fleet_table, labelled, pareto_table, plan_table
    from hetero_infer.request_report import proposals_table, requests_words

    config = RunConfig.load(args.config).writing_to("plan", args.output)
    tables: list[str] = []

    def tell(proposals: Sequence["Proposal"]) -> None:
        tables[:] = [proposals_table(proposals)]

    held_out = None
    if args.hold:
        from hetero_infer import hold

        held_out = hold.held_out_text(config)  # which is refused before anything is measured
    request = prepare.request_for(config)
    if held_out:
        fleet = hold.held_plan(config, request, held_out, tell)
    else:
        fleet = prepare.plan_for(config, request, config.plan, tell)
    if len(fleet.replicas) > 1:
        skipped = {
            about: why
            for about, is_asked, why in (
                ("comparison", args.compare, "baselines plan one pipeline, and this plan has several"),
                ("pareto", args.pareto, "the front is of one pipeline, and this plan has several"),
                (
                    "page",
                    args.html,
                    f"of one replica: 'hetero-infer explain {config.plan} --replica 0 --html' writes it",
                ),
            )
            if is_asked
        }
        text = "\n".join([fleet_table(fleet), *(labelled(*one) for one in skipped.items())])
        _show(args, fleet.to_json() | {"skipped": skipped}, text)
        return 0
    (plan,) = fleet.replicas
    request = replace(request, omega_limit=plan.quality.limit)  # below the bound's where held-out text broke it
    why = why_not_uniform(request, plan)
    facts = [("based on", based_on(plan, request.cluster, request.latency)), ("uniform", why)]
    if request.model.stored_choices:
        facts.append(("model", "quantised already: its layers are taken as they are, the loss is relative to them"))
    if request.requests.lengths:
        facts.append(("requests", requests_words(plan, request)))
    if config.planner_objective is Objective.LLM_PQ:
        facts.append(("objective", "LLM-PQ's, for comparison only: the solver's seconds are as its code counts them"))
    parts = [plan_table(plan), *(labelled(*fact) for fact in facts), *tables]
    content = plan.to_json() | {"why_not_uniform": why}
    rows, front = (), None
    if args.compare:
        rows = compare(request, plan, all_planners(config.planner_time_limit_s, config.planner_gap))
        parts += ["", comparison_text(rows)]
        content["comparison"] = [row.to_json() for row in rows]
    if args.pareto:
        front = pareto_front(request, plan, each_s=args.each_s, gap=config.planner_gap)
        parts += ["", pareto_table(front)]
        content["pareto"] = front.to_json()
    if args.html:
        _write_page(args.html, plan, request, facts=facts, front=front, compared=rows)
    _show(args, content, "\n".join(parts))
    return 0


def _write_page(path: Path, plan: Plan, request: "PlanRequest", **parts: Any) -> None:
    from hetero_infer.page.document import draw_page
    from hetero_infer.spec.files import write_atomically

    write_atomically(path, draw_page(plan, request, **parts))


def _explain(args: argparse.Namespace) -> int:
    from hetero_infer import prepare
    from hetero_infer.planner.answers.alternatives import Again
    from hetero_infer.planner.answers.explain import explain
    from hetero_infer.planner.check import check_plan
    from hetero_infer.report import based_on, explanation_text, labelled, labelled_all

    config = RunConfig.load(args.config)
    fleet = Fleet.load(args.plan)
    plan = _replica(args, fleet)
    request = prepare.request_for(config)
    config = prepare.with_lengths(config, request.requests)
    prepare.refuse_plan_for_another(fleet, args.plan, config, request.model_facts["digest"])
    others = {stage.device for replica in fleet.replicas if replica is not plan for stage in replica.stages}
    free = tuple(device for device in request.cluster.devices if device.name not in others)
    request = replace(request, workload=plan.workload, cluster=replace(request.cluster, devices=free))
    violations = check_plan(plan, request.model, request.sensitivity, request.latency)
    if violations:
        _show(args, {"violations": violations}, "\n".join(violations))
        return 3
    explanation = explain(plan, request)
    again = args.each_s and Again.of(plan, explanation, request, each_s=args.each_s, gap=config.planner_gap)
    more = list(again.sentences) if again else []
    stands_on = ("based on", based_on(plan, request.cluster, request.latency))
    text = "\n".join([explanation_text(plan, explanation), *labelled_all(more), labelled(*stands_on)])
    if args.html:
        _write_page(args.html, plan, request, facts=[*explanation.sentences, *more, stands_on])
    _show(args, {"violations": [], **explanation.to_json(), "again": again.to_json() if again else []}, text)
    return 0


def _whatif(args: argparse.Namespace) -> int:
    from hetero_infer import prepare
    from hetero_infer.planner.answers.cluster_edit import with_added, without
    from hetero_infer.planner.answers.what_if import what_if
    from hetero_infer.report import labelled, link_words, what_if_table

    config = RunConfig.load(args.config)
    request = prepare.request_for(config)
    cluster = request.cluster
    for text in args.drop:
        cluster = without(cluster, text)
    for text in args.add:
        cluster = with_added(cluster, text)
    if cluster == request.cluster:
        raise InputError("nothing is changed: say --add TYPE:N or --drop TYPE:N, or both, as often as you like")
    limits = {"time_limit_s": config.planner_time_limit_s, "gap": config.planner_gap}
    found = what_if(request, replace(request, cluster=cluster), **limits)
    facts = [("worth", found.sentence), ("links", link_words(cluster))]
    _show(args, found.to_json(), "\n".join([what_if_table(found), "", *(labelled(*fact) for fact in facts)]))
    return 0 if isinstance(found.changed, Plan) else 3


def _check(args: argparse.Namespace) -> int:
    from hetero_infer import prepare
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.planner.check import check_plan
    from hetero_infer.spec import SensitivityTable

    config = RunConfig.load(args.config)
    config = prepare.with_lengths(config, prepare.real_requests(config))
    fleet = Fleet.load(args.plan)
    folder = ModelFolder(config.model)
    prepare.refuse_plan_for_another(fleet, args.plan, config, folder.digest)
    sensitivity = SensitivityTable.load(config.sensitivity)
    if sensitivity.model_digest != folder.digest:
        raise InputError(
            f"sensitivity {config.sensitivity}: it is for the model {sensitivity.model_digest}, and {config.model} is "
            f"{folder.digest}; run 'hetero-infer sensitivity'"
        )
    found = [check_plan(plan, folder.spec, sensitivity) for plan in fleet.replicas]
    of = ["" if len(found) == 1 else f"replica {number}: " for number in range(len(found))]
    violations = [f"{whose}{each}" for whose, its in zip(of, found, strict=True) for each in its]
    _show(args, {"violations": violations}, "\n".join(violations) or "the plan can run and keeps its quality limit")
    return 3 if violations else 0


def _simulate(args: argparse.Namespace) -> int:
    from hetero_infer import prepare
    from hetero_infer.pipeline.gantt import draw_gantt
    from hetero_infer.pipeline.rehearsal import rehearse, station_spans
    from hetero_infer.pipeline.simulate import draw_grid
    from hetero_infer.pipeline.trace import chrome_trace
    from hetero_infer.planner.estimate import PlanCosts
    from hetero_infer.report import predicted, stage_label
    from hetero_infer.spec.files import write_atomically

    config = RunConfig.load(args.config)
    fleet = Fleet.load(args.plan)
    plan = _replica(args, fleet)
    request = prepare.request_for(config)
    config = prepare.with_lengths(config, request.requests)
    prepare.refuse_plan_for_another(fleet, args.plan, config, request.model_facts["digest"])
    simulated = predicted(plan, "simulated")
    timeline = rehearse(PlanCosts(plan, request.model, request.cluster, request.latency), plan)
    labels = [stage_label(plan, stage) for stage in range(len(plan.stages))]
    if args.svg:
        write_atomically(args.svg, draw_gantt(timeline, labels, f"{simulated}, from the plan's costs"))
    if args.trace:
        write_atomically(args.trace, chrome_trace(station_spans(timeline, plan, labels), simulated))
    unit_s = timeline.makespan_s / args.rows
    grid = draw_grid(timeline, len(plan.stages), unit_s)
    _show(
        args,
        {"makespan_s": timeline.makespan_s, "events": len(timeline.events)},
        f"{grid}\n{simulated}: {timeline.makespan_s:.3f} s, a row is {unit_s * 1e3:.1f} ms",
    )
    return 0


def _quantize(args: argparse.Namespace) -> int:
    from hetero_infer import prepare

    config = RunConfig.load(args.config).writing_to("checkpoint", args.output)
    fleet = Fleet.load(args.plan)
    devices = args.devices or fleet.used_devices
    if not set(devices) <= set(fleet.used_devices):
        raise InputError(f"--devices {','.join(devices)}: the plan has stages on {', '.join(fleet.used_devices)}")
    checkpoint, exported = config.checkpoint, _replica(args, fleet) if args.export_hf else None
    found = prepare.quantise(fleet, args.plan, config, checkpoint, devices, progress=not args.json)
    facts, lines = {"checkpoint": str(found)}, [f"quantised layers are in {found}"]
    if exported:
        facts |= {"export": str(args.export_hf)}
        lines += ["", prepare.export(exported, config, checkpoint, args.export_hf)]
    _show(args, facts, "\n".join(lines))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from hetero_infer import prepare
    from hetero_infer.checkpoint.local_model import single_process_model
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.checkpoint.shards import ShardStore
    from hetero_infer.measure.agreement import greedy_answers, measure_agreement
    from hetero_infer.measure.perplexity import measure_perplexity
    from hetero_infer.report import agreement_text, perplexity_table

    config = RunConfig.load(args.config)
    folder = ModelFolder(config.model)
    choices, shards, ends = None, None, (UNQUANTISED, UNQUANTISED)
    if args.checkpoint:
        path = args.plan or config.plan
        fleet = Fleet.load(path)
        plan = _replica(args, fleet)
        prepare.refuse_other_model(fleet, path, config, folder.digest)
        if not folder.spec.stored_choices:
            shards = ShardStore.of_model(args.checkpoint, folder.digest, plan.layer_choices)
        choices, ends = plan.decoder_choices, (plan.embedding_choice, plan.head_choice)
    prompts = prepare.prompts_of(args.agreement, folder) if args.agreement else []
    answers = greedy_answers(single_process_model(folder), prompts) if prompts else []  # first: one model in memory
    model = single_process_model(folder, choices, shards, ends=ends)
    text = args.text or config.text
    found = measure_perplexity(model, folder, text, args.context, args.stride, progress=not args.json)
    facts, said = found.to_json(), [perplexity_table(found, text)]
    if prompts:
        agreement = measure_agreement(model, prompts, answers)
        facts["agreement"] = agreement.to_json()
        said.append(agreement_text(agreement))
    _show(args, facts, "\n".join(said))
    return 0


def _replica(args: argparse.Namespace, fleet: Fleet) -> Plan:
    """The only one, or that of the number asked for."""
    last = len(fleet.replicas) - 1
    number = 0 if last == 0 and args.replica is None else args.replica
    if number not in range(last + 1):
        raise InputError(f"the plan has the replicas 0 to {last}; say which with --replica")
    return fleet.replicas[number]


def _bench(args: argparse.Namespace) -> int:
    from hetero_infer.bench import runner

    if args.of == "planner":
        if args.models:
            raise InputError("bench planner: --model is for 'bench quality'; leave it out")
        from hetero_infer.bench.planner import SECTIONS as sections
    else:
        from hetero_infer.bench.quality import SECTIONS

        sections = {name: partial(measure, args.models) for name, measure in SECTIONS.items()}
    output = args.output or Path(f"out/bench/{args.of}.json")
    shared = Path(os.environ.get("HETERO_INFER_SHARED", "../shared"))
    tables = sys.stderr if args.json else sys.stdout
    content = runner.run(sections, shared, output, args.only, tables)
    if args.json:
        print(json.dumps(content, default=str))
    demands = [demand for section in content["sections"].values() for demand in section["demands"]]
    return 0 if all(demand["is_met"] for demand in demands) else 1


def _show(args: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    from hetero_infer.report import encodable

    print(json.dumps(facts) if args.json else encodable(text, sys.stdout.encoding or "utf-8"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hetero-infer", description="One LLM over a pipeline of unlike devices.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    of_several: dict[str, Any] = {"type": int, "help": "which, if the plan has several", "metavar": "N"}

    def verb(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        sub.add_argument("-c", "--config", type=Path, default=Path("launch/batch.toml"), help="run.toml")
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
        return sub

    sub = verb("devices", _devices, "what is there: devices, memory, and which links and profiles are known")
    sub.set_defaults(config=None)
    sub.add_argument("--hostfile", type=Path, help="of these hosts (default: the config's with -c, else this machine)")
    sub = verb("measure", _measure, "time one layer per choice, phase, batch and length on this device")
    sub.add_argument("--device", default="cpu", metavar="TYPE", help="its type in the hostfile (default: cpu)")
    sub.add_argument("-o", "--output", type=Path, help="profile.csv (default: as the config says)")
    sub = verb("sensitivity", _sensitivity, "what each choice for each layer costs in quality")
    sub.add_argument("--method", help=f"{', '.join(METHODS)} (default: as the config says)")
    sub.add_argument("-o", "--output", type=Path, help="sensitivity.json (default: as the config says)")
    sub = verb("plan", _plan, "the plan; measures first what it lacks")
    sub.add_argument("-o", "--output", type=Path, help="plan.json (default: as the config says)")
    sub.add_argument("--hold", action="store_true", help="quantise, measure held-out text, and tighten until it holds")
    sub.add_argument("--compare", action="store_true", help="and what others would have planned: the baselines")
    sub.add_argument("--pareto", action="store_true", help="and what other quality limits and fewer devices give")
    sub.add_argument("--html", type=Path, help="write a page of it there: one file, for any browser")
    sub.add_argument("--each-s", type=seconds, default=5, metavar="S", help="of each plan of --pareto (default: 5)")
    sub = verb("explain", _explain, "which limit binds in a plan, what each device idles, what more would give")
    sub.add_argument("plan", type=Path)
    sub.add_argument("--replica", **of_several)
    sub.add_argument(
        "--each-s", type=seconds, default=3, metavar="S", help="of each planning again; 0: none (default: 3)"
    )
    sub.add_argument("--html", type=Path, help="write a page of it there: one file, for any browser")
    sub = verb("whatif", _whatif, "plan with devices added or dropped, beside the plan as things are")
    sub.add_argument("--add", action="append", default=[], metavar="TYPE:N", help="also TYPE:N@HOST, TYPE:N=12GiB")
    sub.add_argument("--drop", action="append", default=[], metavar="TYPE:N", help="or a device, like node-b:0")
    sub = verb("check", _check, "check a plan again, also one edited by hand")
    sub.add_argument("plan", type=Path)
    sub = verb("simulate", _simulate, "run a plan's schedules event by event, without a model")
    sub.add_argument("plan", type=Path)
    sub.add_argument("--replica", **of_several)
    sub.add_argument("--rows", type=positive_number, default=40, help="of the drawing (default: 40)")
    sub.add_argument("--svg", type=Path, help="draw it there as well, a row per stage")
    sub.add_argument("--trace", type=Path, help="write it there as a trace for ui.perfetto.dev, a track per station")
    sub = verb("quantize", _quantize, "GPTQ of the layers a plan needs; those that are there are used again")
    sub.add_argument("plan", type=Path)
    sub.add_argument("-o", "--output", type=Path, help="checkpoint folder (default: as the config says)")
    sub.add_argument("--devices", type=list_of_names, help="only for the stages on these, like node-a:0,node-b:2")
    sub.add_argument("--export-hf", type=Path, metavar="DIR", help="write the model there for other engines")
    sub.add_argument("--replica", **of_several)
    sub = verb("evaluate", _evaluate, "perplexity of a text in one process, of the plan's layers or unquantised")
    sub.add_argument("checkpoint", type=Path, nargs="?", help="checkpoint folder; without it the model is unquantised")
    sub.add_argument("--plan", type=Path, help="whose choices are evaluated (default: as the config says)")
    sub.add_argument("--replica", **of_several)
    sub.add_argument("--text", type=Path, help="(default: as the config says)")
    sub.add_argument("--context", type=int, metavar="TOKENS", help="of a window (default: 512, or what the model has)")
    sub.add_argument("--stride", type=int, metavar="TOKENS", help="from window to window (default: the context)")
    sub.add_argument("--agreement", type=Path, metavar="FILE", help="and of greedy tokens: a text, or batch lines")
    sub = verb("bench", _bench, "measure what the project claims; prints tables and keeps them")
    sub.add_argument("of", choices=["planner", "quality"], help="the plans, or what quantised models lose")
    sub.add_argument("--only", type=lambda text: text.split(","), default=[], help="sections, like reality,clusters")
    sub.add_argument(
        "--model",
        dest="models",
        type=Path,
        action="append",
        default=[],
        help="quality: another trained model, with its texts",
    )
    sub.add_argument("-o", "--output", type=Path, help="(default: out/bench/ and its name, .json)")
    return parser


def list_of_names(text: str) -> list[str]:  # argparse shows these two names to people
    return text.split(",")


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError(text)
    return number


def positive_number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
