"""A response as a Sample. No torch."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from trueline.records import Sample
from trueline.serve.request import Running


def sample_of(running: Running, reason: str, version: str) -> Sample:
    """A response as it stands."""
    request = running.request
    return Sample(
        prompt_ids=request.ids,
        ids=np.array(running.ids, dtype=np.int32),
        logps=np.array(running.logps, dtype=np.float32),
        mask=np.ones(len(running.ids), dtype=bool),
        finish_reason=reason,
        group=blake2b(request.ids.tobytes(), digest_size=8).hexdigest(),
        temperature=request.sampling.temperature,
        policy=version,
    )
