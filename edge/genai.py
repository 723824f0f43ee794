"""The part of onnxruntime-genai that generating needs: a model, and sequences of tokens with what was computed of them.

Owns the calls into the runtime's C interface and the memory behind them. Knows no text and chooses no token.

Its own Python module holds the interpreter's lock through every call: while 256 tokens of a prompt are computed, some
300 ms, no other thread of the process would run. Calls by ctypes let go of the lock, and the C interface is the one
that the runtime keeps stable. The module is imported all the same, since it finds onnxruntime's library.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import weakref
from ctypes import POINTER, byref, c_bool, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import BundleError, MissingExtraError

CHUNK = 256
"""Tokens that are computed at once. The logits of a whole text would be its length times the vocabulary: 1.6 GB for
8,192 tokens of a small model. Between two chunks an answer can be stopped."""

_LIBRARIES = {"darwin": "libonnxruntime-genai.dylib", "win32": "onnxruntime-genai.dll"}

# The checkpoint may ask for beams or penalties. Tokens are chosen by `choice.py`, so that nothing here draws any.
_SEARCH = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "temperature": 1.0,
    "top_k": 1,
    "top_p": 1.0,
    # Nothing is drawn; without a seed the runtime spends 15 ms a text on gathering one.
    "random_seed": 1,
}

_OUT = POINTER(c_void_p)
_CALLS: dict[str, tuple[Any, ...]] = {
    "OgaCreateConfig": (c_char_p, _OUT),
    "OgaConfigOverlay": (c_void_p, c_char_p),
    "OgaCreateModelFromConfig": (c_void_p, _OUT),
    "OgaCreateGeneratorParams": (c_void_p, _OUT),
    "OgaGeneratorParamsSetSearchNumber": (c_void_p, c_char_p, c_double),
    "OgaGeneratorParamsSetSearchBool": (c_void_p, c_char_p, c_bool),
    "OgaCreateGenerator": (c_void_p, c_void_p, _OUT),
    "OgaGenerator_AppendTokens": (c_void_p, c_void_p, c_size_t),
    "OgaGenerator_RewindTo": (c_void_p, c_size_t),
    "OgaGenerator_GetLogits": (c_void_p, _OUT),
    "OgaGenerator_GetOutput": (c_void_p, c_char_p, _OUT),
    "OgaTensorGetShapeRank": (c_void_p, POINTER(c_size_t)),
    "OgaTensorGetShape": (c_void_p, c_void_p, c_size_t),
    "OgaTensorGetType": (c_void_p, POINTER(c_int32)),
    "OgaTensorGetData": (c_void_p, _OUT),
}
"""What gives an error or nothing, by name, with the types of its arguments."""
_ENDS = ("Config", "Model", "GeneratorParams", "Generator", "Tensor", "Result")
# OgaElementType_float32, the one that processors compute logits in, and OgaElementType_float16.
_TYPES: dict[int, Any] = {1: np.float32, 10: np.float16}


class Runtime:
    """The loaded library.

    Raises:
        MissingExtraError: onnxruntime-genai is not installed.
    """

    def __init__(self) -> None:
        try:
            import onnxruntime_genai
        except ImportError as e:
            raise MissingExtraError("Running a language model", "generate") from e
        self.version = str(onnxruntime_genai.__version__)
        name = _LIBRARIES.get(sys.platform, "libonnxruntime-genai.so")
        self.calls = ctypes.CDLL(str(Path(onnxruntime_genai.__file__).parent / name))
        for call, types in _CALLS.items():
            getattr(self.calls, call).argtypes = types
            getattr(self.calls, call).restype = c_void_p
        for kind in _ENDS:
            getattr(self.calls, f"OgaDestroy{kind}").argtypes = (c_void_p,)
            getattr(self.calls, f"OgaDestroy{kind}").restype = None
        self.calls.OgaResultGetError.argtypes = (c_void_p,)
        self.calls.OgaResultGetError.restype = c_char_p
        self.calls.OgaSetTelemetryEnabled.argtypes = (c_bool,)
        self.calls.OgaSetTelemetryEnabled.restype = None
        self.calls.OgaSetTelemetryEnabled(False)

    def trim(self) -> None:
        """Hand freed memory back to the system; the C library would keep some of it for later."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        if trim is not None:
            trim(0)


