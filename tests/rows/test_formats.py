"""Each published format, by a row of its kind: recognised, and read as the record it means."""

import pytest

from trueline.records import TEXT, Comparison, Conversation, Counts, Document, Message, Ranking, Rating
from trueline.rows.formats import detect, form
from trueline.rows.messages import At, Reject


def read(row, name=None, **how):
    found = detect([row])
    assert found is not None
    if name is not None:
        assert found.name == name
    at = At(source="f.jsonl:1", **how)
    records = found.convert(row, at)
    assert all(isinstance(record, found.record) for record in records)
    return records[0]


def said(role, content):
    return {"role": role, "content": content}


def shape(messages):
    return [(m.role, m.content, m.train) for m in messages]


USER, ANSWER = said("user", "Why?"), said("assistant", "Because.")
OTHER = said("assistant", "No idea.")


def test_text():
    document = read({"text": " a ", "url": "u", "id": 0, "meta": {"x": 1}}, "TRL language modelling")
    assert document == Document(text=" a ", id="0", source="f.jsonl:1", meta={"url": "u", "x": 1})


def test_messages_openai():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            said("system", "Be kind."),
            USER,
            {**ANSWER, "weight": 0},
            {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}], "name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {**ANSWER, "weight": 1},
        ],
        "tools": '[{"type": "function"}]',
    }  # fmt: skip
    conversation = read(row, "chat messages (TRL, OpenAI)")
    assert [m.train for m in conversation.messages] == [True, True, False, True, True, True, True]
    assert conversation.messages[3] == Message(role="user", content="And now?", name="Ann")
    assert conversation.messages[4].content == ""
    assert conversation.messages[4].tool_calls == (
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
    )
    assert conversation.tools == ({"type": "function"},)


def test_prompt_completion():
    plain = read({"prompt": "The sky is", "completion": " blue."}, "TRL prompt-completion")
    assert shape(plain.messages) == [(TEXT, "The sky is", False), (TEXT, " blue.", True)]
    assert form(plain) == "plain"
    chat = read({"prompt": [USER], "completion": [ANSWER]}, "TRL prompt-completion")
    assert shape(chat.messages) == [("user", "Why?", False), ("assistant", "Because.", True)]
    assert read({"prompt": [USER, ANSWER, USER], "completion": "Yes."}).messages[1].train is False
    assert form(chat) == "conversational"


def test_prompt_only():
    assert shape(read({"prompt": "The sky is"}, "TRL prompt-only").messages) == [(TEXT, "The sky is", False)]
    assert shape(read({"prompt": [USER]}, "TRL prompt-only").messages) == [("user", "Why?", False)]


