"""Of a chat every answer is trained on, and nothing else; where that cannot be told to the token, it is refused."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import LocalDataset
from transformers import AutoTokenizer

from ted_stream.pipelines.corpora.chats import encode_chats
from ted_stream.pipelines.corpora.forms import Chat, Forms
from ted_stream.pipelines.corpora.instructions import IGNORED, prepare_instructions
from ted_stream.pipelines.corpora.records import BadRecordError
from ted_stream.pipelines.corpora.tokens import train_tokenizer

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>"),
    *("<|assistant|>", "<|system|>", "<|end|>", "<start_of_turn>", "<end_of_turn>", "<think>", "</think>"),
]
SINGLE = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "It is 2."}]
LATER = [
    {"role": "user", "content": "And 2 + 2?"},
    {"role": "assistant", "content": "4, I think.\n\nYes:  4 ✓"},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "assistant? user? <|user says"},
]
SYSTEM = {"role": "system", "content": "You count."}
CHATS = [SINGLE, [*SINGLE, *LATER], [SYSTEM, *SINGLE, *LATER]]


def template(name: str) -> str:
    """Of a model, as it is published; ``…_training`` are TRL's, which mark the answers."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text()


def tokenizer_with(chat_template: str | None, texts: tuple[str, ...] = ()) -> Any:
    tokenizer = train_tokenizer([message["content"] for message in CHATS[-1]] + list(texts), 330)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})  # pyright: ignore[reportArgumentType]
    tokenizer.chat_template = chat_template
    return tokenizer


def answers(tokenizer: Any, chats: list[list[dict[str, str]]]) -> list[list[str]]:
    """The text of what is trained on, answer by answer; the tokens are those of the template."""
    found = []
    for messages, one in zip(chats, encode_chats([Chat(messages) for messages in chats], tokenizer), strict=True):
        assert not isinstance(one, BadRecordError), one
        assert one.ids == tokenizer.apply_chat_template(messages)
        found.append([tokenizer.decode(one.ids[start:end]) for start, end in one.answers])
    return found


def refusals(tokenizer: Any, chats: list[list[dict[str, str]]]) -> list[str | None]:
    found = encode_chats([Chat(messages) for messages in chats], tokenizer)
    return [one.kind if isinstance(one, BadRecordError) else None for one in found]


def expected(chats: list[list[dict[str, str]]], end: str) -> list[list[str]]:
    return [[m["content"] + end for m in messages if m["role"] == "assistant"] for messages in chats]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("llama3", "<|eot_id|>"),
        ("llama3_training", "<|eot_id|>"),
        ("qwen2_5", "<|im_end|>\n"),
    ],
)
def test_answers_of_models(name: str, end: str) -> None:
    assert answers(tokenizer_with(template(name)), CHATS) == expected(CHATS, end)


def test_a_model_that_takes_no_system_turn() -> None:
    tokenizer = tokenizer_with(template("gemma"))
    assert answers(tokenizer, CHATS[:2]) == expected(CHATS[:2], "<end_of_turn>\n")
    (one,) = encode_chats([Chat(CHATS[2])], tokenizer)
    assert isinstance(one, BadRecordError)
    assert "System role not supported" in one.why


def test_marked_answers_are_those_of_transformers() -> None:
    tokenizer = tokenizer_with(template("llama3_training"))
    for messages, one in zip(CHATS, encode_chats([Chat(chat) for chat in CHATS], tokenizer), strict=True):
        mask = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert not isinstance(one, BadRecordError)
        found = np.zeros(len(one.ids), int)
        for start, end in one.answers:
            found[start:end] = 1
        assert found.tolist() == mask["assistant_masks"]


def test_templates_that_change_earlier_turns_are_refused_but_for_one_answer() -> None:
    """Qwen3's drops the thoughts of earlier answers, Phi-3's puts an end behind the last turn."""
    for name, end in (("qwen3", "<|im_end|>\n"), ("phi3", "<|end|>\n<eos>")):
        tokenizer = tokenizer_with(template(name))
        assert refusals(tokenizer, CHATS) == [None, "changing template", "changing template"]
        ((answer,),) = answers(tokenizer, CHATS[:1])
        assert answer.endswith(f"It is 2.{end}")
    marked = tokenizer_with(template("qwen3_training"))
    assert all(answer.endswith("<|im_end|>\n") for chat in answers(marked, CHATS) for answer in chat)


