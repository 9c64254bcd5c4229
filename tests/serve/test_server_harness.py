"""lm-evaluation-harness over the network: its `local-completions` against the server says what our own evaluation says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.serving import Live, live
from tests.tiny import tiny_model
from trueline.models.files import load_model
from trueline.serve.engine import Engine
from trueline.tokens import load_tokenizer

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
pytestmark = pytest.mark.slow

TEXTS = ["Question: How many apples are there? Answer: There are three apples and a pear.\n", "the cat sat on the mat; naïve — café\n"]
CONTEXT = 512
PAIRS = [
    ("Question: How many apples", " are there?"), ("Question: How many apples", " is it"), ("the cat ", "sat on the mat"),
    ("naïve", " — café"), ("There are three apples. " * 9, "a pear and a pear"), ("a", "b" * 30),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("harness") / "tiny", TEXTS * 20, context=CONTEXT)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    from rich.console import Console

    from trueline.cli.tasks import harness_model

    return harness_model(str(folder), "cpu", Console(quiet=True))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Live]:
    tokenizer = load_tokenizer(folder)
    with live(Engine(load_model(folder), tokenizer), tokenizer) as found:
        yield found


@pytest.fixture(scope="module")
def theirs(folder: Path, server: Live) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions", tokenizer_backend="huggingface", model="tiny", tokenizer=str(folder), batch_size=4,
        max_length=CONTEXT, max_retries=1,
    )  # fmt: skip


def test_log_likelihoods(ours: Any, theirs: Any) -> None:
    """The prompt's own log-probs over the wire: equal to 1e-4, and so are the flags that say whether each token was the likeliest."""
    from lm_eval.api.instance import Instance

    def asked() -> list[Any]:
        return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)]

    for (a, a_greedy), (b, b_greedy) in zip(ours.loglikelihood(asked()), theirs.loglikelihood(asked()), strict=True):
        assert a == pytest.approx(b, abs=1e-4) and a_greedy == b_greedy


@pytest.mark.skipif("TRUELINE_DATA" not in os.environ, reason="the folder of data is not named by TRUELINE_DATA")
@pytest.mark.parametrize("task", ["local_piqa", "local_svamp"])
def test_tasks_that_read_the_data(ours: Any, theirs: Any, task: str) -> None:
    """Questions with choices, and answers that are drawn (greedily): the same scores for every document."""
    from trueline.evals.tasks.harness import manager, measure

    tasks = manager([task], ())
    found = [measure(model, [task], tasks, limit=6, keep_samples=True) for model in (ours, theirs)]
    assert [(one.metric, one.value) for one in found[0].results] == [(one.metric, one.value) for one in found[1].results]
    answers = [[sample["resps"] for sample in one.samples[task]] for one in found]
    if task == "local_piqa":
        for a, b in zip(*answers, strict=True):
            assert [float(one[0][0]) for one in a] == pytest.approx([float(one[0][0]) for one in b], abs=1e-3)
    else:
        assert answers[0] == answers[1]
