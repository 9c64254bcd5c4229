"""What healthy and sick curves look like: a tiny model, trained well and in six wrong ways, and the plots of what was logged.

    python -m recipes.sick_curves --out out/curves --plots docs/stages

The language is made-up words: "abc=" asks, a word of two to nine letters answers. A decoder of 0.1M parameters learns to write such
words; a rule then wants many a's among the letters. CASES holds the settings of every run, ILLNESSES says which healthy run a sick one is
drawn beside.

Cost: a minute or two of one core. Draws one SVG per illness, healthy above sick, and prints which warnings each run gave. The same
command resumes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trueline.align.judges import RuleJudge
from trueline.align.rollouts import Rollouts
from trueline.models.config import DecoderConfig
from trueline.models.files import new_model, save_model
from trueline.objectives.dpo import DPO
from trueline.objectives.grpo import GRPO
from trueline.objectives.kl import KLPenalty
from trueline.objectives.ppo import PPO
from trueline.objectives.sft import SFT
from trueline.objectives.updates import Update
from trueline.records import TEXT, Comparison, Conversation, Message, Messages, Ranking
from trueline.run import read_lines
from trueline.serve.engine import Engine
from trueline.study.page import INK
from trueline.tokens import train_tokenizer
from trueline.train import train

LETTERS = "abcdefgh"
HEALTHY, SICK = "#2f7d4f", "#c0392b"
ACROSS = 4
"""Plots beside one another."""


def word(rng: np.random.Generator, shortest: int = 2, longest: int = 9, letters: str = LETTERS) -> str:
    """Letters, all as likely."""
    return "".join(rng.choice(list(letters), size=int(rng.integers(shortest, longest + 1))))


def asked(rng: np.random.Generator) -> Messages:
    """A prompt."""
    return (Message(role=TEXT, content=word(rng, 3, 3) + "=", train=False),)


def said(text: str) -> Messages:
    return (Message(role=TEXT, content=text),)


def share_of_a(prompt: Messages, response: Messages) -> float:
    """The rule as it is meant: the share of the letters that are an a."""
    text = response[0].content
    return text.count("a") / max(1, len(text))


def number_of_a(prompt: Messages, response: Messages) -> float:
    """The rule as somebody in a hurry writes it: a long word has more of them."""
    return response[0].content.count("a") / 4


def always_one(prompt: Messages, response: Messages) -> float:
    """A judge that sees no difference."""
    return 1.0


def words(count: int, seed: int, letters: str = "abcd") -> list[Conversation]:
    """Prompts and their answers; supervised tuning is to teach that half of the letters do."""
    rng = np.random.default_rng(seed)
    return [Conversation(messages=(*asked(rng), *said(word(rng, letters=letters)))) for _ in range(count)]


def prompts(count: int) -> list[Conversation]:
    rng = np.random.default_rng(1)
    return [Conversation(messages=asked(rng)) for _ in range(count)]


def pairs(count: int, seed: int) -> list[Comparison]:
    """Two words, the one with more a's preferred."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        prompt, both = asked(rng), sorted((word(rng), word(rng)), key=lambda text: -text.count("a") / len(text))
        if both[0].count("a") / len(both[0]) > both[1].count("a") / len(both[1]):
            found.append(Comparison(prompt=prompt, responses=(said(both[0]), said(both[1])), judgement=Ranking((0, 1))))
    return found


