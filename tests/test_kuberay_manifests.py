"""The manifests for KubeRay: against Kubernetes' schemas, against KubeRay's fields and types, and what must hold beyond these.

KubeRay's fields are restated in kuberay_fields.yaml, which says from where; pod templates are held against Kubernetes' schema.
With SEMANTICA_KUBERAY_CRDS, a folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of a release (900 kB, another project's
files), the manifests are held against those too; without, that test is skipped.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "clusters"
CRDS = os.environ.get("SEMANTICA_KUBERAY_CRDS", "")
KUBERNETES = "1.34"
FIELDS: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "kuberay_fields.yaml").read_text())
Tree = dict[str, Any]


def documents() -> Iterator[Tree]:
    """Every object of every manifest."""
    for path in sorted(FOLDER.glob("kuberay-*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def of_kind(kind: str) -> Tree:
    """The one object of the kind."""
    (found,) = [document for document in documents() if document["kind"] == kind]
    return found


def specs() -> dict[str, Tree]:
    """The two clusters by their names: the one that stays, and the job's own."""
    return {"stays": of_kind("RayCluster")["spec"], "of the job": of_kind("RayJob")["spec"]["rayClusterSpec"]}


def groups(spec: Tree) -> list[Tree]:
    """Head and workers."""
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def templates() -> list[Tree]:
    """Every pod template."""
    ray = [group["template"] for spec in specs().values() for group in groups(spec)]
    return [*ray, of_kind("RayJob")["spec"]["submitterPodTemplate"]]


def autoscalers() -> Iterator[Tree]:
    """Each autoscaler as the pod of its one container, by what KubeRay's options have of a container."""
    for spec in specs().values():
        own = {"idleTimeoutSeconds", "upscalingMode", "version"}
        options = {name: value for name, value in spec["autoscalerOptions"].items() if name not in own}
        yield {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "autoscaler", **options}]}}


def container(template: Tree) -> Tree:
    """The one container."""
    (found,) = template["spec"]["containers"]
    return dict(found)


