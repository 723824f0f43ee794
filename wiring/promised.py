"""What a gateway may promise: its certificate, held against the bundle, the machine, the clock and earlier audits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.config import Config
from edgewise.contracts import Certificate, Mode
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CertificateError
from edgewise.jobs.beside import certificate_beside, load_certificate, load_fitted
from edgewise.router.certificate import check_model
from edgewise.router.lifetime import Life, Lifetime
from edgewise.router.policies import policy_named
from edgewise.router.stages import Stage

if TYPE_CHECKING:
    from edgewise.edge import EdgeGenerator
    from edgewise.router.fitted import Fitted


@dataclass(frozen=True)
class Promised:
    """What a gateway may promise, and what an operator should know of it, one sentence each."""

    certificate: Certificate | None
    fitted: Fitted | None
    warnings: tuple[str, ...]


def promised(model: EdgeModel | EdgeGenerator, config: Config) -> Promised:
    """The certificate in force and what was fitted for it; without one only modes that need none may be the default."""
    if not policy_named(config.policy.use).certified:
        warning = f"The policy {config.policy.use!r} follows no certificate: every answer is uncertified."
        return Promised(None, None, (warning,))
    bundle = Path(config.edge.bundle or "")
    path = Path(config.edge.certificate) if config.edge.certificate else certificate_beside(bundle)
    if config.edge.certificate is None and not path.exists():
        if config.edge.mode in (Mode.EDGE_ONLY, Mode.CLOUD_ONLY):
            warning = f"No certificate: every answer in mode {config.edge.mode.value} is uncertified."
            return Promised(None, None, (warning,))
        raise CertificateError(
            f"There is no certificate {path}.",
            "Issue one: edgewise certify BUNDLE. Or serve uncertified: --mode edge_only, or --mode cloud_only.",
        )
    certificate = load_certificate(path)
    check_model(certificate, model.digest, certificate.fitted_digest)
    named = Path(config.edge.fitted) if config.edge.fitted else None
    fitted = load_fitted(bundle, certificate, named, issued=path)
    model.check_golden()
    return Promised(certificate, fitted, _machine_warnings(certificate, model, config.edge.other_machine))


def life_warnings(certificate: Certificate | None) -> tuple[str, ...]:
    """Refuse a certificate whose stated life is over; a clock that cannot tell only gets a warning."""
    if certificate is None or certificate.expires is None:
        return ()
    life = Lifetime(certificate.created, certificate.expires).verdict(time.time(), time.monotonic())
    if life is Life.EXPIRED:
        raise CertificateError(
            f"Certificate {certificate.id} expired at {certificate.expires}.",
            "Certify this bundle again, on items of today: edgewise certify BUNDLE --overwrite.",
        )
    if life is Life.OK:
        return ()
    return (
        f"The clock says {datetime.fromtimestamp(time.time(), UTC):%Y-%m-%dT%H:%M:%SZ}, and certificate "
        f"{certificate.id} was issued at {certificate.created}: everything is escalated until the clock is right.",
    )


def alarm_warnings(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What an alarm before this start has left behind."""
    audits = report["audits"]
    if audits is None or audits["stage"] == Stage.CERTIFIED:
        return ()
    now = "Everything is escalated" if audits["stage"] == Stage.CLOUD_ONLY else "Local answers are uncertified"
    return (f"{now} since an alarm before this start. {audits['last_alarm'] or ''}".strip(),)


def _of_texts(model: EdgeGenerator) -> str:
    # Here, since a gateway of a classifier shall load nothing of texts.
    from edgewise.jobs.answerers import runtime_of

    return runtime_of(model.bundle)


def _machine_warnings(
    certificate: Certificate, model: EdgeModel | EdgeGenerator, other_machine: bool
) -> tuple[str, ...]:
    """Refuse a certificate of another kind of machine, unless that is accepted."""
    device = probe()
    here = (f"onnxruntime {device.onnxruntime}" if isinstance(model, EdgeModel) else _of_texts(model), device.isa)
    if here == (certificate.runtime, certificate.isa):
        return ()
    problem = (
        f"Certificate {certificate.id} was issued with {certificate.runtime} on {certificate.isa}; "
        f"here is {here[0]} on {here[1]}."
    )
    if not other_machine:
        raise CertificateError(
            problem, "Scores may differ: certify on this machine, or accept that with --other-machine."
        )
    return (f"{problem} The golden items agree, but other scores may differ.",)
