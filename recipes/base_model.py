"""The base model that the package ships: tokenizer and 8M-parameter decoder, trained on source code and its documentation.

    python -m recipes.base_model_corpus --packages PACKAGES --out CORPUS    harvest installed packages (see its docstring)
    python -m recipes.base_model --corpus CORPUS --out RUN                  train; the same command resumes after a kill
    python -m recipes.base_model --corpus CORPUS --out RUN --export trueline/quickstart/base

Cost: 6 x 7.9M x tokens floating-point operations, about an hour per 10M tokens on two cores in float32.
What it learns from: functions in the words of the quickstart's prompt, followed by the first paragraph of their docstring; rows that
tie names to words and bodies to names; docstring prose; source code. All tokens are trained on, in windows of 512.
The quickstart's test packages are in none of it, nor in the tokenizer's text.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import trueline
from trueline.models.config import DecoderConfig
from trueline.models.files import new_model
from trueline.objectives.next_token import NextToken
from trueline.quickstart.corpus_rows import name_rows
from trueline.quickstart.grounding import name_share
from trueline.quickstart.harvest import Function, load_functions
from trueline.quickstart.prompts import prompt_text
from trueline.records import Row
from trueline.tokens import Tokenizer, load_tokenizer, train_tokenizer
from trueline.tokens.encode import documents_ids, row_key
from trueline.tokens.pack import flatten, windows

CONTEXT = 512
SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
}
"""Rather wide than deep: 7.9M parameters, 15.7 MB in two bytes each."""

MIXTURE = {"pair": 0.50, "name": 0.08, "docs": 0.21, "code": 0.21}
"""Share of the tokens by kind."""

GROUNDED = 0.5
"""Pairs whose summary speaks of at least this share of the name's words come first; the others only when those have run out."""

BODY_TOKENS = (0, 24, 48, 96, 128)
"""A pair shows one of these amounts of its body, drawn at random: many functions per token, and the full prompt among them."""

STEP_WINDOWS = 8


def texts(corpus: Path, kind: str, rng: random.Random) -> Iterator[str]:
    """Endless texts of one kind, in an order drawn anew in every pass."""
    if kind in ("docs", "code"):
        documents = [json.loads(line)["text"] for line in (corpus / f"{kind}.jsonl").read_text().splitlines()]
        while True:
            rng.shuffle(documents)
            yield from documents
    functions = load_functions(corpus / "pairs.jsonl")
    grounded = [f for f in functions if name_share(f, f.summary) >= GROUNDED]
    while True:
        rng.shuffle(grounded)
        for function in grounded:
            yield pair_text(function, rng.choice(BODY_TOKENS)) if kind == "pair" else rng.choice(name_rows(function))


def pair_text(function: Function, body_tokens: int) -> str:
    """The quickstart's prompt and its answer as plain text."""
    return f"{prompt_text(function, body_tokens, None)}\nsummary:\n{function.summary}"


def tokenizer_of(corpus: Path, out: Path, seed: int) -> Tokenizer:
    """Trained once on 24M characters of the mixture, then read back."""
    folder = out / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        rng = random.Random(seed)
        sample: list[str] = []
        for kind, share in MIXTURE.items():
            size = 0
            for text in texts(corpus, kind, rng):
                sample.append(text)
                size += len(text)
                if size > 24e6 * share:
                    break
        train_tokenizer(sample, vocab_size=SHAPE["vocab_size"]).save(folder)
    return load_tokenizer(folder)


def token_stream(corpus: Path, tokenizer: Tokenizer, num_tokens: int, seed: int) -> tuple[np.ndarray, dict[str, int]]:
    """About `num_tokens` ids of whole documents in mixed order, and how many of each kind."""
    rng = random.Random(seed + 1)
    documents: list[np.ndarray] = []
    counts = {}
    for kind, share in MIXTURE.items():
        source, size = texts(corpus, kind, rng), 0
        while size < share * num_tokens:
            for ids in documents_ids([next(source) for _ in range(256)], tokenizer):
                documents.append(ids)
                size += len(ids)
        counts[kind] = size
    rng.shuffle(documents)
    return flatten(documents), counts


def window_rows(stream: np.ndarray) -> list[Row]:
    """Fixed windows, every token but each first one scored."""
    scored = np.arange(CONTEXT) > 0
    pieces = [np.ascontiguousarray(ids) for ids in windows(stream, CONTEXT)]
    return [Row(ids=(ids,), scored=(scored,), key=row_key((ids,), (scored,))) for ids in pieces]


def bits_per_byte(loss: float, rows: Sequence[Row], tokenizer: Tokenizer) -> float:
    """The loss in nats per token, told per byte of the text it stands for."""
    num_tokens = sum(len(row.ids[0]) - 1 for row in rows)
    num_bytes = sum(len(tokenizer.decode(row.ids[0][1:]).encode()) for row in rows)
    return loss * num_tokens / num_bytes / math.log(2)


def train(corpus: Path, out: Path, num_tokens: int, seed: int) -> None:
    """The whole run; resumes where it was."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(corpus, out, seed)
    stream, counts = token_stream(corpus, tokenizer, num_tokens, seed)
    rows = window_rows(stream)
    held, rows = rows[:128], rows[128:]
    steps = len(rows) // STEP_WINDOWS
    print(f"{len(stream):,} tokens {counts}, {steps} steps", flush=True)
    model = new_model(DecoderConfig.from_hf(SHAPE), seed)
    trueline.train(
        NextToken(), model, rows, out=out / "model", tokenizer=tokenizer, eval_rows=held,
        max_steps=steps, per_device_train_batch_size=STEP_WINDOWS, max_length=CONTEXT, learning_rate=1.5e-3, weight_decay=0.1,
        adam_beta2=0.95, warmup_steps=100, lr_scheduler_type="cosine", min_lr_ratio=0.03, eval_steps=250, save_steps=125,
        save_total_limit=2, logging_steps=5, seed=seed,
    )  # fmt: skip
    metrics = [json.loads(line) for line in (out / "model" / "metrics.jsonl").read_text().splitlines()]
    loss = next(m["eval_loss"] for m in reversed(metrics) if "eval_loss" in m)
    facts = {"tokens": int(len(stream)), "mixture": counts, "steps": steps, "eval_loss": loss, "seed": seed,
             "bits_per_byte": bits_per_byte(loss, held, tokenizer)}  # fmt: skip
    (out / "facts.json").write_text(json.dumps(facts, indent=1))
    print(facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by recipes/base_model_corpus.py")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--tokens", type=float, default=30e6, help="tokens to train on, one pass")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.corpus, args.out, int(args.tokens), args.seed)


if __name__ == "__main__":
    main()
