"""Deployment files: accepted by their own tools, patient enough to drain, and without secrets."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import vllm_quant_plugin
from vllm_quant_plugin.cli import main
from vllm_quant_serve.emit import PRE_STOP

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"
OVERRIDES = '{"a": "50% $x $(y)"}'


def emitted(target: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["serve", str(BUNDLED), "--emit", target, "--api-key", "s3cret", *words])
    assert not left.value.code
    text = capsys.readouterr().out
    assert "s3cret" not in text
    return text


def test_systemd_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = emitted("systemd", capsys, "--cpu", "--drain-timeout", "60", "--hf-overrides", OVERRIDES)
    unit = tmp_path / "vllm-quant.service"
    unit.write_text(text)
    if shutil.which("systemd-analyze"):  # containers often come without systemd
        checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert int(fields["TimeoutStopSec"]) > 60
    assert fields["KillMode"] == "mixed"
    command = shlex.split(fields["ExecStart"].replace("%%", "%").replace("$$", "$"))
    assert command[1:] == ["serve", str(BUNDLED), "--hf-overrides", OVERRIDES, "--cpu", "--drain-timeout", "60.0",
                           "--admin-port", "8001"]  # fmt: skip


def test_kubernetes(capsys: pytest.CaptureFixture[str]) -> None:
    text = emitted("k8s", capsys, "--gpu", "h100:2", "-tp", "2", "--port", "9000", "--drain-timeout", "45")
    assert "&id" not in text, "plain YAML without anchors"
    deployment, service = yaml.safe_load_all(text)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > PRE_STOP + 45
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 9000, "admin": 9001}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    arguments = container["args"]
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"
    assert arguments[arguments.index("--admin-port") + 1] == "9001"
    assert "--gpu" not in arguments
    secrets = {entry["name"]: entry["valueFrom"]["secretKeyRef"]["key"] for entry in container["env"]}
    assert secrets == {"VLLM_API_KEY": "api-key", "VQP_ADMIN_TOKEN": "admin-token"}


def test_a_host_of_the_users_stays(capsys: pytest.CaptureFixture[str]) -> None:
    deployment, _ = yaml.safe_load_all(emitted("k8s", capsys, "--cpu", "--host", "10.0.0.5"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"].count("--host") == 1
    assert container["resources"] == {}
