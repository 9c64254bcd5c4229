"""Judges that compare, as the judge of a study: a language model played by a server on this machine, and stored votes."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.align.fake_judge import serving, shown
from trueline.align.chat import Address, ChatClient
from trueline.align.llm_judge import LLMJudge
from trueline.align.votes import StoredVotes
from trueline.objectives.rounds import OnPolicy
from trueline.records import Comparison, Conversation, Counts, Message
from trueline.study.arms import read_arms
from trueline.study.cells import Cells
from trueline.study.contest import Contest, bill, compares
from trueline.study.figures import in_sd
from trueline.study.job import run_study
from trueline.study.settings import Budget, Settings

SETTINGS = Settings(
    seeds=(0, 1), learning_rates=(1e-3, 1e-2), checkpoints=2, report_prompts=5, tuning_prompts=3, samples=1, max_new_tokens=4,
    per_device_train_batch_size=8,
)  # fmt: skip
ASKED = (Message(role="user", content="Name a colour."),)


def shorter(question: str, number: int) -> str:
    """A judge without bias that likes what is short; of some answers it says nothing."""
    first, second = shown(question)
    if "red" in (first, second) or (len(first) + len(second)) % 7 == 6:
        return "I cannot say."
    return "[[A]]" if len(first) < len(second) else "[[B]]" if len(second) < len(first) else "[[C]]"


def llm(url: str, cache: Path | None = None, form: Any = "pairs", bound: int = 0) -> LLMJudge:
    return LLMJudge(ChatClient(Address(url=url, model="judge", retries=1, pause=0.001), cache, max_requests=bound), form)


def run(tiny: Path, pairs: Any, out: Path, judge: Any, methods: tuple[str, ...], settings: Settings = SETTINGS) -> dict[str, Any]:
    arms = read_arms(methods, settings.learning_rates)
    run_study(tiny, pairs, arms, out=out, budget=Budget(updates=2), settings=settings, judge=judge, judge_key="judge 1")
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def test_verdicts_on_answers(tmp_path: Path) -> None:
    """Ours against theirs, answer by answer; equal ones are a tie that is not asked about, and no verdict is no tie. Asked once."""
    with serving(shorter) as server:
        contest = Contest(judge=llm(server.url), key="judge 1", cells=Cells(tmp_path), between=True)
        other = (Message(role="user", content="Name a sum."),)
        found = contest.verdicts([ASKED, other], [["a", "bb"], ["x", "same"]], [["aa", "b"], ["y", "same"]])
        assert found["shares"] == [[1.0, 0.0], [0.5, 0.5]] and len(server.questions) == 6
        assert found["tally"] == {"pairs": 4, "equal": 1, "none": 0, "consistent": 3}
        again = contest.verdicts([ASKED], [["red", "a"]], [["a", "aa"]])
        assert again["shares"] == [[None, 1.0]] and again["tally"]["none"] == 1
        contest.verdicts([ASKED, other], [["a", "bb"], ["x", "same"]], [["aa", "b"], ["y", "same"]])
        assert len(server.questions) == 8, "a and aa were compared before"


def test_what_a_study_asks() -> None:
    """By hand: 3 arms, one with two settings, two seeds, two steps measured."""
    arms = read_arms(["dpo:beta=0.1/1", "sft", "best_of_n:n=2"], SETTINGS.learning_rates)
    found = bill(arms, SETTINGS, form="pairs", answered=5, tuned=3, bound=152)
    assert (found.tuning, found.report, found.between) == (3 * 4, 5 * (4 * 2 + 2 * 2 + 2), 5 * 2 * 3)
    assert found.needed == 2 * (12 + 70) and not found.asks_between
    with pytest.raises(ValueError, match="asked up to 164 times, and --max_requests is 152: raise it"):
        found.checked()
    assert replace(found, bound=224).checked().asks_between and replace(found, bound=0).asks_between
    prompts = bill(arms, SETTINGS, form="pairs", answered=5, tuned=3, prompts=10, responses=4)
    assert prompts.preferences == 10 * 6
    ratings = bill(arms, SETTINGS, form="rating", answered=5, tuned=3, prompts=10, responses=4)
    assert (ratings.preferences, ratings.report, ratings.between, ratings.requests_each) == (40, 5 * (14 + 2), 0, 1)


def test_what_a_judge_that_drives_is_asked() -> None:
    """By hand: of every draw of training, trials included, and of all draws that best of n chooses among."""
    arms = read_arms(["grpo:num_generations=4,kl_coef=0.1/0.2", "best_of_n:n=8/2"], SETTINGS.learning_rates)
    alone = bill(arms, SETTINGS, form="rating", answered=5, tuned=3)
    assert alone.training == 0 and not alone.uncounted and alone.report == 5 * (2 * 2 * 2 + 2 * 2 + 2)
    budget = Budget(updates=10)
    found = bill(arms, SETTINGS, form="rating", answered=5, tuned=3, bound=1, driven=budget)
    objective = arms[0].main.objective
    assert isinstance(objective, OnPolicy)
    rounds = -(-10 // objective.rounds.steps) * objective.rounds.batches
    assert found.training == (1 + 2 * 2) * rounds * 8 * 4, "a second trial, two settings with two seeds; 8 prompts, 4 responses"
    assert found.report == 5 * (2 * 2 * 2 + 2 * (1 + 8) + 2) and found.tuning == alone.tuning
    assert found.needed == found.training + found.report + found.tuning and f"{found.needed:,} verdicts" in found.sentence()
    with pytest.raises(ValueError, match=r"take fewer .*, or lower --updates or --num_generations"):
        found.checked()
    probed = bill(arms, SETTINGS, form="rating", answered=5, tuned=3, driven=Budget(minutes=3))
    assert probed.training == 0 and probed.uncounted and "training comes on top" in probed.sentence()
    assert probed.table()[-1]["verdicts"] == "?" and not bill(arms[1:], SETTINGS, form="rating", answered=5, tuned=3,
                                                              driven=Budget(minutes=3)).uncounted  # fmt: skip


@pytest.mark.slow
@pytest.mark.sample
def test_a_language_model_judges_a_study(tiny: Path, pairs: list[Comparison], tmp_path: Path) -> None:
    """Its verdicts against the start are the rewards, those between methods the rest of the matrix; a second run asks nothing, and ends
    with the same bytes; what it could not say is counted."""
    out, methods = tmp_path / "study", ("dpo", "best_of_n:n=2")
    with serving(shorter) as server:
        results = run(tiny, pairs, out, llm(server.url, tmp_path / "kept.sqlite"), methods)
        asked = len(server.questions)
        spent = json.loads((out / "seconds.json").read_text(encoding="utf-8"))["(judge)"]
        assert 0 < spent["requests"] == asked and spent["tokens"] == 100 * asked
        before = {name: (out / name).read_bytes() for name in ("results.json", "matrix.csv", "frontier.csv", "arms.csv")}
        run(tiny, pairs, out, llm(server.url), methods)
        assert len(server.questions) == asked
    assert before == {name: (out / name).read_bytes() for name in before}
    judge, arms = results["judge"], {arm["name"]: arm for arm in results["arms"]}
    assert judge["compares"] and judge["between"] and judge["consistency"] == 1 and judge["none"] > 0
    assert judge["pairs"] == 5 * 2 * (2 + 1) + 5 * 2, "dpo at two steps and best of n against the start, and one another"
    assert arms["start"]["main"]["reward"]["estimate"] == 0.5 == arms["start"]["main"]["reward"]["low"]
    for place, name in enumerate(("start", *methods)):
        if place:
            assert results["matrix"][place][0]["estimate"] == pytest.approx(arms[name]["main"]["reward"]["estimate"])
            assert results["matrix"][place][0]["low"] == pytest.approx(0.5 + arms[name]["main"]["gain"]["low"])
    assert results["matrix"][1][2]["estimate"] == pytest.approx(1 - results["matrix"][2][1]["estimate"])
    assert all(one["direct"] for one in results["differences"])
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "Wins against the start" in text and "no verdict" in text and "requests" in text


@pytest.mark.slow
def test_no_room_for_everybody_against_everybody(tiny: Path, pairs: list[Comparison], tmp_path: Path) -> None:
    """Within --max_requests the start comes first; the rest of the matrix is not asked for, and the report says so."""
    with serving(shorter) as server:
        arms = read_arms(["dpo", "sft"], SETTINGS.learning_rates)
        bound = bill(arms, SETTINGS, form="pairs", answered=5, tuned=3).needed + 1
        results = run(tiny, pairs, tmp_path / "study", llm(server.url, bound=bound), ("dpo", "sft"))
    assert results["matrix"][1][2] is None and results["matrix"][1][0] is not None and not results["judge"]["between"]
    assert [one["direct"] for one in results["differences"]] == [True, True, False]
    assert "not asked" in (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="--max_requests is 7: raise it"):
        run(tiny, pairs, tmp_path / "other", llm(server.url, bound=7), ("dpo", "sft"))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_prompts_and_ratings(tiny: Path, pairs: list[Comparison], tmp_path: Path) -> None:
    """Prompts alone: the judge makes the preferences, too. A judge that rates gives rewards; unrated prompts are left out of the means."""
    prompts = [Conversation(messages=pair.prompt) for pair in pairs]

    def rates(question: str, number: int) -> str:
        response = shown(question)[0]
        return "Hm." if zlib.crc32(response.encode()) % 5 == 0 else f"[[{min(10, 1 + len(response))}]]"

    with serving(rates) as server:
        results = run(tiny, prompts, tmp_path / "study", llm(server.url, form="rating"), ("dpo",))
    silent = [arm["main"]["no_verdict"] for arm in results["arms"]]
    assert not results["judge"]["compares"] and max(silent) > 0 and results["comparisons"] < 36
    assert min(arm["main"]["reward"]["n"] for arm in results["arms"]) < 5 == results["answered"]


@pytest.mark.slow
def test_stored_votes(tiny: Path, pairs: list[Comparison], tmp_path: Path) -> None:
    """Votes on what the model can say at all: shares of votes are win rates. Votes on something else are no verdict on anything."""
    seen: set[tuple[str, str]] = set()

    class Listening(StoredVotes):
        def judge(self, prompt: Any, responses: Any) -> list[float]:
            seen.update(("".join(m.content for m in prompt), "".join(m.content for m in one)) for one in responses)
            return super().judge(prompt, responses)

    none = {("x", "a", "b"): 1.0}
    with pytest.raises(ValueError, match="the judge said nothing of dpo's answers to the tuning prompts"):
        run(tiny, pairs, tmp_path / "study", Listening(none), ("dpo",))
    short = replace(SETTINGS, max_new_tokens=1, temperature=0.01, learning_rates=(1e-3,), checkpoints=1)
    words = votes_for_short(tiny, pairs, short)
    results = run(tiny, pairs, tmp_path / "votes", words, ("dpo",), short)
    assert results["judge"]["compares"] and "consistency" not in results["judge"]
    assert 0 <= results["arms"][1]["main"]["reward"]["estimate"] <= 1


def votes_for_short(tiny: Path, pairs: list[Comparison], settings: Settings) -> StoredVotes:
    """Votes of three people on every two tokens: two of them like the shorter one."""
    from trueline.tokens import load_tokenizer

    tokenizer = load_tokenizer(tiny)
    words = sorted({tokenizer.decode([token]).strip() for token in range(tokenizer.vocab_size)}, key=len)[:60]
    says = {text: (Message(role="assistant", content=text),) for text in words}
    rows = [
        Comparison(prompt=pair.prompt, responses=(says[two[0]], says[two[1]]), judgement=Counts((2.0, 1.0)))
        for pair in pairs
        for two in combinations(words, 2)
    ]  # fmt: skip
    return StoredVotes.of(rows)


def test_who_compares() -> None:
    client = ChatClient(Address(url="http://127.0.0.1:9/v1", model="judge"))
    assert compares(LLMJudge(client)) and not compares(LLMJudge(client, "rating")) and not compares(None)


def test_win_rates_as_gaps() -> None:
    """Of two normal scores a standard deviation apart the one is ahead in 76 of 100."""
    from trueline.evals.result import Interval

    found = in_sd(Interval(estimate=0.7602, low=0.5, high=1.0, se=0.1, n=50))
    assert found.estimate == pytest.approx(1.0, abs=1e-3) and found.low == 0 and np.isfinite(found.high)


