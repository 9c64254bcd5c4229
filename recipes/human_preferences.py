"""Real people's preferences: a reward model by five folds, calibration, helpfulness, and DPO, each beside a baseline that knows less.

    TRUELINE_DATA=DATA python -m recipes.human_preferences --out out/preferences
    TRUELINE_DATA=DATA python -m recipes.human_preferences --out out/preferences --fold 3       that fold's reward model only

    start/          the model that has read English and instructions (recipes.human_preferences_start)
    rates/          three learning rates on an inner split of fold 0's training pairs
    folds/0..4      a reward model per fold of the HH-RLHF harmless pairs, and the gaps it gives the pairs of its fold
    dpo/            DPO on the pairs outside of fold 0
    helpful/0..1    reward models on tulu1 and pandalm, each tested on the half of the prompts that it has not seen
    harmless/       what fold 0's reward model says of the sets of helpfulness and of LLMBar
    unread/ curve/  folds from the base model that has read code only; folds from fewer pairs
    report.md       the tables; reliability.svg

Every stage is a folder with its own completion marker: the same command goes on where it was stopped.
Cost: about an hour and a half on one core for a model of 8M parameters, 25 minutes of them for the start.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.human_preferences_report import report
from recipes.human_preferences_start import data_folder, jsonl, made_up, prompt_key, start
from recipes.human_preferences_words import FOLDS, TextPair, fold_of, text_pair
from trueline.evals.kl import sequence_kl
from trueline.models.files import load_model, load_scalar_model
from trueline.models.scorer import PolicyScorer, RewardScorer
from trueline.objectives.dpo import DPO
from trueline.objectives.reward import Reward
from trueline.quickstart.base_model import base_model_dir
from trueline.records import Comparison, Message, Row, Sample, Sampling
from trueline.rows import read_rows
from trueline.serve.engine import Engine
from trueline.store import write_atomic
from trueline.tokens import EncodeStats, Tokenizer, encode_comparison, load_tokenizer
from trueline.tokens.encode import encode_prompt, row_key
from trueline.train import train

RATES = (1e-4, 2e-4, 4e-4)
RATE_PAIRS = 320
"""Pairs that each rate is tried on: enough to tell the rates apart, at a third of the cost."""
LENGTH = 256
"""Tokens of a dialogue; what is older is cut away, since the last turns are what the replies answer."""
PROMPT_LEAST = 48
"""Tokens of the prompt that stay however long the reply is."""
ROWS_PER_STEP = 8
SETS: dict[str, tuple[str, int, tuple[str, ...], dict[str, str] | None]] = {
    "hh": ("hh_harmless_base_test", 900, (), None),
    "tulu1": ("tulu1_human", 224, ("preference",), None),
    "pandalm": ("pandalm_human", 224, ("annotator1", "annotator2", "annotator3"), None),
    "llmbar": ("llmbar", 224, ("subset",), {"1": "first", "2": "second"}),
}
"""Name -> file, tokens of the longest response (longer ones lose their ends, both of a pair at the same length), the columns that tell
its pairs apart, the meaning of its verdicts."""
QUESTION = "My neighbour plays loud music every night. What should I do?"


@dataclass(frozen=True)
class Pair:
    """A comparison as ids, the preferred response first, and what a table needs of it."""

    row: Row
    text: TextPair
    line: int
    """Of its file, from 1: other columns are found there."""


def trim(row: Row, length: int, response_most: int) -> tuple[Row, int, int]:
    """The row with the left of its prompt cut away until the longest sequence has `length` tokens, though PROMPT_LEAST tokens of
    the prompt stay; before that, responses keep `response_most` tokens at most. Also tokens lost of the prompt, and of responses."""
    before = int(np.argmax(row.scored[0]))
    ends = [min(len(ids), before + response_most) for ids in row.ids]
    room = max(PROMPT_LEAST, length - (max(ends) - before))
    first = max(0, before - room)
    ids = tuple(np.ascontiguousarray(x[first:end]) for x, end in zip(row.ids, ends, strict=True))
    scored = tuple(np.ascontiguousarray(x[first:end]) for x, end in zip(row.scored, ends, strict=True))
    lost = sum(len(x) - end for x, end in zip(row.ids, ends, strict=True))
    return replace(row, ids=ids, scored=scored, key=row_key(ids, scored)), first, lost


def read_pairs(
    path: Path, tokenizer: Tokenizer, response_most: int, verdict: dict[str, str] | None
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of a file, and what became of its rows."""
    rows, stats, pairs = read_rows(path, Comparison, chat=True, verdict=verdict), EncodeStats(), list[Pair]()
    about = {"prompts_cut": 0, "prompt_tokens_lost": 0, "responses_cut": 0, "response_tokens_lost": 0, "tokens": 0}
    for record in rows:
        assert isinstance(record, Comparison)
        row = encode_comparison(record, tokenizer, 8192, stats)
        if row is None:
            continue
        row, prompt, response = trim(row, LENGTH, response_most)
        if all(np.array_equal(row.ids[0], ids) for ids in row.ids):
            stats.dropped["responses are equal where they are cut"] += 1
            continue
        about["prompts_cut"] += prompt > 0
        about["prompt_tokens_lost"] += prompt
        about["responses_cut"] += response > 0
        about["response_tokens_lost"] += response
        about["tokens"] += row.num_tokens
        pairs.append(Pair(row, text_pair(record), int(record.source.rpartition(":")[2])))
    left_out = dict(rows.rejected + stats.dropped)
    return pairs, {"file": path.name, "rows": rows.read, "pairs": len(pairs), "left_out": left_out, **about}


