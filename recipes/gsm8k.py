"""Grade-school mathematics (GSM8K, Cobbe et al. 2021, arXiv 2110.14168): supervised tuning, then pass@k by exact answer.

    TRUELINE_DATA=DATA python -m recipes.gsm8k --out out/gsm8k
    TRUELINE_DATA=DATA python -m recipes.gsm8k --out out/gsm8k --model Qwen/Qwen2.5-0.5B

    sft/          the model after one pass over the training solutions (calculator notes <<48/2=24>> taken out)
    drawn.jsonl   k drawn solutions to each test question, with 1 for a right answer and 0 for a wrong one
    report.md     pass@1, 2, 4, ... k, beside the same solutions held against the answers of other questions

The second column is what guessing gives: answers are often small round numbers, and a model that has learnt how answers look, but not how
to compute them, is right on other people's questions as often as on its own. Only what is above it is mathematics.
The shipped base model has 8M parameters and has read Python's documentation: it learns the form and next to nothing of the matter.

Cost with it: 1.7 million tokens of tuning, 5,304 solutions of up to 256 tokens; --questions and --max_steps make it smaller. The same
command resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from trueline.align.group import Group
from trueline.align.rollouts import rollouts
from trueline.align.verifiers import Verifier, answers_of, exact_answer
from trueline.cli.places import model_folder
from trueline.evals.pass_at_k import mean_pass_at_k
from trueline.evals.table import markdown
from trueline.models.files import load_model
from trueline.objectives.sft import SFT
from trueline.records import Conversation, Message, Sampling
from trueline.rows import read_prompts, read_rows
from trueline.serve.engine import Engine
from trueline.store import write_atomic
from trueline.tokens import encode_prompt, load_tokenizer
from trueline.train import train

NOTE = re.compile(r"<<[^<>]*>>")
ROWS_PER_STEP, LENGTH, LONGEST = 16, 512, 256
BATCH = 32
"""Questions that are answered at a time."""


def solutions(path: Path) -> list[Conversation]:
    """Questions with their solutions, as chats, without the notes of a calculator that we do not have."""
    return [
        Conversation(messages=tuple(Message(role=m.role, content=NOTE.sub("", m.content), train=m.train) for m in row.messages))
        for row in read_rows(path, Conversation)
        if isinstance(row, Conversation)
    ]


def tuned(model: str, data: Path, out: Path, *, rate: float, epochs: float, seed: int, steps: int) -> Path:
    """The model after supervised tuning."""
    return train(
        SFT(), model_folder(model), solutions(data / "train.jsonl.gz"), out=out, seed=seed, num_train_epochs=epochs, max_steps=steps,
        per_device_train_batch_size=ROWS_PER_STEP, max_length=LENGTH, learning_rate=rate, lr_scheduler_type="linear",
        warmup_ratio=0.05, save_steps=100, eval_share=0.0,
    )  # fmt: skip


def drawn(folder: Path, data: Path, *, questions: int, k: int, temperature: float, seed: int) -> list[Group]:
    """k solutions to each of the first test questions, judged by their answers."""
    tokenizer = load_tokenizer(folder)
    engine = Engine(load_model(folder), tokenizer, max_batch=BATCH * k)
    prompts = [one for one in read_prompts(data / "test.jsonl.gz", limit=questions) if isinstance(one, Conversation)]
    judge = Verifier(exact_answer, answers_of(prompts), "exact_answer")
    sampling = Sampling(n=k, temperature=temperature, max_new_tokens=LONGEST, seed=seed)
    groups: list[Group] = []
    for start in range(0, len(prompts), BATCH):
        asked = [prompt.messages for prompt in prompts[start : start + BATCH]]
        groups += rollouts(
            asked, engine, judge, sampling, encode=lambda messages: encode_prompt(messages, tokenizer), decode=engine.text
        )
    return groups


def by_chance(groups: Sequence[Group], data: Path) -> list[list[float]]:
    """The same solutions held against the answer of the next question."""
    answers = answers_of(one for one in read_prompts(data / "test.jsonl.gz") if isinstance(one, Conversation))
    shifted = [*groups[1:], groups[0]]
    return [
        exact_answer([response[0].content for response in group.responses], answers[other.key][0])
        for group, other in zip(groups, shifted, strict=True)
    ]


def report(groups: Sequence[Group], chance: Sequence[Sequence[float]], about: str) -> str:
    """pass@k for each power of two, own answers and others'."""
    k = len(groups[0])
    ks = [2**i for i in range(k.bit_length()) if 2**i <= k]
    rows = [
        {"k": k, "pass@k": mean_pass_at_k([g.scores for g in groups], k), "by the answers of other questions": mean_pass_at_k(chance, k)}
        for k in ks
    ]
    ended = sum(sample.finish_reason == "stop" for g in groups for sample in g.samples) / sum(map(len, groups))
    form = sum("####" in r[0].content for g in groups for r in g.responses) / sum(map(len, groups))
    shape = f"{ended:.1%} of the solutions end by themselves, {form:.1%} hold an answer behind ####"
    return f"{markdown(rows, digits=4)}\n\n{about}; {shape}.\n"


