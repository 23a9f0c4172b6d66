"""Deployment files for a launch: a systemd unit, Kubernetes manifests. Printed by ``vllm-quant serve --emit``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from vllm_quant_serve.launch import Launch
from vllm_quant_serve.plan.api import Plan
from vllm_quant_serve.state import Options

# Seconds between the end of routing to a pod and SIGTERM: endpoints are withdrawn meanwhile.
PRE_STOP = 5
# What vLLM's own shutdown and the launcher's may take after the drain.
SLACK = 20
NAME = "vllm-quant"
SECRET = "vllm-quant"


@dataclass(frozen=True)
class Deployment:
    """What is to be deployed.

    Attributes:
        own: flags of ``vllm-quant serve`` itself that were set.
        image: container image, for Kubernetes.
        admin_port: of the probes.
    """

    launch: Launch
    plan: Plan | None
    options: Options
    own: Sequence[str]
    image: str
    admin_port: int

    @property
    def words(self) -> list[str]:
        """The words of ``vllm-quant serve``: vLLM's flags as typed, without API keys, then our own."""
        model = Path(self.launch.model)
        return [str(model.resolve()) if model.exists() else self.launch.model, *self.launch.words, *self.own]

    @property
    def stop_seconds(self) -> int:
        """From SIGTERM until SIGKILL: longer than the drain and what follows it."""
        return int(self.options.drain_timeout + self.options.stop_timeout) + SLACK

    @property
    def devices(self) -> int:
        if self.plan is None:
            return 1
        return self.plan.tensor_parallel_size * self.plan.pipeline_parallel_size * self.plan.data_parallel_size

    @property
    def on_cpu(self) -> bool:
        return self.plan is not None and self.plan.device == "CPU"


def systemd_unit(one: Deployment) -> str:
    """A unit. Keys belong into the environment file, which only root need read."""
    # "%" and "$" have meanings of their own in ExecStart (systemd.service(5)).
    # The environment that this runs in first, whether or not it is on PATH.
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    program = shutil.which("vllm-quant", path=beside) or "/usr/local/bin/vllm-quant"
    words = (program, "serve", *one.words, "--admin-port", str(one.admin_port))
    command = " ".join(shlex.quote(word).replace("%", "%%").replace("$", "$$") for word in words)
    return f"""[Unit]
Description=vLLM serving {one.launch.model}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
ExecStart={command}
# VLLM_API_KEY and VQP_ADMIN_TOKEN, readable by root only.
EnvironmentFile=-/etc/{NAME}.env
# Bad flags, no plan, a bad checkpoint, a missing library: trying again mends none of them.
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2 3 6 7
# SIGTERM to the launcher alone, which drains; after the timeout SIGKILL to all.
KillMode=mixed
TimeoutStopSec={one.stop_seconds}
LimitNOFILE=65535
DynamicUser=yes
StateDirectory={NAME}
Environment=HOME=/var/lib/{NAME}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def kubernetes(one: Deployment) -> str:
    """A Deployment and a Service, as a YAML stream."""
    import yaml  # type: ignore[import-untyped]

    return str(yaml.safe_dump_all([_deployment(one), _service(one)], sort_keys=False, width=120))


def _deployment(one: Deployment) -> dict[str, Any]:
    resources: dict[str, Any] = {} if one.on_cpu else {"limits": {"nvidia.com/gpu": one.devices}}
    # A pod is probed and scraped at its own address, so the admin app leaves loopback and asks for a token.
    words = [*one.words, "--admin-host", "0.0.0.0", "--admin-port", str(one.admin_port)]
    if "--host" in one.launch.planned:
        # The launcher's own choice is loopback, where no Service reaches it.
        words += ["--host", "0.0.0.0"]
    container = {
        "name": "server",
        "image": one.image,
        "command": ["vllm-quant", "serve"],
        # Kubernetes expands $(NAME) in arguments; $$ is a dollar.
        "args": [word.replace("$(", "$$(") for word in words],
        "env": [
            _from_secret("VLLM_API_KEY", "api-key", optional=True),
            _from_secret("VQP_ADMIN_TOKEN", "admin-token", optional=False),
        ],
        "ports": [
            {"name": "http", "containerPort": one.launch.endpoint.port},
            {"name": "admin", "containerPort": one.admin_port},
        ],
        "startupProbe": {**_probe("/readyz"), "periodSeconds": 5,
                         "failureThreshold": int(one.options.startup_timeout // 5) + 1},
        "readinessProbe": {**_probe("/readyz"), "periodSeconds": 5, "failureThreshold": 1},
        "livenessProbe": {**_probe("/livez"), "periodSeconds": 10, "failureThreshold": 3},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP)]}}},
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }  # fmt: skip
    pod = {
        "terminationGracePeriodSeconds": PRE_STOP + one.stop_seconds,
        "containers": [container],
        # The ranks of tensor parallelism talk through shared memory; the default of 64 MiB is too little.
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "labels": _labels()},
        "spec": {
            "replicas": 1,
            # A device holds one server: the old one goes before the new one comes.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": _labels()},
            "template": {"metadata": {"labels": _labels()}, "spec": pod},
        },
    }


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/name": NAME}


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "admin"}, "timeoutSeconds": 2}


def _from_secret(variable: str, key: str, *, optional: bool) -> dict[str, Any]:
    reference = {"name": SECRET, "key": key, "optional": optional}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _service(one: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "labels": _labels()},
        "spec": {
            "selector": _labels(),
            "ports": [
                {"name": "http", "port": one.launch.endpoint.port, "targetPort": "http"},
                {"name": "admin", "port": one.admin_port, "targetPort": "admin"},
            ],
        },
    }


def own_words(context: typer.Context, leave_out: Collection[str]) -> list[str]:
    """Our own flags as they were set on the command line, spelled out again."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in leave_out or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        flag = parameter.opts[0]
        if value is True:
            words.append(flag)
        else:
            for item in value if isinstance(value, list | tuple) else (value,):
                words += [flag, str(item.value if isinstance(item, Enum) else item)]
    return words


EMITTERS: dict[str, Callable[[Deployment], str]] = {"systemd": systemd_unit, "k8s": kubernetes}
