"""The work of a study: trials, policies of every seed, and their answers. Everything is a cell, so everything is done once.

    tuned = tune(job, arm, share)            a trial per learning rate, judged on the tuning prompts
    runs  = run_arm(job, arm, share, tuned)  a policy per setting and seed, measured at several of its steps on the report prompts

Left out: what the figures mean (outcome).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.align.group import prompt_key, scored
from trueline.models.files import load_model
from trueline.objectives.rounds import OnPolicy
from trueline.protocols import Judge
from trueline.records import Messages
from trueline.store import fingerprint
from trueline.study.arms import Arm, Setting
from trueline.study.budget import Share
from trueline.study.cells import Cell
from trueline.study.contest import Contest, rated
from trueline.study.drawn import Drawn
from trueline.study.measure import Rate, Way, answers, draws_of
from trueline.study.rewards import Rewards, scorer_of
from trueline.study.rows import Parts
from trueline.study.settings import Settings
from trueline.study.training import Bench, Drive, Material, forget_checkpoints, saved, trained

Step = Callable[[str, int], None]
"""Hears that so many updates of this run are done."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A study, resolved."""

    bench: Bench
    arms: tuple[Arm, ...]
    parts: Parts
    rewards: Rewards | None
    """What methods are driven by; None where none needs one, or the judge drives them."""
    judge: Judge | None
    judging: Cell | None
    """The reward model that judges where no judge is given."""
    truth_key: str
    """Names who judges."""
    material: Mapping[str, Material]
    """What each arm trains on."""
    drawn: Drawn | None = None
    """Where the comparisons are the start's own responses: what they cost."""
    contest: Contest | None = None
    """The judge, where it compares."""

    @property
    def settings(self) -> Settings:
        return self.bench.settings

    def truth(self) -> Rate | None:
        """What gives the scores that count; None: the judge compares."""
        if self.contest is not None:
            return None
        if self.judge is not None:
            judge = self.judge
            return lambda groups: rated(groups, judge)
        assert self.judging is not None
        judging = scorer_of(self.bench, self.judging)
        return lambda groups: scored(groups, judging)

    def learned(self, seed: int) -> Rate | None:
        """What gives the scores that methods are driven by, where that is not the judge."""
        if self.rewards is None:
            return None
        reward = self.rewards.scorer(self.bench, seed)
        return lambda groups: scored(groups, reward)

    def drive(self, seed: int) -> Drive:
        """What draws are rewarded by in training."""
        if self.rewards is None:
            return Drive(key=self.truth_key, judge=self.judge)
        rewards = self.rewards
        return Drive(key=rewards.cells[seed].key, reward=lambda: rewards.scorer(self.bench, seed))

    def uses_pairs(self, arm: Arm) -> bool:
        """Whether the arm learns from the comparisons: itself, or by its reward model."""
        return self.rewards is not None if needs_reward(arm) else True

    def prompts(self, part: str) -> list[Messages]:
        """Those that are answered."""
        most = self.settings.report_prompts if part == "report" else self.settings.tuning_prompts
        return self.parts.prompts(part, most)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """An arm's trials."""

    learning_rate: float
    trials: list[dict[str, float]]
    """learning_rate and score: mean reward on the tuning prompts; of a reward model the log-likelihood of their preferences."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One policy at one of its steps, or one way to answer."""

    label: str
    step: int
    """Updates; where seeds kept different ones, the mark that they were kept for."""
    last: bool
    found: list[Mapping[str, Any]]
    """What `measure.answers` said, per seed."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All of an arm."""

    measured: list[Measured]
    cells: list[Cell]
    """Of the main setting, per seed; none where nothing is trained."""
    drawn: list[Mapping[str, float]]
    """Per seed what answering with the main setting draws."""


def needs_reward(arm: Arm) -> bool:
    """Whether something must say which draws are better."""
    return arm.main.select is not None or isinstance(arm.main.objective, OnPolicy)


def policies(arm: Arm, settings: Settings) -> int:
    """Trainings of an arm: a trial per learning rate with the first seed, of which one is also the report's, then the others."""
    return len(arm.learning_rates) - 1 + len(arm.settings) * len(settings.seeds) if arm.trains else 0


