"""Small models and corpora in the forms that a hub has them in."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import BertProcessing
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from ted_stream.pipelines.corpora.glue import prepare_glue
from ted_stream.pipelines.corpora.instructions import prepare_instructions
from ted_stream.pipelines.corpora.tokens import train_tokenizer

WORDS = [f"{mood} {thing}" for mood in ("fine", "awful", "happy", "sad") for thing in ("film", "day", "song")]


def pair_tokenizer(texts: Iterable[str], size: int) -> Any:
    """One that puts tokens around and between texts, as BERT's does."""
    tokenizer: Any = train_tokenizer(texts, size)
    bos, eos = ((token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>"))
    tokenizer.backend_tokenizer.post_processor = BertProcessing(eos, bos)
    return tokenizer


def write_llama(folder: Path, *, max_length: int = 64) -> Path:
    """A small Llama with its tokenizer."""
    tokenizer: Any = train_tokenizer(WORDS, 280)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=280,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_bert(folder: Path) -> Path:
    """A small BERT, without a head for classes, with its tokenizer."""
    tokenizer = pair_tokenizer(WORDS, 280)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=280,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_instructions(out: Path, tokenizer: Path, *, size: int = 48) -> Path:
    """Instructions, a quarter of them to test on."""
    corpus = out.with_suffix(".jsonl")
    lines = [{"prompt": f"say {WORDS[at % 12]}", "response": f"{WORDS[at % 7]} {WORDS[at % 5]}"} for at in range(size)]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare_instructions(out, corpus, test_fraction=0.25, tokenizer=str(tokenizer), max_length=64)
    return out


def write_texts(out: Path, tokenizer: Path, task: str = "sst2", *, size: int = 48) -> Path:
    """A task of GLUE with one text (``sst2``, ``cola``) or two and a score (``stsb``)."""
    source = out.with_name(f"{out.name}-source")
    source.mkdir()
    for split in ("train", "validation"):
        rows: list[dict[str, Any]] = []
        for at in range(size):
            text = WORDS[(5 * at + (split == "train")) % 12]
            score = float("fine" in text or "happy" in text)
            if task == "stsb":
                rows.append({"sentence1": text, "sentence2": "a fine day", "label": 1 + 3 * score + at % 12 / 12})
            else:
                rows.append({"sentence": text, "label": int(score)})
        (source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_glue(task, out, source=source, tokenizer=str(tokenizer), max_length=64)
    return out
