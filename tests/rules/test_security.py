"""What SECURITY.md promises and no other test proves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from trueline.cli import options
from trueline.models.files import load_model
from trueline.records import Message
from trueline.tokens.template import ChatTemplate, TemplateError, messages_for_template


def test_code_beside_a_model_is_never_run(tmp_path: Path) -> None:
    """auto_map and a modeling file do nothing; the architecture is refused by name."""
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('this code was run')\n", encoding="utf-8")
    config = {
        "architectures": ["EvilForCausalLM"],
        "model_type": "evil",
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="EvilForCausalLM"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_templates_cannot_leave_the_sandbox(template: str) -> None:
    messages = messages_for_template((Message(role="user", content="Hi"),))
    with pytest.raises(TemplateError):
        ChatTemplate(template, {}).render(messages)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("seed: !!python/object/apply:os.system ['exit 1']\n", encoding="utf-8")
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(path.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="is not YAML"):
        options.yaml_values(path, {}, "trueline sft")
