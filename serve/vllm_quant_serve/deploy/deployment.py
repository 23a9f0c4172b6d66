"""What is deployed: a launch, its plan and how it is supervised; the same for every kind of file."""

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
# Seconds between the end of routing to a pod and SIGTERM: endpoints are withdrawn meanwhile.
PRE_STOP = 5
# What vLLM's own shutdown and the launcher's may take after the drain.
SLACK = 20
SHARED_MEMORY_GIB = 8


@dataclass(frozen=True)
class Deployment:
    """What is to be deployed.

    Attributes:
        machines: how many the placement spans.
        own: flags of ``vllm-quant serve`` itself that were set.
        devices_words: its flags that name the devices; left out where the target's own devices are planned for.
        image: container image.
        admin_port: of the probes.
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
        """The model where it is a folder of this machine: containers mount it."""
        path = Path(self.launch.model)
        return path.resolve() if path.exists() else None

    @property
    def devices(self) -> int:
        """Devices that the placement takes, on all machines."""
        if self.plan is None:
            return 1
        return self.plan.tensor_parallel_size * self.plan.pipeline_parallel_size * self.plan.data_parallel_size

    @property
    def on_cpu(self) -> bool:
        return self.plan is not None and self.plan.device == "CPU"

    @property
    def words(self) -> list[str]:
        """The words of ``vllm-quant serve``: vLLM's flags as typed, without API keys, then our own.

        On one machine the plan is made again on the target, for the devices found there. Several machines are not
        seen from the first, so there the devices are those of this plan.
        """
        model = str(self.folder) if self.folder else self.launch.model
        return [model, *self.launch.words, *self.own, *(self.devices_words if self.machines.count > 1 else ())]

    def words_for(self, *, admin_beyond_loopback: bool) -> list[str]:
        """``words`` with the port of the admin app; in a container both apps listen on its own address."""
        words = [*self.words, "--admin-port", str(self.admin_port)]
        if admin_beyond_loopback:
            words += ["--admin-host", "0.0.0.0"]
            if "--host" in self.launch.planned:
                # The launcher's own choice is loopback, which nothing outside the container reaches.
                words += ["--host", "0.0.0.0"]
        return words

    @property
    def stop_seconds(self) -> int:
        """From SIGTERM until SIGKILL: longer than the drain and what follows it."""
        return int(self.options.drain_timeout + self.options.stop_timeout) + SLACK


def set_words(context: typer.Context, wanted: Callable[[str], bool]) -> list[str]:
    """Our own flags with a ``wanted`` parameter name that were set on the command line, spelled out again."""
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
