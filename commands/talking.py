"""Commands that answer at the terminal: a few items with the edge model alone, or a conversation."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Exit, Option

from edgewise import rendering
from edgewise.commands.console import ERR, OUT, show, warn
from edgewise.commands.conversing import converse
from edgewise.commands.options import (
    BundlePath,
    CertificateOption,
    CloudKeyEnv,
    CloudKind,
    CloudModel,
    CloudUrl,
    ConfigOption,
    Items,
    JsonOption,
)
from edgewise.commands.settings import CloudOptions, configured, for_a_chat
from edgewise.contracts import Mode


def predict(
    bundle: BundlePath,
    items: Items,
    threads: Annotated[int, Option("--threads", min=1, help="Threads of one prediction.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Answer with the edge model alone; nothing leaves this machine.

    Example: edgewise predict run/bundle "grain exports rose in march"
    """
    from edgewise.jobs.predict import predict_items

    rows = predict_items(bundle, items, threads=threads)
    show(rendering.predictions_view(rows), rows, as_json=as_json)


def chat(
    bundle: BundlePath,
    cloud: CloudUrl = None,
    cloud_kind: CloudKind = None,
    cloud_model: CloudModel = None,
    cloud_key_env: CloudKeyEnv = None,
    config: ConfigOption = None,
    certificate: CertificateOption = None,
    mode: Annotated[Mode | None, Option("--mode", help="Mode of the requests; guarded where there is a cloud.")] = None,
    system: Annotated[str, Option("--system", help="What the model is told before the conversation.")] = "",
    max_tokens: Annotated[int, Option("--max-tokens", help="Tokens of an answer at most.")] = 512,
    as_json: Annotated[bool, Option("--json", help="Print a line of JSON an answer.")] = False,
) -> None:
    """Talk with a language model at the terminal: it answers here, and the cloud where it has to.

    Example: edgewise chat run/bundle --cloud http://127.0.0.1:8700
    """
    from contextlib import ExitStack

    from edgewise import wiring
    from edgewise.dialogue import Sampling
    from edgewise.jobs.chat import Chat, Talk, check_chat

    check_chat(bundle, max_tokens)
    named = CloudOptions(cloud, cloud_kind, cloud_model, cloud_key_env)
    settings = for_a_chat(named.over(configured(config), bundle), bundle, certificate, mode)
    with ExitStack() as resources:
        with ERR.status("Loading the model"):
            gateway = wiring.build_gateway(settings, resources)
            talking = resources.enter_context(Chat(gateway.router))
        if not as_json:
            warn(gateway.warnings)
            OUT.print(rendering.chat_greeting(gateway.info.name, settings.edge.mode is not Mode.EDGE_ONLY))
        failed = converse(talking, Talk(system, Sampling(max_tokens=max_tokens)), as_json=as_json)
    if failed and not sys.stdin.isatty():
        raise Exit(1)
