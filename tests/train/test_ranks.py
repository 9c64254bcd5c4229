"""Two processes are one: gradients, fifty steps of every method, evaluation, stopping, and going on with another number."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trueline.models.decoder import Decoder
from trueline.run import read_lines
from trueline.train import train
from trueline.train.ranks import ALONE, BUCKET, Ranks, buckets, of_environment

WORKER = Path(__file__).with_name("ranks_worker.py")
Launch = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture
def launch() -> Any:
    """launch(words, world=2): `python WORDS` as the ranks of one run; those that still run at the end are ended."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object, world: int = 2) -> list[subprocess.Popen[str]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, words)]
        for rank in range(world):
            env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return started[-world:]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def measured(what: str, difference: float, limit: float) -> None:
    """Say the figure (pytest -s shows it), then hold it to the limit."""
    print(f"{what}: {difference:.2e}, at most {limit:.0e}")
    assert difference <= limit, what


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_lines(folder / "metrics.jsonl") if "loss" in row}


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_lines(folder / "metrics.jsonl") if "eval_loss" in row]


@pytest.mark.slow
def test_two_processes_are_one(files: Path, tmp_path: Path, launch: Launch) -> None:
    """2 x 4 rows against 1 x 8: gradients to 1e-5 of the largest, losses to 1e-4 over 50 steps, evaluation too."""
    (files / "nine.jsonl").write_text("".join((files / "text.jsonl").read_text().splitlines(True)[:9]))
    two = launch(WORKER, "methods", files, tmp_path / "two")
    worker = runpy.run_path(str(WORKER))
    for verb in worker["DATA"]:
        worker["gradient"](verb, files, tmp_path / "one", 8, ALONE)
    worker["runs"](files, tmp_path / "one", 8)
    for process in two:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said

    for verb in worker["DATA"]:
        compare(verb, tmp_path)
    a, b = losses(tmp_path / "one" / "nine"), losses(tmp_path / "two" / "nine")
    assert list(a) == list(b) == [1, 2]
    measured("a last step of one row, which leaves the other process nothing", abs(a[2] - b[2]), 1e-4)


