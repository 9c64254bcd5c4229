"""People who disagree, on real answers: DPRM against Bradley-Terry as heads on a frozen model.

    TRUELINE_DATA=DATA python -m recipes.dprm_annotators --model out/preferences/start/sft --out out/annotators

    pandalm   three annotators per pair: the first is better, the second, or neither. Categories of a response: lost, tied, won
    tulu1     graded: clearly or slightly better, a tie; one to five people per pair. Five categories, clearly worse to clearly better

The categories are worth -1 to 1 in equal steps. All arms see the same verdicts:

    BT, majority       who most people prefer
    BT, votes          how many prefer it, a tie by half
    BT, grades         how far they prefer it: clearly is 1, slightly 3/4, a tie 1/2 (tulu1; on pandalm that is BT, votes)
    DPRM C, W          all verdicts on a response, pooled (cross_entropy, wasserstein; transport is W here, the steps being equal)
    DPRM W single      each verdict a row of its own
    longer             no model: the longer answer

The frozen model reads prompt and answer; a network of 32 units is all that is trained, by the objectives' own losses, at three learning
rates. It sees the logarithm of the answer's length and --components principal components of the last token's hidden state (0: the whole
state and no length). Five folds by prompt: three to train, one to choose step and rate by the arm's own loss,
one to report; again for every seed with other folds. A pair's figures are means over the seeds, so each pair counts once; standard errors
are over prompts, differences are paired.

Reported: the share of verdicts for the response that the arm rewards more; log loss of the verdicts under the arm's stated probability
(sigmoid of the gap; for DPRM P(better category) + P(same) / 2; ties count half; a coin has 0.693); on pairs with several people, how well
the arm tells those on which they differ (area under the curve; BT by how near its probability is to 1/2, DPRM by the entropy of the two
distributions). --model "" reads with the shipped base model, which knows code only.

    python -m recipes.dprm_annotators --rows out/rows       only writes rows for the commands: SET-train.jsonl and SET-test.jsonl, a
                                                            rating per person and answer, for trueline data pool and dprm, and
                                                            SET-pairs.jsonl, the comparisons of the test half, for trueline eval
Cost: 3 minutes for the hidden states, once, and about 8 seconds per seed, fold and set, on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from recipes.dprm_disagreement import Model, fitted
from recipes.human_preferences_start import data_folder, jsonl
from recipes.human_preferences_words import fold_of
from trueline.evals.calibration import reliability
from trueline.evals.distribution import preference
from trueline.evals.interval import normal_mean
from trueline.evals.ood import auroc
from trueline.models.attention import Layout
from trueline.models.files import load_model
from trueline.quickstart.base_model import base_model_dir
from trueline.records import Comparison, Message, Ranking, Rating, Row
from trueline.rows import write_rows
from trueline.store import write_atomic
from trueline.tokens import encode_comparison, load_tokenizer

ARMS = ("BT, majority", "BT, votes", "BT, grades", "DPRM C", "DPRM W", "DPRM W single")
BASE = "BT, votes"
FOLDS, PEOPLE_MOST, LENGTH, COMPONENTS = 5, 5, 320, 16
GRADES = {"a-is-better": 4, "a-is-slightly-better": 3, "tie": 2, "b-is-slightly-better": 1, "b-is-better": 0}
LOST_TIED_WON = {0: 1, 1: 2, 2: 0}
"""PandaLM's verdict (0 neither, 1 the first, 2 the second) -> the category of the first response."""


@dataclass
class Judged:
    """Two answers to a prompt and the category that each person puts the first in; the second's is its mirror image."""

    prompt: str
    answers: tuple[str, str]
    picks: list[int]


def pandalm(path: Path) -> list[Judged]:
    """Lines with two different answers that hold something."""
    found = []
    for line in jsonl(path):
        asked = "\n\n".join(str(line[name]) for name in ("instruction", "input") if line[name])
        picks = [LOST_TIED_WON[int(line[f"annotator{a}"])] for a in (1, 2, 3)]
        found.append(Judged(asked, (line["response1"], line["response2"]), picks))
    return [one for one in found if usable(one)]


def tulu1(path: Path) -> list[Judged]:
    """All verdicts on the same two answers together, whichever stood first."""
    found: dict[tuple[str, str, str], Judged] = {}
    for line in jsonl(path):
        asked, a, b, pick = line["prompt"].strip(), line["completion_a"], line["completion_b"], GRADES[line["preference"]]
        if (asked, b, a) in found:
            found[asked, b, a].picks.append(4 - pick)
        else:
            found.setdefault((asked, a, b), Judged(asked, (a, b), [])).picks.append(pick)
    return [one for one in found.values() if usable(one)]


def usable(one: Judged) -> bool:
    a, b = one.answers
    return isinstance(a, str) and isinstance(b, str) and bool(a.strip()) and bool(b.strip()) and a != b


