"""What a bundle costs on one machine, as a value; and asking another machine for it by a command.

Owns the form of a profile and the command that brings one back. Measures nothing: `measure.py` does, on that machine.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
import numpy as np

from edgewise.bundle import Bundle, Kind
from edgewise.edge import Device
from edgewise.errors import ConfigError, EdgewiseError
from edgewise.quantize.report import Performance, Setting
from edgewise.quantize.statistics import Latency

FORMAT_VERSION = 1
SAME = "same"
"""What a profile says of golden items that came out as they were packed."""

TIMEOUT_S = 1800.0
"""How long a profile command may take: a slow device may have to load a large model several times."""

_PLACE = "{bundle}"
_SHOWN_LINES = 3
_SHOWN = 300
_READ_BYTES = 1 << 20


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle costs on one machine; what `edgewise profile --json` prints.

    Attributes:
        format_version: 1.
        model_digest: The bundle's.
        name: The model's name.
        kind: What it gives.
        size_bytes: Bytes of the bundle, attestations left out.
        performance: Time and memory, at `threads` threads.
        threads: Threads of one prediction.
        device: The machine.
        golden: "same" where the golden items came out as they were packed, else the difference in words.
        items: Different inputs that were timed.
        rounds: Fresh processes.
        facts: What was asked for and not measured, and why.
    """

    model_digest: str
    name: str
    kind: Kind
    size_bytes: int
    performance: Performance
    threads: int
    device: Device
    golden: str
    items: int
    rounds: int
    facts: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION


class SettingRow(NamedTuple):
    """One line of a table of latencies.

    Attributes:
        threads: Threads of one prediction.
        tokens: Tokens of each text; None for the data's own lengths.
        latency: What was measured.
    """

    threads: int
    tokens: int | None
    latency: Latency


class TargetError(EdgewiseError):
    """The profile command did not bring back a profile of the bundle."""


class _Header(msgspec.Struct, frozen=True):
    """The field that every format version has."""

    format_version: int


def rows_of(profile: Profile) -> list[SettingRow]:
    """Every latency of a profile as a line, the data's own lengths at `threads` threads first."""
    first = SettingRow(profile.threads, None, profile.performance.latency)
    return [first, *(SettingRow(row.threads, row.tokens, row.latency) for row in profile.performance.settings)]


def profile_on_target(
    bundles: Mapping[str, Path],
    template: str,
    rounds: int,
    *,
    timeout_s: float = TIMEOUT_S,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Profile | EdgewiseError]:
    """Ask another machine for the cost of several bundles, taking turns, so that a slow minute there hits all alike.

    Args:
        bundles: Folders by name, at least one.
        template: The command, see `run_profile_command`; called `rounds` times a bundle.
        rounds: Calls a bundle, at least 1.
        timeout_s: Seconds that one call may take.
        advance: Called after each call.

    Returns:
        By name the medians over the calls, or why there is none. A bundle whose call failed is not asked for again.

    Raises:
        ConfigError: The template is no such command.
    """
    command_of(template, Path())
    found: dict[str, list[Profile]] = {name: [] for name in bundles}
    broken: dict[str, EdgewiseError] = {}
    for number in range(rounds):
        start = number % len(bundles)
        for name in [*bundles][start:] + [*bundles][:start]:
            if name not in broken:
                try:
                    found[name].append(run_profile_command(template, bundles[name], timeout_s=timeout_s))
                except EdgewiseError as e:
                    broken[name] = e
            advance()
    return {name: broken[name] if name in broken else combined(profiles) for name, profiles in found.items()}


def run_profile_command(template: str, bundle: Path, *, timeout_s: float = TIMEOUT_S) -> Profile:
    """Call a command that prints the profile of a bundle, such as `ssh pi edgewise profile --json {bundle}`.

    No shell sees it here: it is split into arguments first, then `{bundle}` is replaced in each of them.

    Args:
        template: The command; `{bundle}` stands for the bundle's absolute path.
        bundle: The bundle's folder.
        timeout_s: Seconds that it may take.

    Raises:
        BundleError: There is no whole bundle here.
        ConfigError: The template is no such command.
        TargetError: It could not be called, failed, took too long, or printed no profile of this very bundle.
    """
    bundle = bundle.resolve()
    expected = Bundle.open(bundle).model_digest
    command = command_of(template, bundle)
    profile = _decoded(_output_of(command, timeout_s), command)
    if profile.model_digest != expected:
        raise TargetError(
            f"{_told(command)} profiled model {profile.model_digest}; {bundle} holds {expected}.",
            "Copy this bundle to the target, and name its place there in the command.",
        )
    return profile


