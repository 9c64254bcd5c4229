"""From the shipped base model, which has read code, to one that has read English and answers: the start of recipes.human_preferences.

    TRUELINE_DATA=DATA python -m recipes.human_preferences_start --out out/start

    english/    next token on web pages, encyclopedia, speeches, questions and answers; windows of 512, loss on held-out windows
    sft/        instructions, loss on the responses only
    start.json  bits per byte on held-out English before and after

Text whose question begins like one of a preference file that is tested on, or of the evaluation-only instructions, is left out and
counted. The dialogues of HH-RLHF are not used: their authors ask that assistants are not trained on them as plain text.
alpaca_eval's answers and alpaca_en are for non-commercial use.

Cost: about 25 minutes on one core (1.1M tokens of English, 0.3M of instructions). The same command resumes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trueline.models.files import load_model
from trueline.models.scorer import PolicyScorer
from trueline.objectives.next_token import NextToken
from trueline.objectives.sft import SFT
from trueline.quickstart.base_model import base_model_dir
from trueline.quickstart.scratch import window_rows
from trueline.records import Comparison, Conversation, Document, Message, Row, Sampling
from trueline.rows import read_rows
from trueline.serve.engine import Engine
from trueline.store import write_atomic
from trueline.tokens import Tokenizer, load_tokenizer
from trueline.tokens.encode import documents_ids, encode_prompt
from trueline.tokens.pack import flatten
from trueline.train import train
from trueline.train.data import encode

MIXTURE = {"answers": 0.34, "instructions": 0.20, "web": 0.20, "prose": 0.16, "tasks": 0.10}
"""Share of the characters by kind: mostly questions and answers, since replies are what is compared later."""
CONTEXT = 512
PIECE = 2000
"""Characters of a piece of a long document; pieces end at the end of a line."""
SFT_TOKENS = 384
"""Longest conversation that is trained on: one that is cut would not learn to end."""
TESTED = ("hh_harmless_base_test", "tulu1_human", "pandalm_human", "llmbar")
ASKED = ("What is the capital of France?", "Give me three tips for staying healthy.", "How do I steal a car?")


def jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a compressed file, line by line: columns that no record holds."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def prompt_key(text: str) -> str:
    """The first 64 letters and digits of a question: the same question in two files has one key."""
    return re.sub(r"[^a-z0-9]", "", text.lower())[:64]


def tested_prompts(data: Path) -> set[str]:
    """Keys of every question that a model is tested on."""
    keys = set()
    for name in TESTED:
        rows = read_rows(
            data / f"preference/{name}.jsonl.gz", Comparison, chat=True, verdict={"1": "first", "2": "second"} if name == "llmbar" else None
        )  # fmt: skip
        keys |= {prompt_key(first_question(row)) for row in rows if isinstance(row, Comparison)}
    only = read_rows(data / "instructions/user_oriented_instructions_EVALONLY.jsonl.gz", Conversation)
    return keys | {prompt_key(row.messages[0].content) for row in only if isinstance(row, Conversation)}


def first_question(row: Comparison | Conversation) -> str:
    """The first human turn."""
    messages = row.prompt if isinstance(row, Comparison) else row.messages
    return next(message.content for message in messages if message.role == "user")


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Whole lines of about `size` characters; a longer line is a piece of its own."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > size:
            yield piece.strip()
            piece = ""
        piece += line
    if piece.strip():
        yield piece.strip()


def conversations(data: Path, names: Sequence[str], tested: set[str], left_out: Counter[str]) -> list[Conversation]:
    """Questions and answers of instruction files, without those that are tested on."""
    found = []
    for name in names:
        for row in read_rows(data / f"instructions/{name}.jsonl.gz", Conversation):
            assert isinstance(row, Conversation)
            if prompt_key(row.messages[0].content) in tested:
                left_out[name] += 1
            else:
                found.append(row)
    return found


def texts_of(data: Path, kind: str, tested: set[str], left_out: Counter[str]) -> list[str]:
    """All texts of one kind."""
    match kind:
        case "answers":  # eighteen systems answer each question
            rows = jsonl(data / "instructions/alpaca_eval_outputs_18models.jsonl.gz")
            usable = [row for row in rows if prompt_key(row["instruction"]) not in tested]
            left_out["alpaca_eval_outputs_18models"] += len(rows) - len(usable)
            return [f"{row['instruction']}\n\n{text}" for row in usable for text in row["outputs"].values() if text.strip()]
        case "instructions":
            names = ("alpaca_en_demo", "gpteacher_roleplay", "self_instruct_seed_tasks")
            rows = conversations(data, names, tested, left_out)
            return ["\n\n".join(message.content for message in row.messages) for row in rows]
        case "tasks":
            rows = conversations(data, ("p3_multitask",), tested, left_out)
            return ["".join(message.content for message in row.messages).replace("<|endoftext|>", "") for row in rows]
        case "web":
            documents = [
                *read_rows([data / f"dirty_web/{name}.jsonl.gz" for name in ("c4_demo", "cc_en_head_ccnet")], Document),
                *read_rows([data / f"dirty_web/articles_{i}.jsonl.gz" for i in (0, 1)], Document, columns={"text": "articleBody"}),
            ]
        case _:
            names = ("wiki_demo.txt.gz", "state_union.jsonl.gz", "inaugural.jsonl.gz", "tinystories_sample.txt")
            documents = list(read_rows([data / f"text/{name}" for name in names], Document))
    return [piece for document in documents if isinstance(document, Document) for piece in pieces(document.text)]


def mixture(data: Path, characters: int, tested: set[str], seed: int) -> tuple[list[str], str]:
    """Texts in the shares of MIXTURE, in mixed order, each at most once; and what was taken and left out, in words."""
    rng, left_out = random.Random(seed), Counter[str]()
    taken, said = [], []
    for kind, share in MIXTURE.items():
        texts, size = texts_of(data, kind, tested, left_out), 0
        rng.shuffle(texts)
        before = len(taken)
        while texts and size < share * characters:
            taken.append(texts.pop(0))
            size += len(taken[-1])
        said.append(f"{kind} {size:,} characters in {len(taken) - before:,} texts")
    rng.shuffle(taken)
    return taken, "; ".join(said) + f"; left out because they are tested on: {dict(left_out)}"


def bits_per_byte(model: Path, rows: Sequence[Row], tokenizer: Tokenizer) -> float:
    """Over all windows; the first token of each is context."""
    nats = -sum(float(score_K[0]) for score_K in PolicyScorer(load_model(model)).score(rows))
    return nats / math.log(2) / sum(len(tokenizer.decode(row.ids[0][1:]).encode()) for row in rows)


def replies(model: Path, tokenizer: Tokenizer, questions: Sequence[str], tokens: int = 48) -> list[str]:
    """The likeliest reply to each question."""
    engine = Engine(load_model(model), tokenizer)
    prompts = [encode_prompt((Message(role="user", content=question),), tokenizer) for question in questions]
    drawn = engine.sample(prompts, Sampling(temperature=0, max_new_tokens=tokens))
    return [engine.text(samples[0]) for samples in drawn]


def start(data: Path, out: Path, base: Path, *, english_tokens: int, sft_tokens: int, seed: int, steps: int = 0) -> Path:
    """Both stages; returns the SFT model. `steps` above 0 cuts each short."""
    tokenizer = load_tokenizer(base)
    tested = tested_prompts(data)
    texts, said = mixture(data, int(2.45 * english_tokens), tested, seed)  # characters per token of this tokenizer on English
    print(said)
    windows = window_rows(flatten(documents_ids(texts, tokenizer)), CONTEXT)
    held = max(1, len(windows) // 40)
    english = train(
        NextToken(), base, windows[held:], out=out / "english", tokenizer=tokenizer, eval_rows=windows[:held], max_steps=steps,
        per_device_train_batch_size=8, max_length=CONTEXT, learning_rate=8e-4, weight_decay=0.1, adam_beta2=0.95, warmup_ratio=0.05,
        min_lr_ratio=0.05, save_steps=50, save_total_limit=1, logging_steps=5, seed=seed,
    )  # fmt: skip
    if not (out / "start.json").exists():
        bits = {name: bits_per_byte(path, windows[:held], tokenizer) for name, path in (("base", base), ("english", english))}
        write_atomic(out / "start.json", json.dumps({"mixture": said, "held_out_windows": held, "bits_per_byte": bits}, indent=1))
        print(f"bits per byte on {held} held-out windows of English: {bits}")
    sft = train(
        SFT(), english, instructions(data, tested, tokenizer, sft_tokens, seed), out=out / "sft", tokenizer=tokenizer, max_steps=steps,
        per_device_train_batch_size=16, max_length=SFT_TOKENS, learning_rate=4e-4, lr_scheduler_type="linear", warmup_ratio=0.05,
        save_steps=25, save_total_limit=1, logging_steps=5, seed=seed,
    )  # fmt: skip
    for question, reply in zip(ASKED, replies(sft, tokenizer, ASKED), strict=True):
        print(f"{question}\n    {reply!r}")
    return sft


def instructions(data: Path, tested: set[str], tokenizer: Tokenizer, tokens: int, seed: int) -> list[Row]:
    """Instructions that fit, in an order drawn by seed, up to so many tokens."""
    names = ("alpaca_en_demo", "gpteacher_roleplay", "self_instruct_seed_tasks")
    records = conversations(data, names, tested, Counter())
    random.Random(seed).shuffle(records)
    taken, size = list[Row](), 0
    for row in encode(records, SFT(), tokenizer, 4096).rows:
        if row.num_tokens <= SFT_TOKENS and size < tokens:
            taken.append(row)
            size += row.num_tokens
    return taken


def data_folder(given: str) -> Path:
    """The folder of data sets, or one sentence."""
    if not given or not (Path(given) / "preference").is_dir():
        raise SystemExit(f"TRUELINE_DATA is {given!r}: name the folder that holds preference/, instructions/ and text/")
    return Path(given)


def rehearse(folder: Path) -> None:
    """Two steps of each stage on made-up files."""
    data = made_up(folder / "data")
    start(data, folder / "start", base_model_dir(), english_tokens=6_000, sft_tokens=4_000, seed=0, steps=2)
    assert (folder / "start/sft/finished.json").exists()
    found = json.loads((folder / "start/start.json").read_text(encoding="utf-8"))
    assert "'alpaca_en_demo': 1" in found["mixture"], "the tested question is out"


def made_up(folder: Path, count: int = 40) -> Path:
    """A folder of data in the columns of the real files, for rehearsals."""
    nice, rude = "I am sorry, I can not help you with that number {}.", "Yes, just take the number {} and run away with it."
    hh = [
        {side: f"\n\nHuman: Question {i} of many?\n\nAssistant: {text.format(i)}" for side, text in (("chosen", nice), ("rejected", rude))}
        for i in range(count)
    ]
    tulu = [
        {"prompt": f"Write poem {i}.", "completion_a": nice.format(i), "completion_b": rude.format(i), "evaluator": "x",
         "preference": ("a-is-better", "b-is-slightly-better", "tie")[i % 3]}
        for i in range(count)
    ]  # fmt: skip
    pandalm = [
        {"instruction": f"Explain {i}.", "input": "", "response1": nice.format(i), "response2": rude.format(i),
         "annotator1": 1, "annotator2": 1 + i % 2, "annotator3": i % 3}
        for i in range(count)
    ]  # fmt: skip
    subsets = ("LLMBar/Natural", "LLMBar/Adversarial/Manual")
    llmbar = [
        {"subset": subsets[i % 2], "input": f"Do {i}.", "output_1": nice.format(i), "output_2": rude.format(i), "label": 1 + i % 2}
        for i in range(count)
    ]
    asked = [{"instruction": f"Say {i}.", "input": "", "output": f"{i} it is, as you said before."} for i in range(count)]
    seeds = [{"instruction": f"Seed {i}.", "instances": [{"input": "", "output": f"Answer {i}."}]} for i in range(count)]
    page = "A long page about very little, with a line of its own. " * 30
    answers = [{"instruction": f"Ask {i}?", "dataset": "d", "outputs": {"m": nice.format(i), "n": rude.format(i)}} for i in range(count)]
    files: dict[str, list[dict[str, Any]] | str] = {
        "preference/hh_harmless_base_test.jsonl.gz": hh,
        "preference/tulu1_human.jsonl.gz": tulu,
        "preference/pandalm_human.jsonl.gz": pandalm,
        "preference/llmbar.jsonl.gz": llmbar,
        "instructions/alpaca_en_demo.jsonl.gz": [*asked, {"instruction": "Write poem 3.", "input": "", "output": "A rose."}],
        "instructions/gpteacher_roleplay.jsonl.gz": [{"instruction": f"Act {i}.", "input": "", "response": nice} for i in range(count)],
        "instructions/self_instruct_seed_tasks.jsonl.gz": seeds,
        "instructions/user_oriented_instructions_EVALONLY.jsonl.gz": [
            {"instruction": "Only to evaluate.", "instances": [{"input": "", "output": "Yes."}]}
        ],
        "instructions/alpaca_eval_outputs_18models.jsonl.gz": answers,
        "instructions/p3_multitask.jsonl.gz": [{"prompt": f"Is {i} even?", "completion": " Perhaps."} for i in range(count)],
        "dirty_web/c4_demo.jsonl.gz": [{"text": page}],
        "dirty_web/cc_en_head_ccnet.jsonl.gz": [{"text": page}],
        "dirty_web/articles_0.jsonl.gz": [{"id": "a", "articleBody": page}],
        "dirty_web/articles_1.jsonl.gz": [{"id": "b", "articleBody": page}],
        "text/wiki_demo.txt.gz": page,
        "text/state_union.jsonl.gz": [{"file": "a.txt", "text": page}],
        "text/inaugural.jsonl.gz": [{"file": "b.txt", "text": page}],
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.write(rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows))
    (folder / "text/tinystories_sample.txt").write_text("Once there was a dog.\n" * 40, encoding="utf-8")
    return folder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("TRUELINE_DATA", ""), help="folder of data sets; default: TRUELINE_DATA")
    parser.add_argument("--out", type=Path, required=True, help="run folder; the same command resumes")
    parser.add_argument("--base", type=Path, default=base_model_dir(), help="model to start from")
    parser.add_argument("--english_tokens", type=float, default=1.1e6)
    parser.add_argument("--sft_tokens", type=float, default=3e5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    english, instructed = int(args.english_tokens), int(args.sft_tokens)
    start(data_folder(args.data), args.out, args.base, english_tokens=english, sft_tokens=instructed, seed=args.seed)


if __name__ == "__main__":
    main()
