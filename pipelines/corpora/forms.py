"""Forms of instruction records: Alpaca's, a prompt and a response, or a chat of several turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .records import BadRecordError

__all__ = ["Chat", "Forms", "Pair"]

# The prompts of Stanford Alpaca (Taori et al. 2023), with and without an input; the last newline is alpaca-lora's.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
# Where role and text of a turn are, by the field that holds the turns: OpenAI's form, and ShareGPT's.
TURNS = {"messages": ("role", "content"), "conversations": ("from", "value")}
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}
# Of a turn or a record: what belongs into the text, but which only some templates know how to put there.
UNKNOWN = ("tools", "functions", "tool_calls", "function_call", "reasoning_content", "thinking")
# What an answer may hang on beside the form's own fields; of a chat these hold what its turns do.
ASKED = ("context", "history", "passage", "system", "system_prompt")
ASKED_OF_PAIRS = ("input", "instruction", "question")


@dataclass(frozen=True)
class Pair:
    """What the model is given, and what it should answer."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Chat:
    """Turns with ``role`` and ``content``: perhaps one of the system, then user and assistant in turns."""

    messages: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Forms:
    """Which record has which form, by its fields.

    Args:
        prompt: the field of the prompt in records that have neither chats nor Alpaca's form.
        response: the field of the response there.
        ignored: fields that are known to enter no text, though an answer may hang on them.
    """

    prompt: str = "prompt"
    response: str = "response"
    ignored: tuple[str, ...] = ()

    def unused(self, record: Mapping[str, Any], form: str) -> list[str]:
        """The fields of a record of this form that hold something, but enter no text."""
        used = {"alpaca": ("instruction", "input", "output"), "pair": (self.prompt, self.response)}
        return [name for name in record if record[name] and name not in used.get(form, (form, "system"))]

    def of(self, record: object) -> str:
        """The form of a record: ``messages``, ``conversations``, ``alpaca`` or ``pair``.

        Raises:
            BadRecordError: it has none of these, or several.
        """
        if isinstance(record, BadRecordError):
            raise record
        if not isinstance(record, dict):
            raise BadRecordError("no object", f"expected a JSON object, found {type(record).__name__}.")
        fields = {
            "messages": {"messages"},
            "conversations": {"conversations"},
            "alpaca": {"instruction", "output"},
            "pair": {self.prompt, self.response},
        }
        found = [form for form, names in fields.items() if names <= record.keys()]
        if found == ["alpaca", "pair"] and fields["pair"] & fields["alpaca"]:
            return "pair"  # these fields were named
        if len(found) > 1:
            names = " and ".join(map(repr, sorted({name for form in found for name in fields[form]})))
            raise BadRecordError("several forms", f"it has the fields {names}, which are of several forms; keep one.")
        if not found:
            present = ", ".join(map(repr, sorted(map(str, record)))) or "nothing"
            missing = [name for name in (self.prompt, self.response) if name not in record]
            raise BadRecordError(
                "missing field",
                f"field {missing[0]!r} is missing, and so are those of other forms ('messages', 'conversations', "
                f"'instruction' with 'output'); present: {present}. Name the fields of prompt and response with "
                "--prompt-field and --response-field.",
            )
        return found[0]

    def text(self, record: object) -> Pair | Chat:
        """The text of a record.

        Raises:
            BadRecordError: it has no form, what this form needs is missing, empty or of another type, or it has a field
                that an answer may hang on, but that this form leaves out.
        """
        form = self.of(record)
        assert isinstance(record, dict), "it has a form"
        asked = ASKED if form in TURNS else ASKED + ASKED_OF_PAIRS
        for name in self.unused(record, form):
            if name in self.ignored:
                continue
            if name in UNKNOWN:
                raise BadRecordError(
                    "tools",
                    f"field {name!r} cannot be put into the text; leave such records out, or the field: --ignore-field "
                    f"{name}.",
                )
            if name in asked:
                raise BadRecordError(
                    "field left over",
                    f"field {name!r} would not enter the text, and the answer may hang on it. Join it to the "
                    f"{'first turn' if form in TURNS else 'prompt'} in the file, or leave it out: --ignore-field "
                    f"{name}.",
                )
        if form in TURNS:
            return Chat(_messages(record, form))
        if form == "alpaca":
            fields = {name: _text(record, name, record.get(name)) for name in ("instruction",)}
            fields["input"] = "" if record.get("input") is None else _text(record, "input", record["input"])
            if not "".join(fields.values()).strip():
                raise BadRecordError("empty", "fields 'instruction' and 'input' are empty, so nothing is asked.")
            prompt = (ALPACA_WITH_INPUT if fields["input"] else ALPACA).format(**fields)
            name = "output"
        else:
            prompt = _text(record, self.prompt, record[self.prompt]) + "\n"
            if not prompt.strip():
                raise BadRecordError("empty", f"field {self.prompt!r} is empty, so nothing is asked; fill it.")
            name = self.response
        response = _text(record, name, record[name])
        if not response.strip():
            raise BadRecordError("empty", f"field {name!r} is empty, so nothing could be learnt; fill it.")
        return Pair(prompt, response)


