"""Train the demo model: a small Llama and its BPE tokenizer, from a folder of books, on a CPU. Or a small OPT.

In: a folder of ``*.txt`` files. Out: a Hugging Face model folder in fp16 with ``heldout.txt`` (text the model
never saw) and ``calibration.txt`` (text it did see). The last 5 % of every book are kept out. Checkpoints and
``training_log.csv`` go to ``--work``; an interrupted run goes on from there. How the shipped weights came about is in
docs/results.md.

    python launch/train_demo_model.py --books BOOKS --out hetero_infer/demo
    python launch/train_demo_model.py --books BOOKS --out out/opt --work out/opt-train --family opt
"""

import argparse
import csv
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_SHARE = 0.05
EXCERPT_CHARACTERS, PIECE_CHARACTERS = 64_000, 8_000  # of heldout.txt and of calibration.txt
WINDOW_TOKENS = 512
VOCAB_SIZE = 2048


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)

    train_texts, heldout_texts = split_books(args.books)
    tokenizer = train_tokenizer(train_texts)
    tokenizer.save_pretrained(args.out)
    write_excerpts(args.out, train_texts, heldout_texts)
    train_tokens = encode(tokenizer, train_texts)
    heldout_tokens = encode(tokenizer, heldout_texts)
    heldout_bytes = sum(len(text.encode()) for text in heldout_texts)
    print(f"{len(train_tokens):,} training tokens, {len(heldout_tokens):,} held out ({heldout_bytes:,} bytes)")

    model = AutoModelForCausalLM.from_config(FAMILIES[args.family](tokenizer.eos_token_id)).train()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    if args.average:
        model.load_state_dict(mean_weights(args.average))
    else:
        train(model, args, train_tokens, lambda: bits_per_byte(model, heldout_tokens, heldout_bytes))
    bits = bits_per_byte(model, heldout_tokens, heldout_bytes)
    print(f"{bits:.4f} bits per byte of held-out text")
    model.half().save_pretrained(args.out)


def train(
    model: PreTrainedModel, args: argparse.Namespace, tokens: torch.Tensor, heldout_bits: Callable[[], float]
) -> None:
    """AdamW with a cosine; a row in ``training_log.csv`` and a checkpoint every `--evaluate-every` steps."""
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=args.learning_rate, betas=(0.9, 0.95))
    checkpoint, log_path = args.work / "checkpoint.pt", args.work / "training_log.csv"
    add_dropout(model, args.dropout)
    if args.start_from:
        model.load_state_dict(torch.load(args.start_from, weights_only=True)["model"])
    first_step, elapsed_s = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        first_step, elapsed_s = state["step"], state["elapsed_s"]
        print(f"goes on from step {first_step}")
    else:
        log_path.write_text("step,tokens,learning_rate,train_loss,heldout_bits_per_byte,elapsed_s\n")

    forward = torch.compile(model) if args.compile else model
    began = time.monotonic() - elapsed_s
    losses: list[float] = []
    for step in range(first_step, args.steps):
        rate = learning_rate_at(step, args.steps, args.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses.append(train_step(forward, optimizer, random_windows(tokens, args.batch_size)))
        done = step + 1
        if done % args.evaluate_every == 0 or done == args.steps:
            row = [done, done * args.batch_size * WINDOW_TOKENS, f"{rate:.2e}", f"{sum(losses) / len(losses):.4f}"]
            row += [f"{heldout_bits():.4f}", f"{time.monotonic() - began:.0f}"]
            print(*row, flush=True)
            with log_path.open("a", newline="") as log:
                csv.writer(log).writerow(row)
            losses.clear()
            save_atomically(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "rng": torch.get_rng_state(),
                    "step": done,
                    "elapsed_s": time.monotonic() - began,
                },
                checkpoint,
            )


