"""The tables and the plot of recipes.human_preferences, from what its stages left on disk.

    python -m recipes.human_preferences_report --out out/preferences

Writes report.md and reliability.svg into the run folder and prints the tables. Accuracies are over decided pairs, out of fold, with 95%
intervals by bootstrap over opening questions; comparisons are paired. The bag of words is fitted here, on the same folds.
Cost: about a minute. Left out: training and scoring (recipes.human_preferences).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from recipes.human_preferences_words import (
    FOLDS,
    TextPair,
    fit,
    fold_of,
    length_differences,
    out_of_fold,
    percent,
    right,
    strongest,
    word_differences,
)
from trueline.evals.calibration import PairCalibration, pair_calibration
from trueline.evals.diagram import calibration_svg
from trueline.evals.interval import bootstrap_mean, paired_difference, sign_test
from trueline.store import write_atomic

HEAD = "| model | pairs | right (95%) | log loss | ECE | ECE by chance | temperature |\n|---|---|---|---|---|---|---|"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_texts(path: Path) -> tuple[list[TextPair], list[Any]]:
    """The pairs that a stage kept, and the column of their file that tells them apart."""
    rows = read(path)
    return [TextPair(*row[:4]) for row in rows], [row[4] for row in rows]


def gathered(out: Path, stages: Sequence[str], pairs: Sequence[TextPair], folds: int, name: str = "gaps") -> np.ndarray:
    """Gaps [N] in the order of the pairs, out of one file per fold; NaN for folds that were not run."""
    gap_N = np.full(len(pairs), np.nan)
    for k, stage in enumerate(stages):
        path = out / stage / f"{name}.json"
        if path.exists():
            gap_N[[n for n, pair in enumerate(pairs) if fold_of(pair.group, folds) == k]] = read(path)
    return gap_N


def whole(out: Path, name: str, count: int) -> np.ndarray:
    """Gaps [N] out of one file; NaN where the stage was not run."""
    return np.array(read(out / name)) if (out / name).exists() else np.full(count, np.nan)


def share(gap_N: np.ndarray, groups: Sequence[str]) -> str:
    """How often the preferred response is ahead; of a stage that ran in part, on the pairs that it has scored."""
    known = np.flatnonzero(~np.isnan(gap_N))
    if not len(known):
        return "not run"
    said = percent(bootstrap_mean(right(gap_N[known]), [groups[n] for n in known]))
    return said if len(known) == len(gap_N) else f"{said}, {len(known)} pairs"


def shown(name: str, gap_N: np.ndarray, pairs: Sequence[TextPair]) -> str:
    """A row under HEAD."""
    found = pair_calibration(gap_N)
    return (
        f"| {name} | {len(pairs):,} | {share(gap_N, [pair.group for pair in pairs])} | {found.nll:.3f} | "
        f"{found.reliability.ece:.3f} | {found.null_ece:.3f} | {found.temperature:.2f} |"
    )


def compared(first: str, a_N: np.ndarray, second: str, b_N: np.ndarray, pairs: Sequence[TextPair]) -> str:
    """The difference of two models on the same pairs, in one sentence."""
    one, other = right(a_N), right(b_N)
    gain = paired_difference(one, other, [pair.group for pair in pairs])
    wins, losses = int((one > other).sum()), int((one < other).sum())
    loss = paired_difference(np.logaddexp(0, -a_N), np.logaddexp(0, -b_N), [pair.group for pair in pairs])
    return (
        f"{first} minus {second}: {100 * gain.estimate:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}); only the first "
        f"right {wins}, only the second {losses}, exact McNemar p = {sign_test(wins, losses):.3f}; "
        f"log loss {loss.estimate:+.4f} ({loss.low:+.4f} to {loss.high:+.4f})"
    )


def combined(gaps_KN: Sequence[np.ndarray], fold_N: np.ndarray) -> np.ndarray:
    """Log-odds [N] of the best weighted sum of several models' gaps; the weights of each fold come from the other folds."""
    features_NK = np.stack([gap_N / np.abs(gap_N).mean() for gap_N in gaps_KN], 1)
    found_N = np.zeros(len(fold_N))
    for k in np.unique(fold_N):
        train, test = features_NK[fold_N != k], features_NK[fold_N == k]
        found_N[fold_N == k] = test @ (train.T @ fit(train @ train.T, np.ones(len(train)), 1.0))
    return found_N


