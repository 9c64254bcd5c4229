"""`train`: one call from data to a model folder; the same call again goes on where it was stopped.

    folder = train(SFT(), "runs/base", "pairs.jsonl", out="runs/sft", learning_rate=1e-4, eval_share=0.05)

    out/  config.json model.safetensors tokenizer.json README.md ...      the model (of an adapter: adapter_model.safetensors ...)
          run.json metrics.jsonl events.jsonl rejects.jsonl ...           the run (run.py; products.json: arithmetic.py)
          checkpoint-500/ ...                                             where it can go on

Left out: what a step does (loop), what is in a checkpoint (checkpoint), a look at it before anything is done (preview).
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueline.models.adapters import without_adapters
from trueline.models.attention import tree_tokens
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.files import fingerprint as weights_fingerprint
from trueline.objectives.base import Arranges, Objective
from trueline.objectives.rounds import OnPolicy
from trueline.protocols import Crew, Rollouts
from trueline.records import Messages, RolloutConfig, Row
from trueline.run import Run, Sink
from trueline.store import adapter_base, fingerprint
from trueline.tokens import Tokenizer, load_tokenizer
from trueline.tokens.encode import row_key
from trueline.train.adapt import adapt, copy_weights, load_policy, write_policy
from trueline.train.arithmetic import arithmetic
from trueline.train.card import write_card
from trueline.train.checkpoint import explain_full_disk
from trueline.train.checks import check_device, check_rounds, refuse_misfit
from trueline.train.config import TrainConfig, check_evaluation, flatten, identity, settle
from trueline.train.corpus import with_corpus
from trueline.train.critic import learner_of, with_critic
from trueline.train.data import Data, encode
from trueline.train.feed import Feed, StoredFeed, hold_out
from trueline.train.loop import Draw, Evaluation, run_loop
from trueline.train.optim import adamw, warmup_of
from trueline.train.prompts import encode_prompts
from trueline.train.ranks import ALONE, Ranks, joined, of_environment
from trueline.train.reference import live_reference, reference_sampler, with_reference
from trueline.train.resume import resume
from trueline.train.rollout_feed import RolloutFeed
from trueline.train.stopwatch import split
from trueline.train.watch import Watch, many

Model = Decoder | ScalarModel


@dataclasses.dataclass(frozen=True)
class Job:
    """A call to `train`, resolved, before any weights are touched."""

    objective: Objective
    config: TrainConfig
    tokenizer: Tokenizer | None
    rows: Sequence[Row]
    held: Sequence[Row]
    data: tuple[dict[str, Any], ...]
    """Per source: source, rows, fingerprint."""
    notes: tuple[str, ...]
    """What was read, cut and left out, in sentences."""
    ranks: Ranks = ALONE
    drawing: RolloutConfig | None = None
    """Where rows are drawn by the policy; `rows` and `held` are then prompts."""
    texts: Mapping[str, Messages] = dataclasses.field(default_factory=dict)
    """Row.key -> the prompt as text."""

    @property
    def rows_per_step(self) -> int:
        return self.config.rows_per_step * self.ranks.world

    @property
    def drawn_tokens(self) -> int:
        """What a sequence may have beyond its row."""
        return self.drawing.max_completion_length if self.drawing is not None else 0

    @property
    def rows_per_round(self) -> int:
        """What the feed hands out at a time."""
        return self.rows_per_step * (self.objective.rounds.batches if isinstance(self.objective, OnPolicy) else 1)

    @property
    def total_steps(self) -> int:
        if isinstance(self.objective, OnPolicy) and self.config.max_steps == 0:
            return max(1, -(-self.config.row_limit(len(self.rows)) // self.rows_per_round)) * self.objective.rounds.steps
        return self.config.total_steps(len(self.rows), self.ranks.world)


def train(
    objective: Objective,
    model: str | Path | Model,
    rows: Data,
    *,
    out: str | Path,
    tokenizer: Tokenizer | None = None,
    eval_rows: Data | None = None,
    rollouts: Rollouts | None = None,
    crew: Crew | None = None,
    config: TrainConfig | None = None,
    drawing: RolloutConfig | None = None,
    draw: Draw | None = None,
    sinks: Sequence[Sink] = (),
    **overrides: Any,
) -> Path:
    """Train and return the model's folder, `out`.

    model      a folder, a hub id, or a model in memory, which is trained in place
    rows       a path or hub id, records, or encoded rows; eval_rows likewise. Prompts where the method draws its own responses
    rollouts   what draws and judges those: align.rollouts.Rollouts(Engine, judge=...)
    config     default: the objective's defaults over TrainConfig's; `overrides` are its fields by flat name
    drawing    the same for RolloutConfig
    crew       helpers; a missing reference is made from the model as it is at the start
    draw       called every sample_steps with the live model: returns samples to print and keep

    Under torchrun all its processes train one model; the first of them writes.
    """
    out = Path(out)
    ranks = of_environment()
    rejects = out.with_name(f".{out.name}.rejects.jsonl")  # moved into the folder once that is known to be ours
    if ranks.first:
        rejects.unlink(missing_ok=True)  # of a run that was killed while it read: this one reads everything again
    try:
        kept = rejects if ranks.first else None
        job = resolve(objective, model, rows, eval_rows, tokenizer, config, overrides, kept, drawing)
        job = dataclasses.replace(job, ranks=ranks)
        check_rounds(objective, job.drawing, rollouts, job.config.evals.metric_for_best_model if job.held else "")
        with joined(ranks, ranks.place(job.config.device)), explain_full_disk(out):
            return _run(job, model, out, crew or Crew(), draw, sinks, rejects, rollouts)
    finally:
        if ranks.first:
            rejects.unlink(missing_ok=True)


def _run(
    job: Job, model: str | Path | Model, out: Path, crew: Crew, draw: Draw | None, sinks: Sequence[Sink], rejects: Path,
    rollouts: Rollouts | None,
) -> Path:  # fmt: skip
    objective, ranks = job.objective, job.ranks
    policy = load_policy(objective.verb, objective.head, model, job.tokenizer, job.config.seed)
    refuse_misfit(decoder_of(policy).config, (*job.rows, *job.held), job.tokenizer, job.drawn_tokens)
    method = {"method": objective.verb} | dataclasses.asdict(objective)  # type: ignore[call-overload]
    base = str(model) if isinstance(model, str | Path) else decoder_of(policy).source
    start = weights_fingerprint(policy)
    learner = learner_of(objective, policy, job.tokenizer)  # before the adapter: a critic's copy of the policy has none
    adapted = adapt(policy, job.config, base)
    data = [one["fingerprint"] for one in job.data]
    same: dict[str, Any] = {"objective": method, "model": start, "data": data, "config": identity(job.config, ranks.world)}
    if crew.reference is not None:
        same["reference"] = crew.reference.fingerprint
    if job.drawing is not None and rollouts is not None:
        same["config"] |= dataclasses.asdict(job.drawing)
        same |= rollouts.identity
    ranks.refuse_difference({name: fingerprint(value) for name, value in same.items()})
    about: dict[str, Any] = {"objective": method, "model": base, "data": job.data, "config": flatten(job.config)}
    about["config"] |= dataclasses.asdict(job.drawing) if job.drawing is not None else {}

    write_model = partial(write_policy, adapted=adapted, tokenizer=job.tokenizer)
    with (
        Run(out, about, identity=same, total=job.total_steps, sinks=sinks, write=ranks.first) as run,
        arithmetic(run, job.config, ranks),
    ):
        if ranks.first and rejects.exists():
            os.replace(rejects, run.folder / "rejects.jsonl")
        if run.finished:
            run.event(f"{run.folder} is finished: nothing to do (a higher max_steps goes on)")
            if policy is model:
                copy_weights(policy, run.folder)
            return run.folder
        more = rollouts.notes if rollouts is not None else ()
        for note in (*job.notes, *more, describe(job), *(adapted.notes(objective.needs) if adapted is not None else ())):
            run.event(note)
        if objective.head == "tokens" and job.tokenizer is not None and job.drawing is None:
            Watch(run.warn).rows(job.rows, job.tokenizer.stop_ids)
        seed_everything(job.config.seed)
        decoder_of(policy).activation_checkpointing = job.config.gradient_checkpointing
        learner.to(ranks.place(job.config.device))
        crew = with_critic(crew, learner, job.config, run.event)
        crew = with_corpus(crew, objective, job.tokenizer, job.config, run.event)
        if "reference" in objective.needs and job.drawing is not None:
            assert isinstance(policy, Decoder)
            crew = live_reference(crew, policy, adapted is not None, job.config, run.event)
        elif "reference" in objective.needs:
            with without_adapters(policy):  # the same weights serve as the reference: no second model
                name = start if adapted is None or adapted.fresh else weights_fingerprint(policy)
                crew = with_reference(crew, policy, name, [*job.rows, *job.held], job.config, ranks, run)
        optimizer = adamw(learner, job.config.optim)
        feed: Feed
        evaluation: Evaluation | None = None
        if isinstance(objective, OnPolicy) and job.drawing is not None and rollouts is not None:
            assert job.tokenizer is not None
            crew = dataclasses.replace(crew, sampler=crew.sampler or rollouts.sampler(policy, job.tokenizer))
            assert crew.sampler is not None
            feed = RolloutFeed(
                job.rows, job.texts, job.rows_per_round, job.config.seed, rollouts=rollouts, sampler=crew.sampler,
                config=job.drawing, rounds=objective.rounds, decode=job.tokenizer.decode, say=run.event,
                drawer=reference_sampler(crew, policy, rollouts, job.tokenizer) if objective.rounds.asks_reference else None, ranks=ranks,
            )  # fmt: skip
            evaluation = partial(feed.evaluate, job.held) if job.held else None
            draw = draw or (feed.samples if job.config.evals.sample_steps else None)
        else:
            limit = None if job.config.max_steps > 0 else job.config.row_limit(len(job.rows))
            feed = StoredFeed(job.rows, job.rows_per_step, job.config.seed, limit)
        state = resume(run, learner, optimizer, feed, job.config.optim, job.total_steps)
        ranks.refuse_difference({"checkpoint": state.step})
        crew = dataclasses.replace(crew, memory=state.memory)
        crew.refresh(policy, f"step-{state.step}")
        state = run_loop(objective, learner, optimizer, feed, crew, job.config, run, state, write_model=write_model,
                         eval_rows=() if evaluation else job.held, draw=draw, ranks=ranks, evaluation=evaluation)  # fmt: skip
        if spent := split(run.folder / "metrics.jsonl"):
            run.event(spent)
        if job.config.save.load_best_model_at_end and state.best_step not in (0, state.step):
            copy_weights(policy, run.folder / f"checkpoint-{state.best_step}")
            run.event(f"the model is that of step {state.best_step}, best by {job.config.evals.metric_for_best_model}")
        if ranks.first:
            write_model(policy, run.folder)
            write_card(run.folder, objective, base, job.data, adapted.fingerprint if adapted is not None else "")
            run.finish({"steps": state.step, "num_tokens": state.num_tokens, **state.last_eval})
        ranks.gather("written")
    return run.folder


def resolve(
    objective: Objective,
    model: str | Path | Model,
    rows: Data,
    eval_rows: Data | None,
    tokenizer: Tokenizer | None,
    config: TrainConfig | None,
    overrides: dict[str, Any],
    rejects: Path | None,
    drawing: RolloutConfig | None = None,
) -> Job:
    """Options and data of a call, all read and encoded."""
    config, drawing = settle(objective, config, drawing, overrides)
    folder = str(model) if isinstance(model, str | Path) else decoder_of(model).source
    has_none = Path(folder).is_dir() and not (Path(folder) / "tokenizer.json").is_file() and not adapter_base(folder)
    if tokenizer is None and folder and not has_none:
        tokenizer = load_tokenizer(folder)
    texts: dict[str, Messages] = {}

    def read(data: Data, keep: Path | None = None) -> tuple[Sequence[Row], str, list[str]]:
        """Rows, where they are from, and what there is to say of them."""
        if drawing is None:
            encoded = encode(data, objective, tokenizer, config.max_length, keep)
            return encoded.rows, encoded.source, encoded.lines(config.max_length)
        found = encode_prompts(data, tokenizer, config.max_length - drawing.max_completion_length, keep)
        texts.update(found.texts)
        return found.rows, found.source, found.lines()

    train_rows, source, notes = read(rows, rejects)
    held: list[Row] = []
    data = [{"source": source, "rows": len(train_rows), "fingerprint": rows_fingerprint(train_rows)}]
    if eval_rows is not None:
        more, source, lines = read(eval_rows)
        held = list(more)
        notes += [f"evaluation: {line}" for line in lines]
        data.append({"source": source, "rows": len(held), "fingerprint": rows_fingerprint(held)})
    elif config.evals.eval_share > 0:
        train_rows, held = hold_out(train_rows, config.evals.eval_share)
        notes.append(
            f"{len(held):,} rows are held out for evaluation (eval_share {config.evals.eval_share}, by prompt)"
        )
    if isinstance(objective, Arranges):
        train_rows, held = list(objective.arrange(train_rows)), list(objective.arrange(held)) if held else []
        notes.append(objective.arrangement)
    check_device(config.device)
    check_evaluation(config, bool(held))
    longest = max(tree_tokens(row) for row in (*train_rows, *held))
    if isinstance(objective, OnPolicy) and drawing is not None:
        longest += drawing.max_completion_length * (objective.rounds.responses or drawing.num_generations)
    if longest > config.max_tokens_per_batch:
        raise ValueError(
            f"the longest row takes {longest} token positions and max_tokens_per_batch is {config.max_tokens_per_batch}: "
            f"raise it or lower {'max_length' if drawing is None else 'max_completion_length'}"
        )
    return Job(objective, config, tokenizer, train_rows, held, tuple(data), tuple(notes), drawing=drawing, texts=texts)


def describe(job: Job) -> str:
    """The resolved run in one line."""
    config, steps = job.config, job.total_steps
    precision = "bfloat16 autocast" if config.bf16 else "float32"
    direction = "more" if config.evals.maximize else "less"
    best = f"; the best step is by {config.evals.metric_for_best_model}, {direction} is better" if job.held else ""
    ranks = f" x {job.ranks.world} processes" if job.ranks.world > 1 else ""
    drawn, kind = "", "row"
    if isinstance(job.objective, OnPolicy) and job.drawing is not None:
        kind, drawing = "prompt", job.drawing
        drawn = (
            f"; a round draws {many(drawing.num_generations, 'response')} to each of {many(job.rows_per_round, 'prompt')}, at most "
            f"{many(drawing.max_completion_length, 'token')} at temperature {drawing.temperature:g}, for "
            f"{many(job.objective.rounds.steps, 'step')}"
        )
    return (
        f"{job.objective.verb}: {many(steps, 'step')} of {many(job.rows_per_step, kind)} ({config.per_device_train_batch_size} x "
        f"{config.gradient_accumulation_steps}{ranks}, at most {config.max_tokens_per_batch:,} positions at a time), learning rate "
        f"{config.optim.learning_rate:g} {config.optim.lr_scheduler_type}, warm-up {many(warmup_of(config.optim, steps), 'step')}, "
        f"{precision} on {config.device}, seed {config.seed}{best}{drawn}"
    )


def decoder_of(model: Model) -> Decoder:
    return model.decoder if isinstance(model, ScalarModel) else model


def rows_fingerprint(rows: Sequence[Row]) -> str:
    """Names the rows and their order: ids, masks and numbers."""
    kept = ([row_key(row.ids, row.scored), dict(row.numbers), *([dict(row.tokens)] if row.tokens else [])] for row in rows)
    return fingerprint(list(kept))


def seed_everything(seed: int) -> None:
    """The generators that training may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
