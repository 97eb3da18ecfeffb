"""Messages -> the text a chat template makes of them, and which characters the assistant wrote.

Templates with `{% generation %}` markers say themselves what the assistant writes. For the others
a turn is what the rendering gains between asking for the turn and having it; that holds only if
every earlier rendering is a prefix of the whole one, which is checked. Templates run in the
sandbox of transformers.
"""

import re
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import SpecError

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chat:
    """A tokenizer's chat template. `variables` are the special tokens it may write."""

    template: str
    variables: dict[str, Any]

    @property
    def marked(self) -> bool:
        """Whether the template marks what the assistant writes."""
        return _MARKER.search(self.template) is not None


def chat_of(tokenizer: Any) -> Chat:
    """The chat template of a tokenizer.

    Raises:
        SpecError: it has none.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise SpecError(
            "data.sources.*.format",
            "messages need a chat template, and the job's tokenizer has none",
            "Use the tokenizer of a chat model, or format `completion` or `text`",
        ) from error
    return Chat(template, dict(tokenizer.special_tokens_map))


def render(chat: Chat, messages: list[dict[str, Any]], where: str) -> tuple[str, list[Span]]:
    """(text, spans of characters that the assistant wrote).

    Args:
        where: names the document in errors.

    Raises:
        SpecError: the template refuses the messages, or does not let turns be told apart.
    """
    if chat.marked:
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


def _rendered(
    chat: Chat, messages: list[dict[str, Any]], ask: bool, where: str
) -> tuple[str, list[Span]]:
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(
            [messages],
            chat_template=chat.template,
            return_assistant_tokens_mask=chat.marked,
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
    return texts[0], [tuple(span) for span in spans[0]] if chat.marked else []
