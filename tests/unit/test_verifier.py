"""The verifier: what it finds in hand-written rationales, and that nothing fools or breaks it."""

from __future__ import annotations

import random
import time
from itertools import pairwise, permutations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from selfcal.miniworld.corrupt import practice_rap
from selfcal.miniworld.habits import HABITS, STEREOTYPE, flawed_rap, gold_rap
from selfcal.miniworld.questions import (
    Premise,
    Query,
    conclude,
    needs,
    random_query,
    say_inference,
    say_premise,
)
from selfcal.miniworld.verifier import Verification, compare, verify
from selfcal.miniworld.world import (
    CATEGORIES,
    COLORS,
    PLACES,
    POSITIONS,
    SHAPES,
    World,
    facts,
    random_world,
)
from selfcal.rationale import render
from selfcal.types import Sample


def at(position: str, color: str, shape: str) -> str:
    """How a MiniWorld rationale names an object."""
    return say_premise(("object", position, color, shape))


RED, GREEN = at("top-left", "red", "circle"), at("top", "green", "circle")
BLUE, YELLOW = at("center", "blue", "square"), at("bottom-right", "yellow", "star")
SCENE = (
    "top-left: red circle; top: green circle; center: blue square; bottom-right: yellow star; "
    "2 circles; 1 square; 0 triangles; 1 star"
)
CHART = "red bar: 3; green bar: 7; blue bar: 5"
TWO_DIGITS = "left digit: 3; right digit: 8"
THREE_DIGITS = "left digit: 4; middle digit: 9; right digit: 1"
R3, G7, B5 = "The red bar is 3.", "The green bar is 7.", "The blue bar is 5."
L3, R8 = "The left digit is 3.", "The right digit is 8."
L4, M9, R1 = "The left digit is 4.", "The middle digit is 9.", "The right digit is 1."
LEFT_OF = "So the red circle is left of the blue square."
NOT_LEFT_OF = "So the red circle is not left of the blue square."

