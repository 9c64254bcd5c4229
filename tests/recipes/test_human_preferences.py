"""The pure parts of the recipe of real preferences: what is cut, what is in which fold, what the baseline fits."""

import importlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trueline.records import Comparison, Counts, Message, Ranking, Row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(monkeypatch):
    """The four files of the recipe."""
    monkeypatch.syspath_prepend(str(ROOT))
    parts = {"main": "", "start": "_start", "words": "_words", "report": "_report"}
    return SimpleNamespace(
        **{name: importlib.import_module(f"recipes.human_preferences{end}") for name, end in parts.items()}
    )


def row_of(prompt, *responses):
    """Ids that count up, so that every position is known."""
    ids = tuple(np.array([*range(prompt), *range(1000, 1000 + n)], dtype=np.int32) for n in responses)
    scored = tuple(np.arange(len(x)) >= prompt for x in ids)
    return Row(ids=ids, scored=scored, numbers={"rank": np.array([1, 2], dtype=np.float32)})


def test_trim_takes_the_oldest_tokens_from_both_sides(recipe):
    row, lost, cut = recipe.main.trim(row_of(300, 20, 56), 256, 1024)
    assert (lost, cut) == (100, 0)
    assert [len(ids) for ids in row.ids] == [220, 256]
    assert row.ids[0][0] == row.ids[1][0] == 100 and row.ids[1][-1] == 1055
    assert [int(s.sum()) for s in row.scored] == [20, 56] and not row.scored[0][199] and row.scored[0][200]
    assert list(row.numbers["rank"]) == [1, 2]


def test_trim_leaves_what_fits_and_some_of_the_prompt_whatever_the_reply(recipe):
    row, lost, cut = recipe.main.trim(row_of(100, 20, 56), 256, 1024)
    assert (lost, cut) == (0, 0) and len(row.ids[0]) == 120
    row, lost, cut = recipe.main.trim(row_of(100, 20, 400), 256, 320)
    assert lost == 100 - recipe.main.PROMPT_LEAST and cut == 80
    assert [int(s.sum()) for s in row.scored] == [20, 320]


def chat(*said):
    return tuple(
        Message(role="user" if i % 2 == 0 else "assistant", content=text, train=False) for i, text in enumerate(said)
    )


def reply(text):
    return (Message(role="assistant", content=text),)


def test_a_pair_comes_best_first(recipe):
    def pair(judgement):
        return recipe.words.text_pair(
            Comparison(prompt=chat("first", "b", "c"), responses=(reply("x"), reply("y")), judgement=judgement)
        )

    assert pair(Ranking((2, 1))) == recipe.words.TextPair("first", "y", "x", 1.0)
    assert pair(Ranking((1, 1))).preferred == 0.5
    assert pair(Counts((0.5, 2.5))) == recipe.words.TextPair("first", "y", "x", 2.5 / 3)
    assert pair(Counts((0.0, 0.0))).preferred == 0.5


def test_the_opening_of_text_is_that_of_the_chat(recipe):
    text = Message(role="text", content="\n\nHuman: how so?\n\nAssistant: so.\n\nHuman: ah\n\nAssistant:", train=False)
    assert recipe.words.opening((text,)) == recipe.words.opening(chat("how so?", "so.", "ah")) == "how so?"


def test_folds_are_fixed_and_of_equal_size(recipe):
    found = Counter(recipe.words.fold_of(f"question {i}", 5) for i in range(5000))
    assert set(found) == set(range(5)) and all(900 < count < 1100 for count in found.values())
    assert [recipe.words.fold_of(f"question {i}", 5) for i in range(6)] == [4, 2, 1, 1, 4, 1]
    inner = [recipe.words.fold_of(f"question {i}", 5, "inner ") for i in range(6)]
    assert inner != [4, 2, 1, 1, 4, 1]


def test_the_fit_is_where_the_gradient_is_zero(recipe):
    rng = np.random.default_rng(0)
    x, p, penalty = rng.normal(size=(30, 50)), rng.choice([0.5, 1.0], 30), 3.0
    w = x.T @ recipe.words.fit(x @ x.T, p, penalty)
    np.testing.assert_allclose(x.T @ (p - 1 / (1 + np.exp(-x @ w))), penalty * w, atol=1e-8)


