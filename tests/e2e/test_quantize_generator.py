"""A tiny language model from its checkpoint to bundles of every precision, with the real builder and runtime.

The works run in this process, not each in a fresh one: importing torch once keeps it short.
"""

import shutil

import msgspec
import numpy as np
import pytest

from edgewise.bundle import Bundle
from edgewise.edge import EdgeGenerator
from edgewise.errors import CheckpointError
from edgewise.quantize import QuantizeJob, bench
from edgewise.quantize.generation import maker
from edgewise.quantize.generation.builder import GenaiJob, genai_here
from edgewise.quantize.generation.checkpoint import inspect_causal
from edgewise.quantize.plan import make_plan
from edgewise.quantize.worker import WORK, _find

pytestmark = pytest.mark.slow

SENTENCES = ("the cat sat on the mat", "the dog ate the cat's food", "on the mat sat the dog\nand the cat")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Llama of two layers, with a byte-level BPE trained on three sentences."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 10, trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=128)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """All candidates through the maker, as the pipeline builds them."""
    folder = tmp_path_factory.mktemp("made")
    data = folder / "texts.jsonl"
    data.write_text("".join(f"{msgspec.json.encode({'text': text}).decode()}\n" for text in SENTENCES * 3))
    recipes = ("int8", "int4", "int4:method=k_quant", "mixed")
    plan = make_plan(QuantizeJob(checkpoint=checkpoint, data=data, out=folder / "run", recipes=recipes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "run_fresh", run_here)
        work = maker.GeneratorMaker(plan, folder, folder / "logs", lambda size: None)
        export = work.export()
        built = {choice.id: work.build(choice) for choice in plan.choices}
        again = maker.GeneratorMaker(plan, folder, folder / "logs", pytest.fail)
        assert again.export() == export
        assert {name: again.build(found.choice).made for name, found in built.items()} == {
            name: found.made for name, found in built.items()
        }
    return export, built


def run_here(work, job, result, **options):
    assert work in WORK
    function, job_type = _find(work)
    found = function(msgspec.json.decode(msgspec.json.encode(job), type=job_type))
    return msgspec.json.decode(msgspec.json.encode(found), type=result)


def test_the_float_graph_agrees_with_the_checkpoint(made):
    export, _ = made
    assert export.exporter == "genai"
    assert export.samples == 9
    assert 0 < export.largest_difference < 1e-4 < export.allowed_difference


def test_every_precision_is_what_it_promises(made):
    _, built = made
    assert [name for name, found in built.items() if not found.usable] == []
    assert all(found.made.outcome.skipped == () for found in built.values())
    facts = {name: " | ".join(found.made.outcome.facts) for name, found in built.items()}
    assert "float32" in facts["fp32"]
    assert "10 of 10" in facts["int8"]
    assert "embedding in 8 bits, one table with the head" in facts["int8"]
    assert "10 of 10" in facts["int4"]
    assert "embedding in 4 bits" in facts["int4"]
    assert "in 4 bits" in facts["mixed"]
    assert "head in 8 bits" in facts["mixed"]
    sizes = {name: Bundle.open(found.bundle).size_bytes for name, found in built.items()}
    assert sizes["int4"] < sizes["mixed"] < sizes["int8"] < sizes["fp32"]


def test_bundles_answer_and_their_golden_items_hold(made):
    _, built = made
    nll = {}
    for name, found in built.items():
        with EdgeGenerator.load(found.bundle) as generator:
            generator.check_golden()
            assert generator.digest == found.made.model_digest
            assert generator.max_length == 128
            assert len(list(generator.generate("the cat", max_tokens=8))) > 0
            nll[name] = np.concatenate([generator.score(text).nll for text in SENTENCES])
    assert np.abs(nll["int8"] - nll["fp32"]).max() < 0.5
    worst = {name: float(np.abs(found - nll["fp32"]).mean()) for name, found in nll.items() if name != "fp32"}
    assert min(worst, key=lambda name: worst[name]) == "int8"


def test_transforms_do_not_apply(made, checkpoint, tmp_path):
    _, built = made
    found = built["int4"].choice
    changed = type(found)(f"fuse+{found.id}", found.recipe, found.options, ("fuse",))
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "the cat sat"}\n{"text": "the dog sat"}\n')
    plan = make_plan(QuantizeJob(checkpoint=checkpoint, data=data, out=tmp_path / "run", recipes=("int4",)))
    work = maker.GeneratorMaker(plan, tmp_path, tmp_path / "logs", lambda size: None)
    assert work.build(changed).made.state == "inapplicable"


@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4", "mixed"])
@pytest.mark.parametrize("kind", ["untied", "soft-capped"])
def test_models_that_differ_at_their_ends(checkpoint, tmp_path, kind, recipe):
    """An embedding apart from the head, and logits that are capped behind it as in Gemma 2."""
    from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config

    shutil.copytree(checkpoint, tmp_path / "source")
    config = AutoConfig.from_pretrained(checkpoint, tie_word_embeddings=False)
    if kind == "soft-capped":
        known = {name: value for name, value in config.to_dict().items() if name in Gemma2Config().to_dict()}
        changed = {"tie_word_embeddings": True, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64}
        config = Gemma2Config(**{**known, **changed, "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh"})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    (tmp_path / "out").mkdir()
    outcome = genai_here(GenaiJob(recipe, {}, str(tmp_path / "source"), str(tmp_path / "out"), 0))
    assert outcome.skipped == ()
    table = "a table of its own" if kind == "untied" else "one table with the head"
    assert any(fact.startswith("embedding in") and fact.endswith(table) for fact in outcome.facts)


def test_a_model_that_the_builder_does_not_know(checkpoint, tmp_path):
    source = tmp_path / "bloom"
    shutil.copytree(checkpoint, source)
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config.replace("LlamaForCausalLM", "BloomForCausalLM"))
    assert inspect_causal(source).architecture == "BloomForCausalLM"
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="cannot build"):
        genai_here(GenaiJob("fp32", {}, str(source), str(tmp_path / "out"), 0))
    assert list((tmp_path / "out").iterdir()) == []