def fold(pair: Pair, folds: int = FOLDS) -> int:
    """By the opening question, the same as the bag of words'."""
    return fold_of(pair.text.group, folds)


def reward_model(start: Path, pairs: Sequence[Pair], out: Path, rate: float, seed: int, steps: int = 0) -> Path:
    """One pass over the pairs; ties count as probability 1/2."""
    return train(
        Reward(center_rewards_coefficient=0.01), start, [pair.row for pair in pairs], out=out, tokenizer=load_tokenizer(start),
        max_steps=steps, per_device_train_batch_size=ROWS_PER_STEP, max_length=1024, learning_rate=rate, lr_scheduler_type="linear",
        warmup_ratio=0.1, weight_decay=0.01, save_steps=40, save_total_limit=1, logging_steps=5, seed=seed,
    )  # fmt: skip


def gaps(model: Path, pairs: Sequence[Pair], cache: Path) -> np.ndarray:
    """Score of the preferred response minus score of the other [N]; computed once."""
    if not cache.exists():
        scores = RewardScorer(load_scalar_model(model)).score([pair.row for pair in pairs])
        write_atomic(cache, json.dumps([float(score_K[0] - score_K[1]) for score_K in scores]))
    return np.array(json.loads(cache.read_text(encoding="utf-8")))


def crossed(start: Path, pairs: Sequence[Pair], out: Path, which: Sequence[int], settings: Settings, share: float = 1.0) -> None:
    """Reward models of these folds, trained on a share of the other folds' pairs, and the gaps of their own: OUT/K/gaps.json."""
    for k in which:
        inside = [pair for pair in pairs if fold(pair) != k]
        order = np.random.default_rng([settings.seed, k]).permutation(len(inside))[: round(share * len(inside))]
        model = reward_model(start, [inside[i] for i in order], out / str(k), settings.rate, settings.seed, settings.steps)
        gaps(model, [pair for pair in pairs if fold(pair) == k], out / str(k) / "gaps.json")


def choose_rate(start: Path, pairs: Sequence[Pair], out: Path, seed: int, steps: int) -> float:
    """The rate of the least loss on a fifth of fold 0's training pairs; no pair of fold 0 is looked at."""
    inside = [pair for pair in pairs if fold(pair) != 0]
    held = [pair for pair in inside if fold_of(pair.text.group, 5, "inner ") == 0]
    rest = [pair for pair in inside if fold_of(pair.text.group, 5, "inner ") != 0][:RATE_PAIRS]
    losses = {}
    for rate in RATES:
        model = reward_model(start, rest, out / f"{rate:g}", rate, seed, steps)
        gap_N = gaps(model, held, out / f"{rate:g}" / "gaps.json")
        losses[rate] = float(np.logaddexp(0, -gap_N).mean())
        print(f"learning rate {rate:g}: loss {losses[rate]:.4f}, {(gap_N > 0).mean():.1%} of {len(held)} pairs right")
    write_atomic(out / "rates.json", json.dumps({f"{rate:g}": loss for rate, loss in losses.items()}))
    return min(losses, key=lambda rate: losses[rate])


