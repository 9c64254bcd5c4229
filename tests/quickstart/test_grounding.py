from __future__ import annotations

import numpy as np
import pytest

from trueline.quickstart.functions import Function
from trueline.quickstart.grounding import (
    bootstrap_mean,
    grounding,
    name_share,
    new_stems,
    new_word_recall,
    other_functions,
)
from trueline.quickstart.words import content_words, split_name, spoken_of, stem

READ = Function(
    name="read_config_file", arguments=("path", "encoding"), summary="Parse the settings stored as JSON at the path."
)


def test_names_are_split_at_case_digits_and_underscores() -> None:
    assert split_name("readConfig_file2") == ["read", "config", "file", "2"]
    assert split_name("HTTPServer") == ["http", "server"]
    assert split_name("__init__") == ["init"]


@pytest.mark.parametrize(
    "family",
    [
        "read reads reading reader", "write writes writing writer", "stop stops stopped stopping", "query queries queried",
        "validate validates validating", "create creates creation", "file files", "class classes", "normalize normalizing",
    ],
)  # fmt: skip
def test_inflections_meet(family: str) -> None:
    first, *others = family.split()
    assert all(spoken_of([first], {stem(other)}) == [True] for other in others)


@pytest.mark.parametrize(
    ("a", "b"), [("read", "reduce"), ("set", "sequence"), ("file", "fill"), ("get", "target"), ("int", "interface")]
)
def test_different_words_do_not_meet(a: str, b: str) -> None:
    assert spoken_of([a], {stem(b)}) == [False]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("config", "configuration"),
        ("dir", "directory"),
        ("kwargs", "keyword"),
        ("func", "functions"),
        ("msg", "message"),
    ],
)
def test_abbreviations_are_spoken_of_by_their_words(short: str, long: str) -> None:
    assert spoken_of([short], {stem(long)}) == [True]


def test_name_share_by_hand() -> None:
    assert name_share(READ, "Read the configuration files.") == 1.0
    assert name_share(READ, "Reading from a file.") == pytest.approx(2 / 3)
    assert name_share(READ, "Return the number of nodes.") == 0.0
    assert np.isnan(name_share(Function(name="of_the"), "Anything."))


def test_new_words_are_those_that_name_and_arguments_do_not_hold() -> None:
    assert new_stems(READ) == {stem(w) for w in ("parse", "settings", "stored", "json")}
    assert new_word_recall(READ, "Load JSON settings.") == 0.5
    assert new_word_recall(READ, "Read the config file at the path.") == 0.0


def _world(count: int) -> list[Function]:
    """Functions whose docstrings share `find` and `means` and nothing else that is new."""
    nouns = ["graph", "socket", "matrix", "window", "header", "token", "widget", "ledger"]
    marks = [a + b for a in "bcdfghjk" for b in "lmnpqrst"]
    return [
        Function(name=f"find_{nouns[n % 8]}", summary=f"Find the {nouns[n % 8]} by means of {marks[n]}ollo.")
        for n in range(count)
    ]


def test_own_summaries_are_grounded_and_shuffled_ones_are_not() -> None:
    functions = _world(40)
    right = grounding(functions, [f.summary for f in functions])
    assert right.name_share == 1.0 and right.recall == 1.0
    assert right.recall_difference_interval[0] > 0 and right.name_share_other < 0.6
    turned = [f.summary for f in functions[1:] + functions[:1]]
    wrong = grounding(functions, turned)
    assert wrong.name_share == 0.5  # find is in all of them
    assert wrong.recall_difference_interval[0] < 0.05
    same = grounding(functions, ["Find the thing."] * 40)
    assert same.recall_difference == 0.0 and same.recall_difference_interval == (0.0, 0.0)


def test_grounding_is_the_same_for_the_same_seed_and_refuses_unequal_lengths() -> None:
    functions = _world(20)
    assert grounding(functions, ["Find the graph."] * 20, seed=3) == grounding(
        functions, ["Find the graph."] * 20, seed=3
    )
    with pytest.raises(ValueError, match="one summary per function"):
        grounding(functions, ["Find."])


def test_other_functions_have_other_names() -> None:
    functions = _world(16)
    other = other_functions(functions, np.random.default_rng(0))
    assert all(functions[n].name != functions[m].name for n, m in enumerate(other))


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = sum(
        low <= 0.3 <= high for low, high in (bootstrap_mean(rng.normal(0.3, 1, 60), rng, 300) for _ in range(100))
    )
    assert 86 <= hits <= 100
    assert np.isnan(bootstrap_mean(np.array([np.nan]), rng)[0])


def test_people_speak_of_the_name_in_the_standard_library(library_split) -> None:
    people = grounding(library_split.test, [f.summary for f in library_split.test], shuffles=3, resamples=200)
    assert 0.5 < people.name_share < 0.85
    assert people.name_share_other < 0.05
    assert people.recall == 1.0 and people.recall_other < 0.1


def test_content_words_leave_out_what_every_sentence_has() -> None:
    assert content_words("Return the user's `file_name` if it is a file.") == [
        "return",
        "users",
        "file",
        "name",
        "file",
    ]
