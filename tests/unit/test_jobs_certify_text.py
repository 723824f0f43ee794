"""Certifying a language model: what is asked, what a judge says of it, and what the certificate names."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from edgewise.bundle import Bundle, attach
from edgewise.contracts import Certificate, CloudReply, Reference
from edgewise.dataset import digest_examples, digest_items, load_examples
from edgewise.dialogue import Finish, Message, Piece, Prompt, Role, Sampling, Written
from edgewise.errors import CertificateError, CloudRefusedError, ConfigError, DataError, InputError
from edgewise.jobs import answerers
from edgewise.jobs.certifying import CertifyJob, certify_with_cloud, certify_with_predictions
from edgewise.jobs.prompts import load_prompts
from edgewise.quantize import NullProgress
from edgewise.router import fitted
from edgewise.router.gate import gate_of, prediction_of, uncovered
from edgewise.router.signals import score_of

REFERENCE = Reference("big", "sha256:cloud")
N = 320


def pieces_of(number):
    """The edge's answer to question `number`: sure of even ones, unsure of odd ones, and wordy after 16 tokens."""
    logprob = -0.01 if number % 2 == 0 else -2.0
    head = [
        Piece(text, at, logprob - 0.0001 * number, margin=math.exp(logprob) if at == 0 else None)
        for at, text in enumerate(["The", " answer", " is", " ", str(number)])
    ]
    return head + [Piece(".", 9, -0.5)] * 16


class Writes:
    """A writing that is known beforehand."""

    def __init__(self, pieces):
        self._pieces, self.closed = iter(pieces), False
        self.written = Written(finish=Finish.STOP, prompt_tokens=1, completion_tokens=len(pieces))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._pieces)

    def stop(self):
        raise AssertionError("nobody interrupts")

    def close(self):
        self.closed = True


class Generator:
    """A language model that answers questions by their number."""

    max_length = 512
    task = "text-generation"

    def __init__(self, bundle):
        self.bundle, self.digest = bundle, bundle.model_digest
        self.asked, self.golden = [], 0

    def write(self, prompt, *, tenant="", session=None):
        self.asked.append(prompt)
        question = prompt.text if prompt.text is not None else prompt.messages[-1].content
        if "forbidden" in question:
            raise InputError("The prompt is too long.", "Give a shorter one.")
        return Writes(pieces_of(int(question.split()[-1])))

    def check_golden(self):
        self.golden += 1


class Cloud:
    """Answers every question by its number, in other words, and wrongly where the number is odd and below 40."""

    def __init__(self):
        self.asked = []

    async def describe(self, *, timeout_s):
        return REFERENCE

    async def predict(self, request, *, timeout_s):
        self.asked.append(request)
        number = int(request.inputs.messages[-1].content.split()[-1])
        return CloudReply(f"#### {number + (number % 2 and number < 40)}", REFERENCE)

    async def aclose(self):
        pass


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(first=0, count=N, **fields):
    return [{"text": f"What is {number}", **fields} for number in range(first, first + count)]


@pytest.fixture
def made(monkeypatch):
    """The models that were opened."""
    opened = []

    def load(path):
        opened.append(Generator(Bundle.open(path)))
        return opened[-1]

    monkeypatch.setattr(answerers.EdgeGenerator, "load", load)
    return opened


@pytest.fixture
def job(tiny_generator_bundle, tmp_path, made):
    return CertifyJob(
        tiny_generator_bundle,
        write(tmp_path / "data.jsonl", rows()),
        alpha=0.02,
        delta=0.05,
        judge="number",
        max_tokens=32,
        out=tmp_path / "certificate.json",
    )


def test_texts_that_end_with_the_same_number_agree(job, made):
    cloud = Cloud()
    found = certify_with_cloud(job, cloud, NullProgress())
    certificate = found.certificate
    assert (certificate.judge, certificate.signal, certificate.reference) == (
        "number",
        "mean_logprob:first=16",
        REFERENCE,
    )
    assert certificate.runtime.startswith("onnxruntime-genai ")
    assert found.disagreements == 20
    assert 0.5 < certificate.bound.local_share < 1
    assert made[-1].golden == 1
    asked = Prompt(messages=(Message(role=Role.USER, content="What is 7"),), sampling=Sampling(max_tokens=32))
    assert asked in made[-1].asked
    assert asked in [request.inputs for request in cloud.asked]
    assert asked.sampling.is_greedy


