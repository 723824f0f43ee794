"""What a gateway of texts is made of: the edge model that writes, the judge of its certificate, and how it is served.

Imported only where the bundle is a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgewise.bundle import Bundle
from edgewise.config import Config, TextSection
from edgewise.contracts import Certificate
from edgewise.dialogue import Message, Prompt, Role
from edgewise.edge import EdgeGenerator, EdgeModel, probe
from edgewise.errors import ConfigError
from edgewise.router.agreement import judge_of
from edgewise.router.gate import gate_of
from edgewise.router.settings import TextSettings


def load_generator(config: Config) -> EdgeGenerator:
    """The edge model, its prompts computed ahead.

    Raises:
        BundleError: It cannot be used here.
        ConfigError: A setting of `[text]` does not fit it.
        MissingExtraError: onnxruntime-genai is not installed.
    """
    text = config.text
    prefill = [Prompt(messages=(Message(role=Role.SYSTEM, content=content),)) for content in text.prefill]
    return EdgeGenerator.load(
        Path(config.edge.bundle or ""),
        threads=config.edge.model_threads,
        slots=text.slots,
        slot_tokens=text.slot_tokens,
        prefill=prefill,
    )


def text_settings(config: Config) -> TextSettings:
    """How the router serves it: with as many texts at a time as there are cores for."""
    text = config.text
    return TextSettings(
        threads=text.threads or max(1, probe().cores // config.edge.model_threads),
        gate_ms=text.gate_ms,
        watch_window=text.watch_window,
        watch_floor=text.watch_floor,
    )


def judge_for(certificate: Certificate | None, text: TextSection) -> Callable[[str, str], bool] | None:
    """The judge that the certificate names; None where texts agree that are the same.

    Raises:
        BundleError: The embedding bundle cannot be used.
        CertificateError: The judge is another than the one that was certified with.
        ConfigError: The settings name another one, or lack what it needs.
    """
    if certificate is None or not certificate.judge:
        return None
    embedder = None if text.judge_bundle is None else _embedder(Path(text.judge_bundle))
    return judge_of(certificate.judge, asked=text.judge or "", embedder=embedder)


def gate_warnings(certificate: Certificate | None) -> tuple[str, ...]:
    """What an operator should know of a certificate whose score reads whole texts."""
    if certificate is None or gate_of(certificate).tokens is not None:
        return ()
    return (
        f"The certificate's signal {certificate.signal!r} reads whole texts, so nothing is streamed from the edge. "
        "Certify one that reads the first tokens, such as mean_logprob:first=16.",
    )


def _embedder(path: Path) -> EdgeModel:
    bundle = Bundle.open(path)
    if bundle.core.kind != "embedder":
        raise ConfigError(
            f"text.judge_bundle: {bundle.core.name} does {bundle.core.task}, it gives no vectors.",
            "Give the bundle of an embedding model.",
        )
    return EdgeModel.from_bundle(bundle)
