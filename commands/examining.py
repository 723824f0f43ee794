"""Commands that look and change nothing: at a bundle, and at this machine."""

from __future__ import annotations

from edgewise import rendering
from edgewise.commands.console import conclude, show
from edgewise.commands.options import BundlePath, JsonOption


def inspect(bundle: BundlePath, as_json: JsonOption = False) -> None:
    """Show what a bundle holds and what was measured of it.

    Example: edgewise inspect run/bundle
    """
    from edgewise.bundle import Bundle

    opened = Bundle.open(bundle)
    described = {
        "path": str(bundle),
        "model_digest": opened.model_digest,
        "size_bytes": opened.size_bytes,
        "core": opened.core,
        "attestations": opened.attestations(),
    }
    show(rendering.bundle_view(opened), described, as_json=as_json)


def verify(bundle: BundlePath, as_json: JsonOption = False) -> None:
    """Check every byte of a bundle, and that it answers its golden items on this machine.

    Example: edgewise verify run/bundle
    """
    from edgewise.jobs.predict import verify_bundle

    digest = verify_bundle(bundle)
    verdict = {"path": str(bundle), "model_digest": digest, "verified": True}
    show(f"{bundle} is whole and answers as packed: {digest}", verdict, as_json=as_json)


def doctor(as_json: JsonOption = False) -> None:
    """Examine this machine: versions, processor, extras, what will not work and why.

    Example: edgewise doctor
    """
    from edgewise.jobs.doctor import diagnose

    diagnosis = diagnose()
    conclude(rendering.diagnosis_view(diagnosis), diagnosis, as_json=as_json, goal_met=diagnosis.healthy)
