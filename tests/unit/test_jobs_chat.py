"""A chat: what it asks, shows, and stops. A service that is told what to say stands for the router."""

import asyncio
import io
import json
import signal
import sys
import threading
from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

from edgewise import cli, rendering
from edgewise.commands import conversing
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    Decision,
    Done,
    Mode,
    Reason,
    Revised,
    Source,
    Status,
    Token,
)
from edgewise.dialogue import Finish, Message, Role, Sampling, Written
from edgewise.errors import BundleError, CloudUnreachableError, ConfigError
from edgewise.jobs.chat import Chat, Reply, Talk, check_chat
from edgewise.rendering.chat import COMMANDS


def answered(text, *, source=Source.EDGE, status=Status.FINAL, reason=Reason.CONFIDENT, kind=Answered):
    decision = Decision(action=Action.LOCAL, reason=reason, policy="certified", score=-0.25, threshold=-0.5)
    written = Written(finish=Finish.STOP, prompt_tokens=9, completion_tokens=3, cached_tokens=4)
    return kind(
        Answer(
            id="1", output=text, status=status, source=source, decision=decision, timings_ms={"total": 1.0},
            model_digest="sha256:0", written=written,
        )
    )  # fmt: skip


def tokens(*texts, source=Source.EDGE):
    return [Token(id="1", text=text, source=source) for text in texts]


class Service:
    """Says what it was told to, an event at a time; `None` among the events waits until it is interrupted."""

    def __init__(self, *scripts):
        self.scripts, self.requests, self.ended = list(scripts), [], 0
        self.closed, self.waits = False, threading.Event()

    @asynccontextmanager
    async def running(self):
        yield
        self.closed = True

    async def events(self, request):
        self.requests.append(request)
        script = self.scripts.pop(0)
        try:
            for event in script:
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    self.waits.set()
                    await asyncio.Event().wait()
                yield event
            yield Done("1")
        finally:
            await asyncio.sleep(0.01)
            self.ended += 1


def hear(events):
    reply, shown = Reply(10.0), ""
    for at, event in enumerate(events):
        said = reply.hear(event, 10.5 + 0.1 * at)
        if said is not None:
            shown = said.text if said.replaces else shown + said.text
    return shown, reply.heard(12.0)


def test_tokens_become_a_text_with_figures():
    shown, heard = hear([*tokens("It", " is", " so"), answered("It is so")])
    assert shown == heard.text == "It is so"
    assert (heard.source, heard.reason, heard.status, heard.finish) == ("edge", "confident", "final", "stop")
    assert (heard.tokens, heard.prompt_tokens, heard.cached_tokens) == (3, 9, 4)
    assert (round(heard.first_token_ms), round(heard.total_ms), round(heard.tokens_per_s)) == (500, 2000, 10)
    assert not heard.revised


def test_what_was_held_back_and_comes_at_once_is_no_pace():
    reply = Reply(0.0)
    for at, event in zip([1.0, 1.001, 1.002, 1.102, 1.202], tokens(*"abcde"), strict=True):
        reply.hear(event, at)
    assert round(reply.heard(2.0).tokens_per_s) == 10


def test_a_whole_answer_is_shown_whole():
    shown, heard = hear([answered("It is so")])
    assert shown == "It is so"
    assert heard.tokens_per_s is None


def test_the_cloud_goes_on_where_the_edge_stopped():
    events = [*tokens("It", " is"), *tokens(" not", source=Source.CLOUD), answered("It is not", source=Source.CLOUD)]
    shown, heard = hear(events)
    assert (shown, heard.source, heard.revised) == ("It is not", "cloud", False)


def test_a_text_that_is_taken_back_is_replaced():
    first = answered("Yes", status=Status.PROVISIONAL, reason=Reason.SPECULATIVE)
    shown, heard = hear([*tokens("Yes"), first, answered("No", source=Source.CLOUD, kind=Revised)])
    assert (shown, heard.text, heard.source, heard.status, heard.revised) == ("No", "No", "cloud", "final", True)


def test_what_was_heard_of_an_interrupted_answer_is_kept():
    shown, heard = hear(tokens("It", " is"))
    assert (shown, heard.source, heard.finish, heard.reason, heard.tokens) == ("It is", "edge", "interrupted", None, 2)


def test_a_conversation_grows_by_what_was_asked_and_heard():
    talk = Talk("Be brief.", Sampling(max_tokens=8))
    prompt = talk.asking("Hi")
    assert [message.role for message in prompt.messages] == [Role.SYSTEM, Role.USER]
    assert prompt.sampling.max_tokens == 8
    talk = talk.after(prompt, "Hello")
    again = talk.asking("Again")
    assert [message.content for message in again.messages] == ["Be brief.", "Hi", "Hello", "Again"]
    assert talk.after(again, "").messages == talk.messages, "a question without an answer was not asked"
    assert talk.anew().messages == ()
    assert talk.anew().session != talk.session


def test_an_edited_answer_is_written_on():
    talk = Talk("", Sampling())
    assert talk.editing("No") is None
    talk = talk.after(talk.asking("Well?"), "Yes it is")
    prompt = talk.editing("No, it")
    assert (prompt.begun, prompt.messages) == ("No, it", (Message(role=Role.USER, content="Well?"),))
    assert talk.after(prompt, " is not").messages[-1].content == "No, it is not"


