"""The serving pod, which Deployments, LeaderWorkerSets and Ray clusters share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_quant_serve.deploy.deployment import NAME, PRE_STOP, SHARED_MEMORY_GIB, Deployment

SECRET = NAME
HOME = "/home/vllm"


def serving_container(deployment: Deployment, command: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """The container of the launcher, probed on its admin app."""
    return {
        **_container(deployment, "server", command, arguments),
        "env": [
            {"name": "HOME", "value": HOME},
            *({"name": name, "value": value} for name, value in deployment.variables.items()),
            _from_secret("VLLM_API_KEY", "api-key", optional=True),
            _from_secret("VQP_ADMIN_TOKEN", "admin-token", optional=False),
        ],
        "ports": [
            {"name": "http", "containerPort": deployment.launch.endpoint.port},
            {"name": "admin", "containerPort": deployment.admin_port},
        ],
        "startupProbe": {**_probe("/readyz"), "periodSeconds": 5,
                         "failureThreshold": int(deployment.options.startup_timeout // 5) + 1},
        "readinessProbe": {**_probe("/readyz"), "periodSeconds": 5, "failureThreshold": 1},
        "livenessProbe": {**_probe("/livez"), "periodSeconds": 10, "failureThreshold": 3},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP)]}}},
    }  # fmt: skip


def worker_container(deployment: Deployment, command: Sequence[str], pre_stop: str) -> dict[str, Any]:
    """The container of another machine. It must outlive the drain of the first; ``pre_stop`` waits for its end."""
    return {
        **_container(deployment, "worker", command, ()),
        "env": [{"name": "HOME", "value": HOME}],
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", pre_stop]}}},
    }


def pod_spec(deployment: Deployment, container: dict[str, Any]) -> dict[str, Any]:
    """A pod around one container."""
    volumes: list[dict[str, Any]] = [
        # Tensor-parallel ranks communicate through shared memory; the default of 64 MiB is too small.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHARED_MEMORY_GIB}Gi"}},
        {"name": "home", "emptyDir": {}},
    ]
    if deployment.folder is not None:
        volumes.append({"name": "model", "hostPath": {"path": str(deployment.folder), "type": "Directory"}})
    return {
        "terminationGracePeriodSeconds": grace_seconds(deployment),
        "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001,
                            "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": volumes,
    }  # fmt: skip


def grace_seconds(deployment: Deployment) -> int:
    """Seconds from the order to stop until SIGKILL; the pre-stop hook counts as well."""
    return PRE_STOP + deployment.stop_seconds


def service(deployment: Deployment, selector: dict[str, str]) -> dict[str, Any]:
    """A Service over the pods that ``selector`` names."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "labels": dict(deployment.labels)},
        "spec": {
            "selector": selector,
            "ports": [
                {"name": "http", "port": deployment.launch.endpoint.port, "targetPort": "http"},
                {"name": "admin", "port": deployment.admin_port, "targetPort": "admin"},
            ],
        },
    }


def dump(documents: Sequence[dict[str, Any]]) -> str:
    """A YAML stream without anchors; strings of several lines are blocks."""
    import yaml  # type: ignore[import-untyped]

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def represent_text(self, data: str) -> Any:
            style = "|" if "\n" in data else None
            return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Plain.add_representer(str, Plain.represent_text)

    return str(yaml.dump_all(documents, Dumper=Plain, sort_keys=False, width=120))


def _container(deployment: Deployment, name: str, command: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "home", "mountPath": HOME}]
    if deployment.folder is not None:
        mounts.append({"name": "model", "mountPath": str(deployment.folder), "readOnly": True})  # type: ignore[dict-item]
    # Kubernetes expands $(NAME) in commands and arguments; $$ is a dollar.
    words = {"command": [word.replace("$(", "$$(") for word in command],
             "args": [word.replace("$(", "$$(") for word in arguments]}  # fmt: skip
    return {
        "name": name,
        "image": deployment.image,
        **{key: value for key, value in words.items() if value},
        "resources": {} if deployment.on_cpu else {"limits": {"nvidia.com/gpu": deployment.machines.devices}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "admin"}, "timeoutSeconds": 2}


def _from_secret(variable: str, key: str, *, optional: bool) -> dict[str, Any]:
    reference = {"name": SECRET, "key": key, "optional": optional}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}
