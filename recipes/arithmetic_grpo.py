"""Addition from right and wrong alone: a small model that was taught sums until it gets three in ten right learns the rest by GRPO.

    python -m recipes.arithmetic_grpo --out out/arithmetic
    python -m recipes.arithmetic_grpo --out out/arithmetic-1 --seed 1

Sums of two numbers of two digits, as text: "58+78=" and "136". A Qwen3-style model of 1.1M parameters with random weights, one token
per digit. Supervised tuning on 7,600 of the 8,100 sums goes on in pieces until 30% of drawn answers to the 500 held-out ones are right;
then GRPO on the same 7,600 prompts without their answers: 1 for an exact match, 0 for anything else.

Cost: SFT about one minute, GRPO two and a half, of one core. Prints a Markdown table: exact match on the held-out sums, drawn at
temperature 1 and greedy, after each stage, and what each took on the wall and of the processor. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from trueline.align.judges import RuleJudge
from trueline.align.rollouts import Rollouts
from trueline.models.config import DecoderConfig
from trueline.models.files import load_model, new_model, save_model
from trueline.objectives.grpo import GRPO, GroupLoss
from trueline.objectives.kl import KLPenalty
from trueline.objectives.sft import SFT
from trueline.objectives.updates import Update
from trueline.records import TEXT, Conversation, Message, Messages, Sampling
from trueline.run import read_json
from trueline.serve.engine import Engine
from trueline.tokens import encode_prompt, load_tokenizer, train_tokenizer
from trueline.train import train

HELD = 500
TAUGHT = 0.30
"""Supervised tuning ends once this share of drawn answers is right."""
ENGINE = partial(Engine, max_batch=512)
Sum = tuple[int, int]
Rule = Callable[[Messages, Messages], float]


def sums() -> tuple[list[Sum], list[Sum]]:
    """(training, held out), the same for every seed."""
    everything = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    order = np.random.default_rng(0).permutation(len(everything))
    shuffled = [everything[i] for i in order]
    return shuffled[HELD:], shuffled[:HELD]


def prompt(one: Sum) -> Messages:
    """As the model reads it."""
    return (Message(role=TEXT, content=f"{one[0]}+{one[1]}=", train=False),)


def answered(one: Sum) -> Conversation:
    """With its answer."""
    return Conversation(messages=(*prompt(one), Message(role=TEXT, content=str(sum(one)))))


def is_right(asked: Messages, response: Messages) -> float:
    """The verifiable reward: 1 for an exact match."""
    a, b = asked[0].content.removesuffix("=").split("+")
    return float(response[0].content == str(int(a) + int(b)))


def start(folder: Path, seed: int) -> Path:
    """A model with random weights, and its tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        tokenizer = train_tokenizer((f"{a}+{b}={a + b}" for a, b in sums()[0]), vocab_size=260)
        config = DecoderConfig(
            model_type="qwen3", vocab_size=tokenizer.vocab_size, hidden_size=128, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=64, qk_norm=True,
            tie_word_embeddings=True, pad_token_id=tokenizer.pad_id, eos_token_id=tokenizer.stop_ids[0],
        )  # fmt: skip
        save_model(new_model(config, seed), folder)
        tokenizer.save(folder)
    return folder


def exact_match(folder: Path, held: list[Sum]) -> tuple[float, float]:
    """(drawn at temperature 1, greedy): the share of held-out sums that are right."""
    engine = ENGINE(load_model(folder), load_tokenizer(folder))
    prompts = [encode_prompt(prompt(one), engine.tokenizer) for one in held]
    found = []
    for temperature in (1.0, 0.0):
        drawn = engine.sample(prompts, Sampling(max_new_tokens=6, temperature=temperature, seed=1))
        found.append(float(np.mean([engine.text(group[0]) == str(sum(one)) for group, one in zip(drawn, held, strict=True)])))
    return found[0], found[1]