def mean_weights(checkpoints: list[Path]) -> dict[str, torch.Tensor]:
    """Of runs that began at the same weights (Izmailov et al., arXiv 1803.05407)."""
    states = [torch.load(path, weights_only=True)["model"] for path in checkpoints]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True, help="folder of *.txt files")
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face folder to write")
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="checkpoints and the running log")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=6, help=f"windows of {WINDOW_TOKENS} tokens per step")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--dropout", type=float, default=0.1, help="of the embedding and of each block's output")
    parser.add_argument("--start-from", type=Path, help="a checkpoint whose weights begin a new run")
    parser.add_argument("--average", type=Path, nargs="+", help="no training: write the mean of these checkpoints")
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (needs a C++ compiler)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def split_books(folder: Path) -> tuple[list[str], list[str]]:
    """Every book's first 95 % and its last 5 %, cut at a line's end."""
    train, heldout = [], []
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        cut = text.index("\n", int(len(text) * (1 - HELD_OUT_SHARE))) + 1
        train.append(text[:cut])
        heldout.append(text[cut:])
    if not train:
        raise SystemExit(f"{folder}: no *.txt files here; --books names a folder of books")
    return train, heldout


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=WINDOW_TOKENS
    )


def write_excerpts(out: Path, train_texts: list[str], heldout_texts: list[str]) -> None:
    """Pieces spread evenly over all books, so that every book and every part of it has its share."""
    for name, texts in (("heldout.txt", heldout_texts), ("calibration.txt", train_texts)):
        whole = "".join(texts)
        spacing = len(whole) * PIECE_CHARACTERS // EXCERPT_CHARACTERS
        pieces = [whole[start : start + PIECE_CHARACTERS] for start in range(0, len(whole), spacing)]
        (out / name).write_text("\n\n".join(pieces), encoding="utf-8")


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    return torch.tensor(ids)


def llama(end_of_text: int) -> LlamaConfig:
    """The demo model: 5.3 million parameters."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=WINDOW_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        initializer_range=0.05,
    )


def opt(end_of_text: int) -> OPTConfig:
    """Of another family, as large: learned positions, LayerNorm with biases, ReLU."""
    return OPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        word_embed_proj_dim=192,
        ffn_dim=768,
        num_hidden_layers=11,
        num_attention_heads=6,
        max_position_embeddings=WINDOW_TOKENS,
        dropout=0.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
        init_std=0.05,
    )


FAMILIES: dict[str, Callable[[int], PretrainedConfig]] = {"llama": llama, "opt": opt}
BLOCK_OUTPUTS = ("self_attn.o_proj", "mlp.down_proj", "self_attn.out_proj", "fc2")


def parameter_groups(model: PreTrainedModel) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def add_dropout(model: PreTrainedModel, share: float) -> None:
    """Against over-fitting: the books are read several times. Not part of the model that is saved."""

    def drop(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(output, share, module.training)

    model.get_input_embeddings().register_forward_hook(drop)
    for name, module in model.named_modules():
        if name.endswith(BLOCK_OUTPUTS):
            module.register_forward_hook(drop)


def learning_rate_at(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def random_windows(tokens: torch.Tensor, batch_size: int) -> torch.Tensor:
    starts = torch.randint(len(tokens) - WINDOW_TOKENS, (batch_size,))
    return torch.stack([tokens[start : start + WINDOW_TOKENS] for start in starts])


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, windows: torch.Tensor) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=windows, labels=windows, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, tokens: torch.Tensor, num_bytes: int) -> float:
    """Of the whole held-out text, in windows that each begin without a past."""
    model.eval()
    windows = tokens[: len(tokens) // WINDOW_TOKENS * WINDOW_TOKENS].view(-1, WINDOW_TOKENS)
    nats = predicted = 0.0
    for batch in windows.split(8):
        targets = batch.shape[0] * (WINDOW_TOKENS - 1)
        nats += model(input_ids=batch, labels=batch, use_cache=False).loss.item() * targets
        predicted += targets
    model.train()
    return nats / predicted * len(tokens) / num_bytes / math.log(2)


def save_atomically(state: dict[str, object], path: Path) -> None:
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)


if __name__ == "__main__":
    main()
