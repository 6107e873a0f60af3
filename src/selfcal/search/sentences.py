"""Where a sentence ends, seen from tokens: the rule is a response format's, on the text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from selfcal.clock import spent
from selfcal.rationale import HEADINGS, RapFormat


class Sentences:
    """Reads tokens as text, for one tokenizer and one format."""

    def __init__(self, tokenizer: Any, form: RapFormat = HEADINGS) -> None:
        """Read with `tokenizer`; sentences end by the marks of `form`."""
        self._form = form
        # a copy: a fast tokenizer must not serve two threads, and another one encodes prompts
        self._tokenizer = copy.deepcopy(tokenizer)
        self._widths: dict[int, int] = {}
        self._pieces: dict[int, bool] = {}
        self._said: dict[tuple[int | None, tuple[int, ...]], bool] = {}

    def marks(self, token: int) -> bool:
        """Whether a token has a character that can end a sentence; decoded once a token."""
        known = self._pieces.get(token)
        if known is None:
            ends = self._form.marks.characters
            known = self._pieces[token] = not ends.isdisjoint(self._plain([token]))
        return known

    def closed_by(self, token: int, last: int | None, own: Sequence[int]) -> bool:
        """Whether `token` begins the sentence after the one of tokens `own`.

        `last` is the token before `own`. Ask only where a token `marks`.
        """
        key = (last, (*own, token))
        if (known := self._said.get(key)) is None:
            with spent("tokenizer"):
                known = self._form.sentence_end(self.text(last, key[1])) is not None
            if len(self._said) >= _REMEMBERED:
                self._said.clear()
            self._said[key] = known
        return known

    def over(self, text: str) -> bool:
        """Whether a text has more than one sentence."""
        return self._form.sentence_end(text) is not None

    def text(self, last: int | None, tokens: Sequence[int]) -> str:
        """What tokens say after the token `last`.

        Decoded alone they would lose a space: SentencePiece drops it at the start of a text.
        """
        if last is None:
            return self._plain(tokens)
        if last not in self._widths:
            self._widths[last] = len(self._plain([last]))
        return self._plain([last, *tokens])[self._widths[last] :]

    def _plain(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


_REMEMBERED = 100_000
"""Sentences whose end is remembered: a model says many of them often."""
