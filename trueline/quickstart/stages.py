"""The quickstart's stages: each reads what the ones before left on disk, writes its own, and is skipped when that is complete.

    harvest -> (base) -> sft -> preferences -> reward

    out/  plan.json  sft/  preferences/  reward/  stages.json (seconds)

Left out: the methods that are compared (methods), what is measured and how (measure), the page (report).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from trueline.align.annotator import rankings_by_plackett_luce
from trueline.align.group import Group, keep
from trueline.align.rollouts import rollouts
from trueline.models.decoder import Decoder
from trueline.models.files import load_model
from trueline.objectives.reward import Reward
from trueline.objectives.sft import SFT
from trueline.quickstart.functions import Function
from trueline.quickstart.harvest import Harvest, harvest
from trueline.quickstart.pep257 import Pep257Judge, learn_prose
from trueline.quickstart.plan import CANDIDATES, ROWS_PER_STEP, TUNING_SHARE, Plan
from trueline.quickstart.prompts import prompt_text
from trueline.quickstart.scratch import grounded
from trueline.quickstart.splits import split
from trueline.records import Comparison, Conversation, Message, Messages, Ranking, Sampling
from trueline.rows import write_rows
from trueline.run import Bar
from trueline.serve.engine import Engine
from trueline.store import write_atomic
from trueline.tokens import Tokenizer
from trueline.tokens.encode import encode_prompt
from trueline.train import train

BODY_TOKENS = 64
MAX_LENGTH = 512
MAX_SUMMARY_TOKENS = 48
TEMPERATURE = 0.8
"""Of sampled summaries: close to what one would deploy, and still different from one another."""
NOISE = 0.5
"""The annotator prefers a over b with probability sigmoid((score a - score b) / NOISE); scores run from 0 to 10."""
FEW = 16
"""With fewer rankings of whole summaries, cut ones are ranked, too."""
TEST_SEED = 2**20
"""Draws the summaries that the reward model is tested with: no seed of the comparison, so no model is tested with its own answers."""
MAX_PREFERENCE_SHARE = 0.2
"""Of the training functions, at most this share is kept for preferences; SFT never sees them."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Functions by use; no function has two."""

    sft: tuple[Function, ...]
    preference: tuple[Function, ...]
    test: tuple[Function, ...]
    judge: Pep257Judge
    found: Harvest
    removed: dict[str, int]


class Clock:
    """Announces stages and keeps their seconds in stages.json, over resumes."""

    def __init__(self, out: Path, console: Console) -> None:
        self.path, self.console = out / "stages.json", console
        self.stages: list[dict[str, str | float]] = (
            json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []
        )

    @contextmanager
    def stage(self, name: str, detail: str) -> Iterator[None]:
        self.console.print(f"\n[bold]{name}[/]  [dim]{detail}[/]")
        start = time.perf_counter()
        yield
        self._keep(name, detail, time.perf_counter() - start)

    def _keep(self, name: str, detail: str, seconds: float) -> None:
        known = next((s for s in self.stages if s["name"] == name), None)
        if known is None:
            self.stages.append({"name": name, "detail": detail, "seconds": seconds})
        elif seconds > 1:  # a stage that was only skipped keeps its first time
            known["seconds"] = float(known["seconds"]) + seconds
        write_atomic(self.path, json.dumps(self.stages, indent=1))

    @property
    def seconds(self) -> float:
        return sum(float(s["seconds"]) for s in self.stages)


def collect(cache: Path, seed: int) -> Data:
    """Harvest this machine and split it; the held-out packages are those of `splits.TEST_PACKAGES`, whatever the seed."""
    found = harvest(cache)
    parts = split(found.functions)
    rng = np.random.default_rng([seed, 257])
    usable = grounded(parts.train)
    order = rng.permutation(len(usable))
    reserved = int(MAX_PREFERENCE_SHARE * len(usable))
    return Data(
        preference=tuple(usable[i] for i in order[:reserved]),
        sft=tuple(usable[i] for i in order[reserved:]),
        test=tuple(parts.test[i] for i in rng.permutation(len(parts.test))),
        judge=Pep257Judge(learn_prose(f.summary for f in parts.train)),
        found=found,
        removed=parts.removed,
    )


def prompt_of(function: Function, tokenizer: Tokenizer) -> Messages:
    """The user's turn."""
    return (Message(role="user", content=prompt_text(function, BODY_TOKENS, tokenizer)),)


def conversations(functions: Sequence[Function], tokenizer: Tokenizer) -> list[Conversation]:
    """Prompt and human summary."""
    return [
        Conversation(messages=(*prompt_of(f, tokenizer), Message(role="assistant", content=f.summary)), source=f.path)
        for f in functions
    ]


def supervise(base: Path, data: Data, tokenizer: Tokenizer, plan: Plan, out: Path) -> Path:
    """SFT on what people wrote. At most as many functions as the steps can use are encoded."""
    wanted = plan.sft_steps * ROWS_PER_STEP["sft"]
    return train(
        SFT(), base, conversations(data.sft[:wanted], tokenizer), out=out, tokenizer=tokenizer, max_steps=plan.sft_steps,
        per_device_train_batch_size=ROWS_PER_STEP["sft"], max_length=MAX_LENGTH, learning_rate=6e-4, lr_scheduler_type="linear",
        warmup_ratio=0.05, save_steps=100, logging_steps=5, seed=plan.seed,
    )  # fmt: skip


