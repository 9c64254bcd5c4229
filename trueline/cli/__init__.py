"""`trueline VERB`: parsing and printing only.

    main -> verbs.find(words) -> options.parse(class of the verb, flags + YAML) -> its run()

A user's mistake (ValueError or OSError raised by our own code) becomes one sentence and exit code 2; anything else keeps its
traceback. `trueline --help` reads the verbs without importing them: neither torch nor tyro is loaded.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType

from trueline import __version__
from trueline.cli import verbs

PACKAGE = str(Path(__file__).parent.parent)
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
"""A full disk, a used-up quota, a file beyond the limit of its size."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing has to be saved; inside the training loop it is answered there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    before = signal.getsignal(signal.SIGTERM)
    ours = before is signal.SIG_DFL and threading.current_thread() is threading.main_thread()
    try:
        if ours:
            signal.signal(signal.SIGTERM, terminate)
        return dispatch(words)
    except KeyboardInterrupt as stop:
        again = "; the same command goes on from the last checkpoint" if words and words[0] in verbs.methods() else ""
        complain(f"stopped{again}")
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except BrokenPipeError:  # `trueline ... | head`: whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        complain(f"error: {' '.join(sentence.split())}")
        return 2
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def terminate(number: int, frame: FrameType | None) -> None:
    """End as on Ctrl-C, so that what was begun is cleared away."""
    raise Terminated


def dispatch(words: list[str]) -> int:
    """Find the verb, give it its options, run it."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(verbs.overview())
        return 0
    if words[0] == "--version":
        print(f"trueline {__version__}")
        return 0
    if len(words) == 1 or (len(words) == 2 and words[1] in ("-h", "--help")):
        family = verbs.family(words[0])
        if family:
            print(family)
            return 0
    verb, rest = verbs.find(words)
    from trueline.cli import options

    command = options.parse(verbs.load(verb), rest, prog=f"trueline {verb.name}")
    if command is not None:
        command.run()
    return 0


def explain(error: Exception) -> str | None:
    """The sentence for a user's mistake or a full memory; None for a defect, whose traceback must be seen."""
    if out_of_memory(error):
        return "out of memory: lower --max_tokens_per_batch or --max_length, or switch on --gradient_checkpointing"
    if "No space left on device" in str(error) or (isinstance(error, OSError) and error.errno in FULL):
        where = f" where {error.filename} goes" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}: make room, and the same command goes on from what was saved"
    if isinstance(error, OSError) and error.filename is not None:
        said = f"{error.filename}: {error.strerror}"
        if isinstance(error, NotADirectoryError | FileExistsError):
            return f"{said}; a folder is needed there: choose another name"
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return f"{said}; choose another place, or change who may read and write there"
        return said
    if isinstance(error, ValueError | OSError) and raised_by_us(error.__traceback__):
        return str(error)
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether the machine's memory, or its GPU's, did not suffice. A name for torch's error, which is not imported here."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def raised_by_us(traceback: TracebackType | None) -> bool:
    """A ValueError is a message to the user when our code wrote it; one from a library is a defect of ours."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(PACKAGE)


def complain(sentence: str) -> None:
    """One line on the error stream."""
    print(sentence, file=sys.stderr)