# (question, facts): rows of rationale, answer, what each sentence is (True statement,
# Counterfactual, Follows, unreaSonable, ? unreadable), and which faults the response has
# (Counterfactual, Insufficient, Unreasonable, iNconsistent, Wrong answer)
CASES: dict[tuple[str, str], list[tuple[str, str, str, str]]] = {
    ("How many circles are there?", SCENE): [
        (f"{RED} {GREEN} That makes 2 circles.", "2", "TTF", ""),
        (f"{GREEN} {RED} {BLUE} That makes 2 circles.", "two", "TTTF", ""),
        (f"{at('top-left', 'blue', 'circle')} {GREEN} That makes 2 circles.", "2", "CTF", "C"),
        (f"{at('top-left', 'red', 'square')} {GREEN} That makes 2 circles.", "2", "CTS", "CU"),
        (f"{RED} {GREEN} {at('right', 'red', 'circle')} That makes 3 circles.", "3", "TTCF", "CW"),
        (f"{GREEN} That makes 1 circle.", "1", "TF", "IW"),
        (f"{GREEN} That makes 2 circles.", "2", "TS", "IU"),
        (f"{RED} {GREEN}", "2", "TT", "I"),
        ("There are 2 circles. That makes 2 circles.", "2", "TS", "IU"),
        (f"{RED} {GREEN} That makes 3 circles.", "2", "TTS", "UN"),
        (f"{RED} {GREEN} That makes 3 circles.", "3", "TTS", "UW"),
        (f"{RED} {GREEN} That makes 2 squares.", "2", "TTS", "U"),
        (f"{RED} {GREEN} 1 plus 1 is 2.", "2", "TTS", "U"),
        (f"{RED} {GREEN} So the red bar is the highest.", "2", "TTS", "IU"),
        (f"{RED} {GREEN} That makes 2 circles.", "3", "TTF", "NW"),
        (f"{RED} {GREEN} That makes 2 circles.", "2 or 3", "TTF", "NW"),
        (f"{RED} {GREEN} How nice. That makes 2 circles.", "2", "TT?F", ""),
        (f"{RED} Another at the top. That makes 2 circles.", "2", "T?S", "IU"),
        # the same object said twice is one object
        (f"{RED} {RED} That makes 2 circles.", "2", "TTS", "IU"),
        (f"{RED} {GREEN} {RED} That makes 3 circles.", "3", "TTTS", "UW"),
        (f"{RED} {RED} {GREEN} That makes 2 circles.", "2", "TTTF", ""),
        # a step drawn before its premises
        (f"That makes 2 circles. {RED} {GREEN}", "2", "STT", "IU"),
        (f"{RED} That makes 1 circle. {GREEN}", "1", "TST", "IUW"),
        (f"{RED} That makes 1 circle. {GREEN} That makes 2 circles.", "2", "TSTF", "U"),
    ],
    ("What color is the square?", SCENE): [
        (f"{BLUE} So it is blue.", "Blue.", "TF", ""),
        (f"{at('center', 'red', 'square')} So it is red.", "red", "CF", "CW"),
        (f"{at('center', 'red', 'square')} So it is blue.", "blue", "CS", "CU"),
        ("So it is blue.", "blue", "F", "I"),
        (BLUE, "blue", "T", "I"),
        (f"{RED} So it is blue.", "blue", "TF", "I"),
        (f"{BLUE} So it is red.", "blue", "TS", "UN"),
        (f"{BLUE} So it is red.", "red", "TS", "UW"),
        (f"{BLUE} So it is a square.", "blue", "TS", "UN"),
        (f"{BLUE} So it is blue.", "red", "TF", "NW"),
        (f"{BLUE} It is a dark blue square. So it is blue.", "blue", "T?F", ""),
        ("The center is blue. So it is blue.", "blue", "?F", "I"),
        # true first, then contradicted, and the other way round
        (f"{BLUE} {at('center', 'red', 'square')} So it is red.", "red", "TCF", "CW"),
        (f"{BLUE} {at('center', 'red', 'square')} So it is blue.", "blue", "TCS", "CU"),
        (f"{at('center', 'red', 'square')} {BLUE} So it is blue.", "blue", "CTF", "C"),
        # several conclusions
        (f"So it is blue. {BLUE}", "blue", "FT", "I"),
        (f"So it is blue. {BLUE} So it is blue.", "blue", "FTF", ""),
        (f"So it is red. {BLUE} So it is blue.", "blue", "STF", "U"),
        (f"{BLUE} So it is blue. So it is red.", "red", "TFS", "UW"),
        (f"{BLUE} So it is red. So it is blue.", "blue", "TSF", "U"),
    ],
    ("What shape is at the bottom-right?", SCENE): [
        (f"{YELLOW} So it is a star.", "star", "TF", ""),
        (f"{at('bottom-right', 'red', 'star')} So it is a star.", "star", "CF", "C"),
        (f"{at('bottom-right', 'yellow', 'circle')} So it is a circle.", "circle", "CF", "CW"),
        ("So it is a star.", "star", "F", "I"),
        # a statement on another object of the same kind, or of another place
        (f"{at('bottom', 'yellow', 'star')} So it is a star.", "star", "CF", "CI"),
        (f"{BLUE} So it is a star.", "star", "TF", "I"),
        (f"{YELLOW} So it is a circle.", "star", "TS", "UN"),
        (f"{YELLOW} So it is a circle.", "circle", "TS", "UW"),
        (f"{YELLOW} So it is yellow.", "star", "TS", "UN"),
        (f"{YELLOW} So it is a star.", "circle", "TF", "NW"),
        (f"{YELLOW} Stars shine. So it is a star.", "star", "T?F", ""),
    ],
    ("Is the red circle left of the blue square?", SCENE): [
        (f"{RED} {BLUE} {LEFT_OF}", "yes", "TTF", ""),
        (f"{at('right', 'red', 'circle')} {BLUE} {NOT_LEFT_OF}", "no", "CTF", "CIW"),
        (f"{RED} {at('center', 'green', 'square')} {LEFT_OF}", "yes", "TCF", "C"),
        (f"{RED} {LEFT_OF}", "yes", "TF", "I"),
        (f"{RED} {GREEN} {LEFT_OF}", "yes", "TTF", "I"),
        (f"{RED} {BLUE}", "yes", "TT", "I"),
        (f"{RED} {BLUE} {NOT_LEFT_OF}", "yes", "TTS", "UN"),
        (f"{RED} {BLUE} {NOT_LEFT_OF}", "no", "TTS", "UW"),
        # true, but not what was asked
        (f"{RED} {BLUE} So the red circle is above the blue square.", "yes", "TTS", "U"),
        (f"{RED} {BLUE} So the blue square is right of the red circle.", "yes", "TTS", "U"),
        (f"{RED} {BLUE} {LEFT_OF}", "no", "TTF", "NW"),
        (f"{RED} {BLUE} Look closely. {LEFT_OF}", "yes", "TT?F", ""),
        (f"{NOT_LEFT_OF} {RED} {BLUE} {LEFT_OF}", "yes", "STTF", "U"),
    ],
    ("Check if the red circle is below the yellow star.", SCENE): [
        (f"{RED} {YELLOW} So the red circle is not below the yellow star.", "no", "TTF", ""),
        (f"{RED} {YELLOW} So the red circle is below the yellow star.", "yes", "TTS", "UW"),
    ],
    ("Are there more circles than squares?", SCENE): [
        ("There are 2 circles. There is 1 square. 2 is more than 1.", "yes", "TTF", ""),
        ("There are 3 circles. There is 1 square. 3 is more than 1.", "yes", "CTF", "C"),
        ("There are 2 circles. There are 2 squares. 2 is not more than 2.", "no", "TCF", "CW"),
        ("There are 2 circles. 2 is more than 1.", "yes", "TF", "I"),
        (f"{RED} {GREEN} {BLUE} 2 is more than 1.", "yes", "TTTF", "I"),
        ("There are 2 circles. There is 1 square.", "yes", "TT", "I"),
        ("There are 2 circles. There is 1 square. 2 is not more than 1.", "yes", "TTS", "UN"),
        ("There are 2 circles. There is 1 square. 2 is not more than 1.", "no", "TTS", "UW"),
        ("There are 2 circles. There is 1 square. 1 is more than 2.", "yes", "TTS", "U"),
        ("There are 2 circles. There is 1 square. 3 is more than 1.", "yes", "TTS", "U"),
        ("There are 2 circles. There is 1 square. 1 is not more than 2.", "yes", "TTS", "UN"),
        ("There are 2 circles. There is 1 square. 2 is more than 1.", "no", "TTF", "NW"),
        ("There are two circles. There is 1 square. 2 is more than 1.", "yes", "?TF", "I"),
    ],
    ("Are there more triangles than stars?", SCENE): [
        ("There are 0 triangles. There is 1 star. 0 is not more than 1.", "no", "TTF", ""),
    ],
    ("What is the value of the green bar?", CHART): [
        (f"{G7} So it is 7.", "7.0", "TF", ""),
        ("The green bar is 8. So it is 8.", "8", "CF", "CW"),
        ("The green bar is 8. So it is 7.", "7", "CS", "CU"),
        ("The green bar is 70000000. So it is 70000000.", "7", "CF", "CN"),
        ("So it is 7.", "7", "F", "I"),
        (f"{R3} So it is 7.", "7", "TF", "I"),
        (f"{G7} So it is 8.", "7", "TS", "UN"),
        (f"{G7} So it is 8.", "8", "TS", "UW"),
        (f"{G7} So it is 7.", "8", "TF", "NW"),
        (f"{G7} It looks high. So it is 7.", "7", "T?F", ""),
    ],
    ("Which bar is the highest?", CHART): [
        (f"{R3} {G7} {B5} So the green bar is the highest.", "green", "TTTF", ""),
        (f"The red bar is 9. {G7} {B5} So the red bar is the highest.", "red", "CTTF", "CW"),
        (f"The red bar is 4. {G7} {B5} So the green bar is the highest.", "green", "CTTF", "C"),
        (f"{G7} So the green bar is the highest.", "green", "TF", "I"),
        (f"{R3} So the red bar is the highest.", "red", "TF", "IW"),
        (f"{R3} {G7} {G7} So the green bar is the highest.", "green", "TTTF", "I"),
        (f"{R3} {G7} {B5} So the blue bar is the highest.", "green", "TTTS", "UN"),
        (f"{R3} {G7} {B5} So the blue bar is the highest.", "blue", "TTTS", "UW"),
        (f"{R3} {G7} {B5} So the green bar is the highest.", "red", "TTTF", "NW"),
        (f"{R3} {G7} {B5} It towers. So the green bar is the highest.", "green", "TTT?F", ""),
        (
            f"{R3} So the red bar is the highest. {G7} {B5} So the green bar is the highest.",
            "green",
            "TSTTF",
            "U",
        ),
    ],
    ("How much higher is the green bar than the red bar?", CHART): [
        (f"{G7} {R3} 7 minus 3 is 4.", "4", "TTF", ""),
        (f"The green bar is 8. {R3} 8 minus 3 is 5.", "5", "CTF", "CW"),
        (f"The green bar is 8. {R3} 7 minus 3 is 4.", "4", "CTS", "CU"),
        (f"{G7} 7 minus 3 is 4.", "4", "TF", "I"),
        (f"{G7} {R3} 7 minus 3 is 3.", "4", "TTS", "UN"),
        (f"{G7} {R3} 7 minus 3 is 3.", "3", "TTS", "UW"),
        (f"{G7} {R3} 7 plus 3 is 4.", "4", "TTS", "U"),
        (f"{G7} {R3} 7 plus 3 is 10.", "4", "TTS", "UN"),
        (f"{G7} {R3} 9 minus 5 is 4.", "4", "TTS", "U"),
        (f"{G7} {R3} 3 minus 7 is 4.", "4", "TTS", "U"),
        (f"{G7} {R3} 7 minus 3 is 4.", "3", "TTF", "NW"),
        (f"{G7} {R3} Now subtract. 7 minus 3 is 4.", "4", "TT?F", ""),
    ],
    ("What is the sum of the red bar and the blue bar?", CHART): [
        (f"{R3} {B5} 3 plus 5 is 8.", "8", "TTF", ""),
        (f"{R3} {B5} 5 plus 3 is 8.", "eight", "TTF", ""),
        (f"The red bar is 2. {B5} 2 plus 5 is 7.", "7", "CTF", "CW"),
        (f"The red bar is 4. {B5} 3 plus 5 is 8.", "8", "CTS", "CU"),
        (f"{R3} 3 plus 5 is 8.", "8", "TF", "I"),
        (f"{R3} {R3} 3 plus 5 is 8.", "8", "TTF", "I"),
        (f"{R3} {B5} 3 plus 5 is 9.", "8", "TTS", "UN"),
        (f"{R3} {B5} 3 plus 5 is 9.", "9", "TTS", "UW"),
        (f"{R3} {B5} 4 plus 4 is 8.", "8", "TTS", "U"),
        (f"{R3} {B5} 8 minus 0 is 8.", "8", "TTS", "U"),
        (f"{R3} {B5} 3 plus 5 is 8.", "9", "TTF", "NW"),
        (f"{R3} {B5} Both are low. 3 plus 5 is 8.", "8", "TT?F", ""),
    ],
    ("What is the sum of the digits?", TWO_DIGITS): [
        (f"{L3} {R8} 3 plus 8 is 11.", "11", "TTF", ""),
        (f"The left digit is 5. {R8} 5 plus 8 is 13.", "13", "CTF", "CW"),
        (f"{L3} {R8} The left digit is 4. 3 plus 8 is 11.", "11", "TTCS", "CU"),
        (f"{R8} 3 plus 8 is 11.", "11", "TF", "I"),
        (f"{L3} {R8}", "11", "TT", "I"),
        (f"{L3} {R8} 3 plus 8 is 10.", "11", "TTS", "UN"),
        (f"{L3} {R8} 3 plus 8 is 10.", "10", "TTS", "UW"),
        (f"{L3} {R8} 3 minus 8 is 11.", "11", "TTS", "U"),
        (f"{L3} {R8} 3 plus 8 is 11.", "10", "TTF", "NW"),
        (f"{L3} {R8} Carry the one. 3 plus 8 is 11.", "11", "TT?F", ""),
        (f"3 plus 8 is 11. {L3} {R8}", "11", "FTT", "I"),
        (f"4 plus 8 is 12. {L3} {R8} 3 plus 8 is 11.", "11", "STTF", "U"),
    ],
    ("What is the difference of the digits?", TWO_DIGITS): [
        (f"{L3} {R8} 8 minus 3 is 5.", "5", "TTF", ""),
        (f"{L3} The right digit is 9. 9 minus 3 is 6.", "6", "TCF", "CW"),
        (f"{L3} 8 minus 3 is 5.", "5", "TF", "I"),
        (f"{L3} {R8} 8 minus 3 is 6.", "5", "TTS", "UN"),
        (f"{L3} {R8} 8 minus 3 is 6.", "6", "TTS", "UW"),
        (f"{L3} {R8} 8 plus 3 is 5.", "5", "TTS", "U"),
        (f"{L3} {R8} 3 minus 8 is 5.", "5", "TTS", "U"),
        (f"{L3} {R8} 8 minus 3 is 5.", "6", "TTF", "NW"),
        (f"{L3} {R8} Turn them. 8 minus 3 is 5.", "5", "TT?F", ""),
    ],
    ("What is the largest digit?", THREE_DIGITS): [
        (f"{L4} {M9} {R1} So 9 is the largest.", "9", "TTTF", ""),
        (f"{L4} The middle digit is 7. {R1} So 7 is the largest.", "7", "TCTF", "CW"),
        (f"{L4} {M9} The right digit is 2. So 9 is the largest.", "9", "TTCF", "C"),
        (f"{M9} So 9 is the largest.", "9", "TF", "I"),
        (f"{L4} So 3 is the largest.", "9", "TS", "IUN"),
        (f"{L4} {M9} {R1} So 4 is the largest.", "9", "TTTS", "UN"),
        (f"{L4} {M9} {R1} So 4 is the largest.", "4", "TTTS", "UW"),
        (f"{L4} {M9} {R1} So 10 is the largest.", "10", "TTTS", "UW"),
        (f"{L4} {M9} {R1} So 9 is the largest.", "4", "TTTF", "NW"),
        (f"{L4} {M9} {R1} It beats them. So 9 is the largest.", "9", "TTT?F", ""),
    ],
}
STATUSES = {
    "T": "true", "C": "counterfactual", "F": "follows", "S": "unreasonable", "?": "unreadable",
}  # fmt: skip


