"""A conversation at the terminal: lines are read, answers are shown as they come, Ctrl-C interrupts an answer."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from edgewise import rendering
from edgewise.commands.console import ERR, OUT, show
from edgewise.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.dialogue import Prompt
    from edgewise.jobs.chat import Chat, Heard, Reply, Talk


def converse(talking: Chat, talk: Talk, *, as_json: bool) -> bool:
    """Answer line after line until there are no more; whether an answer failed."""
    failed = False
    notes = ERR if as_json else OUT
    for line in _lines(quiet=as_json):
        command, _, rest = line.partition(" ")
        prompt = None
        if command == "/exit":
            break
        if command == "/new":
            talk = talk.anew()
        elif command == "/help":
            notes.print(rendering.chat_help())
        elif command == "/edit":
            prompt = talk.editing(rest) if rest else None
            if prompt is None:
                notes.print(rendering.chat_note("/edit TEXT replaces the last answer; there has to be one."))
        elif command.startswith("/"):
            notes.print(rendering.chat_note(f"There is no {command}; /help shows what there is."))
        else:
            prompt = talk.asking(line)
        if prompt is not None:
            heard = _hear(talking, prompt, talk.session, as_json)
            failed |= heard is None
            talk = talk if heard is None else talk.after(prompt, heard.text)
    return failed


def _lines(*, quiet: bool) -> Iterator[str]:
    """What is typed, line after line; Ctrl-C twice at the prompt ends it, as the end of the input does."""
    interactive = sys.stdin.isatty() and not quiet
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if interactive:
        import readline

        readline.set_auto_history(True)
    warned = False
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            OUT.print()
            return
        except KeyboardInterrupt:
            OUT.print()
            if warned or not interactive:
                return
            warned = True
            OUT.print(rendering.chat_note("Ctrl-C again, or /exit, leaves."))
            continue
        if not interactive and not line:
            return
        warned = False
        if line.strip():
            if not interactive and not quiet:
                OUT.print(f"> {line.strip()}")
            yield line.strip()


def _hear(talking: Chat, prompt: Prompt, session: str, as_json: bool) -> Heard | None:
    """Show one answer as it comes, and what it took; None where there is an error in its place."""
    from edgewise.jobs.chat import Reply, now_s

    reply = Reply(now_s())
    try:
        _follow(talking, prompt, session, reply, quiet=as_json)
    except KeyboardInterrupt:
        pass
    except EdgewiseError as error:
        told = {"error": error.problem, "remedy": error.remedy}
        show(rendering.chat_note(f"error: {error}"), told, as_json=as_json)
        return None
    heard = reply.heard(now_s())
    if as_json:
        _write(msgspec.json.encode(heard).decode() + "\n")
    else:
        OUT.print()
        OUT.print(rendering.heard_line(heard))
    return heard


def _follow(talking: Chat, prompt: Prompt, session: str, reply: Reply, *, quiet: bool) -> None:
    """Let the reply hear an answer to its end, and write what is new in it."""
    from edgewise.jobs.chat import now_s

    with closing(talking.ask(prompt, session)) as events:
        for event in events:
            said = reply.hear(event, now_s())
            if said is not None and not quiet:
                instead = f"\n{rendering.INSTEAD}\n" if said.replaces else ""
                _write(instead + rendering.printable(said.text))


def _write(text: str) -> None:
    """Text as it is, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
