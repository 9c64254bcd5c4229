"""The readers of strangers' bytes under atheris, which looks for inputs that reach new code; `make fuzz` installs and runs it.

    python -m tests.fuzz.coverage_guided rows|header|template SECONDS

Ends with 0 when nothing was found. A finding is a traceback, and a file (its path is printed) that repeats it:
`python -m tests.fuzz.coverage_guided rows 0 FILE`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: pip install atheris (it exists for Linux and macOS)")

with atheris.instrument_imports(include=["trueline.rows", "trueline.models.header", "trueline.tokens"]):
    from tests.fuzz.conftest import sentence_or_nothing
    from tests.fuzz.test_rows import FILES, ROWS, WANTED, check_file, check_rows
    from trueline.models.header import read_header
    from trueline.rows.readers import parse_json
    from trueline.tokens.template import ChatTemplate

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
NAMES = sorted(FILES)
TALK = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello."}]


def rows(data: bytes) -> None:
    """A byte for the kind of file, one for what is wanted, and the file. Kind len(NAMES): JSON lines that can be written, too."""
    if len(data) < 2:
        return
    kind, wanted = data[0] % (len(NAMES) + 1), WANTED[data[1] % len(WANTED)]
    if kind < len(NAMES):
        check_file(NAMES[kind], data[2:], wanted, FOLDER)
        return
    try:
        found = [parse_json(line) for line in data[2:].decode("utf-8").splitlines()]
    except (ValueError, RecursionError):
        return
    objects = [value for value in found if isinstance(value, dict)]
    if objects:
        check_rows(objects, wanted, FOLDER)


def header(data: bytes) -> None:
    """What is accepted, the format's own library accepts with the same shapes."""
    path = FOLDER / "model.safetensors"
    path.write_bytes(data)
    if sentence_or_nothing(lambda: read_header(path)):
        return
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {name: stored.shape for name, stored in read_header(path).items()}


def template(data: bytes) -> None:
    """A chat template, and where its turns are."""
    source = data.decode("utf-8", errors="ignore")
    sentence_or_nothing(lambda: ChatTemplate(source, {"eos_token": "</s>"}).turns(TALK, ["</s>", "<|im_end|>"]))


def seeds(target: str) -> dict[str, bytes]:
    """What the search begins with."""
    if target == "rows":
        lines = "\n".join(map(json.dumps, ROWS)).encode()
        files = {name: bytes([number, 0]) + FILES[name] for number, name in enumerate(NAMES)}
        return files | {"lines": bytes([len(NAMES), 0]) + lines}
    if target == "header":
        import numpy as np
        from safetensors.numpy import save

        return {"two": save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(0, np.int8)}), "none": save({})}
    from tests.fuzz.test_models import PIECES
    from tests.tokens.test_sandbox import GREEDY
    from trueline.tokens.template import CHATML

    return {str(i): text.encode() for i, text in enumerate((CHATML, "".join(PIECES), *GREEDY.values()))}


def main(target: str, seconds: str, *repeat: str) -> None:
    """Search for so long, or repeat one finding."""
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for name, data in seeds(target).items():
        (corpus / name).write_bytes(data)
    given = list(repeat) or [f"-max_total_time={seconds}", str(corpus)]
    options = [f"-artifact_prefix={FOLDER}/", "-max_len=2048", "-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, *given], {"rows": rows, "header": header, "template": template}[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
