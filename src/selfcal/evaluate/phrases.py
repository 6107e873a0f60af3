"""How models say what their answer is: the phrases that the readers of answers go by.

English mostly, with the plainest words of a few other languages. All repeats are bounded, so that
the time is linear in the text; a phrase in more words is no loss, it is just not recognised.
"""

from __future__ import annotations

import re

_I = re.IGNORECASE


def any_of(*phrases: str) -> str:
    """A pattern for one of several."""
    return f"(?:{'|'.join(phrases)})"


# --- the output as a whole ----------------------------------------------------------------------

THOUGHTS = any_of("think", "thinking", "thought", "reasoning", "rationale", "reflection")
"""Tags around what is not the answer."""
INVENTED = re.compile(
    r"\n\s{0,9}(?:#{1,4} )?(?:\*\*)?"
    + any_of(r"(?:next |new )?question(?: \d{1,3})?", "user", "human", "input", "q")
    + r"(?:\*\*)? ?:|<\|im_end\|>|<\|endoftext\|>|</s>",
    _I,
)
"""Where a model begins to make up another turn."""
SENTENCES = re.compile(r"(?<=[.!?])(?<!\b[Nn]o\.(?=\s\d))[\"')]{0,2}\s+(?=\S)|\n+")

# --- claims -------------------------------------------------------------------------------------

_BE = any_of(
    "is", "would be", "will be", "should be", "must be", "has to be", "can only be",
    "appears to be", "seems to be", "equals",
)  # fmt: skip
_HENCE = any_of("therefore", "thus", "clearly", "then", "hence", "indeed", "simply", "actually")
_NOUN = any_of(
    "answer(?: choice| option)?", "ans", "antwort", "lösung", "réponse", "respuesta", "risposta",
    "resposta", "ответ", "答案", "回答", "答え", "正确答案", "最终答案", "정답", "답",
)  # fmt: skip
_QUALITY = any_of(
    "final", "correct", "right", "best", "short", "my", "so,? the", "the", "richtige",
    "endgültige", "bonne", "correcta", "最终", "正确",
)  # fmt: skip
HEADING = re.compile(
    rf"(?<![^\s.!?;)>。])(?:{_QUALITY} ){{0,3}}{_NOUN} ?(?::|=|->)[ \t]*"
    rf"|^[ \t]*(?:{_QUALITY} ){{0,3}}{_NOUN}[ \t]*$"
    r"|^[ \t]*(?:correct |right |chosen |selected )?(?:option|choice|result|conclusion) ?:[ \t]*",
    _I | re.MULTILINE,
)
"""`Answer:` and its like."""
_BEST = any_of(
    "correct", "right", "best", "closest", r"most \w{1,20}", "matching", "only possible",
    "only remaining", "remaining",
)  # fmt: skip
_CHOSEN = any_of("choose", "pick", "select", "go(?:ing)? with", "answer", "opt for", "settle on")
CLAIM = re.compile(
    rf"\b(?P<final>(?:my |the )?final )?(?:the |my |our |this )?(?:{_BEST} ){{0,2}}"
    r"(?:answer|option|choice|response|result)"
    r"(?: (?:to|for) (?:the|this|that) question| here| choice| then)?,?"
    rf" {_BE}(?:,? {_HENCE})?(?:[:,]| that)? *"
    r"|\bi(?:'d| would|'ll| will|'m)?(?: (?:therefore|would|will|finally))?"
    rf" {_CHOSEN}(?: with)? *"
    r"|\b(?:die |la |a |l')?(?:richtige |korrekte |bonne )?"
    r"(?:antwort|lösung|réponse|respuesta|risposta|resposta)"
    r"(?: (?:correcta|corretta|correta|correcte|final))? (?:ist|lautet|est|es|è|é) *:? *"
    r"|(?:正确)?(?:答案|选项)(?:应该)?(?:是|为|選)|答えは|ответ *- *"
    r"|(?:因此|所以)选(?:择)?|故选",
    _I,
)
"""A sentence such as "the answer is ..."."""
NO_CLAIM = re.compile(
    r"not\b|n't\b|:$|"
    + any_of("as follows", "below", "above", "here", "given", "in the (?:image|picture|chart)")
    + r"\b",
    _I,
)
"""What follows such words where nothing is claimed."""
IS_RIGHT = re.compile(
    r"(?:\b[Oo]ption |\b[Cc]hoice |\b[Aa]nswer )?(?<![\w'])\(?([A-Z])\)?"
    r"(?: \([^()\n]{1,60}\)| \"[^\"\n]{1,60}\")?,? (?:is|must be|would be|has to be) "
    r"(?:(?:therefore|thus|clearly|hence|the|only|most|then) ){0,3}"
    r"(?:correct|right|best|appropriate|answer)\b"
)
"""`B is the correct option`."""
CORRECTION = re.compile(
    r"(?:(?<=[.!?;:,)\n\"])|(?<=--)|(?<= -)|^)\s{0,9}(?:(?:no|hmm|oh|but|ah),? ?)?"
    + any_of(
        r"wait\b", r"hold on\b", r"scratch that\b", r"correction\b", r"on second thoughts?\b",
        r"oops\b", r"my mistake\b", r"actually\b,?", r"sorry,? (?:i|it|that|the|my|no)\b",
        r"i (?:made|misread|mis\w+|was wrong|take that back|meant)\b",
        r"let me (?:correct|reconsider|re-?check|re-?examine|double[- ]check|look again)\b",
        r"let me re-?(?:count|think|calculate|read)\b", r"no, (?:i mean|rather|make that)\b",
    ),
    _I,
)  # fmt: skip
"""Where a model takes back what it said."""
CONCLUSION = re.compile(
    r"\b"
    + any_of(
        "so", "therefore", "thus", "hence", "consequently", "accordingly", "which is",
        "which means", "which makes", "which leaves", "which gives", "making it",
        "making the total", "that leaves", "leaves", "leaving", "in conclusion", "overall",
        "conclude that", "must be", "this is", "it is", "it's", "in total", "also", "daher",
        "donc", "por lo tanto", "因此", "所以",
    )
    + r"[,:]? +",
    _I,
)  # fmt: skip
LISTED = re.compile(r"(?:^|\n|[.;,] ?)\(?([A-Z])[).:] ")
"""The beginning of an option in a list of them."""

