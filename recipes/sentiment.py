"""Controlled sentiment: reward against KL for DPO, PPO with the true reward, PPO with a learned one, and who does without either.

    TRUELINE_DATA=DATA python -m recipes.sentiment --out out/sentiment
    TRUELINE_DATA=DATA python -m recipes.sentiment --out out/sentiment --model base        from the shipped base model: 8 times the cost

Rafailov et al., 2305.18290, figure 2 left: DPO's frontier of reward and KL lies above all others, that of PPO with the ground truth
included. Here small enough for one core:

    truth/        the classifier whose P(positive) is the reward of all arms (recipes.sentiment_truth)
    start/ sft/   a model that has read sentences of reviews: the start of every policy, and the reference
    pairs.json    four of its endings to each beginning (2 to 8 tokens) of held-out sentences; the truth orders them: six pairs
    true/         trueline study: DPO, preferred-FT, and what the truth itself drives: PPO-GT, best of n
    learned/      trueline study: PPO and best of n by a reward model that learned from the same pairs
    betas/        trueline study: DPO with another beta
    drawn/        trueline study: DPO's loss on new answers of the start in every step, as the ids that were drawn, those that were cut too
    report.md     tables, differences and samples; frontier.svg (recipes.sentiment_report)

Every stage is a folder or a file with its own completion marker: the same command goes on where it was stopped, by a kill too.
Cost: measured in docs/recipes/sentiment.md. Left out: unlikelihood training, which no objective here is.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from recipes.sentiment_report import report
from recipes.sentiment_truth import Truth, articles, data_folder, made_up, sentences, truth_of
from trueline.align.group import judged
from trueline.align.judges import RuleJudge
from trueline.align.rollouts import rollouts
from trueline.cli.places import model_folder
from trueline.models.config import DecoderConfig
from trueline.models.files import load_model, new_model, save_model
from trueline.objectives.next_token import NextToken
from trueline.records import TEXT, Comparison, Document, Message, Messages, Ranking, Sampling
from trueline.serve.engine import Engine
from trueline.store import write_atomic
from trueline.study.arms import read_arms
from trueline.study.job import run_study
from trueline.study.settings import Budget, Settings
from trueline.tokens import Tokenizer, load_tokenizer, train_tokenizer
from trueline.tokens.encode import encode_prompt
from trueline.train import train

SMALL, VOCABULARY = "small", 2500
"""Names a new model with a vocabulary of its own."""
SHORTEST, LONGEST = 2, 8
"""Tokens of a prompt."""
PPO = "ppo:kl_coef=0.1,critic=shared,normalize_scores=true,num_iterations=2"
STAGES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "true": ("judge", ("dpo:beta=0.1", PPO, "sft"), ("best_of_n:n=4/2/8",)),
    "learned": ("learned", (PPO,), ("best_of_n:n=4",)),
    "betas": ("judge", ("dpo:beta=1",), ()),
    "drawn": ("judge", ("rso:beta=1e9,gamma=0.1,num_samples=4,ranking=tournament",), ()),
}
"""Study -> what rewards answers in it, what it trains, what only chooses among answers of the start."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What decides the cost."""

    tokens: int = 600_000
    """That the start reads, about."""
    prompts: int = 1500
    updates: int = 80
    settings: Settings = field(default_factory=lambda: Settings(
        seeds=(0, 1, 2), learning_rates=(1e-3, 3e-4, 3e-3), per_device_train_batch_size=16, max_length=64, num_generations=4,
        checkpoints=4, report_prompts=80, tuning_prompts=40, samples=2, max_new_tokens=20,
    ))  # fmt: skip


def corpus(data: Path, tokenizer: Tokenizer, most: int, tokens: int, seed: int = 0) -> list[Document]:
    """Short sentences of reviews: all one-sentence reviews that are not held out, twice, then articles' until there are enough."""
    own = [text for text, _ in sentences(data, held=False)] * 2
    others = [line.strip() for text, _ in articles(data) for line in text.split("\n") if line.strip()]
    order = np.random.default_rng(seed).permutation(len(others))
    found, left = list[Document](), tokens
    for text in [*own, *(others[i] for i in order)]:
        if left <= 0:
            break
        length = len(tokenizer.encode(text)) + 1
        if 2 < length <= most:
            found.append(Document(text=text))
            left -= length
    return found


def started(data: Path, out: Path, model: str, seed: int) -> Path:
    """Where the reading starts: a folder, or a new small model with a vocabulary of reviews."""
    if model != SMALL:
        return Path(model_folder(model))
    if not (out / "tokenizer.json").exists():
        texts = [text for text, _ in (*sentences(data, held=False), *articles(data))]
        tokenizer = train_tokenizer(texts, vocab_size=VOCABULARY)
        config = DecoderConfig(
            model_type="qwen3", vocab_size=tokenizer.vocab_size, hidden_size=96, intermediate_size=256, num_hidden_layers=3,
            num_attention_heads=3, num_key_value_heads=3, head_dim=32, max_position_embeddings=128, qk_norm=True,
            tie_word_embeddings=True, pad_token_id=tokenizer.pad_id, eos_token_id=tokenizer.stop_ids[0],
        )  # fmt: skip
        save_model(new_model(config, seed), out)
        tokenizer.save(out)
    return out


def read_reviews(data: Path, start: Path, out: Path, sizes: Sizes, rate: float) -> Path:
    """The start of all policies: one pass over the sentences, next token."""
    if (out / "finished.json").exists():
        return out
    most = LONGEST + sizes.settings.max_new_tokens
    documents = corpus(data, load_tokenizer(start), most, sizes.tokens)
    return train(
        NextToken(), start, documents, out=out, tokenizer=load_tokenizer(start), num_train_epochs=1.0, max_length=most + 1,
        per_device_train_batch_size=48, learning_rate=rate, lr_scheduler_type="cosine", min_lr_ratio=0.05, warmup_ratio=0.03,
        save_steps=100, save_total_limit=1, logging_steps=10,
    )  # fmt: skip