def harmless(out: Path, pairs: Sequence[TextPair], abouts: Sequence[dict[str, Any]]) -> tuple[list[str], PairCalibration]:
    """The main table: all pairs, five folds."""
    fold_N = np.array([fold_of(pair.group, FOLDS) for pair in pairs])
    reward_N = gathered(out, [f"folds/{k}" for k in range(FOLDS)], pairs, FOLDS)
    table_NV, vocabulary = word_differences(pairs)
    words_N, length_N = out_of_fold(table_NV, pairs), out_of_fold(length_differences(pairs), pairs, penalty=1.0)
    both_N = combined([reward_N, words_N], fold_N)
    lost = abouts[0]["rows"] - len(pairs)
    of_all = [(float(right(gap_N).sum()) + lost / 2) / abouts[0]["rows"] for gap_N in (reward_N, words_N)]
    good, bad = strongest(table_NV, pairs, vocabulary)
    more: list[str] = []
    lines = [
        "## HH harmless pairs, five folds", "", HEAD,
        *(shown(name, gap_N, pairs) for name, gap_N in
          (("reward model", reward_N), ("bag of words", words_N), ("length alone", length_N), ("reward model and bag of words", both_N))),
        "", compared("reward model", reward_N, "bag of words", words_N, pairs),
        compared("both", both_N, "bag of words", words_N, pairs),
        compared("both", both_N, "reward model", reward_N, pairs),
        f"all {abouts[0]['rows']:,} rows, the {lost} that cannot be read counted as half right: reward model {of_all[0]:.1%}, bag of words "
        f"{of_all[1]:.1%}",
        "folds: " + ", ".join(f"{right(reward_N[fold_N == k]).mean():.1%}" for k in range(FOLDS)) + "; bag of words "
        + ", ".join(f"{right(words_N[fold_N == k]).mean():.1%}" for k in range(FOLDS)),
        f"words for a response: {', '.join(good)}; against it: {', '.join(bad)}",
        "", "## What it takes: other starts and fewer pairs, against the full one on the same folds", "",
        "| reward model | folds | pairs | right (95%) | the full one | log loss | the full one |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    arms = {"base model, code only": "unread", "half of the pairs": "curve/0.5"}
    arms |= {"a quarter of the pairs": "curve/0.25", "320 pairs": "curve/320"}
    for name, stage in arms.items():
        arm_N = gathered(out, [f"{stage}/{k}" for k in range(FOLDS)], pairs, FOLDS)
        where = np.flatnonzero(~np.isnan(arm_N))
        if not len(where):
            lines.append(f"| {name} | not run | | | | | |")
            continue
        same, some, full = [pairs[n] for n in where], arm_N[where], reward_N[where]
        group = [pair.group for pair in same]
        losses = [np.logaddexp(0, -gap_N).mean() for gap_N in (some, full)]
        lines.append(
            f"| {name} | {len(set(fold_N[where]))} | {len(where)} | {share(some, group)} | {share(full, group)} | {losses[0]:.3f} | "
            f"{losses[1]:.3f} |"
        )
        more.append(compared("full", full, name, some, same))
    lines += ["", *more]
    found = pair_calibration(reward_N)
    lines += ["", "## Calibration", "", "| score gap | pairs | mean gap | it says | right |", "|---|---|---|---|---|"]
    lines += [
        f"| {b.low:.2f} to {b.high:.2f} | {b.count} | {b.confidence:.2f} | {1 / (1 + np.exp(-b.confidence)):.1%} | {b.accuracy:.1%} |"
        for b in found.by_gap
    ]
    return lines, found


def helpful(out: Path) -> list[str]:
    """tulu1, pandalm and LLMBar under the reward model of helpfulness, that of harmlessness, words and length."""
    lines = ["", "## Helpfulness and LLMBar", ""]
    lines += ["| pairs | count | helpful reward model | harmless reward model | bag of words | longer |"]
    lines += ["|---|---|---|---|---|---|"]
    sets = {name: read_texts(out / f"pairs/{name}.json") for name in ("tulu1", "pandalm", "llmbar")}
    both = [*sets["tulu1"][0], *sets["pandalm"][0]]
    features_NV, _ = word_differences([*both, *sets["llmbar"][0]])
    words_N = out_of_fold(features_NV[: len(both)], both, 2, penalty=30.0)
    inside = features_NV[: len(both)]
    a_N = fit(inside @ inside.T, np.array([pair.preferred for pair in both]), 30.0)
    words = {
        "tulu1": words_N[: len(sets["tulu1"][0])], "pandalm": words_N[len(sets["tulu1"][0]) :],
        "llmbar": features_NV[len(both) :] @ (inside.T @ a_N),
    }  # fmt: skip
    for name, (pairs, notes) in sets.items():
        if name == "llmbar":  # seen by neither half
            halves = [whole(out, f"helpful/{k}/llmbar.json", len(pairs)) for k in (0, 1)]
            halves = [half for half in halves if not np.isnan(half).any()] or halves[:1]
            gap_N = np.mean(halves, 0)
        else:
            gap_N = gathered(out, ["helpful/0", "helpful/1"], pairs, 2, name)
        harmless_N = whole(out, f"harmless/{name}.json", len(pairs))
        length_N = length_differences(pairs)[:, 0]
        kinds = [kind_of(name, note) for note in notes]
        decided = [n for n, pair in enumerate(pairs) if pair.preferred != 0.5]
        for kind in ("", *sorted(set(kinds))):
            some = [n for n in decided if not kind or kinds[n] == kind]
            if not some:
                continue
            group = [pairs[n].group for n in some]
            cells = [share(x[some], group) for x in (gap_N, harmless_N, words[name], length_N)]
            lines.append(f"| {name}{', ' + kind if kind else ', all'} | {len(some)} | {' | '.join(cells)} |")
    lines += ["", agreement_of_three(sets["pandalm"][1]), agreement_of_two(*sets["tulu1"])]
    return lines


def kind_of(name: str, note: Sequence[Any]) -> str:
    """What sets pairs apart: the grade, how many annotators agree, the subset."""
    match name:
        case "tulu1":
            return "tie" if note[0] == "tie" else "slightly better" if "slightly" in note[0] else "clearly better"
        case "pandalm":
            return "three agree" if len(set(note)) == 1 else "two of three or fewer"
        case "llmbar":
            return note[0].removeprefix("LLMBar/")
    return ""


def agreement_of_three(votes: Sequence[Sequence[int]]) -> str:
    """How often two annotators who both prefer a response prefer the same one."""
    both = [(a, b) for three in votes for a, b in combinations(three, 2) if a and b]
    same = sum(a == b for a, b in both)
    return f"pandalm: two annotators who both choose agree in {same / max(1, len(both)):.1%} of {len(both):,} cases"


def agreement_of_two(pairs: Sequence[TextPair], notes: Sequence[Sequence[str]]) -> str:
    """The same for what was judged twice: by the same two texts."""
    seen: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for pair, (grade,) in zip(pairs, notes, strict=True):
        if grade != "tie":
            seen[pair.group, *sorted((pair.first, pair.second))].append(pair.first)
    both = [(a, b) for firsts in seen.values() for a, b in combinations(firsts, 2)]
    same = sum(a == b for a, b in both)
    return f"tulu1: of {len(both)} pairs that two people decided, they agree on {same / max(1, len(both)):.1%}"


def dpo(out: Path, pairs: Sequence[TextPair]) -> list[str]:
    """DPO on four folds, its implicit reward on the fifth, and what became of its replies."""
    if not (out / "dpo/measured.json").exists():
        return []
    found, inside = read(out / "dpo/measured.json"), [pair for pair in pairs if fold_of(pair.group, FOLDS) == 0]
    before, after = np.array(found["reference_logps"]), np.array(found["policy_logps"])
    moved = after - before
    implicit_N, group = 0.1 * (moved[:, 0] - moved[:, 1]), [pair.group for pair in inside]
    reward_N = np.array(read(out / "folds/0/gaps.json"))
    rows = {"DPO's implicit reward": implicit_N, "reward model": reward_N, "likelihood under SFT": before[:, 0] - before[:, 1]}
    judged = {name: np.array(values) for name, values in found["judged"].items()}
    gain = paired_difference(judged["dpo"], judged["sft"])
    kl = found["kl"]
    return [
        "", "## DPO on four folds, measured on the fifth", "", "| what ranks the pair | pairs | right (95%) |", "|---|---|---|",
        *(f"| {name} | {len(group)} | {percent(bootstrap_mean(right(gap_N), group))} |" for name, gap_N in rows.items()),
        "", compared("implicit reward", implicit_N, "reward model", reward_N, inside),
        f"margin {implicit_N.mean():+.3f} (beta 0.1); log-probability of preferred responses {moved[:, 0].mean():+.2f}, "
        f"of the others {moved[:, 1].mean():+.2f} nats per response, from {before[:, 0].mean():.0f} and {before[:, 1].mean():.0f}",
        f"KL from SFT {kl['estimate']:.2f} nats per reply ({kl['low']:.2f} to {kl['high']:.2f}) on {kl['n']} prompts; tokens per reply "
        f"{found['tokens']['sft']:.0f} before, {found['tokens']['dpo']:.0f} after (at most 64)",
        f"score of its replies by the reward model of fold 0: {judged['sft'].mean():.2f} before, {judged['dpo'].mean():.2f} after, "
        f"{gain.estimate:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})",
        "", *(f"{name}: {text!r}" for name, texts in found["replies"].items() for text in texts),
    ]  # fmt: skip


def report(out: Path) -> str:
    """All tables, also written to report.md, and the plot."""
    abouts = read(out / "rows.json")
    pairs, _ = read_texts(out / "pairs/hh.json")
    lines = ["## Rows", "", "| file | rows | pairs | left out | prompts cut, tokens | responses cut, tokens |", "|---|---|---|---|---|---|"]
    for a in abouts:
        why = "; ".join(f"{reason} ({count})" for reason, count in a["left_out"].items()) or "none"
        cut = f"{a['prompts_cut']}, {a['prompt_tokens_lost']:,} | {a['responses_cut']}, {a['response_tokens_lost']:,}"
        lines.append(f"| {a['file']} | {a['rows']:,} | {a['pairs']:,} | {why} | {cut} |")
    bits = read(out / "start/start.json")["bits_per_byte"]
    rates = read(out / "rates/rates.json")
    lines += ["", f"bits per byte on held-out English: base {bits['base']:.3f}, after English {bits['english']:.3f}"]
    lines += ["learning rates, loss on the inner split: " + ", ".join(f"{rate}: {loss:.4f}" for rate, loss in rates.items()), ""]
    more, found = harmless(out, pairs, abouts)
    text = "\n".join([*lines, *more, *helpful(out), *dpo(out, pairs)])
    write_atomic(out / "report.md", text + "\n")
    write_atomic(out / "reliability.svg", calibration_svg(found.reliability, found.by_gap, log_odds=True))
    return text


def rehearse(folder: Path) -> None:
    """Made-up gaps of a few pairs."""
    rng = np.random.default_rng(0)
    texts = [(f"question {i}", f"sorry {i}", f"yes {i} yes", 1.0) for i in range(60)]
    notes = {"hh": [], "tulu1": ["a-is-better"], "pandalm": [1, 1, 2], "llmbar": ["LLMBar/Natural"]}
    files: dict[str, Any] = {f"pairs/{name}.json": [[*text, note] for text in texts] for name, note in notes.items()}
    drawn = Counter(fold_of(text[0], FOLDS) for text in texts)
    halves = Counter(fold_of(text[0], 2) for text in texts)
    files |= {f"{stage}/{k}/gaps.json": rng.normal(1, 1, drawn[k]).tolist() for stage in ("folds", "unread") for k in range(FOLDS)}
    files |= {f"helpful/{k}/{name}.json": rng.normal(1, 1, halves[k]).tolist() for name in ("tulu1", "pandalm") for k in (0, 1)}
    files |= {f"helpful/{k}/llmbar.json": rng.normal(0, 1, 60).tolist() for k in (0, 1)}
    files |= {f"harmless/{name}.json": rng.normal(0, 1, 60).tolist() for name in ("tulu1", "pandalm", "llmbar")}
    about = {"file": "f", "rows": 62, "pairs": 60, "left_out": {"empty": 2}, "prompts_cut": 1, "prompt_tokens_lost": 9, "responses_cut": 0}
    files["rows.json"] = [about | {"response_tokens_lost": 0}]
    files["start/start.json"], files["rates/rates.json"] = {"bits_per_byte": {"base": 3.0, "english": 2.0}}, {"0.0001": 0.69}
    logps = rng.normal(-50, 1, (drawn[0], 2))
    files["dpo/measured.json"] = {
        "reference_logps": logps.tolist(), "policy_logps": (logps + np.array([1, 0])).tolist(), "tokens": {"sft": 9, "dpo": 9},
        "kl": {"estimate": 1, "low": 0, "high": 2, "n": 3}, "judged": {"sft": [0.0, 1.0], "dpo": [1.0, 2.0]},
        "replies": {"sft": ["a"], "dpo": ["b"]},
    }  # fmt: skip
    for name, content in files.items():
        write_atomic(folder / name, json.dumps(content))
    said = report(folder)
    assert "| bag of words | 60 | 100.0%" in said and "| DPO's implicit reward |" in said and "all 62 rows" in said


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run folder of recipes.human_preferences")
    print(report(parser.parse_args().out))


if __name__ == "__main__":
    main()