def start(folder: Path, steps: int) -> Path:
    """A model that writes words, and its tokenizer."""
    if (folder / "words" / "finished.json").is_file():
        return folder / "words"
    tokenizer = train_tokenizer([LETTERS], vocab_size=260)
    config = DecoderConfig(
        model_type="qwen3", vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=64, qk_norm=True,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_id, eos_token_id=tokenizer.stop_ids[0],
    )  # fmt: skip
    save_model(new_model(config, 0), folder / "random")
    tokenizer.save(folder / "random")
    return train(
        SFT(), folder / "random", words(2048, 0, LETTERS), out=folder / "words", max_steps=steps, per_device_train_batch_size=32,
        learning_rate=3e-3, lr_scheduler_type="constant", warmup_steps=10, max_length=32, logging_steps=10, save_steps=0,
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One training run: a method, what it learns from, and its settings."""

    objective: Any
    rule: Any = None
    """Of methods that draw their own responses."""
    rows: int = 64
    seed: int = 3
    options: dict[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        if self.rule is not None:
            return {"rows": prompts(self.rows), "rollouts": Rollouts(partial(Engine, max_batch=64), judge=RuleJudge(self.rule))}
        make: Any = words if isinstance(self.objective, SFT) else pairs
        return {"rows": make(self.rows, self.seed), "eval_rows": make(64, 2)}


DRAWN: dict[str, Any] = {
    "max_steps": 40, "num_generations": 4, "per_device_train_batch_size": 8, "max_length": 32, "max_completion_length": 24,
    "learning_rate": 6e-4, "lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1, "save_steps": 0,
}  # fmt: skip
READ: dict[str, Any] = {
    "max_steps": 40, "per_device_train_batch_size": 16, "max_length": 32, "learning_rate": 2e-4, "lr_scheduler_type": "constant",
    "warmup_steps": 0, "logging_steps": 1, "eval_steps": 4, "save_steps": 0,
}  # fmt: skip
POLICY = GRPO(kl=KLPenalty(kl_coef=0.2, kl_estimator="k3"))
FREE = GRPO(kl=KLPenalty(kl_coef=0.0, kl_estimator="k3"))
CRITIC = PPO(update=Update(num_iterations=2), kl=KLPenalty(kl_coef=0.05))

CASES: dict[str, Case] = {
    "grpo": Case(POLICY, share_of_a, options=DRAWN),
    "ppo": Case(CRITIC, share_of_a, options=DRAWN | {"max_steps": 60}),
    "dpo": Case(DPO(), rows=640, options=READ),
    "sft": Case(SFT(), rows=640, options=READ | {"learning_rate": 1e-3}),
    "rate": Case(CRITIC, share_of_a, options=DRAWN | {"max_steps": 60, "learning_rate": 0.06}),
    "gamed": Case(FREE, number_of_a, options=DRAWN),
    "equal": Case(POLICY, always_one, options=DRAWN),
    "cut": Case(POLICY, share_of_a, options=DRAWN | {"max_completion_length": 1}),
    "both_fall": Case(DPO(), rows=32, options=READ | {"learning_rate": 2e-3}),
    "by_heart": Case(SFT(), rows=16, options=READ | {"learning_rate": 1e-2}),
}


@dataclass(frozen=True)
class Illness:
    """A sick run beside its healthy twin."""

    twin: str
    title: str
    metrics: tuple[str, ...]


ILLNESSES = {
    "rate": Illness("ppo", "learning rate 100 times too high", (
        "reward", "objective/kl", "policy/entropy_avg", "policy/clipfrac_avg",
        "val/ratio", "loss/value_avg", "grad_norm", "completions/mean_length",
    )),
    "gamed": Illness("grpo", "a rule that likes length, and kl_coef 0", (
        "reward", "completions/mean_length", "completions/clipped_ratio", "policy/entropy_avg",
    )),
    "equal": Illness("grpo", "all rewards equal", ("reward", "reward_std", "frac_reward_zero_std", "grad_norm")),
    "cut": Illness("grpo", "max_completion_length far too short", (
        "reward", "completions/clipped_ratio", "completions/mean_length", "reward_std",
    )),
    "both_fall": Illness("dpo", "few pairs, too often, too fast", (
        "rewards/margins", "rewards/chosen", "rewards/rejected", "rewards/accuracies",
        "eval_loss", "eval_rewards/accuracies", "loss", "grad_norm",
    )),
    "by_heart": Illness("sft", "few rows, too often, too fast", ("loss", "eval_loss", "mean_token_accuracy", "eval_mean_token_accuracy")),
}  # fmt: skip


def run(out: Path, name: str, *, taught: int = 150, **options: Any) -> Path:
    """Train one case; the run's folder."""
    case = CASES[name]
    data = case.data()
    return train(case.objective, start(out, taught), data.pop("rows"), out=out / name, **data, **(case.options | options))


def curve(folder: Path, metric: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that have it."""
    found = [(line["step"], line[metric]) for line in read_lines(folder / "metrics.jsonl") if metric in line]
    return [step for step, _ in found], [value for _, value in found]


def draw(out: Path, name: str, file: Path) -> None:
    """Healthy above sick, four metrics to a pair of rows, the same scale above and below."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    illness = ILLNESSES[name]
    parts = [illness.metrics[i : i + ACROSS] for i in range(0, len(illness.metrics), ACROSS)]
    style: dict[str, Any] = {"font.size": 8, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK}
    style |= {"svg.fonttype": "none", "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure, grid = pyplot.subplots(2 * len(parts), ACROSS, figsize=(8.8, 2.9 * len(parts)), layout="constrained", squeeze=False)
        for number, part in enumerate(parts):
            for column, metric in enumerate(part):
                both = grid[2 * number : 2 * number + 2, column]
                values = [curve(out / run_name, metric) for run_name in (illness.twin, name)]
                for axes, (steps, ys), colour in zip(both, values, (HEALTHY, SICK), strict=True):
                    axes.plot(steps, ys, color=colour, linewidth=1.2)
                    axes.set_ylim(*limits([y for _, line in values for y in line]))
                    axes.spines[["top", "right"]].set_visible(False)
                    axes.tick_params(colors=INK, labelsize=7)
                    axes.locator_params(nbins=4)
                    if not ys:
                        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center")
                both[0].set_title(metric, fontsize=8)
                both[0].tick_params(labelbottom=False)
            grid[2 * number, 0].set_ylabel("healthy", color=HEALTHY)
            grid[2 * number + 1, 0].set_ylabel("sick", color=SICK)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        figure.suptitle(f"{illness.title} (below), against a healthy run (above)", fontsize=9)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    file.write_text(compact(file.read_text(encoding="utf-8")), encoding="utf-8")


def compact(svg: str) -> str:
    """A drawing of a third of the size, in a grey that is read on light and on dark: an image cannot take the page's colour."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", re.sub(r"(\.\d)\d{3,}", r"\1", svg))
    return re.sub(r">\s+<", "><", re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", svg)).replace(INK, "#7d8590") + "\n"


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Room for all of them."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1
    return low - room, high + room


def report(out: Path, names: Sequence[str]) -> str:
    """Which warnings each run gave."""
    lines = ["| run | warnings | reward, first and last |", "|---|---|---|"]
    for name in names:
        events = [line["warning"] for line in read_lines(out / name / "events.jsonl") if "warning" in line]
        reward = curve(out / name, "reward")[1]
        ends = f"{reward[0]:.2f}, {reward[-1]:.2f}" if reward else ""
        lines.append(f"| {name} | {', '.join(events) or 'none'} | {ends} |")
    return "\n".join(lines)


def rehearse(folder: Path) -> None:
    """Two of the runs, a few steps each, and their plot."""
    for name in ("grpo", "equal"):
        run(folder, name, taught=4, max_steps=4, per_device_train_batch_size=2)
    draw(folder, "equal", folder / "equal.svg")
    assert "rewards-all-equal" in report(folder, ["equal"]) and (folder / "equal.svg").stat().st_size < 60_000


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; the same command resumes")
    parser.add_argument("--plots", type=Path, required=True, help="folder of the plots")
    args = parser.parse_args()
    for name in CASES:
        run(args.out, name)
    for name in ILLNESSES:
        draw(args.out, name, args.plots / f"curves_{name}.svg")
    print(report(args.out, list(CASES)))


if __name__ == "__main__":
    main()
