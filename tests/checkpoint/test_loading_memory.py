"""A stage's peak memory while it loads: its weights, one layer more, and a constant."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hetero_infer.checkpoint.shards import Recipe, ShardStore
from hetero_infer.cost.memory import decoder_layer_bytes
from hetero_infer.models import layers_of
from hetero_infer.quant.linear import linear_for
from hetero_infer.spec import UNQUANTISED, Choice, ModelSpec
from hetero_infer.spec.gptq import PLAIN_GPTQ
from tests.tiny_model import TINY

NUM_LAYERS, MODEL_DIGEST = 16, "made for this test"
CONFIG = TINY | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
}
SPEC = ModelSpec.from_config(CONFIG, "made for this test")
CONSTANT_BYTES = 32 * 2**20
EIGHT = Choice(8, 128)
LOAD = """
import sys
from pathlib import Path
import torch
from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.spec import Choice

def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

folder, checkpoint, bits, group_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
choice = Choice(bits, group_size)
shards = ShardStore.of_model(checkpoint, sys.argv[5]) if choice.is_quantised else None
torch.zeros(4) @ torch.zeros(4)
before = status("VmRSS")
model = ModelFolder(folder)
layers = [load_layer(model, 1 + index, choice, shards) for index in range(model.spec.num_hidden_layers)]
print(status("VmHWM") - before, sum(t.nbytes for layer in layers for t in layer.state_dict().values()))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder layer's tensors are spread over two files, in half precision."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(CONFIG))
    file_of: dict[str, str] = {}
    for half in range(2):
        tensors = {}
        for definition in layers_of(SPEC)[1:-1]:
            with torch.device("meta"):
                shapes = {name: tensor.shape for name, tensor in definition.build(UNQUANTISED).state_dict().items()}
            for parameter, shape in list(shapes.items())[half::2]:
                tensors[definition.tensor(parameter)] = torch.full(shape, 0.01, dtype=torch.float16)
        save_file(tensors, path / f"{half}.safetensors")
        file_of |= dict.fromkeys(tensors, f"{half}.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    return path


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("choice", [UNQUANTISED, EIGHT], ids=str)
def test_a_stage_loads_within_its_weights_and_one_layer(choice: Choice, model: Path, tmp_path: Path) -> None:
    if choice.is_quantised:
        _write_shards(tmp_path, choice)
    arguments = [str(model), str(tmp_path), str(choice.bits), str(choice.group_size), MODEL_DIGEST]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    peak_bytes, weight_bytes = map(int, done.stdout.split())
    layer_bytes = decoder_layer_bytes(SPEC, choice, 4)
    assert weight_bytes == NUM_LAYERS * layer_bytes
    assert weight_bytes >= 2**30 or choice.is_quantised
    assert weight_bytes <= peak_bytes <= weight_bytes + layer_bytes + CONSTANT_BYTES, (peak_bytes, weight_bytes)


def _write_shards(path: Path, choice: Choice) -> None:
    """Of equal zeros: what is in them does not matter here."""
    shards = ShardStore(path, Recipe(MODEL_DIGEST, "", PLAIN_GPTQ))
    tensors = {
        f"{part}.{buffer}": tensor
        for part, linear in SPEC.linears.items()
        for buffer, tensor in linear_for(choice, linear).state_dict().items()
    }
    for layer in range(NUM_LAYERS):
        shards.write(layer, choice, tensors)
    shards.write_recipe()
