"""Commands that serve until they are told to end: a gateway, a cloud service."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from edgewise import rendering
from edgewise.commands.console import ERR, OUT, warn
from edgewise.commands.options import (
    CertificateOption,
    CloudKeyEnv,
    CloudKind,
    CloudModel,
    CloudUrl,
    ConfigOption,
    HostOption,
    KeysEnv,
    names,
)
from edgewise.commands.settings import CloudOptions, configured, overridden
from edgewise.config import Config
from edgewise.contracts import Mode, ServiceInfo

if TYPE_CHECKING:
    from edgewise.wiring import Gateway


def edge_serve(
    bundle: Annotated[Path | None, Argument(metavar="[BUNDLE]", help="Folder of a bundle.")] = None,
    config: ConfigOption = None,
    cloud: CloudUrl = None,
    cloud_kind: CloudKind = None,
    cloud_model: CloudModel = None,
    cloud_key_env: CloudKeyEnv = None,
    certificate: CertificateOption = None,
    other_machine: Annotated[
        bool | None, Option("--other-machine", help="Accept a certificate of another kind of machine.")
    ] = None,
    mode: Annotated[Mode | None, Option("--mode", help="Mode of requests that name none.")] = None,
    budget_ms: Annotated[float | None, Option("--budget-ms", help="Budget of requests that name none.")] = None,
    audit_share: Annotated[float | None, Option("--audit-share", help="Probability of an audit.")] = None,
    state: Annotated[Path | None, Option("--state", help="File for outbox, answers and audits.")] = None,
    host: HostOption = None,
    port: Annotated[int | None, Option("--port", help="Port to bind; 0 takes a free one.")] = None,
    api_keys_env: KeysEnv = None,
) -> None:
    """Serve a bundle: answer locally what the certificate covers, escalate the rest.

    Example: edgewise edge serve run/bundle --cloud http://127.0.0.1:8700 --port 8701
    """
    from edgewise import wiring

    settings = overridden(
        configured(config),
        edge={
            "bundle": bundle,
            "certificate": certificate,
            "other_machine": other_machine,
            "mode": mode,
            "budget_ms": budget_ms,
        },
        audit={"share": audit_share},
        state={"path": state},
        server={"host": host, "port": port, "api_keys_env": api_keys_env},
    )
    settings = CloudOptions(cloud, cloud_kind, cloud_model, cloud_key_env).over(settings, settings.edge.bundle)
    wiring.serve_gateway(settings, partial(_gateway_ready, settings.edge.mode))


def _gateway_ready(mode: Mode, gateway: Gateway, host: str, port: int) -> None:
    warn(gateway.warnings)
    certified = gateway.router.certificate
    if certified is not None and mode in (Mode.GUARDED, Mode.SPECULATIVE):
        ERR.print(rendering.certificate_sentence(certified))
    OUT.print(f"Gateway for {gateway.info.name} ready on http://{_address(host, port)}")


def cloud_serve(
    models: Annotated[
        list[str],
        Argument(metavar="MODEL [NAME=PATH…]", help="Folders of Hugging Face checkpoints or of bundles."),
    ],
    name: Annotated[str | None, Option("--name", help="The first model's name; its own unless given.")] = None,
    engine: Annotated[str, Option("--engine", help="What computes: auto, torch, onnx, or ray.")] = "auto",
    replicas: Annotated[
        int | None, Option("--replicas", min=0, help="Worker processes a model; 0 computes in this process.")
    ] = None,
    threads: Annotated[
        int | None,
        Option("--threads", min=1, help="Threads a model, shared out among its workers; every core unless given."),
    ] = None,
    max_batch: Annotated[int, Option("--max-batch", min=1, help="Most requests computed together.")] = 16,
    max_batch_tokens: Annotated[
        int, Option("--max-batch-tokens", min=1, help="Tokens of language models' answers that there is memory for.")
    ] = 32_768,
    host: HostOption = None,
    port: Annotated[int, Option("--port", help="Port to bind; 0 takes a free one.")] = 8700,
    api_keys_env: KeysEnv = None,
    admins: Annotated[str, Option("--admins", help="Tenants that may load and unload models, by commas.")] = "",
    allow_load: Annotated[
        bool, Option("--allow-load", help="Without API keys, on loopback: everybody may load and unload.")
    ] = False,
    draft: Annotated[
        Path | None, Option("--draft", help="Checkpoint of a small language model that guesses for the first model.")
    ] = None,
) -> None:
    """Serve checkpoints or bundles; the first is the reference that gateways escalate to.

    Example: edgewise cloud serve checkpoint small=run/bundle --replicas 2 --port 8700
    """
    from edgewise import wiring

    config = overridden(Config(), server={"host": host, "port": port, "api_keys_env": api_keys_env})
    settings = wiring.CloudSettings(
        models=wiring.cloud_models(models, name),
        engine=engine,
        replicas=replicas,
        threads=threads,
        max_batch=max_batch,
        max_batch_tokens=max_batch_tokens,
        admins=frozenset(names(admins)),
        allow_load=allow_load,
        draft=draft,
    )
    wiring.serve_cloud(settings, config, _cloud_ready)


def _cloud_ready(infos: Sequence[ServiceInfo], host: str, port: int) -> None:
    served = ", ".join(info.name for info in infos)
    OUT.print(f"Cloud service for {served} ready on http://{_address(host, port)}")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
