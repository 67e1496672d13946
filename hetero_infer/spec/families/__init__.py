"""Model families: each file turns the ``config.json`` of its model types into a `ModelSpec`, or refuses by field."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hetero_infer.spec.errors import InputError
from hetero_infer.spec.families.bloom import bloom
from hetero_infer.spec.families.config import ModelConfig
from hetero_infer.spec.families.gptq import stored_choices
from hetero_infer.spec.families.llama import llama
from hetero_infer.spec.families.opt import opt
from hetero_infer.spec.files import read_text
from hetero_infer.spec.model import ModelSpec

FAMILIES = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "opt": opt,
    "bloom": bloom,
}


def read_model(folder: Path) -> ModelSpec:
    """Of a Hugging Face model folder. Where there is a ``generation_config.json``, it says what ends a text; a
    ``quantize_config.json`` is auto-gptq's, which used to write nothing about it elsewhere."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"model {folder}: no config.json there; [model] path names a Hugging Face model folder")
    config = _json_object(path)
    generation = folder / "generation_config.json"
    if generation.exists() and (ids := ModelConfig(_json_object(generation), str(generation)).eos_token_ids()):
        config["eos_token_id"] = list(ids)
    gptq = folder / "quantize_config.json"
    if gptq.exists():
        config.setdefault("quantization_config", {"quant_method": "gptq"} | _json_object(gptq))
    return spec_of(config, str(path))


def spec_of(config: Mapping[str, Any], where: str) -> ModelSpec:
    reader = ModelConfig(config, where)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        nearest = difflib.get_close_matches(str(model_type), FAMILIES, 1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise reader.refusal("model_type", f"this version runs {', '.join(FAMILIES)}{hint}")
    try:
        spec = FAMILIES[model_type](reader)
        return replace(spec, stored_choices=stored_choices(reader, spec))
    except InputError as error:
        raise error if where in str(error) else InputError(f"model config {where}: {error}") from error


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, "model config"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"model config {path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"model config {path}: expected a JSON object")
    return content
