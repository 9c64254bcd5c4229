"""Each verb on a tiny model: from rows to models, responses, comparisons and figures."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Trueline = Callable[..., tuple[int, str, str]]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo"])
def test_training_and_repeating(verb: str, trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """Trains, keeps its command, repeats it bit for bit, and says when there is nothing left to do."""
    out = tmp_path / "run"
    words = (verb, "--model", tiny, "--data", pairs, "--out", out, "--max_steps", 2, "--learning_rate", "1e-3")
    code, _, said = trueline(*words)
    assert code == 0, said
    assert "1 rows were left out" in said and f"model in {out}" in said.replace("\n", "")
    assert (out / "model.safetensors").exists() and (out / "tokenizer.json").exists()
    assert lines(out / "rejects.jsonl")[0]["reason"] == "chosen and rejected are equal"
    kept = yaml.safe_load((out / "command.yaml").read_text(encoding="utf-8"))
    assert (kept["verb"], kept["learning_rate"], kept["max_steps"]) == (verb, 1e-3, 2)
    code, said, _ = trueline("run", out)
    assert code == 0 and "are equal, bit for bit" in said
    code, _, said = trueline(*words)
    assert code == 0 and "is finished: nothing to do" in said


def test_refused_options_do_not_replace_the_kept_command(
    trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("sft", "--model", tiny, "--data", pairs, "--out", out, "--max_steps", 1)
    assert trueline(*words)[0] == 0
    before = (out / "command.yaml").read_bytes()
    code, _, said = trueline(*words, "--learning_rate", "1")
    assert code == 2 and "learning_rate" in said
    assert (out / "command.yaml").read_bytes() == before


def test_pretrain_from_text(trueline: Trueline, tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "One two three four."}\n' * 8, encoding="utf-8")
    code, _, said = trueline("pretrain", "--model", tiny, "--data", text, "--out", tmp_path / "run", "--max_steps", 2)
    assert code == 0, said


def test_dry_run_shows_and_writes_nothing(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said, _ = trueline("dpo", "--model", tiny, "--data", pairs, "--out", out, "--dry_run", "--max_length", 12)
    assert code == 0 and not out.exists()
    assert (
        re.search(r"rows per step +8\b", said) and re.search(r"steps +1\b", said) and re.search(r"beta +0\.1\b", said)
    )
    assert "cut to max_length 12" in said
    assert "[[" in said and "Name a colour.[[" in said


def test_weighted_mixture(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    words = ("sft", "--model", tiny, "--data", pairs, pairs, "--out", tmp_path / "x", "--dry_run")
    code, said, _ = trueline(*words, "--data_weights", 1, 3)
    assert code == 0 and re.search(r"rows +\d+", said)
    assert trueline(*words, "--data_weights", 1) == (
        2,
        "",
        "error: --data_weights has 1 numbers for 2 sources: give one for each\n",
    )


def test_generate_and_sample_and_judge(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """Prompts -> responses -> comparisons -> a reward model trained on them -> its accuracy and its own judgements."""
    code, said, _ = trueline("generate", "Name a colour.", "--model", tiny, "--max_new_tokens", 4, "--seed", 1)
    assert code == 0 and said
    assert trueline("generate", "Name a colour.", "--model", tiny, "--max_new_tokens", 4, "--seed", 1)[1] == said

    drawn, judged = tmp_path / "drawn.jsonl", tmp_path / "judged.jsonl"
    code, _, said = trueline(
        "sample", "--model", tiny, "--data", pairs, "--out", drawn, "--n", 3, "--max_new_tokens", 8
    )
    assert code == 0, said
    assert [len(line["responses"]) for line in lines(drawn)] == [3] * 4

    rule = tmp_path / "rule.py"
    rule.write_text("def longer(prompt, response):\n    return len(response)\n", encoding="utf-8")
    code, said, _ = trueline(
        "judge", "--data", drawn, "--judge", f"{rule}:longer", "--out", judged, "--select", "best_vs_worst"
    )
    assert code == 0, said
    assert all(len(line["chosen"]) > len(line["rejected"]) for line in lines(judged))

    reward = tmp_path / "reward"
    assert trueline("reward", "--model", tiny, "--data", judged, "--out", reward, "--max_steps", 2)[0] == 0
    code, said, _ = trueline("eval", "--model", reward, "--data", judged, "--out", tmp_path / "eval.json")
    assert code == 0 and "accuracy" in said and "calibration" in said
    assert json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))["pairs"] == sum(
        bool(line["rejected"]) for line in lines(judged)
    )

    again = tmp_path / "again.parquet"
    code, said, _ = trueline("judge", "--data", drawn, "--judge", reward, "--out", again, "--format", "trueline")
    assert code == 0 and again.exists(), said
    code, _, said = trueline("judge", "--data", drawn, "--judge", tiny, "--out", again)
    assert code == 2 and "is a language model, not a reward model" in said
    code, _, said = trueline("judge", "--data", drawn, "--judge", f"{rule}:shorter", "--out", again)
    assert code == 2 and "has no function 'shorter'; it has longer" in said


def test_ranking_with_ties() -> None:
    from trueline.align.group import Group
    from trueline.cli.judge import ranking
    from trueline.records import Message, Ranking

    responses = tuple((Message(role="text", content=text),) for text in "abcd")
    group = Group(
        key="0", prompt=(Message(role="text", content="?"),), responses=responses, scores=(1.0, 3.0, 1.0, 2.9)
    )
    found = ranking(group, margin=0.2, judge="", source="")
    assert [response[0].content for response in found.responses] == ["b", "d", "a", "c"]
    assert found.judgement == Ranking((1, 1, 3, 3))


@pytest.mark.parametrize(
    ("row", "figure"), [('{"text": "One two three."}', "bits_per_byte"), ('{"prompt": "a", "completion": "b"}', "loss")]
)
def test_eval_of_language_models(row: str, figure: str, trueline: Trueline, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{row}\n" * 3, encoding="utf-8")
    code, said, _ = trueline("eval", "--model", tiny, "--data", path)
    assert code == 0 and figure in said


def test_data_and_tokenizer(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    code, said, _ = trueline("data", "inspect", pairs, "--model", tiny)
    assert code == 0 and "TRL preference" in said and "chosen and rejected are equal" in said
    code, said, _ = trueline("data", "convert", pairs, tmp_path / "out.jsonl")
    assert code == 0 and "4 rows in" in said
    code, said, _ = trueline("tokenizer", "train", "--data", pairs, "--out", tmp_path / "tok", "--vocab_size", 270)
    assert code == 0 and (tmp_path / "tok" / "tokenizer.json").exists()
    code, said, _ = trueline("tokenizer", "lint", tmp_path / "tok")
    assert code == 0 and "mask" in said
    template = tmp_path / "tok" / "chat_template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'][:3] }}{% endfor %}", encoding="utf-8")
    code, said, complaint = trueline("tokenizer", "lint", tmp_path / "tok")
    assert code == 2 and "error" in said and "not fit for training" in complaint


def test_python_in_under_ten_lines(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """The README's program."""
    import trueline

    model, tokenizer = trueline.load_model(tiny), trueline.load_tokenizer(tiny)
    rows = trueline.read_rows(pairs)
    folder = trueline.train(trueline.DPO(beta=0.1), model, rows, out=tmp_path / "dpo", max_steps=1)
    aligned = trueline.load_model(folder)
    assert len(trueline.Engine(aligned, tokenizer).generate(["Say hello."], max_new_tokens=4)) == 1
    assert not model.logits(__import__("torch").tensor([1, 2])).isnan().any()


