"""On-policy training against TRL: PPO, RLOO and GRPO on the same weights, prompts and numbers of samples.

Claim: an iteration (sample, score, learn) takes a fraction of TRL's time on a CPU, because prompts are not padded, the
samples of a prompt share its cache, the sampler's own log-probabilities are used, and only responses see the head.

    python bench/rollouts.py [--methods ppo ppo_shared rloo grpo] [--repeats 3] [--iterations 3] [--quick]
    python bench/rollouts.py --threads 1 --clock cpu      CPU seconds of one thread: for a machine that does other things
    python bench/rollouts.py --trl_ppo FOLDER             where the last TRL with a PPO trainer lies (pip install
                                                          --no-deps --target FOLDER trl==1.10.0); without it PPO is left out

32 samples of 48 new tokens per iteration, temperature 1, policy, reference and reward model of size S (training.py) with
random weights, float32. PPO: 32 prompts, 4 epochs of one minibatch, GAE, a critic of its own of the policy's size
(`ppo_shared`: a head on the policy's trunk, against the same peer, which has no such option). RLOO: 16 prompts x 2 with a
reference; GRPO: 4 prompts x 8 without one, as the peer's comes. Both sides as many optimizer steps per iteration.
Every measurement is a process of its own, in turns. Timed: from the end of the first iteration to the end of the last.
The peer runs as it comes (stock), and with set_float32_matmul_precision("medium").
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from training import measure, prepared

SAMPLES, NEW_TOKENS, EPOCHS = 32, 48, 4
GENERATIONS = {"ppo": 1, "ppo_shared": 1, "rloo": 2, "grpo": 8}
LEARNING_RATE = 1e-6


def peer(task: dict[str, Any], clock: Callable[[], float]) -> list[float]:
    """TRL's iterations: when each one ended."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

    if "medium" in task["side"]:
        torch.set_float32_matmul_precision("medium")
    folder, method = Path(task["folder"]), task["method"].removesuffix("_shared")
    ends: list[float] = []

    class Note(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(clock())

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    lm = dict(dtype=torch.float32, attn_implementation="sdpa")
    policy = AutoModelForCausalLM.from_pretrained(folder, **lm)
    judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **lm)
    prompts = [json.loads(line)["prompt"] for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as out:
        common: dict[str, Any] = dict(
            output_dir=out, learning_rate=LEARNING_RATE, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
            logging_steps=1, gradient_checkpointing=False, disable_tqdm=True, seed=0, temperature=1.0,
            per_device_train_batch_size=SAMPLES,
        )  # fmt: skip
        if method == "ppo":
            sys.path.insert(0, task["trl_ppo"])
            from trl.experimental.ppo import PPOConfig, PPOTrainer

            data = Dataset.from_list([{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts])
            config = PPOConfig(
                **common, response_length=NEW_TOKENS, num_ppo_epochs=EPOCHS, num_mini_batches=1, stop_token=None,
                total_episodes=SAMPLES * task["iterations"], num_sample_generations=0, local_rollout_forward_batch_size=SAMPLES,
            )  # fmt: skip
            reference = AutoModelForCausalLM.from_pretrained(folder, **lm)
            critic = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **lm)
            trainer = PPOTrainer(
                args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=judge,
                train_dataset=data, eval_dataset=data, value_model=critic,
            )  # fmt: skip
        else:
            from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

            data = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
            config_of, trainer_of = (RLOOConfig, RLOOTrainer) if method == "rloo" else (GRPOConfig, GRPOTrainer)
            config = config_of(
                **common, max_steps=task["iterations"], num_generations=GENERATIONS[method], max_completion_length=NEW_TOKENS,
            )  # fmt: skip
            trainer = trainer_of(
                model=policy, reward_funcs=judge, args=config, train_dataset=data, processing_class=tokenizer,
                reward_processing_classes=tokenizer,
            )  # fmt: skip
        trainer.add_callback(Note())
        trainer.train()
    return ends


def ours(task: dict[str, Any], clock: Callable[[], float]) -> list[float]:
    """Our iterations: when each one ended."""
    import trueline
    from trueline.align.rollouts import Rollouts
    from trueline.models.decoder import ScalarModel
    from trueline.models.files import load_model
    from trueline.models.scorer import RewardScorer
    from trueline.objectives.grpo import GRPO
    from trueline.objectives.kl import KLPenalty
    from trueline.objectives.ppo import PPO, Critic
    from trueline.objectives.rloo import RLOO
    from trueline.serve.engine import Engine

    folder, method = Path(task["folder"]), task["method"]
    objective: Any = {
        "ppo": PPO(), "ppo_shared": PPO(values=Critic(critic="shared")), "rloo": RLOO(),
        "grpo": GRPO(kl=KLPenalty(kl_coef=0.0, kl_estimator="k3")),
    }[method]  # fmt: skip
    steps_per_iteration = objective.rounds.steps
    tokenizer = trueline.load_tokenizer(folder)
    judge = ScalarModel(load_model(folder))
    ends: list[float] = []

    def note(step: int, metrics: Any) -> None:
        if "loss" in metrics and step % steps_per_iteration == 0:
            ends.append(clock())

    with tempfile.TemporaryDirectory() as out:
        trueline.train(
            objective, load_model(folder), folder / "pairs.jsonl", out=Path(out) / "run", tokenizer=tokenizer, sinks=[note],
            rollouts=Rollouts(lambda model, tok: Engine(model, tok, stop_ids=()), reward=RewardScorer(judge)),
            logging_steps=1, save_steps=0, learning_rate=LEARNING_RATE, max_length=512,
            max_steps=task["iterations"] * steps_per_iteration, per_device_train_batch_size=SAMPLES // GENERATIONS[method],
            num_generations=GENERATIONS[method], max_completion_length=NEW_TOKENS,
        )  # fmt: skip
    return ends


def work(task: dict[str, Any]) -> None:
    """One measurement, in a process of its own: prints a line of JSON."""
    import torch

    torch.set_num_threads(task["threads"])
    clock = time.process_time if task["clock"] == "cpu" else time.perf_counter
    ends = (ours if task["side"] == "ours" else peer)(task, clock)
    assert len(ends) == task["iterations"], ends
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({"seconds": (ends[-1] - ends[0]) / (len(ends) - 1), "megabytes": memory}))