def beginnings(data: Path, tokenizer: Tokenizer, most: int) -> list[Messages]:
    """Different beginnings of held-out sentences: the whole words within 2 to 8 tokens."""
    found: dict[str, None] = {}
    for number, (text, _) in enumerate(sentences(data, held=True)):
        room = np.random.default_rng([0, number]).integers(SHORTEST, LONGEST + 1)
        words, kept = text.split(" "), ""
        for count in range(1, len(words)):
            begin = " ".join(words[:count])
            length = len(tokenizer.encode(begin))
            if (length > room and len(tokenizer.encode(kept)) >= SHORTEST) or length > LONGEST:
                break
            kept = begin
        if kept and len(tokenizer.encode(kept)) >= SHORTEST:
            found[kept] = None
    return [(asked(text),) for text in list(found)[:most]]


def asked(text: str) -> Message:
    """A prompt: text that is not trained on."""
    return Message(role=TEXT, content=text, train=False)


def judge_of(truth: Truth) -> RuleJudge:
    """P(positive) of the whole sentence, beginning and ending."""
    return RuleJudge(lambda prompt, response: truth.positive(prompt[-1].content + response[-1].content), "P(positive)")


def compared(data: Path, sft: Path, truth: Truth, path: Path, sizes: Sizes) -> list[Comparison]:
    """The start's endings that came to an end, best first. A sentence that was cut is left out: as text it would seem to end there."""
    if not path.exists():
        tokenizer, settings = load_tokenizer(sft), sizes.settings
        engine = Engine(load_model(sft), tokenizer, max_batch=256)
        sampling = Sampling(n=settings.num_generations, max_new_tokens=settings.max_new_tokens, seed=2**20)
        groups = rollouts(
            beginnings(data, tokenizer, sizes.prompts), engine, None, sampling,
            encode=lambda prompt: encode_prompt(prompt, tokenizer), decode=engine.text,
        )  # fmt: skip
        rows = [
            [group.prompt[-1].content, [
                [response[-1].content, score] for response, sample, score in zip(group.responses, group.samples, group.scores, strict=True)
                if sample.finish_reason == "stop" and response[-1].content
            ]]
            for group in judged(groups, judge_of(truth))
        ]  # fmt: skip
        write_atomic(path, json.dumps(rows))
    found = []
    for prompt, endings in json.loads(path.read_text(encoding="utf-8")):
        texts = {text: score for text, score in endings}  # a text that was drawn twice is one response
        if len(texts) > 1:
            places = {score: place for place, score in enumerate(sorted(set(texts.values()), reverse=True), 1)}
            found.append(
                Comparison(
                    prompt=(asked(prompt),), responses=tuple((Message(role=TEXT, content=text),) for text in texts),
                    judgement=Ranking(tuple(places[score] for score in texts.values())),
                )
            )  # fmt: skip
    return found


def run(data: Path, out: Path, *, model: str = SMALL, rate: float = 3e-3, sizes: Sizes | None = None, seed: int = 0) -> str:
    """All stages; returns the report, which is also written."""
    sizes = sizes or Sizes()
    truth = truth_of(data, out / "truth")
    sft = read_reviews(data, started(data, out / "start", model, seed), out / "sft", sizes, rate)
    pairs = compared(data, sft, truth, out / "pairs.json", sizes)
    for one in sizes.settings.learning_rates:  # each rate of its own, with every seed: a study alone would go on with the best
        for name, (reward, trained, chosen) in STAGES.items():
            words = [f"{word},{rates_of(one, sizes)}" if ":" in word else f"{word}:{rates_of(one, sizes)}" for word in trained]
            arms = read_arms([*words, *chosen], sizes.settings.learning_rates)
            run_study(
                sft, pairs, arms, out=out / name, budget=Budget(updates=sizes.updates), settings=sizes.settings,
                judge=judge_of(truth), judge_key="P(positive) of recipes.sentiment_truth", reward=reward,
            )  # fmt: skip
    return report(out)


def rates_of(rate: float, sizes: Sizes) -> str:
    """An option that has a study try this rate only; reward models still choose among all."""
    return "learning_rate=" + "/".join([f"{rate:g}"] * len(sizes.settings.learning_rates))


def rehearse(folder: Path) -> None:
    """Invented reviews, two updates; then again, with nothing left to do."""
    few = replace(Sizes().settings, seeds=(0, 1), learning_rates=(1e-3,), per_device_train_batch_size=2, num_generations=4, checkpoints=2,
                  report_prompts=4, tuning_prompts=2, samples=2, max_new_tokens=16)  # fmt: skip
    sizes = Sizes(tokens=40_000, prompts=60, updates=2, settings=few)
    data = made_up(folder / "data", 500)
    for _ in range(2):
        found = run(data, folder / "out", rate=1e-2, sizes=sizes)
    assert "PPO, true reward" in found and (folder / "out/frontier.svg").exists()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run folder; the same command resumes")
    parser.add_argument("--model", default=SMALL, help='"small" (a new one), "base", a folder or a hub id')
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="of the reading; 1e-3 suits the base model")
    parser.add_argument("--updates", type=int, default=Sizes.updates)
    args = parser.parse_args()
    print(run(data_folder(), args.out, model=args.model, rate=args.learning_rate, sizes=Sizes(updates=args.updates)))


if __name__ == "__main__":
    main()
