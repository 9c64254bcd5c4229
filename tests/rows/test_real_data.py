"""Published files, as they are: every one is recognised, and every row is a record or a counted reject."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from trueline.records import Comparison, Conversation, Ranking
from trueline.rows import read_rows

DATA = os.environ.get("TRUELINE_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="TRUELINE_DATA names no folder of data sets")

# file: format, records, rejected
FILES = {
    "instructions/alpaca_en_demo": ("Alpaca, conversational", 735, 0),
    "instructions/alpaca_eval_outputs_18models": ("instructions, conversational", 564, 0),
    "instructions/alpaca_zh_demo": ("Alpaca, conversational", 713, 0),
    "instructions/fastchat_dummy_conversation": ("ShareGPT, conversational", 496, 0),
    "instructions/glaive_toolcall_en_demo": ("ShareGPT, conversational", 199, 0),
    "instructions/gpteacher_codegen": ("Alpaca, conversational", 2890, 0),
    "instructions/gpteacher_roleplay": ("Alpaca, conversational", 1408, 0),
    "instructions/mt_bench_questions": ("MT-bench questions, first turn, conversational", 80, 0),
    "instructions/p3_multitask": ("TRL prompt-completion, plain", 3240, 0),
    "instructions/self_instruct_seed_tasks": ("self-instruct tasks, conversational", 139, 0),
    "instructions/user_oriented_instructions_EVALONLY": ("self-instruct tasks, conversational", 182, 0),
    "instructions/vicuna_bench_questions": ("MT-bench questions, first turn, conversational", 80, 0),
    "preference/alpaca_eval_gpt4_pairs": ("AlpacaEval annotations, conversational", 4486, 0),
    "preference/dpo_en_demo": ("ShareGPT preference, conversational", 212, 0),
    "preference/dpo_zh_demo": ("ShareGPT preference, conversational", 218, 0),
    "preference/hh_harmless_base_test": ("HH-RLHF transcripts, plain", 1622, 5),
    "preference/hhh_alignment": ("TRL preference, plain", 169, 0),
    "preference/kto_en_demo": ("messages with a label, conversational", 224, 0),
    "preference/pandalm_human": ("PandaLM annotations, conversational", 724, 35),
    "preference/tulu1_human": ("two responses and a verdict, conversational", 788, 0),
    "preference/unified": ("TRL preference, plain", 9268, 0),
}
VERDICTS = {
    "preference/autoj_pairwise": {"0": "first", "1": "second", "2": "tie"},
    "preference/llmbar": {"1": "first", "2": "second"},
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_recognised_and_no_row_is_lost(name, tmp_path):
    path = Path(DATA, f"{name}.jsonl.gz")
    with gzip.open(path) as file:
        lines = sum(1 for _ in file)
    rows = read_rows(path, rejects=tmp_path / "rejects.jsonl")
    records = sum(1 for _ in rows)
    assert (rows.format, records, sum(rows.rejected.values())) == FILES[name]
    assert rows.read == lines == records + sum(rows.rejected.values())
    kept = (tmp_path / "rejects.jsonl").read_text().splitlines() if rows.rejected else []
    assert Counter(json.loads(line)["reason"] for line in kept) == rows.rejected


@pytest.mark.parametrize("name", VERDICTS)
def test_numbers_as_verdicts_wait_for_their_meaning(name):
    path = Path(DATA, f"{name}.jsonl.gz")
    with pytest.raises(ValueError, match="needs a meaning"):
        list(read_rows(path, Comparison))
    rows = read_rows(path, Comparison, verdict=VERDICTS[name])
    assert len(list(rows)) > 0.99 * rows.read


def best(record):
    scores = [-r for r in record.judgement.ranks] if isinstance(record.judgement, Ranking) else record.judgement.counts
    return None if scores[0] == scores[1] else record.responses[scores.index(max(scores))][0].content.strip()


def test_the_preferred_side_is_the_one_that_the_collection_says():
    """unified.jsonl was made from the other files by other code; only Tulu has instances judged twice, with both outcomes."""
    said = {}
    for record in read_rows(Path(DATA, "preference/unified.jsonl.gz")):
        key = (record.source, *sorted(response[0].content.strip() for response in record.responses))
        said.setdefault(key, set()).add(record.responses[0][0].content.strip())
    for name in (
        "pandalm_human",
        "alpaca_eval_gpt4_pairs",
        "tulu1_human",
        "hh_harmless_base_test",
        "autoj_pairwise",
        "llmbar",
    ):
        meaning = VERDICTS.get(f"preference/{name}")
        found = 0
        for record in read_rows(Path(DATA, f"preference/{name}.jsonl.gz"), verdict=meaning):
            key = (name, *sorted(response[0].content.strip() for response in record.responses))
            if best(record) is not None and key in said:
                found += 1
                assert best(record) in said[key]
        assert found > 400


def test_tool_calls_and_transcripts_look_right():
    glaive = [
        r for r in read_rows(Path(DATA, "instructions/glaive_toolcall_en_demo.jsonl.gz")) if isinstance(r, Conversation)
    ]
    calls = [call for r in glaive for m in r.messages for call in m.tool_calls]
    assert calls and all(isinstance(call["function"]["arguments"], dict) for call in calls)
    names = {tool["name"] for r in glaive for tool in r.tools}
    assert {call["function"]["name"] for call in calls} <= names
    for record in read_rows(Path(DATA, "preference/hh_harmless_base_test.jsonl.gz")):
        assert record.prompt[0].content.startswith("\n\nHuman:") and record.prompt[0].content.endswith("\n\nAssistant:")
        assert not any("\n\nHuman:" in response[0].content for response in record.responses)
