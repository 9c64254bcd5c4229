"""`trueline eval` of reward models: how far each kind can be believed, as figures, as tables and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Trueline = Callable[..., tuple[int, str, str]]
CALIBRATION = {"pairs", "accuracy", "negative log-likelihood", "expected calibration error", "of a perfectly calibrated model"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_bradley_terry(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """Pairs and a ranking of three: 4 + 3 pairs."""
    words = ("--out", tmp_path / "rm", "--max_steps", 1, "--report_to")
    assert trueline("reward", "--model", tiny, "--data", pairs, *words)[0] == 0
    ranked = write(tmp_path / "ranked.jsonl", [{"prompt": "Count.", "responses": [" One.", " Two.", " Blue."], "ranks": [1, 2, 3]}])
    out_file, plot = tmp_path / "found.json", tmp_path / "plot.svg"
    code, out, err = trueline("eval", "--model", tmp_path / "rm", "--data", pairs, ranked, "--out", out_file, "--plot", plot)
    assert code == 0 and "temperature that fits best" in out and "accuracy by gap" in out and "score gap" in out, err
    found = json.loads(out_file.read_text())
    assert set(found) > CALIBRATION and found["pairs"] == 7
    bins = found["detail"]["reliability"]["bins"], found["detail"]["by_gap"]
    assert [sum(one["count"] for one in some) for some in bins] == [7, 7]
    assert plot.read_text().count("<path") == 2  # the diagonal, and sigmoid(gap)


def test_categories(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """On comparisons as a Bradley-Terry model; on ratings two of the three pairs of answers to one prompt differ in their score."""
    rated = [{"prompt": "Count.", "completion": f" {word}", "score": score} for word, score in (("Two.", 1), ("Red.", 1), ("One.", 3))]
    rows = write(tmp_path / "rated.jsonl", [*rated, {"prompt": "Name one.", "completion": " Blue.", "score": 2}])
    words = ("--objective.utilities", 1, 2, 3, "--max_steps", 1, "--report_to")
    assert trueline("dprm", "--model", tiny, "--data", rows, "--out", tmp_path / "dprm", *words)[0] == 0
    out_file, plot = tmp_path / "found.json", tmp_path / "plot.svg"
    code, out, err = trueline("eval", "--model", tmp_path / "dprm", "--data", rows, "--out", out_file, "--plot", plot)
    found = json.loads(out_file.read_text())
    assert code == 0 and found["responses"] == 4 and found["pairs of one prompt's responses"] == 2 and "accuracy by gap" in out, err
    assert sum(one["count"] for one in found["detail"]["by_gap"]) == 2
    assert sum(one["count"] for one in found["detail"]["reliability"]["bins"]) == 4 and "<g transform" in plot.read_text()
    code, out, err = trueline("eval", "--model", tmp_path / "dprm", "--data", pairs, "--out", out_file, "--plot", plot)
    found = json.loads(out_file.read_text())
    assert code == 0 and "gap of the expected utility" in out and set(found) > CALIBRATION and found["pairs"] == 4, err
    assert sum(one["count"] for one in found["detail"]["by_gap"]) == 4 and plot.read_text().count("<path") == 1


def test_text_has_no_calibration(trueline: Trueline, tiny: Path, tmp_path: Path) -> None:
    text = write(tmp_path / "text.jsonl", [{"text": "One."}])
    code, _, err = trueline("eval", "--model", tiny, "--data", text, "--plot", tmp_path / "x.svg")
    assert code == 2 and "nothing here states a probability" in err and not (tmp_path / "x.svg").exists()


def test_a_prompt_of_many_comparisons_is_one_prompt(trueline: Trueline, tiny: Path, tmp_path: Path) -> None:
    """60 prompts written three times each make the same reference as written once; too few are refused."""
    prompts = [{"prompt": f"Name a colour that begins with {chr(97 + n % 26)}{n}."} for n in range(60)]
    new = write(tmp_path / "new.jsonl", [{"prompt": f"{n} * {n + 1} - {7 * n} = ?!"} for n in range(8)])
    found = []
    for times in (1, 3):
        known, out_file = write(tmp_path / f"known-{times}.jsonl", prompts * times), tmp_path / f"found-{times}.json"
        code, out, err = trueline("eval", "--model", tiny, "--data", new, "--ood_reference", known, "--out", out_file)
        assert code == 0 and "different prompts" in out, err
        found.append(json.loads(out_file.read_text()))
    assert found[0]["reference"] == found[1]["reference"] and found[0]["detail"] == found[1]["detail"]
    few = write(tmp_path / "few.jsonl", prompts[:20] * 5)
    code, _, err = trueline("eval", "--model", tiny, "--data", new, "--ood_reference", few)
    assert code == 2 and "20 different prompts: name at least 50" in err
