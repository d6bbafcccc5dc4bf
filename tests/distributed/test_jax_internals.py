"""JAX's private names exist, and nothing else of the package uses others."""

import re
from pathlib import Path

import clip_jax
from clip_jax.distributed import jax_internals


def test_the_names_exist_in_this_jax():
    state = jax_internals.distributed_state()
    for name in ("client", "process_id", "num_processes", "coordinator_address"):
        assert hasattr(state, name)
    assert jax_internals.is_cloud_tpu_vm() in (False, True)
    assert jax_internals.gce_process_count() >= 1
    assert jax_internals.kubernetes_process_count() >= 1


def test_no_other_module_imports_private_names_of_jax():
    package = Path(clip_jax.__file__).parent
    modules = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"jax\._src|jax/_src", path.read_text(encoding="utf-8"))
    }
    assert modules == {"distributed/jax_internals.py"}
