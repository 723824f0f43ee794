"""`edgewise.toml` as frozen settings, parsed once. An unknown key is an error that names the nearest known one.

Owns the file's shape and its defaults. Secrets are named by environment variable, never written into the file.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from edgewise.contracts import Mode
from edgewise.errors import ConfigError

DEFAULT_NAME = "edgewise.toml"
_OF_AWS = ("sagemaker", "bedrock")
"""Kinds of cloud backends whose address is known by their region."""
_MOST_SLOTS = 256
"""Sessions of texts that may be kept: each takes memory, and every turn looks through them."""
_SHOWN_CHARACTERS = 40
_TOO_LARGE = 2**63
"""TOML's whole numbers have 64 bits, Python's have no end: what would take a larger one cannot."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class EdgeSection(_Section, frozen=True):
    """The edge model and how requests are answered.

    Attributes:
        bundle: Path of the bundle.
        certificate: Path of its certificate; None takes the file beside the bundle.
        fitted: Path of what was fitted for the certificate; None takes the file beside the bundle.
        mode: Mode of requests that name none.
        budget_ms: Budget of requests that name none.
        other_machine: Serve under a certificate that was issued on another kind of machine or runtime.
        model_threads: Threads inside one prediction; certificates are issued with one.
        inference_threads: Predictions at the same time; None takes one per core.
    """

    bundle: str | None = None
    certificate: str | None = None
    fitted: str | None = None
    mode: Mode = Mode.GUARDED
    budget_ms: float | None = None
    other_machine: bool = False
    model_threads: int = 1
    inference_threads: int | None = None


class BackendSection(_Section, frozen=True):
    """One cloud backend. A setting that its kind does not take is an error.

    Attributes:
        url: Where it listens; of "sagemaker" and "bedrock" an address in place of AWS's own.
        kind: Name of its client.
        model: Its model, or its endpoint's name; None asks it, of "oip" only our own service.
        api_key_env: Environment variable that holds its key.
        task: What it does with a text; None lets the client say.
        instruction: System prompt of a language model.
        labels: Allowed answers of a language model, or what the numbers of a classifier stand for.
        max_tokens: Longest answer of a language model.
        seed: Seed of a language model.
        constrained: Have vLLM write nothing but a label.
        draft: Bundle of a language model that drafts for our own service's, of kind "openai"; None lets none draft.
        draft_tokens: Tokens to draft a round trip; None adapts them, and drafts only where that is faster.
        dialect: What an "openai" server understands of a prompt: "vllm" (None) or "openai".
        input: Name of the model's input tensor.
        input_shape: Shape of one text in it.
        output: Name of the model's output tensor.
        container: What a SageMaker container speaks: "huggingface" or "oip".
        region: AWS region; None leaves it to the standard chain.
        control_url: An address in place of AWS's own for what describes models and endpoints.
        http2: Speak HTTP/2 where it does.
        ca_file: Certificate authorities (PEM) to trust instead of the public ones.
        connect_timeout_s: Longest wait for a connection.
        keep_alive_s: Seconds for which an idle connection is kept.
    """

    url: str | None = None
    kind: str = "oip"
    model: str | None = None
    api_key_env: str | None = None
    task: str | None = None
    instruction: str | None = None
    labels: tuple[str, ...] | None = None
    max_tokens: int | None = None
    seed: int | None = None
    constrained: bool = False
    draft: str | None = None
    draft_tokens: int | None = None
    dialect: str | None = None
    input: str | None = None
    input_shape: tuple[int, ...] | None = None
    output: str | None = None
    container: str | None = None
    region: str | None = None
    control_url: str | None = None
    http2: bool = False
    ca_file: str | None = None
    connect_timeout_s: float = 2.0
    keep_alive_s: float = 4.0


