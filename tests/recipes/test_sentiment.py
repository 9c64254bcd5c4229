"""The controlled-sentiment recipe: its truth, its prompts and pairs, and how its frontiers are read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from recipes.sentiment import LONGEST, SHORTEST, Sizes, beginnings, compared, corpus
from recipes.sentiment_report import at, differences, rewards_at, verdict
from recipes.sentiment_truth import Truth, accuracy, features, fit, made_up, sentences
from trueline.tokens import train_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("sentiment") / "data", 120)


@pytest.fixture(scope="module")
def tokenizer(data):
    return train_tokenizer([text for text, _ in sentences(data, held=False)], vocab_size=300)


def test_logit_by_hand():
    truth = Truth({"good": 2.0, "film": -1.0, "good film": 0.5}, 0.25)
    assert features("Good film<br />") == {"good", "film", "good film"}
    assert truth.logit("A good film .") == pytest.approx(0.25 + 1.5 / math.sqrt(3))
    assert truth.positive("nothing known") == pytest.approx(1 / (1 + math.exp(-0.25)))
    assert truth.logit("good good good") == pytest.approx(0.25 + 2.0), "a word that is said again adds nothing"


def test_classifier_learns_and_the_penalty_holds_it(data):
    texts = sentences(data, held=False)
    truth, held = fit(texts), fit(texts, penalty=30.0)
    assert accuracy(truth, sentences(data, held=True)) == 1.0
    assert abs(held.weights["dull"]) < abs(truth.weights["dull"]) and truth.weights["dull"] < 0 < truth.weights["warm"]


def test_what_is_held_out_is_not_read(data, tokenizer):
    held = {text for text, _ in sentences(data, held=True)}
    read = {document.text for document in corpus(data, tokenizer, 40, 10_000)}
    own = {text for text, _ in sentences(data, held=False)}
    assert held and read & own and not held & own
    assert len(corpus(data, tokenizer, 40, 100)) < 10, "stops when there are enough tokens"


def test_beginnings_are_whole_words_of_two_to_eight_tokens(data, tokenizer):
    found = [prompt[0].content for prompt in beginnings(data, tokenizer, 50)]
    whole = [text for text, _ in sentences(data, held=True)]
    assert len(found) == len(set(found)) > 5
    for begin in found:
        text = next(text for text in whole if text.startswith(begin + " "))
        ids = tokenizer.encode(begin)
        assert SHORTEST <= len(ids) <= LONGEST
        assert list(tokenizer.encode(text)[: len(ids)]) == list(ids), "the ending begins with a token of its own"
    assert not any(message.train for (message,) in beginnings(data, tokenizer, 5)), "a prompt is not trained on"


def test_pairs_are_ordered_by_the_truth_and_equal_texts_are_one(tmp_path):
    path = tmp_path / "pairs.json"
    endings = [[" bad .", 0.1], [" good .", 0.9], [" good .", 0.9], [" also good .", 0.9]]
    path.write_text(json.dumps([["a film", endings], ["one text", [[" x", 0.5], [" x", 0.5]]]]), encoding="utf-8")
    (one,) = compared(tmp_path, tmp_path, Truth({}, 0.0), path, Sizes())
    assert [response[0].content for response in one.responses] == [" bad .", " good .", " also good ."]
    assert one.judgement.ranks == (2, 1, 1)


def test_reward_at_a_kl_is_linear_in_its_root_and_not_beyond_the_run():
    path = (np.array([0.0, 4.0, 9.0]), np.array([0.5, 0.7, 0.75]))
    assert at(path, 1.0) == pytest.approx(0.6) and at(path, 4.0) == pytest.approx(0.7)
    assert math.isnan(at(path, 9.1))


def line(gain: float, offset: float = 0.3, most: float = 16.0):
    """A run whose reward is `offset` and `gain` per root of KL."""
    return np.array([0.0, most]), np.array([offset, offset + math.sqrt(most) * gain])


def test_differences_are_of_the_same_seed():
    runs = {
        "a": {1e-3: {0: line(0.1, 0.3), 1: line(0.1, 0.6)}},
        "b": {1e-3: {0: line(0.05, 0.3), 1: line(0.06, 0.6)}},
    }
    gap, error = differences(runs, "a")["b"][3]  # KL 4: root 2
    assert gap == pytest.approx((0.1 + 0.08) / 2) and error == pytest.approx(0.01), "the seeds' levels cancel"


def test_the_rate_of_a_seed_is_chosen_by_the_others():
    """Seed 0 shines at the second rate, where the others do badly: it is read at the first, and they at the second."""
    rates = {
        1e-4: {0: line(0.05), 1: line(0.05), 2: line(0.05)},
        1e-3: {0: line(0.14), 1: line(0.01), 2: line(0.01)},
    }
    found = rewards_at(rates, 4.0)
    assert found[0] == pytest.approx(0.3 + 2 * 0.05), "its own luck at the second rate has no say"
    assert found[1] == found[2] == pytest.approx(0.3 + 2 * 0.01), "the mean of seeds 0 and 2 is higher at the second rate"
    short = {1e-4: rates[1e-4], 1e-3: {seed: line(0.2, most=1.0) for seed in range(3)}}
    assert rewards_at(short, 4.0)[0] == pytest.approx(0.4), "a rate that does not get there is no choice"


def test_verdicts():
    assert verdict([(0.1, 0.01), (0.1, 0.02)]).startswith("reproduced")
    assert verdict([(0.1, 0.01), (0.1, 0.2), (math.nan, math.nan)]).startswith("partly")
    assert verdict([(0.1, 0.01), (-0.1, 0.01)]).startswith("not reproduced")
    assert verdict([(0.1, 0.2)]).startswith("not told apart") and verdict([(math.nan, 0.0)]) == "no common KL"
