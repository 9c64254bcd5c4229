"""Does it help to fine-tune only on summaries that speak of their function's name? Two arms, same steps, same prompts.

    python -m recipes.sft_filter_ablation --out out/ablation --steps 150

    filtered    pairs whose summary speaks of at least half of the name's words (what the quickstart trains on)
    all         pairs as harvested

Cost: about 3 minutes per arm and seed on two cores. Prints a Markdown table: grounding, recall and judge score on the quickstart's
held-out packages, with 95% intervals, and the paired difference of the judge score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from trueline.evals.interval import bootstrap_mean, paired_difference
from trueline.objectives.sft import SFT
from trueline.quickstart.base_model import base_model_dir
from trueline.quickstart.grounding import Grounding, grounding
from trueline.quickstart.harvest import harvest
from trueline.quickstart.measure import Bench
from trueline.quickstart.pep257 import Pep257Judge, learn_prose
from trueline.quickstart.scratch import grounded
from trueline.quickstart.splits import split
from trueline.quickstart.stages import MAX_LENGTH, conversations
from trueline.tokens import load_tokenizer
from trueline.train import train

ROWS_PER_STEP = 32


def run(out: Path, steps: int, seeds: int, tests: int) -> str:
    """Train every arm and seed, measure greedy summaries, and return the table."""
    parts = split(harvest(out / "harvest").functions)
    tokenizer = load_tokenizer(base_model_dir())
    rng = np.random.default_rng(0)
    chosen = tuple(parts.test[i] for i in rng.permutation(len(parts.test))[:tests])
    bench = Bench(
        functions=chosen, tokenizer=tokenizer, judge=Pep257Judge(learn_prose(f.summary for f in parts.train)), seed=0
    )
    arms = {"filtered": grounded(parts.train), "all": list(parts.train)}
    lines = [
        "| arm | seed | name words spoken of | other function's | recall above chance | judge score |",
        "|---|---|---|---|---|---|",
    ]
    scores: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    for seed in range(seeds):
        for name, functions in arms.items():
            order = np.random.default_rng([seed, 1]).permutation(len(functions))[: steps * ROWS_PER_STEP]
            folder = train(
                SFT(), base_model_dir(), conversations([functions[i] for i in order], tokenizer), out=out / f"{name}-{seed}",
                tokenizer=tokenizer, max_steps=steps, per_device_train_batch_size=ROWS_PER_STEP, max_length=MAX_LENGTH,
                learning_rate=3e-4, lr_scheduler_type="linear", warmup_ratio=0.05, save_steps=100, seed=seed,
            )  # fmt: skip
            said = bench.greedy(folder, "summaries")
            scores[name].append(bench.score(said))
            lines.append(row(name, seed, grounding(chosen, said), scores[name][-1]))
    gain = paired_difference(np.mean(scores["filtered"], axis=0), np.mean(scores["all"], axis=0))
    lines.append(
        f"\nfiltered minus all, judge score: {gain.estimate:+.2f} ({gain.low:+.2f} to {gain.high:+.2f}), {tests} functions, {seeds} seeds"
    )
    return "\n".join(lines)


def row(name: str, seed: int, found: Grounding, scores_N: np.ndarray) -> str:
    """One line of the table."""
    low, high = found.name_share_interval
    below, above = found.recall_difference_interval
    mean = bootstrap_mean(scores_N)
    cells = [
        name,
        str(seed),
        f"{100 * found.name_share:.1f}% ({100 * low:.1f} to {100 * high:.1f})",
        f"{100 * found.name_share_other:.1f}%",
        f"{100 * found.recall_difference:+.1f} points ({100 * below:+.1f} to {100 * above:+.1f})",
        f"{mean.estimate:.2f} ({mean.low:.2f} to {mean.high:.2f})",
    ]
    return f"| {' | '.join(cells)} |"


def rehearse(folder: Path) -> None:
    """Two steps of each arm."""
    assert "| all | 0 |" in run(folder, steps=2, seeds=1, tests=8)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run folder; the same command resumes")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tests", type=int, default=400, help="held-out functions")
    args = parser.parse_args()
    print(run(args.out, args.steps, args.seeds, args.tests))


if __name__ == "__main__":
    main()