def run(
    data: Path, out: Path, *, model: str = "base", rate: float = 1e-3, epochs: float = 1.0, questions: int = 663, k: int = 8,
    temperature: float = 0.7, seed: int = 0, steps: int = 0,
) -> str:  # fmt: skip
    """Tune, draw, and return the report, which is also written."""
    began = time.monotonic()
    folder = tuned(model, data, out / "sft", rate=rate, epochs=epochs, seed=seed, steps=steps)
    trained = time.monotonic()
    groups = drawn(folder, data, questions=questions, k=k, temperature=temperature, seed=seed)
    lines = [
        {"prompt": g.prompt[-1].content, "responses": [r[0].content for r in g.responses], "scores": list(g.scores)} for g in groups
    ]
    write_atomic(out / "drawn.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    seconds = f"{trained - began:.0f} s of tuning, {time.monotonic() - trained:.0f} s of drawing"
    found = report(groups, by_chance(groups, data), f"{len(groups)} questions, {k} solutions each at temperature {temperature}; {seconds}")
    write_atomic(out / "report.md", found)
    return found


def rehearse(folder: Path) -> None:
    """Two steps, two questions, on made-up sums."""
    import gzip

    data = folder / "gsm8k"
    data.mkdir()
    rows = [{"question": f"What is {i} plus 1?", "answer": f"{i}+1 = <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"} for i in range(40)]
    for name in ("train", "test"):
        with gzip.open(data / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    assert "<<" not in str(solutions(data / "train.jsonl.gz"))
    found = run(data, folder / "out", questions=3, k=2, steps=2)
    assert "pass@k" in found and "3 questions, 2 solutions each" in found
    assert "3 questions" in run(data, folder / "out", questions=3, k=2, steps=2)  # again: the training is there


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run folder; the same command resumes")
    parser.add_argument("--model", default="base", help='a folder, a hub id, or "base"')
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--max_steps", type=int, default=0, help="stop after so many steps of 16 solutions; 0 is by --epochs")
    parser.add_argument("--questions", type=int, default=663, help="of the test set")
    parser.add_argument("--k", type=int, default=8, help="solutions per question")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = Path(os.environ.get("TRUELINE_DATA", "")) / "gsm8k"
    if not (data / "train.jsonl.gz").is_file():
        raise SystemExit(f"TRUELINE_DATA names no folder with gsm8k/train.jsonl.gz: {data} has none")
    print(run(data, args.out, model=args.model, rate=args.learning_rate, epochs=args.epochs, questions=args.questions, k=args.k,
              temperature=args.temperature, seed=args.seed, steps=args.max_steps))  # fmt: skip


if __name__ == "__main__":
    main()