def sample(question: str, facts_: str) -> Sample:
    return Sample("s", "s.png", question, "", facts=facts_)


def faults(found: Verification) -> str:
    flags = (found.counterfactual, found.insufficient, found.unreasonable, found.inconsistent)
    return "".join(c for c, on in zip("CIUNW", (*flags, not found.correct), strict=True) if on)


@pytest.mark.parametrize(
    ("asked", "rationale", "answer", "statuses", "expected"),
    [(asked, *row) for asked, rows in CASES.items() for row in rows],
)
def test_findings(
    asked: tuple[str, str], rationale: str, answer: str, statuses: str, expected: str
) -> None:
    response = render(rationale, answer)
    found = verify(sample(*asked), response)
    assert [f.status for f in found.findings] == [STATUSES[s] for s in statuses]
    assert faults(found) == expected
    assert found.sound is not bool(set(expected) & set("CIU"))
    assert found.reliable is (expected == "")
    assert found.statements == sum(map(statuses.count, "TC?"))
    assert found.true_statements == statuses.count("T")
    assert found.compliant
    assert " ".join(response[f.start : f.end] for f in found.findings) == rationale


COUNT = sample("How many circles are there?", SCENE)
PROOF = f"{RED} {GREEN} That makes 2 circles."
LIE = at("center", "red", "star")