class CloudSection(_Section, frozen=True):
    """The cloud.

    Attributes:
        use: Name of the backend in use; None where there is only one, or none.
        fail_over: Names of backends to ask where that one fails or keeps silent, in order.
        fail_over_after_s: Seconds of silence after which the next one is asked.
        backends: Backends by name.
        timeout_s: Longest a call may take.
        slow_s: Seconds after which a call counts as failed; None takes three times what half of the calls take, and two
            seconds at least.
        attempts: Calls for one request at most, where a connection fails or the cloud is asked too much.
        hedge_share: Second calls beside slow ones, by calls, at most, in [0, 1]; 0 sends none.
        failures_to_open: Failures, half of the latest calls, that open the breaker.
        cool_down_s: Seconds between probes of a cloud that fails.
        max_cool_down_s: The most that this grows to while the cloud fails again soon after each good probe.
    """

    use: str | None = None
    fail_over: tuple[str, ...] = ()
    fail_over_after_s: float = 1.0
    backends: dict[str, BackendSection] = {}
    timeout_s: float = 30.0
    slow_s: float | None = None
    attempts: int = 3
    hedge_share: float = 0.02
    failures_to_open: int = 3
    cool_down_s: float = 5.0
    max_cool_down_s: float = 60.0


class ServerSection(_Section, frozen=True):
    """The front door.

    Attributes:
        host: Address to bind; loopback unless told otherwise.
        port: Port to bind; 0 takes a free one.
        api_keys_env: Environment variable with keys as "tenant:key,tenant:key".
        http: What serves: "uvicorn", or "granian" where HTTP/2 is wanted (extra `http2`).
        hosts: Names by which clients may call it, in the header `host`; None takes, where it is bound to loopback,
            loopback's names, and elsewhere any.
        drain_s: Longest a shutdown waits for requests in flight.
        linger_s: Seconds for which a stopping server still takes requests, with /readyz at 503, so that a load
            balancer can notice.
        max_body_bytes: Largest request body.
        body_timeout_s: Seconds from the headers to the end of the body.
        max_concurrency: Requests in flight before new ones are turned away.
        max_polls: Polls that wait for an answer before new ones are turned away.
        rate_per_s: Requests a second that one tenant may send for ever; None sets no limit.
        burst: Requests that one tenant may send at once after a silence, where there is a rate.
        access_log: Write a line of JSON for each request to the logger "edgewise.access".
    """

    host: str = "127.0.0.1"
    port: int = 8701
    api_keys_env: str | None = None
    http: str = "uvicorn"
    hosts: tuple[str, ...] | None = None
    drain_s: float = 10.0
    linger_s: float = 0.0
    max_body_bytes: int = 8 << 20
    body_timeout_s: float = 10.0
    max_concurrency: int = 256
    max_polls: int = 1024
    rate_per_s: float | None = None
    burst: int = 50
    access_log: bool = False


class CacheSection(_Section, frozen=True):
    """The exact cache; `max_bytes = 0` keeps none in this process.

    Attributes:
        max_bytes: Room for answers in this process.
        ttl_s: Seconds an answer is kept.
        redis_url_env: Environment variable that holds the URL of a Redis that several gateways share; None shares none.
        redis_timeout_s: Longest wait for that.
    """

    max_bytes: int = 16 << 20
    ttl_s: float = 3600.0
    redis_url_env: str | None = None
    redis_timeout_s: float = 0.05


class PolicySection(_Section, frozen=True):
    """What routes guarded and speculative requests.

    Attributes:
        use: "threshold", "random" or "budgeted".
        local_share: Of "random": probability of a local answer, in [0, 1].
        calls_per_day: Of "budgeted": escalations a day, UTC; this or `money_per_day`.
        money_per_day: Of "budgeted": what escalations may cost a day, in any currency.
        price_per_call: Of "budgeted": what one of them costs, in the same currency.
    """

    use: str = "threshold"
    local_share: float = 0.5
    calls_per_day: float | None = None
    money_per_day: float | None = None
    price_per_call: float | None = None


class AuditSection(_Section, frozen=True):
    """Audits, and what an alarm leads to.

    Attributes:
        share: Probability that a request is audited, in [0, 1].
        verdict_deadline_s: Seconds for which an audited local answer may wait for a cloud that is away.
        on_alarm: "raise" the threshold, go "cloud_only", or only "warn".
        recertify_share: Probability that a request is audited after an alarm, in [0, 1]; 0 never certifies again.
        recertify_items: Fresh audits that a recertification looks at.
    """

    share: float = 0.01
    verdict_deadline_s: float = 900.0
    on_alarm: Literal["raise", "cloud_only", "warn"] = "raise"
    recertify_share: float = 1.0
    recertify_items: int = 1000


