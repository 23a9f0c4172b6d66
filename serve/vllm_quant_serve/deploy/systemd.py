"""A systemd unit for one machine (systemd.service(5))."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from vllm_quant_serve.deploy.deployment import NAME, Deployment


def _is_private(path: Path) -> bool:
    return any(path.is_relative_to(private) for private in ("/tmp", "/var/tmp"))


def systemd_unit(deployment: Deployment) -> str:
    """A unit. Keys belong in the environment file, which only root needs to read."""
    # The environment of this process comes first, whether or not it is on PATH.
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    program = shutil.which("vllm-quant", path=beside) or "/usr/local/bin/vllm-quant"
    words = (program, "serve", *deployment.words_for(admin_beyond_loopback=False))
    # "%" and "$" have meanings of their own in ExecStart.
    command = " ".join(shlex.quote(word).replace("%", "%%").replace("$", "$$") for word in words)
    variables = "".join(f"Environment={name}={value}\n" for name, value in deployment.variables.items())
    # What lies in a directory that PrivateTmp replaces is mounted into the replacement.
    needed = [path for path in (deployment.folder, Path(sys.prefix)) if path is not None and _is_private(path)]
    binds = "".join(f"BindReadOnlyPaths={str(path).replace('%', '%%')}\n" for path in needed)
    devices = "\nPrivateDevices=yes" if deployment.on_cpu else ""
    return f"""[Unit]
Description=vLLM serving {deployment.launch.model}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
ExecStart={command}
{variables}# VLLM_API_KEY and VQP_ADMIN_TOKEN, readable by root only.
EnvironmentFile=-/etc/{NAME}.env
# Bad flags, no plan, a bad checkpoint, a missing library: a restart fixes none of them.
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2 3 6 7
# SIGTERM to the launcher alone, which drains; after the timeout SIGKILL to all.
KillMode=mixed
TimeoutStopSec={deployment.stop_seconds}
LimitNOFILE=65535
DynamicUser=yes
StateDirectory={NAME}
Environment=HOME=/var/lib/{NAME}
# No MemoryDenyWriteExecute: torch compiles at run time.{devices}
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
{binds}ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""
