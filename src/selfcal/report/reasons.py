"""Why something was left out, in plain words."""

from __future__ import annotations

from selfcal.types import Drop
from selfcal.view.text import safe

WORDS = {
    "no-gap": "all candidates count the same: there is no better and no worse one",
    "below-margin": "best and worst are closer than the margin asks for",
    "one-candidate": "the search found one response only: there is nothing to compare it with",
    "no-candidate": "the search found no response that can be used",
    "duplicate": "the same response was found twice; one is kept",
    "empty": "the response is empty",
    "unscored": "no comparison could be read",
    "budget": "the budget of generated tokens was spent before its turn",
    "answer-disagrees": "the teacher's rationale arrives at another answer than the reference",
    "no-rationale": "the teacher gave no rationale",
    "format": "the text is not in the format of a rationale and an answer",
    "no-answer": "there is no answer to go by",
    "all-right": "all candidates answer right: there is no wrong one to reject",
    "all-wrong": "all candidates answer wrong: there is no right one to choose",
    "unanimous": "all candidates give the same answer",
    "tied": "no answer has more votes than the others",
    "teacher-no-better": "the teacher's rationale was not judged better either",
    "no-facts": "no visual facts could be written for it",
    "overlong": "it is longer than the training's longest text",
    "unreadable-label": "the label-giving judge's reply could not be read",
    "all-equal": "all responses are ranked the same",
    "one-response": "there is one response only: nothing to rank",
    "image-mark-in-response": "the response holds a mark that would be read as an image",
    "short": "a sentence was shorter than search.min_characters",
    "long": "a response got longer than search.max_characters",
    "degenerate": "a sentence said nothing, stuttered, or repeated another",
    "nothing-to-mend": "the mended response says the same as the policy's own",
    "same": "chosen and rejected say the same",
}
"""By the reason's short name."""


def in_words(drop: Drop) -> str:
    """A reason as a sentence's part; one that is not known, by its name."""
    return WORDS.get(drop.reason, safe(drop.reason[:200]).replace("-", " "))
