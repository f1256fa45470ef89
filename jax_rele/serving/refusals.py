"""What a request is told that cannot be answered."""

from __future__ import annotations


class BadRequest(Exception):
    """A request that cannot be answered, in one line.

    Attributes:
      status: the HTTP status.
      error_type: its kind.
    """

    def __init__(self, message: str, status: int = 422, error_type: str = "validation"):
        super().__init__(message)
        self.status, self.error_type = status, error_type