def test_the_score_is_the_one_that_the_gate_gives_to_the_first_tokens(job):
    found = certify_with_cloud(job, Cloud(), NullProgress())
    gate = [score_of(prediction_of(pieces_of(number)[:16]), found.certificate.signal) for number in range(N)]
    local = np.array(gate) > found.certificate.bound.threshold
    assert local.mean() == found.certificate.bound.local_share


@pytest.mark.parametrize(("max_tokens", "first"), [(1, 1), (8, 8), (16, 16), (64, 16)])
def test_the_default_signal_reads_no_more_tokens_than_an_answer_may_have(job, max_tokens, first):
    certificate = certify_with_cloud(replace(job, max_tokens=max_tokens), Cloud(), NullProgress()).certificate
    assert certificate.signal == f"mean_logprob:first={first}"
    asked = Prompt(text="Why?", sampling=Sampling(max_tokens=max_tokens))
    assert uncovered(asked, gate_of(certificate)) is None, "a request like the items is one that it speaks of"
    assert certify_with_cloud(replace(job, max_tokens=max_tokens, cached=True), Cloud(), NullProgress()).reused


def test_a_signal_that_reads_as_many_tokens_as_an_answer_has_is_taken(job):
    found = certify_with_cloud(replace(job, max_tokens=8, signal="low_logprob:first=8"), Cloud(), NullProgress())
    assert found.certificate.signal == "low_logprob:first=8"


def test_a_tuning_part_compares_no_signal_that_short_answers_cannot_give(job, tmp_path):
    tuning = write(tmp_path / "tuning.jsonl", rows(first=N, count=60))
    found = certify_with_cloud(replace(job, tuning=tuning, max_tokens=12), Cloud(), NullProgress())
    names = {row.signal for row in found.tuning.signals}
    assert names == {"mean_logprob:first=8", "low_logprob:first=8", "first_margin", "mean_logprob:first=12"}


def test_by_another_judge_every_text_differs(job):
    found = certify_with_cloud(replace(job, judge="exact"), Cloud(), NullProgress())
    assert found.disagreements == N
    assert found.certificate.bound.local_share * N == found.certificate.bound.k


def test_what_the_cloud_said_may_come_from_a_file(job, tmp_path):
    answers = [{"text": "x", "output": f"It is {n}.", "model": "big", "model_version": "1"} for n in range(N)]
    found = certify_with_predictions(job, write(tmp_path / "p.jsonl", answers), NullProgress())
    assert found.disagreements == 0
    assert found.certificate.bound.local_share == 1


def test_a_tuning_part_chooses_among_signals_that_a_gate_can_read(job, tmp_path):
    tuning = write(tmp_path / "tuning.jsonl", rows(first=N, count=40) + rows(first=1000, count=60))

    class Errs(Cloud):
        async def predict(self, request, *, timeout_s):
            reply = await super().predict(request, timeout_s=timeout_s)
            odd = int(request.inputs.messages[-1].content.split()[-1]) % 2
            return CloudReply("none" if odd else reply.output, REFERENCE)

    found = certify_with_cloud(replace(job, tuning=tuning), Errs(), NullProgress())
    names = {row.signal for row in found.tuning.signals}
    assert {"mean_logprob:first=8", "mean_logprob:first=16", "low_logprob:first=32", "first_margin"} <= names
    assert not names & {"mean_logprob", "combined"}, "what reads the whole answer would hold it back"
    assert found.tuning.asked.judge == "number"
    assert found.certificate.bound.local_share * N == N / 2 + found.certificate.bound.k, "the sure ones, and the slack"


