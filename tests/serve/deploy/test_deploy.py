"""Deployment files: accepted by their own tools or schemas, patient enough to drain, and without secrets."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import vllm_quant_plugin
from tests.support.schemas import check_compose, check_kubernetes, pods_of
from vllm_quant_plugin.cli import main
from vllm_quant_serve.dashboards.build import build
from vllm_quant_serve.deploy import Target
from vllm_quant_serve.deploy.deployment import PRE_STOP

ROOT = Path(__file__).parents[3]
BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"
LARGE = Path(__file__).parents[1] / "plan" / "configs" / "llama-3.1-405b.json"
OVERRIDES = '{"a": "50% $x $(y)"}'


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    captured = capsys.readouterr()
    assert not left.value.code, captured.err
    return captured.out


def emitted(target: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    text = printed(capsys, "serve", str(BUNDLED), "--emit", target, "--api-key", "s3cret", *words)
    assert "s3cret" not in text
    return text


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A model that needs two machines of eight GPUs."""
    folder = tmp_path / "large"
    folder.mkdir()
    shutil.copy(LARGE, folder / "config.json")
    return str(folder)


def after_drain(seconds: float, drain: float) -> None:
    """A pod's grace is longer than the hook before SIGTERM, the drain, and vLLM's own shutdown of fifteen seconds."""
    assert seconds > PRE_STOP + drain + 15


def test_systemd_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = emitted("systemd", capsys, "--cpu", "--drain-timeout", "60", "--hf-overrides", OVERRIDES)
    unit = tmp_path / "vllm-quant.service"
    unit.write_text(text)
    if shutil.which("systemd-analyze"):  # containers often come without systemd
        checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert int(fields["TimeoutStopSec"]) > 60 + 15
    assert fields["KillMode"] == "mixed"
    command = shlex.split(fields["ExecStart"].replace("%%", "%").replace("$$", "$"))
    planned = command.index("--hf-overrides")
    assert command[planned:] == ["--hf-overrides", OVERRIDES, "--cpu", "--drain-timeout", "60.0", "--verbose",
                                 "--admin-port", "8001"]  # fmt: skip
    assert command[1:4] == ["serve", str(BUNDLED), "--kv-cache-memory-bytes"], "the plan's own flags"
    assert not {"--host", "--middleware"} & set(command), "the launcher adds them itself"


