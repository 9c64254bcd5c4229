"""A chat template is a stranger's program: whatever it does, it ends, and the memory stays small."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trueline.tokens.sandbox import STEPS, Sandbox
from trueline.tokens.template import CHATML, ChatTemplate

TALK = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}] * 3
GREEDY = {
    "times": '{{ "x" * 10**10 }}',
    "times a variable": "{% set n = 100000 * 100000 %}{{ n * messages[0].content }}",
    "a list": "{{ ([1] * 10**10) | length }}",
    "power": "{{ 10 ** 10000000000 }}",
    "squares": "{% set ns = namespace(x=7) %}{% for i in range(90) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x % 5 }}",
    "doubled": "{% set ns = namespace(x='ab') %}{% for i in range(70) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled with a tilde": "{% set ns = namespace(x='ab') %}{% for i in range(70) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled in blocks": "{% set ns = namespace(x='ab') %}{% for i in range(70) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "doubled by replacing": "{% set ns = namespace(x='aa') %}{% for i in range(70) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
    "doubled by the filter": "{% set ns = namespace(x='aa') %}{% for i in range(70) %}"
    "{% set ns.x = ns.x | replace('a', ns.x) %}{% endfor %}",
    "joined": "{% set ns = namespace(x='aa') %}{% for i in range(70) %}{% set ns.x = ([ns.x] * 9) | join(ns.x) %}{% endfor %}",
    "joined by the method": "{% set ns = namespace(x='aa') %}{% for i in range(70) %}{% set ns.x = ns.x.join([ns.x] * 9) %}{% endfor %}",
    "a list of one long text, written": "{% set b = 'x' * 1000000 %}{{ [b] * 1000000 }}",
    "a list of one long text, as a string": "{% set b = 'x' * 1000000 %}{{ ([b] * 1000000) | string | length }}",
    "lists in lists, joined": "{% set b = ['x' * 1000000] * 1000 %}{{ ([b] * 1000) | join }}",
    "a list in a format": "{% set b = ['x' * 1000000] * 100000 %}{{ '{}'.format(b) }}",
    "one text in many fields": "{% set b = 'x' * 1000000 %}{{ ('{0}' * 100000).format(b) }}",
    "json of one long text": "{% set b = 'x' * 1000000 %}{{ ([b] * 1000000) | tojson }}",
    "a width within a format": "{{ '{:{w}}'.format(1, w=10000000000) }}",
    "a width": "{{ 'a' | center(10000000000) }}",
    "a method's width": "{{ 'a'.ljust(10000000000) }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "a format with a star": "{{ '%*d' % (10000000000, 1) }}",
    "the filter's format": "{{ '%10000000000d' | format(1) }}",
    "a shorter width": "{{ '%100000000d' | format(1) }}",
    "the method's format": "{{ '{:10000000000}'.format(1) }}",
    "an indent": "{{ messages | tojson(indent=1000000000) }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "loops over what is made lazily": "{% for a in range(99999) | map('string') %}{% for b in range(99999) | map('string') %}"
    "{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "filters": "{{ range(99999) | map('center', 99999) | list | length }}",
}
"""Each takes more than there is, or longer than anybody waits."""


def rendered(source: str) -> str:
    return ChatTemplate(source, {}).render(TALK)


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_templates_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^the chat template (takes more than 2,000,000 steps|fails)"):
        rendered(GREEDY[name])


@pytest.mark.skipif(sys.platform != "linux", reason="sizes are in kilobytes there")
def test_the_memory_stays_small() -> None:
    """Those that make text or numbers, one after the other in a new process: the most it ever held."""
    code = (
        "import resource; from tests.tokens.test_sandbox import GREEDY, rendered\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name, source in GREEDY.items():\n"
        "    try: 'loops' in name or name == 'calls' or rendered(source)\n"
        "    except ValueError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1 << 20  # 1 GiB


def test_what_real_templates_do_is_computed_as_before() -> None:
    """Every construct that is counted gives what jinja gives, and a long conversation is far from the bound."""
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {{ '-' * 3 ~ m.role ~ (1 + 2) }}"
        "{{ m.content | replace('B', 'b') | center(9) }}{{ '%s:%3d' % (m.role, 7) }}{{ '{:>4}'.format(m.role[:2]) }}"
        "{{ [m.role, 'x'] | join(', ') }}{{ ', '.join(['a', 'b']) }}{{ 2 ** 10 % 7 }}{{ m | tojson(indent=1) }}{% endfor %}"
        "{% for name, value in messages[0].items() %}{{ name }}{% else %}none{% endfor %}{% for x in missing %}{% else %}none{% endfor %}"
        "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ loop.revindex }}{% endfor %}{{ missing ~ 'a' }}"
    )
    text = rendered(source)
    assert text.startswith("1/6False ---user3Name a colour.user:  7  ususer, xa, b2{\n \"role\": \"user\",")
    assert text.endswith("rolecontentnone321a") and "6/6True ---assistant3  blue.  assistant:  7  asassistant" in text
    long = ChatTemplate(CHATML, {})
    assert len(long.render(TALK * 500)) > 100_000
    environment = long._compiled.environment
    assert environment._budget.left > 0.9 * STEPS
    huge = [{"role": "user", "content": "Name a colour. " * 1_000_000}]  # 15 MB: no context holds it, and it is no attack
    assert len(long.render(huge)) > 15_000_000
    long.render(TALK)
    assert environment._budget.left > 0.9999 * STEPS  # each conversation has the whole budget


@pytest.mark.parametrize(
    "source",
    [
        "{{ '{}\n{}'.format(a, b) }}",
        "{{ '%s %s' | format(a, b) }}",
        "{{ '%s %s' % (a, b) }}",
        "{{ '{} {} {}'.format(a, b, 1700000000) }}",
        "{{ [a, b] | join(c) }}",
        "{{ c.join([a, b]) }}",
        "{{ a.replace('y', b) }}",
        "{{ a | replace('y', b) }}",
        "{{ {'text': a} | tojson(indent=4) }}",
    ],
)
def test_long_texts_side_by_side_are_made(source: str) -> None:
    """What is made is as long as what is given: nothing multiplies."""
    texts = "{% set a = 'x' * 20000 %}{% set b = 'z' * 20000 %}{% set c = '-' * 2000 %}"
    assert 20_000 < len(rendered(texts + source)) < 50_000 or "replace" in source


def test_every_thread_has_a_budget_of_its_own() -> None:
    """What one thread renders takes nothing from the budget of another, which may be in the middle of a render."""
    source = "{% for _ in range(60) %}{% for _ in range(100) %}{{ messages[0].content }}{% endfor %}{% endfor %}"
    template = ChatTemplate(source, {})
    rendered = {"first": template.render([{"role": "user", "content": "x"}])}
    assert len(rendered["first"]) == 6_000
    environment = template._compiled.environment
    assert isinstance(environment, Sandbox)
    left = environment._budget.left

    def other() -> None:
        rendered["second"] = template.render([{"role": "user", "content": "x" * 40}])

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(rendered["second"]) == 40 * 6_000 and environment._budget.left == left  # it spent nothing of ours
