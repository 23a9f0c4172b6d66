"""What is deployed, whatever the target: a launch, its plan and how it is supervised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import typer

from vllm_quant_serve.launch import Launch
from vllm_quant_serve.plan.api import Plan
from vllm_quant_serve.planning import ONE_MACHINE, Machines
from vllm_quant_serve.supervise.options import SuperviseOptions

NAME = "vllm-quant"
IMAGE = "vllm-quant-plugin:latest"
# Seconds before SIGTERM in which Kubernetes withdraws the pod's endpoints.
PRE_STOP = 5
# Seconds that the shutdowns of vLLM and of the launcher may take after the drain.
SLACK = 20
SHARED_MEMORY_GIB = 8


@dataclass(frozen=True)
class Deployment:
    """What is to be deployed.

    Attributes:
        machines: those that the placement spans.
        own: flags of ``vllm-quant serve`` itself that the user set.
        devices_words: its flags that name devices; left out where the plan is made for the target's own devices.
        image: container image.
        admin_port: port of the admin app, which answers the probes.
    """

    launch: Launch
    plan: Plan | None
    options: SuperviseOptions
    machines: Machines = ONE_MACHINE
    own: Sequence[str] = ()
    devices_words: Sequence[str] = ()
    image: str = IMAGE
    admin_port: int = 8001
    labels: Mapping[str, str] = field(default_factory=lambda: {"app.kubernetes.io/name": NAME})

    @property
    def folder(self) -> Path | None:
        """The model's folder, which containers mount; None for a Hub model."""
        path = Path(self.launch.model)
        return path.resolve() if path.exists() else None

    @property
    def devices(self) -> int:
        """Devices of the placement on all machines."""
        if self.plan is None:
            return 1
        return self.plan.tensor_parallel_size * self.plan.pipeline_parallel_size * self.plan.data_parallel_size

    @property
    def on_cpu(self) -> bool:
        return self.plan is not None and self.plan.device == "CPU"

    @property
    def words(self) -> list[str]:
        """The words of ``vllm-quant serve``: the plan's flags, vLLM's flags as typed, without API keys, then our own.

        On one machine these are checked again on the target, against the devices found there. The first of several
        machines does not see the devices of the others, so there the devices are those of this plan.
        """
        model = str(self.folder) if self.folder else self.launch.model
        devices = self.devices_words if self.machines.count > 1 else ()
        # The unit's or container's log is where a failed start is looked into, and its files are gone by then.
        verbose = [] if "--verbose" in self.own else ["--verbose"]
        return [model, *self._planned(), *self.launch.words, *self.own, *devices, *verbose]

    def _planned(self) -> list[str]:
        """The plan's flags, without those that every launch adds itself."""
        kept: list[str] = []
        keep = True
        for word in self.launch.planned:
            if word.startswith("--"):
                keep = word not in ("--host", "--middleware")
            if keep:
                kept.append(word)
        return kept

    @property
    def variables(self) -> dict[str, str]:
        """The plan's environment variables that hold on any machine of its kind: no numbers of this host's GPUs."""
        return {name: value for name, value in self.launch.variables if name.startswith("VLLM_")}

    def words_for(self, *, admin_beyond_loopback: bool) -> list[str]:
        """``words`` with the admin app's port; in a container both apps listen on the container's address."""
        words = [*self.words, "--admin-port", str(self.admin_port)]
        if admin_beyond_loopback:
            words += ["--admin-host", "0.0.0.0"]
            if "--host" in self.launch.planned:
                # The launcher's default is loopback, which nothing outside the container reaches.
                words += ["--host", "0.0.0.0"]
        return words

    @property
    def stop_seconds(self) -> int:
        """Seconds from SIGTERM until SIGKILL: more than the drain and the shutdown take."""
        return int(self.options.drain_timeout + self.options.stop_timeout) + SLACK


def set_words(context: typer.Context, wanted: Callable[[str], bool]) -> list[str]:
    """The flags of this command that the user set and whose parameter name is ``wanted``, spelled out again."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if not wanted(name) or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        flag = parameter.opts[0]
        if value is True:
            words.append(flag)
        else:
            for item in value if isinstance(value, list | tuple) else (value,):
                words += [flag, str(item.value if isinstance(item, Enum) else item)]
    return words
