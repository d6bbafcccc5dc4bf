"""The flags of XLA that this project sets or documents: XLA ends a process at one it lacks."""

import re

import runs
from support import QUICK, knows_flags

FOLDERS = ("clip_jax", "configs", "docs", "examples", "launch", "benchmarks")
KINDS = (".py", ".md", ".sh", ".ipynb")
# of jax 0.10, named where a measurement with it is told
PAST = {"--xla_cpu_use_fusion_emitters=false"}


def named_flags():
    """Each with a value: 2 where none is written."""
    files = [path for folder in FOLDERS for path in (runs.ROOT / folder).rglob("*")]
    texts = (p.read_text() for p in [*files, runs.ROOT / "README.md"] if p.suffix in KINDS)
    flags = {flag for text in texts for flag in re.findall(r"--xla_\w+(?:=\w+)?", text)} - PAST
    return {flag if "=" in flag else f"{flag}=2" for flag in flags}


def test_the_installed_version_knows_all_that_are_set_or_documented():
    flags = named_flags()
    assert any(flag.startswith("--xla_force_host_platform_device_count=") for flag in flags)
    assert knows_flags(" ".join(sorted(flags))), flags


def test_a_flag_that_is_not_known_is_not_used():
    assert not knows_flags("--xla_no_such_flag=1")
    assert all(knows_flags(flag) for flag in QUICK.split())
