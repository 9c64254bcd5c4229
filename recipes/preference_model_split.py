"""Does a policy please a preference model, or people? Two models on halves of the preferences: one trains the policy, both judge it.

    TRUELINE_DATA=DATA python -m recipes.preference_model_split --preferences out/preferences --out out/split

The robustness experiment of Bai et al. (2204.05862, section 4.2) at a small scale. The preferences are those of helpfulness that
recipes.human_preferences reads (tulu1 and pandalm), split by question, so that no question lies in both halves.

    all of a half    the two models that recipes.human_preferences has trained (out/preferences/helpful/0 and 1)
    100 pairs        two models on 100 pairs of each half, trained here from the same start

    best of n        n of 32 answers of the start model to each of 40 instructions, chosen by one model and scored by both; each model
                     of a size is the train model once. KL log n - (n-1)/n; the expectation over all choices of n of the 32
    rloo             a policy trained against the larger train model (--steps updates of 32 answers), measured on the way: 4 answers to each
                     of the 40 instructions, its KL exact per token given what was drawn

No instruction is one of the preferences' questions. Scores are less the mean of the start's answers and in their standard deviations, model
by model, since two models have no common scale. Mean and standard error over instructions. A gain that the test model does not share is
over-optimisation; what both halves got wrong alike no split can show.
Cost: about six minutes on one core beyond recipes.human_preferences. The same command resumes. Prints the table, writes split.svg.
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

from recipes.human_preferences import SETS, Pair, fold, read_pairs, reward_model
from recipes.human_preferences_start import data_folder, jsonl, made_up, prompt_key
from trueline.align.best_of_n import expected_best, kl_bound
from trueline.align.group import Group, sample_row
from trueline.align.rollouts import Rollouts, rollouts
from trueline.evals.interval import normal_mean
from trueline.models.files import load_model, load_scalar_model
from trueline.models.scorer import RewardScorer
from trueline.objectives.kl import KLPenalty
from trueline.objectives.rloo import RLOO
from trueline.quickstart.base_model import base_model_dir
from trueline.records import Conversation, Message, Messages, Sampling
from trueline.serve.engine import Engine
from trueline.store import write_atomic
from trueline.study.measure import conditional_kl
from trueline.study.page import INK, new_figure, to_svg
from trueline.tokens import Tokenizer, load_tokenizer
from trueline.tokens.encode import encode_prompt
from trueline.train import train

ASKED, TRAINED_ON, DRAWN, TOKENS, SMALL = 40, 160, 32, 40, 100
LONGEST = 48
"""Tokens of an instruction with its template."""
NS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done."""

    asked: int = ASKED
    drawn: int = DRAWN
    small: int = SMALL
    steps: int = 30
    every: int = 10
    rm_steps: int = 0
    """Above 0 cuts each reward model's training short."""


def instructions(data: Path, questions: set[str], tokenizer: Tokenizer) -> list[Messages]:
    """Short instructions that are none of the preferences' questions, in the file's order."""
    found = []
    for line in jsonl(data / "instructions/alpaca_en_demo.jsonl.gz"):
        prompt = (Message(role="user", content=line["instruction"]),)
        if not line["input"] and prompt_key(line["instruction"]) not in questions and len(encode_prompt(prompt, tokenizer)) <= LONGEST:
            found.append(prompt)
    return found


def small_models(pairs: Sequence[Pair], start: Path, out: Path, rate: float, scale: Scale) -> list[Path]:
    """Models of `scale.small` pairs of each half; model h has not seen half h, and starts from a head of its own."""
    found = []
    for half in (0, 1):
        inside = [pair for pair in pairs if fold(pair, 2) != half]
        order = np.random.default_rng(half).permutation(len(inside))[: scale.small]
        found.append(reward_model(start, [inside[i] for i in order], out / f"small/{half}", rate, half, scale.rm_steps))
    return found


def answers(model: Path, prompts: Sequence[Messages], n: int, tokenizer: Tokenizer) -> list[Group]:
    """n answers to each prompt."""
    sampling = Sampling(n=n, temperature=1.0, max_new_tokens=TOKENS, seed=0)
    engine = Engine(load_model(model), tokenizer, max_batch=128)
    return rollouts(prompts, engine, None, sampling, encode=lambda prompt: encode_prompt(prompt, tokenizer), decode=engine.text)


def scores(models: Sequence[Path], groups: Sequence[Group]) -> list[list[list[float]]]:
    """By each model [M][P][N]."""
    rows = [sample_row(group, range(len(group))) for group in groups]
    return [[score_N.tolist() for score_N in RewardScorer(load_scalar_model(model)).score(rows)] for model in models]


