"""A PEP 257 judge: how well one line documents the function it stands under, between 0 and 10.

    prompt ("name: ... / arguments: ... / body: ...") + response -> parts in [0, 1] -> weighted sum -> guards against gaming multiply it

Parts and weights (sum 10)
    form         1.0  begins with a capital, ends with a full stop, is one line without loose punctuation: a third each
    imperative   1.0  first word a verb in its base form ("Return"); the third person ("Returns") counts 0.4, others 0.1
    length       1.0  4 to 14 words; falls linearly to nothing at 1 and at 28
    name         3.0  share of the name's words spoken of, inflections and abbreviations included; full at three quarters;
                      words that fit any function, such as get or data, count half
    beyond       1.5  says what the name does not: content words that calls, class or body hold (0.6, a second 0.3), one of
                      the arguments (0.6), plain English (0.25 each, two at most)
    faithful     1.0  share of content words that the prompt supports or that docstrings use all the time: made-up subjects are not
    prose        1.5  real words, in an order in which people use them: how much the two words before help to foresee the next
Guards (each multiplies the sum; 1 when nothing is wrong)
    subject      0.8 when nothing of the name is spoken of but something else of the prompt is; 0.5 when nothing is
    repetition   content words said again, neighbouring words said again ("of the ... of the")
    restating    the name copied word for word behind another verb ("Return the read config file."), identifiers or calls
                 copied as they stand, several arguments named
    stuffing     content words without the little words that make a sentence
    generic      nothing but words that fit any function ("Return the value."), or some of them added
    ending       stops at "or", "and", "the", ...
    noise        unbalanced brackets or quotes, doubled punctuation, letters thrice, more than one line or sentence

What people write in docstrings is learnt from the training split of the harvest (`learn_prose`), never from held-out packages.
The rule is a stand-in for a human annotator: known to the report, hidden from the models, which see its noisy choices only (`annotate`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np

from trueline.quickstart.verbs import base_form, is_base_verb
from trueline.quickstart.words import STOP_WORDS, content_words, prose_words, split_name, spoken_of, stem
from trueline.records import Messages

WEIGHTS = {"form": 1.0, "imperative": 1.0, "length": 1.0, "name": 3.0, "beyond": 1.5, "faithful": 1.0, "prose": 1.5}

GENERIC = frozenset(
    stem(w)
    for w in """
    get set return value data object result item thing given function method compute do make perform run handle
    process helper use info information input output argument parameter code current new specified call provide
    current instance class self
    """.split()  # noqa: SIM905
)
"""Stems that fit any function: a name is half grounded by them, a summary of nothing else says nothing."""

LOOSE_ENDS = frozenset(
    """
    a an the and or nor but of to in on at by for from with without into as that which whose is are be if when than
    not its this
    """.split()  # noqa: SIM905
)
COMMON_WORDS = 400
FREQUENT = 300


@dataclass(frozen=True, kw_only=True)
class Prose:
    """What people's summaries look like: learnt once from the training split."""

    words: frozenset[str]
    """Words that at least two functions' summaries use."""
    common: frozenset[str]
    """Stems of the most frequent content words."""
    frequent: frozenset[str]
    """Words that stand for themselves in sequences; the others stand for their ending."""
    sequences: Mapping[tuple[str, ...], int] = field(repr=False)
    """Counts of one, two and three neighbouring kinds; the empty one counts all."""
    after_article: Mapping[str, float] = field(repr=False)
    """For base verbs, the share of their uses that follow an article: low for `read`, high for `list`."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A score and how it came about."""

    score: float
    parts: Mapping[str, float]
    guards: Mapping[str, float]