def test_prompts_that_look_too_hard_are_learned_from_the_tuning_part(job, tmp_path):
    """Their words alone tell: the edge's scores say nothing of it here."""
    hard = [{"text": f"Prove this lemma of {number} and derive What is {2 * number}"} for number in range(1000, 1150)]
    easy = [{"text": f"Say please What is {2 * number}"} for number in range(1000, 1150)]

    class Errs(Cloud):
        async def predict(self, request, *, timeout_s):
            reply = await super().predict(request, timeout_s=timeout_s)
            return CloudReply("none" if "Prove" in request.inputs.messages[-1].content else reply.output, REFERENCE)

    tuning = write(tmp_path / "tuning.jsonl", hard + easy)
    asked = replace(job, tuning=tuning, complexity=True, data=write(tmp_path / "d.jsonl", rows(2000)))
    found = certify_with_cloud(asked, Errs(), NullProgress())
    complexity = fitted.decode(found.path.with_suffix(".fitted.npz").read_bytes()).complexity
    assert found.certificate.fitted_digest is not None
    messages = [
        (Message(role=Role.USER, content=f"{text} What is 6"),) for text in ("Prove this lemma and derive", "Say")
    ]
    assert [complexity.is_too_complex(Prompt(messages=said)) for said in messages] == [True, False]


def test_labels_are_held_against_by_the_same_judge(job, tmp_path):
    labelled = [{**row, "label": f"{number}.0"} for number, row in enumerate(rows())]
    tuning = [{**row, "label": row["text"].split()[-1]} for row in rows(first=N, count=60)]
    found = certify_with_cloud(
        replace(
            job,
            target="accuracy",
            data=write(tmp_path / "labelled.jsonl", labelled),
            tuning=write(tmp_path / "tuning.jsonl", tuning),
        ),
        Cloud(),
        NullProgress(),
    )
    assert found.local.lost == 0
    assert next(row for row in found.curve if row.alpha == job.alpha).accuracy > 0.9


def test_the_same_job_is_not_done_twice_unless_the_judge_is_another(job):
    first = certify_with_cloud(job, Cloud(), NullProgress())
    again = certify_with_cloud(replace(job, cached=True), Cloud(), NullProgress())
    assert again.reused
    assert again.certificate == first.certificate
    other = certify_with_cloud(replace(job, cached=True, judge="exact"), Cloud(), NullProgress())
    assert not other.reused


def test_conversations_and_raw_prompts_are_asked_as_they_stand(tmp_path):
    said = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1"},
    ]
    lines = [
        {"messages": said},
        {"prompt": "Once upon"},
        {"text": "2", "system": "Be brief"},
        {"text": "3", "system": None},
    ]
    part = load_prompts(write(tmp_path / "d.jsonl", lines), text_field="text", label_field="label", max_tokens=5)
    sampling = Sampling(max_tokens=5)
    assert [example.input for example in part.examples] == [
        Prompt(messages=tuple(Message(role=Role(m["role"]), content=m["content"]) for m in said), sampling=sampling),
        Prompt(text="Once upon", sampling=sampling),
        Prompt(
            messages=(Message(role=Role.SYSTEM, content="Be brief"), Message(role=Role.USER, content="2")),
            sampling=sampling,
        ),
        Prompt(messages=(Message(role=Role.USER, content="3"),), sampling=sampling),
    ]


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_field_that_is_named_is_the_users_message_whatever_its_name(tmp_path, field):
    path = write(tmp_path / "d.jsonl", [{field: "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}])
    part = load_prompts(path, text_field=field, label_field="label", max_tokens=5)
    hi = Prompt(messages=(Message(role=Role.USER, content="Hi"),), sampling=Sampling(max_tokens=5))
    assert [example.input for example in part.examples] == [hi, hi]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ({}, "no field 'text'"),
        ({"text": "a", "prompt": "b"}, "both"),
        ({"text": ""}, "blank"),
        ({"prompt": 1}, "not a text"),
        ({"messages": "hi"}, "no conversation"),
        ({"messages": []}, "no user's message is last"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "no user's message is last"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "no conversation"),
        ({"messages": [{"role": "user", "content": None}]}, "no conversation"),
        ({"text": "a", "system": 3}, "not a text"),
    ],
)
def test_a_line_that_asks_nothing_is_refused_with_its_number(tmp_path, line, hint):
    path = write(tmp_path / "d.jsonl", [{"text": "fine"}, line])
    with pytest.raises(DataError) as refusal:
        load_prompts(path, text_field="text", label_field="label", max_tokens=5)
    assert hint in str(refusal.value)
    assert "line 2" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "error", "hint"),
    [
        ({"judge": None}, ConfigError, "--judge exact"),
        ({"judge": "exat"}, ConfigError, "'exact'"),
        ({"judge": "similarity"}, ConfigError, "--judge-bundle"),
        ({"signal": "margin"}, ConfigError, "mean_logprob"),
        ({"signal": "mean_logprob:first=0"}, ConfigError, "whole number"),
        ({"max_tokens": 8, "signal": "low_logprob:first=9"}, ConfigError, "reads 9 tokens, and with --max-tokens 8"),
        ({"max_tokens": 0}, ConfigError, "max_tokens is 0"),
        ({"group_by": "label"}, ConfigError, "no label"),
        ({"group_by": "topic", "groups": ("a",)}, DataError, "no field 'topic'"),
        ({"target": "selective"}, ConfigError, "tuning"),
    ],
)
def test_wishes_that_no_language_model_grants_are_refused_before_a_cloud_is_asked(job, change, error, hint):
    cloud = Cloud()
    with pytest.raises(error) as refusal:
        certify_with_cloud(replace(job, **change), cloud, NullProgress())
    assert hint in str(refusal.value)
    assert cloud.asked == []


