"""Each cheap indicator beside `measured`: rank correlation and seconds, of the demo model and stories260K.

    python -m tests.measure.indicators.compare

Seconds are this process's CPU seconds on one thread. `probes` is what brings a shape to its scale, and the same for all
cheap methods. The last row is how well `measured` on every second window agrees with itself on the others: about as
well as anything can be seen to agree with it.
"""

import itertools
import struct
import tempfile
import time
from pathlib import Path

import torch
from scipy.stats import spearmanr

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure.indicators import table as indicators
from hetero_infer.report import text_table
from hetero_infer.spec import UNQUANTISED, Choice, SensitivityTable
from hetero_infer.spec.config import DEMO_MODEL
from hetero_infer.spec.sensitivity import METHODS
from tests.models.stories260k import SHARED, SOURCE, convert

CHOICES = (Choice(3, 32), Choice(3, 64), Choice(4, 32), Choice(4, 64), Choice(8, 64), UNQUANTISED)
CHEAP = [method for method in METHODS if method != "measured"]


def main() -> None:
    torch.set_num_threads(1)
    demo = ModelFolder(DEMO_MODEL)
    compare("demo", demo, CalibrationWindows.from_text(demo, DEMO_MODEL / "calibration.txt"))
    with tempfile.TemporaryDirectory() as path:
        stories = ModelFolder(convert((SOURCE / "stories260K.bin").read_bytes(), Path(path)))
        text = (SHARED / "data" / "text" / "bryant-stories.txt").read_text()[20_000:50_000]
        tokens = torch.tensor(encode(text))
        compare("stories260K", stories, CalibrationWindows(tokens[: 32 * 256].view(32, 256)))


def compare(name: str, folder: ModelFolder, windows: CalibrationWindows) -> None:
    tables, seconds, of_shape = {}, {}, {}
    for method in METHODS:
        begin = time.process_time()
        tables[method] = indicators.measure_sensitivity(folder, CHOICES, windows, method)
        seconds[method] = time.process_time() - begin
    for method in CHEAP:
        begin = time.process_time()
        indicators.shapes_by(method, folder, CHOICES, indicators.few(windows.token_ids))
        of_shape[method] = time.process_time() - begin
    quantised = [choice for choice in CHOICES if choice.is_quantised]
    rows = [["", "all", *map(str, quantised), "shape s", "probes s", "together s", "× cheaper"]]
    for method in CHEAP:
        ranks = [rank_correlation(tables[method], tables["measured"], which) for which in (quantised, *zip(quantised))]
        times = of_shape[method], seconds[method] - of_shape[method], seconds[method]
        cheaper = seconds["measured"] / seconds[method]
        rows.append([method, *(f"{rank:.2f}" for rank in ranks), *(f"{s:.2f}" for s in times), f"{cheaper:.1f}"])
    halves = [
        indicators.measure_sensitivity(folder, CHOICES, CalibrationWindows(windows.token_ids[first::2]), "measured")
        for first in (0, 1)
    ]
    ranks = [rank_correlation(*halves, which) for which in (quantised, *zip(quantised))]
    rows.append(["measured, half by half", *(f"{rank:.2f}" for rank in ranks), "", "", "", ""])
    print(f"\n{name}: measured took {seconds['measured']:.1f} s\n{text_table(rows)}")
    for k, choice in enumerate(quantised):
        omega = [row[k] for row in tables["measured"].omega]
        errors = [row[k] for row in tables["measured"].errors.omega]
        together = sum(row[k] for row in tables["variance"].omega)
        print(
            f"{choice}: Σ measured {sum(omega):.5f} (a layer's standard error {sum(errors) / len(errors):.5f}), "
            f"all at once {together:.5f} ± {together * tables['variance'].errors.scale[k]:.5f}"
        )


def rank_correlation(one: SensitivityTable, other: SensitivityTable, choices: tuple[Choice, ...]) -> float:
    values = [
        [table.of(layer, choice) for layer in range(len(table.omega)) for choice in choices] for table in (one, other)
    ]
    return spearmanr(*values).statistic


def encode(text: str) -> list[int]:
    """By `tok512.bin` (see `decode` in `stories260k.py`): the neighbours whose piece scores best are joined first."""
    data = (SOURCE / "tok512.bin").read_bytes()
    pieces: dict[str, tuple[float, int]] = {}
    position = 4
    while position < len(data):
        score, length = struct.unpack("fi", data[position : position + 8])
        pieces.setdefault(data[position + 8 : position + 8 + length].decode(), (score, len(pieces)))
        position += 8 + length
    ids = []
    for word in text.split():
        parts = [letter for letter in f" {word}" if letter in pieces]
        while True:
            joined = [(pieces[a + b][0], -k) for k, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in pieces]
            if not joined:
                break
            k = -max(joined)[1]
            parts[k : k + 2] = [parts[k] + parts[k + 1]]
        ids += [pieces[part][1] for part in parts]
    return ids


if __name__ == "__main__":
    main()
