"""Several machines by Ray, vLLM's own executor: the lines for a shell, and a KubeRay cluster."""

from __future__ import annotations

import shlex
from typing import Any

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.deploy.deployment import NAME, Deployment
from vllm_quant_serve.deploy.pods import dump, grace_seconds, pod_spec, service, serving_container, worker_container

PORT = 6379


def _resources(deployment: Deployment) -> str:
    return "" if deployment.on_cpu else f" --num-gpus={deployment.machines.devices}"


def head_line(deployment: Deployment) -> str:
    """Starts Ray on the first machine, in the background."""
    return f"ray start --head --port={PORT}{_resources(deployment)} --disable-usage-stats"


def worker_line(deployment: Deployment, address: str) -> str:
    """Starts Ray on a further machine, in the foreground."""
    return f'ray start --address="{address}"{_resources(deployment)} --disable-usage-stats --block'


def until_head_is_gone(deployment: Deployment, address: str) -> str:
    """A command that ends when the first machine's Ray does, after its drain, or when its grace period is over."""
    look = f'while ray health-check --address "{address}"; do sleep 1; done'
    return f"timeout {grace_seconds(deployment)} sh -c {shlex.quote(look)} || true"


def ray_script(deployment: Deployment) -> str:
    """A script for every machine of the cluster: ``head`` on the first, ``worker HEAD_ADDRESS`` on the others."""
    if deployment.machines.count == 1:
        # Its ranks are processes of one launcher: Ray would only be one more thing to start.
        return f"""#!/bin/sh
# One machine of {deployment.machines.devices} devices: no Ray is needed. The launcher runs and supervises this line:
#   {deployment.launch.line}
set -eu
{"".join(f"export {name}={shlex.quote(value)}{chr(10)}" for name, value in deployment.variables.items())}\
exec {shlex.join(["vllm-quant", "serve", *deployment.words, "--admin-port", str(deployment.admin_port)])}
"""
    machines, words = deployment.machines, [*deployment.words, "--admin-port", str(deployment.admin_port)]
    variables = "".join(f"    export {name}={shlex.quote(value)}\n" for name, value in deployment.variables.items())
    return f"""#!/bin/sh
# {machines.count} machines of {machines.devices} devices. On the first, where clients connect:  sh FILE head
# On each of the others, with the first one's address:  sh FILE worker ADDRESS
# The launcher runs and supervises this line:
#   {deployment.launch.line}
set -eu
case "${{1:-}}" in
head)
{variables}    {head_line(deployment)}
    exec {shlex.join(["vllm-quant", "serve", *words])}
    ;;
worker)
    exec {worker_line(deployment, f"$2:{PORT}")}
    ;;
*)
    echo "usage: $0 head | worker ADDRESS" >&2
    exit 2
    ;;
esac
"""


def kuberay(deployment: Deployment) -> str:
    """A RayCluster whose head also serves, and a Service (https://ray-project.github.io/kuberay).

    Raises:
        UsageError: one machine, which needs no Ray.
    """
    if deployment.machines.count == 1:
        raise UsageError("--emit kuberay: the plan fits one machine", "use --emit k8s, which needs no operator")
    return dump([_cluster(deployment), service(deployment, {"ray.io/cluster": NAME, "ray.io/node-type": "head"})])


# The operator puts the command that starts Ray into this variable of a container that brings its own command.
_OWN_COMMAND = {"ray.io/overwrite-container-cmd": "true"}
_GENERATED = "KUBERAY_GEN_RAY_START_CMD"


def _cluster(deployment: Deployment) -> dict[str, Any]:
    serve = shlex.join(["vllm-quant", "serve", *deployment.words_for(admin_beyond_loopback=True)])
    started = f'eval "${_GENERATED}" & until ray health-check >/dev/null 2>&1; do sleep 1; done; exec {serve}'
    head = serving_container(deployment, ["bash", "-c", started], ())
    worker = worker_container(
        deployment, ["bash", "-c", f'eval "exec ${_GENERATED}"'], until_head_is_gone(deployment, "$RAY_ADDRESS")
    )
    parameters = {} if deployment.on_cpu else {"num-gpus": str(deployment.machines.devices)}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": NAME, "labels": dict(deployment.labels), "annotations": _OWN_COMMAND},
        "spec": {
            "headGroupSpec": {
                "rayStartParams": {**parameters, "port": str(PORT)},
                "template": {"metadata": {"labels": dict(deployment.labels)}, "spec": pod_spec(deployment, head)},
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": deployment.machines.count - 1,
                    "minReplicas": deployment.machines.count - 1,
                    "maxReplicas": deployment.machines.count - 1,
                    "rayStartParams": parameters,
                    "template": {
                        "metadata": {"labels": dict(deployment.labels)},
                        "spec": {
                            **pod_spec(deployment, worker),
                            "terminationGracePeriodSeconds": grace_seconds(deployment) + 10,
                        },
                    },
                }
            ],
        },
    }
