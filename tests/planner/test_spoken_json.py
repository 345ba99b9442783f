from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from stream_agent.planner.spoken_json import spoken

SAID = {
    "ranked": [
        {"action": "Dissection", "why": 'the "duct", its {fat} and \\ [more] are covered, ü é 中'},
        {"action": "Vessel Clipping", "why": "next"},
    ],
    "progress": "Calot's triangle is open.",
    "safety": ["mind the duct", "and the artery"],
}
WORDS = """\
1. Dissection: the "duct", its {fat} and \\ [more] are covered, ü é 中
2. Vessel Clipping: next
Now: Calot's triangle is open.
Mind: mind the duct
Mind: and the artery"""


def test_the_whole_reads_as_a_person_would_write_it() -> None:
    assert spoken(json.dumps(SAID)) == spoken(json.dumps(SAID, indent=1, ensure_ascii=False)) == WORDS


def test_every_beginning_says_a_beginning() -> None:
    for text in (json.dumps(SAID), json.dumps(SAID, indent=1, ensure_ascii=False)):
        said = [spoken(text[:end]) for end in range(len(text) + 1)]
        assert all(after.startswith(before) for before, after in itertools.pairwise(said))


@given(st.text(alphabet='{}[]",:\\u00ab \n', max_size=60))
def test_no_text_is_too_odd_to_be_read(text: str) -> None:
    spoken(text)
