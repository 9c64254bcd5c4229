"""`trueline VERB`, killed at any moment and given again, ends where the uninterrupted run ends, byte for byte.

Each command is a process of its own that runs the command line's main and is ended by SIGKILL: at a random time, in the middle of
writing a checkpoint, and with its newest checkpoint truncated afterwards. Processes are forked from one that has imported
everything, so that a hundred kills take minutes; TRUELINE_KILLS (6 by default) is how many each method suffers in the long test.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trueline.run import read_lines
from trueline.train.checkpoint import checkpoints, is_complete

if sys.platform == "win32":
    pytest.skip("there is no SIGKILL", allow_module_level=True)

KILLS = int(os.environ.get("TRUELINE_KILLS", "6"))
VERBS = ("pretrain", "sft", "reward", "dpo", "online-dpo")
DATA = {"pretrain": "text", "sft": "chat", "reward": "pairs", "dpo": "pairs", "online-dpo": "pairs"}
SHAPE = ["--max_steps", "24", "--save_steps", "3", "--logging_steps", "2", "--eval_steps", "8", "--eval_share", "0.2",
         "--learning_rate", "1e-3", "--per_device_train_batch_size", "4", "--max_length", "64"]  # fmt: skip
NOISE = ["--objective.neftune_noise_alpha", "5"]  # the generators matter
MOTHER = """
import json, os, resource, sys, traceback
import trueline.cli.method, trueline.models.files, trueline.train.api
from trueline.cli import main
for line in sys.stdin:
    words, log, limit = json.loads(line)
    pid = os.fork()
    if not pid:
        handle, code = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
Go = Callable[..., tuple[int, float]]


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Go]:
    """go(words, log, limit=0, meanwhile=None) -> exit code, seconds. `meanwhile(pid)` runs while the command does;
    no file may grow above `limit` bytes."""
    mother = subprocess.Popen([sys.executable, "-c", MOTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert mother.stdin is not None and mother.stdout is not None
    requests, answers = mother.stdin, mother.stdout

    def run(words: list[str], log: Path, limit: int = 0, meanwhile: Callable[[int], None] | None = None) -> tuple[int, float]:
        requests.write(json.dumps([words, str(log), limit]) + "\n")
        requests.flush()
        pid, began = int(answers.readline()), time.monotonic()
        if meanwhile is not None:
            meanwhile(pid)
        return int(answers.readline()), time.monotonic() - began

    yield run
    requests.close()
    mother.wait()


def command(verb: str, files: Path, out: Path) -> list[str]:
    paths = ["--model", str(files / "model"), "--data", str(files / f"{DATA[verb]}.jsonl"), "--out", str(out)]
    rule = files / "rule.py"
    rule.write_text("def short(prompt, response):\n    return -len(response)\n", encoding="utf-8")
    drawing = ["--judge", f"{rule}:short", "--max_completion_length", "8", "--num_generations", "3", "--sample_steps", "5"]
    return [verb, *paths, *SHAPE, *(NOISE if verb == "sft" else []), *(drawing if verb == "online-dpo" else [])]


def outcome(out: Path) -> dict[str, Any]:
    """Weights, optimizer, the state of a run, and its metrics without the clock."""
    metrics = [
        {name: value for name, value in row.items() if name not in ("time", "tokens_per_second") and not name.startswith("time/")}
        for row in read_lines(out / "metrics.jsonl")
    ]
    (_, newest), *_ = checkpoints(out)
    found: dict[str, Any] = {name: (newest / name).read_bytes() for name in sorted(os.listdir(newest))}
    return found | {"model": (out / "model.safetensors").read_bytes(), "metrics": metrics}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [name for name in {**expected, **found} if found.get(name) != expected.get(name)]


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(pid, signal.SIGKILL)


def kill_after(seconds: float) -> Callable[[int], None]:
    def wait(pid: int) -> None:
        time.sleep(seconds)
        end(pid)

    return wait


def kill_in_a_save(out: Path, seconds: float) -> Callable[[int], None]:
    """As soon as a checkpoint is being written that was not before; after some time, if none comes."""

    def wait(pid: int) -> None:
        old, until = {path.name for path in out.glob(".checkpoint-*.tmp")}, time.monotonic() + seconds
        while time.monotonic() < until and not any(path.name not in old for path in out.glob(".checkpoint-*.tmp")):
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.01))
        end(pid)

    return wait


def truncate_newest(out: Path) -> bool:
    """Cut a random file of the newest checkpoint short."""
    found = checkpoints(out)
    if not found:
        return False
    path = random.choice(sorted(found[0][1].iterdir()))
    size = path.stat().st_size
    os.truncate(path, random.randrange(size) if size else 0)
    return size > 0


