"""A run goes on with the same pairs wherever they lie, and writes no secret of a URL."""

import shutil
import subprocess
import sys
import tarfile

import pytest

import runs
from clip_jax import config as config_lib
from clip_jax.data import fingerprint
from clip_jax.distributed import multihost
from clip_jax.distributed.cluster_env import ProcessInfo
from clip_jax.errors import UserError, redacted
from clip_jax.io import redirects, remote
from clip_jax.training import run_identity
from servers import serving
from support import refused, write_pairs, write_tar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:SECRET@host/x.tar", "http://host/x.tar"),
        ("https://SECRET@host:80/x.tar:1.png", "https://host:80/x.tar:1.png"),
        ("http://user:SEC@RET@host/x", "http://host/x"),
        ("http://user:SE/CRET@host/x", "http://host/x"),
        (
            "no file https://h/x.tar?X-Amz-Signature=SECRET&a=1 (from",
            "no file https://h/x.tar (from",
        ),
        ("'https://h/x?sig=SECRET' fails", "'https://h/x' fails"),
        ("s3://KEY:SECRET@bucket/x", "s3://bucket/x"),
        ("simplecache::https://u:SECRET@h/x?token=SECRET", "simplecache::https://h/x"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        ("az://c/x?sig=SECRET&se=1", "az://c/x?sig=…&se=1"),
        ("gs://bucket/a?.tar", "gs://bucket/a?.tar"),
        ("/data/a@b/c=d.tar", "/data/a@b/c=d.tar"),
        ("http://host:8080/a@b.tar", "http://host:8080/a@b.tar"),
    ],
)
def test_secrets_of_urls_are_left_out(text, expected):
    assert redacted(text) == expected and remote.redact(text) == expected
    assert "SECRET" not in str(UserError(text))
    assert config_lib.without_secrets({"a": [text], "b": {"c": (text,)}}) == {
        "a": [expected],
        "b": {"c": (expected,)},
    }


@pytest.mark.slow
def test_moved_data_is_the_same_data_and_other_data_is_not(tmp_path):
    config = runs.small_run(tmp_path, 20)
    workdir = tmp_path / "run"
    done = runs.run(config, workdir, "--config.checkpoint.every=3", "--config.steps=12")
    assert done.returncode == 0, done.stderr
    shutil.copy(tmp_path / "pairs.tar", tmp_path / "elsewhere.tar")
    moved = f"--config.data.train={tmp_path}/elsewhere.tar"
    again = runs.run(config, workdir, moved)
    assert again.returncode == 0 and "nothing to train" in again.stderr, again.stderr
    assert "elsewhere.tar" in (workdir / "config.json").read_text()
    write_pairs(tmp_path / "more.tar", 21)
    other = runs.run(config, workdir, f"--config.data.train={tmp_path}/more.tar")
    assert other.returncode == 2 and "20 then, 21 now" in other.stderr, other.stderr


def test_weights_that_a_run_began_with_are_known_wherever_they_lie(tmp_path):
    old, new, other = (tmp_path / name / "w.pt" for name in ("old", "new", "other"))
    for path, content in ((old, b"weights"), (new, b"weights"), (other, b"others!")):
        path.parent.mkdir()
        path.write_bytes(content)
    began, known = {"weights": {"path": str(old)}}, fingerprint.of_weights(str(old))
    assert run_identity._are_moved(began, "weights.path", str(new), known)
    assert run_identity._are_moved(
        began, "weights.path", str(new.rename(tmp_path / "renamed.pt")), known
    )
    assert not run_identity._are_moved(began, "weights.path", str(other), known)
    assert not run_identity._are_moved(
        began, "weights.path", "", known
    ) and not run_identity._are_moved({}, "weights.path", "", None)
    assert run_identity._are_moved(began, "weights.path", "/gone/w.pt", known), (
        "a job's scratch folder"
    )
    assert not run_identity._are_moved(began, "weights.path", "/gone/v.pt", known)
    assert run_identity._are_moved(began, "weights.path", str(other), None), (
        "of a run before there were fingerprints"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 99999])
def test_damaged_fingerprints_are_one_line(content, tmp_path):
    path = tmp_path / "fingerprints.json"
    path.write_bytes(content)
    refused(lambda: run_identity._read_fingerprints(path), path, "delete it")