class Engine:
    """A model that is loaded. Several threads may start sequences and use them, each its own.

    Args:
        runtime: The library.
        name: What errors call the model.
        config: Its `genai_config.json`.
        overlay: JSON that is laid over it, given the folder that the runtime takes for the model's.

    Raises:
        BundleError: The runtime cannot open it.
    """

    def __init__(self, runtime: Runtime, name: str, config: bytes, overlay: Any) -> None:
        self._runtime, self._name = runtime, name
        try:
            with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
                (Path(folder) / "genai_config.json").write_bytes(config)
                self._model = self._open(folder, overlay(Path(folder)))
        except OSError as e:
            problem = f"The bundle {name} needs a temporary folder to be opened: {e.strerror or e}."
            raise BundleError(problem, "Set TMPDIR to a folder that can be written.") from e

    @property
    def runtime(self) -> Runtime:
        """The library."""
        return self._runtime

    def sequence(self, length: int) -> TokenSequence:
        """An empty sequence of at most `length` tokens; the runtime takes the memory for all of them at once.

        Raises:
            BundleError: The runtime cannot.
        """
        call = self.call
        params = _Handle(self._runtime, "GeneratorParams")
        call("run", "OgaCreateGeneratorParams", self._model.value, params.out)
        call("run", "OgaGeneratorParamsSetSearchNumber", params.value, b"max_length", float(length))
        for option, value in _SEARCH.items():
            if isinstance(value, bool):
                call("run", "OgaGeneratorParamsSetSearchBool", params.value, option.encode(), value)
            else:
                call("run", "OgaGeneratorParamsSetSearchNumber", params.value, option.encode(), float(value))
        generator = _Handle(self._runtime, "Generator")
        call("run", "OgaCreateGenerator", self._model.value, params.value, generator.out)
        params.free()
        return TokenSequence(self, generator, length)

    def call(self, what: str, name: str, *arguments: Any) -> None:
        """Call the C function, and say what the runtime could not do with the model where it gives an error."""
        calls = self._runtime.calls
        result = getattr(calls, name)(*arguments)
        if not result:
            return
        text = (calls.OgaResultGetError(result) or b"").decode(errors="replace").strip()
        calls.OgaDestroyResult(result)
        raise BundleError(
            f"onnxruntime-genai {self._runtime.version} cannot {what} the bundle {self._name}: "
            f"{(text or 'it does not say why').splitlines()[0]}",
            "Update it, or build the model again with this version.",
        )

    def shape(self, tensor: c_void_p) -> tuple[int, ...]:
        """The shape of one of the runtime's tensors."""
        rank = c_size_t()
        self.call("run", "OgaTensorGetShapeRank", tensor, byref(rank))
        shape = (c_int64 * rank.value)()
        self.call("run", "OgaTensorGetShape", tensor, shape, rank)
        return tuple(shape)

    def free(self, tensor: c_void_p) -> None:
        """Give one of the runtime's tensors back."""
        self._runtime.calls.OgaDestroyTensor(tensor)

    def _open(self, folder: str, overlay: str) -> _Handle:
        config, model = _Handle(self._runtime, "Config"), _Handle(self._runtime, "Model")
        self.call("open", "OgaCreateConfig", str(folder).encode(), config.out)
        self.call("open", "OgaConfigOverlay", config.value, overlay.encode())
        self.call("open", "OgaCreateModelFromConfig", config.value, model.out)
        config.free()
        return model


class TokenSequence:
    """Tokens with the keys and values that were computed of them; for one thread at a time.

    Attributes:
        length: Tokens that it has room for.
    """

    def __init__(self, engine: Engine, generator: _Handle, length: int) -> None:
        self._engine, self._generator = engine, generator
        self._row = np.empty(0, np.float32)
        self.length = length

    def append(self, ids: NDArray[np.int32]) -> None:
        """Compute further tokens, shape (n,), n at least 1.

        Raises:
            BundleError: The runtime cannot; the sequence is of no use afterwards.
        """
        ids = np.ascontiguousarray(ids, dtype=np.int32)
        self._engine.call("run", "OgaGenerator_AppendTokens", self._generator.value, ids.ctypes.data, ids.size)

    def rewind(self, count: int) -> None:
        """Forget all but the first tokens. There are no logits until a token is appended.

        Raises:
            BundleError: The runtime cannot for this model; the sequence is of no use afterwards.
        """
        self._engine.call("rewind", "OgaGenerator_RewindTo", self._generator.value, count)

    def logits(self) -> NDArray[np.float32]:
        """What the graph gives after the last token, shape (vocabulary,); the next call writes into the same array."""
        call, tensor, data = self._engine.call, c_void_p(), c_void_p()
        call("run", "OgaGenerator_GetLogits", self._generator.value, byref(tensor))
        try:
            if not self._row.size:
                self._row = np.empty(self._engine.shape(tensor)[-1], np.float32)
            call("run", "OgaTensorGetData", tensor, byref(data))
            ctypes.memmove(self._row.ctypes.data, data, self._row.nbytes)
        finally:
            self._engine.free(tensor)
        return self._row

    def rows(self) -> NDArray[np.float32]:
        """What the graph gives after each of the tokens that were appended last, shape (n, vocabulary)."""
        call, tensor, data, kind = self._engine.call, c_void_p(), c_void_p(), c_int32()
        call("run", "OgaGenerator_GetOutput", self._generator.value, b"logits", byref(tensor))
        try:
            call("run", "OgaTensorGetType", tensor, byref(kind))
            found = np.empty(self._engine.shape(tensor)[-2:], _TYPES[kind.value])
            call("run", "OgaTensorGetData", tensor, byref(data))
            ctypes.memmove(found.ctypes.data, data, found.nbytes)
        finally:
            self._engine.free(tensor)
        return found.astype(np.float32, copy=False)

    def close(self) -> None:
        """Give its memory back."""
        self._generator.free()


class _Handle:
    """An object of the runtime, given back when nobody holds it any more, at the latest when the process ends."""

    def __init__(self, runtime: Runtime, kind: str) -> None:
        self._pointer = c_void_p()
        self._end = weakref.finalize(self, _destroy, getattr(runtime.calls, f"OgaDestroy{kind}"), self._pointer)

    @property
    def out(self) -> Any:
        """Where the runtime writes it."""
        return byref(self._pointer)

    @property
    def value(self) -> c_void_p:
        return self._pointer

    def free(self) -> None:
        self._end()


def _destroy(end: Any, pointer: c_void_p) -> None:
    if pointer.value:
        end(pointer)
        pointer.value = None
