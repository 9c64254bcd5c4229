"""The base model that the package ships: tokenizer and 8M-parameter decoder, trained on source code and its documentation.

    python -m recipes.base_model_corpus --packages PACKAGES --out CORPUS    harvest installed packages (see its docstring)
    python -m recipes.base_model --corpus CORPUS --out RUN                  train; the same command resumes after a kill
    python -m recipes.base_model --corpus CORPUS --out RUN --export trueline/quickstart/base

A later leg goes on from an exported model, with its tokenizer: add `--start trueline/quickstart/base --seed 1` to both commands,
and `--average` to the second for the mean of the weights before and behind it.
Each leg's history is kept beside the model (legs.json) and told by its card.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trueline
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import load_model, new_model, save_model
from trueline.models.scorer import PolicyScorer
from trueline.objectives.next_token import NextToken
from trueline.quickstart.corpus_rows import code_pieces, name_rows
from trueline.quickstart.functions import Function, load_functions, read_source, save_functions
from trueline.quickstart.scratch import BODY_TOKENS, grounded, pair_text, shape, window_rows
from trueline.quickstart.sources import distributions, own_dependencies, standard_library
from trueline.quickstart.splits import TEST_PACKAGES
from trueline.records import Row
from trueline.tokens import Tokenizer, load_tokenizer, train_tokenizer
from trueline.tokens.encode import documents_ids
from trueline.tokens.pack import flatten

CONTEXT = 512
VOCAB_SIZE = 4096
SHAPE = shape(384, 4, VOCAB_SIZE)
"""7.9M parameters, 15.7 MB in two bytes each."""

STEP_WINDOWS = 8


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training, with a mixture and a schedule of its own."""

    name: str
    share: float
    """Of all tokens."""
    mixture: Mapping[str, float]
    """Share of the phase's tokens by kind."""
    body_tokens: tuple[int, ...]
    """A pair shows one of these amounts of its body, drawn at random."""
    learning_rate: float
    schedule: str


PHASES = (
    Phase(
        name="broad",
        share=0.45,
        mixture={"pair": 0.50, "name": 0.08, "docs": 0.21, "code": 0.21},
        body_tokens=BODY_TOKENS,
        learning_rate=1.5e-3,
        schedule="constant",
    ),
    Phase(
        name="pairs",
        share=0.55,
        mixture={"pair": 0.70, "name": 0.10, "docs": 0.10, "code": 0.10},
        body_tokens=(0, 0, 24, 48),
        learning_rate=1.2e-3,
        schedule="cosine",
    ),
)
"""First the language of code and its documentation, then mostly functions and what people say of them, shown with little body so that
the words of names count."""