def test_a_judge_for_a_classifier_is_refused(job, tiny_text_bundle):
    with pytest.raises(ConfigError, match="--judge compares texts"):
        certify_with_cloud(replace(job, bundle=tiny_text_bundle), Cloud(), NullProgress())


def test_a_bundle_that_gives_no_vectors_judges_nothing(job, tiny_text_bundle):
    with pytest.raises(ConfigError, match="gives no vectors"):
        certify_with_cloud(replace(job, judge="similarity", judge_bundle=tiny_text_bundle), Cloud(), NullProgress())


def test_the_texts_that_a_bundle_was_chosen_on_do_not_certify_it(job, tiny_generator_bundle, tmp_path):

    bundle = shutil.copytree(tiny_generator_bundle, tmp_path / "bundle")
    seen = load_examples(job.data)
    attach(bundle, "measurement", {"data_digest": digest_examples(seen), "items_digest": digest_items(seen)})
    with pytest.raises(CertificateError, match="used to choose this bundle"):
        certify_with_cloud(replace(job, bundle=bundle), Cloud(), NullProgress())


def test_a_prompt_that_cannot_be_answered_is_named(job, tmp_path):
    lines = [*rows(count=N - 1), {"text": "forbidden 3"}]
    with pytest.raises(DataError, match=f"long.jsonl, line {N}: The prompt is too long"):
        certify_with_cloud(replace(job, data=write(tmp_path / "long.jsonl", lines)), Cloud(), NullProgress())
    assert not job.out.exists()


class Picky(Cloud):
    """A cloud that refuses a question."""

    async def predict(self, request, *, timeout_s):
        if request.inputs.messages[-1].content == "What is 17":
            raise CloudRefusedError("Status 422: too rude.", "Change it.")
        return await super().predict(request, timeout_s=timeout_s)


@pytest.mark.parametrize("part", ["data", "tuning"])
def test_a_prompt_that_the_cloud_refuses_is_named_by_its_line(job, tmp_path, part):
    path = tmp_path / "refused.jsonl"
    path.write_text("\n\n" + "".join(json.dumps(row) + "\n" for row in rows()))
    others = write(tmp_path / "others.jsonl", rows(1000, N))
    changed = {"data": path} if part == "data" else {"data": others, "tuning": path}
    with pytest.raises(
        CloudRefusedError, match=r"refused\.jsonl, line 20: the cloud refuses it: Status 422"
    ) as refused:
        certify_with_cloud(replace(job, **changed), Picky(), NullProgress())
    assert refused.value.remedy == "Change it."
    assert not job.out.exists()


def test_groups_of_a_field_have_their_own_thresholds(job, tmp_path):
    lines = [{**row, "topic": "even" if number % 2 == 0 else "odd"} for number, row in enumerate(rows(count=700))]
    found = certify_with_cloud(
        replace(job, data=write(tmp_path / "topics.jsonl", lines), group_by="topic", groups=("even", "odd")),
        Cloud(),
        NullProgress(),
    )
    bounds = found.certificate.groups.bounds
    assert bounds["even"].local_share == 1
    assert bounds["odd"].local_share < 1
    assert isinstance(found.certificate, Certificate)