# --- what a claim says --------------------------------------------------------------------------

LEAD = re.compile(
    "(?:"
    + any_of(
        any_of("so", "thus", "hence", "therefore", "actually", "hmm", "well", "ok", "okay",
               "maybe", "i think", "i believe", "i mean", "i meant", "rather") + ",?",
        any_of("it", "this", "that", "he", "she", "they", "there", "these", "those", "which",
               "the (?:answer|statement|claim|result|total|value|correct answer)")
        + any_of("'s", "'re", " is", " are", " was", " were", " should be", " must be",
                 " would be", " will be", " has to be"),
        "(?:should|must|would|will|has to) be", "is", "are", "be", "equals?", "indeed", "clearly",
        "definitely", "exactly", "approximately", r"approx\.?", "about", "around", "roughly",
        "nearly", "almost", r"ca\.?", "circa", "option", "choice", "letter", "answer",
    )
    + r"(?=[\s:(\"'$=<~]|$)[\s:=~]*)",
    _I,
)  # fmt: skip
"""Words before an answer."""
REFUSAL = re.compile(
    r"\b"
    + any_of(
        "can(?:not|'t| not)", "could(?: not|n't)", "unable to", "not able to", "impossible to",
        "not possible to", "hard to", "difficult to",
    )
    + r"(?: (?:be|reliably|clearly|really|accurately|confidently|definitively)){0,2} "
    + any_of(
        "determin", "tell", "say", "see", "view", "answer", "know", "identif", "provide",
        "assist", "help", "read", "make out", "access", "process", "analy", "comply", "discuss",
        "decide", "conclude", "infer", "give",
    )
    + r"|\b(?:not enough|insufficient|no) (?:information|context|data|detail)"
    r"|\bi (?:do not|don't) know|\bnot (?:sure|certain|visible|specified|given|shown|clear)\b"
    r"|\bas an ai\b|\b(?:undetermined|indeterminate|unclear)\b|\bi(?:'m| am) sorry\b"
    r"|^\W{0,9}(?:n/?a|unknown|none)\W{0,9}$",
    _I,
)  # fmt: skip
"""Where no answer is given."""
VERB = re.compile(
    r"\s{0,9}"
    + any_of(
        "is", "are", "was", "were", "looks?", "seems?", "can", "can't", "cannot", "could", "does",
        "doesn't", "do", "would", "has", "have", "isn't", "aren't", "appears?", "shows?",
        "states?", "says?", "claims?", "suggests?", "mentions?", "might", "may", "must", "should",
        "will",
    )
    + r"\b",
    _I,
)  # fmt: skip
NEGATED = re.compile(
    r"\b"
    + any_of(
        "not", "isn't", "aren't", "never", "rather than", "instead of", "unlike", "neither", "nor",
        "except", "excluding", "rul(?:e|es|ed|ing) out", "eliminat(?:e|es|ed|ing)",
        r"over (?=(?:option )?\(?[A-Z]\b)", "though", "although", "nicht", "pas", "no es",
    )
    + r"\b[^,;.\n]{0,120}?(?=\b(?:but|sondern|mais|sino)\b|[,;.\n]|$)"
)  # fmt: skip
"""What is said not to be the answer, up to the end of the clause."""
REJECTED = re.compile(
    r"(?:\boptions? )?\(?\b[A-Z]\b\)?(?:(?:,| and| or|, and) \(?[A-Z]\b\)?){0,4} "
    + any_of(
        "is", "are", "was", "were", "would be", "looks?", "seems?", "can", "cannot", "can't",
        "does", "doesn't", "do", "don't", "isn't", "aren't",
    )
    + r" (?:(?:clearly|obviously|also|just|far|both|all) ){0,2}"
    + any_of(
        r"not\b", r"too\b", "wrong", "incorrect", "impossible", "false", r"out\b", r"off\b",
        "unlikely", "excluded", "eliminated", "be (?:ruled|excluded|eliminated)", "ruled", "fit",
        "match", "smaller", "larger", "implausible", "invalid",
    )
    + r"[^,;.\n]{0,80}"
)  # fmt: skip
"""Options that are ruled out by what is said of them."""
_NO_LETTER = "".join(
    f"(?<!{word} )"
    for word in (
        "angle", "point", "side", "line", "vertex", "segment", "vitamin", "grade", "angles",
        "points", r"\d",
    )
)  # fmt: skip
_CALLED = r"(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)"
MENTION = re.compile(
    r"\(([A-Za-z])\)|(?<![\w'-])([A-Z])\)"
    rf"|\b(?:{_CALLED}s?|is|be|with|pick|choose|select) \"?([B-HJ-Z])(?![\w'°-])"
    rf"|\b{_CALLED} \"?([AI])(?![\w'-])"
    rf"|(?<![\w'°-]){_NO_LETTER}([B-HJ-Z])(?![\w'°/-])"
    r"|(?<![\w'-])([AI])"
    r"(?=[.,;:!?)\"]|$| (?:and|or|but|not|because|since|rather|instead|is)\b)"
)
"""An option's letter in a sentence; A and I are words, too."""

