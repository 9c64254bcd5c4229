"""Which verbs there are, read from files rather than by importing them.

Training verbs are the files of `trueline/objectives/`: a class with a constant `verb`, summarised by the first line of its
module. The others are listed here, each a frozen dataclass of options with a `run` method.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline import __version__


@dataclass(frozen=True)
class Verb:
    """A command: `name` is what people type (one word or two), `home` is "module:Class"."""

    name: str
    group: str
    home: str
    summary: str


OTHERS = (
    Verb(
        "quickstart",
        "Start here",
        "trueline.cli.quickstart:Quickstart",
        "the whole loop on this machine, in minutes, with a report at the end",
    ),
    Verb(
        "data inspect",
        "Prepare data",
        "trueline.cli.data:Inspect",
        "rows, lengths, duplicates, what would be cut, samples with their loss mask",
    ),
    Verb(
        "data convert",
        "Prepare data",
        "trueline.cli.data:Convert",
        "write any format we read as TRL's columns or OpenAI chat",
    ),
    Verb("data pool", "Prepare data", "trueline.cli.pool:Pool", "all ratings of a response as counts per category, with a judge's prior"),
    Verb("tokenizer train", "Prepare data", "trueline.cli.tokenizer:Train", "byte-level BPE from text"),
    Verb(
        "tokenizer lint",
        "Prepare data",
        "trueline.cli.tokenizer:Lint",
        "check a chat template: exact mask, stop token, doubled BOS",
    ),
    Verb("chat", "Use a model", "trueline.cli.chat:Chat", "talk with a model, or with any OpenAI-compatible address"),
    Verb("generate", "Use a model", "trueline.cli.text:Generate", "continue a prompt, or answer a file of them"),
    Verb("serve", "Use a model", "trueline.cli.serve:Serve", "a model behind OpenAI's protocol, for many at a time"),
    Verb("sample", "Use a model", "trueline.cli.text:Draw", "several responses to every prompt of a file"),
    Verb(
        "judge",
        "Use a model",
        "trueline.cli.judge:Judge",
        "turn responses into comparisons, by a rule, a check, a reward model, a language model or votes",
    ),
    Verb(
        "eval",
        "Use a model",
        "trueline.cli.evaluate:Evaluate",
        "perplexity, a reward model's accuracy and calibration, or the tasks of lm-evaluation-harness",
    ),
    Verb(
        "study",
        "Use a model",
        "trueline.cli.study:Study",
        "compare methods at an equal budget on your own preferences, and say which to choose",
    ),
    Verb("tradeoff", "Use a model", "trueline.cli.tradeoff:Tradeoff", "what two reward models give when one or the other weighs more"),
    Verb("center", "Use a model", "trueline.cli.center:Center", "shift a reward model so that demonstrations average zero"),
    Verb("merge", "Use a model", "trueline.cli.merge:Merge", "an adapter and its base as one plain model"),
    Verb("export", "Use a model", "trueline.cli.export:Export", "a model as one GGUF file, which llama.cpp loads"),
    Verb("plan", "Look after runs", "trueline.cli.plan:Plan", "predict peak memory and time, and what to change when it does not fit"),
    Verb(
        "run",
        "Look after runs",
        "trueline.cli.runs:Repeat",
        "repeat a run from its folder, or finish one that was stopped",
    ),
    Verb(
        "bench serve",
        "Look after runs",
        "trueline.cli.bench:Serve",
        "what the engine's paged cache saves, simulated: waste, sharing, requests in flight",
    ),
    Verb("env", "Look after runs", "trueline.cli.runs:Env", "versions and machine, to paste into a bug report"),
)

GROUPS = ("Start here", "Prepare data", "Train", "Use a model", "Look after runs")


def methods() -> dict[str, Verb]:
    """The training verbs, in the order of the life of a model: those that compare responses late, those that draw them last."""
    found: list[tuple[tuple[bool, int, str], Verb]] = []
    order = ("Document", "Conversation", "Comparison", "Rating")
    for path in sorted((Path(__file__).parent.parent / "objectives").glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and (constants := _constants(node)).get("verb"):
                title = (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")
                summary = title[:1].lower() + title[1:] if title[1:2].islower() else title
                home = f"trueline.objectives.{path.stem}:{node.name}"
                record = constants.get("record", "")
                place = (_draws(node), order.index(record) if record in order else len(order), constants["verb"])
                found.append((place, Verb(constants["verb"], "Train", home, summary)))
    return {verb.name: verb for _, verb in sorted(found, key=lambda pair: pair[0])}


def _draws(node: ast.ClassDef) -> bool:
    """Whether the method says what a round of drawing is."""
    names = [item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return "rounds" in names + [item.name for item in node.body if isinstance(item, ast.FunctionDef)]


def _constants(node: ast.ClassDef) -> dict[str, str]:
    """Class variables with a text or a name as their value."""
    found = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if isinstance(item.value, ast.Constant) and isinstance(item.value.value, str):
                found[item.target.id] = item.value.value
            elif isinstance(item.value, ast.Name):
                found[item.target.id] = item.value.id
    return found


def everything() -> dict[str, Verb]:
    """All verbs by name."""
    return {verb.name: verb for verb in OTHERS} | methods()


def find(words: list[str]) -> tuple[Verb, list[str]]:
    """The verb that the words begin with, and the words after it."""
    known = everything()
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in known:
            return known[name], words[length:]
    inner = [name.split()[1] for name in known if name.startswith(words[0] + " ")]
    if inner:
        said = f", not {words[1]!r}" if words[1:] and words[1] not in ("-h", "--help") else ""
        raise ValueError(
            f"trueline {words[0]} takes one of {', '.join(inner)}{said}: trueline {words[0]} {inner[0]} --help"
        )
    firsts = sorted({name.split()[0] for name in known})
    near = difflib.get_close_matches(words[0], firsts, n=1)
    raise ValueError(
        f"there is no verb {words[0]!r}"
        + (f"; did you mean {near[0]!r}?" if near else f"; use one of {', '.join(firsts)}")
    )


def family(word: str) -> str:
    """What `trueline data` prints: the verbs that begin with the word; nothing when the word is a verb itself."""
    found = [verb for verb in OTHERS if verb.name.startswith(word + " ")]
    width = max((len(verb.name) for verb in found), default=0)
    return "\n".join(f"trueline {verb.name:<{width}}  {verb.summary}" for verb in found)


def load(verb: Verb) -> type[Any]:
    """Import a verb's class of options."""
    if verb.group == "Train":
        from trueline.cli.method import options_of

        return options_of(resolve(verb.home))
    return resolve(verb.home)


def resolve(home: str) -> type[Any]:
    """ "module:Class" to the class."""
    module, name = home.split(":")
    return getattr(importlib.import_module(module), name)


def overview() -> str:
    """What `trueline --help` prints."""
    known = everything()
    width = max(len(name) for name in known)
    lines = [f"trueline {__version__}: brings language models into line with what people prefer", ""]
    lines += [
        "usage: trueline VERB --model DIR_OR_HUB_ID --data FILE_OR_HUB_ID --out DIR [--config FILE.yaml] [--learning_rate 1e-5 ...]",
        "",
    ]
    for group in GROUPS:
        lines.append(group)
        lines += [f"  {verb.name:<{width}}  {verb.summary}" for verb in known.values() if verb.group == group]
        lines.append("")
    lines += ["trueline VERB --help shows all options of a verb, with their defaults."]
    return "\n".join(lines)
