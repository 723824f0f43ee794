"""Instruction-set classes from recorded flags, and the probe of this very machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.edge import Device, classify, device, parse_cpu_flags, probe

# The flags that matter, cut from /proc/cpuinfo of real machines.
_BASE = "fpu sse sse2 ssse3 sse4_1 sse4_2 avx fma avx2"
_AVX512 = f"{_BASE} avx512f avx512dq avx512cd avx512bw avx512vl"
RECORDED = {
    "Intel Sapphire Rapids": ("x86_64", f"{_AVX512} avx_vnni avx512_vnni amx_bf16 amx_tile amx_int8", "amx-int8"),
    "AMD Zen 4": ("x86_64", f"{_AVX512} avx512_vnni avx512_bf16", "avx512-vnni"),
    "Intel Cascade Lake": ("x86_64", f"{_AVX512} avx512_vnni", "avx512-vnni"),
    "Intel Skylake-SP": ("x86_64", _AVX512, "avx512"),
    "Intel Alder Lake": ("x86_64", f"{_BASE} avx_vnni", "avx-vnni"),
    "AMD Zen 2": ("AMD64", _BASE, "avx2"),
    "Intel Atom": ("x86_64", "fpu sse sse2 ssse3 sse4_1 sse4_2", ""),
}
RECORDED_ARM = {
    "Raspberry Pi 4 (Cortex-A72)": ("fp asimd evtstrm crc32 cpuid", "aarch64"),
    "Raspberry Pi 5 (Cortex-A76)": (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
        "aarch64-dotprod",
    ),
    "Graviton 3 (Neoverse V1)": ("fp asimd asimddp sve i8mm bf16", "aarch64-i8mm"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_x86_classes(name):
    machine, flags, expected = RECORDED[name]
    assert classify(machine, flags.split()) == f"x86-64-{expected}".rstrip("-")


@pytest.mark.parametrize("name", RECORDED_ARM)
@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_arm_classes(name, machine):
    flags, expected = RECORDED_ARM[name]
    assert classify(machine, flags.split()) == expected


def test_without_flags_the_weakest_class_is_taken():
    assert classify("x86_64", ()) == "x86-64"
    assert classify("arm64", ()) == "aarch64"


def test_other_architectures_are_classes_of_their_own():
    assert classify("riscv64", ["avx2"]) == "riscv64"
    assert classify("", ()) == "unknown"


def test_flags_of_one_architecture_mean_nothing_on_another():
    assert classify("aarch64", _AVX512.split()) == "aarch64"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: other\n", ("avx2", "fma", "fpu")),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n", ("asimd", "asimddp", "fp")),
        ("vmx flags\t: vnmi\nmodel name : x\n", ()),
        ("", ()),
    ],
)
def test_flags_are_read_from_cpuinfo(text, flags):
    assert parse_cpu_flags(text) == flags


@given(st.text(max_size=200))
def test_any_cpuinfo_gives_flags(text):
    assert parse_cpu_flags(text) == tuple(sorted(set(parse_cpu_flags(text))))


def test_probe_of_this_machine():
    import onnxruntime

    found = probe()
    assert isinstance(found, Device)
    assert found.isa == classify(found.machine, found.cpu_flags)
    assert found.onnxruntime == onnxruntime.__version__
    assert found.cores >= 1
    assert found.memory_bytes > 1 << 20


def test_probe_where_the_system_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(device.platform, "machine", lambda: "arm64")
    monkeypatch.delattr(device.os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(device.os, "sysconf")
    found = probe()
    assert (found.isa, found.cpu_flags, found.memory_bytes) == ("aarch64", (), 0)
    assert found.cores >= 1
