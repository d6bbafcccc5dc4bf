"""Who else there is follows from flags and environment, without anything being started."""

import pytest

from clip_jax.distributed import cluster_env
from clip_jax.distributed.cluster_env import ProcessInfo
from clip_jax.errors import UserError
from support import says

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
GIVEN = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "on_tpu", "kind"),
    [
        ({}, False, ""),
        (SLURM, False, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, False, ""),
        (SLURM | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, False, ""),
        # the shell of an allocation, before srun
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, False, ""),
        (POD, False, ""),
        (POD | {"JOB_COMPLETION_INDEX": "0"}, False, "kubernetes"),
        ({"JOB_COMPLETION_INDEX": "0"}, False, ""),
        (
            {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1", "OMPI_COMM_WORLD_SIZE": "2"},
            False,
            "open_mpi",
        ),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1", "OMPI_COMM_WORLD_SIZE": "1"}, False, ""),
        ({}, True, "gce_tpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, ""),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, True, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, "gke_tpu"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, "gke_tpu"),
        ({"TPU_PROCESS_ADDRESSES": "local", "TPU_WORKER_HOSTNAMES": "a,b"}, True, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False, ""),
        (POD | {"JOB_COMPLETION_INDEX": "0", "TPU_WORKER_HOSTNAMES": "a"}, True, ""),
    ],
)
def test_the_cluster_that_started_this_process(environment, on_tpu, kind):
    assert cluster_env.cluster(environment, on_tpu) == kind


CPU = {"JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    ("flags", "environment", "process_info"),
    [
        ((None, None, None), {}, None),
        (("a:1", 2, 1), {}, ProcessInfo("a:1", 2, 1)),
        (("[::1]:80", 3, 2), GIVEN, ProcessInfo("[::1]:80", 3, 2)),
        ((None, None, None), GIVEN, ProcessInfo("a:1", 2, 0)),
        ((None, None, None), GIVEN | {"JAX_NUM_PROCESSES": "1"}, None),
        ((None, 1, None), GIVEN, None),
        ((None, 1, 0), SLURM, None),
        ((None, None, None), SLURM, ProcessInfo()),
        ((None, None, None), SLURM | {"JAX_NUM_PROCESSES": "1"}, None),
        ((None, None, None), SLURM | {"JAX_COORDINATOR_ADDRESS": "a:1"}, ProcessInfo("a:1")),
        ((None, None, None), SLURM | GIVEN, ProcessInfo("a:1", 2, 0)),
    ],
)
def test_flags_come_before_the_environment_and_this_before_the_cluster(
    flags, environment, process_info
):
    assert cluster_env.detect_process(*flags, CPU | environment) == process_info


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        (("a:1", None, None), {}, ["--coordinator", "--processes and --process"]),
        ((None, 2, 0), GIVEN, ["--processes and --process", "without --coordinator"]),
        (("a", 2, 0), {}, ["--coordinator=a", "HOST:PORT"]),
        (("a:0", 2, 0), {}, ["--coordinator=a:0", "HOST:PORT"]),
        (("a:70000", 2, 0), {}, ["HOST:PORT"]),
        (("a:1", 2, 2), {}, ["process 2", "--processes=2"]),
        ((None, None, None), {"JAX_PROCESS_ID": "0"}, ["JAX_COORDINATOR_ADDRESS", "all three"]),
        ((None, None, None), GIVEN | {"JAX_PROCESS_ID": "x"}, ["JAX_PROCESS_ID=x"]),
        ((None, None, None), GIVEN | {"JAX_PROCESS_ID": "2"}, ["JAX_NUM_PROCESSES=2"]),
        (
            (None, None, None),
            POD | {"JOB_COMPLETION_INDEX": "0"},
            ["jax[k8s]", "JAX_NUM_PROCESSES"],
        ),
    ],
)
def test_contradictory_settings_are_a_one_line_error(flags, environment, words):
    with pytest.raises(UserError) as error:
        cluster_env.detect_process(*flags, CPU | environment)
    assert says(error.value, *words)


def test_only_a_place_without_gaps_leaves_jax_nothing_to_find_out():
    assert ProcessInfo("a:1", 2, 0).known
    assert not any(
        place.known for place in (ProcessInfo(), ProcessInfo("a:1"), ProcessInfo(None, 2, 0))
    )
