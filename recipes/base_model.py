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
import torch

import trueline
from trueline.models.config import DecoderConfig
from trueline.models.files import load_model, new_model, save_model
from trueline.objectives.next_token import NextToken
from trueline.quickstart.corpus_rows import name_rows
from trueline.quickstart.harvest import load_functions
from trueline.quickstart.scratch import BODY_TOKENS, grounded, pair_text, shape, window_rows
from trueline.quickstart.splits import TEST_PACKAGES
from trueline.records import Row
from trueline.tokens import Tokenizer, load_tokenizer, train_tokenizer
from trueline.tokens.encode import documents_ids
from trueline.tokens.pack import flatten

CONTEXT = 512
VOCAB_SIZE = 4096
SHAPE = shape(384, 4, VOCAB_SIZE)
"""7.9M parameters, 15.7 MB in two bytes each."""

MIXTURE = {"pair": 0.50, "name": 0.08, "docs": 0.21, "code": 0.21}
"""Share of the tokens by kind."""

STEP_WINDOWS = 8


def texts(corpus: Path, kind: str, rng: random.Random) -> Iterator[str]:
    """Endless texts of one kind, in an order drawn anew in every pass."""
    if kind in ("docs", "code"):
        documents = [json.loads(line)["text"] for line in (corpus / f"{kind}.jsonl").read_text().splitlines()]
        while True:
            rng.shuffle(documents)
            yield from documents
    functions = grounded(load_functions(corpus / "pairs.jsonl"))
    while True:
        rng.shuffle(functions)
        for function in functions:
            yield pair_text(function, rng.choice(BODY_TOKENS)) if kind == "pair" else rng.choice(name_rows(function))


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
        train_tokenizer(sample, vocab_size=VOCAB_SIZE).save(folder)
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
    rows = window_rows(stream, CONTEXT)
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
    facts = {"tokens": len(stream), "mixture": counts, "steps": steps, "eval_loss": loss, "seed": seed,
             "bits_per_byte": bits_per_byte(loss, held, tokenizer)}  # fmt: skip
    (out / "facts.json").write_text(json.dumps(facts, indent=1))
    print(facts)


def export(corpus: Path, out: Path, folder: Path) -> None:
    """The finished model in bfloat16, its tokenizer, and a card that says where it comes from."""
    facts = json.loads((out / "facts.json").read_text())
    model = load_model(out / "model", dtype=torch.bfloat16)
    save_model(model, folder)
    load_tokenizer(out / "model").save(folder)
    curve = [
        (m["step"], m["loss"])
        for line in (out / "model" / "metrics.jsonl").read_text().splitlines()
        if "loss" in (m := json.loads(line))
    ]
    (folder / "loss.json").write_text(json.dumps(curve))
    (folder / "README.md").write_text(card(json.loads((corpus / "data.json").read_text()), facts, curve))


def card(data: dict[str, object], facts: dict[str, object], curve: Sequence[tuple[int, float]]) -> str:
    """The model card."""
    packages = data["packages"]
    assert isinstance(packages, list)
    rows = "\n".join(f"| {p['distribution']} {p['version']} | {p['licence']} | {p['pairs']:,} |" for p in packages)
    milestones = "\n".join(f"| {step} | {loss:.3f} |" for step, loss in curve[:: max(1, len(curve) // 12)])
    return f"""---
license: apache-2.0
library_name: trueline
pipeline_tag: text-generation
language: en
---
# Trueline base model

A decoder of 7.9M parameters (Qwen3 layout, 384 wide, 4 layers, vocabulary {VOCAB_SIZE:,}, context {CONTEXT})
that the quickstart starts from.
It has read Python source code, its documentation, and functions paired with the first paragraph of their docstring. It is no assistant.

Trained on {facts["tokens"]:,} tokens in {facts["steps"]:,} steps of {STEP_WINDOWS} x {CONTEXT}, float32, seed {facts["seed"]};
tokens by kind: {facts["mixture"]}.
Held-out loss {facts["eval_loss"]:.3f} nats per token, **{facts["bits_per_byte"]:.3f} bits per byte**.

    python -m recipes.base_model_corpus --packages PACKAGES --out CORPUS
    python -m recipes.base_model --corpus CORPUS --out RUN --tokens {facts["tokens"]}
    python -m recipes.base_model --corpus CORPUS --out RUN --export trueline/quickstart/base

| step | training loss |
|---|---|
{milestones}

The packages {", ".join(TEST_PACKAGES)} are the quickstart's test set: neither they nor copies of their functions are in the data.

| package | licence | functions |
|---|---|---|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by recipes/base_model_corpus.py")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--tokens", type=float, default=30e6, help="tokens to train on, one pass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, help="write the finished model to this folder instead of training")
    args = parser.parse_args()
    if args.export:
        export(args.corpus, args.out, args.export)
    else:
        train(args.corpus, args.out, int(args.tokens), args.seed)


if __name__ == "__main__":
    main()