def tune(job: Job, arm: Arm, share: Share, tell: Step) -> Tuned:
    """The best of the arm's learning rates by the tuning prompts, with the first seed. Checkpoints of the others go."""
    if arm.main.objective is None:
        assert job.rewards is not None or job.judge is not None
        trials = job.rewards.trials if job.rewards is not None else []
        return Tuned(learning_rate=job.rewards.learning_rate if job.rewards is not None else 0.0, trials=trials)
    seed, trials, cells = job.settings.seeds[0], [], {}
    for rate in arm.learning_rates:
        cells[rate] = cell = train_setting(job, arm, arm.main, rate, share, seed, tell)
        found = measure_policy(job, cell, max(steps_of(cell)), seed, "tuning")
        scores = np.array(found[""]["true"], dtype=np.float64)
        if not np.isfinite(scores).any():
            raise ValueError(f"the judge said nothing of {arm.name}'s answers to the tuning prompts: look at what it answers")
        trials.append({"learning_rate": rate, "score": float(np.nanmean(scores))})
    best = max(trials, key=lambda trial: trial["score"])["learning_rate"]
    for rate, cell in cells.items():
        if rate != best:
            forget_checkpoints(cell)
    return Tuned(learning_rate=best, trials=trials, seconds=sum(cell.seconds for cell in cells.values()))


def train_setting(job: Job, arm: Arm, setting: Setting, rate: float, share: Share, seed: int, tell: Step) -> Cell:
    """The policy of one setting, rate and seed."""
    assert setting.objective is not None
    name = f"{setting.label}, learning rate {rate:g}, seed {seed}"
    tell(name, 0)
    bench = job.bench.drawing(setting.generations)
    cell = trained(
        bench, setting.objective, job.material[arm.name], learning_rate=rate, updates=share.updates, seed=seed,
        drive=job.drive(seed) if needs_reward(arm) else None, tell=lambda step, _: tell(name, step),
    )  # fmt: skip
    tell(name, share.updates)
    return cell


def steps_of(cell: Cell) -> list[int]:
    """The steps whose policies were kept, the last one included."""
    steps: list[int] = cell.read("trained.json")["saved"]
    return steps


def run_arm(job: Job, arm: Arm, share: Share, tuned: Tuned, tell: Step) -> Runs:
    """Every setting with every seed, measured on the report prompts."""
    if arm.main.objective is None:
        return select_arm(job, arm)
    measured: list[Measured] = []
    mains: list[Cell] = []
    drawn: list[Mapping[str, float]] = []
    for setting in arm.settings:
        by_seed: list[dict[int, Mapping[str, Any]]] = []
        for seed in job.settings.seeds:
            cell = train_setting(job, arm, setting, tuned.learning_rate, share, seed, tell)
            if setting is arm.main:
                mains.append(cell)
            by_seed.append({})
            for step in steps_of(cell):
                try:
                    by_seed[-1][step] = measure_policy(job, cell, step, seed, "report")
                except FileNotFoundError:  # measured and cleared away for other prompts or another judge: trained once more
                    forget(cell)
                    cell = train_setting(job, arm, setting, tuned.learning_rate, share, seed, tell)
                    by_seed[-1][step] = measure_policy(job, cell, step, seed, "report")
            forget_checkpoints(cell)
        found = at_marks(job.settings.saved_steps(share.updates), by_seed)
        last = max(found)
        measured += [
            Measured(label=setting.label, step=step, last=step == last, found=[one[""] for one in seeds])
            for step, seeds in found.items()
        ]
        if setting is arm.main:
            drawn = [one["drawn"] for one in found[last]]
    return Runs(measured=measured, cells=mains, drawn=drawn)


def at_marks(marks: Sequence[int], by_seed: Sequence[Mapping[int, Mapping[str, Any]]]) -> dict[int, list[Mapping[str, Any]]]:
    """Per mark the same policy of every seed: the first one kept at it or after it, else the last. Where rounds end early, seeds keep
    other steps than one another; such an entry is named by its mark. Marks that all seeds passed in one round are one entry."""
    entries: dict[tuple[int, ...], int] = {}
    for mark in marks:
        steps = tuple(min((step for step in found if step >= mark), default=max(found)) for found in by_seed)
        entries[steps] = steps[0] if len(set(steps)) == 1 else mark
    assert len(set(entries.values())) == len(entries)
    return {name: [found[step] for step, found in zip(steps, by_seed, strict=True)] for steps, name in entries.items()}


