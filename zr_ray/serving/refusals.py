"""The two ways to say no to a whole HTTP request."""

from __future__ import annotations

from zr_ray.errors import DataError


class Refusal(Exception):
    """An HTTP error reply."""

    def __init__(self, http_status: int, status: str, message: str) -> None:
        super().__init__(message)
        self.http_status, self.status = http_status, status


class WireError(DataError):
    """The body as a whole cannot be read. First argument: one line; second: the HTTP status, 400 unless said
    otherwise."""

    @property
    def http_status(self) -> int:
        return self.args[1] if len(self.args) > 1 else 400

    def __str__(self) -> str:
        return self.args[0]
