"""Schemas that deployment files are held against.

Kubernetes' own objects by its OpenAPI schemas (kubernetes-validate), compose files by the compose specification's
(in check-jsonschema). The two custom resources are described here as far as the plugin writes them, after their
definitions in kubernetes-sigs/lws and ray-project/kuberay: no other field is known, and pods are Kubernetes' own.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.33"


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = _object(["name"], name={"type": "string"}, labels=_TEXTS, annotations=_TEXTS)
_POD = {"type": "object", "required": ["spec"]}  # checked by Kubernetes' own schema
_COUNT = {"type": "integer", "minimum": 0}

LEADER_WORKER_SET = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "leaderworkerset.x-k8s.io/v1"}, kind={"const": "LeaderWorkerSet"}, metadata=_METADATA,
    spec=_object(
        ["leaderWorkerTemplate"], replicas=_COUNT, startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        leaderWorkerTemplate=_object(
            ["workerTemplate"], size={"type": "integer", "minimum": 1}, leaderTemplate=_POD, workerTemplate=_POD,
            restartPolicy={"enum": ["Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
        ),
    ),
)  # fmt: skip
_WORKERS = _object(
    ["groupName", "minReplicas", "maxReplicas", "template"], groupName={"type": "string"}, replicas=_COUNT,
    minReplicas=_COUNT, maxReplicas=_COUNT, rayStartParams=_TEXTS, template=_POD,
)  # fmt: skip
RAY_CLUSTER = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"}, kind={"const": "RayCluster"}, metadata=_METADATA,
    spec=_object(
        ["headGroupSpec"], headGroupSpec=_object(["template"], rayStartParams=_TEXTS, template=_POD),
        workerGroupSpecs={"type": "array", "items": _WORKERS},
    ),
)  # fmt: skip


def pods_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a workload, that of the pod which serves first."""
    spec = document["spec"]
    if document["kind"] == "Deployment":
        return [spec["template"]]
    if document["kind"] == "LeaderWorkerSet":
        template = spec["leaderWorkerTemplate"]
        return [template["leaderTemplate"], template["workerTemplate"]]
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def check_kubernetes(document: dict[str, Any]) -> None:
    """Raise where a manifest is not of its schema."""
    custom = {"LeaderWorkerSet": LEADER_WORKER_SET, "RayCluster": RAY_CLUSTER}.get(document["kind"])
    if custom is None:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.validate(document, custom)
    for template in pods_of(document):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def check_compose(document: dict[str, Any]) -> None:
    """Raise where a compose file is not of the compose specification."""
    vendored = resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json")
    schema = json.loads(vendored.read_text("utf-8"))
    jsonschema.validators.validator_for(schema)(schema).validate(document)
