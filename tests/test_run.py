"""A run folder resumes the same run, refuses another, and never holds half a line."""

import importlib.metadata
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

import trueline
from trueline.run import Bar, Run, environment, flatten, read_json, read_lines
from trueline.sinks import tensorboard_sink, wandb_sink

IDENTITY = {"learning_rate": 1e-5, "data": {"path": "a.jsonl", "fingerprint": "ab"}, "seed": 1}


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def open_run(folder, identity=IDENTITY, **more) -> Run:
    return Run(folder, {"identity": dict(identity), "note": "x"}, identity=identity, console=quiet(), **more)


def test_the_same_identity_resumes_and_an_equal_number_is_equal(tmp_path):
    with open_run(tmp_path / "r") as run:
        assert not run.resumed
    with open_run(tmp_path / "r", {**IDENTITY, "seed": 1.0}) as again:
        assert again.resumed
        assert again.fingerprint == run.fingerprint
    assert read_json(tmp_path / "r" / "run.json")["config"]["note"] == "x"


def test_another_identity_is_refused_in_one_sentence(tmp_path):
    open_run(tmp_path / "r").close()
    with pytest.raises(ValueError) as error:
        open_run(tmp_path / "r", {**IDENTITY, "learning_rate": 2e-5, "seed": 2})
    said = str(error.value)
    assert "learning_rate = 1e-05" in said and "learning_rate = 2e-05" in said and "seed" not in said
    assert "\n" not in said and "--out" in said
    with pytest.raises(
        ValueError, match=r"data\.fingerprint = \"ab\", and this command has data\.fingerprint = \"cd\""
    ):
        open_run(tmp_path / "r", {**IDENTITY, "data": {"path": "a.jsonl", "fingerprint": "cd"}})
    with pytest.raises(ValueError, match="beta = absent"):
        open_run(tmp_path / "r", {**IDENTITY, "beta": 0.1})
    with pytest.raises(ValueError, match="seed = 1, and this command has seed = absent"):
        open_run(tmp_path / "r", {k: v for k, v in IDENTITY.items() if k != "seed"})
    open_run(tmp_path / "r").close()  # a refusal changed nothing and holds no lock


@pytest.mark.parametrize(
    ("name", "was", "now", "typed"),
    [
        ("config.learning_rate", 0.001, 0.1, "give --learning_rate 0.001 to resume"),
        ("config.bf16", True, False, "give --bf16 true to resume"),
        ("config.lora_target_modules", ["q_proj", "v_proj"], ["all-linear"], "give --lora_target_modules q_proj v_proj to resume"),
        ("config.greater_is_better", None, True, "leave out --greater_is_better to resume"),
        ("config.rows_per_step", 8, 4, "x processes be 8 again to resume"),
        ("objective.method", "dpo", "ppo", "begin with trueline dpo to resume"),
        ("objective.kl.kl_coef", 0.05, 0.1, "give --objective.kl_coef 0.05 to resume"),  # as people type it
        ("model", "a" * 64, "b" * 64, "give --model as it was to resume"),
        ("reward", "a" * 64, "b" * 64, "give --reward_model as it was to resume"),
        ("judge.contents", "a" * 64, "b" * 64, "give --judge as it was (the same name holds something else now) to resume"),
    ],
)
def test_what_to_type_to_resume(name, was, now, typed, tmp_path):
    def nested(value):
        for part in reversed(name.split(".")):
            value = {part: value}
        return value

    Run(tmp_path, {}, identity=nested(was)).close()
    with pytest.raises(ValueError, match=re.escape(typed)):
        Run(tmp_path, {}, identity=nested(now))


def test_a_folder_with_a_foreign_model_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a model"):
        open_run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_finished_until_more_steps_are_asked_for(tmp_path):
    with open_run(tmp_path / "r", total=10) as run:
        assert not run.finished
        run.finish({"loss": 1.5})
        assert run.finished
    with open_run(tmp_path / "r", total=10) as run:
        assert run.finished
    with open_run(tmp_path / "r", total=11) as run:
        assert not run.finished


def test_metrics_are_lines_of_plain_json_and_reach_the_sinks(tmp_path):
    seen = []
    with open_run(tmp_path / "r", sinks=[lambda step, metrics: seen.append((step, metrics["loss"]))]) as run:
        run.log(1, {"loss": 2, "rewards/margins": math.inf})
        run.log(2, {"loss": math.nan})
        rows = read_lines(tmp_path / "r" / "metrics.jsonl")  # flushed: readable while the run is open
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 2.0), (2, None)]
    assert rows[0]["rewards/margins"] is None
    assert seen[0] == (1, 2.0) and math.isnan(seen[1][1])


