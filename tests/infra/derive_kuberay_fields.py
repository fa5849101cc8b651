"""Derives `kuberay_fields.json`: names, types, enumerations and required fields of KubeRay's resources, as a small JSON schema.

Run it on a checkout of KubeRay when its version moves: `python tests/infra/derive_kuberay_fields.py CHECKOUT TAG`. Of pods only what manifests
here could use is kept (`PRUNED` lists what goes); the whole definition has 1.4 MB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = "ray-operator/config/crd/bases"
KEPT = ("type", "enum", "required", "properties", "items", "additionalProperties", "x-kubernetes-int-or-string")
PRUNED = {
    # of a Ray cluster: features that the manifests leave alone
    *("deletionStrategy", "gcsFaultToleranceOptions", "historyServerOptions", "ingressOptions", "networkPolicy", "submitterPodTemplate"),
    *("autoscalerOptions", "headService", "tlsOptions"),
    # of a pod
    *("affinity", "dnsConfig", "ephemeralContainers", "initContainers", "lifecycle", "livenessProbe", "readinessProbe", "resourceClaims"),
    *("startupProbe", "topologySpreadConstraints", "windowsOptions", "workloadRef"),
}
VOLUME_SOURCES = {"name", "configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def trimmed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with names and types only; objects with named fields admit no others."""
    kept: dict[str, Any] = {}
    for key in KEPT:
        value = schema.get(key)
        if value is None or (key == "type" and schema.get("x-kubernetes-int-or-string")):
            continue
        if key == "properties":
            names = VOLUME_SOURCES if "persistentVolumeClaim" in value else set(value) - PRUNED
            kept[key] = {name: trimmed(value[name]) for name in sorted(names)}
            kept["additionalProperties"] = False
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            kept[key] = trimmed(value)
        elif key == "x-kubernetes-int-or-string":
            kept["type"] = ["integer", "string"]
        else:
            kept[key] = value
    return kept


def derive(checkout: Path, tag: str) -> dict[str, Any]:
    """Fields of RayCluster and RayJob at a tag of a checkout (or bare repository) of KubeRay."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True).stdout

    specs = {}
    for plural, kind in (("rayclusters", "RayCluster"), ("rayjobs", "RayJob")):
        definition = yaml.load(git("show", f"{tag}:{FOLDER}/ray.io_{plural}.yaml"), Loader=yaml.CSafeLoader)
        version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
        specs[kind] = trimmed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    # Each part once: a job holds a cluster, a cluster the same pod twice.
    cluster = specs["RayCluster"]["properties"]
    assert specs["RayJob"]["properties"]["rayClusterSpec"] == specs["RayCluster"]
    specs["RayJob"]["properties"]["rayClusterSpec"] = {"$ref": "#/$defs/RayCluster"}
    head, worker = cluster["headGroupSpec"]["properties"], cluster["workerGroupSpecs"]["items"]["properties"]
    assert head["template"] == worker["template"]
    specs["Pod"], head["template"], worker["template"] = head["template"], {"$ref": "#/$defs/Pod"}, {"$ref": "#/$defs/Pod"}
    commit = git("rev-parse", f"{tag}^{{commit}}").strip()
    return {"$comment": f"ray-project/kuberay {tag} ({commit}), {FOLDER}, version v1: names and types of spec", "$defs": specs}


if __name__ == "__main__":
    fields = derive(Path(sys.argv[1]), sys.argv[2])
    Path(__file__).with_name("kuberay_fields.json").write_text(
        json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n", encoding="utf-8"
    )
