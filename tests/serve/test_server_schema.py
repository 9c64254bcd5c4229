"""The server keeps what its OpenAPI description promises: schemathesis tries valid and invalid requests against it.

Answers of 400 to requests that the description allows are right: that prompt and context fit together, that an id lies in the vocabulary,
that two fields go together is nothing that a JSON schema can say. Everything else is checked as it comes: no 5xx, only described statuses,
content types, headers and bodies, and refusal of whatever the description does not allow.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.serving import Told, live
from trueline.models.decoder import Decoder
from trueline.serve.engine import Engine
from trueline.serve.http.limits import Limits
from trueline.tokens.tokenizer import Tokenizer

CONFIG = '[checks]\npositive_data_acceptance.expected-statuses = ["2xx", 400, 404]\n'
LIMITS = Limits(max_responses=8, max_tokens=8)


def tried(url: str, folder: Path, *words: str) -> None:
    """schemathesis finds nothing wrong."""
    (folder / "schemathesis.toml").write_text(CONFIG, encoding="utf-8")
    program = str(Path(sys.executable).with_name("schemathesis"))
    settings = ["--config-file", str(folder / "schemathesis.toml")]
    command = [program, *settings, "run", f"{url}/openapi.json", "--no-color", "--checks", "all", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "6 selected / 6 total" in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.sample
def test_a_sample(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Over an engine that takes no time."""
    with live(Told(model, tokenizer.encode("The café")), tokenizer, limits=LIMITS) as server:
        tried(server.url, tmp_path, "--phases", "examples,fuzzing", "--max-examples", "8", "--generation-deterministic")


@pytest.mark.slow
def test_at_length(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Over a real one."""
    with live(Engine(model, tokenizer), tokenizer, limits=LIMITS) as server:
        tried(server.url, tmp_path, "--max-examples", "100")