def test_truncate_forgets_what_came_after_the_checkpoint_and_half_a_line(tmp_path):
    with open_run(tmp_path / "r") as run:
        for step in range(1, 6):
            run.log(step, {"loss": step})
            run.sample(step, {"prompt": "p", "response": "[b]not markup[/b]"})
    with open(tmp_path / "r" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')  # killed while writing
    with open_run(tmp_path / "r") as run:
        run.truncate(3)
        run.log(4, {"loss": 40})
    assert [(r["step"], r["loss"]) for r in read_lines(tmp_path / "r" / "metrics.jsonl")] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]
    assert [r["step"] for r in read_lines(tmp_path / "r" / "samples.jsonl")] == [1, 2, 3]


def test_one_process_at_a_time(tmp_path):
    with open_run(tmp_path / "r"):
        with pytest.raises(ValueError, match="in use by another process"):
            open_run(tmp_path / "r")
        code = f"from trueline.run import Run; Run({str(tmp_path / 'r')!r}, {{}})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert other.returncode != 0 and "in use by another process" in other.stderr
    open_run(tmp_path / "r").close()


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_process_holds_no_lock(tmp_path):
    code = f"from trueline.run import Run; r = Run({str(tmp_path / 'r')!r}, {{}}); print('open', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "open\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    process.stdin.close()
    Run(tmp_path / "r", {}, console=quiet()).close()


def test_environment_knows_the_version_of_a_source_tree(monkeypatch):
    def nothing_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing_installed)
    versions = environment()["versions"]
    assert versions["trueline"] == trueline.__version__ and versions["torch"] is None


def test_environment_names_versions_and_a_change_is_an_event(tmp_path):
    about = environment()
    assert about["versions"]["numpy"] and about["cores"] >= 1 and "torch" in about["versions"]
    open_run(tmp_path / "r").close()
    path = tmp_path / "r" / "environment.json"
    path.write_text(json.dumps({**about, "python": "2.7"}))
    open_run(tmp_path / "r").close()
    (event,) = read_lines(tmp_path / "r" / "events.jsonl")
    assert f"python 2.7 -> {about['python']}" in event["event"]


def test_bar_says_loss_speed_and_time_left_as_lines_without_a_terminal():
    now = [0.0]
    console = quiet()
    with Bar(100, "sft", console=console, clock=lambda: now[0]) as bar:
        for step in range(1, 101):
            now[0] += 1.0
            bar.update(step, loss=1 / step, tokens=500)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "sft 10/100  loss 0.1  500 tok/s  left 1:30"
    assert len(lines) == 10
    assert lines[-1].startswith("sft 100/100  loss 0.01  500 tok/s") and "left" not in lines[-1]


def test_bar_resumed_does_not_count_earlier_steps_as_done_now():
    now = [0.0]
    console = quiet()
    with Bar(100, console=console, start=80, clock=lambda: now[0]) as bar:
        now[0] = 10.0
        bar.update(90)
    assert console.file.getvalue().strip() == "90/100  left 0:10"


def test_bar_on_a_terminal_is_live():
    console = Console(file=StringIO(), force_terminal=True, width=120)
    with Bar(4, "dpo", console=console) as bar:
        bar.update(3, loss=0.5, note="[x]")
    shown = console.file.getvalue()
    assert "dpo" in shown and "3/4" in shown and "loss 0.5" in shown and "[x]" in shown


def records_of(path) -> list[bytes]:
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_tensorboard_frames_by_hand(tmp_path):
    sink = tensorboard_sink(tmp_path)
    sink(300, {"loss": 1.5})
    sink(301, {"loss": 1.25})
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = records_of(path)
    assert b"brain.Event:2" in events[0]
    assert events[1].endswith(b"\x3a\x02\x08\x01")  # a session starts at step 300
    assert events[2][9:] == b"\x10\xac\x02" + b"\x2a\x0d\x0a\x0b\x0a\x04loss\x15" + struct.pack("<f", 1.5)
    assert len(events) == 4


def test_tensorboard_reads_what_we_write(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    for start, scale in ((1, 1.0), (3, 10.0)):  # a resume at step 3: the reader drops what it had from there on
        sink = tensorboard_sink(tmp_path / str(start))
        for step in range(start, 6):
            sink(step, {"rewards/margins": step * scale, "loss": math.nan})
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    for number, start in enumerate(("1", "3")):
        (path,) = (tmp_path / start / "tensorboard").iterdir()
        path.rename(folder / f"events.out.tfevents.{number}.x")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("rewards/margins")] == [(1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]


def test_a_missing_tracker_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install"):
        wandb_sink("p")


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