def texts(corpus: Path, kind: str, body_tokens: Sequence[int], rng: random.Random) -> Iterator[str]:
    """Endless texts of one kind, in an order drawn anew in every pass."""
    if kind in ("docs", "code"):
        documents = [
            json.loads(line)["text"] for line in (corpus / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        while True:
            rng.shuffle(documents)
            yield from documents
    functions = grounded(load_functions(corpus / "pairs.jsonl"))
    while True:
        rng.shuffle(functions)
        for function in functions:
            yield pair_text(function, rng.choice(body_tokens)) if kind == "pair" else rng.choice(name_rows(function))


def tokenizer_of(corpus: Path, out: Path, seed: int) -> Tokenizer:
    """Trained once on 24M characters of the first phase's mixture, then read back."""
    folder = out / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        rng = random.Random(seed)
        sample: list[str] = []
        for kind, share in PHASES[0].mixture.items():
            size = 0
            for text in texts(corpus, kind, PHASES[0].body_tokens, rng):
                sample.append(text)
                size += len(text)
                if size > 24e6 * share:
                    break
        train_tokenizer(sample, vocab_size=VOCAB_SIZE).save(folder)
    return load_tokenizer(folder)


def token_stream(corpus: Path, tokenizer: Tokenizer, phase: Phase, num_tokens: int, seed: int) -> np.ndarray:
    """About `num_tokens` ids of whole documents in mixed order."""
    rng = random.Random(seed)
    documents: list[np.ndarray] = []
    for kind, share in phase.mixture.items():
        source, size = texts(corpus, kind, phase.body_tokens, rng), 0
        while size < share * num_tokens:
            for ids in documents_ids([next(source) for _ in range(256)], tokenizer):
                documents.append(ids)
                size += len(ids)
    rng.shuffle(documents)
    return flatten(documents)


def train_phase(
    corpus: Path,
    out: Path,
    phase: Phase,
    start: Path | Decoder,
    tokenizer: Tokenizer,
    num_tokens: int,
    seed: int,
    steps: int = 0,
) -> Path:
    """One phase from a folder or a fresh model; resumes. `steps` above 0 cuts it short."""
    rows = window_rows(token_stream(corpus, tokenizer, phase, num_tokens, seed), CONTEXT)
    return trueline.train(
        NextToken(), start, rows, out=out, tokenizer=tokenizer, max_steps=steps or max(1, len(rows) // STEP_WINDOWS),
        per_device_train_batch_size=STEP_WINDOWS, max_length=CONTEXT, learning_rate=phase.learning_rate, weight_decay=0.1, adam_beta2=0.95,
        warmup_steps=100, lr_scheduler_type=phase.schedule, min_lr_ratio=0.03,
        save_steps=125, save_total_limit=2, logging_steps=5, seed=seed,
    )  # fmt: skip


def train(corpus: Path, out: Path, num_tokens: int, seed: int, start: Path | None = None, steps: int = 0) -> Path:
    """All phases, from a fresh model or from the folder `start`; resumes where it was."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(start) if start else tokenizer_of(corpus, out, seed)
    model: Path | Decoder = start or new_model(DecoderConfig.from_hf(SHAPE), seed)
    for number, phase in enumerate(PHASES, 1):
        num_phase_tokens = int(phase.share * num_tokens)
        model = train_phase(corpus, out / phase.name, phase, model, tokenizer, num_phase_tokens, 10 * seed + number, steps)
    assert isinstance(model, Path)
    return model


def held_out_bits_per_byte(model: Decoder, tokenizer: Tokenizer, pieces: int = 200) -> float:
    """On source code of the quickstart's test packages, which the base model never reads; whole pieces cut at the context."""
    installed, _ = distributions(own_dependencies())
    packages = [p for p in (*standard_library(), *installed) if p.name in TEST_PACKAGES]
    texts = [d.text for p in packages for path in p.files for d in code_pieces(read_source(path) or "", path.name)]
    chosen = np.random.default_rng(0).permutation(len(texts))[:pieces]
    nats = num_bytes = 0.0
    for i in chosen:
        ids = documents_ids([texts[i]], tokenizer)[0][:CONTEXT]
        scored = np.arange(len(ids)) > 0
        nats -= float(PolicyScorer(model).score([Row(ids=(ids,), scored=(scored,))])[0][0])
        num_bytes += len(tokenizer.decode(ids[1:]).encode())
    return nats / num_bytes / math.log(2)


def leg(phase: Phase, run: Path) -> dict[str, object]:
    """What one phase did, for legs.json: a curve of at most 16 points."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [(m["step"], round(m["loss"], 3)) for m in map(json.loads, lines) if "loss" in m]
    steps = losses[-1][0]
    return {
        "phase": phase.name,
        "steps": steps,
        "tokens": steps * STEP_WINDOWS * CONTEXT,
        "learning_rate": phase.learning_rate,
        "schedule": phase.schedule,
        "mixture": dict(phase.mixture),
        "losses": losses[:-1][:: max(1, len(losses) // 12)] + losses[-1:],
    }


def export(corpus: Path, out: Path, folder: Path, start: Path | None = None, average: bool = False) -> None:
    """The model of the last phase in bfloat16, its tokenizer, its history, and a card that says where it comes from.

    `average` takes the mean of its weights and those of `start` (Izmailov et al., 1803.05407): better than either of the two.
    """
    run = out / PHASES[-1].name
    legs = json.loads((start / "legs.json").read_text(encoding="utf-8")) if start else []
    legs += [leg(phase, out / phase.name) for phase in PHASES]
    model = load_model(run)
    if average:
        assert start is not None
        with torch.no_grad():
            for weight, before in zip(model.parameters(), load_model(start).parameters(), strict=True):
                weight.lerp_(before, 0.5)
        legs[-1]["averaged"] = True
    save_model(model.to(torch.bfloat16), folder)
    tokenizer = load_tokenizer(run)
    tokenizer.save(folder)
    bits = held_out_bits_per_byte(load_model(folder), tokenizer)
    data = json.loads((corpus / "data.json").read_text(encoding="utf-8"))
    (folder / "legs.json").write_text(json.dumps(legs), encoding="utf-8")
    (folder / "README.md").write_text(card(data, legs, bits), encoding="utf-8")
    print(f"{bits:.3f} bits per byte after {sum(part['tokens'] for part in legs):,} tokens")


def card(data: Mapping[str, Any], legs: Sequence[Mapping[str, Any]], bits_per_byte: float) -> str:
    """The model card."""
    packages = "\n".join(f"| {p['distribution']} {p['version']} | {p['licence']} | {p['pairs']:,} |" for p in data["packages"])
    history = "\n".join(
        f"| {part['phase']} | {part['tokens']:,} | {part['learning_rate']:g}, {part['schedule']} | "
        + ", ".join(f"{kind} {share:.2f}" for kind, share in part["mixture"].items())
        + (", then averaged with the phase two before |" if part.get("averaged") else " |")
        for part in legs
    )
    curve, before = [], 0
    for part in legs:
        curve += [f"| {before + step:,} | {loss:.3f} |" for step, loss in part["losses"]]
        before += part["steps"]
    losses = "\n".join(curve)
    return f"""---
license: apache-2.0
library_name: trueline
pipeline_tag: text-generation
language: en
---
# Trueline base model

A decoder of 7.9M parameters (Qwen3 layout, 384 wide, 4 layers, vocabulary {VOCAB_SIZE:,}; trained on windows of {CONTEXT} tokens)
that the quickstart starts from. It has read Python source code, its documentation, and functions paired with the first
paragraph of their docstring. It is no assistant.

Trained on {sum(part["tokens"] for part in legs):,} tokens in {before:,} steps of {STEP_WINDOWS} x {CONTEXT}, float32, AdamW, in phases:

| phase | tokens | learning rate | share of tokens by kind |
|---|---|---|---|
{history}

**{bits_per_byte:.3f} bits per byte** on source code of the held-out packages.

    python -m recipes.base_model_corpus --packages PACKAGES --out CORPUS
    python -m recipes.base_model --corpus CORPUS --out RUN
    python -m recipes.base_model --corpus CORPUS --out RUN --export trueline/quickstart/base

A pair of phases after the first starts where the one before ended: `--start trueline/quickstart/base --seed 1`, and so on;
`--average` exports the mean of the weights before and behind it.

| step | training loss |
|---|---|
{losses}

The packages {", ".join(TEST_PACKAGES)} are the quickstart's test set: neither they nor copies of
their functions are in the data.

| package | licence | functions |
|---|---|---|
{packages}
"""


def rehearse(folder: Path) -> None:
    """Two steps of each phase on a corpus of a few functions."""
    corpus = folder / "corpus"
    corpus.mkdir()
    body = "total = sum(values)\nreturn total / len(values)"
    functions = [
        Function(
            name=f"mean_of_{n}", arguments=("values",), calls=("sum",), body=body, summary=f"Return the mean of {n}."
        )
        for n in range(40)
    ]
    save_functions(functions, corpus / "pairs.jsonl")
    for kind in ("docs", "code"):
        lines = [json.dumps({"text": f"Compute the mean number {n} of all values. " * 8}) for n in range(40)]
        (corpus / f"{kind}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train(corpus, folder / "run", 20_000, seed=0, steps=2)
    (corpus / "data.json").write_text(json.dumps({"packages": []}), encoding="utf-8")
    export(corpus, folder / "run", folder / "first")
    train(corpus, folder / "second", 20_000, seed=1, start=folder / "first", steps=2)
    export(corpus, folder / "second", folder / "first", start=folder / "first", average=True)


def main() -> None:
    """Read the options; train, or export what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by recipes/base_model_corpus.py")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--tokens", type=float, default=30e6, help="tokens to train on, one pass")
    parser.add_argument("--start", type=Path, help="an exported model to go on from; without it, tokenizer and weights are new")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, help="write the finished model to this folder instead of training")
    parser.add_argument("--average", action="store_true", help="export the mean of the weights of --start and of this leg")
    args = parser.parse_args()
    if args.average and not args.start:
        parser.error("--average takes the mean with the weights of --start: give it too")
    if args.export:
        export(args.corpus, args.out, args.export, args.start, args.average)
    else:
        train(args.corpus, args.out, int(args.tokens), args.seed, args.start)


if __name__ == "__main__":
    main()