def once(path: Path, compute: Any) -> Any:
    """What was computed before, or now."""
    if not path.exists():
        write_atomic(path, json.dumps(compute()))
    return json.loads(path.read_text(encoding="utf-8"))


def in_deviations(score_PN: np.ndarray, base_PN: np.ndarray) -> np.ndarray:
    """Less the start's mean, in its standard deviations."""
    return (score_PN - base_PN.mean()) / base_PN.std()


def best_of_n(train_PN: np.ndarray, test_PN: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Per prompt the expected scores of the best of n by the train model: by itself, and by the other."""
    by_itself = [expected_best(a_N, n) for a_N in train_PN]
    return np.array(by_itself), np.array([expected_best(a_N, n, b_N) for a_N, b_N in zip(train_PN, test_PN, strict=True)])


def optimised(start: Path, judge: Path, prompts: Sequence[Messages], out: Path, tokenizer: Tokenizer, scale: Scale) -> Path:
    """A policy against a train model, with what it was on the way."""
    return train(
        RLOO(kl=KLPenalty(kl_coef=0.01)), start, [Conversation(messages=prompt) for prompt in prompts], out=out, tokenizer=tokenizer,
        rollouts=Rollouts(Engine, reward=RewardScorer(load_scalar_model(judge))), max_steps=scale.steps, save_steps=scale.every,
        save_total_limit=0, per_device_train_batch_size=8, num_generations=4, max_completion_length=TOKENS, learning_rate=1e-4,
        lr_scheduler_type="constant", warmup_ratio=0.1, logging_steps=5, seed=0,
    )  # fmt: skip


def on_the_way(policy: Path, start: Path, models: Sequence[Path], prompts: Sequence[Messages], tokenizer: Tokenizer) -> dict[str, Any]:
    """Scores by both models [2][P][4] and KL [P][4] of a policy."""
    groups = answers(policy, prompts, 4, tokenizer)
    kl, _ = conditional_kl(load_model(policy), load_model(start), [sample_row(group, range(4)) for group in groups], 1.0, 8192)
    lengths = float(np.mean([len(sample.ids) for group in groups for sample in group.samples]))
    return {"scores": scores(models, groups), "kl": kl, "tokens": lengths, "says": groups[0].responses[0][0].content}


def run(data: Path, preferences: Path, out: Path, scale: Scale) -> str:
    """All stages; the table."""
    start = preferences / "start/sft"
    tokenizer = load_tokenizer(str(start))
    pairs = [pair for name in ("tulu1", "pandalm") for pair in read_helpful(data, name, tokenizer)]
    prompts = instructions(data, {pair.text.group for pair in pairs}, tokenizer)
    asked, others = prompts[: scale.asked], prompts[scale.asked : scale.asked + TRAINED_ON]
    rates = json.loads((preferences / "rates/rates.json").read_text(encoding="utf-8"))
    rate = float(min(rates, key=rates.get))
    whole = "all of a half"
    sizes = {
        whole: [preferences / f"helpful/{half}" for half in (0, 1)],
        f"{scale.small} pairs": small_models(pairs, start, out, rate, scale),
    }
    groups: list[Group] = []

    def of_start(models: Sequence[Path]) -> Any:
        groups.extend([] if groups else answers(start, asked, scale.drawn, tokenizer))
        return scores(models, groups)

    found: dict[str, dict[str, list[Any]]] = {}
    for size, models in sizes.items():
        base = np.array(once(out / f"start-{size.replace(' ', '-')}.json", lambda models=models: of_start(models)))
        lines = found[size] = {"best of n": [], "rloo": []}
        scaled = [in_deviations(one, one) for one in base]
        lines["agree"] = [float(np.corrcoef(scaled[0].ravel(), scaled[1].ravel())[0, 1])]
        for n in (n for n in NS if n <= scale.drawn):
            both = [best_of_n(scaled[k], scaled[1 - k], n) for k in (0, 1)]
            train_P, test_P = (np.mean([one[side] for one in both], axis=0) for side in (0, 1))
            lines["best of n"].append((f"{n}", kl_bound(n), 0.0, train_P, test_P))
        if size != whole:
            continue
        policy = optimised(start, models[0], others, out / f"rloo-{size.replace(' ', '-')}", tokenizer, scale)
        for step in range(scale.every, scale.steps + 1, scale.every):
            folder = policy if step == scale.steps else policy / f"checkpoint-{step}"
            kept = out / f"rloo-{size.replace(' ', '-')}-{step}.json"
            one = once(kept, lambda folder=folder, models=models: on_the_way(folder, start, models, asked, tokenizer))
            by = [in_deviations(np.array(score), start_PN).mean(1) for score, start_PN in zip(one["scores"], base, strict=True)]
            start_by = [in_deviations(start_PN, start_PN).mean(1) for start_PN in base]
            kl = normal_mean(np.array(one["kl"]).mean(1))
            lines["rloo"].append((f"{step}", kl.estimate, kl.se, by[0] - start_by[0], by[1] - start_by[1]))
    write_atomic(out / "split.svg", picture(found))
    return table(found, len(pairs))


def read_helpful(data: Path, name: str, tokenizer: Tokenizer) -> list[Pair]:
    """The pairs of a set, as recipes.human_preferences reads and groups them."""
    file, response_most, _, verdict = SETS[name]
    pairs, _ = read_pairs(data / f"preference/{file}.jsonl.gz", tokenizer, response_most, verdict)
    return [replace(p, text=replace(p.text, group=prompt_key(p.text.group))) for p in pairs]


def table(found: dict[str, dict[str, list[Any]]], pairs: int) -> str:
    """A line per policy."""
    lines = [f"{pairs} pairs in both halves"]
    for size, kinds in found.items():
        lines += [f"\n{size}: the two models' scores of the start's answers correlate by {kinds['agree'][0]:.2f}\n"]
        lines += ["| policy | KL, nats | gain by the train model | by the test model | test less train | test / train |", "|---" * 6 + "|"]
        for kind in ("best of n", "rloo"):
            for name, kl, kl_se, train_P, test_P in kinds[kind]:
                a, b, gap = normal_mean(train_P), normal_mean(test_P), normal_mean(test_P - train_P)
                what = f"best of {name}" if kind == "best of n" else f"rloo, {name} updates"
                share = f"{b.estimate / a.estimate:.2f}" if abs(a.estimate) > 2 * a.se else ""
                moved = f"{kl:.2f} ± {kl_se:.2f}" if kl_se else f"{kl:.2f}"
                cells = [f"{one.estimate:.2f} ± {one.se:.2f}" for one in (a, b, gap)]
                lines.append(f"| {what} | {moved} | " + " | ".join(cells) + f" | {share} |")
    return "\n".join(lines)


def picture(found: dict[str, dict[str, list[Any]]]) -> str:
    """Gains over sqrt(KL): the train model solid, the test model dashed."""
    figure, grid = new_figure(2)
    for axes, (size, kinds) in zip(grid, found.items(), strict=True):
        for kind, colour in (("best of n", "#4c78d0"), ("rloo", "#d98a29")):
            x = np.sqrt(np.maximum(0.0, [0.0, *(kl for _, kl, *_ in kinds[kind])]))
            for side, style, who in ((3, "-", "train"), (4, "--", "test")):
                mean = [0.0, *(float(np.mean(one[side])) for one in kinds[kind])]
                axes.plot(x, mean, style, color=colour, marker="o", ms=3, lw=1.3, label=f"{kind}, {who} model")
        axes.axhline(0, color=INK, lw=0.6)
        axes.set_title(size, fontsize=9, color=INK)
        axes.set_xlabel("sqrt(KL from the start)")
    grid[0].set_ylabel("gain (sd of the start)")
    grid[0].legend(frameon=False, fontsize=7, labelcolor=INK)
    return to_svg(figure).replace("currentColor", "#777")


def rehearse(folder: Path) -> None:
    """Made-up files, two updates."""
    data, base, out = made_up(folder / "data"), base_model_dir(), folder / "preferences"
    (out / "start").mkdir(parents=True)
    (out / "start/sft").symlink_to(base)
    (out / "rates").mkdir()
    (out / "rates/rates.json").write_text('{"0.0001": 0.6, "0.0002": 0.7}', encoding="utf-8")
    scale = Scale(asked=3, drawn=4, small=8, steps=2, every=1, rm_steps=1)
    pairs = [pair for name in ("tulu1", "pandalm") for pair in read_helpful(data, name, load_tokenizer(str(base)))]
    for half, model in enumerate(small_models(pairs, base, folder / "made", 1e-4, scale)):
        (out / "helpful").mkdir(exist_ok=True)
        (out / f"helpful/{half}").symlink_to(model)
    said = run(data, out, folder / "out", scale)
    assert "| best of 4 |" in said and "| rloo, 2 updates |" in said and (folder / "out/split.svg").exists(), said


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preferences", type=Path, required=True, help="where recipes.human_preferences has written")
    parser.add_argument("--out", type=Path, default=Path("out/split"))
    parser.add_argument("--steps", type=int, default=30)
    words = parser.parse_args()
    data = data_folder(os.environ.get("TRUELINE_DATA", ""))
    print(run(data, words.preferences, words.out, Scale(steps=words.steps)))


if __name__ == "__main__":
    main()