def compare(task: dict[str, Any], repeats: int) -> list[str]:
    """Rows of the table: ours, and each way to run the peer."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in ("ours", "stock", "medium")}
    for _ in range(repeats):
        for side, runs in found.items():
            runs.append(measure(task | {"side": side}, __file__))
            print(f"  {task['method']} {side}: {runs[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    seconds = {side: np.array([one["seconds"] for one in runs]) for side, runs in found.items()}
    memory = {side: np.median([one["megabytes"] for one in runs]) for side, runs in found.items()}
    lines = []
    for side in found:
        ratios = seconds[side] / seconds["ours"]
        lines.append(
            f"| {task['method']} | {side} | {60 / np.median(seconds[side]):.2f} | {np.median(ratios):.2f} | "
            f"{ratios.min():.2f}-{ratios.max():.2f} | {memory[side]:,.0f} | {memory['ours'] / memory[side]:.2f} |"
        )
    return lines


def main() -> None:
    """Measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(GENERATIONS), choices=list(GENERATIONS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=3, help="per measurement; the first is not timed")
    parser.add_argument("--trl_ppo", default="", help="folder with the last TRL that has a PPO trainer")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: this process's seconds; for one thread")
    parser.add_argument("--quick", action="store_true", help="two iterations, once: only shows that it runs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(json.loads(args.worker))
    iterations, repeats = (2, 1) if args.quick else (args.iterations, args.repeats)
    methods = [method for method in args.methods if args.trl_ppo or not method.startswith("ppo")]
    if methods != args.methods:
        print("PPO is left out: give --trl_ppo\n")
    print(f"{date.today()}, {args.threads} threads, {repeats} repeats of {iterations} iterations, {args.clock} clock\n")
    print("| method | side | iterations/min | side / ours | min-max | peak MB | ours / side |\n" + "|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as folder:
        prepared(Path(folder), "S", SAMPLES * iterations)
        for method in methods:
            task = {
                "method": method, "iterations": iterations, "folder": folder, "trl_ppo": args.trl_ppo,
                "threads": args.threads, "clock": args.clock,
            }  # fmt: skip
            print("\n".join(compare(task, repeats)), flush=True)


if __name__ == "__main__":
    main()
