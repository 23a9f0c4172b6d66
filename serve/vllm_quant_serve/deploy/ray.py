"""Several machines by Ray, vLLM's own executor: the lines for a shell, and a KubeRay cluster."""

from __future__ import annotations

import shlex
from typing import Any

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.deploy.deployment import NAME, Deployment
from vllm_quant_serve.deploy.pods import dump, grace_seconds, pod_spec, service, serving_container, worker_container

PORT = 6379


def _resources(one: Deployment) -> str:
    return "" if one.on_cpu else f" --num-gpus={one.machines.devices}"


def head_line(one: Deployment) -> str:
    """Starts Ray on the first machine, in the background."""
    return f"ray start --head --port={PORT}{_resources(one)} --disable-usage-stats"


def worker_line(one: Deployment, address: str) -> str:
    """Starts Ray on a further machine, in the foreground."""
    return f'ray start --address="{address}"{_resources(one)} --disable-usage-stats --block'


def until_head_is_gone(one: Deployment, address: str) -> str:
    """A command that ends once the first machine's Ray does, after its drain, or its grace is over."""
    look = f'while ray health-check --address "{address}"; do sleep 1; done'
    return f"timeout {grace_seconds(one)} sh -c {shlex.quote(look)} || true"


def ray_script(one: Deployment) -> str:
    """A script for every machine of the cluster: ``head`` on the first, ``worker HEAD_ADDRESS`` on the others."""
    words = [*one.words, "--admin-port", str(one.admin_port)]
    return f"""#!/bin/sh
# {one.machines.count} machines of {one.machines.devices} devices. On the first, where clients connect:  sh FILE head
# On each of the others, with the first one's address:  sh FILE worker ADDRESS
# The launcher runs and supervises this line:
#   {one.launch.line}
set -eu
case "${{1:-}}" in
head)
    {head_line(one)}
    exec {shlex.join(["vllm-quant", "serve", *words])}
    ;;
worker)
    exec {worker_line(one, f"$2:{PORT}")}
    ;;
*)
    echo "usage: $0 head | worker ADDRESS" >&2
    exit 2
    ;;
esac
"""


def kuberay(one: Deployment) -> str:
    """A RayCluster whose head also serves, and a Service (https://ray-project.github.io/kuberay).

    Raises:
        UsageError: one machine, which needs no Ray.
    """
    if one.machines.count == 1:
        raise UsageError("--emit kuberay: the plan fits one machine", "take --emit k8s, which needs no operator")
    return dump([_cluster(one), service(one, {"ray.io/cluster": NAME, "ray.io/node-type": "head"})])


# The operator writes the line that starts Ray into this variable of a container whose command it leaves alone.
_OWN_COMMAND = {"ray.io/overwrite-container-cmd": "true"}
_GENERATED = "KUBERAY_GEN_RAY_START_CMD"


def _cluster(one: Deployment) -> dict[str, Any]:
    serve = shlex.join(["vllm-quant", "serve", *one.words_for(admin_beyond_loopback=True)])
    started = f'eval "${_GENERATED}" & until ray health-check >/dev/null 2>&1; do sleep 1; done; exec {serve}'
    head = serving_container(one, ["bash", "-c", started], ())
    worker = worker_container(
        one, ["bash", "-c", f'eval "exec ${_GENERATED}"'], until_head_is_gone(one, "$RAY_ADDRESS")
    )
    parameters = {} if one.on_cpu else {"num-gpus": str(one.machines.devices)}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": NAME, "labels": dict(one.labels), "annotations": _OWN_COMMAND},
        "spec": {
            "headGroupSpec": {
                "rayStartParams": {**parameters, "port": str(PORT)},
                "template": {"metadata": {"labels": dict(one.labels)}, "spec": pod_spec(one, head)},
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": one.machines.count - 1,
                    "minReplicas": one.machines.count - 1,
                    "maxReplicas": one.machines.count - 1,
                    "rayStartParams": parameters,
                    "template": {
                        "metadata": {"labels": dict(one.labels)},
                        "spec": {**pod_spec(one, worker), "terminationGracePeriodSeconds": grace_seconds(one) + 10},
                    },
                }
            ],
        },
    }
