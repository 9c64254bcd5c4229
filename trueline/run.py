"""One run on disk, and the only logger: what was asked for, what happened, and a progress line while it happens.

    out/run.json            resolved config, the identity that a resume must match, its fingerprint
    out/environment.json    versions, machine, commit
    out/metrics.jsonl       one object per logged step
    out/samples.jsonl       texts drawn on the way
    out/events.jsonl        one object per remark (resumed, stopped early, ...)
    out/finished.json       written last

    with Run(out, config, identity=identity, total=100, sinks=[sink]) as run:
        if run.finished: ...
        run.truncate(checkpoint_step)                     # lines after the checkpoint are rewritten
        with run.progress(100, "sft") as bar:
            bar.update(step, loss=2.3, tokens=4096); run.log(step, {"loss": 2.3})
        run.finish({"loss": 2.1})

The run's own file is run.json, since config.json in the same folder is the model's.
Left out: checkpoints (`trueline.train`), reports (`trueline.evals`), other places for metrics (`trueline.sinks`).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from trueline import __version__
from trueline.store import canonical_json, fingerprint, write_atomic

ABSENT = object()
"""Stands for a field that one side does not have."""
OPTIONS = {"reward": "reward_model"}
"""Parts of an identity whose option has another name."""
Sink = Callable[[int, Mapping[str, float]], None]


class Run:
    """A run folder, opened by one process at a time. Opening it again with the same identity resumes it."""

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        identity: Mapping[str, Any] | None = None,
        total: int | None = None,
        sinks: Sequence[Sink] = (),
        console: Console | None = None,
        write: bool = True,
    ):
        """`config` is everything that was resolved; `identity` (default: config) the part that a resume may not change.
        `total` is the number of steps asked for: a finished run that is asked for more is not finished any longer.
        Of several processes that work on one run, one opens it to write; the others lock, keep and print nothing."""
        self.folder = Path(folder)
        self.config = config
        self.identity = config if identity is None else identity
        self.fingerprint = fingerprint(self.identity)
        self.total = total
        self.write = write
        self.sinks = list(sinks) if write else []
        self.console = (console or Console(stderr=True)) if write else Console(quiet=True)
        known = self.folder / "run.json"
        models = "config.json", "adapter_config.json"
        if any((self.folder / name).exists() for name in models) and not known.exists():
            raise ValueError(f"{self.folder} holds a model that no run of ours wrote; choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = _lock(self.folder) if write else None
        try:
            self.resumed = known.exists()
            if self.resumed:
                _refuse_difference(self.folder, read_json(known, identity=dict)["identity"], self.identity)
            events = self.folder / "events.jsonl"
            kept = read_lines(events) if self.resumed and events.exists() else []
            self.warnings = {str(row["warning"]): str(row.get("event")) for row in kept if "warning" in row}
            """What was warned of so far, in this process or before."""
            if write:
                self._describe(known)
        except BaseException:
            self.close()
            raise

    def _describe(self, known: Path) -> None:
        about = {"config": self.config, "identity": self.identity, "fingerprint": self.fingerprint, "total": self.total}
        write_atomic(known, json.dumps(json.loads(canonical_json(about)), indent=2, ensure_ascii=False) + "\n")
        now, path = environment(), self.folder / "environment.json"
        if path.exists():
            before = flatten(read_json(path))
            changed = [f"{k} {before.get(k)} -> {v}" for k, v in flatten(now).items() if before.get(k) != v]
            if changed:
                self.event("resumed in another environment: " + "; ".join(changed))
        write_atomic(path, json.dumps(now, indent=2) + "\n")

    @property
    def finished(self) -> bool:
        """True when this run ended, and no more steps are asked for now than then."""
        path = self.folder / "finished.json"
        if not path.exists():
            return False
        then = read_json(path, total=int | None)["total"]
        return self.total is None or (then is not None and self.total <= then)

    def log(self, step: int, metrics: Mapping[str, Any], counts: Mapping[str, float] | None = None) -> None:
        """Append one line of numbers (anything float() takes) to metrics.jsonl and hand it to every sink. `counts` says over
        how many tokens, pairs or steps each mean was taken; it is kept in the file only."""
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}  # JSON has no NaN
        behind = {"counts": {name: int(n) if float(n).is_integer() else n for name, n in counts.items()}} if counts else {}
        self._append("metrics.jsonl", {"step": step, "time": round(time.time(), 3), **finite, **behind})
        for sink in self.sinks:
            sink(step, numbers)

    def sample(self, step: int, sample: Mapping[str, Any], *, show: bool = True) -> None:
        """Keep a drawn text, {"prompt": ..., "response": ...} or alike, and show it."""
        self._append("samples.jsonl", {"step": step, **sample})
        if show:
            lines = [f"[bold]{escape(name)}[/bold] {escape(str(value))}" for name, value in sample.items()]
            self.console.print(f"[dim]step {step}[/dim]\n" + "\n".join(lines), highlight=False)

    def event(self, text: str) -> None:
        """Say something and keep it."""
        self._append("events.jsonl", {"time": _now(), "event": text})
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def warn(self, name: str, text: str) -> None:
        """Say something that the user should look into: once in the life of the run, and again when it is finished."""
        if name not in self.warnings:
            self.warnings[name] = text
            self._append("events.jsonl", {"time": _now(), "warning": name, "event": text})
            self.console.print(f"warning: {escape(text)}", highlight=False, soft_wrap=True, style="yellow")

    def truncate(self, step: int) -> None:
        """Forget metrics and samples after this step: a resumed run writes them again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.folder / name
            if self.write and path.exists():
                kept = [row for row in read_lines(path) if not isinstance(row.get("step"), int) or row["step"] <= step]
                write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    @contextmanager
    def progress(self, total: int, description: str = "", *, start: int = 0) -> Iterator[Bar]:
        """A progress bar on the run's console."""
        with Bar(total, description, start=start, console=self.console) as bar:
            yield bar

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run as finished, and repeat its warnings: by now they may have scrolled away."""
        warned = {"warnings": list(self.warnings.values())} if self.warnings else {}
        about = {"total": self.total, "fingerprint": self.fingerprint, **(summary or {}), **warned}
        if self.write:
            write_atomic(self.folder / "finished.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        for text in self.warnings.values():
            self.console.print(f"warned on the way: {escape(text)}", highlight=False, soft_wrap=True, style="yellow")

    def close(self) -> None:
        """Let another process open the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if not self.write:
            return
        path = self.folder / name
        before = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError:  # the disk is full: no half line that the next one would be glued to
            if path.exists():
                os.truncate(path, before)
            raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refuse_difference(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """One sentence about the first field whose value is not what the run was started with."""
    old, new = flatten(json.loads(canonical_json(before))), flatten(json.loads(canonical_json(now)))
    for name in dict.fromkeys([*flatten(now), *new, *old]):  # in the caller's order: what matters most comes first
        was, is_now = (side.get(name, ABSENT) for side in (old, new))
        if was != is_now:
            said = name.removeprefix("config.")
            raise ValueError(
                f"{folder} was started with {said} = {_short(was)}, and this command has {said} = {_short(is_now)}: "
                f"{_advice(name, was)} to resume, or choose another --out"
            )


def _advice(name: str, was: Any) -> str:
    """How a field gets its old value, as people type it."""
    part, _, rest = name.partition(".")
    value = " ".join(map(str, was)) if isinstance(was, list) else str(was).lower() if isinstance(was, bool) else was
    if name == "objective.method":
        return f"begin with trueline {was}"
    if rest == "rows_per_step":
        return f"let per_device_train_batch_size x gradient_accumulation_steps x processes be {was} again"
    if rest and part in ("objective", "config"):
        option = ("--objective." if part == "objective" else "--") + name.rpartition(".")[2]
        return f"leave out {option}" if was is ABSENT or was is None else f"give {option} {value}"
    return f"give --{OPTIONS.get(part, part)} as it was{' (the same name holds something else now)' if rest == 'contents' else ''}"


def _short(value: Any) -> str:
    """A value as a sentence can hold it: fingerprints by their beginning."""
    if isinstance(value, list):
        return ", ".join(_short(one) for one in value)[:60]
    if value is ABSENT:
        return "absent"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    text = canonical_json(value)
    return text if len(text) <= 60 else text[:57] + "..."


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _lock(folder: Path) -> int:
    """Hold run.lock until the process ends. The kernel releases it however the process ends: it never goes stale."""
    handle = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ValueError(f"{folder} is in use by another process: wait for it, or choose another --out") from None
    return handle


def read_json(path: str | Path, **needs: Any) -> dict[str, Any]:
    """The object in a JSON file of a run; it must hold the keys `needs`, of these types."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or any(
        name not in found or not isinstance(found[name], kind) for name, kind in needs.items()
    ):
        raise ValueError(f"{path} is damaged: it is no longer what was written; remove it, or choose another --out")
    return found


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file of a run; a last line that a crash left unfinished is not one."""
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line) if line else None
        except (ValueError, RecursionError):
            row = line
        if row is not None and not isinstance(row, dict):
            raise ValueError(f"{path}:{number} is damaged: it is no JSON object; remove the line, or choose another --out")
        rows += [row] if row is not None else []
    return rows