class TextSection(_Section, frozen=True):
    """What else holds where the edge model writes texts.

    Attributes:
        threads: Texts that are written at the same time; None takes one for each `edge.model_threads` of the cores.
        slots: Sessions whose computed tokens are kept for their next turn, up to 256; 0 keeps none.
        slot_tokens: Tokens of each that are kept; None: 2,048, or what the model reads where that is less.
        prefill: System prompts that are computed at the start and kept ready.
        gate_ms: Milliseconds from a request's arrival by which the tokens that its score needs must be there; None
            waits for them.
        watch_window: Tokens over which a text is watched after its gate.
        watch_floor: Mean log-probability of those, in nats, below which the cloud takes over; None watches nothing.
        judge: The certificate's judge, where that is a function of one's own: only then is it imported.
        judge_bundle: Path of the embedding bundle that the judge "similarity" needs.
    """

    threads: int | None = None
    slots: int = 4
    slot_tokens: int | None = None
    prefill: tuple[str, ...] = ()
    gate_ms: float | None = None
    watch_window: int = 16
    watch_floor: float | None = None
    judge: str | None = None
    judge_bundle: str | None = None


class StateSection(_Section, frozen=True):
    """Durable state.

    Attributes:
        path: File that keeps outbox, answers and audits; None keeps them in memory.
        max_pending: Requests owed a final answer at once.
        max_answers: Answers kept for pick-up, and as many owed to webhooks; the oldest go first.
        max_bytes: Room of the owed requests, of the answers, and of those owed to webhooks: each.
        max_age_s: Seconds after which an answer is owed no more, and those for which one is kept.
        when_full: Whether one more owed request is refused, or the oldest is owed no more.
    """

    path: str | None = None
    max_pending: int = 10_000
    max_answers: int = 100_000
    max_bytes: int = 256 << 20
    max_age_s: float = 604_800.0
    when_full: Literal["refuse", "drop_oldest"] = "refuse"


class ProfileSection(_Section, frozen=True):
    """A named latency promise. Attributes: budget_ms; mode: None takes the gateway's."""

    budget_ms: float
    mode: Mode | None = None


class WebhookSection(_Section, frozen=True):
    """Where settled answers are sent to; requests name no address.

    Attributes:
        url: Its address.
        secret_env: Environment variable that holds its secret, "whsec_…".
        tenants: Whose answers it gets.
        timeout_s: Longest a delivery may take.
        give_up_after_s: Age beyond which an answer that cannot be delivered is given up.
    """

    url: str
    secret_env: str
    tenants: tuple[str, ...] = ("public",)
    timeout_s: float = 10.0
    give_up_after_s: float = 86_400.0


class RegionSection(_Section, frozen=True):
    """Where the cloud answers from.

    Attributes:
        rtt_ms: Milliseconds there and back.
        price_per_call: Price of a call there; None takes the price of all calls.
        cloud_ms: Milliseconds that the cloud works on an answer.
    """

    rtt_ms: float
    price_per_call: float | None = None
    cloud_ms: float = 0.0


class CostSection(_Section, frozen=True):
    """What answers cost, in one currency; nothing costs anything where it is left out.

    Attributes:
        price_per_call: Price of a cloud call.
        price_per_1k_tokens: Price of 1,000 tokens that a cloud call is billed for.
        tokens: Tokens that a request is billed for, on average.
        edge_watts: Power that the device draws more while it answers; this or `edge_joules`.
        edge_joules: Energy of one edge answer; None takes it from `edge_watts` and the measured time.
        price_per_kwh: Price of the device's energy.
        price_per_second: What a second of waiting is worth.
        regions: Where the cloud answers from, by name; the nearest counts.
    """

    price_per_call: float = 0.0
    price_per_1k_tokens: float = 0.0
    tokens: float = 0.0
    edge_watts: float | None = None
    edge_joules: float | None = None
    price_per_kwh: float = 0.0
    price_per_second: float = 0.0
    regions: dict[str, RegionSection] = {}


