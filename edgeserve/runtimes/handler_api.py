"""What the author of a handler may import: nothing else of edgeserve is promised to them."""

from __future__ import annotations


class InvalidInputError(Exception):
    """Raise it in a handler when the client is to blame: its message is the answer, and nothing counts as a failure.

    Args:
        message: What is wrong with the input, for whoever sent it.
    """