def test_a_prediction_never_sees_its_own_fold(recipe):
    rng = np.random.default_rng(1)
    pairs = [recipe.words.TextPair(f"q {i // 2}", "", "", float(rng.choice([0.5, 1.0]))) for i in range(60)]
    features, fold_N = rng.normal(size=(60, 4)), np.array([recipe.words.fold_of(p.group, 5) for p in pairs])
    before = recipe.words.out_of_fold(features, pairs, penalty=1.0)
    turned = [recipe.words.TextPair(p.group, "", "", 1.5 - p.preferred) if k == 2 else p for p, k in zip(pairs, fold_N, strict=True)]
    after = recipe.words.out_of_fold(features, turned, penalty=1.0)
    np.testing.assert_array_equal(before[fold_N == 2], after[fold_N == 2])
    assert np.abs(before - after)[fold_N != 2].min() > 1e-6

    gaps = [rng.normal(size=60), rng.normal(size=60)]
    before = recipe.report.combined(gaps, fold_N)
    after = recipe.report.combined([np.where(fold_N == 2, -gap_N, gap_N) for gap_N in gaps], fold_N)
    np.testing.assert_array_equal(after[fold_N == 2], -before[fold_N == 2])  # the same weights, of the other folds
    assert np.abs(before - after)[fold_N != 2].min() > 1e-6


def test_word_differences_count_words(recipe):
    table, names = recipe.words.word_differences([recipe.words.TextPair("q", "No, no: don't", "yes no", 1.0)])
    said = dict(zip(names, table[0], strict=True))
    assert said == pytest.approx({"no": np.log(3 / 2), "don't": np.log(2), "yes": -np.log(2)})
    assert recipe.words.length_differences([recipe.words.TextPair("q", "a b c", "a", 1.0)])[0, 0] == 2 / 50


def test_ties_are_right_by_half(recipe):
    assert recipe.words.right([2.0, -0.1, 0.0]).tolist() == [1, 0, 0.5]


def test_pieces_lose_nothing(recipe):
    text = "".join(f"line {i} of some length\n" for i in range(100)) + "x" * 500
    found = list(recipe.start.pieces(text, 200))
    assert "\n".join(found) == text and max(map(len, found)) == 500 and len(found) > 10


def test_tested_questions_are_not_trained_on(recipe, tmp_path):
    data = recipe.start.made_up(tmp_path)
    tested = recipe.start.tested_prompts(data)
    asked = ("Question 7 of many?", "Write poem 3.", "explain 5", "Do 2.", "Only to evaluate.")
    assert {recipe.start.prompt_key(question) for question in asked} <= tested
    texts, said = recipe.start.mixture(data, 1_000_000, tested, seed=0)
    assert not any("Write poem" in text for text in texts) and "'alpaca_en_demo': 1" in said
    assert recipe.start.mixture(data, 1_000_000, tested, seed=0)[0] == texts
    assert sum(len(t) for t in recipe.start.mixture(data, 3000, tested, seed=0)[0]) < sum(map(len, texts))


def test_gaps_of_folds_come_back_in_order(recipe, tmp_path):
    pairs = [recipe.words.TextPair(f"q {i}", "", "", 1.0) for i in range(20)]
    folds = [recipe.words.fold_of(p.group, 2) for p in pairs]
    for k in (0, 1):
        (tmp_path / str(k)).mkdir()
        (tmp_path / f"{k}/gaps.json").write_text(str([float(i) for i in range(20) if folds[i] == k]))
    assert recipe.report.gathered(tmp_path, ["0", "1"], pairs, 2).tolist() == list(range(20))
    assert np.isnan(recipe.report.gathered(tmp_path, ["0"], pairs, 2)).sum() == folds.count(1)


def test_agreement_counts_those_who_choose(recipe):
    assert "66.7% of 3 cases" in recipe.report.agreement_of_three([(1, 1, 0), (2, 1, 0), (2, 2, 0), (0, 0, 1)])
    pairs = [recipe.words.TextPair("q", *texts, 1.0) for texts in (("a", "b"), ("b", "a"), ("c", "d"), ("c", "d"))]
    assert "of 2 pairs that two people decided, they agree on 50.0%" in recipe.report.agreement_of_two(pairs, [["a-is-better"]] * 4)
