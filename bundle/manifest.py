"""The manifest of a bundle: its structs, their canonical JSON, and the digest that names a model.

Owns the shape of format version 1 and the rules a core must keep. Opens no file, and knows nothing of what a graph
holds (`graph.py`) or of where bytes lie (`reader.py`, `writer.py`).

Canonical JSON is UTF-8, object keys sorted, no white space, floats in their shortest form; `model_digest` is the
SHA-256 of the canonical JSON of the core. A manifest file must equal its own canonical rendering, so any changed byte
is found.

DESIGN's "peak RAM" of the target is not here: it is measured, hence not reproducible, and the same inputs must give the
same core. It belongs into the payload of a "measurement" attestation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from edgewise.errors import BundleCorruptError, BundleError, BundleVersionError, InputError

FORMAT = "edgewise-bundle"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20

Kind: TypeAlias = Literal["classifier", "embedder", "tagger", "generator"]
Task: TypeAlias = Literal[
    "text-classification", "image-classification", "feature-extraction", "token-classification", "text-generation"
]

KINDS: Mapping[Task, Kind] = {
    "text-classification": "classifier",
    "image-classification": "classifier",
    "feature-extraction": "embedder",
    "token-classification": "tagger",
    "text-generation": "generator",
}
"""The kind of model that does a task."""

# Python's `$` also matches before a final newline, JSON Schema's does not, and neither knows the other's `\Z`.
END = r"$(?!\n)"
Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^sha256:[0-9a-f]{{64}}{END}")]
Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]*{END}", max_length=128)]
Version: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^[0-9]+(\.[0-9]+)*{END}", max_length=32)]
Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file under `blobs/sha256/`, named by its content.

    Attributes:
        digest: "sha256:" and 64 lower-case hex digits.
        size: Bytes.
    """

    digest: Digest
    size: Size

    @property
    def hex(self) -> str:
        """The file's name: the hex digits of the digest."""
        return self.digest.removeprefix("sha256:")


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of the graph.

    Attributes:
        name: The tensor's name.
        dtype: Numpy's name of its type, such as "int64" or "float32".
        shape: Sizes; a string names a dimension that may vary, "?" one without a name.
    """

    name: Text
    dtype: Text
    shape: tuple[int | str, ...]


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A large initializer, kept as a blob of its own so that an update moves only what changed.

    Attributes:
        name: The initializer's name in the graph.
        blob: Its raw little-endian bytes; the graph's external-data location is the blob's hex digits.
    """

    name: Text
    blob: Blob