def command_of(template: str, bundle: Path) -> list[str]:
    """The arguments of a profile command.

    Raises:
        ConfigError: The quotes of the template do not match, or `{bundle}` does not occur in it.
    """
    try:
        words = shlex.split(template)
    except ValueError as e:
        raise ConfigError(f"The profile command {template!r} cannot be split: {e}.", "Close every quote.") from e
    if not any(_PLACE in word for word in words):
        raise ConfigError(
            f"The profile command {template!r} does not say where the bundle goes.",
            f"Write {_PLACE} in its place: ssh pi edgewise profile --json {_PLACE}",
        )
    return [word.replace(_PLACE, str(bundle)) for word in words]


def combined(profiles: Sequence[Profile]) -> Profile:
    """Several profiles of one bundle as one, at least one: medians of times, the largest memory, all calls counted.

    A difference in the golden items, or a fact, of any of them stays.
    """
    first = profiles[0]
    costs = [profile.performance for profile in profiles]
    rates = [cost.tokens_per_s for cost in costs if cost.tokens_per_s is not None]
    return msgspec.structs.replace(
        first,
        performance=Performance(
            size_bytes=first.size_bytes,
            load_ms=_median(cost.load_ms for cost in costs),
            first_ms=_median(cost.first_ms for cost in costs),
            latency=_combined_latency([cost.latency for cost in costs]),
            peak_rss_bytes=max(cost.peak_rss_bytes for cost in costs),
            settings=_combined_settings(costs),
            tokens_per_s=_median(rates) if rates else None,
        ),
        golden=next((profile.golden for profile in profiles if profile.golden != SAME), SAME),
        rounds=sum(profile.rounds for profile in profiles),
        facts=tuple(dict.fromkeys(fact for profile in profiles for fact in profile.facts)),
    )


def _combined_settings(costs: Sequence[Performance]) -> tuple[Setting, ...]:
    found: dict[tuple[int, int | None], list[Latency]] = {}
    for cost in costs:
        for setting in cost.settings:
            found.setdefault((setting.threads, setting.tokens), []).append(setting.latency)
    return tuple(
        Setting(threads=threads, tokens=tokens, latency=_combined_latency(latencies))
        for (threads, tokens), latencies in found.items()
    )


def _combined_latency(latencies: Sequence[Latency]) -> Latency:
    return Latency(
        calls=sum(latency.calls for latency in latencies),
        mean_ms=_median(latency.mean_ms for latency in latencies),
        p50_ms=_median(latency.p50_ms for latency in latencies),
        p95_ms=_median(latency.p95_ms for latency in latencies),
        p99_ms=_median(latency.p99_ms for latency in latencies),
    )


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _output_of(command: list[str], timeout_s: float) -> bytes:
    # Into files, not pipes: what the command leaves running may hold a pipe open for longer than its time.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
        try:
            code = subprocess.run(  # noqa: S603  # the user's own command, and no shell
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=complaints, timeout=timeout_s, check=False
            ).returncode
        except subprocess.TimeoutExpired as e:
            raise TargetError(
                f"{_told(command)} took longer than {timeout_s:g} s.{_last_words(complaints)}",
                "See whether the target can be reached, and call the command by hand.",
            ) from e
        except OSError as e:
            raise TargetError(
                f"{_told(command)} cannot be called: {e.strerror}.", "Install it, or name it by its full path."
            ) from e
        if code != 0:
            end = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
            raise TargetError(f"{_told(command)} {end}.{_last_words(complaints)}", "Call the command by hand.")
        output.seek(0)
        return output.read(_READ_BYTES)


def _decoded(printed: bytes, command: list[str]) -> Profile:
    try:
        version = msgspec.json.decode(printed, type=_Header).format_version
        if version == FORMAT_VERSION:
            return msgspec.json.decode(printed, type=Profile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        shown = printed[:_SHOWN].decode("utf-8", errors="replace").strip()
        raise TargetError(
            f"{_told(command)} printed no profile ({e}): {shown!r}.",
            "It must print what `edgewise profile --json` does, and nothing else.",
        ) from e
    raise TargetError(
        f"{_told(command)} printed a profile of format version {version}; this edgewise reads {FORMAT_VERSION}.",
        "Install the same edgewise on both machines.",
    )


def _last_words(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    text = complaints.read(_READ_BYTES).decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f" Its last words: {' | '.join(lines[-_SHOWN_LINES:])[-_SHOWN:]}" if lines else ""


def _told(command: list[str]) -> str:
    return f"The profile command `{shlex.join(command)}`"