SETS: dict[str, tuple[str, Callable[[Path], list[Judged]], tuple[float, ...]]] = {
    "pandalm": ("pandalm_human", pandalm, (-1.0, 0.0, 1.0)),
    "tulu1": ("tulu1_human", tulu1, (-1.0, -0.5, 0.0, 0.5, 1.0)),
}
"""Name -> file, reader, what the categories are worth."""


@dataclass(frozen=True)
class Pairs:
    """A set as arrays. Legend: P pairs, A people at most, D width."""

    states_VD: np.ndarray
    """Last hidden states of the responses 2 p and 2 p + 1."""
    picks_PA2: np.ndarray
    """-1 where nobody judged."""
    prompt_P: np.ndarray
    length_P2: np.ndarray
    """Characters of both answers."""
    worth: tuple[float, ...]


def encoded(rows: Sequence[Judged], tokenizer: Any) -> list[Row | None]:
    """Both answers in the file's order; None where a prompt leaves them no room."""
    found = []
    for one in rows:
        answers = tuple((Message(role="assistant", content=text),) for text in one.answers)
        both = Comparison(prompt=(Message(role="user", content=one.prompt),), responses=answers, judgement=Ranking((1, 1)))
        found.append(encode_comparison(both, tokenizer, LENGTH))
    return found


def read_set(name: str, data: Path, model: Path, out: Path, limit: int = 0) -> Pairs:
    """The pairs of a set that the model can read; its hidden states are kept in a file."""
    file, reader, worth = SETS[name]
    judged = reader(data / f"{file}.jsonl.gz")
    judged = judged[:limit] if limit else judged
    both = [(one, row) for one, row in zip(judged, encoded(judged, load_tokenizer(str(model))), strict=True) if row is not None]
    picks_PA2 = np.full((len(both), PEOPLE_MOST, 2), -1)
    for picks_A2, (one, _) in zip(picks_PA2, both, strict=True):
        for k, pick in enumerate(one.picks[:PEOPLE_MOST]):
            picks_A2[k] = pick, len(worth) - 1 - pick
    groups = [re.sub(r"\W+", " ", one.prompt).lower() for one, _ in both]
    length_P2 = np.array([[len(text) for text in one.answers] for one, _ in both])
    states = hidden([row for _, row in both], model, out / f"hidden-{name}-{len(both)}.safetensors")
    return Pairs(states, picks_PA2, np.unique(groups, return_inverse=True)[1], length_P2, worth)


@torch.inference_mode()
def hidden(rows: Sequence[Row], folder: Path, kept: Path) -> np.ndarray:
    """float32 [2 P, D]: the last token's hidden state, the first answer's and the second's in turn."""
    if not kept.exists():
        model = load_model(folder).eval()
        layouts = (Layout.tree(rows[i : i + 16]) for i in range(0, len(rows), 16))
        parts = [model(layout, wanted_N=layout.last_S) for layout in layouts]
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({"hidden": torch.cat(parts).float().numpy()}, kept)
    return load_file(kept)["hidden"]