YES = (
    "yes", "yeah", "yep", "yup", "true", "oui", "ja", "si", "sí", "sim", "да", "evet", "tak",
    "是的", "是", "对", "有", "はい", "네", "예",
)  # fmt: skip
NO = (
    "no", "nope", "false", "non", "nein", "não", "нет", "hayır", "nie", "不是",  # noqa: RUF001
    "没有", "不", "否", "いいえ", "아니요", "아니오",
)  # fmt: skip
POLAR = re.compile(
    rf"\W{{0,5}}(?:(?P<yes>{'|'.join(YES)})|(?P<no>{'|'.join(NO)}))(?![^\W_]|'|-\w)", _I
)
POLAR_CJK = re.compile(r"\W{0,5}(?:(?P<yes>是|对|有|はい|네|예)|(?P<no>不|没|否|いいえ|아니))")
"""In scripts without spaces."""
IDIOM = re.compile(
    r"\bno (?:doubts?|questions?|problem|matter|wonder)\b(?: about (?:it|that))?|\bno\. ?\d", _I
)
"""A no that denies nothing."""
BOTH = re.compile(r"(?: ?/ ?|,? (?:and|or|but) )(?:also |maybe |partly )?(yes|no|true|false)\b", _I)
CLAUSE = re.compile(
    r"\s*(?:$|[^\w\s]|"
    + any_of(
        "it", "there", "the", "this", "that", "these", "those", "he", "she", "they", "we", "you",
        "i", "not", "because", "since", "as", "in", "for", "based", "both", "all", "only", "a",
        "an", "his", "her", "its",
    )
    + r"\b)",
    _I,
)  # fmt: skip
"""What may follow an answer `no`; after others, it belongs to a noun."""

BOUND = re.compile(
    r"\b(?:more|less|fewer|greater|larger|smaller|higher|lower) than|\bat (?:least|most)\b"
    r"|\bup to\b|[<>]|\bbetween\b",
    _I,
)
"""A number that is no answer but a limit."""
UNSOLVED = re.compile(r"\\[a-zA-Z]|√|\b(?:sqrt|log|ln|sin|cos|tan)\b|π|\d!")
"""A number that is part of a formula."""
AFTER = re.compile(
    r"(?: ?[^\W\d][\w^/°-]{0,20}\.?){0,4} ?"
    r"(?:[(\[;]|[,.:](?= )(?! ?\d)|-- |because\b|since\b|as\b|$)",
    _I,
)
"""A unit, and then something else: the number before it is the answer."""
UNIT = re.compile(r"(?: ?[^\W\d][\w^/°²³'-]{0,20}| ?[°%]C?){0,3}[ .)\]!]{0,9}$")
QUOTED = re.compile(
    r"\b"
    + any_of(
        "reads?", "says?", "said", "is", "spells?", "called", "named", "titled", "words?",
        "label(?:l?ed)?", "text",
    )
    + r"[ :,]{1,3}\"([^\"\n]{1,120})\"",
    _I,
)  # fmt: skip
REASON = re.compile(r",? (?:because|since)\b|, (?:as|which|due to|based on|given|so)\b")