def suffer(verb: str, files: Path, go: Go, kills: int) -> dict[str, int]:
    """Kill a run so many times, then let it end; what happened how often. Starts afresh when a run ends before it is killed."""
    words, log = command(verb, files, files / "straight" / "run"), files / "log.txt"
    code, seconds = go(words, log)
    assert code == 0, log.read_text()
    expected = outcome(files / "straight" / "run")
    happened = {"killed": 0, "in a save": 0, "truncated": 0, "resumed": 0, "runs": 0}
    seed = random.randrange(1 << 30)
    random.seed(seed)
    print(f"{verb}: seed {seed}, {seconds:.1f} s uninterrupted")
    while happened["killed"] < kills or not happened["runs"]:
        out, code = files / f"killed-{happened['runs']}" / "run", -signal.SIGKILL  # a reference cache of its own, too
        words = command(verb, files, out)
        while code != 0:
            ends = happened["killed"] >= kills
            in_save = happened["killed"] % 2 == 0
            wait = kill_in_a_save(out, seconds) if in_save else kill_after(random.uniform(0, 1.1 * seconds))
            code, _ = go(words, log, meanwhile=None if ends else wait)
            assert code in (0, -signal.SIGKILL), log.read_text()[-3000:]
            happened["killed"] += code != 0
            if code != 0 and in_save and any(out.glob(".checkpoint-*.tmp")):
                happened["in a save"] += 1
            if code != 0 and random.random() < 0.3:
                happened["truncated"] += truncate_newest(out)
        happened["runs"] += 1
        different = differences(outcome(out), expected)
        assert not different, f"{verb}, seed {seed}, {happened}: {different} differ"
        events = [row["event"] for row in read_lines(out / "events.jsonl")]
        happened["resumed"] += sum(event.startswith("goes on from checkpoint-") for event in events)
    print(f"{verb}: {happened}")
    return happened


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_few_kills(verb: str, files: Path, go: Go) -> None:
    assert suffer(verb, files, go, kills=2)["killed"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_many_kills(verb: str, files: Path, go: Go) -> None:
    happened = suffer(verb, files, go, KILLS)
    assert happened["killed"] >= KILLS and happened["in a save"] > 0 and happened["resumed"] > 0


@pytest.mark.slow
def test_the_program_itself(files: Path) -> None:
    """The same with `python -m trueline` in a new process, killed in the middle of writing its second checkpoint."""
    words = command("sft", files, files / "killed")
    process = subprocess.Popen([sys.executable, "-m", "trueline", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (files / "killed" / ".checkpoint-6.tmp").exists():
        time.sleep(0.0005)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (files / "killed" / "checkpoint-6").exists()
    for out in ("killed", "straight"):
        words = command("sft", files, files / out)
        assert subprocess.run([sys.executable, "-m", "trueline", *words], capture_output=True).returncode == 0
    assert not differences(outcome(files / "killed"), outcome(files / "straight"))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sft", "dpo"])
def test_a_truncated_newest_checkpoint_gives_way_to_the_one_before(verb: str, files: Path, go: Go) -> None:
    log, out = files / "log.txt", files / "run"
    assert go(command(verb, files, files / "straight"), log)[0] == 0
    go(command(verb, files, out), log, meanwhile=lambda pid: kill_when(pid, out / "checkpoint-9"))
    (step, newest), (before, _), *_ = checkpoints(out)
    os.truncate(newest / "model.safetensors", 1000)
    assert go(command(verb, files, out), log)[0] == 0
    said = log.read_text()
    assert f"checkpoint-{step} is incomplete or damaged: passed over" in said
    assert f"goes on from checkpoint-{before} of 24 steps" in said
    assert not differences(outcome(out), outcome(files / "straight"))


def kill_when(pid: int, path: Path) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not come"
        time.sleep(0.0005)
    end(pid)


def check_full_disk(verb: str, files: Path, out: Path, go: Go, limit: int, make_room: Callable[[], None], reason: int) -> None:
    """A run that cannot write its next checkpoint says so in one sentence, keeps what it has, and goes on when there is room."""
    log = files / "full.txt"
    whole = {step: outcome_of(path) for step, path in checkpoints(out)}
    code, _ = go(command(verb, files, out), log, limit)
    said = log.read_text().splitlines()
    why = os.strerror(reason).lower()
    assert code == 2 and "Traceback" not in log.read_text(), log.read_text()
    assert said[-1] == (
        f"error: {out} cannot be written: {why}; earlier checkpoints are whole: make room, and the same command goes on"
    )
    assert checkpoints(out) and all(is_complete(path) for _, path in checkpoints(out))
    assert all(outcome_of(path) == whole[step] for step, path in checkpoints(out) if step in whole)
    assert not list(out.glob(".checkpoint-*")) and not (out / "finished.json").exists()
    for row in (out / "events.jsonl", out / "metrics.jsonl"):
        read_lines(row)
    make_room()
    assert go(command(verb, files, out), log)[0] == 0, log.read_text()
    assert not differences(outcome(out), outcome(files / "straight"))


def outcome_of(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_may_not_grow(verb: str, files: Path, go: Go) -> None:
    """The system refuses to write the optimizer's file beyond a limit: what a quota does."""
    log, out = files / "log.txt", files / "run"
    assert go(command(verb, files, files / "straight"), log)[0] == 0
    go(command(verb, files, out), log, meanwhile=lambda pid: kill_when(pid, out / "checkpoint-6"))
    limit = (out / "checkpoint-6" / "optimizer.safetensors").stat().st_size - 5000
    check_full_disk(verb, files, out, go, limit, lambda: None, errno.EFBIG)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sft", "dpo"])
def test_a_full_disk(verb: str, files: Path, tmp_path: Path, go: Go) -> None:
    """A file system with room for one checkpoint and a half."""
    log, disk = files / "log.txt", tmp_path / "disk"
    assert go(command(verb, files, files / "straight"), log)[0] == 0
    size = sum(path.stat().st_size for path in (files / "straight" / "checkpoint-24").iterdir())
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(1.5 * size) + 65536}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        room = ["mount", "-o", "remount,size=64m", str(disk)]
        check_full_disk(verb, files, disk / "run", go, 0, lambda: subprocess.run(room, check=True) and None, errno.ENOSPC)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