def gibibytes(quantity: str) -> float:
    """A quantity of memory of Kubernetes."""
    number, unit = re.fullmatch(r"(\d+)([GMT]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 2**-10, "Gi": 1, "Ti": 2**10}[unit]


@pytest.mark.skipif(not CRDS, reason="SEMANTICA_KUBERAY_CRDS names no folder with KubeRay's published schema")
@pytest.mark.parametrize(("kind", "file"), [("RayCluster", "ray.io_rayclusters.yaml"), ("RayJob", "ray.io_rayjobs.yaml")])
def test_the_published_schema_of_kuberay_takes_the_manifest(kind: str, file: str) -> None:
    versions = yaml.safe_load((Path(CRDS) / file).read_text())["spec"]["versions"]
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    _close(schema)
    assert [f"{e.json_path}: {e.message}" for e in Draft202012Validator(schema).iter_errors(of_kind(kind))] == []


def _close(schema: Any) -> None:
    """Refuse fields that the schema does not name, as the API server does."""
    if isinstance(schema, dict):
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("pattern", None)  # of its text; here it would be asked of a number too
        if "properties" in schema and schema.get("type") == "object":
            named = (
                schema.get("x-kubernetes-preserve-unknown-fields")
                or not schema["properties"]
                or "apiVersion" in schema["properties"]
            )
            schema.setdefault("additionalProperties", bool(named))
        for part in schema.values():
            _close(part)
    elif isinstance(schema, list):
        for part in schema:
            _close(part)


def complaints(thing: Tree) -> list[str]:
    """What KubeRay's fields and types do not allow."""
    schema = {"$defs": FIELDS["$defs"], "$ref": f"#/$defs/{thing['kind']}"}
    return [f"{e.json_path}: {e.message}" for e in Draft202012Validator(schema).iter_errors(thing)]


def test_kuberays_fields_and_types_take_the_manifests() -> None:
    Draft202012Validator.check_schema(FIELDS)
    assert complaints(of_kind("RayCluster")) == complaints(of_kind("RayJob")) == []


@pytest.mark.parametrize(
    ("kind", "path", "value", "complaint"),
    [
        ("RayCluster", "specs", {}, "'specs' was unexpected"),
        ("RayCluster", "spec.authOptions.secret", "semantica-ray-token", "'secret' was unexpected"),
        ("RayCluster", "spec.workerGroupSpecs.0.maxReplica", 3, "'maxReplica' was unexpected"),
        ("RayJob", "spec.rayClusterSpec.headGroupSpec.rayStartParam", {}, "'rayStartParam' was unexpected"),
        ("RayJob", "spec.submitterConfig.backofLimit", 2, "'backofLimit' was unexpected"),
        ("RayCluster", "spec.workerGroupSpecs.0.replicas", "two", "'two' is not of type 'integer'"),
        ("RayCluster", "spec.workerGroupSpecs.0.maxReplicas", 2**31, "greater than the maximum"),
        ("RayCluster", "spec.workerGroupSpecs", {}, "is not of type 'array'"),
        ("RayCluster", "spec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("RayJob", "spec.rayClusterSpec.rayVersion", 2.6, "2.6 is not of type 'string'"),
        ("RayJob", "spec.shutdownAfterJobFinishes", "yes", "'yes' is not of type 'boolean'"),
        ("RayJob", "spec.preRunningDeadlineSeconds", 0, "less than the minimum of 1"),
        ("RayCluster", "spec.authOptions.mode", "tokens", "'tokens' is not one of"),
        ("RayCluster", "spec.autoscalerOptions.version", "v3", "'v3' is not one of"),
        ("RayCluster", "spec.autoscalerOptions.upscalingMode", "default", "'default' is not one of"),
        ("RayJob", "spec.submissionMode", "K8sJob", "'K8sJob' is not one of"),
        ("RayJob", "spec.deletionStrategy", {"onSuccess": {"policy": "DeleteSelf"}}, "not valid under any"),
        ("RayJob", "apiVersion", "ray.io/v1alpha1", "'ray.io/v1' was expected"),
    ],
)
def test_a_misspelt_field_a_wrong_type_and_a_wrong_value_are_refused(kind: str, path: str, value: Any, complaint: str) -> None:
    thing = of_kind(kind)
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    reduce(operator.getitem, way, thing)[last] = value
    (found,) = complaints(thing)
    assert complaint in found


def test_a_head_or_a_groups_name_that_is_missing_is_refused() -> None:
    cluster = of_kind("RayCluster")
    del cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"][0]["groupName"]
    assert sorted(complaints(cluster)) == [
        "$.spec.workerGroupSpecs[0]: 'groupName' is a required property",
        "$.spec: 'headGroupSpec' is a required property",
    ]


def test_what_kuberays_operator_refuses_beyond_its_schema_is_not_there() -> None:
    job = of_kind("RayJob")["spec"]
    assert job["activeDeadlineSeconds"] > 0 <= job["backoffLimit"]
    assert job["shutdownAfterJobFinishes"] or not job["ttlSecondsAfterFinished"]
    for kind, longest in [("RayCluster", 53), ("RayJob", 47)]:  # 63 less what KubeRay appends
        name = of_kind(kind)["metadata"]["name"]
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= longest
    for spec in specs().values():
        assert spec["autoscalerOptions"]["version"] == "v2"  # else no group may have an idleTimeoutSeconds
        assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0)  # tokens
        assert all(0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in spec["workerGroupSpecs"])
        for group in groups(spec):
            twice = {"labels"} | ({"num-cpus", "num-gpus", "memory", "resources"} if "resources" in group else set())
            assert twice.isdisjoint(group["rayStartParams"])


def test_kubernetes_own_schema_takes_every_object_and_every_pod() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="the package kubernetes-validate is not installed")
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template} for template in templates()]
    plain = [document for document in documents() if not document["apiVersion"].startswith("ray.io/")]
    rays = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": of_kind(kind)["metadata"]} for kind in ("RayCluster", "RayJob")]
    assert len(pods) == 8
    assert [document["kind"] for document in plain] == ["PersistentVolumeClaim", "NetworkPolicy", "NetworkPolicy"]
    for thing in [*pods, *autoscalers(), *plain, *rays]:
        kubernetes.validate(thing, KUBERNETES, strict=True)
    pods[0]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes.ValidationError, match="readinesProbe"):
        kubernetes.validate(pods[0], KUBERNETES, strict=True)


def test_start_parameters_are_texts_that_ray_start_knows() -> None:
    from ray.scripts.scripts import start

    known = {name.removeprefix("--") for option in start.params for name in option.opts}
    for spec in specs().values():
        for group in groups(spec):
            assert set(group["rayStartParams"]) <= known
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_tokens_come_from_a_secret_that_is_not_here() -> None:
    for spec in specs().values():
        assert spec["authOptions"] == {"mode": "token", "secretName": "semantica-ray-token"}
    assert not [document for document in documents() if document["kind"] == "Secret"]