def environment() -> dict[str, Any]:
    """What a result may depend on beside its config."""
    names = ("trueline", "torch", "numpy", "transformers", "tokenizers", "safetensors")
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = __version__ if name == "trueline" else None  # a source tree needs no installation
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "commit": commit(Path(__file__).parent),
    }


def commit(folder: Path) -> str | None:
    """The git commit of our source, "+" appended when it was edited; None outside a checkout or without git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "run.py")  # an installed copy may lie inside somebody else's checkout
        edited = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + ("+" if edited else "")
    except (OSError, subprocess.SubprocessError):
        return None


class Bar:
    """Steps done, loss, tokens per second and time left: a live bar on a terminal, else a line every `seconds`."""

    def __init__(
        self,
        total: int,
        description: str = "",
        *,
        start: int = 0,
        console: Console | None = None,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.description, self.start = total, description, start
        self.console = console or Console(stderr=True)
        self.seconds, self.clock = seconds, clock
        self._live: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        self._began = self._printed = self.clock()
        self._recent: deque[tuple[float, int]] = deque([(self._began, 0)], maxlen=64)  # (time, tokens so far)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
            )
            self._live = Progress(*columns, console=self.console)
            self._live.start()
            self._task = self._live.add_task(self.description, total=self.total, completed=self.start, status="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, step: int, *, loss: float | None = None, tokens: int = 0, note: str = "") -> None:
        """`step` steps are done; `tokens` were worked on since the last call."""
        now = self.clock()
        self._recent.append((now, self._recent[-1][1] + tokens))
        status = self._status(step, now, loss, note)
        if self._live is not None:
            self._live.update(self._task, completed=step, status=escape(status))
        elif now - self._printed >= self.seconds or step == self.total:
            self._printed = now
            self.console.print(
                f"{self.description} {step}/{self.total}  {status}".strip(), highlight=False, markup=False
            )

    def _status(self, step: int, now: float, loss: float | None, note: str) -> str:
        parts = [] if loss is None else [f"loss {loss:.4g}"]
        (first_time, first_tokens), (_, last_tokens) = self._recent[0], self._recent[-1]
        if last_tokens > first_tokens and now > first_time:
            parts.append(f"{(last_tokens - first_tokens) / (now - first_time):,.0f} tok/s")
        done = step - self.start
        if done > 0 and step < self.total:
            left = round((now - self._began) / done * (self.total - step))
            hours, minutes = divmod(left // 60, 60)
            parts.append(f"left {hours}:{minutes:02}:{left % 60:02}" if hours else f"left {minutes}:{left % 60:02}")
        return "  ".join([*parts, note] if note else parts)
