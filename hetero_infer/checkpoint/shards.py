"""`ShardStore`: quantised layers on disk, one safetensors file per layer, choice and all it depends on.

A shard is named by a digest of all that its content depends on, so a shard of the right name is right, whichever plan
asked for it. Where layers are calibrated one on the other, that is also the choices of all layers before it, in their
order: such a store is that of one plan's choices. A shard's header says the same in words and gives the SHA-256 of its
tensors; `manifest.json` repeats the headers for people and is made anew from them after every shard. Every file is
written beside and renamed: a kill leaves whole shards only.

How a worker finds its shards without the calibration text: the quantise step ends by writing
`recipe-<model digest>.json`, which holds what all its shards have in common (model, calibration windows, GPTQ
options). A plan names the model's digest and the choice of each layer; recipe, layer and choice make the name.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hetero_infer.checkpoint.pieces import read_tensor
from hetero_infer.spec import Choice, InputError
from hetero_infer.spec.errors import located
from hetero_infer.spec.fields import kinds_of, read_fields
from hetero_infer.spec.files import digest_of, read_json, write_atomically
from hetero_infer.spec.gptq import GptqOptions
from hetero_infer.spec.model import Layer

FORMAT = 3
HEADER = "hetero_infer"  # one metadata entry only: safetensors writes several in any order
UNREADABLE = (SafetensorError, OSError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Recipe:
    """What the shards of one quantise step have in common: digests of model and calibration windows, GPTQ options."""

    model: str
    calibration: str
    gptq: GptqOptions

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> "Recipe":
        said = read_fields(content, {"format": int, "model": str, "calibration": str, "gptq": dict}, where)
        with located(where):
            gptq = GptqOptions(**read_fields(said["gptq"], kinds_of(GptqOptions), f"{where}: gptq"))
        return cls(said["model"], said["calibration"], gptq)


class ShardStore:
    """The shards of one recipe in the checkpoint folder `path`, which may hold others too.

    `layer_choices` are those of `[embedding, decoder 0, …, head]`; only shards of a sequential recipe ask for them.
    """

    def __init__(self, path: Path, recipe: Recipe, layer_choices: Sequence[Choice] = ()) -> None:
        self.path = path
        self.recipe = recipe
        self.layer_choices = layer_choices

    @classmethod
    def of_model(cls, path: Path, model_digest: str, layer_choices: Sequence[Choice] = ()) -> "ShardStore":
        """The store as the last finished quantise step for this model left it."""
        recipe_path = _recipe_path(path, model_digest)
        if not recipe_path.exists():
            raise InputError(f"checkpoint {path}: nothing there for the model {model_digest}; quantise it first")
        content = read_json(recipe_path, "checkpoint recipe", FORMAT)
        return cls(path, Recipe.from_json(content, f"checkpoint recipe {recipe_path}"), layer_choices)

    def file_of(self, layer: Layer, choice: Choice) -> Path:
        stem = f"layer{layer:03}" if isinstance(layer, int) else layer
        return self.path / f"{stem}-{choice}-{digest_of(self._key(layer, choice))}.safetensors"

    def has(self, layer: Layer, choice: Choice) -> bool:
        return self.file_of(layer, choice).exists()

    def write(self, layer: Layer, choice: Choice, tensors: Mapping[str, torch.Tensor]) -> None:
        """`tensors` are named `<linear>.<buffer>`, like `mlp.up_proj.qweight`."""
        header = {**self._key(layer, choice), "sha256": _sha256(tensors)}
        write_atomically(self.file_of(layer, choice), save(dict(tensors), {HEADER: json.dumps(header, sort_keys=True)}))
        self._write_manifest()

    def read(self, layer: Layer, choice: Choice) -> dict[str, torch.Tensor]:
        """Copies, tensor by tensor: nothing keeps the file mapped."""
        path = self.file_of(layer, choice)
        if not path.exists():
            name = f"layer {layer}" if isinstance(layer, int) else layer
            raise InputError(f"checkpoint {self.path}: {name} at {choice} is not there; quantise it first")
        try:
            with safe_open(path, "pt") as shard:
                header, names = json.loads(shard.metadata()[HEADER]), list(shard.keys())
            tensors = {name: read_tensor(path, name) for name in names}
        except UNREADABLE as error:
            raise _damaged(path, str(error)) from error
        if header.get("sha256") != _sha256(tensors):
            raise _damaged(path, "its tensors don't have the SHA-256 that it states")
        return tensors

    def write_recipe(self) -> None:
        """Say that this store is the one to read for its model."""
        content = {"format": FORMAT, **asdict(self.recipe)}
        write_atomically(_recipe_path(self.path, self.recipe.model), json.dumps(content, indent=1) + "\n")

    def _key(self, layer: Layer, choice: Choice) -> dict[str, Any]:
        key = {"format": FORMAT, "layer": layer, "choice": choice.to_json(), "depends_on": asdict(self.recipe)}
        return key | ({"layers_before": self._choices_before(layer)} if self.recipe.gptq.sequential else {})

    def _choices_before(self, layer: Layer) -> list[dict[str, Any]]:
        assert self.layer_choices, "layers that are calibrated one on the other belong to a plan"
        position = {"embedding": 0, "head": -1}[layer] if isinstance(layer, str) else 1 + layer
        return [choice.to_json() for choice in self.layer_choices[:position]]

    def _write_manifest(self) -> None:
        shards: dict[str, Any] = {}
        for path in sorted(self.path.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as shard:
                    shards[path.name] = json.loads(shard.metadata()[HEADER])
            except UNREADABLE:
                shards[path.name] = "damaged"
        content = {"format": FORMAT, "shards": shards}
        write_atomically(self.path / "manifest.json", json.dumps(content, indent=1) + "\n")


def _recipe_path(path: Path, model_digest: str) -> Path:
    return path / f"recipe-{model_digest}.json"


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, types, shapes and contents, without a copy of them."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().numpy())
    return sha.hexdigest()


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"shard {path}: damaged ({reason}); delete it and quantise again")
