"""What can go wrong between a question and its reply."""

from __future__ import annotations

from selfcal.errors import SelfcalError


class ChatError(SelfcalError):
    """A server gave no usable reply: the text names address, status and way out."""


class SpentError(SelfcalError):
    """A budget is spent: the text says what was spent and how to go on."""
