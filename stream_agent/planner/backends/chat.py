"""A prompt as chat turns, the same for every backend: what is text stays text.

Nothing in a text part may act as one of the model's control tokens, whether it was read off an image, written by a model or
typed by a person: `<|im_end|>` in a caption would otherwise end the turn and let what follows speak as the system.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

from stream_agent.errors import BackendError
from stream_agent.planner.backends.protocol import Message, Picture, Prompt

_BAR = "¦"
# Control tokens of other shapes: of Llama 1 and 2, Mistral, Gemma, DeepSeek, and what templates use for pictures.
_TAGS = re.compile(
    r"</?(?:s|pad|unk|bos|eos|image|video|img|tool_call|tool_response|tools|think|start_of_turn|end_of_turn)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|IMG|IMG_BREAK|IMG_END|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
    r"|<<SYS>>|<</SYS>>|<[|｜]|[|｜]>",
    re.IGNORECASE,
)


class ChatTemplate(Protocol):
    """A tokenizer or processor of transformers."""

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], /, *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The conversation as one text."""
        ...


def inert(text: str, control: Iterable[str] = ()) -> str:
    """The text with control tokens broken, so that it reads the same to a person and is plain text to a model.

    Args:
        text: Any text.
        control: Further control tokens, of the model's own tokenizer.
    """
    text = _TAGS.sub(_broken, text)
    for token in control:
        if not token.split() or " " in token:  # white space is nobody's control token, and would never end
            continue
        while token in text:
            text = text.replace(token, token[0] + " " + token[1:] if len(token) > 1 else " ")
    return text


def chat_turns(prompt: Prompt, control: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Turns as chat templates take them: plain text, or a list of parts where there is a picture."""
    control = tuple(control)
    return [{"role": message.role, "content": _content(message, control)} for message in prompt.messages]


def rendered(prompt: Prompt, template: ChatTemplate, control: Iterable[str] = ()) -> str:
    """The whole prompt as the model's own template writes it, up to where the model goes on.

    Args:
        prompt: With pictures as the template's place holders.
        template: The tokenizer, or the processor of a model with eyes.
        control: Control tokens of the tokenizer.

    Raises:
        BackendError: The template does not take such a prompt: text models' fail on pictures, some on a system turn.
    """
    try:
        text = template.apply_chat_template(chat_turns(prompt, control), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's makers and fails in its own ways
        raise BackendError(
            f"the model's chat template does not take this prompt ({type(error).__name__}: {error}); use another model"
        ) from error
    return text + prompt.answer_prefix


def pictures_of(prompts: Iterable[Prompt]) -> list[Picture]:
    """Every picture of the prompts in their order."""
    return [
        part for prompt in prompts for message in prompt.messages for part in message.parts if isinstance(part, Picture)
    ]


def texts_joined(message: Message) -> tuple[str | Picture, ...]:
    """The parts with neighbouring texts joined, so that two halves cannot make a control token between them."""
    joined: list[str | Picture] = []
    for part in message.parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


def _content(message: Message, control: tuple[str, ...]) -> str | list[dict[str, Any]]:
    parts = texts_joined(message)
    if all(isinstance(part, str) for part in parts):
        return "".join(inert(part, control) for part in parts if isinstance(part, str))
    return [
        {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": inert(part, control)}
        for part in parts
    ]


def _broken(match: re.Match[str]) -> str:
    token = match.group()
    if "|" in token or "｜" in token:
        return token.replace("|", _BAR).replace("｜", _BAR)
    return token[0] + " " + token[1:]
