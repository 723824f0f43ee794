"""Tiny random checkpoints, each written by transformers itself, for every test that needs a real one.

Reached through the fixture of this name in tests/conftest.py.
"""

from __future__ import annotations

import json
from pathlib import Path

LABELS = {0: "corn", 1: "gold", 2: "ship"}
WORDS = [*"abcdefghijklmnopqrstuvwxyz", "corn", "gold", "ship", "price", "rose", "fell", "to", "the"]


def tokenizer(folder: Path, max_length: int = 32) -> None:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: index for index, word in enumerate(special + WORDS)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
    ).save_pretrained(folder)


def _config(family: str, **more):
    import transformers

    sizes = {"vocab_size": 64, "pad_token_id": 0, "id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    wide = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if family == "DistilBert":
        wide = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    return getattr(transformers, f"{family}Config")(
        **sizes, **wide, max_position_embeddings=40, initializer_range=0.5, **more
    )


def text_checkpoint(folder: Path, family: str = "Bert", head: str = "ForSequenceClassification", **more) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    safe = more.pop("safe_serialization", True)
    model = getattr(transformers, family + head)(_config(family, **more))
    model.save_pretrained(folder, safe_serialization=safe)
    tokenizer(folder)
    return folder


CHAT_TEMPLATE = (
    "{% if tools %}[TOOLS] {% for tool in tools %}{{ tool.function.name }} {% endfor %}[END]{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('a system message comes first') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}[END]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def chat_tokenizer(folder: Path, max_length: int = 256, extra: tuple[str, ...] = ()) -> None:
    """A tokenizer of bytes, so that it reads every text, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[END]", "[TOOLS]", "[system]", "[user]", "[assistant]", "[tool]"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: index for index, word in enumerate([*special, *letters, *extra])}
    tokens = Tokenizer(models.BPE(vocab, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="[PAD]",
        eos_token="[END]",
        additional_special_tokens=special[2:],
        model_max_length=max_length,
    )
    found.chat_template = CHAT_TEMPLATE
    found.save_pretrained(folder)


def causal_checkpoint(folder: Path, *, seed: int = 0, layers: int = 2, extra: tuple[str, ...] = (), **more) -> Path:
    """A language model with random weights, which repeats itself but is never undecided between two tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=263 + len(extra), hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, **more,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    chat_tokenizer(folder, extra=extra)
    return folder


def sentence_encoder(folder: Path, mode: str, normalize: bool, max_tokens: int = 12) -> Path:
    """A bare encoder in sentence-transformers' folder layout."""
    text_checkpoint(folder, head="Model")
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [{"type": f"sentence_transformers.models.{name}", "path": f"{i}_{name}"} for i, name in enumerate(names)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    return folder


def vit_checkpoint(folder: Path, channels: int) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )  # fmt: skip
    config.num_channels, config.initializer_range = channels, 0.5
    config.id2label, config.label2id = LABELS, {v: k for k, v in LABELS.items()}
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    ).save_pretrained(folder)
    return folder


def rewrite_weights(folder: Path, seed: int) -> None:
    """Give a text classifier other weights of the same shape."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
