"""What a server allows, and for how long. No third-party imports: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one request and one client may ask for."""

    max_waiting: int = 512
    """Prompts that may wait or run at once; one more is answered with 503 and Retry-After."""
    max_connections: int = 1024
    """Open connections; requests on more are answered with 503, and twice as many are the most."""
    max_body_bytes: int = 8 << 20
    """Largest body of a request."""
    max_prompt_tokens: int = 0
    """Longest prompt; 0: what the model's context holds."""
    max_tokens: int = 0
    """Longest response that may be asked for; 0: what the model's context leaves."""
    max_responses: int = 256
    """Responses of one request: prompts times n (or best_of, or beams)."""
    max_logprobs: int = 1 << 20
    """Log-probs of one answer: its tokens (with echo, the prompt's too) times one more than the likeliest ones asked for."""
    requests_per_minute: int = 0
    """For each client address; more are answered with 429 and Retry-After. 0: no limit."""
    request_seconds: float = 600.0
    """Longest time for one request."""
    body_seconds: float = 30.0
    """Longest time in which a client may send a request."""
    write_seconds: float = 30.0
    """A client that reads nothing for so long is cut off."""
    drain_seconds: float = 30.0
    """After SIGTERM, how long running requests may take to finish."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf") or (value == 0 and field.name not in FREE):
                raise ValueError(f"{field.name} is {value}: it must be {'0 or more' if field.name in FREE else 'above 0'}")


FREE = ("max_prompt_tokens", "max_tokens", "requests_per_minute", "drain_seconds")
"""These may be 0."""
