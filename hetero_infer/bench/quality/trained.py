"""The trained models that quality is measured on, each with a calibration text and one that is held out."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hetero_infer.bench.quality import stories260k
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.spec import InputError
from hetero_infer.spec.config import DEMO_MODEL
from hetero_infer.spec.files import read_text


@dataclass(frozen=True)
class TrainedModel:
    """`work` is an empty folder for what is made of it."""

    name: str
    folder: ModelFolder
    calibration: Path
    heldout: Path
    work: Path


@contextmanager
def trained_models(folders: Sequence[Path], shared: Path) -> Iterator[tuple[TrainedModel, ...]]:
    """The demo model, stories260K, and those in `folders` as ``launch/train_demo_model.py`` leaves them."""
    with tempfile.TemporaryDirectory() as work:
        stories = _stories(shared / "data", Path(work) / "stories260K")
        named = {"demo": DEMO_MODEL, "stories260K": stories} | {path.name: path for path in folders}
        yield tuple(_trained(name, path, Path(work) / f"work-{name}") for name, path in named.items())


def _trained(name: str, path: Path, work: Path) -> TrainedModel:
    work.mkdir()
    texts = [path / "calibration.txt", path / "heldout.txt"]
    for text in texts:
        if not text.is_file():
            raise InputError(
                f"--model {path}: it has no {text.name}; launch/train_demo_model.py makes a folder that has one"
            )
    return TrainedModel(name, ModelFolder(path), *texts, work)


def _stories(data: Path, target: Path) -> Path:
    source = data / "models" / "stories260K"
    stories260k.convert((source / "stories260K.bin").read_bytes(), target)
    stories260k.write_tokenizer((source / "tok512.bin").read_bytes(), target)
    text = _unwrapped(read_text(data / "text" / "bryant-stories.txt", "text"))
    (target / "calibration.txt").write_text(text[: len(text) // 2])
    (target / "heldout.txt").write_text(text[len(text) // 2 :])
    return target


def _unwrapped(text: str) -> str:
    """A line per paragraph, as the stories that the model was trained on have them."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip())
