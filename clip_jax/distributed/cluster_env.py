"""Finds the index of this process and the number of processes.

They come from flags, from the environment or from the cluster. Nothing is started here. JAX is
imported only to look for chips or to ask a cluster.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from clip_jax.distributed import jax_internals
from clip_jax.errors import UserError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """The place of one process among others. JAX asks the cluster for values that are None.

    Attributes:
      coordinator: the address of the coordinator.
      processes: the number of processes.
      process: the index of this process.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    @property
    def known(self) -> bool:
        """Whether all values are known."""
        return None not in dataclasses.astuple(self)


def detect_process(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str],
) -> ProcessInfo | None:
    """Returns the place of this process among others, or None if it is the only one.

    Flags have priority over JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and
    these over the variables of a cluster. A number of one process has priority over everything.

    Args:
      coordinator: the address of the coordinator, from a flag; None: not given.
      processes: the number of processes, from a flag; None: not given.
      process: the index of this process, from a flag; None: not given.
      environment: the environment variables.

    Raises:
      UserError: some of the three are missing or do not fit together.
    """
    flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if flags_given := [flag for flag, value in flags.items() if value is not None]:
        missing = [flag for flag, value in flags.items() if value is None]
        if processes == 1 and not process:
            return None
        if missing:
            raise UserError(f"{' and '.join(flags_given)} given without {' and '.join(missing)}")
        return _checked(coordinator, processes, process, "--coordinator", "--processes")
    address = environment.get(_ADDRESS) or None
    count, index = _integer(environment, _COUNT), _integer(environment, _INDEX)
    if count == 1:
        return None
    if None not in (address, count, index):
        return _checked(address, count, index, _ADDRESS, _COUNT)
    if _is_one_of_many(environment):
        return ProcessInfo(address, count, index)
    if address or count or index is not None:
        raise UserError(f"{_ADDRESS}, {_COUNT} and {_INDEX} belong together: set all three or none")
    return None


def _integer(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(f"{name}={text} is no whole number")
    return int(text)


def _checked(address: Any, count: Any, index: Any, called: str, number: str) -> ProcessInfo:
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise UserError(f"{called}={address} is no HOST:PORT, such as 10.0.0.2:8476")
    if not 0 <= index < count:
        raise UserError(f"process {index} of {number}={count}: they are counted from 0")
    return ProcessInfo(address, count, index)


def cluster(environment: Mapping[str, str], on_tpu: bool) -> str:
    """Returns the cluster that started this process, perhaps as one of several; empty: none.

    "slurm", "open_mpi" and "gke_tpu" state the number of processes. A "gce_tpu" machine and a pod
    of a "kubernetes" job must be asked for it. The variables are those of JAX's own detection of
    clusters.

    Args:
      environment: the environment variables.
      on_tpu: whether this machine has TPU chips.
    """
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return "open_mpi" if _is_above_one(environment.get("OMPI_COMM_WORLD_SIZE")) else ""
    step = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in step):
        tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"]
        return "slurm" if _is_above_one(tasks) else ""
    if on_tpu:
        names = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
        if names is None:
            return "" if "TPU_SKIP_MDS_QUERY" in environment else "gce_tpu"
        slices = environment.get("MEGASCALE_NUM_SLICES")
        return "gke_tpu" if "," in names or _is_above_one(slices) else ""
    indexed = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    return "kubernetes" if indexed else ""


def _is_above_one(count: str | None) -> bool:
    return bool(count) and str(count).isdigit() and int(str(count)) > 1


def _is_one_of_many(environment: Mapping[str, str]) -> bool:
    """Returns whether a cluster started more than one process; asks it if necessary."""
    platforms = environment.get("JAX_PLATFORMS", "")
    on_tpu = (not platforms or "tpu" in platforms) and jax_internals.is_cloud_tpu_vm()
    kind = cluster(environment, on_tpu)
    if kind == "gce_tpu":
        # a machine outside Google Cloud has no such server
        with contextlib.suppress(Exception):
            return jax_internals.gce_process_count() > 1
        return False
    if kind == "kubernetes":
        return _pods() > 1
    return bool(kind)


def _pods() -> int:
    """Returns the number of parallel pods of this pod's job."""
    instead = f"or set {_ADDRESS}, {_COUNT} and {_INDEX} ({_COUNT}=1: alone)"
    try:
        import kubernetes  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise UserError(
            "this pod is one of an indexed job: pip install 'jax[k8s]' to meet the others, "
            + instead
        ) from None
    try:
        return jax_internals.kubernetes_process_count()
    except Exception as error:
        raise UserError(
            f"Kubernetes does not tell of this pod's job ({error}); {instead}"
        ) from None
