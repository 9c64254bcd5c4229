"""Files -> records: readers and writers, formats, mixtures, inspection. No torch, no tokens."""

from trueline.rows.inspection import Inspection, inspect, render
from trueline.rows.mixture import Mixture, mix
from trueline.rows.reading import Rows, read_prompts, read_rows
from trueline.rows.writing import write_rows

__all__ = ["Inspection", "Mixture", "Rows", "inspect", "mix", "read_prompts", "read_rows", "render", "write_rows"]
