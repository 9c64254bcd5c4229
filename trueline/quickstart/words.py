"""Words of identifiers and of prose, and their stems: what the prompt, the judge and the grounding measures compare.

    split_name("readConfig_file")     -> ["read", "config", "file"]
    content_words("Reads the files.") -> ["reads", "files"]
    stem("reading") == stem("reads") == stem("read")

The stemmer strips inflection only (plural, third person, -ing, -ed, -er of agents, -ation and -ment of nouns made from verbs); it is no
dictionary: irregular forms do not meet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

STOP_WORDS = frozenset(
    """
    a an the this that these those it its is are was were be been being am of in on at by for from to into onto with
    without as and or not no nor but if then than so such when where which who whom whose what how why while until
    will would shall should can could may might must do does did done has have had having there here their they them
    he she his her our we us you your i my me all any each every both either neither some one also only just very
    more most much many other another same own via per etc e g i.e e.g
    """.split()  # noqa: SIM905
)
"""Words that say nothing about one function in particular."""


def split_name(name: str) -> list[str]:
    """Lower-case words of an identifier: snake_case, CamelCase and digits are cut."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def prose_words(text: str) -> list[str]:
    """Lower-case words of prose; identifiers within it are split into theirs, contractions lose their apostrophe."""
    return split_name(re.sub(r"(?<=[A-Za-z])['\u2019](?=[a-z])", "", text))


def content_words(text: str) -> list[str]:
    """The words of prose that are not stop words, in order, with repetitions."""
    return [word for word in prose_words(text) if word not in STOP_WORDS and (len(word) > 1 or word.isdigit())]


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A key under which the inflections of a regular English word meet: reads, reading, reader, read -> read."""
    for ending, least in (("ations", 4), ("ation", 4), ("izing", 3), ("ising", 3), ("ments", 4), ("ment", 4), ("ings", 3), ("ing", 3),
                          ("ions", 3), ("ion", 3), ("ers", 4), ("ors", 4), ("er", 4), ("or", 4), ("ied", 2), ("ies", 2), ("ed", 3),
                          ("es", 3), ("s", 3), ("ly", 4)):  # fmt: skip
        if word.endswith(ending) and len(word) - len(ending) >= least and not (ending == "s" and word.endswith("ss")):
            word = word[: -len(ending)] + (
                "y" if ending in ("ied", "ies") else "iz" if ending in ("izing", "ising") else ""
            )
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
        word = word[:-1]  # stopped -> stopp -> stop
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]  # writing -> writ, write -> writ
    return word[:-1] + "i" if len(word) > 3 and word.endswith("y") else word


ABBREVIATIONS = {
    short: long
    for short, long in (
        pair.split("=")
        for pair in """
    addr=address arg=argument args=argument attr=attribute attrs=attribute buf=buffer cb=callback cfg=config
    char=character chars=character cls=class cmd=command cnt=count col=column cols=column conf=config
    conn=connection coord=coordinate ctx=context cur=current cwd=directory db=database def=definition del=delete
    dest=destination dict=dictionary dicts=dictionary dim=dimension dims=dimension dir=directory dirs=directory
    doc=documentation dst=destination elem=element env=environment err=error exc=exception expr=expression
    ext=extension fmt=format fn=function fs=filesystem func=function funcs=function gen=generate grad=gradient
    id=identifier idx=index img=image impl=implementation info=information init=initialize int=integer ints=integer
    iter=iterate kw=keyword kwarg=keyword kwargs=keyword lang=language len=length lib=library loc=location
    max=maximum mem=memory min=minimum mod=module msg=message msgs=message num=number nums=number obj=object
    op=operation ops=operation opt=option opts=option param=parameter params=parameter pos=position prev=previous
    proc=process prop=property props=property ptr=pointer py=python ref=reference refs=reference regex=regular
    req=request resp=response res=result ret=return seq=sequence sep=separator sig=signature spec=specification
    src=source stat=statistic str=string strs=string sync=synchronous temp=temporary tmp=temporary val=value
    vals=value var=variable vars=variable vec=vector
    """.split()  # noqa: SIM905
    )
}
"""What programmers shorten, where cutting the word's end is not what they do."""


def spoken_of(words: Iterable[str], stems: Iterable[str]) -> list[bool]:
    """For each word whether a text with these stems speaks of it; abbreviations count (`config` by configuration, `arg` by argument)."""
    have = set(stems)
    return [
        any(key in have or _begins_another(key, have) for key in {stem(word), stem(ABBREVIATIONS.get(word, word))})
        for word in words
    ]


def _begins_another(key: str, have: set[str]) -> bool:
    return len(key) >= 4 and any(other.startswith(key) or (len(other) >= 4 and key.startswith(other)) for other in have)