def teach(out: Path, seed: int, held: list[Sum], *, piece: int, most: int, batch: int) -> Path:
    """Supervised tuning, piece by piece, until TAUGHT is reached."""
    folder, rows = out / "sft", [answered(one) for one in sums()[0]]
    done = read_json(folder / "finished.json")["steps"] if (folder / "finished.json").is_file() else 0
    for steps in range(max(piece, done), most + 1, piece):
        train(
            SFT(), start(out / "random", seed), rows, out=folder, max_steps=steps, save_steps=piece, save_total_limit=1, seed=seed,
            per_device_train_batch_size=batch, learning_rate=1e-3, lr_scheduler_type="constant", warmup_steps=20, max_length=32,
            logging_steps=piece,
        )  # fmt: skip
        drawn, greedy = exact_match(folder, held)
        print(f"SFT, {steps} steps: {drawn:.1%} drawn, {greedy:.1%} greedy", flush=True)
        if drawn >= TAUGHT:
            break
    return folder


def reinforce(out: Path, model: Path, seed: int, rule: Rule, *, steps: int, prompts: int, rate: float) -> Path:
    """GRPO: no answers, only right or wrong."""
    objective = GRPO(
        update=Update(num_iterations=1), kl=KLPenalty(kl_coef=0.0, kl_estimator="k3"),
        group=GroupLoss(loss_type="dapo", drop_flat_groups=True),
    )  # fmt: skip
    asked = [Conversation(messages=prompt(one)) for one in sums()[0]]
    return train(
        objective, model, asked, out=out / "grpo", rollouts=Rollouts(ENGINE, judge=RuleJudge(rule, "exact match")), seed=seed,
        max_steps=steps, per_device_train_batch_size=prompts, num_generations=8, max_completion_length=6, max_length=32,
        learning_rate=rate, lr_scheduler_type="constant", warmup_steps=5, logging_steps=10, save_steps=50,
    )  # fmt: skip


def clocks() -> np.ndarray:
    """Seconds on the wall, and of the processor: equal on a machine that does nothing else."""
    return np.array([time.monotonic(), time.process_time()])


def run(
    out: Path, seed: int, *, steps: int = 300, prompts: int = 32, rate: float = 2e-4, piece: int = 40, most: int = 4000,
    batch: int = 64, tests: int = HELD, rule: Rule = is_right,
) -> str:  # fmt: skip
    """Both stages, and the table."""
    held, lines = sums()[1][:tests], ["| stage | exact match, drawn | greedy | seconds | of the processor |", "|---|---|---|---|---|"]
    began = clocks()
    taught = teach(out, seed, held, piece=piece, most=most, batch=batch)
    spent = [clocks() - began]
    began = clocks()
    model = reinforce(out, taught, seed, rule, steps=steps, prompts=prompts, rate=rate)
    spent.append(clocks() - began)
    found = {"SFT": exact_match(taught, held), f"GRPO, {steps} steps": exact_match(model, held)}
    for (stage, (drawn, greedy)), (wall, processor) in zip(found.items(), spent, strict=True):
        lines.append(f"| {stage} | {drawn:.1%} | {greedy:.1%} | {wall:.0f} | {processor:.0f} |")
    (out / "result.json").write_text(json.dumps({"seed": seed, "found": found, "seconds": [list(s) for s in spent]}), encoding="utf-8")
    return "\n".join([*lines, f"\n{len(held)} held-out sums, seed {seed}"])


def rehearse(folder: Path) -> None:
    """Two steps of each stage; by then nothing is right, so another rule tells the answers apart."""
    small = {"prompts": 4, "piece": 2, "most": 2, "batch": 8, "tests": 8}
    assert "| GRPO, 2 steps |" in run(folder, 0, steps=2, rule=lambda asked, response: len(set(response[0].content)), **small)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run folder; the same command resumes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of GRPO")
    args = parser.parse_args()
    print(run(args.out, args.seed, steps=args.steps))


if __name__ == "__main__":
    main()
