"""Messages in, replies out: one client for every OpenAI-compatible server.

Teacher, label giver, judge and marker share it. A question goes one way through few doors: the
cache, which knows replies by content; the ledger, which sets aside what the request may cost
before it is sent; the server. The API key is read from the environment, goes into a header and
nowhere else.
"""

from selfcal.chat.cache import Cache, cache_file
from selfcal.chat.client import ChatClient, Keeping
from selfcal.chat.errors import ChatError, SpentError
from selfcal.chat.ledger import Ledger, spent_in
from selfcal.chat.messages import Asked, Message, marked, user_message
from selfcal.chat.reply import Reply, Usage

__all__ = [
    "Asked",
    "Cache",
    "ChatClient",
    "ChatError",
    "Keeping",
    "Ledger",
    "Message",
    "Reply",
    "SpentError",
    "Usage",
    "cache_file",
    "marked",
    "spent_in",
    "user_message",
]
