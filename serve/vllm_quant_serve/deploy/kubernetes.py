"""Kubernetes: a Deployment for one machine, a LeaderWorkerSet for several, and a Service."""

from __future__ import annotations

import shlex
from typing import Any

from vllm_quant_serve.deploy.deployment import NAME, Deployment
from vllm_quant_serve.deploy.pods import dump, grace_seconds, pod_spec, service, serving_container, worker_container
from vllm_quant_serve.deploy.ray import PORT, head_line, until_head_is_gone, worker_line


def kubernetes(one: Deployment) -> str:
    """The manifests, as a YAML stream."""
    if one.machines.count == 1:
        return dump([_deployment(one), service(one, dict(one.labels))])
    # Only the leader of a group serves.
    return dump([_leader_worker_set(one), service(one, {**one.labels, "role": "leader"})])


def _deployment(one: Deployment) -> dict[str, Any]:
    container = serving_container(one, ["vllm-quant", "serve"], one.words_for(admin_beyond_loopback=True))
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "labels": dict(one.labels)},
        "spec": {
            "replicas": 1,
            # A device holds one server: the old one goes before the new one comes.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": dict(one.labels)},
            "template": {"metadata": {"labels": dict(one.labels)}, "spec": pod_spec(one, container)},
        },
    }


def _leader_worker_set(one: Deployment) -> dict[str, Any]:
    """https://lws.sigs.k8s.io: a leader and its workers come and go as one. The leader's address is in each pod."""
    serve = shlex.join(["vllm-quant", "serve", *one.words_for(admin_beyond_loopback=True)])
    leader = serving_container(one, ["sh", "-c", f"{head_line(one)} && exec {serve}"], ())
    address = f"$LWS_LEADER_ADDRESS:{PORT}"
    # The leader may be there later than its workers.
    join = f'until ray health-check --address "{address}" >/dev/null 2>&1; do sleep 2; done; '
    start = ["sh", "-c", f"{join}exec {worker_line(one, address)}"]
    worker = worker_container(one, start, until_head_is_gone(one, address))
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": NAME, "labels": dict(one.labels)},
        "spec": {
            "replicas": 1,
            "startupPolicy": "LeaderCreated",
            "leaderWorkerTemplate": {
                "size": one.machines.count,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {
                    "metadata": {"labels": {**one.labels, "role": "leader"}},
                    "spec": pod_spec(one, leader),
                },
                "workerTemplate": {"metadata": {"labels": dict(one.labels)}, "spec": _worker_pod(one, worker)},
            },
        },
    }


def _worker_pod(one: Deployment, worker: dict[str, Any]) -> dict[str, Any]:
    # A little longer than the leader's, which it waits for.
    return {**pod_spec(one, worker), "terminationGracePeriodSeconds": grace_seconds(one) + 10}
