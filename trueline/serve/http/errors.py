"""Refusals in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from typing import Any

TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_overloaded",
}  # fmt: skip
RETRY_SECONDS = 1
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class Refusal(Exception):
    """What the client did wrong, or why it has to wait."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after if retry_after is not None or status != 503 else RETRY_SECONDS

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer. Clients retry 408 by themselves; for a request that took too long that would be a second waste."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        if self.status == 408:
            found["x-should-retry"] = "false"
        return found

    @property
    def content(self) -> dict[str, Any]:
        """The body."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": clean(self.message), "type": kind, "param": self.param and clean(self.param), "code": self.code}
        return {"error": error}


def clean(text: str) -> str:
    """Without what no UTF-8 can hold: messages may quote a request."""
    return text.encode("utf-8", "replace").decode("utf-8")


def dumps(content: Any) -> bytes:
    """JSON as small as it gets."""
    return ENCODER.encode(content).encode("utf-8")
