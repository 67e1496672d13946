"""Models of a few thousand random weights in Hugging Face folders, written without transformers."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from hetero_infer.models import layers_of
from hetero_infer.spec import UNQUANTISED, ModelSpec
from hetero_infer.spec.config import DEMO_MODEL

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 99,
    "hidden_size": 48,
    "ffn_dim": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
}
BLOOM = {"model_type": "bloom", "vocab_size": 99, "hidden_size": 48, "n_layer": 3, "n_head": 4, "eos_token_id": 2}


def write_tiny_model(
    path: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    num_files: int = 1,
    with_tokenizer: bool = False,
    family: dict[str, object] = TINY,
    **fields: object,
) -> Path:
    """`fields` change the config of `family`; `with_tokenizer` copies the demo model's, and sets the vocabulary to its
    size."""
    config = family | ({"vocab_size": 2048} if with_tokenizer else {}) | fields
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if with_tokenizer:
        shutil.copy(DEMO_MODEL / "tokenizer.json", path)
    weights = random_weights(ModelSpec.from_config(config, "tiny"), seed, dtype)
    names = sorted(weights)
    files = [f"model-{number:05}-of-{num_files:05}.safetensors" for number in range(1, num_files + 1)]
    file_of = {name: files[position % num_files] for position, name in enumerate(names)}
    for file in files:
        save_file({name: weights[name] for name in names if file_of[name] == file}, path / file, {"format": "pt"})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return path


def random_weights(spec: ModelSpec, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Wide enough that greedy tokens vary; norms near 1, biases near 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for definition in layers_of(spec):
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in definition.build(UNQUANTISED).state_dict().items()}
        for parameter, shape in shapes.items():
            random = torch.randn(shape, generator=generator)
            if parameter.endswith(".bias"):
                random = 0.1 * random
            else:
                random = 1 + 0.1 * random if random.dim() == 1 else 0.2 * random
            weights.setdefault(definition.tensor(parameter), random.to(dtype))
    return weights
