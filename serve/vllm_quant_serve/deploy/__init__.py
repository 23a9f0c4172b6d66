"""Deployment files for a launch, printed by ``vllm-quant serve --emit`` and ``vllm-quant plan --emit``."""

from __future__ import annotations

from enum import Enum

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.deploy.compose import compose
from vllm_quant_serve.deploy.deployment import IMAGE, Deployment, set_words
from vllm_quant_serve.deploy.kubernetes import kubernetes
from vllm_quant_serve.deploy.ray import kuberay, ray_script
from vllm_quant_serve.deploy.systemd import systemd_unit

__all__ = ["IMAGE", "Deployment", "Target", "emit", "set_words"]


class Target(Enum):
    """Kinds of deployment files."""

    SYSTEMD = "systemd"
    COMPOSE = "compose"
    K8S = "k8s"
    RAY = "ray"
    KUBERAY = "kuberay"


_EMITTERS = {
    Target.SYSTEMD: systemd_unit,
    Target.COMPOSE: compose,
    Target.K8S: kubernetes,
    Target.RAY: ray_script,
    Target.KUBERAY: kuberay,
}
_ONE_MACHINE = (Target.SYSTEMD, Target.COMPOSE)


def emit(target: Target, deployment: Deployment) -> str:
    """The text of the files.

    Raises:
        UsageError: a target for one machine, and a plan that needs several.
    """
    if target in _ONE_MACHINE and deployment.machines.count > 1:
        raise UsageError(
            f"--emit {target.value}: the plan spans {deployment.machines.count} machines",
            "use --emit k8s or --emit ray",
        )
    return _EMITTERS[target](deployment)
