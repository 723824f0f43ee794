"""A small text classifier that has learnt made-up words, and data for it: trained in seconds, to quantize in tests."""

from __future__ import annotations

import json
import random
from pathlib import Path

LABELS = ("grain", "ship", "trade")
WORDS = {
    "grain": ("wheat", "corn", "harvest", "crop", "soy"),
    "ship": ("vessel", "port", "cargo", "strike", "tanker"),
    "trade": ("tariff", "deficit", "export", "quota", "surplus"),
}
FILLER = tuple(f"word{i}" for i in range(300))


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of filler with two or three words that tell the label."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        words = [draw.choice(FILLER) for _ in range(draw.randint(4, 12))] + draw.choices(WORDS[label], k=3)
        draw.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def train_text(folder: Path) -> Path:
    """A two-layer encoder that has learnt the words, saved as transformers saves it."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    torch.set_num_threads(1)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(word for group in WORDS.values() for word in group), *FILLER]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=32,
        num_labels=3,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    rows = sentences(480, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for start in [*range(0, 480, 32)] * 2:
        batch = rows[start : start + 32]
        encoded = fast([text for text, _ in batch], padding=True, return_tensors="pt")
        loss = model(**encoded, labels=torch.tensor([LABELS.index(label) for _, label in batch])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    fast.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder
