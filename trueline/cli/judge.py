"""`trueline judge`: responses to comparisons, by a reward model or a rule of one's own."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console

from trueline.align.chat import Address, ChatClient
from trueline.align.combination import WeightedJudge, members, parts_of
from trueline.align.group import Group, judged, prompt_key
from trueline.align.judges import RuleJudge, ScorerJudge
from trueline.align.llm_judge import LLMJudge, text_of
from trueline.align.sandbox import unit_tests
from trueline.align.select import best_vs_worst, comparisons
from trueline.align.verifiers import Answers, Check, Verifier, answers_of, exact_answer, json_schema, regex
from trueline.align.votes import StoredVotes
from trueline.cli.places import FILE, JUDGES, model_folder
from trueline.cli.text import messages_of
from trueline.protocols import Judge as Judging
from trueline.protocols import ManyJudge, UnsureJudge
from trueline.records import Comparison, Conversation, Messages, Ranking, Rating, Row
from trueline.rows import read_rows, write_rows
from trueline.rows.messages import answer_of
from trueline.rows.readers import Unreadable, parse_json, read_objects
from trueline.run import Bar
from trueline.store import file_fingerprint, fingerprint, local_folder
from trueline.tokens import EncodeStats, encode_rating, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class LLMOptions:
    """A language model as judge."""

    judge_model: str = ""
    """Name of the model behind --judge URL."""
    judge_form: Literal["pairs", "rating"] = "pairs"
    """Compare every two responses in both orders, or rate each by itself."""
    judge_criteria: str = ""
    """What the model shall look at, in your words."""
    judge_key: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, if the address needs one."""
    judge_cache: Annotated[Path | None, FILE] = None
    """Where answers are kept, so that none is paid for twice; left out: beside --out."""
    max_requests: int = 10_000
    """Ask at most so often; 0 is without bound."""
    max_judge_tokens: int = 0
    """Spend at most about so many tokens; 0 is without bound."""
    judge_workers: int = 8
    """Requests under way at once."""
    judge_timeout: float = 120.0
    """Seconds for an answer."""
    judge_retries: int = 6
    """Repetitions of a request that failed for a passing reason."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Give every response a score and write who is preferred, as rows that trueline reward and trueline dpo train on.
    The responses are lines of prompt and responses, as trueline sample writes them."""

    data: Annotated[Path, tyro.conf.arg(metavar="FILE.jsonl")]
    """Responses: JSON lines with prompt and responses."""
    judge: Annotated[str, tyro.conf.arg(metavar=JUDGES)]
    """Who judges: a reward model; a language model behind a URL (with --judge_model); a rule of yours, a Python function of prompt and
    response (and the row's answer, if it takes three) that returns a number, more is better; a check of what is right: exact_answer,
    regex:PATTERN, json_schema:FILE, unit_tests (the row's, in a sandbox); stored votes, votes:FILE."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.jsonl")]
    """Where the comparisons go: .jsonl, .jsonl.gz, .jsonl.zst or .parquet."""
    select: Literal["ranking", "best_vs_worst"] = "ranking"
    """Keep the whole order of the responses, or the best and the worst only."""
    format: Literal["trl", "trueline"] = "trl"
    """Columns: trl (a line per pair: prompt, chosen, rejected) or trueline (a line per prompt: responses with ranks)."""
    margin: float = 0.0
    """Responses whose scores differ by no more than this are tied; ties make no pair."""
    max_length: int = 1024
    """Longest prompt and response in tokens that the reward model reads; what is longer is cut."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""
    llm: Annotated[LLMOptions, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(default_factory=LLMOptions)
    """A language model as judge."""

    def run(self) -> None:
        """Judge and write."""
        console = Console(highlight=False, soft_wrap=True)
        read = list(groups_of(self.data))
        groups = [group for group, _ in read]
        several = [group for group in groups if len(set(group.responses)) > 1]
        answers = answers_of(Conversation(messages=group.prompt, answer=answer) for group, answer in read)
        beside = self.out.with_name(self.out.name + ".verdicts.sqlite")
        llm = replace(self.llm, judge_cache=self.llm.judge_cache or beside)
        judge = judge_named(self.judge, self.max_length, self.device, answers=answers, llm=llm)
        scored = judged_by_verdicts(several, judge, console) if isinstance(judge, UnsureJudge) else judged(several, judge)
        refuse_equal(scored, groups)
        found = (
            comparisons(scored, lambda group, rng: best_vs_worst(group, rng, margin=self.margin), source=str(self.data))
            if self.select == "best_vs_worst"
            else [ranking(group, self.margin, self.judge, str(self.data)) for group in scored]
        )
        written = write_rows(found, self.out, self.format)
        empty = sum(not text_of(response).strip() for group in groups for response in group.responses)
        if empty:
            console.print(f"[yellow]{empty:,} of {sum(map(len, groups)):,} responses are empty[/yellow]")
        if len(several) < len(groups):
            console.print(
                f"[yellow]{len(groups) - len(several):,} prompts left out[/yellow]: fewer than two different responses"
            )
        for reason, number in written.left_out.most_common():
            console.print(f"[yellow]{number:,} left out[/yellow]: {reason}")
        scores = np.array([score for group in scored for score in group.scores])
        if len(scores):
            console.print(
                f"scores of {len(scores):,} responses: mean {scores.mean():.3g}, from {scores.min():.3g} to {scores.max():.3g}"
            )
        console.print(f"{written.rows:,} rows in {self.out}", markup=False)


def judged_by_verdicts(groups: list[Group], judge: UnsureJudge, console: Console) -> list[Group]:
    """Groups with scores, many at once; those with a response that got no verdict are left out and counted."""
    scored: list[Group] = []
    size = AT_ONCE if isinstance(judge, ManyJudge) else 1
    parts = [groups[first : first + size] for first in range(0, len(groups), size)]
    workers = judge.workers if isinstance(judge, LLMJudge) else 1
    with ThreadPoolExecutor(max_workers=workers) as pool, Bar(len(groups), "judge", console=Console(stderr=True)) as bar:
        try:
            for part in pool.map(lambda part: judged(part, judge), parts):
                scored += part
                bar.update(len(scored))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            for line in judge.lines():
                console.print(line, markup=False)
    unjudged = judge.take_unjudged()
    left = [group for group in scored if group.key not in unjudged]
    if len(left) < len(scored):
        console.print(f"[yellow]{len(scored) - len(left):,} prompts left out[/yellow]: there is no verdict on one of their responses")
    return left


def refuse_equal(scored: list[Group], groups: list[Group]) -> None:
    """Responses that nobody prefers one of are nothing to train on: said before a file is written."""
    if not any(text_of(response).strip() for group in groups for response in group.responses):
        raise ValueError("every response is empty: there is nothing to judge; draw again, with more --max_new_tokens or from another model")
    scores = {score for group in scored for score in group.scores}
    if len(scores) == 1:
        number = sum(map(len, scored))
        raise ValueError(
            f"all {number:,} responses have the same score, {scores.pop():g}: none is preferred, so there is nothing to learn; look at "
            "the responses and at what the judge looks for"
        )


def groups_of(path: Path) -> Iterator[tuple[Group, Any]]:
    """The prompts of a file with their responses, and what each says is right."""
    for place, row in read_objects(path):
        if isinstance(row, Unreadable):
            raise ValueError(f"{place}: {row}")
        if "prompt" not in row or not isinstance(row.get("responses"), list):
            raise ValueError(f"{place} has no prompt with a list of responses: trueline sample writes such lines")
        prompt = messages_of(row["prompt"])
        role = "assistant" if prompt[-1].role != "text" else "text"
        responses = [[{"role": role, "content": r}] if isinstance(r, str) else r for r in row["responses"]]
        texts = tuple(messages_of(r, train=True) for r in responses)
        yield Group(key=prompt_key(prompt), prompt=prompt, responses=texts), answer_of(row)


def judge_named(
    name: str, max_length: int = 1024, device: str = "cpu", *, answers: Answers | None = None, llm: LLMOptions | None = None
) -> Judging:
    """The judge that people name on the command line.

    exact_answer | regex[:PATTERN] | json_schema[:FILE] | unit_tests    what is right is known: `trueline.align.verifiers`
    FILE.py:FUNCTION                                                    a rule of (prompt, response) or (prompt, response, answer)
    URL, or URL#MODEL                                                   a language model: `trueline.align.llm_judge`
    votes:FILE_OR_HUB_ID                                                what was voted before: `trueline.align.votes`
    DIR_OR_HUB_ID                                                       a reward model
    A=0.7,B=0.3                                                         several of these, added up with weights

    `answers` are what the prompts' rows say is right (`answers_of`).
    """
    kind, _, rest = name.partition(":")
    if kind in ("http", "https"):
        return llm_judge(name, llm or LLMOptions(), answers)
    if kind == "votes" and rest:
        votes = read_rows(rest, Comparison)
        return StoredVotes.of((row for row in votes if isinstance(row, Comparison)), name)
    if kind in VERIFIERS:
        check = VERIFIERS[kind](rest)
        needs_answers = not (rest and kind in OF_A_RULE)
        rule = file_fingerprint(rest) if kind == "json_schema" and rest else ""
        return Verifier(check, (answers or {}) if needs_answers else None, name, rule)
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return rule_judge(function_of(Path(path), function), answers or {}, name)
    if parts := parts_of(name):
        return WeightedJudge(parts, [judge_named(part, max_length, device, answers=answers, llm=llm) for part, _ in members(parts)])
    from trueline.models.files import load_scalar_model, read_config
    from trueline.models.scorer import RewardScorer

    folder = model_folder(name)
    config, classifier = read_config(local_folder(folder, "config"))
    if not classifier:
        raise ValueError(
            f"{name} is a language model, not a reward model: train one with trueline reward, or name a FILE.py:FUNCTION"
        )
    tokenizer = load_tokenizer(folder)
    config.refuse_tokenizer(tokenizer.vocab_size)
    longest, stats = min(max_length, config.max_length), EncodeStats()

    def encode(prompt: Messages, response: Messages) -> Row | None:
        """One response, or equal ones, are no comparison, but each can be scored."""
        return encode_rating(Rating(prompt=prompt, response=response, score=0.0), tokenizer, longest, stats)

    def remarks() -> list[str]:
        cut = f"{name} reads {longest:,} tokens: {stats.cut_rows:,} responses lost their end before they were scored"
        return [*([cut] if stats.cut_rows else []), *(f"{reason}: {number:,}" for reason, number in stats.dropped.most_common(5))]

    scorer = RewardScorer(load_scalar_model(folder, device=device))
    return ScorerJudge(scorer, encode, name, fingerprint([scorer.fingerprint, tokenizer.fingerprint, longest]), remarks)


def rule_judge(rule: Callable[..., float], answers: Answers, name: str) -> RuleJudge:
    """A function of the texts of prompt and response, and of the prompt's answer (or None) where it takes three."""
    file = inspect.getsourcefile(rule)
    contents = [file_fingerprint(file)] if file is not None and Path(file).is_file() else []
    takes = len(inspect.signature(rule).parameters)

    def score(prompt: Messages, response: Messages) -> float:
        given: tuple[Any, ...] = (text_of(prompt), text_of(response))
        if takes > 2:
            given = (*given, next(iter(answers.get(prompt_key(prompt), ())), None))
        return rule(*given)

    return RuleJudge(score, name, fingerprint([*contents, answers if takes > 2 else {}]))


def llm_judge(name: str, options: LLMOptions, answers: Answers | None) -> LLMJudge:
    """A model behind an address; its name stands behind # or in the options."""
    url, _, model = name.partition("#")
    address = Address(
        url=url, model=model or options.judge_model, key_variable=options.judge_key, timeout=options.judge_timeout,
        retries=options.judge_retries,
    )  # fmt: skip
    cache = options.judge_cache or Path.home() / ".cache" / "trueline" / "verdicts.sqlite"
    bounds = {"max_requests": options.max_requests, "max_tokens": options.max_judge_tokens, "at_once": options.judge_workers}
    client = ChatClient(address, cache, **bounds)
    return LLMJudge(client, options.judge_form, options.judge_criteria, answers, options.judge_workers)


def schema_check(path: str) -> Check:
    """The check of a schema in a file."""
    if not path:
        return json_schema()
    try:
        return json_schema(parse_json(Path(path).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


VERIFIERS: dict[str, Callable[[str], Check]] = {
    "exact_answer": lambda rest: exact_answer,
    "regex": regex,
    "json_schema": schema_check,
    "unit_tests": lambda rest: unit_tests(),
}
"""Name -> its check, made from what stands behind the colon."""
AT_ONCE = 64
"""Prompts that a reward model scores at a time."""
OF_A_RULE = ("regex", "json_schema")
"""They need no answers when they are given a rule."""


def function_of(path: Path, name: str) -> Callable[..., float]:
    """A function of a Python file. The file is run: it is the user's own, named on the command line."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = {key: value for key, value in vars(module).items() if inspect.isfunction(value)}
    if name not in functions:
        raise ValueError(f"{path} has no function {name!r}; it has {', '.join(sorted(functions)) or 'none'}")
    return functions[name]


def ranking(group: Group, margin: float, judge: str, source: str) -> Comparison:
    """All responses, best first; a response within `margin` of the one before it shares its place."""
    order = sorted(range(len(group)), key=lambda k: -group.scores[k])
    ranks, place = [], 0
    for number, k in enumerate(order, 1):
        tied = number > 1 and group.scores[order[number - 2]] - group.scores[k] <= margin
        place = place if tied else number
        ranks.append(place)
    return Comparison(
        prompt=group.prompt,
        responses=tuple(group.responses[k] for k in order),
        judgement=Ranking(tuple(ranks)),
        source=source,
        annotator=judge,
    )
