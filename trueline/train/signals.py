"""SIGTERM and Ctrl-C ask the loop to save and end; a second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """A list that fills when a signal comes. Outside the main thread python delivers none, so nothing is installed."""
    got: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield got
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        got.append(signal.Signals(number))
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
