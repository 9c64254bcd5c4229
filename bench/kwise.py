"""K ranked responses as one element of the batch, against the same K(K-1)/2 pairs one by one: time of a training step of a reward model.

Claim: a ranking of K responses of R tokens to a prompt of P costs P + K R positions; its pairs as two sequences each, the way they are
usually trained on, K(K-1)(P + R). At 100 and 60 tokens that is 5.6 times as many at K = 4 and 18 times at K = 9; owed is 0.7 of it in time.

    python bench/kwise.py [--repeats 5] [--quick]
    python bench/kwise.py --threads 1 --clock cpu      CPU seconds of one thread: for a machine that does other things

Compared in one process, in turns: float32, uncompiled, model S of training.py with a reward head, the same weights, forward, backward and
AdamW (at rate 0, so that the weights stay):

    kwise       the objective's own loss on the tree of prompt and responses
    sequences   every pair as two sequences with their prompt, packed without padding, which would only add to them; each pair weighs
                2 / (K(K-1)), so that the loss is the same
    trees       every pair as a tree of its own, the prompt computed once per pair: what this library does with rows of two

Before anything is timed the losses must agree to 1e-5 and the gradients to 1e-5 of the largest. All sides go through their sequences in
microbatches of at most --tokens positions. Layouts are built inside the timed part. Left out: GPUs, reading and tokenising, memory.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from datetime import date

import numpy as np
import torch
from torch import Tensor

from trueline.models.config import DecoderConfig
from trueline.models.decoder import ScalarModel
from trueline.models.files import new_model
from trueline.models.layout import Layout
from trueline.objectives.base import Budget
from trueline.objectives.reward import Reward, bradley_terry
from trueline.protocols import Crew
from trueline.records import Row

PROMPT, RESPONSE, OWED = 100, 60, 0.7
SIDES = ("kwise", "sequences", "trees")


def model_s(vocabulary: int = 4096) -> ScalarModel:
    """Model S of training.py, random weights, a scalar head."""
    config = DecoderConfig(
        model_type="llama", vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, max_position_embeddings=512, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = ScalarModel(new_model(config, 0)).train()
    with torch.no_grad():
        model.score.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return model


def rankings(rng: np.random.Generator, prompts: int, K: int, vocabulary: int = 4096) -> list[Row]:
    """Random tokens; ranks as drawn."""
    rows = []
    for _ in range(prompts):
        prompt, answers = rng.integers(1, vocabulary, PROMPT), rng.integers(1, vocabulary, (K, RESPONSE))
        ids = tuple(np.concatenate((prompt, answer)).astype(np.int32) for answer in answers)
        rank = rng.permutation(K).astype(np.float32) + 1
        rows.append(Row(ids=ids, scored=(np.arange(PROMPT + RESPONSE) >= PROMPT,) * K, numbers={"rank": rank}))
    return rows


def pairs_of(row: Row) -> list[Row]:
    """A row per pair that weighs its share of the ranking."""
    K = len(row.ids)
    share = np.full(2, 2 / (K * (K - 1)), dtype=np.float32)
    found = []
    for i, j in itertools.combinations(range(K), 2):
        numbers = {"rank": row.numbers["rank"][[i, j]], "weight": share}
        found.append(Row(ids=(row.ids[i], row.ids[j]), scored=(row.scored[i], row.scored[j]), numbers=numbers))
    return found


def by_objective(model: ScalarModel, rows: Sequence[Row], tokens: int) -> tuple[float, int]:
    """Loss summed over prompts by the reward objective, its gradients accumulated; and how many positions it computed."""
    objective, total, positions = Reward(), 0.0, 0
    ((*batches,),) = objective.steps(rows, Budget(rows=10**6, tokens=tokens))
    for batch in batches:
        loss = objective.loss(model, batch, Crew()).terms["loss"]
        loss.backward()
        total, positions = total + float(loss.detach()), positions + batch.layout.num_tokens
    return total, positions


def by_sequences(model: ScalarModel, rows: Sequence[Row], tokens: int) -> tuple[float, int]:
    """The same from pairs whose two sequences hold the prompt each."""
    at_once, total, positions = max(1, tokens // (2 * (PROMPT + RESPONSE))), 0.0, 0
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        layout = Layout.packed([ids for row in some for ids in row.ids], [scored for row in some for scored in row.scored])
        score_P2 = model(layout).view(-1, 2)
        preferred_P, weight_P = (Tensor(x) for x in zip(*((float(r.numbers["rank"][0] < r.numbers["rank"][1]), r.numbers["weight"][0])
                                                          for r in some), strict=True))  # fmt: skip
        loss = (weight_P * bradley_terry(score_P2[:, 0] - score_P2[:, 1], preferred_P)).sum()
        loss.backward()
        total, positions = total + float(loss.detach()), positions + layout.num_tokens
    return total, positions


def steps_of(model: ScalarModel, rows: list[Row], tokens: int) -> dict[str, Callable[[], tuple[float, int]]]:
    """A training step by each side."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    pairs = [pair for row in rows for pair in pairs_of(row)]

    def step(run: Callable[..., tuple[float, int]], rows: list[Row]) -> tuple[float, int]:
        optimizer.zero_grad()
        found = run(model, rows, tokens)
        optimizer.step()
        return found

    return {
        "kwise": lambda: step(by_objective, rows),
        "sequences": lambda: step(by_sequences, pairs),
        "trees": lambda: step(by_objective, pairs),
    }