def forget(cell: Cell) -> None:
    """As if it had never been trained. Killed in between it is either whole, but for the mark of a finished run, or trained anew."""
    run, aside = cell.folder / "run", cell.folder / "forgotten"
    shutil.rmtree(aside, ignore_errors=True)
    (run / "finished.json").unlink(missing_ok=True)  # first: a finished run without checkpoints would not be trained again
    (cell.folder / "trained.json").unlink(missing_ok=True)
    if run.exists():
        run.rename(aside)  # at once: half a folder, with a model and without its run.json, would be refused
        shutil.rmtree(aside, ignore_errors=True)


def select_arm(job: Job, arm: Arm) -> Runs:
    """The start, answering with the best of n."""
    ways = (Way(), *(Way(label=setting.label, select=setting.select, n=setting.n) for setting in arm.settings))
    by_seed = [measure_start(job, seed, ways) for seed in job.settings.seeds]
    measured = [
        Measured(label=setting.label, step=0, last=True, found=[one[setting.label] for one in by_seed])
        for setting in arm.settings
    ]
    return Runs(measured=measured, cells=[], drawn=[one["drawn"] for one in by_seed])


def measure_start(job: Job, seed: int, ways: Sequence[Way] = (Way(),)) -> dict[str, Any]:
    """Answers of the start to the report prompts."""
    return measure(job, None, 0, seed, "report", ways)


def measure_policy(job: Job, cell: Cell, step: int, seed: int, part: str) -> dict[str, Any]:
    """Answers of a trained policy after one of its steps. FileNotFoundError: it is neither measured nor there any longer."""
    return measure(job, cell, step, seed, part, (Way(),))


def measure(job: Job, cell: Cell | None, step: int, seed: int, part: str, ways: Sequence[Way]) -> dict[str, Any]:
    """Answers to the prompts of a part, and what the judge says of them."""
    found = answered(job, cell, step, seed, part, ways)
    if job.contest is None:
        return found
    theirs = opponents(job, seed, part)
    for way in ways:
        one = found[way.label]
        if cell is None and way.select is None:
            one["true"] = [[0.5] * len(row) for row in one["texts"]]  # the start is as good as itself
        else:
            verdicts = job.contest.verdicts(job.prompts(part), one["texts"], theirs)
            one |= {"true": verdicts["shares"], "tally": verdicts["tally"]}
    return found


def opponents(job: Job, seed: int, part: str) -> list[list[str]]:
    """What the start answers with other luck than this seed's (study.figures): of the next seed, or with one seed the next answer."""
    seeds = job.settings.seeds
    other = seeds[(seeds.index(seed) + 1) % len(seeds)]
    texts: list[list[str]] = answered(job, None, 0, other, part, (Way(),))[""]["texts"]
    return texts if other != seed else [[*row[1:], row[0]] for row in texts]


def answered(job: Job, cell: Cell | None, step: int, seed: int, part: str, ways: Sequence[Way]) -> dict[str, Any]:
    """Answers to the prompts of a part, kept in a cell."""
    settings, prompts = job.settings, job.prompts(part)
    rewards = job.rewards if part == "report" or len(ways) > 1 else None
    about = {
        "policy": cell.key if cell is not None else job.bench.start_key, "step": step, "seed": seed,
        "truth": job.truth_key if job.contest is None else "",
        "prompts": fingerprint([prompt_key(prompt) for prompt in prompts]),
        "learned": rewards.cells[seed].key if rewards is not None else "",
        "ways": [[way.label, way.n] for way in ways], "draws": draws_of(settings, ways),
        "sampling": [settings.samples, settings.temperature, settings.max_new_tokens],
    }  # fmt: skip

    def compute() -> dict[str, Any]:
        start = load_model(job.bench.start, device=settings.device)
        policy = start
        if cell is not None:
            policy = load_model(saved(cell, step), device=settings.device)
        return answers(
            policy, job.bench.tokenizer, prompts, settings, seed, truth=job.truth(), ways=ways,
            learned=job.learned(seed) if rewards is not None else None, start=start if cell is not None else None,
        )  # fmt: skip

    found: dict[str, Any] = job.bench.cells.of("answers", about).once("answers.json", compute)
    return found

