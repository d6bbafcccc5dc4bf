"""Tests `python -m clip_jax doctor`: from facts about a machine to findings, and this machine."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest
import setuptools

import runs
from clip_jax.cli import doctor
from clip_jax.cli.doctor import devices, machine, packages, report
from clip_jax.cli.doctor.facts import (
    ConfigFacts,
    Cpu,
    Device,
    DeviceQuery,
    Facts,
    Folder,
    Nvidia,
    NvidiaGpu,
    Requirement,
    Tpu,
)
from clip_jax.cli.doctor.findings import findings
from clip_jax.errors import UserError

GIB = 2**30
HEALTHY = Facts(
    python="3.13.1",
    slow_python="",
    system="Linux x86_64",
    versions={"jax": "0.12.0", "jaxlib": "0.12.0", "cykooz.resizer": "4.0.1"},
    requirements=[Requirement("clip_jax", "", "jax>=0.10.2", "jax", "0.12.0", True, True)],
    image_formats=(),
    cpu=Cpu("AMD EPYC", 8, None, ("AVX-512", "AVX2"), 0.5),
    memory=32 * GIB,
    available=16 * GIB,
    shared_memory=16 * GIB,
    open_files=65536,
    huge_pages="madvise",
    folders=[Folder("runs", "/home/me", 100 * GIB)],
    environment={},
    nvidia=None,
    tpu=Tpu(0),
    query=DeviceQuery([Device("cpu", "cpu")], seconds=0.7),
)
L4 = NvidiaGpu("NVIDIA L4", 8.9, 24 * GIB, GIB)
GPU = DeviceQuery([Device("NVIDIA L4", "gpu", 17 * GIB, 0, "L4", 121e12)])
V5E = DeviceQuery([Device("TPU v5 lite", "tpu", 16 * GIB, 0, "v5e", 197e12)] * 4)
CUDA13 = {**HEALTHY.versions, "jax-cuda13-plugin": "0.12.0", "jax-cuda13-pjrt": "0.12.0"}
CUDA12 = {**HEALTHY.versions, "jax-cuda12-plugin": "0.12.0", "jax-cuda12-pjrt": "0.12.0"}
WITH_TPU = {**HEALTHY.versions, "libtpu": "0.0.50"}


def changed(**changes) -> Facts:
    """The facts of the healthy machine with changes."""
    return dataclasses.replace(HEALTHY, **changes)


def asked(by: str, extra: str, wanted: str, installed: str | None) -> Requirement:
    """A requirement that is not met."""
    name = wanted.split("[")[0].split("=")[0].split("<")[0]
    return Requirement(by, extra, wanted, name, installed, False, False)


def lines_of(facts: Facts) -> list[str]:
    """The findings, each as `level: problem | mend`."""
    return [f"{f.level}: {f.problem} | {f.mend}" for f in findings(facts)]


@pytest.mark.parametrize(
    "facts",
    [
        HEALTHY,
        changed(nvidia=Nvidia("580.65.06", [L4]), query=GPU, versions=CUDA13),
        changed(tpu=Tpu(4), query=V5E, versions=WITH_TPU, huge_pages="always"),
        changed(system="Darwin arm64", huge_pages="", shared_memory=None),
        # nvidia-smi on an image for any machine
        changed(nvidia=Nvidia("", [])),
    ],
)
def test_nothing_is_found_on_a_healthy_machine(facts):
    assert lines_of(facts) == []
    assert report.as_text(facts, []).endswith("\n\nnothing broken")


@pytest.mark.parametrize(
    ("driver", "gpu", "versions", "line"),
    [
        (
            "580.65.06",
            L4,
            HEALTHY.versions,
            'plugin is not installed | pip install -U "jax[cuda13]==',
        ),
        (
            "550.54.15",
            L4,
            HEALTHY.versions,
            'plugin is not installed | pip install -U "jax[cuda12]==',
        ),
        ("", NvidiaGpu("NVIDIA T4"), HEALTHY.versions, 'pip install -U "jax[cuda13]==0.12.0"'),
        ("470.82", L4, HEALTHY.versions, "driver is 470.82, and JAX needs 525 or newer | install"),
        (
            "550.54.15",
            L4,
            CUDA13,
            "CUDA 13 needs driver 580 or newer and compute capability 7.5, here are 550.54.15 and "
            "8.9 | pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && "
            'pip install -U "jax[cuda12]==0.12.0"',
        ),
        # no CUDA 13 for Volta, however new the driver
        ("580.65.06", NvidiaGpu("Tesla V100", 7.0), CUDA13, 'pip install -U "jax[cuda12]==0.12.0"'),
        ("580.65.06", L4, CUDA12, "does not use the NVIDIA L4: XlaRuntimeError: no device | pip"),
    ],
)
def test_a_gpu_that_jax_does_not_use_names_the_extra_for_its_driver(driver, gpu, versions, line):
    query = dataclasses.replace(HEALTHY.query, errors=["XlaRuntimeError: no device"])
    (found,) = lines_of(changed(nvidia=Nvidia(driver, [gpu]), versions=versions, query=query))
    assert found.startswith("broken: JAX does not use the ") and line in found


def test_a_gpu_that_is_hidden_is_slow_and_not_broken():
    machine_with_gpu = {"nvidia": Nvidia("580.65.06", [L4]), "versions": CUDA13}
    for name, value in (("JAX_PLATFORMS", "cpu"), ("CUDA_VISIBLE_DEVICES", "")):
        (found,) = lines_of(changed(environment={name: value}, **machine_with_gpu))
        assert found.startswith("slow: JAX does not use the NVIDIA L4: ")
        assert found.endswith(f"{name}={value} hides it | unset {name}")
    (found,) = lines_of(changed(environment={"JAX_PLATFORMS": "cuda,cpu"}, **machine_with_gpu))
    assert found.startswith("broken")


def test_a_container_without_its_gpus_and_a_driver_that_fails():
    (found,) = lines_of(changed(nvidia=Nvidia("580.1", [L4], is_reachable=False)))
    assert "docker run --gpus all" in found
    mismatch = Nvidia("580.1", [], problem="Driver/library version mismatch")
    (found,) = lines_of(changed(nvidia=mismatch))
    assert (
        found == "broken: nvidia-smi fails: Driver/library version mismatch | restart the machine"
    )


def test_a_plugin_of_another_version_and_missing_cuda_libraries():
    gpu = Nvidia("580.65.06", [L4])
    old = asked("jax", "cuda13", "jax-cuda13-plugin[with-cuda]<=0.12.0,>=0.12.0", "0.10.2")
    facts = changed(nvidia=gpu, versions=CUDA13, requirements=[*HEALTHY.requirements, old])
    (found,) = lines_of(facts)
    assert "it needs jax-cuda13-plugin[with-cuda]<=0.12.0,>=0.12.0, and 0.10.2 is inst" in found
    # without a GPU it matters little
    (found,) = lines_of(dataclasses.replace(facts, nvidia=None))
    assert found.startswith("note: ") and found.endswith('| pip install -U "jax[cuda13]==0.12.0"')
    missing = asked("jax-cuda13-plugin", "with-cuda", "nvidia-cudnn-cu13<10.0,>=9.8", None)
    facts = changed(nvidia=gpu, versions=CUDA13, requirements=[*HEALTHY.requirements, missing])
    (found,) = lines_of(facts)
    assert "it needs nvidia-cudnn-cu13<10.0,>=9.8, and it is missing" in found


def test_tpus_that_jax_does_not_use():
    (found,) = lines_of(changed(tpu=Tpu(1)))
    assert found == (
        "broken: JAX does not use the 1 TPU chip of this machine: libtpu is not installed | "
        'pip install -U "jax[tpu]==0.12.0"'
    )
    said = ["RuntimeError: ABORTED: The TPU is already in use by process with pid 4711. Not …"]
    query = DeviceQuery((), errors=said)
    (found,) = lines_of(changed(tpu=Tpu(4), versions=WITH_TPU, query=query))
    assert found.endswith("process 4711 uses them | wait for it, or end it: kill 4711")
    (found,) = lines_of(changed(tpu=Tpu(4, False), versions=WITH_TPU))
    assert "--privileged" in found
    old = asked("jax", "tpu", "libtpu==0.0.50.*", "0.0.42")
    facts = changed(
        tpu=Tpu(4), versions=WITH_TPU, requirements=[*HEALTHY.requirements, old], query=query
    )
    facts = dataclasses.replace(facts, query=HEALTHY.query)
    (found,) = lines_of(facts)
    assert "needs libtpu==0.0.50.*, and 0.0.42 is installed" in found
    (found,) = lines_of(
        changed(tpu=Tpu(4), versions=WITH_TPU, environment={"JAX_PLATFORMS": "cpu"})
    )
    assert found.startswith("slow: ") and found.endswith("| unset JAX_PLATFORMS")


def test_jax_that_does_not_answer_or_start():
    (found,) = lines_of(changed(query=DeviceQuery((), seconds=60, timed_out=True)))
    assert found.startswith("broken: JAX found no devices within 60 s | end what uses them")
    failed = DeviceQuery((), errors=["Unknown flag in XLA_FLAGS: --xla_x"])
    (found,) = lines_of(changed(query=failed, environment={"XLA_FLAGS": "--xla_x"}))
    assert found.endswith("XLA_FLAGS: --xla_x | correct or unset XLA_FLAGS")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"environment": {"JAX_ENABLE_X64": "1"}}, "slow: JAX_ENABLE_X64=1: some arrays become"),
        ({"environment": {"JAX_DISABLE_JIT": "True"}}, "| unset JAX_DISABLE_JIT"),
        ({"environment": {"JAX_DISABLE_JIT": "0"}}, ""),
        ({"environment": {"XLA_FLAGS": "--xla_dump_to=/d"}}, "each program is written to disk"),
        ({"environment": {"JAX_NUM_CPU_DEVICES": "8"}}, "splits the CPU into 8 devices"),
        ({"environment": {"GLIBC_TUNABLES": "x=1"}}, "slow: GLIBC_TUNABLES is set"),
        ({"environment": {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}}, ""),  # CPUs do that anyway
        ({"versions": {"jax": "0.12.0"}}, "slow: cykooz.resizer is not installed"),
        ({"image_formats": ["WebP"]}, "note: this Pillow does not read WebP"),
        ({"slow_python": "a debug build"}, "slow: this Python is a debug build"),
        ({"cpu": dataclasses.replace(HEALTHY.cpu, quota=2.0)}, "--cpuset-cpus=0-1"),
        ({"cpu": dataclasses.replace(HEALTHY.cpu, load=20)}, "20 processes compete for 8 cores"),
        ({"cpu": dataclasses.replace(HEALTHY.cpu, features=())}, "has no AVX2"),
        ({"available": GIB // 2}, "slow: 0.5 GiB of memory are free"),
        ({"shared_memory": 2**26}, ""),  # of no use without GPUs
        ({"open_files": 256}, "note: at most 256 files may be open | ulimit -n 65536"),
        ({"open_files": -1}, ""),
        ({"huge_pages": "never"}, "slow: the kernel gives no huge pages | sudo sh -c"),
        ({"folders": [Folder("runs", "/r", 2**20)]}, "broken: the disk of /r (runs) has"),
        ({"folders": [Folder("runs", "/r", GIB)]}, "note: the disk of /r (runs) has 1 GiB left"),
        ({"folders": [Folder("runs", "/r", GIB, "Read-only")]}, "broken: /r: runs cannot be wr"),
        (
            {"folders": [Folder("compiled programs", "/c", GIB, "Permission denied")]},
            "slow: /c: compiled programs cannot be written there (Permission denied) | set JAX_COM",
        ),
        ({"config": ConfigFacts(16, 0)}, "slow: config.data.workers=16 on 8 cores"),
        ({"config": ConfigFacts(8, 0)}, ""),
        ({"config": ConfigFacts(0, 2**15)}, "broken: config.data.cache_mib=32768"),
        ({"requirements": []}, "note: clip_jax is not installed"),
        (
            {"requirements": [asked("clip_jax", "", "simplejpeg>=1.8", None)]},
            'needs simplejpeg>=1.8, and it is missing | pip install "simplejpeg>=1.8"',
        ),
        (
            {"requirements": [asked("jax", "", "jaxlib<=0.12.0,>=0.12.0", "0.10.2")]},
            "broken: jax needs jaxlib<=0.12.0,>=0.12.0, and 0.10.2 is installed",
        ),
    ],
)
def test_what_is_slow_or_missing(changes, line):
    requirements = [*HEALTHY.requirements, *changes.get("requirements", ())]
    keeps = "requirements" in changes and changes["requirements"]
    facts = changed(**{**changes, **({"requirements": requirements} if keeps else {})})
    found = lines_of(facts)
    assert len(found) == bool(line)
    assert not line or line in found[0]


def test_settings_of_gpus_matter_with_a_gpu_only():
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".5",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    assert lines_of(changed(environment=environment)) == []
    busy = Nvidia("580.65.06", [dataclasses.replace(L4, used=20 * GIB)])
    facts = changed(environment=environment, nvidia=busy, query=GPU, versions=CUDA13)
    slow, *notes = lines_of(facts)
    assert slow.startswith("slow: JAX_DEFAULT_MATMUL_PRECISION") and len(notes) == 3
    assert any("20 GiB of the 24 GiB of GPU 0 are in use" in line for line in notes)


def test_the_worst_comes_first():
    facts = changed(open_files=256, available=0, image_formats=["AVIF"], query=DeviceQuery(()))
    levels = [finding.level for finding in findings(facts)]
    assert levels == ["broken", "slow", "note", "note"]


def test_nvidia_smi_and_the_kernel_are_read():
    row = "NVIDIA H100 80GB HBM3, 580.65.06, 9.0, 81559, 1"
    two = machine.parse_nvidia(f"{row}\n{row}", "", [], True)
    assert two == Nvidia(
        "580.65.06", [NvidiaGpu("NVIDIA H100 80GB HBM3", 9.0, 81559 * 2**20, 2**20)] * 2
    )
    mig = machine.parse_nvidia("NVIDIA A100, 580.1, 8.0, [N/A], [N/A]", "", [], True)
    assert mig and mig.gpus[0].memory is None
    kernel = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC"
    seen = machine.parse_nvidia("", kernel, ["Model: \t\t Tesla T4\nIRQ: 33"], False)
    assert seen == Nvidia("550.54.15", [NvidiaGpu("Tesla T4")], False)
    assert machine.parse_nvidia("", "", [], False) is None
    assert machine.parse_nvidia("No devices were found", "", [], False) is None
    failed = machine.parse_nvidia("NVIDIA-SMI has failed\nbecause", "", [], False)
    assert failed == Nvidia("", [], False, "NVIDIA-SMI has failed")


def test_the_answer_of_a_process_that_failed_says_why():
    log = (
        "I0000 00:00:1 13010 cudart_stub.cc:31] Could not find cuda drivers\n"
        "Traceback (most recent call last):\n"
        '  File "x.py", line 1\n'
        "RuntimeError: Unable to load CUDA. Is it installed?\nAssertionError\n"
    )
    query = devices.parse("", log, 1, 0.5)
    assert not query.devices and not query.timed_out
    assert query.errors[-1] == "RuntimeError: Unable to load CUDA. Is it installed?"
    assert devices.parse("", "", -11, 1.0).errors == ("the process died of signal 11",)


def test_a_driver_that_hangs_ends_with_the_timeout(monkeypatch):
    monkeypatch.setattr(devices, "_CODE", "import time; print('started'); time.sleep(60)")
    began = time.monotonic()
    query = devices.start(0.5)()
    assert query.timed_out and not query.devices and time.monotonic() - began < 10


def test_every_extra_of_the_package_is_explained(monkeypatch):
    declared = {}
    monkeypatch.setattr(setuptools, "setup", lambda **values: declared.update(values))
    monkeypatch.chdir(runs.ROOT)
    code = compile((runs.ROOT / "setup.py").read_text(), "setup.py", "exec")
    exec(code, {"__file__": str(runs.ROOT / "setup.py"), "__name__": "setup"})
    extras = declared["extras_require"]
    assert extras.pop("cuda") == extras["cuda13"], "another name of it"
    assert set(extras) == set(report.EXTRAS)


def test_requirements_name_what_does_not_fit():
    found = packages.requirements()
    assert any((r.by, r.extra, r.name) == ("jax", "", "jaxlib") and r.is_met for r in found)
    tpu = next(r for r in found if (r.by, r.extra, r.name) == ("jax", "tpu", "libtpu"))
    assert tpu.fits == tpu.is_met


def test_this_machine_in_seconds_as_text_and_json(monkeypatch):
    command = [sys.executable, "-m", "clip_jax", "doctor", "--json"]
    environment = {**runs.environment(), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    told = json.loads(done.stdout)
    facts = told["facts"]
    assert facts["query"]["devices"][0]["platform"] == "cpu"
    assert facts["versions"]["jax"] and facts["memory"] > GIB and facts["cpu"]["cores"] >= 1
    assert any(f["problem"].startswith("JAX_ENABLE_X64") for f in told["findings"])
    assert done.returncode == any(f["level"] == "broken" for f in told["findings"])


def test_text_and_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "gather", lambda *_: HEALTHY)
    assert doctor.run([]) == 0
    text = capsys.readouterr().out
    assert "devices: 1 x CPU" in text and "no AMX" in text and "32 GiB, 16 GiB free" in text
    broken = changed(nvidia=Nvidia("580.65.06", [L4]))
    monkeypatch.setattr(doctor, "gather", lambda *_: broken)
    assert doctor.run([]) == 1
    assert capsys.readouterr().out.endswith('"jax[cuda13]==0.12.0"\n1 broken\n')
    query = dataclasses.replace(V5E, hosts=2)
    monkeypatch.setattr(doctor, "gather", lambda *_: changed(query=query, huge_pages="always"))
    doctor.run([])
    tpus = "4 x TPU v5 lite (v5e), 16 GiB for JAX, at most 197 TFLOP/s in bfloat16 on each of 2 ho"
    assert tpus in capsys.readouterr().out


def test_keys_need_a_config():
    with pytest.raises(UserError, match="needs --config CONFIG"):
        doctor.run(["--config.data.workers=3"])
    with pytest.raises(UserError, match="no config nothing"):
        doctor.run(["--config", "nothing"])
