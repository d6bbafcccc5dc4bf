"""launch/gke.sh: a manifest that the schemas of JobSet and Kubernetes allow, and the right one."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from launchers import HARD_WORDS

JOB = ["job", "--image", "gcr.io/p/clip_jax:1", "--tpu", "v5e", "--topology", "4x4"]
FLAGS = ["--", "--config", "configs/vit_b16.py"]


def closed(schema: Any) -> Any:
    """The schema with no other properties than the ones it names."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            closed(part)
    elif isinstance(schema, list):
        for part in schema:
            closed(part)
    return schema


@pytest.fixture(scope="module")
def schema():
    """JobSet's, from jobset.x-k8s.io/v1alpha2 down to the pod of Kubernetes' core/v1."""
    schema = closed(JobsetV1alpha2JobSet.model_json_schema())
    # the generated classes wrap these two in an object of their own
    schema["$defs"]["IoK8sApimachineryPkgApiResourceQuantity"] = {"type": ["string", "number"]}
    schema["$defs"]["IoK8sApimachineryPkgUtilIntstrIntOrString"] = {"type": ["string", "integer"]}
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def manifest(launch, schema):
    def render(*args: str) -> Any:
        done = launch("gke.sh", *args, "--dry-run", *FLAGS)
        assert done.returncode == 0, done.stderr
        document = yaml.safe_load(done.stdout)
        error = jsonschema.exceptions.best_match(schema.iter_errors(document))
        assert error is None, error
        return document

    return render


def job(manifest: Any) -> Any:
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(manifest: Any) -> Any:
    return job(manifest)["template"]["spec"]


def test_the_manifest_holds_the_requested_values(manifest):
    jobset = manifest(*JOB, "--grace", "120", "--restarts", "5")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "job"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 5
    spec = job(jobset)
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (4, 4, "Indexed")
    spec = pod(jobset)
    assert spec["terminationGracePeriodSeconds"] == 120
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = spec["containers"]
    assert container["image"] == "gcr.io/p/clip_jax:1"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["launch/local.sh", "1", "--"]
    assert container["args"] == FLAGS[1:]
    assert "tolerations" not in spec and "serviceAccountName" not in spec


