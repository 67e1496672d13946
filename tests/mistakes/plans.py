"""Mistakes of a hand in plan.json."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.mistakes.mistake import QUANTIZE, SIMULATE, Mistake, edited, replaced

Content = dict[str, Any]


def plan_mistakes() -> Iterator[Mistake]:
    yield from in_the_content()
    yield from in_a_stage()
    yield from of_another_run()
    yield from that_cannot_run()


def edit(says: str, change: Callable[[Content], object]) -> Mistake:
    return Mistake(says, "plan.json", edited("out/plan.json", change))


def in_the_content() -> Iterator[Mistake]:
    for part in ("model", "cluster", "workload", "pipelines"):
        yield edit(f"{part} is missing", lambda plan, part=part: plan.pop(part))
        yield edit(f"{part} = 'x' is not a", lambda plan, part=part: plan.update({part: "x"}))
    yield edit("format 2, this version reads format 1", lambda plan: plan.update(format=2))
    yield edit("format True, this version", lambda plan: plan.update(format=True))
    yield edit("format None", lambda plan: plan.pop("format"))
    yield edit("piplines is not known; did you mean pipelines?", lambda plan: plan.update(piplines=[]))
    yield edit(
        "pipelines[0]: batch_size is missing", two_pipelines(lambda plan: plan["pipelines"][0].pop("batch_size"))
    )
    yield edit("localhost:0 is in two pipelines; a device has", two_pipelines(lambda plan: None))
    yield edit("batch_size add up to 5, its workload's is 4", two_pipelines(on_their_own_devices))
    yield edit("it has 0 pipelines", lambda plan: plan["pipelines"].clear())
    yield edit("pipelines[0] = 7 is not", lambda plan: plan.update(pipelines=[7]))
    yield edit("pipelines[0]: decode is missing", lambda plan: plan["pipelines"][0].pop("decode"))
    yield edit("model: digest is missing", lambda plan: plan["model"].pop("digest"))
    yield edit("model: num_hidden_layers = '4' is not", lambda plan: plan["model"].update(num_hidden_layers="4"))
    yield edit("workload: new_tokens is missing", lambda plan: plan["workload"].pop("new_tokens"))
    yield edit("workload: batch_size = '4' is not", lambda plan: plan["workload"].update(batch_size="4"))
    yield edit("workload: prompt_tokens = 0, must", lambda plan: plan["workload"].update(prompt_tokens=0))
    yield edit("workload: prompts is not known; did", lambda plan: plan["workload"].update(prompts=3))
    for phase in ("prefill", "decode"):
        for size in (0, -1, 5, 10**30):

            def change(plan: Content, phase: str = phase, size: int = size) -> None:
                plan["pipelines"][0][phase]["micro_batch_size"] = size

            yield edit(f"{phase}_micro_batch_size = {size} for a batch of 4", change)
    yield edit(
        "decode: micro_batch_size = 1.5 is not a whole number",
        lambda plan: plan["pipelines"][0]["decode"].update(micro_batch_size=1.5),
    )
    yield edit(
        "prefill: micro_batchsize is not known", lambda plan: plan["pipelines"][0]["prefill"].update(micro_batchsize=1)
    )
    yield edit("estimate: prefill_s is missing", lambda plan: plan["estimate"].pop("prefill_s"))
    yield edit("estimate: decode_s = 'long' is not", lambda plan: plan["estimate"].update(decode_s="long"))
    yield edit("memory_bytes[1] = 7 is not", lambda plan: plan["estimate"]["memory_bytes"].__setitem__(1, 7))
    yield edit(
        "stage_seconds[0] decode = 'x' is not", lambda plan: plan["estimate"]["stage_seconds"][0].update(decode="x")
    )
    yield edit("quality: limit = nan is not", lambda plan: plan["quality"].update(limit=float("nan")))
    yield edit("solver: gap = '1 %' is not", lambda plan: plan["solver"].update(gap="1 %"))
    yield edit("solver: name is missing", lambda plan: plan["solver"].pop("name"))


def two_pipelines(change: Callable[[Content], object]) -> Callable[[Content], None]:
    """The plan's pipeline twice, for 3 and 2 sequences, and then the change."""

    def edit(plan: Content) -> None:
        promises = {part: plan.pop(part) for part in ("estimate", "quality")}
        one = plan["pipelines"][0] | promises | {"prefill": {"micro_batch_size": 1}, "decode": {"micro_batch_size": 1}}
        plan["pipelines"] = [one | {"batch_size": 3}, one | {"batch_size": 2}]
        change(plan)

    return edit


def on_their_own_devices(plan: Content) -> None:
    """A stage for each: the two of the plan, one with all layers."""
    first, second = plan["pipelines"]
    layers = [layer for stage in first["stages"] for layer in stage["layers"]]
    for pipeline, device in ((first, "localhost:0"), (second, "localhost:1")):
        pipeline.update(stages=[{"device": device, "layers": layers}], estimate=None)


