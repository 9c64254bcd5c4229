"""A reward model with another tokenizer than the policy: it reads text, which is said, and scores as `trueline judge` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trueline.models.config import DecoderConfig
from trueline.models.decoder import ScalarModel
from trueline.models.files import new_model, read_config, save_model
from trueline.run import read_lines
from trueline.tokens import load_tokenizer, train_tokenizer

Trueline = Callable[..., tuple[int, str, str]]
SHORT = ("--max_steps", 1, "--max_completion_length", 6, "--logging_steps", 1, "--max_length", 64, "--per_device_train_batch_size", 4,
         "--save_steps", 0, "--sample_steps", 1, "--seed", 3, "--report_to")  # fmt: skip
SAID = "have different tokenizers or chat templates: what is drawn is decoded, and encoded again as the reward model reads text"


@pytest.fixture(scope="module")
def other(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of another vocabulary: what the policy calls 300 is another piece of text here, or none."""
    folder = tmp_path_factory.mktemp("rewards") / "other"
    tokenizer = train_tokenizer(["yes, no, maybe: questions and answers of every kind"] * 20, vocab_size=290)
    shape = read_config(tiny)[0]
    config = DecoderConfig.from_hf(json.loads((tiny / "config.json").read_text()) | {"vocab_size": tokenizer.vocab_size})
    assert config.vocab_size < shape.vocab_size
    save_model(ScalarModel(new_model(config, seed=5)), folder)
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("verb", ["ppo", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("online-dpo", "rloo", "grpo"))])
def test_it_reads_text_and_scores_what_judge_scores(
    verb: str, trueline: Trueline, tiny: Path, other: Path, pairs: Path, tmp_path: Path
) -> None:
    """By ids the scores would be those of another text, or of none."""
    out = tmp_path / "run"
    code, _, said = trueline(verb, "--model", tiny, "--data", pairs, "--reward_model", other, "--out", out, *SHORT)
    assert code == 0, said
    assert said.count(f"{other} and {tiny} {SAID}") == 1
    assert any(SAID in row["event"] for row in read_lines(out / "events.jsonl"))  # kept, too
    samples = read_lines(out / "samples.jsonl")
    texts = [{"prompt": row["prompt"], "responses": [row["response"], row["response"] + "?"]} for row in samples]
    drawn = tmp_path / "drawn.jsonl"
    drawn.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    own, foreign = load_tokenizer(tiny), load_tokenizer(other)
    assert any(own.encode(row["response"]) != foreign.encode(row["response"]) for row in samples)
    code, printed, complaint = trueline("judge", "--data", drawn, "--judge", other, "--out", tmp_path / "judged.jsonl")
    assert code == 0, complaint
    from trueline.cli.judge import groups_of, judge_named

    judge = judge_named(str(other))
    expected = [judge.judge(group.prompt, group.responses)[0] for group, _ in groups_of(drawn)]
    assert [row["reward"] for row in samples] == pytest.approx(expected, abs=1e-5)
    scores = [score for group, _ in groups_of(drawn) for score in judge.judge(group.prompt, group.responses)]
    assert f"scores of {len(scores)} responses: mean {sum(scores) / len(scores):.3g}" in printed  # what the verb itself says


def test_several_of_which_one_reads_otherwise(trueline: Trueline, tiny: Path, other: Path, pairs: Path, tmp_path: Path) -> None:
    """All are then asked by text; the sum is theirs."""
    own = tmp_path / "own"
    save_model(ScalarModel(new_model(read_config(tiny)[0], seed=6)), own)
    load_tokenizer(tiny).save(own)
    code, _, said = trueline("online-dpo", "--model", tiny, "--data", pairs, "--reward_model", f"{own}=1,{other}=2", "--out",
                             tmp_path / "run", *SHORT)  # fmt: skip
    assert code == 0, said
    assert f"{other} and {tiny} {SAID}" in said
    code, _, said = trueline("online-dpo", "--model", tiny, "--data", pairs, "--reward_model", own, "--out", tmp_path / "ids", *SHORT)
    assert code == 0 and SAID not in said


def test_another_chat_template_is_another_reading(tiny: Path) -> None:
    own = load_tokenizer(tiny)
    assert own.spelling == load_tokenizer(tiny).spelling
    other = own.with_template("{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}")
    assert other.spelling != own.spelling and other.vocabulary == own.vocabulary


def test_a_critic_is_not_built_from_it(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """Of the same size, so that nothing but the meaning of the ids is amiss."""
    size = load_tokenizer(tiny).vocab_size
    words = [f"{a}{b}" for a in "bcdfghjklmnprst" for b in "aeiou"]
    tokenizer = train_tokenizer([" ".join(words)] * 20, vocab_size=size)
    assert tokenizer.vocab_size == size and tokenizer.vocabulary != load_tokenizer(tiny).vocabulary
    folder = tmp_path / "foreign"
    save_model(ScalarModel(new_model(read_config(tiny)[0], seed=5)), folder)
    tokenizer.save(folder)
    code, _, said = trueline("ppo", "--model", tiny, "--data", pairs, "--reward_model", folder, "--objective.critic", folder, "--out",
                             tmp_path / "run", *SHORT)  # fmt: skip
    last = said.strip().splitlines()[-1]
    assert code == 2 and f"the reward model {folder} has another tokenizer than the policy" in last
    assert "give --objective.critic policy or shared" in last and not (tmp_path / "run").exists()


def test_a_response_that_is_too_long_for_it_is_counted(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """It knows 24 positions; what is cut is said at the end."""
    tokenizer = train_tokenizer(["yes"] * 20, vocab_size=270)  # bytes, nearly: more tokens for the same text
    shape = json.loads((tiny / "config.json").read_text()) | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 24}
    folder = tmp_path / "short"
    save_model(ScalarModel(new_model(DecoderConfig.from_hf(shape), seed=5)), folder)
    tokenizer.save(folder)
    code, _, said = trueline("rloo", "--model", tiny, "--data", pairs, "--reward_model", folder, "--out", tmp_path / "run", *SHORT)
    assert code == 0, said
    assert "reads 24 tokens: " in said and "responses lost their end before they were scored" in said
