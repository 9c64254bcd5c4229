"""The report counts what is in the file."""

import json
from io import StringIO

import numpy as np
from rich.console import Console

from trueline.records import Row
from trueline.rows import inspect, render


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown(report, **how) -> str:
    console = Console(file=StringIO(), width=120, force_terminal=True)
    console.print(render(report, **how))
    return console.file.getvalue()


PAIRS = [
    pair("What is it?", "Red.", "Blue or so."),
    pair("What  is IT?", "Green.", "Blue."),
    pair("What is it?", "Red.", "Blue or so."),
    pair("Why?", "Yes.", "Yes."),
    pair("Why?", "", "No."),
]


def test_counts(tmp_path):
    report = inspect(write(tmp_path / "a.jsonl", PAIRS), max_length=16)
    assert (report.read, report.records, report.format) == (5, 3, "TRL preference, plain")
    assert report.rejected == {"chosen and rejected are equal": 1, "empty text": 1}
    assert (report.duplicates, report.duplicate_prompts, report.ties) == (1, 2, 0)
    assert sorted(report.lengths) == [15, 15, 17, 18, 22, 22]
    assert report.cut_sequences == 4 / 6
    assert report.cut_length == (1 + 2 + 6 + 6) / 109
    assert report.histogram() == [(1, 16, 2), (17, 32, 4)]
    assert report.longer_chosen == 1 / 3


def test_tokens_and_previews_are_handed_in(tmp_path):
    def encode(record):
        ids = np.arange(5, dtype=np.int32)
        return [Row(ids=(ids,), scored=(ids > 2,))]

    report = inspect(
        write(tmp_path / "a.jsonl", PAIRS[:2]),
        encode=encode,
        preview=lambda row: [[("<asked>", False), ("<said>", True)]],
    )
    assert report.unit == "tokens" and report.lengths.tolist() == [5, 5]
    text = shown(report)
    assert "\x1b[2m<asked>" in text and "\x1b[32m<said>" in text
    assert "⟦<said>⟧" in shown(report, marks=True)


def test_the_samples_show_the_mask_and_the_tool_calls(tmp_path):
    calls = [{"function": {"name": "look", "arguments": {"x": 1}}}]
    turns = [
        {"role": "user", "content": "[bold]q[/bold]"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "done", "weight": 0},
    ]
    other = [{**turns[0]}, {**turns[1], "tool_calls": [{"function": {"name": "wait", "arguments": {}}}]}, *turns[2:]]
    report = inspect(write(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": other}]))
    assert report.duplicates == 0  # they differ in the call alone
    scored = [text for text, is_scored in report.samples[0][0] if is_scored]
    assert len(scored) == 1 and '"name": "look"' in scored[0]
    assert "[bold]q[/bold]" in shown(report)


def test_a_long_sample_loses_its_middle_and_the_draw_is_by_seed(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": f"{i} begin " + "x" * 5000 + " end"} for i in range(50)])
    report = inspect(path, seed=1)
    assert len(report.samples) == 3
    assert report.samples == inspect(path, seed=1).samples != inspect(path, seed=2).samples
    text = shown(report, characters=200)
    assert "begin" in text and "end" in text and "characters ..." in text and len(text) < 4000


def test_ratings_and_one_long_row(tmp_path):
    rows = [{"prompt": "p", "completion": "c" * 20, "label": label} for label in (True, True, False)]
    report = inspect(write(tmp_path / "a.jsonl", rows))
    assert report.labels == {"desirable": 2, "undesirable": 1}
    assert report.histogram() == [(17, 32, 3)]
    assert "2 desirable, 1 undesirable" in shown(report)
