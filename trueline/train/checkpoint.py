"""checkpoint-N folders: everything a run needs to go on bit for bit, in safetensors and JSON.

    checkpoint-500/
      config.json  model.safetensors  generation_config.json  tokenizer.json ...    the Hugging Face layout: loads as a model
      optimizer.safetensors     moments and step counters by parameter name
      rng.safetensors           torch's generators
      trainer_state.json        step, feed position, schedule, best metric, sums since the last log, other generators
      complete.json             size and sha256 of every other file; written last

A folder is written under another name, synced and renamed. One without a true complete.json is not a checkpoint: it is
passed over for the one before. What a full disk leaves unfinished is removed at once. Never pickle.

Left out: sharded state of several ranks.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from trueline.models.files import save_tensors
from trueline.store import file_fingerprint, sync_directory, write_atomic
from trueline.train.optim import Optimizer, load_optimizer_tensors, optimizer_tensors
from trueline.train.state import TrainState

MARKER = "complete.json"


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    state: TrainState,
    feed: dict[str, Any],
    write_model: Callable[[nn.Module, Path], None],
) -> Path:
    """Write folder/checkpoint-N; after a crash at any moment it is there whole, or not at all."""
    target = folder / f"checkpoint-{state.step}"
    temporary = folder / f".checkpoint-{state.step}.tmp"
    for stale in [*folder.glob(".checkpoint-*.tmp"), *folder.glob(target.name)]:  # what a killed process left
        shutil.rmtree(stale)
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, model, optimizer, state, feed, write_model)
        os.replace(temporary, target)
    except (OSError, SafetensorError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(folder)
    return target


def _fill(
    temporary: Path,
    model: nn.Module,
    optimizer: Optimizer,
    state: TrainState,
    feed: dict[str, Any],
    write_model: Callable[[nn.Module, Path], None],
) -> None:
    write_model(model, temporary)
    save_tensors(optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
    save_tensors(_torch_generators(), temporary / "rng.safetensors")
    about = {"state": state.to_json(), "feed": feed, "python": random.getstate(), "numpy": _numpy_generator()}
    (temporary / "trainer_state.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    files = {}
    for path in sorted(temporary.iterdir()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = {"size": path.stat().st_size, "sha256": file_fingerprint(path)}
    write_atomic(temporary / MARKER, json.dumps(files, indent=1))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer
) -> tuple[TrainState, dict[str, Any]]:
    """Restore optimizer and generators; returns the state and the feed's position. Weights are the caller's to load."""
    try:
        about = json.loads((path / "trainer_state.json").read_bytes())
        load_optimizer_tensors(model, optimizer, load_file(path / "optimizer.safetensors"))
        version, internal, gauss = about["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = about["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        _restore_torch(load_file(path / "rng.safetensors"))
        return TrainState.from_json(about["state"]), about["feed"]
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:80]  # whole by its hashes: another version wrote it, or it was edited
        raise ValueError(
            f"{path} is not a checkpoint that this version can go on from ({type(error).__name__}: {reason}): remove it to go "
            "on from the one before, or choose another --out"
        ) from error


def is_complete(path: Path) -> bool:
    """True when every file of the folder is there as it was written: sizes first, then hashes."""
    marker = path / MARKER
    if not marker.is_file():
        return False
    try:
        files = [(path / name, one["size"], one["sha256"]) for name, one in json.loads(marker.read_bytes()).items()]
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):  # no JSON, or no table of files
        return False
    sizes = all(file.is_file() and file.stat().st_size == size for file, size, _ in files)
    return bool(files) and sizes and all(file_fingerprint(file) == sha256 for file, _, sha256 in files)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of all that are named like one, newest first."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted(((int(match.group(1)), path) for match, path in named if match), reverse=True)


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint; says which ones it passed over."""
    for _, path in checkpoints(folder):
        if is_complete(path):
            return path
        say(f"{path} is incomplete or damaged: passed over")
    return None


def prune_checkpoints(folder: Path, limit: int, best_step: int, newest: int) -> None:
    """Delete the oldest beyond `limit` (0 keeps all); the best one is kept on top.

    What lies beyond `newest`, the one just saved, was passed over as damaged when the run went on, and goes first:
    counted among the kept, it would push out whole ones.
    """
    there = checkpoints(folder)
    whole = [(step, path) for step, path in there if step <= newest]
    too_many = [(step, path) for step, path in whole[limit:] if step != best_step] if limit > 0 else []
    for _, path in [*(one for one in there if one not in whole), *too_many]:
        shutil.rmtree(path)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space left on the device, none left in the quota, a file above the limit."""


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """One sentence for a disk that holds no more, whoever was writing. safetensors gives the number in its text only."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else next((n for n in FULL if f"(os error {n})" in str(error)), 0)
        if number not in FULL:
            raise
        raise ValueError(
            f"{folder} cannot be written: {os.strerror(number).lower()}; earlier checkpoints are whole: make room, "
            "and the same command goes on"
        ) from error


def _torch_generators() -> dict[str, torch.Tensor]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return {"cpu": torch.get_rng_state()} | {f"cuda:{index}": torch.cuda.get_rng_state(index) for index in devices}


def _restore_torch(states: dict[str, torch.Tensor]) -> None:
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and int(name.removeprefix("cuda:")) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda:")))


def _numpy_generator() -> list[Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return [name, np.asarray(keys).tolist(), *rest]
