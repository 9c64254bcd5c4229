"""Chat templates that write what the families write, and small tokenizers with their special tokens (fixture `families`)."""

from __future__ import annotations

import json
from functools import cache
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, trainers

from trueline.tokens.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "def get_name(self, index=0):\n    '''Return the name.'''\n    if index:\n        return self.names[index]\n\n",
    "The sky is blue, and the answer is 42. User: hello. Assistant: hi there!\r\n\tOne, two, three.\n\n",
    "Écrire des mots à l'été 東京 привет 😀 assistant user system model\n",
    'aaa bbb ccc <b>bold</b> {"a": [1, 2.5, null]} https://example.org/?q=1 Question Answer Blue. Green, then.\n',
] * 3

QWEN = """\
{%- if tools %}{{- '<|im_start|>system\\nTools:\\n' }}{% for tool in tools %}{{- tool | tojson + '\\n' }}{% endfor %}{{- '<|im_end|>\\n' }}
{%- elif messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}{{- call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

QWEN_THINKING = """\
{%- set last = namespace(query=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set last.query = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > last.query %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

LLAMA3 = """\
{% for message in messages %}
    {%- set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.first %}{% set text = bos_token + text %}{% endif %}
    {{- text }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim + '\\n\\n' %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last or (loop.index0 == rest | length - 2 and rest[-1].role == 'assistant') %}
            {{- '[INST] ' + system + message['content'].strip() + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'].strip() + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'].strip() + eos_token }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

GENERATION = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content | trim + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{- message.content + '<|im_end|>' }}{% endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

MERGING = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content.split() | join(' ') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""Every run of white space becomes one space, none at the ends."""

TWICE = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""Cannot be masked: which copy is the answer?"""

OTHER_HEADER = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}
"""
"""Cannot be masked: sampling starts from a text that no trained conversation holds."""


@cache
def byte_level(
    specials: tuple[str, ...], template: str, bos: str | None = None, eos: str | None = None, split_digits: bool = True
) -> Tokenizer:
    """A small byte-level BPE with these special tokens."""
    made = train_tokenizer(TEXTS, vocab_size=450, specials=specials, split_digits=split_digits)
    names = {"bos_token": bos, "eos_token": eos or specials[0], "pad_token": specials[-1]}
    return Tokenizer(made.spec, names=names, chat_template=template)


@cache
def sentencepiece_like(template: str, metaspace: bool = False) -> Tokenizer:
    """Llama 2's kind: a dummy prefix, spaces as ▁, byte fallback, a BOS that the post-processor adds."""
    library = Library(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words = [word for text in TEXTS for word in text.replace(" ", " ▁").split(" ")]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    library.train_from_iterator(words, trainer)
    spec = json.loads(library.to_str())
    vocab = spec["model"]["vocab"]
    shift = 256  # the byte tokens follow the special ones, as in the family
    bytes_first = {f"<0x{b:02X}>": 3 + b for b in range(256)}
    spec["model"]["vocab"] = {t: i if i < 3 else i + shift for t, i in vocab.items()} | bytes_first
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    if metaspace:  # the newer form: one prefix before the first word only
        spec["normalizer"] = None
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Tokenizer(spec, names=names, chat_template=template)


CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
LLAMA3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|pad|>",
)
GEMMA_TOKENS = ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<pad>")
MISTRAL_TOKENS = ("<s>", "</s>", "<unk>")


@pytest.fixture(scope="session")
def families() -> SimpleNamespace:
    """Tokenizers by family, and `chatml(template)` for any template over ChatML's tokens."""
    return SimpleNamespace(
        texts=TEXTS,
        qwen=byte_level(CHATML_TOKENS, QWEN),
        thinking=byte_level(CHATML_TOKENS, QWEN_THINKING),
        llama3=byte_level(LLAMA3_TOKENS, LLAMA3, "<|begin_of_text|>", "<|end_of_text|>"),
        mistral=byte_level(MISTRAL_TOKENS, MISTRAL, "<s>", "</s>"),
        gemma=byte_level(GEMMA_TOKENS, GEMMA, "<bos>", "<eos>"),
        generation=byte_level(CHATML_TOKENS, GENERATION),
        merging=byte_level(CHATML_TOKENS, MERGING),
        llama2=sentencepiece_like(MISTRAL),
        metaspace=sentencepiece_like(MISTRAL, metaspace=True),
        plain=byte_level(CHATML_TOKENS, ""),
        chatml=lambda template: byte_level(CHATML_TOKENS, template),
        twice=TWICE,
        other_header=OTHER_HEADER,
    )