@pytest.mark.parametrize(
    ("response", "sentences"),
    [
        (f"Rationale: {RED} {RED}\n\n{RED}\nAnswer: 2", [(RED, 11)] * 3),
        (f"Rationale: :\n{RED}", [(":", 11), (RED, 13)]),
        (f"Rationale: Rationale. {RED}", [("Rationale.", 11), (RED, 22)]),
        (f"  {RED}  {RED} ", [(RED, 2)] * 2),
        (f"A.\nAnswer: {RED}", [("A.", 0)]),
        (f"Answer: 2\n{LIE}\n{LIE} ", [(LIE, 10)] * 2),
    ],
)
def test_spans_point_at_the_sentence_in_the_response(
    response: str, sentences: list[tuple[str, int]]
) -> None:
    spans = [(f.start, f.end) for f in verify(COUNT, response).findings]
    assert [response[a:b] for a, b in spans] == [s for s, _ in sentences]
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[0][0] == sentences[0][1]


@pytest.mark.parametrize(
    "response",
    [
        # a lie, wherever and however it is said
        f"{PROOF} {LIE}\nAnswer: 2",
        f"{LIE} {PROOF}\nAnswer: 2",
        f"{PROOF}\nAnswer: 2\n{LIE}",
        f"{PROOF}\nAnswer: 2\nThat makes 3 circles.",
        f"{PROOF}\nAnswer: {LIE}\nAnswer: 2",
        f"{PROOF}\nAnswer: 3\n{LIE}\nAnswer: 2",
        f"{LIE.replace(' ', ' ' * 200)} {PROOF}\nAnswer: 2",
        f"{LIE.upper()} {PROOF}\nAnswer: 2",
        f"- {LIE}\n2. {LIE}\n{PROOF}\nAnswer: 2",
        f"**{LIE}** {PROOF}\nAnswer: 2",
        f"{LIE[:-1]}!!! {PROOF}\nAnswer: 2",
        f"There are 100000 circles. {PROOF}\nAnswer: 2",
        f"{' '.join([RED, GREEN] * 3000)} That makes 6000 circles.\nAnswer: 2",
        # headings in strange places: no rationale, or not all of it
        f"Answer: 2\n{PROOF}",
        f"Rationale:\nAnswer: 2\nRationale: {PROOF}",
        f"{RED} Answer: {GREEN} That makes 2 circles.\nAnswer: 2",
        f"Rationale: x\nAnswer: {PROOF}",
        f"Answer: {PROOF} Answer: 2",
        "Answer:" * 1000 + PROOF,
        # looks like a number or a word, and is none
        f"{RED} {GREEN} That makes \u0662 circles.\nAnswer: 2",
        f"{RED} {GREEN} That makes \u00b2 circles.\nAnswer: 2",
        f"{RED} {GREEN} That makes \uff12 circles.\nAnswer: 2",
        f"{RED} {GREEN} That makes {'0' * 5000}2 circles.\nAnswer: 2",
        f"{RED} {GREEN} That makes {'9' * 5000} circles.\nAnswer: {'9' * 5000}",
        f"{RED} {GREEN} That makes -2 circles.\nAnswer: 2",
        f"{RED} {GREEN} That makes 2.0 circles.\nAnswer: 2",
        PROOF.replace("red", "r\u200bed"),
        PROOF.replace("red", "r\u0435d"),
        f"\u202e{PROOF}"[::-1],
        PROOF.replace(" ", "\0"),
        PROOF.replace(". ", ", "),
        # far too much
        *("", "\0", ".", " \n", "Answer: 2"),
        *(
            (unit * 200_000)[:200_000]
            for unit in (".", "(", "9", "Answer: ", RED + " ", "so it is a ")
        ),
        "There is " * 5000 + "a red circle.",
        f"The top is a {'a' * 100_000}!",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_nothing_hostile_raises_or_is_judged_sound(response: str) -> None:
    began = time.process_time()
    assert not verify(COUNT, response).sound
    assert time.process_time() - began < 5


def test_what_is_added_to_a_proof_and_cannot_be_read_breaks_nothing() -> None:
    found = verify(
        COUNT, f"- {RED}\n- {GREEN}\n**That makes 2 circles.**\nSo nice! Answer: 2\nBye."
    )
    assert [f.status[0] for f in found.findings] == list("ttfuu")
    assert found.sound and found.correct and not found.compliant
    assert not found.reliable


STEP = "That makes 2 circles."
FALSE = (LIE, at("top", "red", "circle"), "There are 3 circles.", "That makes 3 circles.")
_MORE = st.lists(st.sampled_from((RED, GREEN, BLUE, STEP, "1 plus 1 is 2.", "Well.", *FALSE)))
_GLUE = st.sampled_from((" ", " ", " ", "\n", "  ", "", "\nAnswer: 2 ", " Answer: 3\n", "\n- "))


@given(st.tuples(_MORE, _MORE, _MORE, _MORE), st.lists(_GLUE, min_size=9, max_size=9))
@settings(max_examples=500, deadline=None)
def test_what_is_judged_sound_concludes_the_truth_from_all_of_it(
    more: tuple[list[str], ...], glue: list[str]
) -> None:
    parts = [*more[0][:2], RED, *more[1][:1], GREEN, *more[2][:1], STEP, *more[3][:2]]
    response = "".join(a + b for a, b in zip(parts, glue, strict=False)) + "\nAnswer: 2"
    found = verify(COUNT, response)
    read = [response[f.start : f.end].removeprefix("- ") for f in found.findings]
    assert all(s and s == s.strip() for s in read)
    assert all(a.end <= b.start for a, b in pairwise(found.findings))
    if found.sound:
        assert {RED, GREEN} <= set(read[: len(read) - read[::-1].index(STEP)])
        assert set(read).isdisjoint(FALSE)
        assert found.correct is not found.inconsistent
    event(f"sound: {found.sound}")


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_is_accepted(text: str) -> None:
    assert not verify(COUNT, text).sound


def some(n: int, seed: int = 0) -> list[tuple[World, Query, Sample, random.Random]]:
    rng = random.Random(seed)
    drawn = []
    for i in range(n):
        world = random_world(CATEGORIES[i % 3], rng)
        query = random_query(world, rng)
        drawn.append((world, query, sample(query.wording(i % 2 == 1), facts(world)), rng))
    return drawn


def test_gold_is_sound() -> None:
    for world, query, item, _ in some(2000):
        found = verify(item, gold_rap(query, world))
        assert (faults(found), found.compliant) == ("", True), item


def test_gold_is_unsound_when_a_sentence_is_missing_or_the_step_comes_early() -> None:
    for world, query, item, rng in some(300):
        premises = needs(query, world)
        result = conclude(query, premises)
        step = say_inference(query, premises, result)
        told = [say_premise(p) for p in premises]
        for order in permutations([*told, step]) if len(told) < 3 else ([step, *told], told):
            found = verify(item, render(" ".join(order), result))
            assert found.insufficient is (order[-1] != step)
        left = rng.randrange(len(told))
        thin = verify(item, render(" ".join([*told[:left], *told[left + 1 :], step]), result))
        assert thin.insufficient and not thin.counterfactual


def test_a_statement_is_true_exactly_if_the_facts_say_so() -> None:
    statements: dict[str, Premise] = {
        **{f"{p}: {c} {s}": ("object", p, c, s) for p in POSITIONS for c in COLORS for s in SHAPES},
        **{f"{n} {s}{'s' * (n != 1)}": ("count", s, str(n)) for s in SHAPES for n in range(7)},
        **{f"{c} bar: {n}": ("bar", c, str(n)) for c in COLORS for n in range(12)},
        **{f"{p} digit: {n}": ("digit", p, str(n)) for p in PLACES for n in range(11)},
    }
    for world, _, item, _ in some(60):
        response = "\n".join(map(say_premise, statements.values()))
        said = dict(zip(statements, verify(item, response).findings, strict=True))
        true = {words for words, finding in said.items() if finding.status == "true"}
        assert true == set(facts(world).split("; "))


def test_each_habit_has_its_flaw_and_no_other() -> None:
    seen = set()
    for world, query, item, _ in some(1500, seed=1):
        found = verify(item, flawed_rap(query, world))
        told = needs(query, world)[0]
        # a prejudice can be right: then there is no flaw
        lucky = {
            "value": int(told[2]) % 2 == 0 if told[0] == "bar" else False,
            "count": all(
                STEREOTYPE[p[-1]] == p[2] for p in needs(query, world) if p[0] == "object"
            ),
            "color": STEREOTYPE.get(told[-1]) == told[2],
            "shape": STEREOTYPE.get(told[-1]) == told[2],
        }.get(query.kind, False)
        flaws = [f for f in ("counterfactual", "insufficient", "unreasonable") if getattr(found, f)]
        assert flaws == ([] if lucky else [HABITS[query.kind][0]]), (item, query)
        assert found.inconsistent is (query.kind == "bar-difference")
        if "answer right" in HABITS[query.kind][1]:
            assert found.correct
        seen.add((query.kind, lucky))
    assert len(seen) == len(HABITS) + 4


def test_compare_prefers_what_is_reliable_and_is_antisymmetric() -> None:
    swapped = {"first": "second", "second": "first", "neutral": "neutral"}
    seen = set()
    for world, query, item, rng in some(600, seed=2):
        first, second = practice_rap(query, world, rng), practice_rap(query, world, rng)
        verdict = compare(item, first, second)
        assert compare(item, second, first) == swapped[verdict]
        assert compare(item, first, first) == "neutral"
        assert compare(item, gold_rap(query, world), first) != "second"
        seen.add(verdict)
    assert seen == set(swapped)
    assert compare(COUNT, f"{PROOF}\nAnswer: 2", f"{PROOF}\nAnswer: 3") == "first"
    assert compare(COUNT, f"{RED} {GREEN}\nAnswer: 2", f"{PROOF}\nAnswer: 2") == "second"
    assert compare(COUNT, f"{RED}\nAnswer: 2", f"{GREEN}\nAnswer: 2") == "neutral"


@pytest.mark.parametrize(
    ("question", "facts_"),
    [
        ("How many dogs are there", SCENE),
        ("", SCENE),
        ("How many circles are there?", ""),
        ("How many circles are there?", "a photo of a dog"),
        ("How many circles are there?", CHART),
        ("What color is the triangle?", SCENE),
        ("What shape is at the left?", SCENE),
        ("Is the red star left of the blue square?", SCENE),
        ("Is the red circle near the blue square?", SCENE),
        ("What is the value of the yellow bar?", CHART),
        ("What is the value of the green bar?", "green bar: \u00b2"),
        ("What is the value of the green bar?", "green bar: " + "9" * 5000),
        ("What is the sum of the digits?", CHART),
    ],
)
def test_a_sample_that_is_not_miniworlds_is_refused(question: str, facts_: str) -> None:
    with pytest.raises(ValueError):
        verify(sample(question, facts_), PROOF)
