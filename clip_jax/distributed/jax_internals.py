"""The only private names of JAX that this package uses, in one place for the day they move.

JAX has no public name for any of them: for the key-value store of `jax.distributed`, by which
processes send heartbeats and reports of failures; for its detection of clusters, which would
otherwise have to be written again here; and for the libraries of platforms that it has loaded.
Orbax reads the same client. `tests/distributed` imports all of them under each supported JAX.
"""

from __future__ import annotations

from typing import Any


def distributed_state() -> Any:
    """Returns the state of `jax.distributed`.

    It has `client`, `process_id`, `num_processes` and `coordinator_address`.
    """
    from jax._src.distributed import global_state

    return global_state


def is_cloud_tpu_vm() -> bool:
    """Returns whether this machine has TPU chips and libtpu; importing JAX looks for them."""
    import jax  # noqa: F401
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    return running_in_cloud_tpu_vm


def gce_process_count() -> int:
    """Returns the number of hosts of a Cloud TPU from its metadata server; 1 without a server."""
    from jax._src.clusters import GceTpuCluster

    return GceTpuCluster.get_process_count() if GceTpuCluster.is_env_present() else 1


def kubernetes_process_count() -> int:
    """Returns the number of parallel pods of this pod's job, as the cluster's API tells."""
    from jax._src.clusters import K8sCluster

    return K8sCluster.get_process_count() if K8sCluster.is_env_present() else 1


def is_plugin_loaded(platform: str) -> bool:
    """Returns whether JAX has loaded the library of a platform, such as `cuda`."""
    from jax._src.lib import xla_client

    return xla_client.pjrt_plugin_loaded(platform)