def votes(picks_PA2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts for the first answer, ties by half [P, A], and which there are [P, A]."""
    ahead_PA = np.sign(picks_PA2[..., 0] - picks_PA2[..., 1])
    return 0.5 + 0.5 * ahead_PA, picks_PA2[..., 0] >= 0


@torch.no_grad()
def stated(arm: str, model: Model, numbers_P2: np.ndarray, worth: Sequence[float]) -> dict[str, np.ndarray]:
    """Per pair the gap of the rewards, the probability that the first is preferred, and how much people are expected to differ."""
    out = model.net(model.features_VD[torch.from_numpy(numbers_P2)]).double()
    if arm.startswith("BT"):
        gap_P = (out[:, 0, 0] - out[:, 1, 0]).numpy()
        return {"gap": gap_P, "p": 1 / (1 + np.exp(-gap_P)), "differ": -np.abs(gap_P)}
    shares_P2C = out.softmax(-1).numpy()
    entropy_P = -(shares_P2C * np.log(np.maximum(shares_P2C, 1e-12))).sum((1, 2))
    found_P = np.clip(preference(shares_P2C[:, 0], shares_P2C[:, 1]), 1e-6, 1 - 1e-6)
    return {"gap": (shares_P2C[:, 0] - shares_P2C[:, 1]) @ np.array(worth), "p": found_P, "differ": entropy_P}


def features(pairs: Pairs, seen_V: np.ndarray, components: int) -> np.ndarray:
    """float64 [V, components + 1] (or the states), scaled by what those of `seen_V`, the responses to train on, are like."""
    whole_VD = pairs.states_VD.astype(np.float64)
    whole_VD = (whole_VD - whole_VD[seen_V].mean(0)) / whole_VD[seen_V].std(0)
    if not components:
        return whole_VD
    _, _, directions_DD = np.linalg.svd(whole_VD[seen_V], full_matrices=False)
    few_VD = np.column_stack([whole_VD @ directions_DD[:components].T, np.log(pairs.length_P2.ravel())])
    return (few_VD - few_VD[seen_V].mean(0)) / few_VD[seen_V].std(0)


def one_seed(arm: str, pairs: Pairs, seed: int, steps: int, components: int) -> dict[str, list[float]]:
    """What the arm says of every pair, each by a model that has not seen its prompt."""
    P = len(pairs.picks_PA2)
    fold_P = (np.random.default_rng(seed).permutation(pairs.prompt_P.max() + 1) % FOLDS)[pairs.prompt_P]
    numbers_P2 = np.arange(2 * P).reshape(-1, 2)
    found = {name: np.zeros(P) for name in ("gap", "p", "differ")}
    for fold in range(FOLDS):
        test_P, valid_P = fold_P == fold, fold_P == (fold + 1) % FOLDS
        train_P = ~(test_P | valid_P)
        features_VD = features(pairs, numbers_P2[train_P].ravel(), components)
        train, valid = ((numbers_P2[part], pairs.picks_PA2[part]) for part in (train_P, valid_P))
        model = fitted(arm, features_VD, train, valid, steps, seed, pairs.worth)
        for name, values in stated(arm, model, numbers_P2[test_P], pairs.worth).items():
            found[name][test_P] = values
    return {name: values.tolist() for name, values in found.items()}


def of_pairs(pairs: Pairs, said: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per pair [P], means over the seeds: verdicts for the arm's choice, log loss. `said` holds [seeds, P]."""
    vote_PA, there_PA = votes(pairs.picks_PA2)
    share_P = (vote_PA * there_PA).sum(1) / there_PA.sum(1)
    right_SP = np.where(said["gap"] > 0, share_P, np.where(said["gap"] < 0, 1 - share_P, 0.5))
    loss_SP = -(share_P * np.log(said["p"]) + (1 - share_P) * np.log(1 - said["p"]))
    return {"verdicts for its choice": right_SP.mean(0), "log loss": loss_SP.mean(0)}


def differing(pairs: Pairs, said: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """AUROC of `differ` for the pairs on which people differ, of those that several people judged, and 200 bootstraps over prompts."""
    there_PA = pairs.picks_PA2[..., 0] >= 0
    several_P = there_PA.sum(1) > 1
    vote_PA, _ = votes(pairs.picks_PA2)
    differ_P = ((vote_PA != vote_PA[:, :1]) & there_PA).any(1)
    score_P = said["differ"].mean(0)

    def area(weight_P: np.ndarray) -> float:
        chosen = np.repeat(np.arange(len(weight_P)), weight_P)
        inside, outside = (score_P[chosen[differ_P[chosen] == kind]] for kind in (False, True))
        return auroc(inside, outside) if len(inside) and len(outside) else np.nan

    rng, groups = np.random.default_rng(0), pairs.prompt_P.max() + 1
    draws = [area(np.bincount(rng.integers(groups, size=groups), minlength=groups)[pairs.prompt_P] * several_P) for _ in range(200)]
    return area(several_P.astype(int)), np.array(draws)


def table(pairs: Pairs, results: dict[str, list[dict[str, list[float]]]]) -> str:
    """All arms, differences to BT on votes paired by pair."""
    vote_PA, there_PA = votes(pairs.picks_PA2)
    several_P = there_PA.sum(1) > 1
    differ_P = ((vote_PA != vote_PA[:, :1]) & there_PA).any(1)
    said_of = {arm: {name: np.array([one[name] for one in found]) for name in ("gap", "p", "differ")} for arm, found in results.items()}
    figures = {arm: of_pairs(pairs, said) for arm, said in said_of.items()}
    areas = {arm: differing(pairs, said) for arm, said in said_of.items()}
    share_P = (vote_PA * there_PA).sum(1) / there_PA.sum(1)
    ahead_P = np.sign(pairs.length_P2[:, 0] - pairs.length_P2[:, 1])
    longer_P = 0.5 + ahead_P * (share_P - 0.5)
    names = ("verdicts for its choice", "log loss")
    lines = [
        f"{len(share_P)} pairs of {pairs.prompt_P.max() + 1} prompts, {there_PA.sum()} verdicts; {several_P.sum()} pairs with several, "
        f"{differ_P[several_P].mean():.1%} of them with different ones; {len(results[BASE])} seeds of five folds",
        "",
        "| arm | verdicts for its choice | log loss | calibration error | tells where people differ | verdicts less BT's, votes | "
        "log loss less BT's, votes | area less BT's, votes |",
        "|---" * 8 + "|",
    ]
    mean = partial(normal_mean, groups=pairs.prompt_P)
    for arm in results:
        p_SP = said_of[arm]["p"]
        right_SP = np.where(p_SP > 0.5, share_P, 1 - share_P)
        ece = np.mean([reliability(np.maximum(p, 1 - p), right).ece for p, right in zip(p_SP, right_SP, strict=True)])
        area, draws = areas[arm]
        base_area, base_draws = areas[BASE]
        gaps = [mean(figures[arm][name] - figures[BASE][name]) for name in names]
        cells = [*(said(mean(figures[arm][name])) for name in names), f"{ece:.3f}", f"{area:.3f} ± {np.nanstd(draws):.3f}"]
        cells += [*map(said, gaps), f"{area - base_area:.3f} ± {np.nanstd(draws - base_draws):.3f}"]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines.append(f"| longer | {said(mean(longer_P))} | | | | {said(mean(longer_P - figures[BASE][names[0]]))} | | |")
    return "\n".join(lines)


def said(found: Any) -> str:
    """Mean and standard error over prompts."""
    return f"{found.estimate:.3f} ± {found.se:.3f}"


def run(data: Path, model: Path, out: Path, seeds: int, steps: int = 100, limit: int = 0, components: int = COMPONENTS) -> str:
    """Both sets, all arms and seeds; the tables. What an interrupted run has measured stays."""
    kept = out / f"results-{components}.json"
    results: dict[str, dict[str, list[dict[str, list[float]]]]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    tables = []
    for name in SETS:
        pairs = read_set(name, data, model, out, limit)
        arms = [arm for arm in ARMS if len(pairs.worth) > 3 or arm != "BT, grades"]
        found = results.setdefault(name, {arm: [] for arm in arms})
        for seed in range(seeds):
            for arm in arms:
                if len(found[arm]) == seed:
                    found[arm].append(one_seed(arm, pairs, seed, steps, components))
            write_atomic(kept, json.dumps(results))
        tables.append(f"{name}: {table(pairs, found)}")
    return "\n\n".join(tables)


def write_files(data: Path, out: Path) -> None:
    """Two halves by prompt: ratings of both, and the second's comparisons."""
    for name, (file, reader, worth) in SETS.items():
        parts: dict[str, list[Rating | Comparison]] = {"train": [], "test": [], "pairs": []}
        for number, one in enumerate(reader(data / f"{file}.jsonl.gz")):
            prompt = (Message(role="user", content=one.prompt),)
            answers = tuple((Message(role="assistant", content=text),) for text in one.answers)
            half = "test" if fold_of(re.sub(r"\W+", " ", one.prompt).lower(), 2) == 0 else "train"
            for person, pick in enumerate(one.picks):
                both = zip(answers, (worth[pick], worth[-1 - pick]), strict=True)
                parts[half] += [Rating(prompt=prompt, response=a, score=w, annotator=f"{number}-{person}") for a, w in both]
            won = sum(np.sign(2 * pick - len(worth) + 1) for pick in one.picks)
            if half == "test":
                ranks = Ranking((1 + int(won < 0), 1 + int(won > 0)))
                parts["pairs"].append(Comparison(prompt=prompt, responses=answers, judgement=ranks))
        for part, rows in parts.items():
            write_rows(rows, out / f"{name}-{part}.jsonl", "trueline")


def rehearse(out: Path) -> None:
    """Two seeds of a few made-up lines."""
    import gzip

    out.mkdir(parents=True, exist_ok=True)
    three = [
        {"instruction": f"Add {n}.", "input": "", "response1": f"{n + 1}", "response2": "no idea"}
        | {"annotator1": 1, "annotator2": n % 3, "annotator3": 1}
        for n in range(30)
    ]
    graded = [
        {"prompt": f"Add {n // 2}.", "completion_a": f"{n // 2 + 1}", "completion_b": "no idea", "preference": list(GRADES)[n % 5]}
        for n in range(60)
    ]
    for name, lines in (("pandalm_human", three), ("tulu1_human", graded)):
        with gzip.open(out / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    write_files(out, out / "rows")
    assert (out / "rows/pandalm-pairs.jsonl").exists()
    said = run(out, base_model_dir(), out, 2, 5, components=4)
    assert "BT, grades" in said and "30 pairs with several" in said, said


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="", help="a folder; the shipped base model without one")
    parser.add_argument("--out", type=Path, default=Path("out/annotators"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--components", type=int, default=COMPONENTS)
    parser.add_argument("--rows", type=Path, help="only write rows here")
    words = parser.parse_args()
    data = data_folder(os.environ.get("TRUELINE_DATA", ""))
    if words.rows:
        return write_files(data / "preference", words.rows)
    model = Path(words.model) if words.model else base_model_dir()
    print(run(data / "preference", model, words.out, words.seeds, components=words.components))


if __name__ == "__main__":
    main()