def test_a_spot_node_and_a_bucket(manifest):
    jobset = manifest(*JOB, "--spot", "--bucket=my-bucket", "--service-account=trainer")
    spec = pod(jobset)
    assert spec["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    (toleration,) = spec["tolerations"]
    assert toleration["key"] == "cloud.google.com/gke-spot"
    assert spec["serviceAccountName"] == "trainer"
    mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    assert mounts["bucket"] == "/mnt/my-bucket"
    assert {v["name"] for v in spec["volumes"]} == set(mounts)
    (csi,) = [v["csi"] for v in spec["volumes"] if "csi" in v]
    assert csi["driver"] == "gcsfuse.csi.storage.gke.io"
    assert csi["volumeAttributes"]["bucketName"] == "my-bucket"
    annotations = job(jobset)["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"}


def test_a_preempted_slice_does_not_count_as_a_restart_and_a_mistake_ends_the_job(manifest):
    jobset = manifest(*JOB)
    spec = job(jobset)
    mistake, preempted = spec["podFailurePolicy"]["rules"]
    assert mistake["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [2]}
    assert preempted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert mistake["action"] == preempted["action"] == "FailJob"
    assert (spec["backoffLimit"], pod(jobset)["restartPolicy"]) == (0, "Never")
    first, second = jobset["spec"]["failurePolicy"]["rules"]
    assert first["action"] == "FailJobSet"
    assert first["onJobFailureMessagePatterns"] == ["matching FailJob rule at index 0"]
    assert second["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert "onJobFailureMessagePatterns" not in second
    assert first["onJobFailureReasons"] == second["onJobFailureReasons"] == ["PodFailurePolicy"]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (["spec", "failurePolicy", "maxRestart"], 3),
        (["spec", "failurePolicy", "maxRestarts"], "3"),
        (["spec", "replicatedJobs", 0, "template", "spec", "completionmode"], "Indexed"),
        (["pod", "nodeselector"], {}),
        (["pod", "nodeSelector", "cloud.google.com/gke-spot"], True),
        (["pod", "containers", 0, "name"], None),
        (["pod", "containers", 0, "arg"], ["--config"]),
        (["pod", "containers", 0, "resources", "limits"], {"google.com/tpu": [4]}),
        (["pod", "volumes", 0, "emptyDir", "medium"], 1),
    ],
)
def test_the_schema_finds_a_field_that_is_wrong(manifest, schema, path, wrong):
    jobset = copy.deepcopy(manifest(*JOB))
    holder = jobset if path[0] != "pod" else pod(jobset)
    for key in path[path[0] == "pod" : -1]:
        holder = holder[key]
    if wrong is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = wrong
    assert not schema.is_valid(jobset)


def test_words_reach_the_container_unchanged(launch):
    done = launch("gke.sh", *JOB, "--dry-run", "--", "--config", *HARD_WORDS, "$(NAME)", "a\\nb")
    args = pod(yaml.safe_load(done.stdout))["containers"][0]["args"]
    # Kubernetes makes $ of $$ and leaves nothing else to expand
    assert "$" not in "".join(args).replace("$$", "")
    assert [a.replace("$$", "$") for a in args] == ["--config", *HARD_WORDS, "$(NAME)", "a\\nb"]


@pytest.mark.parametrize(
    ("tpu", "topology", "more", "hosts", "chips"),
    [
        ("v5e", "1x1", [], 1, 1),
        ("v5e", "2x2", [], 1, 4),
        ("v5e", "2x4", [], 2, 4),
        ("v5e", "2x4", ["--chips-per-host=8"], 1, 8),
        ("v5e", "16x16", [], 64, 4),
        ("v6e", "4x8", [], 8, 4),
        ("v4", "2x2x1", [], 1, 4),
        ("v4", "2x2x4", [], 4, 4),
        ("v5p", "4x4x4", [], 16, 4),
        ("v5p", "8x8x12", [], 192, 4),
    ],
)
def test_hosts_follow_from_the_topology(manifest, tpu, topology, more, hosts, chips):
    jobset = manifest("job", "--image=i", "--tpu", tpu, "--topology", topology, *more)
    assert job(jobset)["parallelism"] == job(jobset)["completions"] == hosts
    assert pod(jobset)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "the job has no name"),
        (["Job"], "name Job: up to 40 lower-case"),
        (["job", "two"], "unexpected two"),
        (["job", *FLAGS], "--image ''"),
        (["job", "--image=i", *FLAGS], "--tpu '': v4, v5e, v5p or v6e"),
        (["job", "--image=i", "--tpu=v5", *FLAGS], "--tpu 'v5'"),
        (["job", "--image=i", "--tpu=v5e", *FLAGS], "--topology '': v5e has 1x1"),
        (["job", "--image=i", "--tpu=v5e", "--topology=3x3", *FLAGS], "--topology '3x3'"),
        (["job", "--image=i", "--tpu=v4", "--topology=4x4", *FLAGS], "three dimensions"),
        (["job", "--image=i", "--tpu=v4", "--topology=8x4x4", *FLAGS], "rising order"),
        (["job", "--image=i", "--tpu=v5p", "--topology=2x2x3", *FLAGS], "multiples of 4"),
        ([*JOB, "--chips-per-host=8", *FLAGS], "a host of a v5e 4x4 has 4"),
        ([*JOB, "--chips-per-host=0", *FLAGS], "--chips-per-host 0"),
        ([*JOB, "--bucket=gs://b", *FLAGS], "without gs://"),
        ([*JOB, "--namespace=A b", *FLAGS], "'A b' is no name of Kubernetes"),
        ([*JOB, *FLAGS, "two\nlines"], "control character"),
    ],
)
def test_wrong_arguments_are_named(fails, args, words):
    before = args.index("--") if "--" in args else len(args)
    assert words in fails("gke.sh", *args[:before], "--dry-run", *args[before:])


@pytest.mark.parametrize("state", ["", "job Completed", "job Failed"])
def test_the_manifest_is_created_once_what_has_ended_is_gone(launch, tools, state):
    tools.add("kubectl", f"case $* in *' get '*) echo -n '{state}' ;; *create*) cat ;; esac")
    done = launch("gke.sh", *JOB, "--namespace=team", *FLAGS, PATH=tools.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == launch("gke.sh", *JOB, "--dry-run", *FLAGS).stdout
    calls = tools.calls("kubectl")
    assert all(call[1] == "--namespace=team" for call in calls)
    verbs = [call[2] for call in calls]
    assert verbs == ["get", *(["delete"] if state else []), "create"]


def test_a_running_job_is_left_alone(fails, tools):
    tools.add("kubectl", "[[ $1 == get ]] && echo -n 'job '")
    assert "job is running" in fails("gke.sh", *JOB, *FLAGS, PATH=tools.path)
    assert [call[1] for call in tools.calls()] == ["get"]


def test_a_cluster_that_cannot_be_asked_gets_nothing(launch, tools):
    tools.add("kubectl", "echo 'no server' >&2; exit 1")
    done = launch("gke.sh", *JOB, *FLAGS, PATH=tools.path)
    assert done.returncode == 1 and done.stderr == "no server\n"
    assert [call[1] for call in tools.calls()] == ["get"]
