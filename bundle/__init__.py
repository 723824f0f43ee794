"""The edge package: a folder of content-addressed blobs under a manifest, verified before anything in it is opened.

Owns format version 1 (`manifest.py`), reading (`reader.py`), packing (`writer.py`) and attestations. Runs no model.
Importing it does not load the `onnx` package; packing does, when called. Two things have their place and are not built:
a signature is an attestation of kind "signature" over the model digest, and a delta between two bundles is the set of
blobs that only the newer one names.
"""

from edgewise.bundle.attestation import Attestation
from edgewise.bundle.genai_config import GenaiConfig, read_config
from edgewise.bundle.generator import GeneratorSource, pack_generator
from edgewise.bundle.manifest import (
    FORMAT_VERSION,
    KINDS,
    Blob,
    Core,
    FixedSize,
    GenerationPreprocessing,
    GoldenItem,
    ImagePreprocessing,
    Kind,
    Manifest,
    NamedFile,
    Png,
    Recipe,
    ShortestEdge,
    Target,
    Task,
    TensorSpec,
    TextPreprocessing,
    Weight,
    main_output,
    manifest_schema,
)
from edgewise.bundle.model_file import GraphFacts, read_facts
from edgewise.bundle.reader import Bundle, attach, kind_of
from edgewise.bundle.writer import BundleSource, TextSource, pack_bundle

__all__ = [
    "FORMAT_VERSION",
    "KINDS",
    "Attestation",
    "Blob",
    "Bundle",
    "BundleSource",
    "Core",
    "FixedSize",
    "GenaiConfig",
    "GenerationPreprocessing",
    "GeneratorSource",
    "GoldenItem",
    "GraphFacts",
    "ImagePreprocessing",
    "Kind",
    "Manifest",
    "NamedFile",
    "Png",
    "Recipe",
    "ShortestEdge",
    "Target",
    "Task",
    "TensorSpec",
    "TextPreprocessing",
    "TextSource",
    "Weight",
    "attach",
    "kind_of",
    "main_output",
    "manifest_schema",
    "pack_bundle",
    "pack_generator",
    "read_config",
    "read_facts",
]
