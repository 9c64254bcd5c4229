"""The training verbs: one class of options per objective, made from its fields and TrainConfig's.

    flags + YAML -> options -> train(objective, model, rows, ...)         or, with --dry_run, what plan(...) says

The options are kept in OUT/command.yaml, which `trueline run OUT` and `--config` read.
Left out: what rows, tokens and steps are; those are rows', tokens' and train's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import tyro
import yaml
from rich.console import Console

from trueline.cli import out_of_memory
from trueline.cli.judge import LLMOptions
from trueline.cli.places import BASE, COLUMNS, DATA, JUDGE, MODEL, MORE_DATA, column_names, model_folder
from trueline.cli.plan import memory_advice
from trueline.cli.rollouts import rollouts_of
from trueline.cli.runs import COMMAND
from trueline.cli.show import show_plan
from trueline.objectives.base import Objective
from trueline.objectives.rounds import OnPolicy
from trueline.protocols import UnsureJudge
from trueline.records import Record, RolloutConfig, Sampling
from trueline.rows import Rows, mix, read_prompts, read_rows
from trueline.rows.inspection import prompt_of
from trueline.run import Sink
from trueline.sinks import tensorboard_sink, wandb_sink
from trueline.store import write_atomic
from trueline.tokens import encode_prompt, load_tokenizer
from trueline.train import TrainConfig, plan, train
from trueline.train.config import settle
from trueline.train.forecast import highest
from trueline.train.ranks import of_environment

if TYPE_CHECKING:
    from torch import nn

SHOWN_PROMPTS = 3
"""Prompts that --sample_steps draws responses to."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What every training verb takes; `options_of` adds the objective and the training config."""

    model: Annotated[str, MODEL] = BASE
    """Model to start from: a folder, a hub id, or "base", the model that ships with Trueline."""
    data: Annotated[tuple[str, ...], DATA]
    """Rows to train on: files, folders or hub ids. The format is found and said; trueline data inspect shows more."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the model and its run. The same command on the same folder goes on where it was stopped."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE.yaml", help_behavior_hint="(optional)")] = None
    """A YAML file that sets any of these options; flags win over it."""
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    """Other column names: prompt=question chosen=better."""
    data_weights: Annotated[
        tuple[float, ...], tyro.conf.arg(metavar="WEIGHT ...", help_behavior_hint="(optional)")
    ] = ()
    """Draw from each --data source with this weight; without weights every row is used once."""
    max_train_samples: int = 0
    """Read at most so many records; 0 reads all."""
    eval_data: Annotated[tuple[str, ...], MORE_DATA] = ()
    """Rows to evaluate on, instead of a share held out (--eval_share)."""
    report_to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], tyro.conf.arg(metavar="SINK ...")] = (
        "tensorboard",
    )
    """Where metrics go besides metrics.jsonl: tensorboard, wandb, both, or neither (nothing after the flag)."""
    dry_run: bool = False
    """Show what would happen and train nothing: effective batch, steps, what is cut, samples with their loss mask. Of a hub id
    only config and tokenizer are fetched; weights that a run would fetch are named."""


@dataclass(frozen=True, kw_only=True)
class OnlineOptions(MethodOptions):
    """What training verbs take whose rows are drawn by the policy. --data names prompts: rows with prompt, or dialogues and
    comparisons, of which what comes before the first answer is taken."""

    judge: Annotated[str, JUDGE] = ""
    """Who says how good a response is: a rule of yours (a Python function of prompt and response, both text, that returns a number,
    more is better; a third argument is the row's answer), a check of what is right, a language model by its address, or a reward
    model that reads text."""
    reward_model: Annotated[str, tyro.conf.arg(metavar="DIR_OR_HUB_ID", help_behavior_hint="(this or --judge)")] = ""
    """A reward model. It reads the very ids that were drawn; one with another tokenizer than the model reads them as text, which is said.
    Several are added up with weights: runs/helpful=0.7,runs/harmless=0.3; with spread=-1 as one more, less what they disagree by."""
    llm: Annotated[LLMOptions, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(default_factory=LLMOptions)
    """A language model as judge."""


def ungrouped(objective: type[Any]) -> type[Any]:
    """The objective with the fields of its groups as its own flags: --objective.kl_coef, whatever group holds kl_coef."""
    hints = get_type_hints(objective)
    groups = [item for item in dataclasses.fields(objective) if dataclasses.is_dataclass(hints[item.name])]
    if not groups:
        return objective
    again = [
        (item.name, Annotated[hints[item.name], tyro.conf.arg(name="")], field(default_factory=item.default_factory))
        for item in groups
    ]  # fmt: skip
    made = dataclasses.make_dataclass(objective.__name__, again, bases=(objective,), frozen=True, kw_only=True)
    made.__doc__ = objective.__doc__
    return made


def options_of(objective: type[Any]) -> type[Any]:
    """The class of options of one training verb."""
    objective = ungrouped(objective)
    train_config = Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
    draws = isinstance(objective(), OnPolicy)
    config, drawing = settle(objective(), None, None, {})
    fields: list[tuple[str, Any, Any]] = [
        ("objective", objective, field(default_factory=objective)),
        ("train", train_config, field(default_factory=lambda: config)),
    ]
    if draws:
        drawing_config = Annotated[RolloutConfig, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
        fields.append(("drawing", drawing_config, field(default_factory=lambda: drawing)))
    made = dataclasses.make_dataclass(
        "Options",
        fields,
        bases=(OnlineOptions if draws else MethodOptions,),
        namespace={"run": run_method},
        frozen=True,
        kw_only=True,
    )
    made.__doc__ = f"{objective.__doc__}\n\n{objective.citation}"
    return made


def run_method(options: Any) -> None:
    """Train, or show what would be trained."""
    online = options if isinstance(options, OnlineOptions) else None
    drawing = options.drawing if online is not None else None
    first = of_environment().first  # of several processes one speaks and writes
    console = Console(highlight=False, stderr=True, soft_wrap=True, quiet=not first)
    objective: Objective = options.objective
    config: TrainConfig = options.train
    folder = model_folder(options.model)
    rows = records_of(options, objective)
    held = None
    if options.eval_data:
        held = reader_of(options, objective)(options.eval_data, columns=column_names(options.columns))
    if options.dry_run:
        found = plan(objective, folder, rows, eval_rows=held, config=config, drawing=drawing)
        show_plan(found, Console(highlight=False, soft_wrap=True))
        return
    rollouts = rollouts_of(online, folder, rows) if online is not None else None
    new_folder = not options.out.exists()
    wrote = first and keep_command(objective.verb, options, anew=False)
    shows = config.evals.sample_steps and objective.head == "tokens" and online is None
    draw = drawer(rows, folder, console) if shows else None
    start, full = highest(config.device), False
    try:
        train(
            objective, folder, rows,
            out=options.out, eval_rows=held, config=config, draw=draw, sinks=sinks_of(options), rollouts=rollouts, drawing=drawing,
        )  # fmt: skip
    except BaseException as error:
        if wrote and not (options.out / "run.json").exists():  # refused before it began: the folder is as it was
            (options.out / COMMAND).unlink()
            if new_folder and not any(options.out.iterdir()):
                options.out.rmdir()
        full = out_of_memory(error)
        if not full:
            raise
    finally:
        if rollouts is not None and isinstance(rollouts.judge, UnsureJudge):  # also where the judge ended the run
            for line in rollouts.judge.lines():
                console.print(line, markup=False)
    if full:  # behind the handler, which holds what the failed step had
        raise ValueError(memory_advice(options, start))
    if first:
        keep_command(objective.verb, options, anew=True)
    verb = 'generate "..."' if objective.head == "tokens" else "eval --data HELD_OUT"
    console.print(f"model in {options.out}; next: trueline {verb} --model {options.out}", markup=False)


def records_of(options: Any, objective: Objective) -> Rows | list[Record]:
    """The rows that the options name; those of a weighted mixture are drawn here."""
    columns, limit = column_names(options.columns), options.max_train_samples
    if limit < 0:
        raise ValueError(f"--max_train_samples is {limit}: write how many, or 0 for all")
    read = reader_of(options, objective)
    if not options.data_weights:
        return read(options.data, columns=columns, limit=limit or None)
    if len(options.data_weights) != len(options.data):
        numbers = f"{len(options.data_weights)} numbers for {len(options.data)} sources"
        raise ValueError(f"--data_weights has {numbers}: give one for each")
    parts = [read(source, columns=columns) for source in options.data]
    mixture = mix(list(zip(parts, options.data_weights, strict=True)), options.train.seed)
    drawn = list(islice(mixture, limit or None))
    console = Console(highlight=False, stderr=True, soft_wrap=True, quiet=not of_environment().first)
    shares = ", ".join(f"{number:,} of {source}" for number, source in zip(mixture.drawn, options.data, strict=True))
    console.print(f"mixture of {len(drawn):,} rows: {shares}", markup=False)
    for reason, number in mixture.rejected.most_common():
        console.print(f"{number:,} rows of its sources cannot be used: {reason}", markup=False)
    return drawn


def reader_of(options: Any, objective: Objective) -> Callable[..., Rows]:
    """What reads a file of this verb: its prompts, or rows to train on."""
    return read_prompts if isinstance(options, OnlineOptions) else partial(read_rows, record=objective.record)


def sinks_of(options: Any) -> list[Sink]:
    """Where metrics go besides the run's own file."""
    sinks: list[Sink] = []
    if not of_environment().first:  # of several processes one reports
        return sinks
    if "tensorboard" in options.report_to:
        sinks.append(tensorboard_sink(options.out))
    if "wandb" in options.report_to:
        sinks.append(wandb_sink("trueline", name=options.out.name, config=plain_options(options)))
    return sinks


def plain_options(options: Any) -> dict[str, Any]:
    """All options by their flags, as YAML can hold them; `objective` stays nested."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if item.name == "objective":
            flat["objective"] = plain_options(value)
        elif dataclasses.is_dataclass(value):
            flat |= plain_options(value)
        elif item.name not in ("config", "dry_run"):
            value = list(value) if isinstance(value, tuple) else value
            flat[item.name] = str(value) if isinstance(value, Path) else value
    return flat


def keep_command(verb: str, options: Any, *, anew: bool) -> bool:
    """Write command.yaml, and say whether. Before training only where there is none: a refused command must not replace the
    one that ran."""
    path = options.out / COMMAND
    foreign = (options.out / "config.json").exists() and not (options.out / "run.json").exists()
    wanted = anew or not (path.exists() or foreign)
    if wanted:
        text = yaml.safe_dump({"verb": verb, **plain_options(options)}, sort_keys=False, allow_unicode=True)
        write_atomic(path, text)
    return wanted


def drawer(
    rows: Rows | Sequence[Record], folder: str, console: Console
) -> Callable[[nn.Module], Sequence[Mapping[str, Any]]]:
    """Draws greedy responses to the first prompts from the live model, and says how far sampler and trainer are apart."""
    from trueline.models.decoder import Decoder
    from trueline.serve.engine import Engine

    tokenizer = load_tokenizer(folder)
    prompts = [encode_prompt(prompt_of(record), tokenizer).tolist() for record in islice(rows, SHOWN_PROMPTS)]
    prompts = [prompt for prompt in prompts if prompt]

    def draw(model: nn.Module) -> Sequence[Mapping[str, Any]]:
        assert isinstance(model, Decoder)
        engine = Engine(model, tokenizer)
        drawn = engine.sample(prompts, Sampling(max_new_tokens=64, temperature=0))
        if drawn:
            console.print(str(engine.agreement))
        return [
            {"prompt": tokenizer.decode(prompt), "response": engine.text(samples[0]), "finish_reason": samples[0].finish_reason}
            for prompt, samples in zip(prompts, drawn, strict=True)
        ]

    return draw
