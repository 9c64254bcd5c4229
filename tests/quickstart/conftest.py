"""One harvest of the standard library for the tests of this room: seconds, and on every machine."""

from __future__ import annotations

import pytest

from trueline.quickstart.harvest import Harvest, harvest_packages
from trueline.quickstart.pep257 import Prose, learn_prose
from trueline.quickstart.sources import standard_library
from trueline.quickstart.splits import Split, split


@pytest.fixture(scope="session")
def library() -> Harvest:
    return harvest_packages(standard_library())


@pytest.fixture(scope="session")
def library_split(library: Harvest) -> Split:
    return split(library.functions)


@pytest.fixture(scope="session")
def prose(library_split: Split) -> Prose:
    return learn_prose(f.summary for f in library_split.train)
