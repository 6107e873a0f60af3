"""The RAP format: text in, rationale, answer and sentences out, and back.

A response is a rationale and an answer, in one of four `FORMATS`. The functions here are those of
`headings`: a rationale that ends in one line `Answer: ...`.
"""

from selfcal.rationale.answers import answers_agree, clean_answer, normalize_answer
from selfcal.rationale.formats import (
    ANSWER_HEADING,
    FORMATS,
    HEADINGS,
    RATIONALE_HEADING,
    RapFormat,
    continued,
)

parse = HEADINGS.parse
render = HEADINGS.render
sentence_end = HEADINGS.sentence_end
sentence_spans = HEADINGS.sentence_spans
split_sentences = HEADINGS.split_sentences
stray_spans = HEADINGS.stray_spans

__all__ = [
    "ANSWER_HEADING", "FORMATS", "HEADINGS", "RATIONALE_HEADING", "RapFormat", "answers_agree",
    "clean_answer", "continued", "normalize_answer", "parse", "render", "sentence_end",
    "sentence_spans", "split_sentences", "stray_spans",
]  # fmt: skip