def test_training_opens_no_connection(
    trueline: Trueline, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on local files, from reading to the saved model, without a single connection."""

    def refuse(*words: object) -> None:
        raise AssertionError(f"a connection was opened: {words}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4, encoding="utf-8")
    words = ("sft", "--model", tiny, "--data", rows, "--out", tmp_path / "out", "--max_steps", 1)
    assert trueline(*words)[0] == 0


def test_evaluation_samples_and_sinks(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """Held-out rows are evaluated, responses drawn on the way are kept, and metrics go where they are wanted."""
    words = ("sft", "--model", tiny, "--data", pairs, "--eval_data", pairs, "--max_steps", 2, "--max_train_samples", 3)
    more = ("--eval_steps", 1, "--sample_steps", 1, "--logging_steps", 1)
    assert trueline(*words, *more, "--out", tmp_path / "a")[0] == 0
    metrics = lines(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in metrics if "eval_loss" in line] == [1, 2]
    drawn = lines(tmp_path / "a" / "samples.jsonl")
    assert {line["prompt"] for line in drawn} == {"What is 2 + 2?", "Name a colour.", "Say hello."} and len(drawn) == 6
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    assert json.loads((tmp_path / "a" / "run.json").read_text(encoding="utf-8"))["config"]["data"][0]["rows"] == 3
    assert trueline(*words, "--out", tmp_path / "b", "--report_to")[0] == 0
    assert not (tmp_path / "b" / "tensorboard").exists()


def test_every_sampling_run_compares_sampler_and_trainer(
    trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path
) -> None:
    """`trueline sample`, and training that draws samples on the way: one line, with its figure."""
    line = r"sampler vs trainer log-probs: max difference (\d\.\de-\d\d) over \d+ tokens"
    code, _, said = trueline("sample", "--model", tiny, "--data", pairs, "--out", tmp_path / "drawn.jsonl", "--max_new_tokens", 8)
    assert code == 0 and float(re.findall(line, said)[0]) < 1e-5, said
    words = ("sft", "--model", tiny, "--data", pairs, "--out", tmp_path / "run", "--max_steps", 4, "--sample_steps", 2)
    code, _, said = trueline(*words)
    assert code == 0 and [float(found) < 1e-5 for found in re.findall(line, said)] == [True, True], said
