"""What a request may ask for: each wrong value is named in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trueline.records import Sampling
from trueline.serve.request import Constraint, Options, check_options, check_sampling


def test_sound_values_pass() -> None:
    sampling = Sampling(repetition_penalty=0.8, presence_penalty=-2, frequency_penalty=2, logit_bias=((0, -100.0), (9, 100.0)))
    check_sampling(sampling, 10, False)
    check_options(Options(top_logps=10, prompt_logps=True, lookup=5, constraint=Constraint("json")), sampling, 10, True)
    check_options(Options(beams=5, length_penalty=-0.5), Sampling(n=5), 10, False)
    check_options(Options(beams=2), Sampling(temperature=0), 10, False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("repetition_penalty", float("nan")),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("-inf")),
        ("logit_bias", ((10, 1.0),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1, float("nan")),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
    ],
)
def test_a_wrong_sampling_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        check_sampling(replace(Sampling(), **{field: value}), 10, True)


@pytest.mark.parametrize(
    ("options", "sampling", "said"),
    [
        (Options(top_logps=11), Sampling(), "top_logps"),
        (Options(top_logps=-1), Sampling(), "top_logps"),
        (Options(lookup=65), Sampling(), "lookup"),
        (Options(beams=6), Sampling(), "beams"),
        (Options(beams=-1), Sampling(), "beams"),
        (Options(beams=2, length_penalty=float("nan")), Sampling(), "length_penalty"),
        (Options(constraint=Constraint("json")), Sampling(), "tokenizer"),
        (Options(beams=2), Sampling(n=3), "n=3"),
        (Options(beams=2), Sampling(temperature=0.5), "own log-probs"),
        (Options(beams=2), Sampling(logit_bias=((1, 1.0),)), "own log-probs"),
        (Options(beams=2, lookup=3), Sampling(), "leave these out"),
        (Options(beams=2), Sampling(stop=("x",)), "leave these out"),
    ],
)
def test_wrong_options_are_named(options: Options, sampling: Sampling, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_options(options, sampling, 10, False)
