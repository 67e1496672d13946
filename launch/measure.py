"""Measure a cluster: `deepspeed --hostfile hostfiles/mix launch/measure.py -c launch/serve.toml`, or under `mpirun`.

Each device type of the hostfile is timed once, each link between two hosts both ways. Rank 0 writes profile and links
where the config says, and what was measured.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from hetero_infer.cost.link_fit import fit_link, link_holdout
from hetero_infer.measure.survey import Survey
from hetero_infer.report import link_figures, text_table
from hetero_infer.spec import LinkTable, ProfileTable, RunConfig
from hetero_infer.spec.links import pair_name
from hetero_infer.spec.profile import row_from_json
from hetero_infer.supervisor.job import RunningPipeline
from hetero_infer.supervisor.say import say
from hetero_infer.supervisor.setup import Commands, Limits, Setup
from hetero_infer.supervisor.supervise import supervise

WORKER = (sys.executable, "-m", "hetero_infer.measure.worker")


class MeasureJob:
    """Gathers what the workers measure and writes it when all is there; then `tables` are what people see."""

    exit_code_if_interrupted = 1

    def __init__(self) -> None:
        self.tables = ""
        self._profile = ProfileTable(())
        self._links = LinkTable({})

    def open(self, config: RunConfig) -> None:
        self._config = config
        self._survey = Survey(config.cluster.devices)
        ProfileTable.load_if_there(config.profile), LinkTable.load_if_there(config.links)  # a file that is none: now

    async def run(self, pipelines: Sequence[RunningPipeline]) -> None:
        (survey,) = pipelines
        for _ in (*self._survey.pairs, *self._survey.timers):
            self._take(await survey.receive())
        config = self._config
        ProfileTable.load_if_there(config.profile).with_measured(self._profile).save(config.profile)
        if self._links.links:
            links = LinkTable(self._links.links, {"date": date.today().isoformat(), **self._links.header})
            LinkTable.load_if_there(config.links).with_measured(links).save(config.links)
        self.tables = self._tables()

    def _take(self, measured: dict[str, Any]) -> None:
        if "device" in measured:
            rows = tuple(map(row_from_json, measured["rows"]))
            self._profile = self._profile.with_measured(ProfileTable(rows, measured["header"]))
            say(f"{measured['device']}: {len(rows)} points")
            return
        pair, points = tuple(measured["link"]), [(size, seconds) for size, seconds in measured["points"]]
        holdout = link_holdout(points)
        link = LinkTable({pair: fit_link(points)}, holdout.header(pair_name(pair)) if holdout else {})
        self._links = self._links.with_measured(link)
        say(f"{pair_name(pair)}: {len(points)} sizes")

    def _tables(self) -> str:
        devices = [("type", "on", "points", "off at the mean", "at worst")]
        for timed_as, rank in self._survey.timers.items():
            count = sum(row.device == timed_as for row in self._profile.rows)
            where = self._survey.devices[rank].name
            devices.append((timed_as, where, str(count), *_holdout(self._profile.header, timed_as)))
        links = [("from", "to", "α µs", "β Gbit/s", "off at the mean", "at worst")]
        for pair, link in self._links.links.items():
            links.append((*pair, *link_figures(link), *_holdout(self._links.header, pair_name(pair))))
        said = [text_table(devices), f"written to {self._config.profile}"]
        if len(links) > 1:
            said += ["", text_table(links), f"written to {self._config.links}"]
        return "\n".join([*said, "", "off: a relative error, of points held out, predicted from the others"])


def _holdout(header: Mapping[str, str], of: str) -> tuple[str, str]:
    found = (header.get(f"{of}.holdout_{which}") for which in ("mean", "worst"))
    mean, worst = (f"{float(value):.1%}" if value else "-" for value in found)
    return mean, worst


def main(commands: Commands = Commands(worker=WORKER), limits: Limits = Limits()) -> int:  # noqa: B008 (both are frozen)
    parser = argparse.ArgumentParser(description="Measure every device type of a hostfile, and the links.")
    parser.add_argument("-c", "--config", type=Path, default=Path("launch/serve.toml"))
    parser.add_argument("--local_rank", "--local-rank", help="given by the launcher; not used")
    args = parser.parse_args()
    job = MeasureJob()
    exit_code = supervise(job, Setup(args.config, None, commands, limits, is_survey=True))
    if job.tables and exit_code == 0:
        print(job.tables)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