@dataclass(frozen=True)
class Pep257Judge:
    """A Judge (protocols.py) that scores each response on its own."""

    prose: Prose
    name: str = "pep257"

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        asked = read_prompt(prompt[-1].content)
        return [explain(asked, response[-1].content, self.prose).score for response in responses]

    def explain(self, prompt: str, response: str) -> Verdict:
        """The parts and guards of one score, for reports."""
        return explain(read_prompt(prompt), response, self.prose)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the prompt says of the function, as words."""

    name: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    support: frozenset[str] = frozenset()
    """Stems of everything in the prompt."""


def read_prompt(text: str) -> Asked:
    """The words of a prompt that `prompts.prompt_text` wrote."""
    head, _, body = text.partition("body:")
    lines = dict(line.split(":", 1) for line in head.splitlines() if ":" in line)
    if "name" not in lines:
        raise ValueError(
            "the PEP 257 judge reads prompts that begin with 'name: ...'; render them with quickstart.prompts.prompt_text"
        )
    words = [w for line in lines.values() for w in split_name(line)] + split_name(body)
    return Asked(
        name=tuple(split_name(lines["name"])),
        arguments=tuple(split_name(lines.get("arguments", ""))),
        support=frozenset(map(stem, words)),
    )


def learn_prose(summaries: Iterable[str]) -> Prose:
    """Vocabulary and neighbouring words of human summaries."""
    said = [prose_words(s) for s in summaries]
    users = Counter(w for words in said for w in set(words))
    content = Counter(stem(w) for words in said for w in set(words) if w not in STOP_WORDS)
    frequent = frozenset(w for w, _ in users.most_common(FREQUENT))
    kind_of = {w: _kind(w, frequent) for w in users}
    kinds = list(chain.from_iterable(["<", "<", *map(kind_of.__getitem__, words), ">"] for words in said))
    sequences = Counter[tuple[str, ...]](zip(kinds, kinds[1:], kinds[2:], strict=False))
    sequences.update(pairwise(kinds))
    sequences.update(zip(kinds, strict=True))
    sequences[("<",)] = len(said)  # two marks begin a summary; only the second is followed by a word
    sequences[()] = len(kinds) - 2 * len(said)
    words_said = list(chain.from_iterable(said))
    after = Counter(w for before, w in pairwise(words_said) if before in ("a", "an", "the"))
    uses = Counter(words_said)
    return Prose(
        words=frozenset(w for w, n in users.items() if n >= 2),
        common=frozenset(s for s, _ in content.most_common(COMMON_WORDS)),
        frequent=frequent,
        sequences=sequences,
        after_article={w: after[w] / n for w, n in uses.items() if is_base_verb(w)},
    )


def explain(asked: Asked, response: str, prose: Prose) -> Verdict:
    """Score of one response under the rule in this file's docstring."""
    text = response.strip()
    words = prose_words(text)
    if not words:
        return Verdict(score=0.0, parts=dict.fromkeys(WEIGHTS, 0.0), guards={})
    content = content_words(text)
    parts = {
        "form": form(text),
        "imperative": imperative(words),
        "length": length(len(text.split())),
        "name": name(asked, content),
        "beyond": beyond(asked, content, prose),
        "faithful": faithful(asked, content, prose),
        "prose": flow(words, prose),
    }
    guards = {
        "subject": subject(asked, content),
        "repetition": repetition(words, content),
        "restating": restating(asked, text, words, prose),
        "stuffing": stuffing(text, words),
        "generic": generic(asked, content),
        "ending": 0.6 if words[-1] in LOOSE_ENDS else 1.0,
        "noise": noise(text),
    }
    score = sum(WEIGHTS[part] * value for part, value in parts.items()) * float(np.prod(list(guards.values())))
    return Verdict(score=score, parts=parts, guards=guards)


def form(text: str) -> float:
    """Capital, full stop, one clean line: a third each."""
    clean = "\n" not in text and not re.search(r"[{}\[\]<>|\\`*_=~^@#$%&]|\s[,.;:]|[,;:]$", text)
    return (text[0].isupper() + (text.endswith(".") and not text.endswith("..")) + clean) / 3


def imperative(words: Sequence[str]) -> float:
    """1 for a verb in its base form, 0.4 for its third person, 0.1 otherwise; before "of" it is a noun ("Number of rows.")."""
    if words[1:2] == ["of"] and words[0] != "dispose":
        return 0.1
    return 1.0 if is_base_verb(words[0]) else 0.4 if base_form(words[0]) else 0.1