def compare(verb: str, folder: Path) -> None:
    """Gradients to 1e-5 of the largest, losses to 1e-4 over fifty steps, evaluation too: FOLDER/one against FOLDER/two."""
    alone = load_file(folder / "one" / f"{verb}-0.safetensors")
    shared, other = (load_file(folder / "two" / f"{verb}-{rank}.safetensors") for rank in (0, 1))
    assert alone.keys() == shared.keys() and all(torch.equal(shared[name], other[name]) for name in shared)
    gradients = [name for name in alone if name not in ("loss", "count", "norm")]
    largest = max(float(alone[name].abs().max()) for name in gradients)
    gap = max(float((alone[name] - shared[name]).abs().max()) for name in gradients) / largest
    measured(f"{verb}, gradient of two processes against one, relative", gap, 1e-5)
    assert float(shared["count"]) == 1 and float(shared["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-5)
    assert float(shared["norm"]) == pytest.approx(float(alone["norm"]), rel=1e-5)

    a, b = losses(folder / "one" / verb), losses(folder / "two" / verb)
    assert list(a) == list(b) == list(range(1, 51)) and a[1] != a[50]
    measured(f"{verb}, loss after 50 steps", abs(a[50] - b[50]), 1e-4)
    measured(f"{verb}, largest difference of the loss on the way", max(abs(a[step] - b[step]) for step in a), 1e-4)
    for mine, theirs in zip(evaluations(folder / "one" / verb), evaluations(folder / "two" / verb), strict=True):
        assert theirs.pop("counts") == mine.pop("counts")
        assert theirs == pytest.approx({**mine, "time": theirs["time"]}, abs=2e-3)
        measured(f"{verb}, evaluation", abs(mine["eval_loss"] - theirs["eval_loss"]), 1e-4)



@pytest.mark.slow
def test_two_processes_draw_what_one_draws(files: Path, tmp_path: Path, launch: Launch) -> None:
    """Half the prompts each: the same rewards, pairs and losses, and samples of both halves."""
    two = launch(WORKER, "drawing", files, tmp_path / "two")
    runpy.run_path(str(WORKER))["drawing"](files, tmp_path / "one", 8)
    for process in two:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
    one, both = (read_lines(tmp_path / name / "drawing" / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in both]
    names = ("reward", "completions/mean_length", "frac_reward_zero_std", "loss", "objective/kl", "eval_reward")
    for name in names:
        apart = [abs(a[name] - b[name]) for a, b in zip(one, both, strict=True) if name in a]
        measured(f"{name} of two processes", max(apart), 1e-4)
    drawn = [[row["response"] for row in read_lines(tmp_path / name / "drawing" / "samples.jsonl")] for name in ("one", "two")]
    assert len(drawn[1]) == 2 * len(drawn[0]) and set(drawn[0]) < set(drawn[1])


@pytest.mark.slow
def test_adapters_and_noise_are_the_same_in_two_processes(files: Path, tmp_path: Path, launch: Launch) -> None:
    """LoRA: 2 x 4 rows against 1 x 8. With NEFTune and dropout, whose noise is a microbatch's own: against 1 x (4 + 4)."""
    two = launch(WORKER, "adapters", files, tmp_path / "two")
    worker = runpy.run_path(str(WORKER))
    for name, (_, _, noisy) in worker["ADAPTED"].items():
        worker["gradient"](name, files, tmp_path / "one", 4 if noisy else 8, ALONE)
    worker["adapted_runs"](files, tmp_path / "one", 8, 4)
    for process in two:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
    for name in worker["ADAPTED"]:
        compare(name, tmp_path)
    clean, noisy = (losses(tmp_path / "one" / name) for name in ("sft-lora", "sft-noise"))
    assert max(abs(clean[step] - noisy[step]) for step in clean) > 1e-2  # there is noise to agree on


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_one_process_goes_on(files: Path, launch: Launch) -> None:
    """SIGTERM to the second of two ranks; then a single process finishes what they began."""
    data = ["--model", files / "model", "--data", files / "chat.jsonl", "--max_length", 64, "--learning_rate", 1e-3]
    long = ["--max_steps", 200, "--save_steps", 0, "--logging_steps", 1, "--report_to"]
    words = ["-m", "trueline", "sft", *data, *long]
    batch = ["--per_device_train_batch_size", 4, "--out"]
    two = launch(*words, *batch, files / "two")
    log = files / "two" / "metrics.jsonl"
    while all(process.poll() is None for process in two) and not log.exists():
        time.sleep(0.02)
    two[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [128 + signal.SIGTERM] * 2, said
    (saved,) = (files / "two").glob("checkpoint-*")
    stopped = int(saved.name.split("-")[1])
    assert stopped < 200 and f"stopped by SIGTERM after step {stopped} of 200" in said[0]
    assert said[1].strip() == ""  # rank 0 alone speaks

    objective = runpy.run_path(str(WORKER))["discover"]()["sft"]()
    options: dict[str, Any] = {"max_length": 64, "learning_rate": 1e-3, "max_steps": 200, "save_steps": 0, "logging_steps": 1}
    paths = (files / "model", files / "chat.jsonl")
    with pytest.raises(ValueError, match=r"rows_per_step = 8, and this command has config\.rows_per_step = 4"):
        train(objective, *paths, out=files / "two", per_device_train_batch_size=4, **options)
    train(objective, *paths, out=files / "two", per_device_train_batch_size=8, **options)
    train(objective, *paths, out=files / "one", per_device_train_batch_size=8, **options)
    a, b = losses(files / "one"), losses(files / "two")
    assert list(a) == list(b) == list(range(1, 201))
    measured("stopped as two, finished as one: largest difference of the loss", max(abs(a[n] - b[n]) for n in a), 1e-3)


@pytest.mark.slow
def test_torchrun_is_the_way_to_start(files: Path) -> None:
    words = ["--model", files / "model", "--data", files / "pairs.jsonl", "--out", files / "dpo", "--max_steps", 3]
    more = ["--per_device_train_batch_size", 4, "--max_length", 64, "--logging_steps", 1, "--save_steps", 0]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "trueline", "dpo"]
    done = subprocess.run([sys.executable, *launcher, *map(str, [*words, *more])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 steps of 8 rows (4 x 1 x 2 processes" in done.stderr
    assert "reference log-probs: 60 rows computed, 0 read" in done.stderr
    assert done.stderr.count("model in ") == 1
    assert list(losses(files / "dpo")) == [1, 2, 3] and (files / "dpo" / "model.safetensors").exists()
    assert not list(files.glob(".dpo*"))


@pytest.mark.slow
def test_ranks_that_differ_are_refused(files: Path, launch: Launch) -> None:
    """Each rank is given other data: both end with one sentence, and nothing is written."""
    code = (
        "import os, sys; from trueline.cli import main; data = sys.argv[1] + ('/chat.jsonl', '/other.jsonl')[int(os.environ['RANK'])];"
        "sys.exit(main(['sft', '--model', sys.argv[1] + '/model', '--data', data, '--out', sys.argv[1] + '/out', '--max_steps', '1']))"
    )
    (files / "other.jsonl").write_text("".join((files / "chat.jsonl").read_text().splitlines(True)[:-1]))
    two = launch("-c", code, files)
    said = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [2, 2], said
    for text in said:
        assert "error: rank 1 has another data than rank 0: give all ranks the same files and options" in text
        assert "Traceback" not in text
    assert not (files / "out" / "run.json").exists()


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch, decoder: Callable[..., Decoder]) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert of_environment() == ALONE and ALONE.first
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        of_environment()
    monkeypatch.setenv("MASTER_ADDR", "here")
    assert of_environment() == Ranks(1, 3, 1)
    model = decoder()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.grad for p in model.parameters()]
    ALONE.sum_gradients(model)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), before, strict=True))  # untouched: not even copied
    assert ALONE.gather(7) == [7] and ALONE.agree_to_stop([]) == 0 and ALONE.sum({"a": (1.0, 2.0)}) == {"a": (1.0, 2.0)}


def test_a_step_is_dealt_in_turn() -> None:
    step = list(range(5))
    assert [list(Ranks(rank, 2).deal(step)) for rank in (0, 1)] == [[0, 2, 4], [1, 3]]
    assert list(Ranks(1, 2).deal([7])) == [] and ALONE.deal(step) == step


def test_buckets_hold_every_trained_parameter_once(decoder: Callable[..., Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    model.norm.weight.requires_grad_(False)
    assert BUCKET * 4 == 64 << 20
    monkeypatch.setattr("trueline.train.ranks.BUCKET", 3000)
    found = list(buckets(model))
    assert len(found) > 3 and all(len(bucket) == 1 or sum(p.numel() for p in bucket) <= 3000 for bucket in found)
    assert [id(p) for bucket in found for p in bucket] == [id(p) for p in model.parameters() if p.requires_grad]


def test_gpus_are_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Ranks(0, 2, 0).place("cuda") == "cuda:0" and Ranks(1, 2, 1).place("cpu") == "cpu"
    assert ALONE.place("cuda:3") == "cuda:3"
    with pytest.raises(ValueError, match="rank 1 is number 2 on its machine, which has 1 GPUs"):
        Ranks(1, 2, 1).place("cuda")
    with pytest.raises(ValueError, match="device is 'cuda:1', and there are 2 ranks"):
        Ranks(0, 2, 0).place("cuda:1")
