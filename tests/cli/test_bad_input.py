"""What people type and hand over by mistake: one sentence, exit code 2, no traceback, and the out folder as it was."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Trueline = Callable[..., tuple[int, str, str]]
PAIR = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Tuesday."}


@pytest.fixture
def dpo(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> Callable[..., str]:
    """dpo(...): the one sentence with which `trueline dpo` refuses; options may be replaced, or others given."""

    def refused(*words: object, verb: str = "dpo", model: object = tiny, data: object = pairs) -> str:
        out = tmp_path / "out"
        before = sorted(out.rglob("*")) if out.exists() else None
        code, said, complaint = trueline(
            verb, "--model", model, "--data", data, "--out", out, "--max_steps", 1, *words
        )
        assert (code, said) == (2, "")
        assert complaint.startswith("error: ") and complaint.count("\n") == 1, complaint
        assert (sorted(out.rglob("*")) if out.exists() else None) == before
        assert not list(tmp_path.glob(".out*"))
        return complaint.removeprefix("error: ").strip()

    return refused


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, object], Path]:
    """file(name, rows or bytes)"""

    def write(name: str, content: object) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")  # type: ignore[attr-defined]
        return path

    return write


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.jsonl", b"", "has no rows: it is empty"),
        ("empty.parquet", b"", "is not readable as parquet"),
        ("noise.jsonl", bytes(range(128, 256)) * 20, "none of its 1 rows is an object (not UTF-8 (1))"),
        ("noise.json", bytes(range(128, 256)), "is not UTF-8 text"),
        ("noise.csv", bytes(range(128, 256)), "is not UTF-8 text"),
        ("noise.jsonl.gz", bytes(range(128, 256)), "is damaged: Not a gzipped file"),
        ("noise.arrow", bytes(range(128, 256)) * 20, "noise.arrow is not readable as arrow"),
        ("weights.bin", b"x", "cannot read .bin; readable are .jsonl"),
        ("q.jsonl", [{"question": "a", "good": "b", "bad": "c"}], "has the columns question, good, bad, which is no format known"),
        ("c.jsonl", [{"prompt": "a", "chosn": "b", "rejected": "c"}], "did you mean 'chosn' for 'chosen'?"),
        ("s.jsonl", [{"prompt": "a", "completion": "b"}], "gives conversations, but comparisons are needed"),
        ("equal.jsonl", [{**PAIR, "rejected": "Blue."}] * 3, "none of its 3 rows can be used: chosen and rejected are equal (3)"),
        ("bad.jsonl", [{**PAIR, "chosen": ""}, {**PAIR, "prompt": 3}], "can be used: empty text (1); prompt is not a list (1)"),
        ("long.jsonl", [{**PAIR, "chosen": "b " * 900}], "the model's context is 256: give max_length = 256"),
    ],
)  # fmt: skip
def test_data(name: str, content: object, sentence: str, dpo: Callable[..., str], file: Callable[..., Path]) -> None:
    said = dpo(data=file(name, content))
    assert sentence in said and (name in said or "context" in said)


def test_data_that_is_not_there(dpo: Callable[..., str], pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dpo(data=pairs.with_name("pears.jsonl")).endswith(f"pears.jsonl does not exist; did you mean {pairs}?")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "nobody/nothing is no file or folder here" in dpo(data="nobody/nothing")


def test_models(dpo: Callable[..., str], copy: Path, tmp_path: Path) -> None:
    edit(copy / "config.json", architectures=["MambaForCausalLM"])
    assert "MambaForCausalLM cannot be computed; these can" in dpo(model=copy)
    (copy / "config.json").write_text("{", encoding="utf-8")
    assert "config.json is not valid JSON" in dpo(model=copy)
    (copy / "config.json").unlink()
    assert "config.json is missing" in dpo(model=copy)
    assert dpo(model="./nowhere") == "./nowhere: no such directory, and not a hub id (owner/name)."


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-10],
        lambda data: data[:100],
        lambda data: struct.pack("<Q", 1 << 60) + data[8:],
        lambda data: data[:8] + b"x" * (len(data) - 8),
        lambda data: data.replace(b'"F32"', b'"F99"'),
    ],
)
def test_damaged_safetensors(damage: Callable[[bytes], bytes], dpo: Callable[..., str], copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} is " in dpo(model=copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_not_opened(name: str, dpo: Callable[..., str], copy: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(copy / "harm"),)

    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Bomb()))
    assert "pickled weights" in dpo(model=copy)
    assert "pickled weights" in dpo(model=copy / name)
    assert not (copy / "harm").exists()


def test_tokenizers(
    dpo: Callable[..., str], trueline: Trueline, copy: Path, pairs: Path, file: Callable[..., Path], tmp_path: Path
) -> None:
    """More ids than the embedding has rows is an error; fewer are usual, where the embedding is padded."""
    from trueline.models.files import load_scalar_model, save_model
    from trueline.tokens import load_tokenizer, train_tokenizer

    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|{number}|>" for number in range(100)), "<|pad|>")
    train_tokenizer(["a b"], vocab_size=360, specials=names).save(copy)
    said = dpo(model=copy)
    assert "the tokenizer has ids up to 359" in said and "ends at 3" in said and "use the model's own tokenizer" in said
    answers = file("answers.jsonl", [{"prompt": "Count.", "responses": ["One, two.", "Seven."]}])
    judge = tmp_path / "judge"
    save_model(load_scalar_model(copy), judge)
    load_tokenizer(copy).save(judge)
    for verb in (
        ("generate", "Hi", "--model", copy),
        ("sample", "--model", copy, "--data", pairs, "--out", tmp_path / "drawn.jsonl"),
        ("eval", "--model", copy, "--data", pairs),
        ("eval", "--model", judge, "--data", pairs),
        ("judge", "--judge", judge, "--data", answers, "--out", tmp_path / "judged.jsonl"),
    ):
        code, _, complaint = trueline(*verb)
        assert code == 2 and "the tokenizer has ids up to 359" in complaint and "Traceback" not in complaint, verb
    train_tokenizer(["a b"], vocab_size=262).save(copy)
    words = ("dpo", "--model", copy, "--data", pairs, "--out", tmp_path / "fewer", "--max_steps", 1)
    assert trueline(*words)[0] == 0
    (copy / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "its tokenizer files cannot be used" in dpo(model=copy)
    (copy / "tokenizer.json").write_bytes(b"\xff\xfe")
    assert "tokenizer.json is not valid JSON" in dpo(model=copy)
    (copy / "tokenizer.json").unlink()
    assert "a model folder that holds one (tokenizer.json)" in dpo(model=copy)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages %}{{ m['content'][:3] }}{% endfor %}", "does not write the content of message 2 (assistant) once and whole"),
        ("{% for", "The chat template does not parse"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "The chat template fails on these messages: maximum recursion depth"),
        ("{{ ''.__class__.__mro__ }}", "The chat template refuses the messages"),
    ],
)  # fmt: skip
def test_templates(template: str, sentence: str, dpo: Callable[..., str], copy: Path, file: Callable[..., Path]) -> None:
    (copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    turns = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]
    assert sentence in dpo(verb="sft", model=copy, data=file("chat.jsonl", [{"messages": turns}] * 2))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--learning_rate -1", "learning_rate is -1.0: it must be at least 0; see trueline dpo --help"),
        ("--learning_rate nan", "--learning_rate is nan: write a finite number"),
        ("--learning_rate 1e-5x", "--learning_rate is '1e-5x': write a number, such as 1e-5"),
        ("--objective.beta inf", "--objective.beta is inf: write a finite number"),
        ("--objective.beta 0", "beta is 0.0: it must be above 0; see trueline dpo --help"),
        ("--objective.loss_type sigmod", "is 'sigmod': write one of sigmoid, ipo, hinge, robust; did you mean sigmoid?"),
        ("--max_steps -1", "max_steps is -1: it must be at least 0"),
        ("--max_steps 1.5", "--max_steps is '1.5': write a whole number"),
        ("--warmup_ratio 1.5", "warmup_ratio is 1.5: it must be at least 0 and at most 1; see trueline dpo --help"),
        ("--adam_beta2 1", "adam_beta2 is 1.0: it must be at least 0 and below 1; see trueline dpo --help"),
        ("--seed -1", "seed is -1: it must be at least 0"),
        ("--save_steps -1", "save_steps is -1: it must be at least 0; see trueline dpo --help"),
        ("--max_train_samples -1", "--max_train_samples is -1: write how many, or 0 for all"),
        ("--per_device_train_batch_size 99999999999", "use at most 1,048,576"),
        ("--max_length 1", "max_length 1 is too short: use at least 2."),
        ("--learning_rat 1", "trueline dpo has no option --learning_rat; did you mean --learning_rate?"),
        ("--report_to tensorbord", "--report_to is 'tensorbord': write one of tensorboard, wandb; did you mean tensorboard?"),
        ("--device tpu", "device is 'tpu', and this machine has cpu"),
        ("stray", "trueline dpo has no use for 'stray': options begin with --"),
        ("--config", "--config needs a value: --config FILE.yaml"),
    ],
)  # fmt: skip
def test_options(words: str, sentence: str, dpo: Callable[..., str]) -> None:
    assert sentence in dpo(*words.split())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: [", " is not YAML: "),
        (b"\xff\xfe\x00", " is not YAML: it is not UTF-8 text"),
        (b"a: " + b"[" * 5000, " is not YAML that can be read here (RecursionError)"),
        (b"learning_rat: 1\n", ":1 has the unknown key 'learning_rat'; did you mean learning_rate?"),
        (b"seed: 1\nlearning_rate: abc\n", ":2: --learning_rate is 'abc': write a number"),
        (b"learning_rate: [1, 2]\n", ":1: learning_rate takes one value"),
        (b"seed: 1\nseed: 2\n", ":2 sets 'seed' again: keep one of the two"),
        (b"dry_run: maybe\n", ":1: --dry_run is 'maybe': write true or false"),
    ],
)
def test_yaml(text: bytes, sentence: str, dpo: Callable[..., str], file: Callable[..., Path]) -> None:
    assert f"c.yaml{sentence}" in dpo("--config", file("c.yaml", text))


def test_out_folders(trueline: Trueline, dpo: Callable[..., str], tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """Another run, another model, a file: refused by name, and nothing in there is touched."""
    words = ("dpo", "--model", tiny, "--data", pairs, "--max_steps", 1)
    assert trueline(*words, "--out", tmp_path / "out")[0] == 0
    content = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    said = "was started with learning_rate = 1e-06, and this command has learning_rate = 0.001"
    assert said in dpo("--learning_rate", "1e-3")
    assert "was started with objective.method" in dpo(verb="sft")
    assert content == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    shutil.copytree(tiny, tmp_path / "foreign")
    for name, sentence in (("file", "a folder is needed there"), ("file/below", "a folder is needed there"),
                           ("foreign", "holds a model that no run of ours wrote")):  # fmt: skip
        code, _, said = trueline(*words, "--out", tmp_path / name)
        assert code == 2 and sentence in said and said.count("\n") == 1
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    (tmp_path / "out" / "run.json").write_text("{", encoding="utf-8")
    assert "run.json is damaged" in dpo()


def started(words: list[str], **more: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "trueline", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **more
    )  # type: ignore[call-overload,no-any-return]


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")
def test_no_room_on_the_disk(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """A file may not grow beyond 60 KB, as on a disk that is full: the weights do not fit."""
    words = ["sft", "--model", str(tiny), "--data", str(pairs), "--out", str(tmp_path / "out"), "--max_steps", "2"]
    words += ["--save_steps", "1"]

    def small() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    run = started(words, preexec_fn=small)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 2 and "Traceback" not in said, said
    assert said.strip().splitlines()[-1].startswith("error: ") and ("disk" in said or "room" in said), said
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    run = started(words)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 0, said


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(number: signal.Signals, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """The run saves, says how to go on, and goes on."""
    out = tmp_path / "out"
    words = ["sft", "--model", str(tiny), "--data", str(pairs), "--out", str(out), "--logging_steps", "1", "--max_steps"]
    run = started([*words, "100000", "--lr_scheduler_type", "constant"])
    for _ in range(600):
        if (out / "metrics.jsonl").exists():
            break
        time.sleep(0.1)
    run.send_signal(number)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 128 + number, said
    assert f"stopped by {number.name} after step" in said and "the same command goes on" in said and "Traceback" not in said
    (saved,) = out.glob("checkpoint-*")
    step = int(saved.name.split("-")[1])
    run = started([*words, str(step + 1), "--lr_scheduler_type", "constant"])
    _, said = run.communicate(timeout=120)
    assert run.returncode == 0 and f"goes on from {saved.name}" in said, said


def test_a_loss_that_is_not_finite(trueline: Trueline, copy: Path, pairs: Path, tmp_path: Path) -> None:
    """It stops before the step, keeps the last good checkpoint, and names the rows."""
    words = ("sft", "--model", copy, "--data", pairs, "--out", tmp_path / "out", "--save_steps", 1, "--max_grad_norm", 0)
    code, _, said = trueline(*words, "--learning_rate", "1e38", "--max_steps", 4, "--lr_scheduler_type", "constant")
    assert code == 2 and "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: step 2 has loss ") and "its rows are in" in last, last
    assert (tmp_path / "out" / "checkpoint-1" / "complete.json").exists()
    rows = json.loads((tmp_path / "out" / "nonfinite-step-2.json").read_text(encoding="utf-8"))
    assert rows and {"key", "ids", "scored", "numbers"} <= set(rows[0])


def test_a_metric_that_does_not_exist_is_refused_before_training(
    trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path
) -> None:
    words = ("dpo", "--model", tiny, "--data", pairs, "--eval_data", pairs, "--out", tmp_path / "out", "--max_steps", 1)
    code, _, said = trueline(*words, "--metric_for_best_model", "rewards/margin")
    assert code == 2 and "and an evaluation gives eval_loss, eval_rewards/chosen" in said and "first step" not in said
    assert trueline(*words, "--metric_for_best_model", "rewards/margins", "--out", tmp_path / "other")[0] == 0


def test_every_run_says_what_it_used(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    words = ("dpo", "--model", tiny, "--data", pairs, "--out", tmp_path / "out", "--max_steps", 1, "--max_length", 12)
    code, _, said = trueline(*words)
    assert code == 0
    assert ": 5 read, " in said and "chosen and rejected are equal (1)" in said and "at their right end" in said
    assert "are trained on" in said and "first step: " in said and "padding 0.0%" in said
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["counts"]["rewards/margins"] == 8 and line["counts"]["loss"] == 1  # 4 rows, a batch of 8: each is used twice
