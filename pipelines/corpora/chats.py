"""Chats to tokens by a tokenizer's chat template: the answers are the targets, to the token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from .forms import Chat
from .records import BadRecordError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTokens", "check_template", "encode_chats"]

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
FIX = "Name a template that marks the answers, between {% generation %} and {% endgeneration %}: --chat-template FILE."

Span = tuple[int, int]


class ChatTokens(NamedTuple):
    """A chat as token ids, and the spans of its answers, from and up to which token.

    Attributes:
        controlled: whether a text without a template holds what the tokenizer takes for one of its special tokens;
            ``None`` of others, whose template holds them.
    """

    ids: list[int]
    answers: list[Span]
    controlled: bool | None = None


def check_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that cannot put chats into text.

    Args:
        tokenizer: with or without a template.
        name: of it, for messages.

    Raises:
        ValueError: it has no template, several and none that is the default, or one that is damaged.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer {name} has no chat template, by which chats become text; name one with "
                         "--chat-template FILE, or take a tokenizer of a chat model.")  # fmt: skip
    tokenizer.get_chat_template()  # of several, the default one
    try:
        _rendered(tokenizer, [{"role": "user", "content": "x"}], asked=True)
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template of {name} is damaged: {error.message}, line {error.lineno}.") from error
    except TemplateError:
        pass  # it may refuse this chat


def encode_chats(chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase) -> list[ChatTokens | BadRecordError]:
    """Tokenize chats, and find the tokens of every answer.

    A template that marks what the assistant says, between ``{% generation %}`` and ``{% endgeneration %}``, is taken
    at its word. With any other, an answer begins where the chat before it ends, rendered with a generation prompt, as
    the model will be asked; and ends where the chat ends with it. Both must be beginnings of the whole chat, as text
    and as tokens: some templates change earlier turns when later ones follow, and some tokens span a border.

    Args:
        chats: at least one answer each.
        tokenizer: with a chat template.

    Returns:
        Of each chat its tokens, or why its answers cannot be told from the rest.
    """
    find = _marked if tokenizer.is_fast and MARKED.search(tokenizer.get_chat_template()) else _by_prefixes
    rendered = [_or_refusal(find, tokenizer, chat) for chat in chats]
    texts = [text for one in rendered if not isinstance(one, BadRecordError) for text in one.texts]
    offsets: dict[str, Any] = {"return_offsets_mapping": True} if find is _marked else {}
    encoded: Any = tokenizer(texts, add_special_tokens=False, verbose=False, **offsets) if texts else {"input_ids": []}
    ids, places = iter(encoded["input_ids"]), iter(encoded.get("offset_mapping", ()))
    found: list[ChatTokens | BadRecordError] = []
    for one in rendered:
        if isinstance(one, BadRecordError):
            found.append(one)
            continue
        own = list(islice(ids, len(one.texts)))
        try:
            found.append(one.spans_of(own, next(places, None)))
        except BadRecordError as error:
            found.append(error)
    return found


def _or_refusal(find: Any, tokenizer: PreTrainedTokenizerBase, chat: Chat) -> _Rendered | BadRecordError:
    from jinja2 import TemplateError

    try:
        return find(tokenizer, [dict(message) for message in chat.messages])
    except TemplateError as error:
        return BadRecordError("template", f"the chat template refuses it ({error}).")
    except BadRecordError as error:
        return error


class _Rendered(NamedTuple):
    """A chat as text, the whole at the end; before it, its beginnings up to each answer's start and end in turn.

    With a template that marks answers there is the whole alone, and the answers' spans of characters.
    """

    texts: list[str]
    marks: list[Span] | None = None

    def spans_of(self, ids: Sequence[list[int]], offsets: Sequence[Span] | None) -> ChatTokens:
        """The answers, given the tokens of each text, and the characters of each token of the whole."""
        whole = ids[-1]
        if self.marks is not None:
            assert offsets is not None, "asked for"
            return ChatTokens(whole, _spans_of_marks(self.texts[-1], self.marks, offsets))
        for begun in ids[:-1]:
            if whole[: len(begun)] != begun:
                raise BadRecordError(
                    "border in a token",
                    "a token of the chat spans the border of an answer, so its loss would be that of both sides. "
                    + FIX,
                )
        borders = [len(begun) for begun in ids]
        return ChatTokens(whole, list(zip(borders[::2], borders[1::2], strict=True)))


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, asked: bool) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)
    assert isinstance(text, str)
    return text


def _by_prefixes(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> _Rendered:
    whole = _rendered(tokenizer, messages, asked=False)
    texts = []
    for at in range(len(messages)):
        if messages[at]["role"] != "assistant":
            continue
        start = _rendered(tokenizer, messages[:at], asked=True)
        end = whole if at == len(messages) - 1 else _rendered(tokenizer, messages[: at + 1], asked=False)
        for begun, what in ((start, "the prompt of"), (end, "the chat up to")):
            if not whole.startswith(begun):
                raise BadRecordError(
                    "changing template",
                    f"the chat template renders {what} turn {at + 1} otherwise once later turns follow, so the "
                    f"answer's tokens are not known. {FIX}",
                )
        if start == _rendered(tokenizer, messages[:at], asked=False):
            _check_unasked(tokenizer, messages, at, whole, end[len(start) :])
        texts += [start, end]
    # The last answer ends with the whole.
    return _Rendered(texts)


def _check_unasked(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], at: int, whole: str, turn: str
) -> None:
    """Refuse what a template without generation prompt writes around an answer: it would be taken for the answer."""
    heading, found, _ = turn.partition(messages[at]["content"].strip())
    following = _rendered(tokenizer, [*messages, {"role": "user", "content": "x"}], asked=False)
    if not found or heading.strip():
        what = f"begins an answer with {heading[:40]!r}"
    elif not following.startswith(whole):
        what = "ends the chat with what is not there once it goes on"
    else:
        return
    raise BadRecordError(
        "no generation prompt",
        f"the chat template has no generation prompt, and {what}, which would be trained on. {FIX}",
    )


def _marked(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> _Rendered:
    from transformers.utils import chat_template_utils

    # Not apply_chat_template, which marks all that follows an answer whose end is between tokens.
    render: Any = chat_template_utils.render_jinja_template
    (text,), (marks,) = render(
        conversations=[messages],
        chat_template=tokenizer.get_chat_template(),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    marks = [(start, end) for start, end in marks if text[start:end].strip()]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if len(marks) != len(answers):
        raise BadRecordError("unmarked answer", f"the chat template marks {len(marks)} of {len(answers)} answers.")
    for (start, end), answer in zip(marks, answers, strict=True):
        if answer.strip().splitlines()[-1].strip() not in text[start:end]:
            raise BadRecordError(
                "unmarked answer", f"the chat template marks {text[start:end][:40]!r} as the answer {answer[:40]!r}."
            )
    return _Rendered([text], marks)


def _spans_of_marks(text: str, marks: Sequence[Span], offsets: Sequence[Span]) -> list[Span]:
    """Spans of tokens of those of characters; a token's white space belongs to the text beside it."""
    spans: list[Span] = []
    token = 0
    for start, end in marks:
        inside: list[int] = []
        while token < len(offsets) and offsets[token][0] < end:
            first, last = offsets[token]
            part = text[first:last]
            if part.strip():
                first, last = first + len(part) - len(part.lstrip()), last - len(part) + len(part.rstrip())
            if first < start < last or first < end < last:
                raise BadRecordError(
                    "border in a token",
                    f"the token {part!r} spans the border of an answer, so its loss would be that of both sides.",
                )
            if start <= first < end:
                inside.append(token)
            token += 1
        if not inside:
            raise BadRecordError("empty", "an answer has no token.")
        spans.append((inside[0], inside[-1] + 1))
    return spans
