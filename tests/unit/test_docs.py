"""What the documentation names exists: files, commands, options, settings, metrics, errors. Its worked examples run."""

import importlib.util
import json
import re
import shlex
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import click
import httpx
import msgspec
import numpy as np
import pytest
import typer.main

from edgewise import cli, config, telemetry
from edgewise.cloud.clients import CLIENTS
from edgewise.cloud.clients.metering import DraftMetrics
from edgewise.cloud.service import EngineService
from edgewise.cloud.text_metrics import TextMetrics
from edgewise.cloud.verifier import VerifyMetrics
from edgewise.cloud.workers import ThreadWorkers
from edgewise.contracts import CloudClient, Mode, Prediction, Reason, Reference, Request
from edgewise.errors import CloudError, CloudResponseError, InputError
from edgewise.quantize.generation import GENERATION_RECIPES
from edgewise.quantize.recipes import RECIPES, parse_choices
from edgewise.quantize.transforms import TRANSFORMS
from edgewise.router.certificate import allowed_disagreements, certify, items_needed
from edgewise.router.instruments import Instruments
from edgewise.router.signals import COMBINED, GENERATOR_SIGNALS, OPTIONS, SIGNALS, score_of, signal_named
from edgewise.telemetry import Metrics
from edgewise.wire.door import front_door

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *DOCS,
    *sorted((ROOT / "docs/adr").glob("*.md")),
]
APP = typer.main.get_command(cli.app)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(group: click.Group = APP, before: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found = {}
    for name, command in group.commands.items():
        inner = commands(command, (*before, name)) if hasattr(command, "commands") else {(*before, name): command}
        found.update(inner)
    return found


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


def code_lines(text: str) -> Iterator[str]:
    """Lines of fenced bash blocks and of indented ones, continued lines joined."""
    bash = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    yield from bash.splitlines()
    yield from re.findall(r"^    (\S.*)$", text, re.MULTILINE)


def called(text: str) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The command and the options of every line that calls edgewise."""
    for line in code_lines(text):
        if line.startswith("edgewise "):
            words = shlex.split(
                line.replace("[", " ").replace("]", " ").replace("(", " ").replace(")", " ").replace("|", " ")
            )
            name = next(path for size in (2, 1, 0) if (path := tuple(words[1 : 1 + size])) in commands() or not size)
            yield name, [word.partition("=")[0] for word in words if word.startswith("--")]


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_option_shown_exists(page):
    for name, options in called(page.read_text(encoding="utf-8")):
        assert name in commands(), f"{page.name} calls {name}"
        assert set(options) <= options_of(commands()[name]), f"edgewise {' '.join(name)}"


def test_the_check_of_options_would_notice():
    ((name, options),) = called("```bash\nedgewise edge serve run/bundle --no-such-option\n```")
    assert name == ("edge", "serve")
    assert not set(options) <= options_of(commands()[name])


@pytest.mark.parametrize("name", sorted(commands()), ids=" ".join)
def test_every_command_has_a_page_that_names_it_and_its_options(name):
    pages = [page.read_text(encoding="utf-8") for page in DOCS if f"edgewise {' '.join(name)}" in page.read_text()]
    assert pages, "no page in docs/ names it"
    assert options_of(commands()[name]) - {"--help"} <= {
        option for page in pages for option in re.findall(r"--[\w-]+", page)
    }


def table(text: str, heading: str) -> list[list[str]]:
    """Rows of the first table under a heading, code marks stripped."""
    section = text.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


def settings() -> Iterator[tuple[str, str]]:
    """Every key of edgewise.toml with its default, as the page spells them."""
    holders: Mapping[str, type[msgspec.Struct]] = {
        "cloud.backends.NAME": config.BackendSection,
        "profiles.NAME": config.ProfileSection,
        "webhooks.NAME": config.WebhookSection,
        "cost.regions.NAME": config.RegionSection,
        **{
            field.name: field.type
            for field in msgspec.structs.fields(config.Config)
            if field.name not in {"profiles", "webhooks"}
        },
    }
    for path, section in holders.items():
        for field in msgspec.structs.fields(section):
            if (path, field.name) in {("cloud", "backends"), ("cost", "regions")}:
                continue
            default = "required" if field.required else "none" if field.default is None else str(field.default)
            yield f"{path}.{field.name}", default


def test_every_setting_is_documented_with_its_default():
    rows = table(read("docs/gateway.md"), "## Configuration")
    keys = dict(row[:2] for row in rows if "." in row[0])
    assert keys == dict(settings())


def test_the_example_of_a_configuration_is_one():
    text = read("docs/gateway.md").split("## Configuration", 1)[1]
    example = "\n".join(re.findall(r"^    (.+)$", text, re.MULTILINE))
    assert config.parse_config(tomllib.loads(example)).profiles["checkout"].mode is Mode.SPECULATIVE


def test_every_metric_is_documented_with_its_kind_and_labels():
    registry = Metrics()
    Instruments(registry)
    front_door(dict, answers=None, metrics=registry)
    EngineService(ThreadWorkers(None), clock=time, metrics=registry)
    catalogue = {value.name: value for value in vars(telemetry).values() if isinstance(value, telemetry.Metric)}
    # Those of single jobs; a name that is registered already keeps its kind.
    for metric in (telemetry.WEBHOOKS, telemetry.WORKER_DEATHS):
        registry.counter(*metric)
    TextMetrics(registry, "writer", has_draft=True)
    DraftMetrics(registry)
    VerifyMetrics(registry, "target")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", registry.render().decode(), re.MULTILINE))
    assert set(kinds) == set(catalogue)
    rows = table(read("docs/metrics.md"), "## Metrics")
    assert {row[0]: row[1] for row in rows} == kinds
    for name, _, labels, *_ in rows:
        of_quantiles = ("quantile",) if "quantile" in name else ()
        assert tuple(re.findall(r"\w+", labels)) == (*catalogue[name].labels, *of_quantiles), name


def test_every_reason_and_mode_is_documented():
    def words(rows: list[list[str]]) -> set[str]:
        return {re.match(r"\w+", row[0])[0] for row in rows}

    def values(kind: type[StrEnum]) -> set[str]:
        return {member.value for member in kind}

    assert words(table(read("docs/gateway.md"), "## Reasons")) == values(Reason)
    assert words(table(read("docs/gateway.md"), "## Modes")) == values(Mode)


def test_every_error_code_is_documented_with_its_status():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "wire").glob("*.py"))
    raised = set(re.findall(r"(?:Fault|__init__)\(\s*(\d{3}),\s*\"(\w+)\"", source))
    raised |= set(re.findall(r"\(\w+Error, (\d{3}), \"(\w+)\"\)", source))
    raised |= {("400", code) for code in re.findall(r"code=\"(\w+)\"", source)}  # of a RequestError
    rows = table(read("docs/protocols.md"), "## Errors")
    assert {(row[0], code) for row in rows for code in re.findall(r"\w+", row[1])} == raised


def test_every_recipe_is_documented_with_its_options_and_defaults():
    rows = {row[0]: row[2] for row in table(read("docs/quantize.md"), "## Recipes")}
    told = {name: dict(re.findall(r"`(\w+)` \(([\w.]+)\)", f"`{text}")) for name, text in rows.items()}
    assert told == {
        name: {field.name: str(field.default).lower() for field in msgspec.structs.fields(recipe.options)}
        for name, recipe in RECIPES.items()
    }


def test_every_recipe_for_language_models_is_documented_with_its_options_and_defaults():
    rows = {row[0]: row[2] for row in table(read("docs/quantize.md"), "## Language models")}
    told = {name: dict(re.findall(r"`(\w+)` \(([\w.]+)\)", f"`{text}")) for name, text in rows.items()}
    assert told == {
        name: {field.name: str(field.default).lower() for field in msgspec.structs.fields(recipe.options)}
        for name, recipe in GENERATION_RECIPES.items()
    }


def test_every_transform_is_documented():
    assert {row[0] for row in table(read("docs/quantize.md"), "## Transforms")} == set(TRANSFORMS)


def test_the_numbers_told_of_the_certificate_are_its_own():
    page = read("docs/certify.md")
    sizes = [
        int(size) for size in re.search(r"\| n at α = 1 %, δ = 5 % \|([\d |]+)", page)[1].split("|") if size.strip()
    ]
    told = [int(k) for k in re.search(r"\| k\\\*[^|]*\|([\d |]+)", page)[1].split("|") if k.strip()]
    assert [allowed_disagreements(n, 0.01, 0.05) for n in sizes] == told
    needed = [items_needed(alpha, 0.05) for alpha in (0.01, 0.005, 0.02)]
    sentence = re.search(r"(\d+) at α = 1 % and δ = 5 %, (\d+) at 0.5 %, (\d+) at 2 %", page)
    assert [int(n) for n in sentence.groups()] == needed


def test_decisions_are_short_and_complete():
    for page in (ROOT / "docs/adr").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40, page.name
        assert re.match(rf"# {int(page.name[:4])}\. ", text), page.name
        assert "Consequences" in text, page.name


def test_every_dependency_has_its_reason():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    page = read("docs/adr/0002-dependencies-and-pins.md")
    listed = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in listed} - {"edgewise"}
    told = set(re.findall(r"`([\w-]+)`", page))
    told |= {f"pytest{name}" for name in told if name.startswith("-")}
    assert names <= told, names - told


def test_the_picture_is_well_formed_and_described():
    picture = ET.parse(ROOT / "docs/flow.svg").getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert picture.findtext("svg:desc", namespaces=space)
    assert not [element for element in picture.iter() if element.tag.endswith(("script", "image"))]


# The worked examples of CONTRIBUTING.md.


def example(name: str, heading: str, folder: Path):
    """The python block under a heading, imported as a module."""
    section = read("CONTRIBUTING.md").split(f"\n## {heading}\n", 1)[1]
    path = folder / f"{name}.py"
    path.write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"edgewise_example_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_of_a_recipe_halves_a_graph_that_still_answers(tmp_path, tiny_models, tiny_text_onnx):
    recipe = example("fp16_storage", "A recipe", tmp_path).RECIPE
    (choice,) = parse_choices({**RECIPES, recipe.name: recipe}, ["fp16_storage:min_values=4096"])
    assert choice.id == "fp16_storage.min_values-4096"
    small = tmp_path / "small.onnx"
    outcome = choice.recipe.apply(tiny_text_onnx, small, choice.options, seed=0)
    assert outcome.facts == ("1 weights in float16",)
    assert small.stat().st_size < 0.6 * tiny_text_onnx.stat().st_size
    packed = tmp_path / "bundle"
    tiny_models.pack_bundle(tiny_models.text_source(small), packed)
    text = tiny_models.TEXTS[0]
    (prediction,) = tiny_models.EdgeModel.load(packed).predict([text])
    np.testing.assert_allclose(prediction.logits, tiny_models.expected_logits(text), atol=1e-2)
    nothing = choice.recipe.apply(tiny_text_onnx, tmp_path / "no.onnx", type(choice.options)(min_values=10**9), seed=0)
    assert nothing.inapplicable


def test_the_example_of_a_signal_certifies(tmp_path, monkeypatch):
    monkeypatch.setitem(SIGNALS, "logit_gap", example("logit_gap", "A signal", tmp_path).logit_gap)
    logits = np.random.default_rng(0).normal(0, 1, (500, 5)).astype(np.float32)
    logits[np.arange(500), 0] += np.linspace(0, 10, 500).astype(np.float32)
    scores = signal_named("logit_gap")(logits)
    ranked = np.sort(logits, axis=1)
    np.testing.assert_array_equal(scores, ranked[:, -1] - ranked[:, -2])
    assert score_of(Prediction(output="a", logits=logits[0]), "logit_gap") == scores[0]
    bound = certify(scores, np.arange(500) < 100, alpha=0.01, delta=0.05)
    assert 0.5 < bound.local_share < 1


class PlainServer:
    """Answers as the example's protocol says; can be told to misbehave."""

    def __init__(self) -> None:
        self.seen: list[httpx.Request] = []
        self.reply = {"model": "news", "version": "7", "label": "grain"}
        self.status = 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return httpx.Response(self.status, json=self.reply)


async def test_the_example_of_a_cloud_client_does_what_it_owes(tmp_path, monkeypatch):
    server = PlainServer()
    monkeypatch.setitem(CLIENTS, "plain", example("plain", "A cloud client", tmp_path).PlainClient)
    client = CLIENTS["plain"]("http://cloud.test", api_key="secret", transport=httpx.MockTransport(server))
    assert isinstance(client, CloudClient)
    assert await client.describe(timeout_s=5) == Reference("news", "7")
    answered = await client.predict(Request(inputs="wheat"), timeout_s=5)
    assert (answered.output, answered.reference) == ("grain", Reference("news", "7"))
    assert json.loads(server.seen[-1].content) == {"text": "wheat"}
    assert server.seen[-1].headers["authorization"] == "Bearer secret"
    with pytest.raises(InputError):
        await client.predict(Request(inputs=b"\x89PNG"), timeout_s=5)
    for server.reply in ({"model": "news", "version": "7"}, {"label": "grain"}):
        with pytest.raises(CloudResponseError):
            await client.predict(Request(inputs="wheat"), timeout_s=5)
    server.status = 500
    with pytest.raises(CloudError):
        await client.describe(timeout_s=5)
    await client.aclose()


def test_every_signal_is_documented_with_its_options():
    page = read("docs/signals.md")
    rows = {row[0]: re.findall(r"`(\w+)`", f"`{row[2]}`") for row in table(page, "## Classifiers")}
    assert {name: set(options) for name, options in rows.items()} == {
        name: set(OPTIONS.get(name, {})) for name in (*SIGNALS, COMBINED)
    }
    of_texts = {row[0]: re.findall(r"`(\w+)`", f"`{row[2]}`") for row in table(page, "## Generated texts")}
    assert {name: set(options) for name, options in of_texts.items()} == {
        name: set(OPTIONS.get(name, {})) for name in (*GENERATOR_SIGNALS, COMBINED)
    }
    ranges = {option: (limit.low, limit.high) for options in OPTIONS.values() for option, limit in options.items()}
    assert ranges == {"temperature": (0.01, 100), "p": (1, 100), "first": (1, 4096)}
    assert "`first`, a whole number from 1 to 4096" in page
    assert "`temperature` is from 0.01 to 100, `p` from 1 to 100" in page