def prefer(start: Path, pairs: Sequence[Pair], out: Path, settings: Settings) -> None:
    """DPO on all folds but the first, and what it did to the pairs of the first and to its own replies: OUT/measured.json."""
    inside, held = [p for p in pairs if fold(p) != 0], [p for p in pairs if fold(p) == 0]
    tokenizer = load_tokenizer(start)
    model = train(
        DPO(beta=0.1), start, [pair.row for pair in inside], out=out, tokenizer=tokenizer, max_steps=settings.steps,
        per_device_train_batch_size=ROWS_PER_STEP, max_length=1024, learning_rate=5e-5, lr_scheduler_type="linear", warmup_ratio=0.1,
        save_steps=40, save_total_limit=1, logging_steps=5, seed=settings.seed,
    )  # fmt: skip
    if (out / "measured.json").exists():
        return
    before, after = load_model(start), load_model(model)
    rows = [pair.row for pair in held]
    reference, policy = (np.stack(PolicyScorer(one).score(rows)) for one in (before, after))
    prompts = [row.ids[0][: int(np.argmax(row.scored[0]))] for row in rows[:64]]
    drawn = {name: draw(one, tokenizer, prompts, settings.seed) for name, one in (("sft", before), ("dpo", after))}
    judge = RewardScorer(load_scalar_model(out.parent / "folds/0"))
    logps = [np.array([float(s.logps.sum()) for s in drawn["dpo"]]), np.concatenate(PolicyScorer(before).score(sample_rows(drawn["dpo"])))]
    measured = {
        "reference_logps": reference.tolist(), "policy_logps": policy.tolist(), "kl": sequence_kl(*logps).to_dict(),
        "tokens": {name: float(np.mean([len(s.ids) for s in samples])) for name, samples in drawn.items()},
        "judged": {name: [float(x[0]) for x in judge.score(sample_rows(samples))] for name, samples in drawn.items()},
        "replies": {name: said(one, tokenizer, settings.seed) for name, one in (("sft", before), ("dpo", after))},
    }  # fmt: skip
    write_atomic(out / "measured.json", json.dumps(measured))


def draw(model: Any, tokenizer: Tokenizer, prompts: Sequence[np.ndarray], seed: int) -> list[Sample]:
    """One reply to each prompt, from the model's own distribution."""
    found = Engine(model, tokenizer).sample(list(prompts), Sampling(temperature=1.0, max_new_tokens=64, seed=seed))
    return [samples[0] for samples in found]


def sample_rows(samples: Sequence[Sample]) -> list[Row]:
    """Prompt and reply as rows that a scorer takes."""
    rows = []
    for sample in samples:
        ids = np.concatenate([sample.prompt_ids, sample.ids]).astype(np.int32)
        rows.append(Row(ids=(ids,), scored=(np.arange(len(ids)) >= len(sample.prompt_ids),)))
    return rows


def said(model: Any, tokenizer: Tokenizer, seed: int) -> list[str]:
    """Three replies to one harmless question, at temperature 0.7."""
    engine = Engine(model, tokenizer)
    ids = encode_prompt((Message(role="user", content=QUESTION),), tokenizer)
    (samples,) = engine.sample([ids], Sampling(temperature=0.7, max_new_tokens=60, n=3, seed=seed))
    return [engine.text(sample) for sample in samples]


