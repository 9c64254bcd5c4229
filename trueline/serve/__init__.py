"""Serving: ids in, ids out. The engine (torch) over a scheduler, stop strings and noise that work without torch."""