def test_preference():
    plain = read(
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "annotator": "ann"}, "TRL preference"
    )
    assert plain == Comparison(
        prompt=(Message(role=TEXT, content="The sky is", train=False),),
        responses=((Message(role=TEXT, content=" blue."),), (Message(role=TEXT, content=" green."),)),
        judgement=Ranking((1, 2)),
        source="f.jsonl:1",
        annotator="ann",
    )
    chat = read({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}, "TRL preference")
    assert shape(chat.responses[0]) == [("assistant", "Because.", True)]
    assert read({"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}) == chat  # UltraFeedback's way
    assert read({"prompt": [USER], "chosen": "Because.", "rejected": "No idea."}) == chat


def test_implicit_prompt_is_cut_at_a_turn_or_a_word():
    name = "TRL preference with implicit prompt"
    chat = read({"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, ANSWER, USER, OTHER]}, name)
    assert [m.content for m in chat.prompt] == ["Why?", "Because.", "Why?"]
    assert not any(m.train for m in chat.prompt)
    for chosen, rejected, prompt in [
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("The sky is  blue.", "The sky is  red.", "The sky is"),
        ("The sky is blue", "The sky is blue and", "The sky is"),
        ("Q: a\nb", "Q: a\nc", "Q: a"),
    ]:
        plain = read({"chosen": chosen, "rejected": rejected}, name)
        assert plain.prompt[0].content == prompt
        assert [prompt + r[0].content for r in plain.responses] == [chosen, rejected]


HH = "\n\nHuman: Hi\n\nAssistant: Hello. How?\n\nHuman: Pens\n\nAssistant:"


def test_hh_transcripts_are_cut_at_the_last_assistant_mark_they_share():
    row = {"chosen": HH + " Sure, no.", "rejected": HH + " Sure, yes."}
    plain = read(row, "HH-RLHF transcripts")
    assert plain.prompt[0].content == HH  # not "... Sure,"
    assert [r[0].content for r in plain.responses] == [" Sure, no.", " Sure, yes."]
    chat = read(row, chat=True)
    assert shape(chat.prompt) == [("user", "Hi", False), ("assistant", "Hello. How?", False), ("user", "Pens", False)]
    assert [r[0].content for r in chat.responses] == ["Sure, no.", "Sure, yes."]


def test_unpaired():
    rating = read({"prompt": "The sky is", "completion": " blue.", "label": True}, "TRL unpaired preference")
    assert rating == Rating(
        prompt=(Message(role=TEXT, content="The sky is", train=False),),
        response=(Message(role=TEXT, content=" blue."),),
        label=True,
        source="f.jsonl:1",
    )
    assert read({"prompt": [USER], "completion": [ANSWER], "label": "false"}).label is False
    assert read({"prompt": [USER], "completion": [ANSWER], "label": 1}).label is True
    assert read({"prompt": [USER], "completion": [ANSWER], "score": "2.5"}).score == 2.5
    assert read({"prompt": [USER], "completion": [ANSWER], "counts": [0, 3, 1]}).counts == (0.0, 3.0, 1.0)
    kto = read({"messages": [USER, ANSWER], "label": False}, "messages with a label")
    assert (kto.label, shape(kto.prompt)) == (False, [("user", "Why?", False)])


def test_alpaca_as_turns_and_in_its_two_templates():
    with_input = {"instruction": "Add.", "input": "1 1", "output": "2"}
    without = {"instruction": "Hi.", "input": "", "output": "Hello."}
    assert shape(read(with_input, "Alpaca").messages) == [("user", "Add.\n\n1 1", False), ("assistant", "2", True)]
    assert shape(read(without, "Alpaca").messages)[0] == ("user", "Hi.", False)
    text = read(with_input, chat=False).messages
    assert text[0].content == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:"
    )
    assert [m.role for m in text] == [TEXT, TEXT] and text[1].content == "2"
    assert read(without, chat=False).messages[0].content == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHi.\n\n### Response:"
    )
    assert read({"instruction": "Hi.", "response": "Hello."}, "Alpaca").messages[1].content == "Hello."
    longer = read({**without, "system": "Be kind.", "history": [["a", "b"]]}).messages
    assert [m.role for m in longer] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.train for m in longer] == [False, False, False, False, True]


def test_sharegpt():
    turns = [("gpt", "I was talking."), ("human", "Who?"), ("chatgpt", "Me."), ("user", "Hm."), ("bing", "Yes.")]
    at = At(source="f:1")
    row = {"items": [{"from": who, "value": what} for who, what in turns], "system": "Be kind."}
    found = detect([row])
    assert found is not None and found.name == "ShareGPT"
    (conversation,) = found.convert(row, at)
    assert [m.role for m in conversation.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert at.notes == {"leading turns before the first human turn dropped": 1}
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
    tools = read(
        {
            "conversations": [
                {"from": "human", "value": "Do."},
                call,
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "Done."},
            ]
        }
    )
    assert [m.role for m in tools.messages] == ["user", "assistant", "tool", "assistant"]
    assert tools.messages[1].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}


def test_preference_of_other_tools():
    sharegpt = {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "Because."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    alpaca = {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No."}
    expected = read({"prompt": [USER], "chosen": "Because.", "rejected": "No."})
    assert read(sharegpt, "ShareGPT preference") == read(alpaca, "Alpaca preference") == expected


def test_ours():
    row = {"prompt": [USER], "responses": ["a", [OTHER], "c"], "ranks": [2, 1, 2], "source": "s", "time": "2026-01-01"}
    ranked = read(row, "Trueline comparisons")
    assert isinstance(ranked, Comparison)
    assert (ranked.judgement, ranked.source, ranked.time) == (Ranking((2, 1, 2)), "s", "2026-01-01")
    assert [r[0].role for r in ranked.responses] == ["assistant"] * 3
    counted = read({"prompt": "p", "responses": ["a", "b"], "counts": [3, 0.5]})
    assert counted.judgement == Counts((3.0, 0.5))


def test_others():
    assert shape(read({"question": "1+1?", "answer": "2"}).messages) == [
        ("user", "1+1?", False),
        ("assistant", "2", True),
    ]
    assert shape(read({"turns": ["a", "b"]}).messages) == [("user", "a", False)]
    assert shape(read({"instruction": "a", "input": "b"}).messages) == [("user", "a\n\nb", False)]
    tasks = {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "0"}]}
    found = detect([tasks])
    assert found is not None and len(found.convert(tasks, At(source=""))) == 2
    assert isinstance(read({"content": "x"}), Document)
    assert detect([{"a": 1}]) is None
    assert detect([{"prompt": "x", "chosen": None, "rejected": None}]).name == "TRL prompt-only"  # nulls of Parquet