def _text(record: Mapping[str, Any], name: str, value: object) -> str:
    if name not in record and value is None:
        raise BadRecordError("missing field", f"field {name!r} is missing; present: {', '.join(map(repr, record))}.")
    if not isinstance(value, str):
        raise BadRecordError("wrong type", f"field {name!r} is {type(value).__name__}, expected text.")
    return value


def _messages(record: Mapping[str, Any], form: str) -> list[dict[str, str]]:
    turns = record[form]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRecordError("wrong type", f"field {form!r} is {type(turns).__name__}, expected a list of turns.")
    if not turns:
        raise BadRecordError("empty", f"field {form!r} has no turns.")
    messages = [_message(turn, number, *TURNS[form]) for number, turn in enumerate(turns, 1)]
    if record.get("system"):
        if messages[0]["role"] == "system":
            raise BadRecordError("several forms", "it has a field 'system' and a turn of that role; keep one.")
        messages.insert(0, {"role": "system", "content": _text(record, "system", record["system"])})
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[0] == "system" else roles
    expected = [("user", "assistant")[number % 2] for number in range(len(spoken))]
    if spoken != expected or len(spoken) % 2 or not spoken:
        raise BadRecordError(
            "role order",
            f"its turns are of {', '.join(roles)}; expected one of system or none, then user and assistant in turns, "
            "to an assistant's at the end.",
        )
    return messages


def _message(turn: object, number: int, role_field: str, text_field: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise BadRecordError("wrong type", f"turn {number} is {type(turn).__name__}, expected an object.")
    for name in (role_field, text_field):
        if name not in turn:
            present = ", ".join(map(repr, sorted(turn)))
            raise BadRecordError("missing field", f"turn {number} has no {name!r}; present: {present}.")
    role = turn[role_field]
    if not isinstance(role, str) or role not in ROLES:
        raise BadRecordError("unknown role", f"turn {number} is of {role!r}; known are {', '.join(ROLES)}.")
    for name in UNKNOWN:
        if turn.get(name):
            raise BadRecordError(
                "tools", f"{name!r} of turn {number} cannot be put into the text; leave such records out."
            )
    if ROLES[role] == "assistant" and turn.get("weight") == 0:
        raise BadRecordError(
            "weight", f"turn {number} has weight 0, but every answer is trained on; leave such records out."
        )
    text = turn[text_field]
    if not isinstance(text, str):
        raise BadRecordError("wrong type", f"{text_field!r} of turn {number} is {type(text).__name__}, expected text.")
    if not text.strip():
        raise BadRecordError("empty", f"turn {number} ({role}) is empty; fill it.")
    return {"role": ROLES[role], "content": text}
