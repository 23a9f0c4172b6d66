"""Kubernetes: a Deployment for one machine, a LeaderWorkerSet for several, and a Service."""

from __future__ import annotations

import shlex
from typing import Any

from vllm_quant_serve.deploy.deployment import NAME, Deployment
from vllm_quant_serve.deploy.pods import dump, grace_seconds, pod_spec, service, serving_container, worker_container
from vllm_quant_serve.deploy.ray import PORT, head_line, until_head_is_gone, worker_line


def kubernetes(deployment: Deployment) -> str:
    """The manifests, as a YAML stream."""
    if deployment.machines.count == 1:
        return dump([_deployment(deployment), service(deployment, dict(deployment.labels))])
    # Only the leader of a group serves.
    return dump([_leader_worker_set(deployment), service(deployment, {**deployment.labels, "role": "leader"})])


def _deployment(deployment: Deployment) -> dict[str, Any]:
    container = serving_container(deployment, ["vllm-quant", "serve"], deployment.words_for(admin_beyond_loopback=True))
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "labels": dict(deployment.labels)},
        "spec": {
            "replicas": 1,
            # A device holds one server: the old one ends before the new one starts.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": dict(deployment.labels)},
            "template": {"metadata": {"labels": dict(deployment.labels)}, "spec": pod_spec(deployment, container)},
        },
    }


def _leader_worker_set(deployment: Deployment) -> dict[str, Any]:
    """A leader and its workers, started and stopped together; each pod has the leader's address.

    See https://lws.sigs.k8s.io.
    """
    serve = shlex.join(["vllm-quant", "serve", *deployment.words_for(admin_beyond_loopback=True)])
    leader = serving_container(deployment, ["sh", "-c", f"{head_line(deployment)} && exec {serve}"], ())
    address = f"$LWS_LEADER_ADDRESS:{PORT}"
    # The leader may start later than its workers.
    join = f'until ray health-check --address "{address}" >/dev/null 2>&1; do sleep 2; done; '
    start = ["sh", "-c", f"{join}exec {worker_line(deployment, address)}"]
    worker = worker_container(deployment, start, until_head_is_gone(deployment, address))
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": NAME, "labels": dict(deployment.labels)},
        "spec": {
            "replicas": 1,
            "startupPolicy": "LeaderCreated",
            "leaderWorkerTemplate": {
                "size": deployment.machines.count,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {
                    "metadata": {"labels": {**deployment.labels, "role": "leader"}},
                    "spec": pod_spec(deployment, leader),
                },
                "workerTemplate": {
                    "metadata": {"labels": dict(deployment.labels)},
                    "spec": _worker_pod(deployment, worker),
                },
            },
        },
    }


def _worker_pod(deployment: Deployment, worker: dict[str, Any]) -> dict[str, Any]:
    # Slightly longer than the leader's, for whose end it waits.
    return {**pod_spec(deployment, worker), "terminationGracePeriodSeconds": grace_seconds(deployment) + 10}
