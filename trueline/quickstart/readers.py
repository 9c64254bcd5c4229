"""Files read by several processes, each on a core of its own: parsing is Python's, and one process would take a minute or two.

    files --dealt out in turn--> python -m trueline.quickstart.readers JOBS --one line of JSON per file--> in the order of the files

The processes are started anew and not forked, so this works wherever Python does, whatever threads are running. What a process did not
answer for (it was killed, or could not be started) is read here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from trueline.quickstart.functions import Reading, as_function, read_file
from trueline.store import write_atomic

MOST = 4
"""Processes; more would hardly be faster than the disk."""
MIN_FILES = 200
"""Fewer are read by this process alone."""


def read_all(files: Sequence[tuple[str, Path, Path]]) -> Generator[Reading]:
    """What each (package, root, path) holds, in order."""
    workers = min(MOST, os.cpu_count() or 1)
    if workers == 1 or len(files) < MIN_FILES:
        yield from (read_file(*file) for file in files)
        return
    with tempfile.TemporaryDirectory(prefix="trueline-") as folder, contextlib.ExitStack() as stack:
        streams = [start(files[number::workers], Path(folder) / f"{number}.json", stack) for number in range(workers)]
        for number, file in enumerate(files):
            yield received(streams[number % workers]) or read_file(*file)


def start(files: Sequence[tuple[str, Path, Path]], jobs: Path, stack: contextlib.ExitStack) -> IO[str] | None:
    """The answers of a process that reads these files; None where none can be started."""
    write_atomic(jobs, json.dumps([[package, str(root), str(path)] for package, root, path in files]))
    command = [sys.executable, "-m", __name__, str(jobs)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
    except OSError:
        return None
    stack.callback(process.wait)
    stack.callback(process.kill)  # before it is waited for
    return process.stdout


def received(stream: IO[str] | None) -> Reading | None:
    """The next answer of a process; None when there is none."""
    line = stream.readline() if stream is not None else ""
    if not line.endswith("\n"):
        return None
    characters, functions, dropped = json.loads(line)
    return Reading(characters=characters, functions=tuple(map(as_function, functions)), dropped=Counter(dropped))


def answer(jobs: Path) -> None:
    """Read what the file names, and print a line for each."""
    for package, root, path in json.loads(jobs.read_text(encoding="utf-8")):
        found = read_file(package, Path(root), Path(path))
        print(json.dumps([found.characters, [asdict(function) for function in found.functions], found.dropped]), flush=True)


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
