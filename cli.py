"""The program: the commands by their names, and what becomes of errors and signals. It and `commands/` alone print.

Exit codes: 0 done, 1 the goal was not met, 2 usage or bad input, 130 interrupted, 143 told to end.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated

import typer

from edgewise import __version__
from edgewise.commands import certifying, examining, making, serving, talking
from edgewise.commands.console import ERR, OUT
from edgewise.errors import DiskFullError, EdgewiseError

app = typer.Typer(
    name="edgewise",
    help="Edge models with a certified way to the cloud: quantize, certify, serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
edge_app = typer.Typer(help="The gateway on a device.", no_args_is_help=True)
cloud_app = typer.Typer(help="The cloud service.", no_args_is_help=True)
app.add_typer(edge_app, name="edge")
app.add_typer(cloud_app, name="cloud")

for _command in (
    making.quantize,
    making.profile,
    making.report,
    making.pack,
    certifying.plan,
    certifying.certify,
    certifying.explain,
    certifying.evaluate,
    talking.predict,
    talking.chat,
    examining.inspect,
    examining.verify,
    examining.doctor,
):
    app.command()(_command)
edge_app.command("serve")(serving.edge_serve)
cloud_app.command("serve")(serving.cloud_serve)


def _version(asked: bool) -> None:
    if asked:
        OUT.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    level = os.environ.get("EDGEWISE_LOG", "WARNING").upper()
    if level not in logging.getLevelNamesMapping():
        raise typer.BadParameter(f"EDGEWISE_LOG is {level!r}: give DEBUG, INFO, WARNING or ERROR.")
    logging.getLogger("edgewise").setLevel(level)


def _terminated(*_: object) -> None:
    sys.exit(143)


def main() -> None:
    """Run the command line; every error raised on purpose becomes two lines and an exit code."""
    # As Ctrl-C does, SIGTERM unwinds: what was half-written is removed, what was started is ended.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except EdgewiseError as error:
        ERR.print(f"error: {error.problem}")
        if error.remedy:
            ERR.print(f"       {error.remedy}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        ERR.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        told = DiskFullError.caused_by(error) or EdgewiseError(
            f"{error.strerror or error}{where}.", "Check the path, its permissions and the free space."
        )
        ERR.print(f"error: {told.problem}\n       {told.remedy}")
        sys.exit(2)


if __name__ == "__main__":
    main()
