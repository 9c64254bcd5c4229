"""Rows that the policy draws itself: their numbers per token, the feed, its resume, and that a policy learns from them."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from trueline.models.attention import Layout
from trueline.models.decoder import Decoder
from trueline.models.files import fingerprint
from trueline.models.scorer import PolicyScorer
from trueline.objectives.base import Budget
from trueline.objectives.dpo import DPO
from trueline.objectives.grpo import GRPO
from trueline.objectives.iterate import Iterate
from trueline.objectives.online_dpo import OnlineDPO
from trueline.objectives.reinforce_plus_plus import ReinforcePlusPlus
from trueline.objectives.rloo import RLOO
from trueline.objectives.rounds import OnPolicy, Rounds, round_steps, tokens_of, with_reference_token_logps
from trueline.protocols import Crew, Drawn
from trueline.records import TEXT, Conversation, Message, Messages, RolloutConfig, Row, Sample, Sampling
from trueline.run import read_lines
from trueline.tokens import Tokenizer
from trueline.train import plan, train
from trueline.train.config import TrainConfig, settle
from trueline.train.ranks import Ranks
from trueline.train.rollout_feed import EMPTY, RolloutFeed
from trueline.train.shared_rounds import row_json, row_of, share

Make = Callable[..., Decoder]


def group_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows of three responses that share a prompt, one of them not scored everywhere, with a number per scored token."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        prompt = rng.integers(2, 64, int(rng.integers(2, 6)))
        ids = tuple(np.concatenate([prompt, rng.integers(2, 64, int(rng.integers(1, 7)))]).astype(np.int32) for _ in range(3))
        scored = tuple(np.arange(len(x)) >= len(prompt) for x in ids)
        scored[0][-1] = False  # a token that the policy did not choose
        tokens = {"logps": tuple(rng.normal(size=int(flags.sum())).astype(np.float32) for flags in scored)}
        rows.append(Row(ids=ids, scored=scored, key=f"{number}", tokens=tokens))
    return rows


def test_numbers_per_token_are_in_the_order_of_the_layout(decoder: Make) -> None:
    """What a scorer says of each token, laid out again, is what the training forward says at the same place."""
    model, rows = decoder(), group_rows(5)
    scorer = PolicyScorer(model, max_tokens=40)  # several batches
    found = scorer.token_logps(rows)
    rows = [replace(row, tokens={"logps": logps}) for row, logps in zip(rows, found, strict=True)]
    layout = Layout.tree(rows)
    assert layout.num_tokens < sum(row.num_tokens for row in rows)  # prompts are shared
    with torch.no_grad():
        expected_N = model.token_logps(layout).logps_N
    assert torch.allclose(tokens_of(rows, "logps"), expected_N, atol=1e-5)
    swapped = [rows[0], rows[2], rows[1], *rows[3:]]
    assert not torch.allclose(tokens_of(swapped, "logps"), expected_N, atol=1e-2)  # or the test above says nothing
    sums = [[float(logps.sum()) for logps in row] for row in found]
    assert np.allclose(np.concatenate(sums), np.concatenate(scorer.score(rows)), atol=1e-4)
    cool = scorer.token_logps(rows[:1], temperature=0.5)
    with torch.no_grad():
        expected_N = model.token_logps(Layout.tree(rows[:1]), temperature=0.5).logps_N
    assert np.allclose(np.concatenate(cool[0]), expected_N.numpy(), atol=1e-5)


def test_a_number_too_few_is_noticed() -> None:
    (row,) = group_rows(1)
    first, second, third = row.tokens["logps"]
    with pytest.raises(AssertionError, match="one number per scored token"):
        tokens_of([replace(row, tokens={"logps": (first, second[:-1], third)})], "logps")


def test_reference_logps_are_asked_at_the_temperature_of_the_drawing(decoder: Make) -> None:
    rows = [replace(row, numbers={"temperature": np.full(3, 0.5, np.float32)}) for row in group_rows(2)]
    scorer = PolicyScorer(decoder())
    found = with_reference_token_logps(rows, Crew(reference=scorer))
    expected = scorer.token_logps(rows, 0.5)
    assert all(np.array_equal(a, b) for row, logps in zip(found, expected, strict=True)
               for a, b in zip(row.tokens["reference_logps"], logps, strict=True))  # fmt: skip
    assert "logps" in found[0].tokens
    with pytest.raises(ValueError, match="needs one"):
        with_reference_token_logps(rows, Crew())


def test_steps_of_a_round_use_every_row_once_per_epoch() -> None:
    rows = group_rows(10)
    count = lambda rows: {"loss": float(len(rows))}  # noqa: E731
    budget = Budget(rows=2, tokens=1000)
    steps = list(round_steps(rows, budget, count, Rounds(select="all_responses", batches=3, epochs=2)))
    seen = [[row.key for batch in step for row in batch.rows] for step in steps]
    assert [len(step) for step in seen] == [4, 3, 3, 4, 3, 3]
    first, second = ([key for step in epoch for key in step] for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == sorted(row.key for row in rows) and first != second
    again = list(round_steps(rows, budget, count, Rounds(select="all_responses", batches=3, epochs=2)))
    assert [[row.key for batch in step for row in batch.rows] for step in again] == seen
    assert len(list(round_steps(rows[:2], budget, count, Rounds(select="all_responses", batches=3)))) == 2


# -- the feed and a run


@dataclass(frozen=True)
class Scripted:
    """Rollouts without align and serve: the sampler of a test, and longer responses are better."""

    flat: bool = False
    drawn: list[int] = field(default_factory=list)
    """Responses of each round so far."""

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"judge": "scripted"}

    notes: ClassVar[tuple[str, ...]] = ()

    def sampler(self, model: Any, tokenizer: Any) -> Walk:
        return Walk(model)

    def draw(
        self, prompts: Sequence[tuple[Messages, np.ndarray]], sampler: Any, config: RolloutConfig, *,
        decode: Callable[[np.ndarray], str], select: str, options: Mapping[str, Any], seed: int,
    ) -> Drawn:  # fmt: skip
        drawn = sampler.sample([ids for _, ids in prompts], config.sampling(seed))
        self.drawn.append(sum(map(len, drawn)))
        rows = [] if self.flat else [pair(samples) for samples in drawn if select == "best_vs_worst"]
        lengths = [float(len(sample.ids)) for samples in drawn for sample in samples]
        names = ("reward", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio")
        metrics = {name: (sum(lengths), float(len(lengths))) for name in names}
        return Drawn(rows, metrics, {"sampling": 0.1}, [{"response": decode(drawn[0][0].ids), "seed": seed}], "in agreement")


@dataclass
class Walk:
    """Draws tokens by a seed and by the live weights: a changed policy draws others."""

    model: Any
    version: str = ""
    agreement: object = None

    def sample(self, prompts: Sequence[Any], sampling: Sampling) -> list[list[Sample]]:
        weights = int(fingerprint(self.model)[:8], 16)
        found = []
        for number, prompt in enumerate(prompts):
            rng = np.random.default_rng([sampling.seed, weights, number])
            found.append([self._one(prompt, rng, sampling) for _ in range(sampling.n)])
        return found

    def _one(self, prompt: Any, rng: np.random.Generator, sampling: Sampling) -> Sample:
        size = int(rng.integers(1, sampling.max_new_tokens))
        return Sample(prompt_ids=prompt, ids=rng.integers(2, 64, size).astype(np.int32), logps=np.zeros(size, np.float32),
                      mask=np.ones(size, dtype=bool), finish_reason="stop")  # fmt: skip

    def load(self, weights: Any, version: str) -> None:
        self.model, self.version = weights, version


def pair(samples: Sequence[Sample]) -> Row:
    """The longest response, then the shortest."""
    ordered = sorted(samples, key=lambda sample: -len(sample.ids))
    chosen = [ordered[0], ordered[-1]]
    ids = tuple(np.concatenate([sample.prompt_ids, sample.ids]).astype(np.int32) for sample in chosen)
    scored = tuple(np.arange(len(x)) >= len(chosen[0].prompt_ids) for x in ids)
    ones = np.ones(2, np.float32)
    return Row(ids=ids, scored=scored, key=str(ids), numbers={"temperature": ones, "finished": ones},
               tokens={"logps": tuple(sample.logps for sample in chosen)})  # fmt: skip


def prompts(count: int) -> list[Conversation]:
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog"]
    texts = [" ".join(rng.choice(words, 3)) for _ in range(count)]
    return [Conversation(messages=(Message(role=TEXT, content=text, train=False),)) for text in texts]


OPTIONS: dict[str, Any] = {
    "max_steps": 7, "save_steps": 3, "logging_steps": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 4,
    "max_length": 64, "max_completion_length": 8, "eval_share": 0.3, "eval_steps": 4, "sample_steps": 3,
}  # fmt: skip


class Killed(Exception):
    pass


def kept(out: Path) -> dict[str, Any]:
    clock = ("time", "tokens_per_second")
    lines = [{k: v for k, v in row.items() if k not in clock and not k.startswith("time/")}
             for row in read_lines(out / "metrics.jsonl")]  # fmt: skip
    files = {path.name: path.read_bytes() for path in sorted((out / "checkpoint-7").iterdir())}
    return {"metrics": lines, "samples": read_lines(out / "samples.jsonl"), **files}


def test_a_stopped_run_draws_and_learns_what_the_straight_one_did(tmp_path: Path, decoder: Make, tokenizer: Tokenizer) -> None:
    def go(name: str, stop: int = 0) -> Path:
        def killer(step: int, metrics: Mapping[str, float]) -> None:
            if 0 < stop <= step:
                raise Killed

        return train(OnlineDPO(), decoder(0, tokenizer.vocab_size), prompts(20), tokenizer=tokenizer, rollouts=Scripted(),
                     out=tmp_path / name, sinks=[killer], **OPTIONS)  # fmt: skip

    expected = kept(go("straight"))
    with pytest.raises(Killed):
        go("stopped", 5)
    found = kept(go("stopped"))
    assert [name for name in expected if found[name] != expected[name]] == []
    assert any("goes on from checkpoint-" in row["event"] for row in read_lines(tmp_path / "stopped" / "events.jsonl"))
    seeds = [row["seed"] for row in expected["samples"]]
    assert len(seeds) == len(set(seeds)) == 2
    lines = read_lines(tmp_path / "straight" / "metrics.jsonl")
    assert {"reward", "objective/kl", "time/sampling", "time/scoring", "time/learning"} <= set(lines[0])
    said = [row["event"] for row in read_lines(tmp_path / "straight" / "events.jsonl")]
    assert any(re.match(r"time: sampling \S+ s \(\d+%\), scoring .*, learning ", one) for one in said)
    assert [row["step"] for row in lines if "eval_reward" in row] == [4, 7]


def test_a_round_of_several_steps_is_drawn_once(tmp_path: Path, decoder: Make, tokenizer: Tokenizer) -> None:
    """Four steps a round: the run ends in the middle of the second; killed in it, it goes on from the end of the first."""
    drawn: list[int] = []

    def go(name: str, stop: int = 0) -> Path:
        def killer(step: int, metrics: Mapping[str, float]) -> None:
            if 0 < stop <= step:
                raise Killed

        return train(Iterate(batches=2, epochs=2), decoder(0, tokenizer.vocab_size), prompts(20), tokenizer=tokenizer,
                     rollouts=Scripted(drawn=drawn), out=tmp_path / name, sinks=[killer], num_generations=3,
                     **(OPTIONS | {"save_steps": 1, "logging_steps": 1, "eval_share": 0.0, "eval_steps": 0}))  # fmt: skip

    expected = kept(go("straight"))
    assert drawn == [8 * 3] * 2
    with pytest.raises(Killed):
        go("stopped", 6)
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-4"]
    found = kept(go("stopped"))
    assert [name for name in expected if found[name] != expected[name]] == []
    about = json.loads(expected["trainer_state.json"])
    assert about["feed"] == {"given": 16} and about["state"]["step"] == 7
    metrics = expected["metrics"]
    assert [row["step"] for row in metrics if "reward" in row] == [1, 5]
    losses = [row["loss"] for row in metrics]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5) and losses[1] != losses[0]


@pytest.mark.parametrize("kept_before", [2, 1])
def test_more_steps_than_planned_do_not_lose_the_rest_of_a_round(
    kept_before: int, tmp_path: Path, decoder: Make, tokenizer: Tokenizer
) -> None:
    """Four steps a round, and the plan ended after the seventh: with an older checkpoint the round is learned from again, whole."""

    def go(name: str, steps: int, limit: int) -> dict[str, Any]:
        options = OPTIONS | {"max_steps": steps, "save_steps": 4, "save_total_limit": limit, "logging_steps": 1, "eval_share": 0.0,
                             "eval_steps": 0, "sample_steps": 0, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}  # fmt: skip
        out = train(Iterate(batches=2, epochs=2), decoder(0, tokenizer.vocab_size), prompts(20), tokenizer=tokenizer,
                    rollouts=Scripted(), out=tmp_path / name, num_generations=3, **options)  # fmt: skip
        losses = [row["loss"] for row in read_lines(out / "metrics.jsonl")]
        return {"losses": losses, "weights": (out / "model.safetensors").read_bytes(), "said": [row["event"] for row in
                read_lines(out / "events.jsonl")]}  # fmt: skip

    straight = go("straight", 12, kept_before)
    go("extended", 7, kept_before)
    extended = go("extended", 12, kept_before)
    same = (extended["losses"], extended["weights"]) == (straight["losses"], straight["weights"])
    if kept_before == 2:
        assert same and any("checkpoint-7 lies inside a round, so the steps since checkpoint-4" in said for said in extended["said"])
    else:
        assert not same and any("the responses that were left of it are not learned from" in said for said in extended["said"])


def test_a_run_goes_on_with_the_same_judge_and_drawing_only(tmp_path: Path, decoder: Make, tokenizer: Tokenizer) -> None:
    def go(**more: Any) -> Path:
        return train(OnlineDPO(), decoder(0, tokenizer.vocab_size), prompts(20), tokenizer=tokenizer, rollouts=Scripted(),
                     out=tmp_path / "run", **(OPTIONS | {"max_steps": 2} | more))  # fmt: skip

    go()
    with pytest.raises(ValueError, match="started with temperature = 1, and this command has temperature"):
        go(temperature=0.5)


def test_rounds_without_a_row_are_passed_over_and_end_the_run_in_a_sentence(tokenizer: Tokenizer, decoder: Make) -> None:
    rows = [Row(ids=(np.array([3, 4], np.int32),), scored=(np.zeros(2, bool),), key="a")]
    feed = RolloutFeed(rows, {"a": ()}, 1, 0, rollouts=Scripted(flat=True), sampler=Walk(decoder()), config=RolloutConfig(),
                       rounds=OnlineDPO.rounds, decode=tokenizer.decode)  # fmt: skip
    with pytest.raises(ValueError, match=f"{EMPTY} rounds in a row gave nothing to learn from"):
        next(iter(feed))
    assert feed.report().sums["reward"][1] == 2 * EMPTY and feed.report().sums == {}


def test_options_go_to_training_or_drawing() -> None:
    config, drawing = settle(OnlineDPO(), None, None, {"num_generations": 4, "learning_rate": 1e-3})
    assert drawing == RolloutConfig(num_generations=4) and config.optim.learning_rate == 1e-3
    assert config.evals.metric_for_best_model == "eval_reward" and config.optim.warmup_ratio == 0.1
    assert settle(DPO(), TrainConfig(), None, {}) == (TrainConfig(), None)
    with pytest.raises(ValueError, match="no training option 'num_generations'"):
        settle(DPO(), None, None, {"num_generations": 4})
    assert isinstance(OnlineDPO(), OnPolicy) and not isinstance(DPO(), OnPolicy)


def test_what_cannot_draw_is_refused(tmp_path: Path, decoder: Make, tokenizer: Tokenizer, pair_rows: Any) -> None:
    model = decoder(0, tokenizer.vocab_size)

    def go(objective: Any, data: Any, **more: Any) -> Path:
        return train(objective, model, data, tokenizer=tokenizer, out=tmp_path / "run", **more)

    with pytest.raises(ValueError, match="online-dpo learns from its own responses: pass rollouts="):
        go(OnlineDPO(), prompts(4))
    with pytest.raises(ValueError, match="dpo trains on stored rows"):
        go(DPO(), pair_rows(4), rollouts=Scripted())
    with pytest.raises(ValueError, match="needs at least 2 responses"):
        go(OnlineDPO(), prompts(4), rollouts=Scripted(), num_generations=1)
    for method in (RLOO(), GRPO(), ReinforcePlusPlus(group_baseline=True)):  # before anything is drawn or written
        with pytest.raises(ValueError, match=r"num_generations is 1, and .* needs at least 2 responses per prompt"):
            go(method, prompts(4), rollouts=Scripted(), num_generations=1)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="metric_for_best_model is 'eval_loss', and an evaluation of online-dpo gives eval_reward"):
        go(OnlineDPO(), prompts(20), rollouts=Scripted(), eval_share=0.3, metric_for_best_model="eval_loss")
    with pytest.raises(ValueError, match="there is no prompt to draw from"):
        go(OnlineDPO(), prompts(4), rollouts=Scripted(), max_completion_length=1024)
    with pytest.raises(ValueError, match="raise it or lower max_completion_length"):
        go(OnlineDPO(), prompts(4), rollouts=Scripted(), max_tokens_per_batch=100)
    assert not (tmp_path / "run").exists()
    for wrong in ({"temperature": 0.0}, {"num_generations": 0}, {"missing_eos_penalty": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RolloutConfig(**wrong)


def test_steps_follow_from_prompts_and_rounds(decoder: Make, tokenizer: Tokenizer) -> None:
    numbers = plan(OnlineDPO(), decoder(0, tokenizer.vocab_size), prompts(20), tokenizer=tokenizer, num_train_epochs=2,
                   per_device_train_batch_size=8, num_generations=4, max_length=64, max_completion_length=8).numbers  # fmt: skip
    assert numbers["rows"] == 20 and numbers["steps"] == 5 and numbers["responses_per_round"] == 32


@pytest.fixture(autouse=True)
def unchanged_signals() -> Any:
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def test_shares_of_a_round_are_whole_and_in_order() -> None:
    items = list(range(7))
    for world in (1, 2, 3, 8):
        parts = [share(items, Ranks(rank=rank, world=world)) for rank in range(world)]
        assert [one for part in parts for one in part] == items and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_row_survives_the_way_to_another_process() -> None:
    (row,) = group_rows(1)
    row = replace(row, numbers={"reward": np.array([0.1, -2e-8, 3e7], np.float32)})
    found = row_of(json.loads(json.dumps(row_json(row))))
    same = [*zip(row.ids, found.ids, strict=True), *zip(row.scored, found.scored, strict=True),
            (row.numbers["reward"], found.numbers["reward"]),
            *zip(row.tokens["logps"], found.tokens["logps"], strict=True)]  # fmt: skip
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in same) and found.key == row.key
