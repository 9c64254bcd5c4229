"""Who draws, and who says how good a response is, of verbs whose rows are drawn: options to `align.rollouts.Rollouts`.

    --judge NAME             judge_named(NAME), which reads text
    --reward_model DIR       the drawn ids as they stand, where its tokenizer and chat template are the policy's
                             else as text: decoded, and encoded again as the reward model reads it
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from trueline.align.combination import WeightedScorer, members, parts_of
from trueline.align.judges import RuleJudge
from trueline.align.llm_judge import LLMJudge
from trueline.align.rollouts import Rollouts
from trueline.align.verifiers import answers_of
from trueline.align.votes import StoredVotes
from trueline.cli.judge import judge_named
from trueline.cli.places import model_folder
from trueline.protocols import Scorer
from trueline.records import Conversation, Messages, Record
from trueline.store import local_folder
from trueline.tokens import load_tokenizer
from trueline.train import TrainConfig
from trueline.train.ranks import of_environment

ANY_LENGTH = 1 << 30
"""Of a text in tokens: the reward model's own context bounds it."""


def rollouts_of(options: Any, folder: str, prompts: Iterable[Record]) -> Rollouts:
    """The engine, and who judges; the prompts may say what is right."""
    from trueline.serve.engine import Engine

    config: TrainConfig = options.train
    device = of_environment().place(config.device)
    if bool(options.judge) == bool(options.reward_model):
        raise ValueError("who says how good a response is? give --judge FILE.py:FUNCTION or --reward_model DIR, one of the two")
    if options.judge:
        answers = answers_of(prompt for prompt in prompts if isinstance(prompt, Conversation))
        llm = replace(options.llm, judge_cache=options.llm.judge_cache or options.out.with_name(f"{options.out.name}.verdicts.sqlite"))
        judge = judge_named(options.judge, config.max_length, device, answers=answers, llm=llm)
        compares = isinstance(judge, StoredVotes) or (isinstance(judge, LLMJudge) and judge.form == "pairs")
        if compares and options.drawing.num_generations < 2:
            raise ValueError(
                f"{options.judge} compares responses with one another, and num_generations is 1: every reward would be the same; give "
                "--num_generations 2 or more" + (", or --judge_form rating" if isinstance(judge, LLMJudge) else "")
            )
        if compares and (options.eval_data or config.evals.eval_share):
            raise ValueError(
                f"{options.judge} compares responses with one another, and evaluation draws one to a prompt: leave out eval_data and "
                "eval_share" + (", or give --judge_form rating" if isinstance(judge, LLMJudge) else "")
            )
        return Rollouts(Engine, judge=judge, workers=llm.judge_workers if isinstance(judge, LLMJudge) else 1)
    if others := foreign(options.reward_model, folder):
        note = (
            f"{' and '.join(others)} and {options.model} have different tokenizers or chat templates: what is drawn is decoded, and "
            "encoded again as the reward model reads text (there a response that was cut has an end, too: --missing_eos_penalty)"
        )
        return Rollouts(Engine, judge=judge_named(options.reward_model, ANY_LENGTH, device), notes=(note,))
    return Rollouts(Engine, reward=scorer_of(options.reward_model, folder, config))


def foreign(name: str, policy: str) -> list[str]:
    """Of the parts of a reward model those that do not write text as the ids that this policy draws. Refused: no reward model."""
    from trueline.models.files import read_config

    parts = [part for part, _ in members(parts_of(name))] or [name]
    for part in parts:
        if not read_config(local_folder(model_folder(part), "config"))[1]:
            raise ValueError(f"{part} is a language model, not a reward model: train one with trueline reward, or give --judge")
    own = load_tokenizer(policy).spelling
    return [part for part in parts if load_tokenizer(model_folder(part)).spelling != own]


def scorer_of(name: str, policy: str, config: TrainConfig) -> Scorer:
    """A reward model that reads the ids that this policy draws, or a weighted sum of several."""
    from trueline.models.files import load_scalar_model, read_config
    from trueline.models.scorer import RewardScorer

    if parts := parts_of(name):
        return WeightedScorer(parts, [scorer_of(part, policy, config) for part, _ in members(parts)])
    folder = model_folder(name)
    shape, _ = read_config(local_folder(folder, "config"))
    longest = min(config.max_length, read_config(local_folder(policy, "config"))[0].max_length)
    if shape.max_length < longest:
        raise ValueError(f"{name} reads {shape.max_length} tokens, and responses end at {longest}: give max_length = {shape.max_length}")
    model = load_scalar_model(folder, device=of_environment().place(config.device))
    return RewardScorer(model, max_tokens=config.max_tokens_per_batch, bf16=config.bf16)


def sizing(judges: str) -> dict[str, Any]:
    """What a forecast needs to play a round: the engine, a judge by chance, and the shapes of the reward models among `judges`."""
    from trueline.models.files import read_config
    from trueline.serve.engine import Engine

    def chance(prompt: Messages, response: Messages) -> float:
        return zlib.crc32("".join(message.content for message in response).encode()) / 2**32

    names = [part for part, _ in members(parts_of(judges))] or [judges]
    folders = [local_folder(model_folder(name), "config") for name in names if (Path(name) / "config.json").is_file()]
    return {"rollouts": Rollouts(Engine, judge=RuleJudge(chance)), "scorers": tuple(read_config(folder)[0] for folder in folders)}
