"""Mistakes in the hostfile, and devices that cannot be."""

from collections.abc import Iterator

from tests.mistakes.mistake import PLAN, Mistake, both, replaced, written

LINE = "localhost slots=2  # gpu=cpu memory=2MiB threads=1"


def hostfile_mistakes() -> Iterator[Mistake]:
    for text, says in [
        ("localhost", "line 1: 'localhost' does not read 'host slots=N'"),
        ("localhost slots=two # gpu=cpu", "line 1: 'localhost slots=two' does not read"),
        ("localhost slots=2 max_slots=3 # gpu=cpu", "line 1: 'localhost slots=2 max_slots=3' does not"),
        ("# a cluster\n\nlocalhost: 2", "line 3: 'localhost: 2' does not read"),
        ("localhost slots=0 # gpu=t4", "slots=0, a host has 1 to 1024"),
        ("localhost slots=99999999999 # gpu=t4", "slots=99999999999, a host has"),
        ("localhost slots=2", "the type of localhost's devices is not said; add"),
        ("localhost slots=2 # gpu=cpu memroy=2MiB", "'memroy=2MiB' after the # is none of gpu"),
        ("localhost slots=2 # gpu=cpu memory=2MiB # fast", "'#' after the # is none of"),
        ("localhost slots=2 # two cpus", "'two' after the # is none of"),
        ("localhost slots=3 # gpu=cpu,cpu memory=2MiB", "gpu has 2 values for 3 slots"),
        ("localhost slots=1 # gpu=cpu memory=2MiB,3MiB", "memory has 2 values for 1 slots"),
        ("localhost slots=2 # gpu=cpu gpu=t4", "gpu stands there twice"),
        ("localhost slots=2 # gpu=t5", "gpu=t5 is not known; known: cpu, t4"),
        ("localhost slots=2 # gpu=", "gpu= is not known"),
        ("localhost slots=2 # gpu=cpu", "say how much memory a cpu device may use"),
        ("localhost slots=2 # gpu=cpu memory=2MB", "'2MB' is no amount of memory"),
        ("localhost slots=2 # gpu=cpu memory=-2MiB", "'-2MiB' is no amount of memory"),
        ("localhost slots=2 # gpu=cpu memory=0MiB", "device localhost:0: memory must be positive"),
        ("localhost slots=2 # gpu=cpu memory=1.2.3MiB", "'1.2.3' is not a number"),
        ("localhost slots=2 # gpu=cpu memory=2MiB slowdown=fast", "slowdown: 'fast' is not a number"),
        ("localhost slots=2 # gpu=cpu memory=2MiB slowdown=inf", "slowdown: 'inf' is not a finite number"),
        ("localhost slots=2 # gpu=cpu memory=2MiB slowdown=1,0.5", "device localhost:1: slowdown = 0.5, a device can"),
        ("localhost slots=2 # gpu=cpu memory=2MiB threads=0", "threads = 0, must be from 1 to 1024"),
        ("localhost slots=2 # gpu=cpu memory=2MiB threads=1e9", "threads = 1000000000, must be"),
        ("localhost slots=2 # gpu=cpu memory=2MiB threads=1.5", "threads = 1.5 is not a whole number"),
        (f"{LINE}\n{LINE}", "a device stands twice in the cluster"),
        ("", "no host in it; a line reads 'host slots=2  # gpu=t4'"),
    ]:
        yield Mistake(says, "hostfile", written("hostfile", text))
    yield from that_no_plan_can_meet()


def that_no_plan_can_meet() -> Iterator[Mistake]:
    def hosts(text: str, says: str, exit_code: int = 2, names: str = "hostfile") -> Mistake:
        return Mistake(says, names, written("hostfile", text), PLAN, exit_code)

    yield hosts(
        f"{LINE.replace('slots=2', 'slots=1')}\nother slots=1 # gpu=t4",
        "CPUs and GPUs in one pipeline are not supported",
    )
    yield hosts(
        "a slots=2 # gpu=my-card memory=2MiB",
        "my-card was not measured, and the spec sheet has no such type",
        names="a:0",
    )
    yield hosts(
        LINE.replace("2MiB", "100KiB"),
        "the devices hold 0 of the 4 decoder layers",
        3,
        "localhost:1 (cpu), which lacks",
    )
    yield hosts(
        LINE.replace("2MiB", "650KiB"),
        "the devices hold 1 + 1 of the 4 decoder layers",
        3,
        "lower batch_size from 4 to 2",
    )
    quality = replaced(
        "run.toml", "max_perplexity_increase = 0.05", "max_perplexity_increase = 0.05\nchoices = [{bits = 3}]"
    )
    yield Mistake("cannot be met: the best choice of every layer gives 0.12", "Σω", quality, PLAN, 3)
    yield Mistake(
        "at bits that fit the devices' memory the quality limit",
        "max_perplexity_increase",
        both(written("hostfile", LINE.replace("2MiB", "750KiB")), replaced("run.toml", "0.05", "0.0001")),
        PLAN,
        3,
    )