def test_requests_say_what_the_router_has_to_know():
    service = Service([answered("a")])
    talk = Talk("", Sampling())
    with Chat(service, mode=Mode.SPECULATIVE) as chat:
        list(chat.ask(talk.asking("Hi"), talk.session))
    (request,) = service.requests
    assert (request.task, request.session, request.mode) == ("text-generation", talk.session, Mode.SPECULATIVE)
    assert request.revisable
    assert service.closed


def test_closing_an_answer_ends_it_before_the_next_begins():
    service = Service([*tokens("a"), None], [answered("b")])
    talk = Talk("", Sampling())
    with Chat(service) as chat:
        events = chat.ask(talk.asking("Hi"), talk.session)
        assert next(events).text == "a"
        events.close()
        assert service.ended == 1
        assert [type(event) for event in chat.ask(talk.asking("Hi"), talk.session)] == [Answered, Done]
    assert service.ended == 2


def test_an_error_is_raised_where_the_answer_is_read():
    talk = Talk("", Sampling())
    with Chat(Service([CloudUnreachableError("Away.")], [answered("b")])) as chat:
        with pytest.raises(CloudUnreachableError, match="Away"):
            list(chat.ask(talk.asking("Hi"), talk.session))
        assert len(list(chat.ask(talk.asking("Hi"), talk.session))) == 2


def test_only_a_language_model_chats(tiny_text_bundle, tiny_generator_bundle, tmp_path):
    check_chat(tiny_generator_bundle, 1)
    with pytest.raises(BundleError, match="does not chat"):
        check_chat(tiny_text_bundle, 1)
    with pytest.raises(BundleError):
        check_chat(tmp_path, 1)
    with pytest.raises(ConfigError, match="--max-tokens is 0"):
        check_chat(tiny_generator_bundle, 0)


def converse(service, typed, monkeypatch, capsys, *, as_json=False):
    """What a conversation prints, typed through a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    with Chat(service) as chat:
        failed = conversing.converse(chat, Talk("", Sampling()), as_json=as_json)
    return capsys.readouterr().out, failed


def test_a_script_of_lines_is_a_conversation(monkeypatch, capsys):
    service = Service([*tokens("Hel", "lo"), answered("Hello")], [answered(" indeed")], [answered("New")])
    typed = "Hi\n\n  /help\n/edit Yes,\n/new\n/what\nAgain\n/exit\nnever\n"
    out, failed = converse(service, typed, monkeypatch, capsys)
    assert not failed
    assert "> Hi\nHello\nedge · confident · score -0.25, threshold -0.5 · 3 tokens" in out
    assert all(name in out for name in COMMANDS)
    assert "There is no /what" in out
    prompts = [request.inputs for request in service.requests]
    assert [prompt.begun for prompt in prompts] == ["", "Yes,", ""]
    assert [message.content for message in prompts[2].messages] == ["Again"]
    assert service.requests[0].session == service.requests[1].session != service.requests[2].session


def test_json_is_a_line_an_answer(monkeypatch, capsys):
    out, failed = converse(
        Service([answered("Hello")], [CloudUnreachableError("Away.", "Wait.")]), "Hi\nHo\n", monkeypatch, capsys,
        as_json=True,
    )  # fmt: skip
    first, second = out.split("\n", 1)
    assert json.loads(first)["text"] == "Hello"
    assert json.loads(second) == {"error": "Away.", "remedy": "Wait."}
    assert failed


def test_notes_are_no_lines_of_json(monkeypatch, capsys):
    out, _ = converse(Service([answered("Hello")]), "/help\n/edit a\n/what\nHi\n", monkeypatch, capsys, as_json=True)
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["Hello"]


def test_an_error_ends_an_answer_and_not_the_chat(monkeypatch, capsys):
    service = Service([answered("One")], [*tokens("par"), CloudUnreachableError("Away.", "Wait.")], [answered("Two")])
    out, failed = converse(service, "a\nb\nc\n", monkeypatch, capsys)
    assert "error: Away. Wait." in out
    assert failed
    assert [message.content for message in service.requests[2].inputs.messages] == ["a", "One", "c"]


def test_the_terminal_hears_no_control_characters(monkeypatch, capsys):
    out, _ = converse(
        Service([*tokens("a\x1b[2Jb\x07\n\tc"), answered("a\x1b[2Jb\x07\n\tc")]), "x\n", monkeypatch, capsys
    )
    assert "a[2Jb\n\tc" in out
    assert "\x1b[2J" not in out


@pytest.fixture
def heeds_ctrl_c():
    """A test run in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_interrupts_the_answer_and_not_the_program(heeds_ctrl_c, monkeypatch, capsys):
    service = Service([*tokens("It", " is"), None], [answered("Two")])

    shown = threading.Event()

    def show(text):
        if text == " is":
            shown.set()
        return text

    monkeypatch.setattr(rendering, "printable", show)

    def press():
        assert shown.wait(10)
        assert service.waits.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    out, failed = converse(service, "a\nb\n", monkeypatch, capsys)
    pressing.join()
    assert not failed
    assert "It is\nedge · 2 tokens" in out
    assert "interrupted" in out
    assert "Two" in out
    assert [message.content for message in service.requests[1].inputs.messages] == ["a", "It is", "b"]


def test_a_bundle_that_does_not_chat_is_refused_in_two_lines(tiny_text_bundle):
    found = CliRunner().invoke(cli.app, ["chat", str(tiny_text_bundle)])
    assert isinstance(found.exception, BundleError)