def length(count: int) -> float:
    """1 between 4 and 14 words, linear to 0 at 1 and at 28."""
    return float(np.interp(count, [1, 4, 14, 28], [0, 1, 1, 0]))


def name(asked: Asked, content: Sequence[str]) -> float:
    """Weighted share of the name's words that are spoken of, full at three quarters."""
    words = [w for w in dict.fromkeys(asked.name) if w not in STOP_WORDS and len(w) > 1]
    if not words:
        return 0.5
    weights = np.array([0.5 if stem(w) in GENERIC else 1.0 for w in words])
    return min(1.0, float(weights @ np.array(spoken_of(words, map(stem, content))) / weights.sum()) / 0.75)


def beyond(asked: Asked, content: Sequence[str], prose: Prose) -> float:
    """What is said that the name does not say; padding with arguments, generic words or made-up words earns nothing."""
    stems = {stem(w): w for w in content[1:]}
    known = spoken_of(stems.values(), map(stem, asked.name))
    new = [(s, w) for (s, w), old in zip(stems.items(), known, strict=True) if not old and s not in GENERIC]
    arguments = set(map(stem, asked.arguments))
    held = sum(s in asked.support and s not in arguments for s, _ in new)
    plain = sum(s not in asked.support and w in prose.words for s, w in new)
    return min(
        1.0, 0.6 * min(1, held) + 0.3 * (held >= 2) + 0.6 * any(s in arguments for s, _ in new) + 0.25 * min(2, plain)
    )


def faithful(asked: Asked, content: Sequence[str], prose: Prose) -> float:
    """Share of content words after the first that the prompt supports or that any docstring may use."""
    rest = content[1:]
    if not rest:
        return 0.0
    supported = spoken_of(rest, asked.support)
    return sum(a or stem(w) in prose.common for a, w in zip(supported, rest, strict=True)) / len(rest)


def flow(words: Sequence[str], prose: Prose) -> float:
    """Share of real words, squared, times how much the two words before help to foresee the next.

    The help is the mean log-ratio to the word's own frequency: worth 0 at -1 nat, 1 at 0.3 (about people's median).
    """
    real = sum(w in prose.words or w.isdigit() for w in words) / len(words)
    kinds, seen = ["<", "<", *(_kind(w, prose.frequent) for w in words), ">"], prose.sequences
    lifts = []
    for a, b, c in zip(kinds, kinds[1:], kinds[2:], strict=False):
        alone = (seen.get((c,), 0) + 0.5) / seen[()]
        after_one = (seen.get((b, c), 0) + 2 * alone) / (seen.get((b,), 0) + 2)
        after_two = (seen.get((a, b, c), 0) + 2 * after_one) / (seen.get((a, b), 0) + 2)
        lifts.append(np.log(after_two / alone))
    return real**2 * float(np.interp(np.clip(lifts, -2.5, 1.5).mean(), [-1.0, 0.3], [0, 1]))


def subject(asked: Asked, content: Sequence[str]) -> float:
    """1 when something of the name is spoken of, 0.8 when something else of the prompt is, else 0.5."""
    said = set(map(stem, content))
    particular = [w for w in asked.name if w not in STOP_WORDS and stem(w) not in GENERIC]
    if not particular or any(spoken_of(particular, said)):
        return 1.0
    return 0.8 if (said - GENERIC) & asked.support else 0.5


def repetition(words: Sequence[str], content: Sequence[str]) -> float:
    """1 without repeated content words (one in a long sentence is forgiven); each repeated pair of neighbours costs a quarter."""
    again = len(content) - len({stem(w) for w in content})
    again -= again == 1 and len(content) >= 6
    pairs = list(pairwise(words))
    repeated = len(pairs) - len(set(pairs)) + sum(a == b for a, b in pairs)
    return max(0.2, 1 - 1.5 * again / max(1, len(content))) * 0.75 ** min(4, repeated)