class Config(_Section, frozen=True):
    """The whole file; every table has defaults, so an empty file is valid."""

    edge: EdgeSection = EdgeSection()
    cloud: CloudSection = CloudSection()
    server: ServerSection = ServerSection()
    cache: CacheSection = CacheSection()
    policy: PolicySection = PolicySection()
    audit: AuditSection = AuditSection()
    text: TextSection = TextSection()
    state: StateSection = StateSection()
    cost: CostSection = CostSection()
    profiles: dict[str, ProfileSection] = {}
    webhooks: dict[str, WebhookSection] = {}


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: It cannot be read, is no TOML, has an unknown key, or a value is out of its range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The configuration {path} is not UTF-8 at byte {error.start}.", "Save it as UTF-8."
        ) from error
    try:
        return parse_config(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The configuration {path} is not TOML: {error}.", "Correct that line.") from error
    except ValueError as error:  # of a number of some thousand digits, which TOML does not have either
        raise ConfigError(f"The configuration {path} is not TOML: {error}.", "Give smaller numbers.") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.problem}", error.remedy) from error


def parse_config(tables: Mapping[str, Any]) -> Config:
    """Check tables read from TOML.

    Raises:
        ConfigError: A key is unknown or a value is out of its range.
    """
    try:
        config = msgspec.convert(tables, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(*_explained(str(error))) from error
    return checked(config)


def checked(config: Config) -> Config:
    """The configuration, if every number in it is in its range.

    Raises:
        ConfigError: A value is out of its range.
    """
    _check_ranges(config)
    return config


def backend_in_use(cloud: CloudSection) -> BackendSection | None:
    """The backend that `use` names, the only one there is, or None.

    Raises:
        ConfigError: `use` names none of them, or there are several and no `use`.
    """
    return next(iter(backends_in_use(cloud).values()), None)


def backends_in_use(cloud: CloudSection) -> dict[str, BackendSection]:
    """The backend in use, and those that stand in for it, by name and in order; empty where there is none.

    Raises:
        ConfigError: `use` or `fail_over` names none of the backends, or one twice; or it is not clear which is in use.
    """
    known = f"Known backends: {', '.join(sorted(cloud.backends)) or 'none'}."
    use = cloud.use
    if use is None and not cloud.fail_over and len(cloud.backends) <= 1:
        return dict(cloud.backends)
    if use is None:
        raise ConfigError(f"It is not clear which cloud backend is in use. {known}", 'Choose one: cloud.use = "…".')
    if use not in cloud.backends:
        raise ConfigError(f"cloud.use is {use!r}.", known)
    names = [use]
    for name in cloud.fail_over:
        if name not in cloud.backends:
            raise ConfigError(f"cloud.fail_over names {name!r}.", known)
        if name == use:
            raise ConfigError(f"cloud.fail_over names {name!r}, which is in use itself.", "Name other backends.")
        if name in names:
            raise ConfigError(f"cloud.fail_over names {name!r} twice.", "Name each backend once.")
        names.append(name)
    return {name: cloud.backends[name] for name in names}


def _explained(message: str) -> tuple[str, str]:
    """Problem and remedy from the validator's message: the section that has such a key, or its own nearest one."""
    unknown = re.match(r"Object contains unknown field `(?P<key>[^`]*)`", message)
    if unknown is None:
        return message.replace("`$.", "`") + ".", "Correct that value."
    key, sections = unknown["key"], _sections(Config)
    path = message[unknown.end() :].removeprefix(" - at `$").strip(".`")
    problem = f"Unknown key `{key}`{f' in `{path}`' if path else ''}."
    homes = [home.replace("[...]", ".NAME") for home, keys in sections.items() if key in keys]
    if homes:
        return problem, f"It is a key of [{'], ['.join(homes)}]."
    here = sections.get(path, ())
    near = difflib.get_close_matches(key, here, n=1)
    return problem, f"Did you mean `{near[0]}`?" if near else f"Known there: {', '.join(sorted(here))}."


def _sections(kind: type[msgspec.Struct], path: str = "") -> dict[str, tuple[str, ...]]:
    """The keys of every section by the path that the validator gives it."""
    found = {path: kind.__struct_fields__}
    for field in msgspec.structs.fields(kind):
        here = f"{path}.{field.name}" if path else field.name
        for section in (field.type, *get_args(field.type)):
            if isinstance(section, type) and issubclass(section, msgspec.Struct):
                found |= _sections(section, here if section is field.type else f"{here}[...]")
    return found


def _check_ranges(config: Config) -> None:
    positive = {
        "edge.model_threads": config.edge.model_threads,
        "edge.inference_threads": config.edge.inference_threads,
        "cloud.timeout_s": config.cloud.timeout_s,
        "cloud.slow_s": config.cloud.slow_s,
        "cloud.attempts": config.cloud.attempts,
        "cloud.failures_to_open": config.cloud.failures_to_open,
        "cloud.cool_down_s": config.cloud.cool_down_s,
        "cloud.max_cool_down_s": config.cloud.max_cool_down_s,
        "cloud.fail_over_after_s": config.cloud.fail_over_after_s,
        "server.max_body_bytes": config.server.max_body_bytes,
        "server.max_concurrency": config.server.max_concurrency,
        "server.max_polls": config.server.max_polls,
        "server.body_timeout_s": config.server.body_timeout_s,
        "server.rate_per_s": config.server.rate_per_s,
        "server.burst": config.server.burst,
        "cache.ttl_s": config.cache.ttl_s,
        "cache.redis_timeout_s": config.cache.redis_timeout_s,
        "state.max_pending": config.state.max_pending,
        "state.max_answers": config.state.max_answers,
        "state.max_bytes": config.state.max_bytes,
        "state.max_age_s": config.state.max_age_s,
        "text.threads": config.text.threads,
        "text.slot_tokens": config.text.slot_tokens,
        "text.watch_window": config.text.watch_window,
        "policy.calls_per_day": config.policy.calls_per_day,
        "policy.money_per_day": config.policy.money_per_day,
        "policy.price_per_call": config.policy.price_per_call,
        "audit.recertify_items": config.audit.recertify_items,
        "audit.verdict_deadline_s": config.audit.verdict_deadline_s,
        **{f"webhooks.{name}.timeout_s": hook.timeout_s for name, hook in config.webhooks.items()},
        **{f"webhooks.{name}.give_up_after_s": hook.give_up_after_s for name, hook in config.webhooks.items()},
    }
    not_negative = {
        "edge.budget_ms": config.edge.budget_ms,
        "server.drain_s": config.server.drain_s,
        "server.linger_s": config.server.linger_s,
        "cache.max_bytes": config.cache.max_bytes,
        "text.slots": config.text.slots,
        "text.gate_ms": config.text.gate_ms,
        **{f"profiles.{name}.budget_ms": profile.budget_ms for name, profile in config.profiles.items()},
        **_costs(config.cost),
    }
    for name, value in positive.items():
        if value is not None and not 0 < value < _TOO_LARGE:
            raise ConfigError(f"{name} is {_shown(value)}.", "Give a number above 0.")
    for name, value in not_negative.items():
        if value is not None and not 0 <= value < _TOO_LARGE:
            raise ConfigError(f"{name} is {_shown(value)}.", "Give 0 or more.")
    if config.text.slots > _MOST_SLOTS:
        raise ConfigError(
            f"text.slots is {_shown(config.text.slots)}.",
            f"Give at most {_MOST_SLOTS}: each keeps in memory what was computed of a session.",
        )
    floor = config.text.watch_floor
    if floor is not None and not -math.inf < floor < 0:
        raise ConfigError(f"text.watch_floor is {floor!r}.", "Give a number below 0: the logarithm of a probability.")
    probabilities = {
        "cloud.hedge_share": config.cloud.hedge_share,
        "audit.share": config.audit.share,
        "audit.recertify_share": config.audit.recertify_share,
        "policy.local_share": config.policy.local_share,
    }
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value!r}.", "Give a probability between 0 and 1.")
    for name, backend in config.cloud.backends.items():
        if not backend.url and backend.kind not in _OF_AWS:
            raise ConfigError(f"cloud.backends.{name}.url is missing.", "Give the address of the backend.")
    if not 0 <= config.server.port <= 65535:
        raise ConfigError(f"server.port is {_shown(config.server.port)}.", "Give a port between 0 and 65535.")


def _shown(value: float) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _costs(cost: CostSection) -> dict[str, float | None]:
    """Every number of the cost section by its full name."""
    of_all = {f"cost.{name}": getattr(cost, name) for name in cost.__struct_fields__ if name != "regions"}
    of_regions = {
        f"cost.regions.{place}.{name}": getattr(region, name)
        for place, region in cost.regions.items()
        for name in region.__struct_fields__
    }
    return {**of_all, **of_regions}