def helpfulness(start: Path, sets: dict[str, list[Pair]], out: Path, settings: Settings) -> None:
    """One reward model per half of the prompts of tulu1 and pandalm together; each gives the gaps of the other half."""
    both = [*sets["tulu1"], *sets["pandalm"]]
    for half in (0, 1):
        model = reward_model(start, [p for p in both if fold(p, 2) != half], out / str(half), settings.rate, settings.seed, settings.steps)
        for name in ("tulu1", "pandalm"):
            gaps(model, [pair for pair in sets[name] if fold(pair, 2) == half], out / str(half) / f"{name}.json")
        gaps(model, sets["llmbar"], out / str(half) / "llmbar.json")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all stages share."""

    rate: float
    seed: int
    steps: int = 0
    """Above 0 cuts each training short."""


def run(data: Path, out: Path, base: Path, *, only: int | None, extra: int, seed: int, steps: int = 0, tokens: tuple[int, int]) -> str:
    """All stages; returns the tables."""
    english, instructions = tokens
    sft = start(data, out / "start", base, english_tokens=english, sft_tokens=instructions, seed=seed, steps=steps)
    sets, abouts = read_sets(data, out, load_tokenizer(sft))
    write_atomic(out / "rows.json", json.dumps(abouts, indent=1))
    hh = sets.pop("hh")
    settings = Settings(rate=choose_rate(sft, hh, out / "rates", seed, steps), seed=seed, steps=steps)
    print(f"reward models with learning rate {settings.rate:g}")
    few = out / f"rates/{settings.rate:g}"  # trained on RATE_PAIRS pairs, none of them of fold 0: a point of the learning curve
    gaps(few, [pair for pair in hh if fold(pair) == 0], out / f"curve/{RATE_PAIRS}/0/gaps.json")
    crossed(sft, hh, out / "folds", range(FOLDS) if only is None else [only], settings)
    if only is not None:
        return f"fold {only} is done: {out / 'folds' / str(only)}"
    for name, pairs in sets.items():
        gaps(out / "folds/0", pairs, out / f"harmless/{name}.json")
    prefer(sft, hh, out / "dpo", settings)
    helpfulness(sft, sets, out / "helpful", settings)
    some = range(min(extra, FOLDS))
    crossed(base, hh, out / "unread", some, settings)
    for share in (0.5, 0.25):
        crossed(sft, hh, out / f"curve/{share:g}", some, settings, share)
    return report(out)


def read_sets(data: Path, out: Path, tokenizer: Tokenizer) -> tuple[dict[str, list[Pair]], list[dict[str, Any]]]:
    """The pairs of every set, kept for the report, and what became of their files' rows."""
    sets, abouts = {}, []
    for name, (file, response_most, column, verdict) in SETS.items():
        path = data / f"preference/{file}.jsonl.gz"
        pairs, about = read_pairs(path, tokenizer, response_most, verdict)
        if name != "hh":  # tulu1 and pandalm share questions, written with other blanks: both go into the same half
            pairs = [replace(p, text=replace(p.text, group=prompt_key(p.text.group))) for p in pairs]
        rows = jsonl(path)
        notes = [[rows[p.line - 1].get(one, "") for one in column] for p in pairs]
        if name == "llmbar":  # its other subsets are human judgements on other sets' questions
            usable = [n for n, (subset,) in enumerate(notes) if subset.startswith("LLMBar")]
            pairs, notes = [pairs[n] for n in usable], [notes[n] for n in usable]
        keep(pairs, notes, out / f"pairs/{name}.json")
        sets[name] = pairs
        abouts.append(about | {"pairs": len(pairs)})
    return sets, abouts


def keep(pairs: Sequence[Pair], notes: Sequence[Any], path: Path) -> None:
    """What the report reads: group, first, second, preferred, and columns of the file."""
    rows = [[p.text.group, p.text.first, p.text.second, p.text.preferred, note] for p, note in zip(pairs, notes, strict=True)]
    write_atomic(path, json.dumps(rows))


def rehearse(folder: Path) -> None:
    """Two steps of each stage on made-up files."""
    data = made_up(folder / "data")
    said = run(data, folder / "out", base_model_dir(), only=None, extra=1, seed=0, steps=2, tokens=(6_000, 4_000))
    assert "| reward model |" in said and "| bag of words |" in said
    assert (folder / "out/reliability.svg").exists()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("TRUELINE_DATA", ""), help="folder of data sets; default: TRUELINE_DATA")
    parser.add_argument("--out", type=Path, required=True, help="run folder; the same command resumes")
    parser.add_argument("--base", type=Path, default=base_model_dir(), help="model to start from")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="train this fold's reward model only")
    parser.add_argument("--extra", type=int, default=2, help="folds of the comparisons with the base model and with fewer pairs")
    parser.add_argument("--english_tokens", type=float, default=1.1e6)
    parser.add_argument("--sft_tokens", type=float, default=3e5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokens = (int(args.english_tokens), int(args.sft_tokens))
    print(run(data_folder(args.data), args.out, args.base, only=args.fold, extra=args.extra, seed=args.seed, tokens=tokens))


if __name__ == "__main__":
    main()