def restating(asked: Asked, text: str, words: Sequence[str], prose: Prose) -> float:
    """Copying instead of saying: the name behind another verb, identifiers as they stand, several arguments named."""
    factor, run = 1.0, list(asked.name)
    copied = any(list(words[i : i + len(run)]) == run for i in range(1, len(words) - len(run) + 1))
    if len(run) >= 2 and copied and is_base_verb(run[0]) and prose.after_article.get(run[0], 0.0) < 0.2:
        factor *= 0.5
    if re.search(r"\w_\w|\w\(", text):
        factor *= 0.7
    named = {w for w in words if w in asked.arguments and w not in asked.name and w not in STOP_WORDS}
    bare = [w for w in words if w != "and"]
    listed = any(a in named and b in named for a, b in pairwise(bare))
    return factor * (
        0.6 if len(named) >= 3 and len(named) >= 0.6 * len(set(asked.arguments)) else 0.75 if listed else 1.0
    )


def stuffing(text: str, words: Sequence[str]) -> float:
    """Keywords instead of a sentence: 0.9 without any little word, 0.6 from five words on; 0.7 for a list of four things or more."""
    little = sum(w in STOP_WORDS for w in words)
    factor = 0.6 if len(words) >= 5 and little < 0.1 * len(words) else 0.9 if not little else 1.0
    return factor * (0.7 if text.count(",") + words.count("and") >= 3 else 1.0)


def generic(asked: Asked, content: Sequence[str]) -> float:
    """0.5 when nothing but generic words are said and the name has others.

    Else 0.93 for each generic word that the prompt does not hold.
    """
    own = set(map(stem, asked.name)) - GENERIC - set(map(stem, STOP_WORDS))
    said = {stem(w) for w in content[1:]}
    if own and said <= GENERIC:
        return 0.5
    return 0.93 ** len((said & GENERIC) - asked.support)


def noise(text: str) -> float:
    """0.5 for each of: gibberish punctuation or letters, more than one line; 0.8 for a second sentence."""
    broken = any(text.count(a) != text.count(b) for a, b in ("()", "[]", "{}")) or text.count('"') % 2
    broken = broken or bool(
        re.search(r"[^\w\s)\"']{2}|([A-Za-z])\1\1|[^\x00-\x7f]|\?", re.sub(r"\(e\.g\.,|e\.g\.,|i\.e\.,", "", text))
    )
    lines, sentences = text.count("\n") + 1, len(re.findall(r"[a-z)]\.\s+[A-Z]", text)) + 1
    return (0.5 if broken else 1.0) * (0.5 if lines > 1 else 1.0) * (0.8 if sentences > 1 else 1.0)


def annotate(scores: Sequence[float], rng: np.random.Generator, noise: float) -> tuple[int, int] | None:
    """A noisy annotator's choice between two of the responses: (index preferred, index not), or None when all score the same.

    Two different responses are drawn, then P(a over b) = sigmoid((s_a - s_b) / noise): Bradley-Terry. `noise` is in points of the score.
    """
    if len(scores) < 2 or max(scores) == min(scores):
        return None
    a, b = (int(i) for i in rng.choice(len(scores), size=2, replace=False))
    return (a, b) if rng.random() < preference(scores[a], scores[b], noise) else (b, a)


def preference(score_a: float, score_b: float, noise: float) -> float:
    """Bradley-Terry probability that a is preferred; at noise 0 the better one always is, and equals are a coin."""
    if noise <= 0:
        return 0.5 + 0.5 * float(np.sign(score_a - score_b))
    return float(1 / (1 + np.exp(-np.clip((score_a - score_b) / noise, -60, 60))))


def _kind(word: str, frequent: frozenset[str]) -> str:
    """The word itself when frequent, else its ending's class."""
    if word in frequent:
        return word
    return next((f"-{end}" for end in ("ing", "ed", "ly", "tion", "s") if word.endswith(end)), "-")
