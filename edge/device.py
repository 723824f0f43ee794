"""What this machine is: processor, memory, runtime.

Owns the instruction-set classes. Two machines of one class compute the same int8 arithmetic; between classes dynamic
int8 differs, because older instructions saturate where newer ones do not. A certificate speaks of one class only.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from pathlib import Path

import msgspec

_CPUINFO = Path("/proc/cpuinfo")
_X86 = frozenset({"x86_64", "amd64", "x64"})
_ARM = frozenset({"aarch64", "arm64"})

# First match wins: class, and the flags that Linux reports for it.
_CLASSES_X86 = (
    ("x86-64-amx-int8", {"amx_int8", "avx512_vnni"}),
    ("x86-64-avx512-vnni", {"avx512_vnni", "avx512bw", "avx512vl"}),
    ("x86-64-avx-vnni", {"avx_vnni", "avx2"}),
    ("x86-64-avx512", {"avx512f", "avx512bw", "avx512vl"}),
    ("x86-64-avx2", {"avx2", "fma"}),
)
_CLASSES_ARM = (
    ("aarch64-i8mm", {"i8mm", "asimddp"}),
    ("aarch64-dotprod", {"asimddp"}),
)


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as far as a model's answers and speed depend on it.

    Attributes:
        machine: The architecture's name, such as "x86_64".
        isa: Instruction-set class, such as "x86-64-avx512-vnni" or "aarch64-dotprod".
        cpu_flags: What Linux reports, sorted; empty elsewhere.
        cores: Cores this process may use.
        memory_bytes: Physical memory; 0 where the system does not say.
        onnxruntime: Version.
        python: Version.
    """

    machine: str
    isa: str
    cpu_flags: tuple[str, ...]
    cores: int
    memory_bytes: int
    onnxruntime: str
    python: str


def probe() -> Device:
    """Look at this machine. Never fails: what the system does not say stays empty."""
    import onnxruntime

    flags = parse_cpu_flags(_read(_CPUINFO))
    machine = platform.machine()
    return Device(
        machine=machine,
        isa=classify(machine, flags),
        cpu_flags=flags,
        cores=_cores(),
        memory_bytes=_memory_bytes(),
        onnxruntime=onnxruntime.__version__,
        python=platform.python_version(),
    )


def classify(machine: str, flags: Collection[str]) -> str:
    """Instruction-set class of a machine from its architecture and its flags.

    An architecture that is neither x86-64 nor 64-bit Arm is a class of its own name; without flags, the weakest class
    of the architecture is taken.
    """
    name = machine.lower()
    if name in _X86:
        return _first(_CLASSES_X86, flags, "x86-64")
    if name in _ARM:
        return _first(_CLASSES_ARM, flags, "aarch64")
    return name or "unknown"


def parse_cpu_flags(cpuinfo: str) -> tuple[str, ...]:
    """The flags of the first processor in the text of `/proc/cpuinfo`, sorted: "flags" on x86, "Features" on Arm."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return tuple(sorted(set(value.split())))
    return ()


def _first(classes: tuple[tuple[str, set[str]], ...], flags: Collection[str], otherwise: str) -> str:
    present = set(flags)
    return next((name for name, needed in classes if needed <= present), otherwise)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # not Linux, or not allowed
        return ""


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, others not these names
        return 0