def draw(
    model: Decoder, functions: Sequence[Function], tokenizer: Tokenizer, judge: Pep257Judge, sampling: Sampling, what: str
) -> tuple[list[Group], Engine]:
    """Judged summaries, one group per function, and the engine that drew them; progress says `what` is drawn."""
    prompts = [prompt_of(f, tokenizer) for f in functions]
    with Bar(len(prompts) * sampling.n, what) as bar:
        engine = Engine(model, tokenizer, max_batch=256, progress=bar.update)
        encode = partial(encode_prompt, tok=tokenizer)
        return rollouts(prompts, engine, judge, sampling, encode=encode, decode=engine.text), engine


def compare(sft: Path, data: Data, tokenizer: Tokenizer, plan: Plan, out: Path) -> str:
    """Summaries of the SFT model, ranked by an annotator who follows the judge with noise: train.jsonl and tuning.jsonl are of training
    packages, report.jsonl (two summaries each, to test the reward model with) of the held-out ones. pairs.jsonl holds the first and the
    last of every ranking of train.jsonl, the clearest choice, which DPO learns most from (decision 0002, 8).

    Returns what is to be said about the sampler.
    """
    model, held = load_model(sft), held_out(data, tokenizer, plan)
    functions = distinct(data.preference, plan.preference_prompts, tokenizer, but=held)
    sampling = Sampling(n=CANDIDATES, temperature=TEMPERATURE, max_new_tokens=MAX_SUMMARY_TOKENS, seed=plan.seed)
    groups, engine = draw(model, functions, tokenizer, data.judge, sampling, "summaries")
    ranked = ranked_by(groups, plan)
    two = replace(sampling, n=2, seed=TEST_SEED + plan.seed)
    pairs = draw(model, held, tokenizer, data.judge, two, "summaries to test with")[0]
    decided = {comparison.prompt: comparison for comparison in ranked_by(pairs, plan)}
    report = [decided.get(group.prompt) or tie(group) for group in pairs]
    tuned = max(2, int(TUNING_SHARE * len(ranked)))
    parts = {"train": ranked[tuned:], "pairs": map(first_and_last, ranked[tuned:]), "tuning": ranked[:tuned], "report": report}
    for side, comparisons in parts.items():
        write_rows(comparisons, out / f"{side}.jsonl", "trueline")
    return str(engine.agreement)


def ranked_by(groups: Sequence[Group], plan: Plan) -> list[Comparison]:
    """The annotator's ranking of every group with two summaries that differ; cut ones only where hardly any are whole."""
    whole = keep(groups, lambda sample: sample.finish_reason == "stop")
    ranked = rankings_by_plackett_luce(whole, NOISE, plan.seed, source="quickstart")
    if len(ranked) < FEW:  # a model of a minute's training hardly ever ends what it says
        ranked = rankings_by_plackett_luce(groups, NOISE, plan.seed, source="quickstart")
    return ranked


def held_out(data: Data, tokenizer: Tokenizer, plan: Plan) -> list[Function]:
    """The functions that everything is measured on."""
    return distinct(data.test, plan.test_prompts, tokenizer)


def distinct(functions: Sequence[Function], most: int, tokenizer: Tokenizer, but: Sequence[Function] = ()) -> list[Function]:
    """The first so many whose prompts differ from one another's and from those of `but`: what differs in two functions may be cut."""
    seen, found = {prompt_of(function, tokenizer) for function in but}, list[Function]()
    for function in functions:
        prompt = prompt_of(function, tokenizer)
        if len(found) < most and prompt not in seen:
            seen.add(prompt)
            found.append(function)
        if len(found) == most:
            break
    return found


def first_and_last(ranked: Comparison) -> Comparison:
    """The pair of the best and the worst of a ranking."""
    return replace(ranked, responses=(ranked.responses[0], ranked.responses[-1]), judgement=Ranking((1, 2)))


def tie(group: Group) -> Comparison:
    """Two summaries that nobody could choose between: the same text, or cut ones."""
    return Comparison(prompt=group.prompt, responses=group.responses[:2], judgement=Ranking((1, 1)), source="quickstart")


def reward_model(sft: Path, preferences: Path, plan: Plan, out: Path) -> Path:
    """Bradley-Terry on the rankings."""
    return train(
        Reward(center_rewards_coefficient=0.01), sft, preferences / "train.jsonl", out=out, eval_rows=preferences / "tuning.jsonl",
        max_steps=plan.reward_steps, per_device_train_batch_size=ROWS_PER_STEP["reward"], max_length=MAX_LENGTH, learning_rate=2e-4,
        lr_scheduler_type="linear", warmup_ratio=0.1, save_steps=100, logging_steps=2, seed=plan.seed,
    )  # fmt: skip