def gradient(model: ScalarModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def agree(model: ScalarModel, steps: dict[str, Callable[[], tuple[float, int]]]) -> tuple[float, float, dict[str, int]]:
    """The largest differences of loss and, relative, of gradient between the sides, and their positions; the warm-up, too."""
    (loss, positions), base = steps["kwise"](), gradient(model)
    counts, apart, off = {"kwise": positions}, 0.0, 0.0
    for side in SIDES[1:]:
        other, counts[side] = steps[side]()
        apart = max(apart, abs(other - loss) / max(1.0, abs(loss)))
        off = max(off, float((gradient(model) - base).abs().max() / base.abs().max()))
    assert apart < 1e-5 and off < 1e-5, f"the sides differ: loss by {apart:.1e}, gradient by {off:.1e} of the largest"
    return apart, off, counts


def compare(K: int, prompts: int, repeats: int, tokens: int, clock: Callable[[], float]) -> list[str]:
    """Lines of the table for one K."""
    model = model_s()
    steps = steps_of(model, rankings(np.random.default_rng(K), prompts, K), tokens)
    apart, off, counts = agree(model, steps)
    seconds = np.zeros((repeats, len(SIDES)))
    for repeat in range(repeats):
        for place in np.roll(np.arange(len(SIDES)), repeat):  # no side always goes first
            start = clock()
            steps[SIDES[place]]()
            seconds[repeat, place] = clock() - start
    owed = OWED * K * (K - 1) * (PROMPT + RESPONSE) / (PROMPT + K * RESPONSE)
    lines = []
    for place, side in enumerate(SIDES):
        ratios = seconds[:, place] / seconds[:, 0]
        spread = f"{np.median(ratios):.2f} | {ratios.min():.2f}-{ratios.max():.2f}"
        due = f"{owed:.1f}" if side == "sequences" else ""
        lines.append(
            f"| K = {K}, {prompts} prompts | {side} | {counts[side]:,} | {1000 * np.median(seconds[:, place]):.0f} | {spread} | {due} |"
        )
    print(f"K = {K}: losses agree to {apart:.1e}, gradients to {off:.1e} of the largest", flush=True)
    return lines


def main() -> None:
    """Measure K = 4 and K = 9 in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="times each side runs")
    parser.add_argument("--tokens", type=int, default=2560, help="positions of a microbatch at most")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: this process's seconds; for one thread")
    parser.add_argument("--quick", action="store_true", help="one prompt, one repeat: only shows that it runs")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    print(f"{date.today()}, torch {torch.__version__}, float32, {torch.get_num_threads()} threads, {args.clock} clock")
    lines = ["| work | side | positions | ms | side / kwise | min-max | owed |", "|---" * 7 + "|"]
    for K, prompts in ((4, 4), (9, 2)):
        lines += compare(K, 1 if args.quick else prompts, 1 if args.quick else max(1, args.repeats), args.tokens, clock)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
