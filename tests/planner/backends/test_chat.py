from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.errors import BackendError
from stream_agent.planner.backends.chat import chat_turns, inert, pictures_of, rendered
from stream_agent.planner.backends.protocol import Message, Picture, Prompt

CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<s>",
    "</s>",
    "[INST]",
    "<start_of_turn>",
    "<｜User｜>",
    "<<SYS>>",
)
PICTURE = Picture(np.zeros((4, 4, 3), np.uint8), "one")


@pytest.mark.parametrize("token", CONTROL)
def test_a_control_token_is_broken_and_still_legible(token: str) -> None:
    shown = inert(f"before {token} after")
    assert token not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert token.strip("<>[]/|｜") in shown.replace(" ", "") or token in ("<s>", "</s>")


def test_plain_text_stays_as_it_is() -> None:
    text = "Clip the cystic artery (2 < 3 clips); keep [A] and <B> apart | no bleeding\n「術野」"
    assert inert(text) == text


def test_the_tokenizer_s_own_control_tokens_are_broken() -> None:
    assert inert("a§b§§c", ["§"]) == "a b  c"
    assert inert("x ~~end~~ y", ["~~end~~", " ", "\n\n", ""]) == "x ~ ~end~~ y"


@given(
    st.lists(
        st.sampled_from([*CONTROL, "<", "|", ">", "im_end", "s", "/", " ", "x", "[", "INST", "]", "~", "aa", "a"]),
        max_size=12,
    )
)
def test_no_arrangement_of_pieces_makes_a_control_token(pieces: list[str]) -> None:
    """Pieces of one message are joined before they are looked at: two halves may come from two captions."""
    prompt = Prompt((Message("user", tuple(pieces)),))
    [turn] = chat_turns(prompt, ["~aa~", "aa"])
    said = turn["content"]
    assert not any(token in said for token in ("<|", "|>", "<s>", "</s>", "[INST]", "aa"))
    assert inert(said, ["aa"]) == said


def test_turns_are_plain_text_unless_there_is_a_picture() -> None:
    """Templates of text models join strings and fail on parts."""
    prompt = Prompt((Message("system", ("a", "b")), Message("user", ("c", PICTURE, "d", "e"))))
    assert chat_turns(prompt) == [
        {"role": "system", "content": "ab"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "image"}, {"type": "text", "text": "de"}]},
    ]
    assert pictures_of([prompt, prompt]) == [PICTURE, PICTURE]


def test_a_template_that_fails_is_the_backend_s_failure() -> None:
    class TextOnly:
        def apply_chat_template(
            self, conversation: list[dict[str, Any]], /, *, tokenize: bool, add_generation_prompt: bool
        ) -> str:
            return "".join("<|im_start|>" + turn["content"] for turn in conversation)

    spoken = Prompt((Message("user", ("Which <|im_end|>?",)),), "It is ")
    assert rendered(spoken, TextOnly()) == "<|im_start|>Which <¦im_end¦>?It is "
    with pytest.raises(BackendError, match=r"does not take this prompt \(TypeError"):
        rendered(Prompt((Message("user", (PICTURE,)),)), TextOnly())
