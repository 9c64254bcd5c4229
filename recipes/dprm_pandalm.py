"""Three people on every pair: DPRM against Bradley-Terry on PandaLM's human test set, as heads on a frozen model.

    python -m recipes.dprm_pandalm --data pandalm_human.jsonl.gz --out out/pandalm --splits 20

Each of three annotators says which of two responses is better, or neither. Category of a response, per annotator: 0 lost, 1 tied,
2 won, worth -1, 0 and 1. The arms are those of dprm_disagreement and see the same verdicts. The shipped base model reads prompt and
response; a network of 32 units on its last token's hidden state is all that is trained. Splits are by prompt: 70% to train, 15% to
choose step and learning rate, 15% to report.

Reported on held-out pairs: the share of annotators who prefer the response with the higher reward (ties count half); log loss of the
votes under the arm's stated probability, which is sigmoid of the gap for BT and P(better category) + P(same) / 2 for DPRM; a coin has
0.693. Mean and standard error over splits, differences to BT on votes paired by split. Splits share their pairs, so the errors are
too small.
Cost: some minutes for the hidden states, once, and about 3 seconds per split, on one core.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from recipes.dprm_disagreement import Data, Model, fitted, said
from trueline.evals.distribution import preference
from trueline.models.attention import Layout
from trueline.models.files import load_model
from trueline.quickstart.base_model import base_model_dir
from trueline.records import Comparison, Message, Ranking, Row
from trueline.tokens import encode_comparison, load_tokenizer

WORTH = (-1.0, 0.0, 1.0)
ARMS = ("BT, majority", "BT, votes", "DPRM C", "DPRM W", "DPRM W single")
"""OT is W here: the categories are equally far apart in worth."""
CATEGORY = {0: (1, 1), 1: (2, 0), 2: (0, 2)}
"""A verdict (0 neither, 1 the first, 2 the second) -> the categories of both responses."""


def read(path: Path, limit: int = 0) -> list[dict[str, object]]:
    """Lines with two different responses that hold something."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    kept = [r for r in rows if isinstance(r["response1"], str) and isinstance(r["response2"], str)]
    kept = [r for r in kept if r["response1"].strip() and r["response2"].strip() and r["response1"] != r["response2"]]
    return kept[:limit] if limit else kept


def encoded(rows: Sequence[dict[str, object]], max_length: int = 320) -> list[Row | None]:
    """Both responses to each prompt, in the file's order; None where a prompt leaves them no room."""
    tokenizer = load_tokenizer(str(base_model_dir()))
    found = []
    for r in rows:
        asked = "\n\n".join(str(r[name]) for name in ("instruction", "input") if r[name])
        answers = tuple((Message(role="assistant", content=str(r[name])),) for name in ("response1", "response2"))
        both = Comparison(prompt=(Message(role="user", content=asked),), responses=answers, judgement=Ranking((1, 1)))
        found.append(encode_comparison(both, tokenizer, max_length))
    return found


@torch.inference_mode()
def hidden(rows: Sequence[Row], kept: Path) -> np.ndarray:
    """float32 [2 P, D]: the last token's hidden state, the first response's and the second's in turn; kept in a file."""
    if kept.exists():
        return load_file(kept)["hidden"]
    model = load_model(base_model_dir()).eval()
    parts = [model(layout, wanted_N=layout.last_S) for layout in (Layout.tree(rows[i : i + 16]) for i in range(0, len(rows), 16))]
    states = torch.cat(parts).float().numpy()
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file({"hidden": (states - states.mean(0)) / states.std(0)}, kept)
    return load_file(kept)["hidden"]


@torch.no_grad()
def measured(arm: str, model: Model, data: Data) -> dict[str, float]:
    """Votes for what the arm prefers, and the log loss of all votes."""
    numbers_P2, picks_PA2 = data
    votes_P = (((picks_PA2[..., 0] > picks_PA2[..., 1]) + 0.5 * (picks_PA2[..., 0] == picks_PA2[..., 1])).mean(1)).astype(float)
    out = model.net(model.features_VD[torch.from_numpy(numbers_P2)]).double()
    if arm.startswith("BT"):
        gap_P = (out[:, 0, 0] - out[:, 1, 0]).numpy()
        stated_P = 1 / (1 + np.exp(-gap_P))
    else:
        shares_P2C = out.softmax(-1).numpy()
        gap_P = (shares_P2C[:, 0] - shares_P2C[:, 1]) @ np.array(WORTH)
        stated_P = np.clip(preference(shares_P2C[:, 0], shares_P2C[:, 1]), 1e-6, 1 - 1e-6)
    chosen_P = np.where(gap_P > 0, votes_P, 1 - votes_P)
    loss_P = -(votes_P * np.log(stated_P) + (1 - votes_P) * np.log(1 - stated_P))
    return {"votes for its choice": float(chosen_P.mean()), "log loss": float(loss_P.mean())}


def run(data: Path, out: Path, splits: int, steps: int = 100, limit: int = 0) -> str:
    """All arms on all splits; the table."""
    lines = read(data, limit)
    both = [(line, row) for line, row in zip(lines, encoded(lines), strict=True) if row is not None]
    states = hidden([row for _, row in both], out / f"hidden-{len(both)}.safetensors")
    picks_PA2 = np.array([[CATEGORY[int(str(line[f"annotator{a}"]))] for a in (1, 2, 3)] for line, _ in both])
    numbers_P2 = np.arange(2 * len(both)).reshape(-1, 2)
    names = sorted({f"{line['instruction']}|{line['input']}" for line, _ in both})
    prompt_P = np.array([names.index(f"{line['instruction']}|{line['input']}") for line, _ in both])
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for split in range(splits):
        place = np.random.default_rng(split).permutation(len(names))[prompt_P] / len(names)
        parts = [(place < 0.7), (place >= 0.7) & (place < 0.85), place >= 0.85]
        train, valid, test = ((numbers_P2[part], picks_PA2[part]) for part in parts)
        for arm in ARMS:
            found[arm].append(measured(arm, fitted(arm, states, train, valid, steps, split, WORTH), test))
    disagree = float((picks_PA2[..., 0] != picks_PA2[:, :1, 0]).any(1).mean())
    table = [f"{len(both)} pairs of {len(names)} prompts, {disagree:.1%} with different verdicts; {splits} splits", ""]
    metrics = ("votes for its choice", "log loss")
    table += ["| arm | " + " | ".join(metrics) + " | votes less BT's, votes | log loss less BT's, votes |", "|---" * 5 + "|"]
    for arm, results in found.items():
        values = {name: np.array([one[name] for one in results]) for name in metrics}
        base = {name: np.array([one[name] for one in found["BT, votes"]]) for name in metrics}
        cells = [said(values[name]) for name in metrics] + [said(values[name] - base[name]) for name in metrics]
        table.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(table)


def rehearse(out: Path) -> None:
    """Two splits of a few made-up lines."""
    out.mkdir(parents=True, exist_ok=True)
    made = [
        {"instruction": f"Add {n}.", "input": "", "response1": f"{n + 1}", "response2": "no idea"}
        | {"annotator1": 1, "annotator2": n % 3, "annotator3": 1}
        for n in range(30)
    ]
    with gzip.open(out / "made.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in made))
    assert "DPRM C" in run(out / "made.jsonl.gz", out, 2, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/pandalm"))
    parser.add_argument("--splits", type=int, default=20)
    words = parser.parse_args()
    print(run(words.data, words.out, words.splits))


if __name__ == "__main__":
    main()
