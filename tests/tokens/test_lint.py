"""The lint says what is wrong with a template and what to do about it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trueline.tokens.lint import Finding, lint_template
from trueline.tokens.tokenizer import Tokenizer

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + END }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = TURNS.replace("END", "'<|im_end|>\\n'") + PROMPT
OPEN = CHATML.replace("<|im_start|>", "### ").replace(
    "'<|im_end|>", "('<|im_end|>' if m.role == 'assistant' else '') + '"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% generation %}{{ m.content }}{% endgeneration %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}" + PROMPT
).replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}").replace(
    "{% endgeneration %}", "{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
)  # fmt: skip


def found(tok: Tokenizer) -> dict[str, Finding]:
    """Findings that are not ok, by check; each says what to do."""
    bad = {f.check: f for f in lint_template(tok) if f.level != "ok"}
    assert all(f.advice and f.message.endswith((".", "?")) for f in bad.values())
    return bad


def test_a_good_template_has_no_findings(families: SimpleNamespace) -> None:
    """ChatML by default; all checks say so."""
    assert found(families.plain) == {}
    assert [f.check for f in lint_template(families.plain)] == [
        "mask", "prefix", "generation prompt", "stop token", "bos", "padding", "injection", "system", "date"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "check", "level", "words"),
    [
        (TURNS.replace("END", "'\\n'") + PROMPT, "stop token", "error", "never learn to stop"),
        (MARKED, "stop token", "error", "never learn to stop"),
        (CHATML.replace("'<|im_start|>assistant\\n'", "''"), "generation prompt", "warning", "learns to write"),
        (CHATML.replace("{% for", "{{ strftime_now('%Y') }}{% for"), "date", "warning", "date"),
        (CHATML.replace("messages %}", "messages if m.role != 'system' %}"), "system", "warning", "drops"),
        (OPEN, "injection", "warning", "plain text"),
        (CHATML.replace("assistant\\n", "assistant\\n<think>\\n"), "mask", "error", "cannot be masked"),
        ("{% for", "mask", "error", "does not parse"),
    ],
)
def test_each_fault_is_found(families: SimpleNamespace, template: str, check: str, level: str, words: str) -> None:
    """One faulty template per check."""
    bad = found(families.chatml(template))
    assert bad[check].level == level and words in bad[check].message


def test_bos_and_padding(families: SimpleNamespace) -> None:
    """A BOS that both sides write; padding that is the stop token; earlier turns rewritten."""
    assert "double" in found(families.llama2)["bos"].message
    plain = families.plain
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    assert "padding" in found(Tokenizer(plain.spec, names=names))
    twice = "{{ bos_token + bos_token }}" + families.llama3.chat_template.replace("bos_token + text", "text")
    assert found(families.llama3.with_template(twice))["bos"].level == "error"
    assert "rewrites" in found(families.thinking)["prefix"].message
    assert found(families.llama3) == {} and "system" in found(families.gemma)
    assert found(Tokenizer(plain.spec, names={}))["padding"].level == "error"
