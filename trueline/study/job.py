"""A study from first line to last.

    split -> reward models -> budget -> trials (tuning prompts) -> policies of every seed -> measured (report prompts) -> report

    out/  report.html  results.json  answers.jsonl  frontier.csv  matrix.csv  differences.csv  arms.csv
          plan.json  seconds.json  spent.json  cells/  run.json  events.jsonl

The same command goes on where it was stopped; another command uses what it shares with what is there. Left out: methods (objectives),
what training is (train), the page (report).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from trueline.align.group import prompt_key
from trueline.align.llm_judge import LLMJudge
from trueline.align.votes import StoredVotes
from trueline.models.files import fingerprint as weights_fingerprint
from trueline.models.files import load_model
from trueline.protocols import Judge
from trueline.records import Comparison, Conversation
from trueline.run import Bar, Run
from trueline.store import fingerprint, local_folder, write_atomic
from trueline.study.arms import Arm
from trueline.study.budget import Share, share_of
from trueline.study.cells import Cells
from trueline.study.contest import Bill, Contest, bill, compares, form_of, spending, spent
from trueline.study.drawn import Drawn, drawn_pairs, responses_of, unjudged
from trueline.study.outcome import compile_results, every_answer, seconds_of
from trueline.study.report import write_report
from trueline.study.rewards import Rewards, given_reward, train_rewards, updates_of
from trueline.study.rows import Parts, checked, records_of, split
from trueline.study.settings import OWN_SEED, Budget, Settings
from trueline.study.tables import write_tables
from trueline.study.training import Bench, Material
from trueline.study.work import Job, measure_start, needs_reward, policies, run_arm, tune
from trueline.tokens import load_tokenizer
from trueline.tokens.encode import encode_prompt

GIVEN_REWARD = (
    "--reward is a reward model that was given: the report's calibration and learned-against-true figures hold only for prompts that it "
    "has not learned from"
)


def run_study(
    model: str | Path,
    data: Sequence[Comparison] | Sequence[Conversation] | Parts,
    arms: Sequence[Arm],
    *,
    out: str | Path,
    budget: Budget | None = None,
    settings: Settings | None = None,
    judge: Judge | None = None,
    judge_key: str = "",
    reward: str | Path = "learned",
    console: Console | None = None,
) -> Path:
    """Compare the arms and return the report's path.

    model      the start of every policy, and the reference: a folder or a hub id
    data       comparisons; or prompts, and the judge says which of the start's own responses it prefers; or the comparisons by use
               (rows.Parts), where the caller says which prompts are reported on
    judge      gives the scores that count; without one a reward model that learned from other prompts does. `judge_key` names it in
               fingerprints: another key is another judge
    reward     what chooses among draws, and what methods that draw their own responses are driven by: "learned" from the training
               comparisons, the "judge", or the folder of a reward model
    """
    budget, settings, out = (budget or Budget()).resolved(), settings or Settings(), Path(out)
    prompts = [] if isinstance(data, Parts) else [record for record in data if isinstance(record, Conversation)]
    pairs = data if isinstance(data, Parts) else unjudged(prompts) or [record for record in data if isinstance(record, Comparison)]
    parts = checked_parts(pairs, arms, judge, reward, drawn=bool(prompts))
    asked = {"methods": [arm.name for arm in arms], "budget": asdict(budget), "settings": asdict(settings), "judge": judge_key}
    owed = bill_of(judge, arms, settings, parts, drawn=bool(prompts), driven=budget if reward == "judge" else None).checked()
    given = reward not in ("learned", "judge") and not isinstance(data, Parts) and any(map(needs_reward, arms))
    to = console or Console(stderr=True)
    with Run(out, asked, identity={"study": 1}, console=to) as run, spending(judge, out / "spent.json"):
        for line in describe(parts, arms, budget, settings, judge_key):
            run.event(line)
        if owed.requests_each:
            run.event(owed.sentence())
        if given:
            run.warn("given reward", GIVEN_REWARD)
        bench, drawn = bench_of(model, settings, out), None
        if prompts and judge is not None:
            run.event(f"no comparisons are given: the start answers {len(parts.prompts('train')):,} prompts, and the judge compares")
            pairs, drawn = drawn_pairs(bench, prompts, judge, judge_key)
            parts = split(pairs, needs_judge=False)
            known = tuple(pair for pair in parts.train if prompt_key(pair.prompt) not in drawn.unknown)
            if len(known) < len(parts.train):
                run.event(f"{len(parts.train) - len(known):,} prompts to train on are left out: the judge said nothing of a response")
                parts = checked(replace(parts, train=known), needs_judge=False)
        parts = without_long(bench, parts, run)
        job = prepared(bench, arms, parts, judge, judge_key, reward, run, drawn, owed)
        shares = {arm.name: settle(job, arm, budget) for arm in arms}
        write_atomic(out / "plan.json", json.dumps({name: asdict(share) for name, share in shares.items()}, indent=1))
        for arm in arms:
            if arm.trains:
                run.event(f"{arm.name}: {shares[arm.name].updates:,} updates per policy ({shares[arm.name].how})")
        with Progress(run, sum(shares[arm.name].updates * policies(arm, settings) for arm in arms)) as progress:
            tuned = {arm.name: tune(job, arm, shares[arm.name], progress.tell) for arm in arms}
            runs = {arm.name: run_arm(job, arm, shares[arm.name], tuned[arm.name], progress.tell) for arm in arms}
        start = [measure_start(job, seed) for seed in settings.seeds]
        results = compile_results(job, budget, shares, tuned, runs, start)
        if given:
            results["verdict"]["beware"].append(GIVEN_REWARD)
        seconds = seconds_of(job, tuned, runs)
        if isinstance(judge, LLMJudge):
            seconds["(judge)"] = spent(out / "spent.json", judge)
        write_atomic(out / "results.json", json.dumps(results, indent=1, allow_nan=False))
        write_atomic(out / "seconds.json", json.dumps(seconds, indent=1))
        answers = every_answer(job, runs, start)
        write_atomic(out / "answers.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers))
        write_tables(results, out)
        write_report(results, seconds, out / "report.html")
        verdict = results["verdict"]
        for sentence in (verdict["headline"], *verdict["because"], *verdict["beware"]):
            run.event(sentence)
        run.finish({"choose": verdict["choose"]})
    return out / "report.html"


def checked_parts(
    pairs: Sequence[Comparison] | Parts, arms: Sequence[Arm], judge: Judge | None, reward: str | Path, *, drawn: bool = False
) -> Parts:
    """The comparisons by use. What cannot be is refused here, before any work."""
    if drawn and judge is None:
        raise ValueError("--data has prompts and no comparisons: name a --judge that says which response is better, or bring comparisons")
    if reward == "judge" and judge is None:
        raise ValueError("--reward judge needs a --judge: name one, or let a learned reward model drive (--reward learned)")
    if reward == "judge" and compares(judge):
        raise ValueError("--reward judge needs a judge that scores a response by itself, and this one compares: leave out --reward, and a "
                         "reward model learns from the comparisons, or name one (--reward DIR)")  # fmt: skip
    if reward not in ("learned", "judge"):
        local_folder(reward, where="--reward ")
    parts = checked(pairs, needs_judge=judge is None) if isinstance(pairs, Parts) else split(pairs, needs_judge=judge is None)
    for arm in arms:
        if arm.main.objective is not None:
            records_of(arm.main.objective, parts)
    return parts


def bill_of(
    judge: Judge | None, arms: Sequence[Arm], settings: Settings, parts: Parts, *, drawn: bool, driven: Budget | None
) -> Bill:
    """What asking the judge takes, where that is counted."""
    form = form_of(judge)
    if not form:
        return Bill()
    return bill(
        arms, settings, form=form, answered=len(parts.prompts("report", settings.report_prompts)),
        tuned=len(parts.prompts("tuning", settings.tuning_prompts)), bound=judge.client.max_requests if isinstance(judge, LLMJudge) else 0,
        prompts=sum(len(parts.prompts(side)) for side in ("train", "tuning", "report")) if drawn else 0, responses=responses_of(settings),
        driven=driven,
    )  # fmt: skip


def bench_of(model: str | Path, settings: Settings, out: Path) -> Bench:
    """What every training shares."""
    start = local_folder(model)
    tokenizer = load_tokenizer(start)
    loaded = load_model(start)
    loaded.config.refuse_tokenizer(tokenizer.vocab_size)
    key = fingerprint([weights_fingerprint(loaded), (start / "tokenizer.json").read_text(encoding="utf-8")
                       if (start / "tokenizer.json").exists() else "", settings.device])  # fmt: skip
    context = loaded.config.max_length
    return Bench(start=start, start_key=key, tokenizer=tokenizer, settings=settings, cells=Cells(out / "cells"), context=context)


def without_long(bench: Bench, parts: Parts, run: Run) -> Parts:
    """The parts without prompts that leave the model no room for an answer; they are counted and said."""

    def fits(pair: Comparison) -> bool:
        return len(encode_prompt(pair.prompt, bench.tokenizer)) + bench.settings.max_new_tokens <= bench.context

    kept = {side: tuple(filter(fits, parts.of(side))) for side in ("tuning", "report")}
    lost = sum(len(parts.of(side)) - len(pairs) for side, pairs in kept.items())
    if lost:
        run.event(f"{lost:,} comparisons to tune and report on are left out: prompt and answer would exceed {bench.context} tokens")
    if min(map(len, kept.values())) < 2:
        room = bench.settings.max_new_tokens
        raise ValueError(f"hardly a prompt leaves room for {room} new tokens within the model's {bench.context}: lower --max_new_tokens")
    return replace(parts, **kept)


def prepared(
    bench: Bench, arms: Sequence[Arm], parts: Parts, judge: Judge | None, judge_key: str, reward: str | Path, run: Run, drawn: Drawn | None,
    owed: Bill,
) -> Job:
    """The job with its reward models trained."""
    settings = bench.settings
    rewards = judging = None
    if reward == "learned" and any(map(needs_reward, arms)):
        run.event(f"reward model: {len(settings.learning_rates)} trials, then one per seed, on {len(parts.train):,} comparisons")
        rewards = trained_rewards(bench, parts.train, parts.tuning, settings.seeds, run)
    elif reward != "judge" and any(map(needs_reward, arms)):
        run.event(f"reward model: {reward}, as it is")
        rewards = given_reward(bench, local_folder(reward))
    if judge is None:
        run.event(f"no --judge: a reward model that judges learns from {len(parts.judge):,} comparisons that no method sees")
        own = [OWN_SEED]  # its own random head: models that start from one head err alike
        judging = trained_rewards(bench, parts.judge, parts.tuning, own, run).cells[OWN_SEED]
    contest = None
    if isinstance(judge, LLMJudge | StoredVotes) and compares(judge):
        contest = Contest(judge=judge, key=judge_key, cells=bench.cells, between=owed.asks_between)
    material = {arm.name: Material(bench, records_of(arm.main.objective, parts)) for arm in arms if arm.main.objective is not None}
    return Job(
        bench=bench, arms=tuple(arms), parts=parts, rewards=rewards, judge=judge, judging=judging,
        truth_key=judging.key if judging is not None else judge_key, drawn=drawn,
        material=material, contest=contest,
    )  # fmt: skip


def trained_rewards(
    bench: Bench, pairs: Sequence[Comparison], tuning: Sequence[Comparison], seeds: Sequence[int], run: Run
) -> Rewards:
    """Reward models, with a bar of their own."""
    models = len(bench.settings.learning_rates) - 1 + len(seeds)
    with Progress(run, models * updates_of(bench, pairs), "reward models") as progress:
        return train_rewards(bench, pairs, tuning, seeds, progress.tell)


def settle(job: Job, arm: Arm, budget: Budget) -> Share:
    """Updates of one arm; the reward model that it uses is charged to it."""
    if not arm.trains:
        return Share(updates=0, how="nothing is trained but the reward model")
    shared = {"tokens": 0.0, "seconds": 0.0}
    seed = job.settings.seeds[0]
    if job.rewards is not None and needs_reward(arm):
        cell = job.rewards.cells[seed]
        shared = {"tokens": float(cell.read("trained.json")["trained"]), "seconds": cell.seconds}
    if job.drawn is not None and job.uses_pairs(arm):
        shared["seconds"] += job.drawn.cell.seconds * len(job.parts.train) / max(1, len(job.parts.everything))
    drive = job.drive(seed) if needs_reward(arm) else None
    about = {
        "arm": arm.name, "method": arm.main.method, "generations": arm.main.generations, "rates": arm.learning_rates,
        "budget": asdict(budget), "model": job.bench.start_key, "settings": asdict(job.settings), "rows": job.material[arm.name].key,
        "driven by": drive.key if drive is not None else "", "drawn": job.drawn.cell.key if job.drawn is not None else "",
    }  # fmt: skip
    kept = job.bench.cells.of("share", about)
    bench = job.bench.drawing(arm.main.generations)
    found = kept.once("share.json", lambda: asdict(share_of(bench, arm, job.material[arm.name], budget, drive, shared)))
    return Share(**found)


def describe(parts: Parts, arms: Sequence[Arm], budget: Budget, settings: Settings, judge_key: str) -> list[str]:
    """What will be done, in sentences."""
    counts = {side: len(parts.prompts(side)) for side in ("train", "judge", "tuning", "report")}
    answered = min(counts["report"], settings.report_prompts or counts["report"])
    judged = f"; {counts['judge']:,} for the reward model that judges" if counts["judge"] else ""
    return [
        f"{len(parts.train):,} comparisons of {counts['train']:,} prompts to train on; {counts['tuning']:,} prompts to tune on, "
        f"{counts['report']:,} to report on ({answered:,} of them are answered){judged}",
        f"{len(arms)} methods, {budget} each, seeds {', '.join(map(str, settings.seeds))}, {len(settings.learning_rates)} trials each: "
        f"{sum(policies(arm, settings) for arm in arms)} policies to train, judged by "
        + (judge_key.split(" ")[0] or "a reward model of its own"),
    ]


class Progress:
    """A bar over the updates of many runs; what is finished already counts."""

    def __init__(self, run: Run, total: int, title: str = "policies") -> None:
        self.total, self.done = max(1, total), dict[str, int]()
        self.bar = Bar(self.total, title, console=Console(file=run.console.file, stderr=True))

    def __enter__(self) -> Progress:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)

    def tell(self, name: str, step: int) -> None:
        """So many updates of the run of this name are done."""
        if step > self.done.get(name, -1):
            self.done[name] = step
            self.bar.update(min(self.total, sum(self.done.values())), note=name)
