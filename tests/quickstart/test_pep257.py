"""The judge against people, against shuffled pairs, and against those who would game it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from trueline.quickstart.grounding import other_functions
from trueline.quickstart.pep257 import WEIGHTS, Pep257Judge, annotate, explain, preference, read_prompt
from trueline.quickstart.prompts import prompt_text
from trueline.quickstart.verbs import base_form, is_base_verb
from trueline.records import Message

READ = (
    "name: read config file\narguments: path encoding\ncalls: open json load\n"
    "body:\nwith open(path, encoding=encoding) as handle:\n    return json.load(handle)"
)
COUNT = (
    "name: count words\nclass: text statistics\narguments: text min length\ncalls: text split append\n"
    "body:\ncounts = {}\nfor word in text.split():\n    if len(word) >= min_length:\n        counts[word] = counts.get(word, 0) + 1\n"
    "return counts"
)


def score(prompt: str, response: str, prose) -> float:
    return explain(read_prompt(prompt), response, prose).score


@pytest.mark.parametrize(
    ("prompt", "ordered"),
    [
        (
            READ,
            [
                "Read a JSON configuration file and return its contents.",
                "Read the config file.",
                "Reads config file",
                "Return the value.",
            ],
        ),
        (
            READ,
            [
                "Read the configuration from a JSON file.",
                "Configuration file reader.",
                "Return the number of nodes in the graph.",
            ],
        ),
        (
            READ,
            ["Read the config file at the given path.", "Reads the config file at the given path", "Read the file or"],
        ),
        (COUNT, ["Count the words of a text.", "Counts the words", "Word counter", "Return the result."]),
        (
            COUNT,
            [
                "Count how often each word occurs in a text.",
                "Count words in list.",
                "The function that does the thing.",
                "Foo",
            ],
        ),
    ],
)
def test_good_is_better_than_mediocre_is_better_than_bad(prompt: str, ordered: list[str], prose) -> None:
    scores = [score(prompt, response, prose) for response in ordered]
    assert all(better > worse + 0.3 for better, worse in pairwise(scores)), list(zip(ordered, scores, strict=True))


GAMES = {
    "name twice": "Read config file read config file.",
    "name behind another verb": "Return the read config file.",
    "name and arguments": "Read config file path encoding.",
    "arguments listed": "Read the config file with path and encoding.",
    "keywords": "Read file config json load open path encoding.",
    "keywords with articles": "Read the config, the file, the json, the path, the encoding.",
    "chain": "Read the config of the file of the path of the encoding.",
    "the signature": "Read_config_file(path, encoding).",
    "the call": "Call json.load(handle) to read_config_file.",
    "generic": "Return the value.",
    "generic tail": "Read the config file and return the result of the function.",
    "said twice": "Read the config file and the config file.",
    "stutter": "Read the the config config file.",
    "another function": "Return the number of nodes in the graph.",
    "no words": "Zxqv the blorf of the config file.",
    "shouting": "Read the config file!!!",
    "endless": "Read the config file " + "and then read it again from the place where it was " * 3 + "read.",
    "two lines": "Read the config file.\nRead a JSON configuration file from the path.",
    "loose end": "Read the configuration from the JSON file and the",
    "nothing": "",
    "stops only": "Read .................",
}


@pytest.mark.parametrize("game", GAMES)
def test_gaming_scores_below_an_honest_summary(game: str, prose) -> None:
    honest = min(
        score(READ, s, prose) for s in ("Read the configuration from a JSON file.", "Read the config file at the path.")
    )
    assert score(READ, GAMES[game], prose) < honest - 1.0, explain(read_prompt(READ), GAMES[game], prose)


def test_scores_stay_between_0_and_10_and_the_weights_sum_to_10(prose, library_split) -> None:
    assert sum(WEIGHTS.values()) == 10
    verdict = explain(read_prompt(READ), "Read a JSON config file and return its contents.", prose)
    assert set(verdict.parts) == set(WEIGHTS) and all(0 <= v <= 1 for v in {**verdict.parts, **verdict.guards}.values())
    assert 8 < verdict.score <= 10
    assert all(0 <= score(prompt_text(f, 64, None), f.summary, prose) <= 10 for f in library_split.test[::5])


def test_each_part_answers_to_its_own_fault(prose) -> None:
    good = "Read the configuration from a JSON file."
    faults = {
        "form": "Read the configuration from a JSON file",
        "imperative": "Reads the configuration from a JSON file.",
        "length": "Read the configuration that somebody may have stored at one time or another in a JSON file of this system.",
        "name": "Load the settings from a JSON document.",
        "beyond": "Read the configuration from a file.",
        "faithful": "Read the configuration of the zebra crossing from a JSON file.",
        "prose": "Read from configuration JSON file the a.",
    }
    whole = explain(read_prompt(READ), good, prose)
    for part, response in faults.items():
        assert explain(read_prompt(READ), response, prose).parts[part] < whole.parts[part] - 0.1, part


def test_people_score_above_shuffled_people(prose, library_split) -> None:
    functions = library_split.test[::2]
    asked = [read_prompt(prompt_text(f, 128, None)) for f in functions]
    other = other_functions(functions, np.random.default_rng(0))
    own = np.array([explain(a, f.summary, prose).score for a, f in zip(asked, functions, strict=True)])
    shuffled = np.array([explain(a, functions[m].summary, prose).score for a, m in zip(asked, other, strict=True)])
    assert own.mean() > shuffled.mean() + 2.5
    assert (own > shuffled).mean() > 0.85


def test_the_judge_keeps_its_promise(prose) -> None:
    judge = Pep257Judge(prose)
    prompt = (Message(role="user", content=READ),)
    responses = [
        (Message(role="assistant", content=text),)
        for text in ("Read the config file.", "Foo bar.", "Read the config file.")
    ]
    scores = judge.judge(prompt, responses)
    assert scores[0] == scores[2] > scores[1]
    assert scores[0] == judge.explain(READ, "Read the config file.").score
    with pytest.raises(ValueError, match="begin with 'name"):
        judge.judge((Message(role="user", content="What is this?"),), responses)


def test_verbs_in_their_base_form() -> None:
    assert all(map(is_base_verb, ("return", "Compute", "recompute", "unregister", "list")))
    assert not any(map(is_base_verb, ("returns", "the", "helper", "value", "red")))
    assert (base_form("Returns"), base_form("applies"), base_form("fetches"), base_form("class")) == (
        "return",
        "apply",
        "fetch",
        "",
    )


def test_annotators_follow_bradley_terry() -> None:
    rng = np.random.default_rng(0)
    wins = [annotate([2.0, 1.0], rng, noise=0.8) == (0, 1) for _ in range(4000)]
    expected = 1 / (1 + np.exp(-1 / 0.8))
    assert np.mean(wins) == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / 4000))
    assert preference(5, 2, 0) == 1 and preference(2, 2, 0) == 0.5 and preference(2, 2, 1) == 0.5
    assert preference(3, 1, 1) + preference(1, 3, 1) == pytest.approx(1)
    assert annotate([1.0, 1.0], rng, 1.0) is None and annotate([1.0], rng, 1.0) is None
