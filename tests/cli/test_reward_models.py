"""Reward models on the command line: categories, levels, weighted sums, strange prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Trueline = Callable[..., tuple[int, str, str]]
WORDS = ("Blue.", "It is 4.", "Seven.", "Tuesday.")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """Two people and a judge on eight responses, scores 1 to 3."""
    rows = [
        {"prompt": f"Question {n}?", "completion": " " + WORDS[n % 4], "score": 1 + (n + k) % 3, "annotator": name}
        for n in range(8)
        for k, name in enumerate(("ann", "bob", "model"))
    ]
    return write(tmp_path / "ratings.jsonl", rows)


def test_ratings_become_a_reward_model_of_categories(trueline: Trueline, tiny: Path, ratings: Path, pairs: Path) -> None:
    folder, votes = ratings.parent, ratings.parent / "votes.jsonl"
    code, out, err = trueline(
        "data", "pool", "--data", ratings, "--out", votes, "--levels", 1, 2, 3, "--judge", "model", "--strength", 2, "--smoothing", 0.1
    )
    assert code == 0 and "8 responses" in out and "4 picks each" in out, err
    counts = json.loads(votes.read_text().splitlines()[0])["counts"]
    assert counts == pytest.approx([0.9, 0.1 + 0.9, 0.1 + 2])  # picks 1 and 2, smoothed towards 3; the judge says 3
    code, out, err = trueline(
        "dprm", "--model", tiny, "--data", votes, "--out", folder / "dprm", "--objective.utilities", "-1", 0, 2, "--objective.loss_type",
        "transport", "--max_steps", 2, "--report_to",
    )  # fmt: skip
    assert code == 0 and "eval --data HELD_OUT" in err
    config = json.loads((folder / "dprm" / "config.json").read_text())
    assert config["utilities"] == [-1, 0, 2] and config["num_labels"] == 3
    code, out, err = trueline("eval", "--model", folder / "dprm", "--data", votes, "--out", folder / "found.json")
    assert code == 0 and "error of the expected utility" in out, err
    found = json.loads((folder / "found.json").read_text())
    assert found["responses"] == 8 and len(found["detail"]["predicted"]) == 3
    code, out, err = trueline("eval", "--model", folder / "dprm", "--data", pairs)
    assert code == 0 and "accuracy" in out and "4" in out, err
    responses = write(folder / "drawn.jsonl", [{"prompt": "Count.", "responses": ["One, two.", "Seven.", "Blue."]}])
    code, out, err = trueline("judge", "--judge", folder / "dprm", "--data", responses, "--out", folder / "judged.jsonl")
    assert code == 0 and "scores of 3 responses" in out, err
    code, out, err = trueline("plan", folder / "dprm")
    assert code == 0 and "peak" in out, out + err
    code, _, err = trueline("dprm", "--model", tiny, "--data", votes, "--out", folder / "six", "--max_steps", 1)
    assert code == 2 and "counts of 3 categories and there are 6 utilities" in err


def test_levels_and_weights(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    from trueline.cli.judge import judge_named
    from trueline.models.files import load_scalar_model
    from trueline.records import TEXT, Message

    for seed, name in enumerate(("helpful", "harmless")):
        code, _, err = trueline(
            "reward", "--model", tiny, "--data", pairs, "--out", tmp_path / name, "--max_steps", 2, "--seed", seed, "--report_to"
        )
        assert code == 0, err
    code, out, err = trueline("center", "--model", tmp_path / "helpful", "--data", pairs)
    shift = load_scalar_model(tmp_path / "helpful").reward_shift
    assert code == 0 and shift != 0 and f"{shift:.4g}" in out, err
    code, out, err = trueline("center", "--model", tmp_path / "helpful", "--data", pairs)  # again: the same mean, not 0
    assert code == 0 and load_scalar_model(tmp_path / "helpful").reward_shift == pytest.approx(shift) and "before" in out, err
    drawn = write(tmp_path / "drawn.jsonl", [{"prompt": "Count.", "responses": ["One, two.", "Seven."]}])

    def mean(judge: str) -> float:
        code, out, err = trueline("judge", "--judge", judge, "--data", drawn, "--out", tmp_path / "judged.jsonl")
        assert code == 0, err
        return float(out.split("mean ")[1].split(",")[0])

    judge = judge_named(str(tmp_path / "helpful"))
    prompt, said = (Message(role=TEXT, content="Count."),), [(Message(role=TEXT, content=text),) for text in ("One, two.", "Seven.")]
    both_scores = judge.judge(prompt, said)
    assert judge.judge(prompt, said[1:]) == pytest.approx(both_scores[1:], abs=1e-5)  # alone
    assert judge.judge(prompt, [said[0], said[0]]) == pytest.approx([both_scores[0]] * 2, abs=1e-5)  # and beside its like
    one, two = mean(str(tmp_path / "helpful")), mean(str(tmp_path / "harmless"))
    both = mean(f"{tmp_path / 'helpful'}=0.5,{tmp_path / 'harmless'}=-2")
    assert both == pytest.approx(0.5 * one - 2 * two, abs=0.01 * (abs(one) + 2 * abs(two)))  # three digits are printed
    curve = tmp_path / "curve.json"
    words = ("--first", tmp_path / "helpful", "--second", tmp_path / "harmless", "--weights", 0, 1, "--out", curve)
    code, out, err = trueline("tradeoff", "--data", drawn, *words)
    assert code == 0 and "weight of helpful" in out, err
    at = json.loads(curve.read_text())["curve"]
    assert at[0]["second"]["estimate"] > 0 < at[1]["first"]["estimate"] and at[0]["first"]["estimate"] <= at[1]["first"]["estimate"]
    code, _, err = trueline("center", "--model", tiny, "--data", pairs)
    assert code == 2 and "is a language model, not a reward model" in err


def test_strange_prompts(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    known = write(tmp_path / "known.jsonl", [{"prompt": f"Name a colour that begins with {chr(97 + n % 26)}{n}."} for n in range(60)])
    new = write(tmp_path / "new.jsonl", [{"prompt": f"{n} * {n + 1} - {7 * n} = ?!"} for n in range(20)])
    out_file = tmp_path / "found.json"
    code, out, err = trueline("eval", "--model", tiny, "--data", new, "--ood_reference", known, "--out", out_file)
    assert code == 0 and "AUROC" in out, err
    found = json.loads(out_file.read_text())
    assert found["AUROC against the held-out prompts"] > 0.9 and len(found["detail"]["prompts"]) == 20
    code, _, err = trueline("eval", "--model", tiny, "--data", new, "--ood_reference", pairs)
    assert code == 2 and "name at least 50" in err


def test_a_pessimistic_reward_and_an_enhancer(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """The spread of two models lowers a score by what they disagree; iterate is driven by it, against the reference's draws."""
    from trueline.cli.judge import judge_named
    from trueline.records import TEXT, Message

    for seed, name in enumerate(("one", "two")):
        words = ("--max_steps", 1, "--seed", seed, "--report_to")
        assert trueline("reward", "--model", tiny, "--data", pairs, "--out", tmp_path / name, *words)[0] == 0
    pair = f"{tmp_path / 'one'}=0.5,{tmp_path / 'two'}=0.5"
    prompt, said = (Message(role=TEXT, content="Count."),), [(Message(role=TEXT, content=text),) for text in ("One, two.", "Seven.")]
    one, two = (judge_named(str(tmp_path / name)).judge(prompt, said) for name in ("one", "two"))
    expected = [(a + b) / 2 - abs(a - b) / 2 for a, b in zip(one, two, strict=True)]
    assert judge_named(f"{pair},spread=-1").judge(prompt, said) == pytest.approx(expected, abs=1e-5)
    asked = write(tmp_path / "asked.jsonl", [{"prompt": f"Count to {n}."} for n in range(4)])
    code, _, err = trueline(
        "iterate", "--model", tiny, "--data", asked, "--reward_model", f"{pair},spread=-1", "--objective.enhancer", "reference",
        "--num_generations", 2, "--max_completion_length", 4, "--per_device_train_batch_size", 2, "--max_steps", 1,
        "--out", tmp_path / "policy", "--report_to",
    )  # fmt: skip
    assert code == 0 and (tmp_path / "policy" / "finished.json").is_file(), err