COLON = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
COLON_MARKED = (
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\n"
    "{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("chat_template", [COLON, COLON_MARKED])
def test_a_token_on_a_border_is_refused(chat_template: str) -> None:
    tokenizer = tokenizer_with(chat_template, texts=(":!!",) * 50)
    shout = [SINGLE[0], {"role": "assistant", "content": "!! wow"}]
    assert refusals(tokenizer, [SINGLE, shout]) == [None, "border in a token"]
    assert answers(tokenizer, [SINGLE]) == [["It is 2.\n"]]


def test_templates_without_a_generation_prompt() -> None:
    """What such a one writes before an answer would be trained on; Mistral's has nothing there."""
    named = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    assert refusals(tokenizer_with(named), CHATS) == ["no generation prompt"] * 3
    # One that always asks for another answer.
    always = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% endif %}{{ m.content }}\n{% endfor %}"
        "<|assistant|>"
    )
    assert refusals(tokenizer_with(always), CHATS[:1]) == ["no generation prompt"]
    mistral = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    found = answers(tokenizer_with(mistral), CHATS[:2])
    assert found == [[" " + answer for answer in chat] for chat in expected(CHATS[:2], "<eos>")]


def test_marks_of_some_answers_are_refused() -> None:
    last = COLON_MARKED.replace("m.role == 'assistant'", "loop.last")
    found = encode_chats([Chat(messages) for messages in CHATS], tokenizer_with(last))
    assert not isinstance(found[0], BadRecordError)
    assert [str(one) for one in found[1:]] == ["the chat template marks 1 of 3 answers."] * 2
    wrong = COLON_MARKED.replace("'assistant'", "'user'")
    assert refusals(tokenizer_with(wrong), CHATS[:1]) == ["unmarked answer"]


# Records


