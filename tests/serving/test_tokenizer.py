"""Any folder that transformers reads: its text, what it adds to it, and its chat template."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from hetero_infer.serving.tokenizer import Tokenizer
from hetero_infer.spec import InputError
from hetero_infer.spec.config import DEMO_MODEL

TEXT = "Once upon a time, é and 😀 went  home."


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 2's: ``tokenizer.model`` alone, with bytes for what it has no piece for."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        input=str(DEMO_MODEL / "calibration.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.fixture(scope="module")
def vocabulary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2's: ``vocab.json`` and ``merges.txt``."""
    folder = tmp_path_factory.mktemp("vocabulary")
    model = json.loads((DEMO_MODEL / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return folder


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(tmp_path) is None


def test_a_tokenizer_json_alone_is_enough(tmp_path: Path) -> None:
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode(TEXT) == Tokenizer.from_folder(DEMO_MODEL).encode(TEXT)
    assert not tokenizer.has_chat_template


def test_a_tokenizer_model_alone_is_enough_and_adds_its_bos(sentencepiece_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(sentencepiece_folder)
    theirs = AutoTokenizer.from_pretrained(sentencepiece_folder, use_fast=False)(TEXT).input_ids
    assert tokenizer.encode(TEXT) == theirs
    assert theirs[0] == 1  # <s>
    assert tokenizer.encode(TEXT, is_complete=True) == theirs[1:]
    assert tokenizer.decode(theirs) == TEXT


def test_the_config_says_whether_a_bos_is_added(sentencepiece_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sentencepiece_folder, tmp_path, dirs_exist_ok=True)
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_folder(tmp_path).encode(TEXT)[0] != 1


def test_a_vocabulary_and_merges_are_enough(vocabulary_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(vocabulary_folder)
    assert tokenizer.encode("Once upon a time") == Tokenizer.from_folder(DEMO_MODEL).encode("Once upon a time")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize("folder", ["demo", "sentencepiece_folder", "vocabulary_folder"])
def test_the_texts_of_tokens_make_the_text(folder: str, request: pytest.FixtureRequest) -> None:
    tokenizer = Tokenizer.from_folder(DEMO_MODEL if folder == "demo" else request.getfixturevalue(folder))
    tokens = tokenizer.encode(" Once upon a time", is_complete=True)
    assert "".join(map(tokenizer.text_of_token, tokens)).strip() == "Once upon a time"
    assert None in map(tokenizer.text_of_token, tokenizer.encode("😀"))


@pytest.mark.parametrize("folder", ["demo", "sentencepiece_folder", "vocabulary_folder"])
def test_an_id_that_only_the_model_has_is_no_text(folder: str, request: pytest.FixtureRequest) -> None:
    tokenizer = Tokenizer.from_folder(DEMO_MODEL if folder == "demo" else request.getfixturevalue(folder))
    tokens = tokenizer.encode("Once", is_complete=True)
    assert tokenizer.decode([*tokens, 2**20]) == tokenizer.decode(tokens)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_stands_in_the_config_or_in_a_file_of_its_own(where: str, tmp_path: Path) -> None:
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if where == "tokenizer_config.json":
        config["chat_template"] = template
    else:
        (tmp_path / where).write_text(template)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.has_chat_template
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}]) == "<user>Hello"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, "cannot load its tokenizer"),
        ({"tokenizer.json": "{", "tokenizer_config.json": "{}"}, "cannot load its tokenizer"),
        ({"tokenizer_config.json": "{"}, "cannot load its tokenizer"),
        ({"tokenizer.model": "no", "config.json": '{"model_type": "llama"}'}, "cannot load its tokenizer"),
        (
            {
                "tokenizer_config.json": '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}',
                "own.py": "1 / 0",
            },
            "custom code",
        ),
    ],
)
def test_a_broken_tokenizer_is_an_error_with_a_way_out(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"model {tmp_path}: .*{message}.*send token ids"):
        Tokenizer.from_folder(tmp_path)
