"""`trueline plan`: what a run would need, and what to change when it does not fit."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
import yaml
from rich.console import Console

from trueline.cli import options, verbs
from trueline.cli.places import column_names, model_folder
from trueline.cli.runs import COMMAND

if TYPE_CHECKING:
    from trueline.train.forecast import Forecast

GIGABYTE = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predict a run's peak memory and time, and say what to change when it does not fit. Reads the rows, tries two short
    steps on a model of that shape, and counts the tensors of the largest one; where the method draws its responses, it plays a
    round with the longest ones. Trains and writes nothing."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG")]
    """A YAML file with the verb and its options (verb: sft, model: ..., data: ...), or the folder of a run."""
    memory_gb: float = 0.0
    """Memory to fit into, in GB of 1,024 MB; 0 takes what this machine, or its GPU, has."""

    def run(self) -> None:
        """Print the parts of the peak, the time, whether it fits, and changes with which it does."""
        if self.memory_gb < 0:
            raise ValueError(f"--memory_gb is {self.memory_gb}: write how much there is, or 0 for all of this machine")
        found = predict(options_in(self.file), limit=round(self.memory_gb * GIGABYTE) or None)
        console = Console(highlight=False, soft_wrap=True)
        console.print(str(found), markup=False)
        if found.limit is None:
            console.print("this system does not say how much memory there is: give --memory_gb")
        elif found.fits:
            console.print(f"fits into {found.limit / GIGABYTE:.1f} GB")
        else:
            console.print(f"does not fit into {found.limit / GIGABYTE:.1f} GB" + ("; one of these is enough:" if found.ways else ""))
            for line in map(str, found.ways) if found.ways else [found.advice()]:
                console.print(f"  {line}", markup=False)


def options_in(file: Path) -> Any:
    """The options of a training verb, from a YAML file that names it or from a run's folder."""
    path = file / COMMAND if file.is_dir() else file
    if file.is_dir() and not path.is_file():
        raise ValueError(f"{file} is not a run of a training verb: it has no {COMMAND}")
    known = verbs.methods()
    name = verb_in(path)
    if name not in known:
        said = f"says verb: {name}" if name else "does not name a training verb"
        raise ValueError(f"{path} {said}: begin it with `verb: sft`, or another of {', '.join(known)}")
    words = ["--config", str(path)]
    if "out" not in yaml.safe_load(path.read_text(encoding="utf-8")):
        words += ["--out", "planned"]  # nothing is written there
    return options.parse(verbs.load(known[name]), words, prog=f"trueline {name}")


def verb_in(path: Path) -> str:
    """What the file says behind `verb:`, or nothing."""
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not YAML: it is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not YAML that can be read here ({type(error).__name__})") from None
    return str(said.get("verb") or "") if isinstance(said, dict) else ""


ROOM = 400 << 20
"""Bytes that counting may map: it imports a good part of torch."""


def memory_advice(chosen: Any, start: int) -> str:
    """One sentence about a run for which the memory did not suffice: what it takes, what is enough, what is kept.

    `start` is what the process held before the model (train/forecast.py, highest).
    """
    from trueline.train.checkpoint import checkpoints
    from trueline.train.forecast import MEGABYTE, highest

    reached = highest(chosen.train.device)
    try:
        mmap.mmap(-1, ROOM).close()  # an import that runs out of memory half-way may never end
        found = predict(chosen, limit=reached or None, start=start)
        if found.fits:  # then something else took the memory
            found = predict(chosen, limit=found.peak * 4 // 5, start=start)
        had = f", and {reached / MEGABYTE:,.0f} MB were had" if reached else ""
        said = f"this run takes {found.peak / MEGABYTE:,.0f} MB{had}: {found.advice()}"
    except (MemoryError, RuntimeError, ImportError, OSError, SystemError, ValueError):  # no room to count, or nothing to count by
        said = "lower max_tokens_per_batch or max_length, or switch on gradient_checkpointing"
    saved = [path for _, path in checkpoints(chosen.out)][:1]
    return f"out of memory: {said}" + "".join(f"; {path} is kept, and the same command goes on from it" for path in saved)


def predict(chosen: Any, *, limit: int | None = None, start: int | None = None) -> Forecast:
    """The forecast of a training verb's options (train/forecast.py says what `limit` and `start` are)."""
    from trueline.cli.method import OnlineOptions, reader_of, records_of
    from trueline.cli.rollouts import sizing
    from trueline.train.forecast import forecast

    held = None
    if chosen.eval_data:
        held = reader_of(chosen, chosen.objective)(chosen.eval_data, columns=column_names(chosen.columns))
    draws = isinstance(chosen, OnlineOptions)
    more = {"drawing": chosen.drawing, **sizing(chosen.reward_model or chosen.judge)} if draws else {}
    return forecast(
        chosen.objective, model_folder(chosen.model), records_of(chosen, chosen.objective),
        eval_rows=held, config=chosen.train, limit=limit, start=start, **more,
    )  # fmt: skip