@pytest.mark.parametrize(
    ("row", "judgement"),
    [
        ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_b"}, Ranking((2, 1))),
        (
            {"prompt": "p", "completion_a": "a", "completion_b": "b", "preference": "a-is-slightly-better"},
            Ranking((1, 2)),
        ),
        ({"question": "p", "answer_1": "a", "answer_2": "b", "winner": "tie"}, Ranking((1, 1))),
        ({"instruction": "p", "output_1": "a", "output_2": "b", "preference": 2}, Ranking((2, 1))),
        ({"instruction": "p", "output_1": "a", "output_2": "b", "preference": 1.25}, Counts((0.75, 0.25))),
        ({"instruction": "p", "output_1": "a", "output_2": "b", "preference": 1.5}, Ranking((1, 1))),
        (
            {"instruction": "p", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 0, "annotator3": 1},
            Counts((2.5, 0.5)),
        ),
        (
            {
                "conversation_a": [said("user", "p"), said("assistant", "a")],
                "conversation_b": [said("user", "p"), said("assistant", "b")],
                "winner": "model_a",
            },
            Ranking((1, 2)),
        ),
    ],
)
def test_verdicts_that_say_what_they_mean(row, judgement):
    record = read(row)
    assert record.judgement == judgement
    assert [r[0].content for r in record.responses] == ["a", "b"]
    assert shape(record.prompt) == [("user", "p", False)]


def test_a_numeric_verdict_is_never_guessed():
    row = {"prompt": "p", "response 1": "a", "response 2": "b", "label": 1}
    with pytest.raises(Reject, match="needs a meaning"):
        read(row, "two responses and a verdict")
    assert read(row, verdict={"0": "first", "1": "second", "2": "tie"}).judgement == Ranking((2, 1))
    assert read(row, verdict={"1": "first", "2": "second"}).judgement == Ranking((1, 2))
    with pytest.raises(Reject, match="no meaning"):
        read(row, verdict={"a": "first"})


LONG = "A question of more than twenty characters?"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": " \n"}, "empty text"),
        ({"text": "\ud800"}, "surrogate"),
        ({"text": 7}, "not a string"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "x"}, "neither a list nor JSON"),
        ({"messages": ["x"]}, "not a message"),
        ({"messages": [USER, said("assistant", " ")]}, "empty assistant message"),
        ({"messages": [USER, said("assistant", None)]}, "assistant is not a string"),
        ({"messages": [said("critic", "x")]}, "unknown role 'critic'"),
        ({"messages": [{"content": "x"}]}, "no role"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "weight"),
        ({"messages": [ANSWER]}, "no user turn before the assistant"),
        ({"messages": [USER, USER]}, "two user turns"),
        ({"messages": [USER, ANSWER, ANSWER]}, "two assistant turns"),
        ({"messages": [USER, said("system", "x")]}, "system message that is not the first"),
        ({"messages": [USER, said("tool", "x")]}, "tool turn that follows no assistant"),
        ({"messages": [said("system", "x")]}, "nothing but a system message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "other than text"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "equal"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "empty text"),
        ({"prompt": LONG, "chosen": LONG + " a", "rejected": LONG + " b"}, "repeat their prompt"),
        ({"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "repeat their prompt"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": "x"}, "one of chosen and rejected is plain"),
        ({"prompt": [USER, ANSWER], "chosen": [ANSWER], "rejected": [OTHER]}, "two assistant turns"),
        ({"chosen": "a", "rejected": "b"}, "share no prompt"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "equal"),
        ({"chosen": [USER], "rejected": [USER, ANSWER]}, "beginning of the other"),
        ({"chosen": [USER, ANSWER, USER], "rejected": [USER, ANSWER, OTHER]}, "not begin with an assistant turn"),
        ({"chosen": HH + " a\n\nHuman: x\n\nAssistant: y", "rejected": HH + " b"}, "part before their last turn"),
        ({"prompt": "p", "completion": "c", "label": "good"}, "neither true nor false"),
        ({"prompt": "p", "completion": "c", "score": float("inf")}, "not finite"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, "not one rank or count"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [0, 1]}, "whole numbers"),
        ({"prompt": "p", "responses": ["a", "b"], "counts": [0, 0]}, "all 0"),
        ({"prompt": "p", "responses": ["a", "a"], "ranks": [1, 2]}, "equal"),
        ({"instruction": "p", "output_1": "a", "output_2": "b", "preference": 3}, "between 1 and 2"),
        ({"instruction": "p", "output": " "}, "empty output"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "no human turn"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row, reason):
    with pytest.raises(Reject, match=reason):
        read(row)


def test_short_prompts_may_be_repeated_and_equal_responses_may_tie():
    assert isinstance(read({"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"}), Comparison)
    assert isinstance(read({"prompt": "p", "responses": ["a", "a", "b"], "ranks": [1, 1, 2]}), Comparison)


def test_an_empty_system_message_is_dropped_and_counted():
    at = At(source="")
    row = {"messages": [said("system", ""), USER, ANSWER]}
    found = detect([row])
    assert found is not None
    (conversation,) = found.convert(row, at)
    assert isinstance(conversation, Conversation) and len(conversation.messages) == 2
    assert at.notes == {"empty system message dropped": 1}