class TextPreprocessing(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    """How a text becomes tensors; inputs are fed by name: input_ids, attention_mask, token_type_ids.

    Attributes:
        tokenizer: A tokenizers-library `tokenizer.json`.
        max_length: Tokens kept, special tokens included.
        pad_multiple: Pad the sequence to a multiple of this; 1 pads nothing.
        max_unknown_share: Texts with a larger share of unknown tokens are not what the vocabulary was cut down to, so
            the router sends them away; unset where nothing was cut.
    """

    tokenizer: Blob
    max_length: Positive
    pad_multiple: Positive = 1
    # Unset, not None: manifests from before it keep their bytes.
    max_unknown_share: Share | msgspec.UnsetType = msgspec.UNSET


class NamedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that a runtime looks for by its name.

    Attributes:
        name: Its name; no folder.
        blob: Its content.
    """

    name: Name
    blob: Blob


class GenerationPreprocessing(msgspec.Struct, frozen=True, tag="generation", forbid_unknown_fields=True):
    """How onnxruntime-genai runs a language model: its own configuration and tokenizer, by their names.

    Attributes:
        files: "genai_config.json", "tokenizer.json" and what goes with them.
        max_length: Tokens of prompt and answer together.
    """

    files: tuple[NamedFile, ...]
    max_length: Positive


class FixedSize(msgspec.Struct, frozen=True, tag="fixed", forbid_unknown_fields=True):
    """Resize to this size, whatever the picture's proportions.

    Attributes:
        height: Rows.
        width: Columns.
    """

    height: Positive
    width: Positive


class ShortestEdge(msgspec.Struct, frozen=True, tag="shortest_edge", forbid_unknown_fields=True):
    """Resize so that the shorter side has this many pixels; the longer one keeps the proportions, rounded down.

    Attributes:
        edge: Pixels of the shorter side.
    """

    edge: Positive


class ImagePreprocessing(msgspec.Struct, frozen=True, tag="image", forbid_unknown_fields=True, kw_only=True):
    """How an image becomes a tensor of shape (1, channels, height, width), float32: (pixel * rescale - mean) / std.

    Attributes:
        height: Rows of the tensor.
        width: Columns of the tensor.
        channels: 1 (grey) or 3 (colour).
        bgr: Whether the three channels are blue, green, red; otherwise red, green, blue.
        rescale: Factor on the raw pixel values, such as 1/255.
        mean: One value a channel of the tensor, subtracted after rescaling.
        std: One value a channel of the tensor, divided by; never zero.
        resample: Filter used where the size differs.
        crop_from: What the picture is resized to before height x width pixels are cut out around its centre. The cut
            begins at row floor((rows - height) / 2) of the resized picture, columns likewise; beyond its borders a
            pixel is 0. None resizes straight to height x width and cuts nothing.
    """

    height: Positive
    width: Positive
    channels: Literal[1, 3]
    bgr: bool = False
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    crop_from: FixedSize | ShortestEdge | None = None


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the graph was made.

    Attributes:
        name: Name of the quantization recipe; "none" for a graph packed as it was.
        options: Every parameter that shaped the result.
        seed: Seed of whatever was drawn at random.
        tools: Versions by tool name.
    """

    name: Text
    options: dict[str, str | int | float | bool] = {}
    seed: int = 0
    tools: dict[str, str] = {}


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the bundle was made for.

    Attributes:
        isa: Instruction-set classes (see `edgewise.edge.probe`) on which the golden logits were computed.
        min_onnxruntime: Oldest onnxruntime that runs the graph, such as "1.23".
        opset: The graph's ai.onnx opset.
    """

    isa: tuple[str, ...]
    min_onnxruntime: Version
    opset: Positive


class Png(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image as a golden input; JSON holds its bytes in base64."""

    png: bytes


class GoldenItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input with the answer that the packed graph gave to it, batch of one.

    Attributes:
        input: A text, or a PNG.
        output: The label; of a tagger the entities; of a generator the greedy text; of an embedder empty.
        score: The core's signal on the logits; 0 for an embedder.
        logits: One value a class; of a tagger those of its least certain token; of an embedder the embedding; of a
            generator the log-probability of each generated token.
    """

    input: str | Png
    output: str
    score: float
    logits: tuple[float, ...]


class Core(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that fixes a model's identity, and nothing that is measured.

    Attributes:
        name: Name of the model, as it stands in URLs.
        kind: What it gives; see `KINDS`.
        task: What it does.
        graph: The ONNX graph; weights of 64 KiB and more lie beside it.
        weights: The large initializers, in the graph's order.
        preprocessing: How an input becomes tensors.
        labels: Labels in the order of the logits; none for an embedder or a generator.
        inputs: The graph's inputs.
        outputs: The graph's outputs. Beside its main one ("logits", or "embedding") a classifier may give "margin",
            shape [batch]: the largest softmax probability minus the second.
        recipe: How the graph was made.
        signal: Name of the confidence signal that gave the golden scores.
        target: What it was made for.
        golden: Golden items, a JSON array of `GoldenItem`.
        licences: SPDX identifiers or texts of the checkpoint's licences.
    """

    name: Name
    kind: Kind
    task: Task
    graph: Blob
    weights: tuple[Weight, ...]
    preprocessing: TextPreprocessing | ImagePreprocessing | GenerationPreprocessing
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recipe: Recipe
    signal: Text
    target: Target
    golden: Blob
    licences: tuple[str, ...]

    def blobs(self) -> tuple[Blob, ...]:
        """Every blob the core names, each once, in a fixed order."""
        named = [self.graph, *(weight.blob for weight in self.weights), self.golden]
        if isinstance(self.preprocessing, TextPreprocessing):
            named.append(self.preprocessing.tokenizer)
        if isinstance(self.preprocessing, GenerationPreprocessing):
            named.extend(file.blob for file in self.preprocessing.files)
        return tuple(dict.fromkeys(named))


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `manifest.json`.

    Attributes:
        format: "edgewise-bundle".
        format_version: 1.
        model_digest: Digest of the canonical JSON of the core.
        core: The core.
    """

    format: Literal["edgewise-bundle"]
    format_version: Literal[1]
    model_digest: Digest
    core: Core


class _Header(msgspec.Struct, frozen=True):
    """The two fields that every format version has, so that a newer manifest can be told from a broken one."""

    format: str
    format_version: int


def canonical(value: object) -> bytes:
    """Canonical JSON of a struct or of plain values; NaN and infinities become null, so refuse them before."""
    return msgspec.json.encode(value, order="sorted")


def digest_of(data: bytes) -> str:
    """The SHA-256 of `data` as "sha256:" and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encode_manifest(core: Core) -> bytes:
    """The bytes of `manifest.json` for a core.

    Raises:
        InputError: The core breaks a rule of the format.
    """
    try:
        msgspec.json.decode(canonical(core), type=Core)
    except msgspec.ValidationError as e:
        raise InputError(f"The bundle cannot be written: {e}.", "Give a value that the format allows.") from e
    problem = contradiction(core)
    if problem:
        raise InputError(f"The bundle cannot be written: {problem}.", "Correct the source of the bundle.")
    return canonical(Manifest("edgewise-bundle", 1, digest_of(canonical(core)), core))


def decode_manifest(data: bytes) -> Manifest:
    """Read and check the bytes of `manifest.json`.

    Raises:
        BundleVersionError: Written in a newer format.
        BundleCorruptError: Not canonical JSON of a manifest, or its digest is not the core's.
        BundleError: The core contradicts itself.
    """
    _check_version(data)
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise corrupt(f"Its manifest.json is not a manifest: {e}.") from e
    if canonical(manifest) != data:
        raise corrupt("Its manifest.json is not written canonically.")
    found = digest_of(canonical(manifest.core))
    if found != manifest.model_digest:
        raise corrupt(f"Its manifest.json promises model {manifest.model_digest}, but its core has {found}.")
    problem = contradiction(manifest.core)
    if problem:
        raise BundleError(f"The bundle contradicts itself: {problem}.", "Pack it again from its source.")
    return manifest


def _check_version(data: bytes) -> None:
    try:
        header = msgspec.json.decode(data, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise corrupt(f"Its manifest.json is not a manifest: {e}.") from e
    if header.format == FORMAT and header.format_version > FORMAT_VERSION:
        raise BundleVersionError(
            f"The bundle has format version {header.format_version}; this edgewise reads version {FORMAT_VERSION}.",
            "Update edgewise (pip install --upgrade edgewise), or pack the bundle with this version.",
        )


def contradiction(core: Core) -> str | None:
    """What the types of a core cannot say: the first rule it breaks, or None."""
    checks = (_kind_problem, _labels_problem, _tensors_problem, _preprocessing_problem, _blobs_problem)
    return next((problem for check in checks if (problem := check(core))), None)


def _kind_problem(core: Core) -> str | None:
    return None if KINDS[core.task] == core.kind else f"a model of kind {core.kind} does not do {core.task}"


def _labels_problem(core: Core) -> str | None:
    if core.kind in ("embedder", "generator"):
        return f"a model of kind {core.kind} has no labels" if core.labels else None
    if len(core.labels) < 2:
        return f"a {core.kind} needs two labels or more, it has {len(core.labels)}"
    if len(set(core.labels)) < len(core.labels):
        twice = next(label for label in core.labels if core.labels.count(label) > 1)
        return f"the label {twice!r} occurs twice"
    return None


def _tensors_problem(core: Core) -> str | None:
    if not core.inputs or not core.outputs:
        return "the graph has no input or no output"
    if core.kind == "generator":
        return None
    shape, wanted = main_output(core).shape, _SHAPES[core.kind]
    if len(shape) != len(wanted):
        return f"the output {main_output(core).name!r} has shape {list(shape)}, a {core.kind} gives {list(wanted)}"
    if core.labels and isinstance(shape[-1], int) and shape[-1] != len(core.labels):
        return f"the graph gives {shape[-1]} logits for {len(core.labels)} labels"
    margin = next((spec for spec in core.outputs if spec.name == "margin"), None)
    if core.kind == "classifier" and margin is not None and len(margin.shape) != 1:
        return f"the output 'margin' has shape {list(margin.shape)}, a classifier gives ['batch']"
    return None


_SHAPES: Mapping[Kind, tuple[str, ...]] = {
    "classifier": ("batch", "classes"),
    "embedder": ("batch", "width"),
    "tagger": ("batch", "tokens", "classes"),
}


def main_output(core: Core) -> TensorSpec:
    """The output that holds logits or embedding: the one of that name, else the first."""
    named = "embedding" if core.kind == "embedder" else "logits"
    return next((spec for spec in core.outputs if spec.name == named), core.outputs[0])


def _preprocessing_problem(core: Core) -> str | None:
    image = core.preprocessing
    needed = _PREPROCESSING.get(core.task, TextPreprocessing)
    if not isinstance(image, needed):
        return f"the task {core.task} does not go with this preprocessing"
    if not isinstance(image, ImagePreprocessing):
        return None
    if not len(image.mean) == len(image.std) == image.channels:
        return f"{image.channels} channels need as many means and standard deviations"
    if 0.0 in image.std or image.rescale == 0.0:
        return "rescale and standard deviations must not be zero"
    if image.bgr and image.channels == 1:
        return "a grey image has no order of colours"
    return None


_PREPROCESSING: Mapping[Task, type[msgspec.Struct]] = {
    "image-classification": ImagePreprocessing,
    "text-generation": GenerationPreprocessing,
}


def _blobs_problem(core: Core) -> str | None:
    blobs = core.blobs()
    if len({blob.digest for blob in blobs}) < len(blobs):
        return "one blob is named with two sizes"
    if len({weight.name for weight in core.weights}) < len(core.weights):
        return "one weight is named twice"
    return None


def corrupt(problem: str) -> BundleCorruptError:
    """The error for bytes that are not what the manifest promises."""
    return BundleCorruptError(f"The bundle is corrupt. {problem}", "Copy or download it again, or pack it anew.")


def manifest_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `manifest.json`, generated from the structs."""
    schema = msgspec.json.schema(Manifest)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgewise bundle manifest", **schema}


def render_schema() -> str:
    """The text of `manifest.schema.json`."""
    return json.dumps(manifest_schema(), indent=2, sort_keys=True) + "\n"
