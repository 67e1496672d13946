"""Each mistake of a user is told in one line that names it, with the right exit code, and nothing is half written."""

from collections import Counter
from pathlib import Path

import pytest

from hetero_infer.cli import main
from tests.mistakes.configs import config_mistakes
from tests.mistakes.folders import folder_mistakes
from tests.mistakes.hostfiles import hostfile_mistakes
from tests.mistakes.mistake import Mistake
from tests.mistakes.plans import plan_mistakes
from tests.mistakes.tables import table_mistakes
from tests.mistakes.workloads import workload_mistakes

MISTAKES = [
    *config_mistakes(),
    *hostfile_mistakes(),
    *plan_mistakes(),
    *table_mistakes(),
    *folder_mistakes(),
    *workload_mistakes(),
]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_told_in_one_line(mistake: Mistake, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistake.spoil(folder)
    before = snapshot(folder)
    exit_code = main([*mistake.command, "-c", "run.toml"])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("hetero-infer: ")]
    assert len(lines) == 1 and err.endswith(lines[0] + "\n") and out == "", err
    assert "Traceback" not in err
    assert mistake.says in lines[0] and mistake.names in lines[0], lines[0]
    assert exit_code == mistake.exit_code
    assert snapshot(folder) == before


def test_there_are_mistakes_enough_and_each_has_a_message_of_its_own() -> None:
    assert len(MISTAKES) >= 200
    told = Counter((mistake.names, mistake.says, mistake.command) for mistake in MISTAKES)
    assert [one for one, times in told.items() if times > 1] == []