def sharegpt(messages: list[dict[str, str]]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"id": "x", "conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]}


def test_both_forms_of_chats_are_one() -> None:
    for messages in CHATS:
        assert Forms().text({"messages": messages}) == Forms().text(sharegpt(messages)) == Chat(messages)
    beside = {**sharegpt(SINGLE), "system": "You count."}
    assert Forms().text(beside) == Chat([SYSTEM, *SINGLE])
    weighed = {"messages": [SINGLE[0] | {"weight": 0}, SINGLE[1] | {"weight": 1}]}
    assert Forms().text(weighed) == Chat(SINGLE)


USER, ASSISTANT = SINGLE
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "none": ({"messages": []}, "empty", "'messages' has no turns"),
    "no list": ({"messages": "hi"}, "wrong type", "'messages' is str, expected a list"),
    "null": ({"messages": None}, "wrong type", "'messages' is NoneType"),
    "no object": ({"messages": ["hi"]}, "wrong type", "turn 1 is str, expected an object"),
    "no text": ({"messages": [{"role": "user"}]}, "missing field", "turn 1 has no 'content'; present: 'role'"),
    "parts": ({"messages": [{"role": "user", "content": []}]}, "wrong type", "'content' of turn 1 is list"),
    "silent": ({"messages": [USER, ASSISTANT | {"content": " "}]}, "empty", r"turn 2 \(assistant\) is empty"),
    "answer first": ({"messages": [ASSISTANT, USER]}, "role order", "of assistant, user; expected"),
    "no answer": ({"messages": [USER]}, "role order", "of user; expected"),
    "asked at the end": ({"messages": [*SINGLE, USER]}, "role order", "of user, assistant, user; expected"),
    "twice": ({"messages": [USER, USER, ASSISTANT]}, "role order", "of user, user, assistant; expected"),
    "system late": ({"messages": [USER, SYSTEM, ASSISTANT]}, "role order", "of user, system, assistant"),
    "system alone": ({"messages": [SYSTEM]}, "role order", "of system; expected"),
    "two systems": ({"messages": [SYSTEM, *SINGLE], "system": "x"}, "several forms", "a field 'system' and a turn"),
    "no role": ({"messages": [USER, {"role": ["tool"], "content": "x"}]}, "unknown role", "turn 2 is of"),
    "unknown role": ({"messages": [USER, {"role": "tool", "content": "x"}]}, "unknown role", "turn 2 is of 'tool'"),
    "tool call": ({"messages": [USER, ASSISTANT | {"tool_calls": [1]}]}, "tools", "'tool_calls' of turn 2 cannot"),
    "tools": ({"messages": SINGLE, "tools": [1]}, "tools", "field 'tools' cannot"),
    "weight": ({"messages": [USER, ASSISTANT | {"weight": 0}]}, "weight", "turn 2 has weight 0, but every answer"),
    "two forms": ({"messages": SINGLE, "conversations": []}, "several forms", "'conversations' and 'messages'"),
    "sharegpt": ({"conversations": [{"from": "human"}]}, "missing field", "turn 1 has no 'value'; present: 'from'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_chats(name: str) -> None:
    record, kind, words = BAD[name]
    with pytest.raises(BadRecordError, match=words) as raised:
        Forms().text(record)
    assert raised.value.kind == kind


# Datasets


def write(path: Path, chats: list[list[dict[str, str]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats))
    return path


def test_chats_become_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(template("llama3"))
    tokenizer_with(None).save_pretrained(tmp_path / "plain")
    path = write(tmp_path / "chats.jsonl", CHATS * 3)
    given: dict[str, Any] = {"test_fraction": 0.3, "tokenizer": str(tmp_path / "plain")}
    with pytest.raises(ValueError, match=r"plain has no chat template, .* --chat-template FILE"):
        prepare_instructions(tmp_path / "out", path, **given)
    (tmp_path / "damaged.jinja").write_text("{% for %}")
    with pytest.raises(ValueError, match=r"the chat template of .*plain is damaged: .*line 1"):
        prepare_instructions(tmp_path / "out", path, chat_template=tmp_path / "damaged.jinja", **given)
    description = prepare_instructions(tmp_path / "out", path, chat_template=tmp_path / "chat.jinja", **given)
    assert description.notes["form"] == "messages"
    assert description.samples == {"train": 6, "test": 3}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert tokenizer.chat_template == template("llama3")
    whole = []
    for split in ("train", "test"):
        shards: Any = LocalDataset(str(tmp_path / "out" / split))
        for sample in (shards[at] for at in range(len(shards))):
            ids, labels = sample["input_ids"], sample["labels"]
            assert np.array_equal(labels[labels != IGNORED], ids[labels != IGNORED])
            trained = tokenizer.decode(ids[labels != IGNORED]).split("<|eot_id|>")[:-1]
            (messages,) = [chat for chat in CHATS if tokenizer.apply_chat_template(chat) == ids.tolist()]
            assert trained == [message["content"] for message in messages if message["role"] == "assistant"]
            whole.append(messages)
    assert sorted(map(len, whole)) == sorted(len(chat) for chat in CHATS * 3)


def test_what_a_template_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    tokenizer_with(template("qwen3")).save_pretrained(tmp_path / "qwen3")
    path = write(tmp_path / "chats.jsonl", [*[SINGLE] * 3, CHATS[1]])
    given: dict[str, Any] = {"test": path, "tokenizer": str(tmp_path / "qwen3")}
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 4: the chat template renders .* turn 2 otherwise"):
        prepare_instructions(tmp_path / "out", path, **given)
    description = prepare_instructions(tmp_path / "out", path, skip_bad=True, **given)
    assert description.samples == {"train": 3, "test": 3}
    assert description.notes["skipped"] == {"changing template": 2}


def test_a_chat_is_cut_within_its_answers(tmp_path: Path) -> None:
    tokenizer_with(template("llama3")).save_pretrained(tmp_path / "llama3")
    path = write(tmp_path / "chats.jsonl", [SINGLE, CHATS[1]])
    given: dict[str, Any] = {"test": path, "tokenizer": str(tmp_path / "llama3")}
    told: list[str] = []
    description = prepare_instructions(tmp_path / "out", path, max_length=60, report=told.append, **given)
    assert description.notes["counts"]["train"]["truncated"] == 1
    assert told[0] == "train: 1 of 2 samples were longer than 60 tokens and lost their end."
    with pytest.raises(ValueError, match="what comes before its first answer fills 8 tokens"):
        prepare_instructions(tmp_path / "short", path, max_length=8, **given)
