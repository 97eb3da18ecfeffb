"""Messages -> the text a chat template makes of them, and which characters the assistant wrote.

Templates with `{% generation %}` markers say themselves what the assistant writes. For the others
a turn is what the rendering gains between asking for the turn and having it; that holds only if
every earlier rendering is a prefix of the whole one, which is checked. Templates run in the
sandbox of transformers.
"""

import re
from typing import Any

from orchestrator.errors import SpecError

from .tokenizer import Chat

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


def render(chat: Chat, messages: list[dict[str, Any]], where: str) -> tuple[str, list[Span]]:
    """(text, spans of characters that the assistant wrote).

    Args:
        where: names the document in errors.

    Raises:
        SpecError: the template refuses the messages, or does not let turns be told apart.
    """
    if _marked(chat):
        return _rendered(chat, messages, False, where)
    whole, _ = _rendered(chat, messages, False, where)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked, _ = _rendered(chat, messages[:index], True, where)
        answered, _ = _rendered(chat, messages[: index + 1], False, where)
        if not (whole.startswith(answered) and answered.startswith(asked)):
            raise SpecError(
                where,
                f"message {index} cannot be told apart: the chat template renders the messages "
                "before it differently once it is there",
                "Use a template with {% generation %} markers, or format `completion`",
            )
        spans.append((len(asked), len(answered)))
    return whole, spans


def _marked(chat: Chat) -> bool:
    return _MARKER.search(chat.template) is not None


def _rendered(
    chat: Chat, messages: list[dict[str, Any]], ask: bool, where: str
) -> tuple[str, list[Span]]:
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(
            [messages],
            chat_template=chat.template,
            return_assistant_tokens_mask=_marked(chat),
            add_generation_prompt=ask,
            **chat.variables,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise SpecError(
            where,
            f"the chat template refuses its messages ({error})",
            "Write roles and contents as the template expects them",
        ) from error
    texts, spans = rendered
    return texts[0], [tuple(span) for span in spans[0]] if _marked(chat) else []