def test_kubernetes_on_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    text = emitted("k8s", capsys, "--gpu", "h100:2", "-tp", "2", "--port", "9000", "--drain-timeout", "45")
    assert "&id" not in text, "plain YAML without anchors"
    deployment, service = yaml.safe_load_all(text)
    for document in (deployment, service):
        check_kubernetes(document)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    after_drain(pod["terminationGracePeriodSeconds"], 45)
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(PRE_STOP)]
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
    secrets = {one["name"]: one["valueFrom"]["secretKeyRef"]["key"] for one in container["env"] if "valueFrom" in one}
    assert secrets == {"VLLM_API_KEY": "api-key", "VQP_ADMIN_TOKEN": "admin-token"}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(BUNDLED) in mounts, "a model folder is mounted where the flags name it"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_a_host_of_the_users_stays(capsys: pytest.CaptureFixture[str]) -> None:
    deployment, _ = yaml.safe_load_all(emitted("k8s", capsys, "--cpu", "--host", "10.0.0.5"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"].count("--host") == 1
    assert container["resources"] == {}


@pytest.mark.parametrize("target", ["k8s", "kuberay"])
def test_kubernetes_on_several_machines(target: str, large: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", large, "--gpu", "h100:16", "-tp", "8", "-pp", "2", "--max-model-len", "8192", "--emit", target]
    workload, service = yaml.safe_load_all(printed(capsys, *words))
    for document in (workload, service):
        check_kubernetes(document)
    leader, worker = pods_of(workload)
    (serving,), (helping,) = leader["spec"]["containers"], worker["spec"]["containers"]
    for container in (serving, helping):
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    graces = [pod["spec"]["terminationGracePeriodSeconds"] for pod in (leader, worker)]
    after_drain(graces[0], 30)
    assert graces[1] > graces[0], "the workers outlive the leader's drain"
    assert "health-check" in helping["lifecycle"]["preStop"]["exec"]["command"][-1]
    script = serving["command"][-1]
    assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0
    served = shlex.split(script[script.rindex("exec ") :])
    assert served[1:4] == ["vllm-quant", "serve", large]
    assert served[served.index("--gpu") + 1] == "h100:16", "the leader does not see the other machine's devices"
    if target == "k8s":
        assert workload["spec"]["leaderWorkerTemplate"]["size"] == 2
        assert "ray start --head" in script
        assert '--address="$LWS_LEADER_ADDRESS:6379"' in helping["command"][-1]
        assert service["spec"]["selector"].items() <= leader["metadata"]["labels"].items()
        assert not service["spec"]["selector"].items() <= worker["metadata"]["labels"].items()
    else:
        assert workload["spec"]["workerGroupSpecs"][0]["replicas"] == 1


def test_ray_lines(tmp_path: Path, large: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", large, "--gpu", "h100:16", "-tp", "8", "-pp", "2", "--max-model-len", "8192", "--emit", "ray"]
    text = printed(capsys, *words)
    assert "ray start --head --port=6379 --num-gpus=8" in text
    line = next(line for line in text.splitlines() if "vllm serve" in line).lstrip("# ")
    assert shlex.split(line)[:3] == ["vllm", "serve", large]
    assert "--distributed-executor-backend ray" in line
    script = tmp_path / "ray.sh"
    script.write_text(text)
    # The programs are replaced by one that tells how it was called.
    for name in ("ray", "vllm-quant"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return subprocess.run(["sh", str(script), *arguments], env=environment, capture_output=True, text=True)

    head = run("head").stdout.splitlines()
    assert head[0].startswith("ray start --head")
    assert head[1].startswith(f"vllm-quant serve {large} ")
    assert "--tensor-parallel-size 8 --pipeline-parallel-size 2" in head[1]
    assert "--address=10.0.0.1:6379" in run("worker", "10.0.0.1").stdout
    assert "--block" in run("worker", "10.0.0.1").stdout
    assert run().returncode == 2


@pytest.mark.parametrize("target", ["systemd", "compose"])
def test_files_of_one_machine_are_refused_for_several(
    target: str, large: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", large, "--gpu", "h100:16", "-tp", "8", "-pp", "2", "--max-model-len", "8192", "--emit", target])
    assert left.value.code == 2
    assert "2 machines" in capsys.readouterr().err


def test_what_private_tmp_hides_is_mounted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tests' own folder is in /tmp, the bundled model is not."""
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder)
    unit = printed(capsys, "plan", str(folder), "--cpu", "--max-model-len", "256", "--emit", "systemd")
    hidden = any(folder.is_relative_to(private) for private in ("/tmp", "/var/tmp"))
    assert (f"BindReadOnlyPaths={folder}" in unit) == hidden
    assert f"BindReadOnlyPaths={BUNDLED}" not in emitted("systemd", capsys, "--cpu")


def test_the_unit_is_confined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for devices in (["--cpu"], ["--gpu", "h100:2"]):
        unit = printed(capsys, "plan", str(BUNDLED), *devices, "--max-model-len", "256", "--emit", "systemd")
        lines = unit.splitlines()
        for line in ("CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes",
                     "RestrictNamespaces=yes", "SystemCallFilter=@system-service"):  # fmt: skip
            assert line in lines
        assert ("PrivateDevices=yes" in lines) == (devices == ["--cpu"]), "a GPU is a device"
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            pytest.skip("no systemd-analyze here: the directives were checked, the exposure was not")
        path = tmp_path / "vllm-quant.service"
        path.write_text(unit)
        done = subprocess.run([analyze, "security", "--offline=true", "--threshold=40", str(path)],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout[-600:] + done.stderr


def test_ray_of_one_machine_needs_no_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "plan", str(BUNDLED), "--gpu", "h100:2", "-tp", "2", "--emit", "ray")
    assert "ray start" not in text
    script = tmp_path / "run.sh"
    script.write_text(text)
    (tmp_path / "vllm-quant").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "vllm-quant").chmod(0o755)
    done = subprocess.run(
        ["sh", str(script)], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"serve {BUNDLED} --tensor-parallel-size 2")


def test_files_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first method that fits: BF16 needs 15 GiB, FP8 half of it, and 4 bits would have to be written first."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(LARGE.with_name("llama-3.1-8b.json"), folder / "config.json")
    words = ["plan", str(folder), "--max-model-len", "2048", "--compare", "--emit", "systemd"]
    assert "--quantization" not in printed(capsys, *words, "--gpu", "h100")
    assert "--quantization vqp_fp8" in printed(capsys, *words, "--gpu-memory", "14GiB")
    with pytest.raises(SystemExit) as left:
        main([*words, "--gpu-memory", "9GiB"])
    assert left.value.code == 3
    assert "vllm-quant quantize -m awq" in capsys.readouterr().err


def variables(value: Any) -> Iterator[str]:
    """The variables that compose would replace."""
    for match in re.finditer(r"\$\$|\$\{?(\w+)", json.dumps(value)):
        if match[1]:
            yield match[1]


def test_compose(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpu", "h100:2", "-tp", "2", "--drain-timeout", "45", "--hf-overrides", OVERRIDES]
    document = yaml.safe_load(emitted("compose", capsys, *words))
    check_compose(document)
    server = document["services"]["server"]
    assert int(server["stop_grace_period"].removesuffix("s")) > 45 + 15
    assert server["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    assert all(port.startswith("127.0.0.1:") for one in document["services"].values() for port in one["ports"])
    assert set(variables(document)) == {"VLLM_API_KEY", "VQP_ADMIN_TOKEN"}, "every other dollar is escaped"
    assert OVERRIDES.replace("$", "$$") in server["command"]
    assert server["command"][:2] == ["serve", str(BUNDLED)], "the image's entry point is the program"
    assert (ROOT / server["build"]["dockerfile"]).exists()
    contents = {name: one["content"].replace("$$", "$") for name, one in document["configs"].items()}
    assert json.loads(contents["dashboard"]) == build()
    scraped = json.loads(contents["prometheus"])
    targets = [config["static_configs"][0]["targets"] for config in scraped["scrape_configs"]]
    assert targets == [["server:8000"], ["server:8001"]]
    assert yaml.safe_load(contents["alerts"])["groups"]
    for service in document["services"].values():
        for one in service.get("configs", []):
            assert one["source"] in contents


def test_every_target_from_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(BUNDLED), "--cpu", "--max-model-len", "256", "--concurrency", "2"]
    for target in ("systemd", "compose", "k8s"):
        text = printed(capsys, *words, "--emit", target)
        for word in ("--max-model-len", "256", "--concurrency", "--cpu"):
            assert word in text
    for target, named in (("boat", "boat"), ("kuberay", "one machine")):
        with pytest.raises(SystemExit) as left:
            main([*words, "--emit", target])
        assert left.value.code == 2
        assert named in capsys.readouterr().err
    assert {target.value for target in Target} == {"systemd", "compose", "k8s", "ray", "kuberay"}


def test_the_image_is_made_of_what_make_needs(tmp_path: Path) -> None:
    """What the Dockerfile copies suffices for its `make`, in both targets."""
    lines = (ROOT / "deploy" / "Dockerfile").read_text("utf-8").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    allowed = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    for name in {name for names in copied for name in names}:
        assert f"!{name}" in allowed
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    for flavour in [line.split("FLAVOUR=")[1].split()[0] for line in lines if line.startswith("RUN make")]:
        planned = subprocess.run(["make", "-n", f"FLAVOUR={flavour}"], cwd=tmp_path, capture_output=True, text=True)
        assert planned.returncode == 0, planned.stderr
        assert f"setup.sh {flavour}" in planned.stdout
    assert [line.split()[-1] for line in lines if line.startswith("FROM ")] == ["cpu", "cuda"]
    assert lines.count("USER 10001") == 2