def in_a_stage() -> Iterator[Mistake]:
    def stage(says: str, change: Callable[[Content], object]) -> Mistake:
        return edit(says, lambda plan: change(plan["pipelines"][0]["stages"][1]))

    def layer(says: str, **values: Any) -> Mistake:
        return stage(f"stages[1], layers[1]: {says}", lambda stage: stage["layers"][1].update(values))

    def device(says: str, **values: Any) -> Mistake:
        return edit(says, lambda plan: plan["cluster"][1].update(values))

    yield stage(
        "stands on localhost:7, which is no device of the plan", lambda stage: stage.update(device="localhost:7")
    )
    yield stage("localhost:0 has two stages", lambda stage: stage.update(device="localhost:0"))
    yield stage("stages[1]: device is missing", lambda stage: stage.pop("device"))
    yield stage("stages[1]: device = 1 is not a string", lambda stage: stage.update(device=1))
    yield stage("stages[1]: the stage on localhost:1 has no layer", lambda stage: stage.update(layers=[]))
    yield stage("stages[1]: layer is not known; did you mean layers?", lambda stage: stage.update(layer=3))
    yield stage("stages[1]: layers = 3 is not a list", lambda stage: stage.update(layers=3))
    yield stage("its stages have 5 layers, the model has 4", lambda stage: stage["layers"].pop())
    yield stage("its stages have 7 layers, the model has 4", lambda stage: stage["layers"].append(stage["layers"][-1]))
    yield edit("stages[0] = None is not", lambda plan: plan["pipelines"][0]["stages"].insert(0, None))
    yield edit("its stages have 0 layers", lambda plan: plan["pipelines"][0].update(stages=[]))
    yield stage("layers[0] = 4 is not a table", lambda stage: stage["layers"].insert(0, 4))
    yield layer("bits = 5: choose from 3, 4, 8, 16", bits=5)
    yield layer("bits = '4' is not a whole number", bits="4")
    yield layer("bits = True is not a whole number", bits=True)
    yield layer("bits = 4.0 is not a whole number", bits=4.0)
    yield layer("bitz is not known; did you mean bits?", bitz=4)
    yield layer("group_size = 40: must be a positive multiple of 32", bits=4, group_size=40)
    yield layer("group_size = -64: must be a positive multiple of 32", bits=4, group_size=-64)
    yield layer("group_size = '64' is not", bits=4, group_size="64")
    yield layer("activations = 'int8': only 'float' is implemented", activations="int8")
    yield edit("the device localhost:0 stands twice", lambda plan: plan["cluster"].insert(0, plan["cluster"][0]))
    yield edit("cluster[1]: type is missing", lambda plan: plan["cluster"][1].pop("type"))
    yield edit("cluster[0] = 'localhost:0' is not", lambda plan: plan["cluster"].__setitem__(0, "localhost:0"))
    yield device("cluster[1]: name = 'localhost' does not read 'host:slot'", name="localhost")
    yield device("cluster[1]: name = 'localhost:-1' does not read 'host:slot'", name="localhost:-1")
    yield device("memory_bytes = '2MiB' is not a whole number", memory_bytes="2MiB")
    yield device("cluster[1]: device localhost:1: memory must be positive", memory_bytes=-1)
    yield device("slowdown = 'x' is not a number", slowdown="x")
    yield device("cluster[1]: device localhost:1: slowdown = 0.5", slowdown=0.5)
    yield device("cluster[1]: memory is not known; did you mean memory_bytes?", memory=1)


def of_another_run() -> Iterator[Mistake]:
    def otherwise(says: str, spoil: Callable[[Path], object], command: tuple[str, ...]) -> Mistake:
        return Mistake(says, "plan.json", spoil, command)

    model = edited("out/plan.json", lambda plan: plan["model"].update(digest="0123456789abcdef"))
    for command in (SIMULATE, QUANTIZE, ("check", "out/plan.json")):
        yield otherwise("it is for the model 0123456789abcdef (", model, command)
    yield otherwise("it is for the model 0123456789abcdef (", model, ("evaluate", "out/checkpoint"))
    yield otherwise(
        "it is for the devices localhost:0, localhost:1, and hostfile",
        replaced("hostfile", "slots=2", "slots=3"),
        SIMULATE,
    )
    yield otherwise("localhost:1, and hostfile", replaced("hostfile", "localhost", "here"), ("check", "out/plan.json"))
    yield otherwise(
        "memory_bytes of localhost:0 is 2097152 in it, and 3145728 in hostfile",
        replaced("hostfile", "2MiB", "3MiB"),
        ("check", "out/plan.json"),
    )
    yield otherwise(
        "slowdown of localhost:0 is 2 in it, and 1.0 in hostfile",
        edited("out/plan.json", lambda plan: plan["cluster"][0].update(slowdown=2)),
        ("check", "out/plan.json"),
    )
    yield otherwise(
        "new_tokens is 8 in it, and 9 in the config", replaced("run.toml", "new_tokens = 8", "new_tokens = 9"), SIMULATE
    )
    by_hand = edited("out/plan.json", lambda plan: plan["pipelines"][0]["prefill"].update(micro_batch_size=3))
    yield otherwise("was edited by hand, and a new one would be written over it", by_hand, ("plan",))


def that_cannot_run() -> Iterator[Mistake]:
    def long(content: Content) -> None:
        content["workload"]["prompt_tokens"] = 300

    yield Mistake("300 prompt and 8 new tokens pass", "plan.json", edited("out/plan.json", long), QUANTIZE, 3)

    def small(content: Content) -> None:
        content["cluster"][1]["memory_bytes"] = 2**17

    yield Mistake("stage 1 (cpu on localhost:1) needs", "plan.json", edited("out/plan.json", small), QUANTIZE, 3)
