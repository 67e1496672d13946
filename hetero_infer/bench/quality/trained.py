"""The trained models that quality is measured on, each with a calibration text and one that is held out."""

from dataclasses import dataclass
from pathlib import Path

from hetero_infer.bench.quality import stories260k
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.spec.config import DEMO_MODEL
from hetero_infer.spec.files import read_text


@dataclass(frozen=True)
class TrainedModel:
    name: str
    folder: ModelFolder
    calibration: Path
    heldout: Path


def trained_models(shared: Path, work: Path) -> tuple[TrainedModel, ...]:
    """What has to be converted is written to `work`."""
    target, source = work / "stories260K", shared / "data" / "models" / "stories260K"
    stories260k.convert((source / "stories260K.bin").read_bytes(), target)
    stories260k.write_tokenizer((source / "tok512.bin").read_bytes(), target)
    text = _unwrapped(read_text(shared / "data" / "text" / "bryant-stories.txt", "text"))
    (target / "calibration.txt").write_text(text[: len(text) // 2])
    (target / "heldout.txt").write_text(text[len(text) // 2 :])
    return _trained("demo", DEMO_MODEL), _trained("stories260K", target)


def _trained(name: str, path: Path) -> TrainedModel:
    return TrainedModel(name, ModelFolder(path), path / "calibration.txt", path / "heldout.txt")


def _unwrapped(text: str) -> str:
    """A line per paragraph, as the stories that the model was trained on have them."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip())