@pytest.mark.slow
def test_a_signature_is_renewed_and_stands_nowhere(tmp_path):
    config = runs.small_run(tmp_path, 20)
    workdir = tmp_path / "run"
    shutil.copy(tmp_path / "pairs.tar", tmp_path / "whole.tar")
    write_tar(tmp_path / "pairs.tar", [*members_of(tmp_path / "pairs.tar"), *SPOILT])
    with serving(tmp_path) as server:
        # the server takes what follows ? for nothing of its own, and asks for no password
        host = server.url.removeprefix("http://")
        at = f"http://user:SECRET@{host}/pairs.tar?X-Amz-Signature=SIG"
        for number in (1, 2):
            data = at.replace("SECRET", f"SECRET{number}").replace("SIG", f"SIGN{number}")
            mine = {"mine": {"data": data.replace("pairs", "whole"), "metric": "retrieval"}}
            flags = (f"--config.data.train={data}", "--config.data.max_bad_fraction=0.5")
            sets = f"--config.evaluate.sets={mine}"
            done = runs.run(config, workdir, *flags, sets, "--config.log.every=3")
            assert done.returncode == 0, done.stderr
            assert_told_nothing(done)
        other = runs.run(config, workdir, f"--config.data.train={at}", "--config.seed=9", sets)
        assert other.returncode == 2 and "seed" in other.stderr
        assert_told_nothing(other)
        bad = runs.run(
            config, tmp_path / "b", f"--config.data.train={at}".replace("pairs", "no"), sets
        )
        assert bad.returncode == 2 and "Traceback" not in bad.stderr
        assert_told_nothing(bad)
        argv = [sys.executable, "-m", "clip_jax", "inspect", str(config)]
        argv += [f"--config.data.train={at}", f"--picture={tmp_path / 'x.png'}", "--seconds=0"]
        inspection = subprocess.run(argv, env=runs.environment(), capture_output=True, text=True)
        assert "pairs" in inspection.stdout, inspection.stderr
        assert_told_nothing(inspection)
    for path in workdir.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(word in content for word in (b"SECRET", b"SIGN")), path


# a pair that is left out, of which a line is said, and a member of which opening says one
SPOILT = [("x.png", b"no picture"), ("x.json", b'{"caption": "x"}'), ("alone.png", b"")]


def members_of(path):
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def assert_told_nothing(done):
    for secret in ("SECRET", "SIGN", "=SIG", "user:"):
        assert secret not in done.stdout + done.stderr, (secret, done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:8476", "127.0.0.1:8476"),
        ("localhost:8476", "127.0.0.1:8476"),
        ("0.0.0.0:8476", None),
        ("192.0.2.7:8476", None),
        ("no-such-host.invalid:8476", None),
    ],
)
def test_the_coordinator_listens_at_its_own_address(address, expected, monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    bound = multihost._bind_address(ProcessInfo(address, 2, 0))
    assert bound == expected or (address.startswith("localhost") and bound == "[::1]:8476")
    assert multihost._bind_address(ProcessInfo(address, 2, 1)) is None


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("http://a.org/x", "http://a.org/y", True),
        ("http://a.org/x", "https://a.org/x", True),
        ("https://a.org/x", "http://a.org/x", False),
        ("https://a.org/x", "https://cdn.a.org/x", True),
        ("https://a.org/x", "https://b.org/x", False),
        ("https://a.org/x", "https://evila.org/x", False),
        ("http://127.0.0.1:1/x", "http://127.0.0.1:2/x", False),
        ("http://10.0.0.1/x", "http://1.10.0.0.1/x", False),
    ],
)
def test_a_site_is_a_host_and_what_is_below_it(old, new, same):
    yarl = pytest.importorskip("yarl")
    assert redirects.is_same_site(yarl.URL(old), yarl.URL(new)) is same


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lr", "did you mean config.optimizer.learning_rate"),
        ("optimizer.learnign_rate", "did you mean config.optimizer.learning_rate"),
        ("data.trian", "did you mean config.data.train"),
        ("freeze", "did you mean config.optimizer.freeze"),
        ("separator", "did you mean config.data.separator"),
        ("num_epochs", "did you mean config.epochs"),
        ("model.vision.layer", "did you mean config.model.vision.layers"),
        ("shuffle", "--help"),
        ("batch", "did you mean config.batch_size"),
    ],
)
def test_hints_do_not_mislead(key, hint):
    config, _ = config_lib.load(str(config_lib.ROOT / "configs" / "vit_b32.py"))
    refused(lambda: config_lib.override(config, f"{key}=1"), f"config.{key};", hint)