def test_the_dashboard_of_a_cluster_that_stays_is_on_loopback() -> None:
    heads = {name: spec["headGroupSpec"] for name, spec in specs().items()}
    assert heads["stays"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    assert all(head["serviceType"] == "ClusterIP" and not head.get("enableIngress") for head in heads.values())


def test_every_pod_of_a_policy_is_one_that_it_selects() -> None:
    """The job's dashboard is on the network: each of its pods has the label that its policy goes by."""
    (policy,) = [d for d in documents() if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "semantica-encode"]
    label = policy["spec"]["podSelector"]["matchLabels"]
    job = of_kind("RayJob")["spec"]
    pods = [*(group["template"] for group in groups(job["rayClusterSpec"])), job["submitterPodTemplate"]]
    assert all(pod["metadata"]["labels"] == label for pod in pods)


def test_no_pod_runs_as_root_or_may_become_it() -> None:
    for template in templates():
        pod, alone = template["spec"]["securityContext"], container(template)["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == 1000
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert alone == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_every_pod_has_limits_which_are_its_requests_and_probes() -> None:
    for template in templates():
        alone = container(template)
        assert {"cpu", "memory"} <= set(alone["resources"]["limits"])
        if alone["name"] == "ray-job-submitter":
            continue
        assert alone["resources"]["requests"] == alone["resources"]["limits"]
        assert alone["readinessProbe"] == alone["livenessProbe"]
        assert template["spec"]["restartPolicy"] == "Never"  # autoscaler v2


def test_probes_ask_what_needs_no_token() -> None:
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    for template in templates():
        for path in re.findall(r":52365(/\S+?)\"", str(container(template).get("readinessProbe", ""))):
            assert path in PUBLIC_EXACT_PATHS
    head = str(container(specs()["stays"]["headGroupSpec"]["template"])["readinessProbe"])
    assert ":8265/api/gcs_healthz" in head


def test_probes_are_python_that_compiles() -> None:
    for template in templates():
        probe = container(template).get("readinessProbe")
        if probe:
            python, flag, code = probe["exec"]["command"]
            assert (python, flag) == ("python", "-c")
            compile(code, "probe", "exec")


def test_the_object_store_fits_into_shared_memory_and_that_into_the_limit() -> None:
    for spec in specs().values():
        for group in groups(spec):
            volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
            shared = gibibytes(volumes["shm"]["emptyDir"]["sizeLimit"])
            limit = gibibytes(container(group["template"])["resources"]["limits"]["memory"])
            assert int(group["rayStartParams"]["object-store-memory"]) / 2**30 < shared < 0.5 * limit
            assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
            mounts = {mount["name"]: mount["mountPath"] for mount in container(group["template"])["volumeMounts"]}
            assert set(mounts) == set(volumes)
            assert mounts["spill"] == group["rayStartParams"]["object-spilling-directory"]


def test_a_tpu_replica_is_a_whole_slice_as_ray_counts_it() -> None:
    from ray.util.tpu import get_tpu_worker_resources

    (group,) = [group for group in specs()["stays"]["workerGroupSpecs"] if group["groupName"].startswith("tpu")]
    topology = group["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    hosts, asked = get_tpu_worker_resources(topology=topology, accelerator_type="TPU-V6E", resources_per_worker={"CPU": 1.0})
    limits = container(group["template"])["resources"]["limits"]
    assert group["numOfHosts"] == hosts
    assert float(limits["google.com/tpu"]) == asked["TPU"]


def test_ray_is_that_of_the_constraints_and_the_job_is_a_command_that_parses() -> None:
    from semantica.config import from_args
    from semantica.jobs.encode import EncodeJob
    from semantica.presets import preset

    assert all(f"ray=={spec['rayVersion']}\n" in (ROOT / "constraints.txt").read_text() for spec in specs().values())
    words = of_kind("RayJob")["spec"]["entrypoint"].split()
    assert words[:4] == ["semantica", "encode", "--preset", "base"]
    job = from_args(EncodeJob, words[4:], prog="", description="", defaults={"encode": preset("base").encode})
    (group,) = specs()["of the job"]["workerGroupSpecs"]
    limits = container(group["template"])["resources"]["limits"]
    cluster = job.runtime.cluster
    assert cluster.num_actors <= group["maxReplicas"] * int(limits["nvidia.com/gpu"])
    assert cluster.cpus_per_actor <= int(limits["cpu"])  # else no pod would ever take one
