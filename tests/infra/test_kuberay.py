"""The Kubernetes manifests: fields as KubeRay defines them, one cluster in both, unprivileged pods, and an experiment that mixopt accepts."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml

from mixopt.cli import app
from mixopt.experiment_file import parse_experiment

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "infra" / "kuberay"
FIELDS = json.loads(Path(__file__).with_name("kuberay_fields.json").read_text(encoding="utf-8"))


def manifests() -> dict[str, dict[str, Any]]:
    """All objects of all files, by kind; each kind occurs once."""
    found = [thing for path in sorted(KUBERAY.iterdir()) for thing in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    assert len({thing["kind"] for thing in found}) == len(found)
    return {thing["kind"]: thing for thing in found}


MANIFESTS = manifests()
CLUSTER, JOB = MANIFESTS["RayCluster"]["spec"], MANIFESTS["RayJob"]["spec"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def check(kind: str, spec: dict[str, Any]) -> None:
    schema = {"$ref": f"#/$defs/{kind}", "$defs": FIELDS["$defs"]}
    jsonschema.validate(spec, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_fields_are_those_of_kuberay(kind: str) -> None:
    assert MANIFESTS[kind]["apiVersion"] == "ray.io/v1"
    check(kind, MANIFESTS[kind]["spec"])


@pytest.mark.parametrize(
    "path",
    ["authOption", "headGroupSpec.template.spec.container", "workerGroupSpecs.0.template.spec.containers.0.resource", "authOptions.mode"],
)
def test_the_check_sees_a_wrong_field(path: str) -> None:
    spec = copy.deepcopy(CLUSTER)
    *folders, name = path.split(".")
    place: Any = spec
    for folder in folders:
        place = place[int(folder) if folder.isdigit() else folder]
    place[name] = "wrong"
    with pytest.raises(jsonschema.ValidationError, match=r"wrong|unexpected"):
        check("RayCluster", spec)


def test_the_job_runs_on_the_same_cluster_plus_its_experiment() -> None:
    cluster = copy.deepcopy(JOB["rayClusterSpec"])
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["volumes"].pop() == {"name": "experiment", "configMap": {"name": MANIFESTS["ConfigMap"]["metadata"]["name"]}}
    mount = head["containers"][0]["volumeMounts"].pop()
    assert mount["name"] == "experiment"
    assert cluster == CLUSTER
    command, subcommand, file = JOB["entrypoint"].split()
    assert command == "mixopt"
    assert subcommand in typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert file in {f"{mount['mountPath']}/{name}" for name in MANIFESTS["ConfigMap"]["data"]}


def test_the_experiment_is_valid_and_stays_on_the_shared_volume() -> None:
    (text,) = MANIFESTS["ConfigMap"]["data"].values()
    experiment = parse_experiment(yaml.safe_load(text), Path("/experiment"))
    store = next(mount["mountPath"] for mount in pods(CLUSTER)[0]["containers"][0]["volumeMounts"] if mount["name"] == "store")
    assert experiment.ray.address == "auto", "the search would start a Ray of its own on the head"
    assert experiment.output_dir.is_relative_to(store)
    paths = re.findall(r"path: ([^,}]+)", text)
    assert len(paths) == len(experiment.domains) + len(experiment.targets)
    assert all(Path(path).is_relative_to(store) for path in paths)


def test_tokens_are_asked_for_and_ray_has_the_pinned_version() -> None:
    # KubeRay refuses the mode without a version, and versions before 2.52.
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert f"ray=={CLUSTER['rayVersion']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()


def test_gpu_workers_have_a_gpu_and_tolerate_its_taint() -> None:
    gpu = GROUPS["gpu"]["template"]["spec"]
    (container,) = gpu["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == 1
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpu["tolerations"]
    assert "nvidia.com/gpu" not in GROUPS["cpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in GROUPS.values())


@pytest.mark.parametrize("pod", pods(CLUSTER), ids=["head", *GROUPS])
def test_pods_are_what_a_restricted_namespace_admits(pod: dict[str, Any]) -> None:
    assert MANIFESTS["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in (ROOT / "infra" / "image" / "Containerfile").read_text(
        encoding="utf-8"
    )
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
        assert not re.search(r":latest$|^[^:]+$", container["image"])
    # The pod that would submit a job has no security context, and cannot be given one without repeating it whole.
    assert JOB["submissionMode"] == "HTTPMode"


@pytest.mark.parametrize("pod", pods(CLUSTER), ids=["head", *GROUPS])
def test_every_pod_sees_the_shared_volume_at_one_path(pod: dict[str, Any]) -> None:
    claim = MANIFESTS["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["volumes"]
    assert {"name": "store", "mountPath": "/store"} in pod["containers"][0]["volumeMounts"]


def test_a_job_ends_its_cluster_and_starts_again_after_a_failure() -> None:
    assert JOB["shutdownAfterJobFinishes"] is True
    assert JOB["ttlSecondsAfterFinished"] > 0
    assert JOB["backoffLimit"] > 0


def test_everything_is_in_one_namespace_that_is_closed_from_outside() -> None:
    namespace = MANIFESTS["Namespace"]["metadata"]["name"]
    assert {thing["metadata"]["namespace"] for kind, thing in MANIFESTS.items() if kind != "Namespace"} == {namespace}
    policy = MANIFESTS["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress"]
    assert [sorted(peer) for rule in policy["ingress"] for peer in rule["from"]] == [["podSelector"], ["namespaceSelector"]]
