"""docker compose for one machine: the server, a Prometheus that scrapes both its endpoints, and a Grafana."""

from __future__ import annotations

import json
from typing import Any

from vllm_quant_serve.dashboards.build import DASHBOARD, RULES
from vllm_quant_serve.deploy.deployment import NAME, SHARED_MEMORY_GIB, Deployment
from vllm_quant_serve.deploy.pods import HOME, dump

PROMETHEUS = "prom/prometheus:v3.5.0"
GRAFANA = "grafana/grafana:12.1.0"
TOKEN = "admin-token"


def compose(deployment: Deployment) -> str:
    """A self-contained compose file: it includes the configurations, and the secrets come from the environment."""
    return dump([_escape(_document(deployment))])


def _document(deployment: Deployment) -> dict[str, Any]:
    return {
        "name": NAME,
        "services": {"server": _server(deployment), "prometheus": _prometheus(), "grafana": _grafana()},
        "configs": {
            "prometheus": {"content": json.dumps(_scraping(deployment), indent=1)},
            "alerts": {"content": RULES.read_text("utf-8")},
            "datasource": {"content": json.dumps(_DATASOURCE, indent=1)},
            "provider": {"content": json.dumps(_PROVIDER, indent=1)},
            "dashboard": {"content": DASHBOARD.read_text("utf-8")},
        },
        "secrets": {TOKEN: {"environment": "VQP_ADMIN_TOKEN"}},
        "volumes": {"home": {}, "prometheus": {}, "grafana": {}},
    }


def _server(deployment: Deployment) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [{"type": "volume", "source": "home", "target": HOME}]
    if deployment.folder is not None:
        folder = str(deployment.folder)
        mounts.append({"type": "bind", "source": folder, "target": folder, "read_only": True})
    ready = f"http://127.0.0.1:{deployment.admin_port}/readyz"
    found: dict[str, Any] = {
        "image": deployment.image,
        "build": {"context": ".", "dockerfile": "deploy/Dockerfile", "target": "cpu" if deployment.on_cpu else "cuda"},
        "command": ["serve", *deployment.words_for(admin_beyond_loopback=True)],
        # An empty key means no key. Without a token the admin app would refuse to leave loopback.
        "environment": {"VLLM_API_KEY": _Variable("${VLLM_API_KEY:-}"), "HOME": HOME, **deployment.variables,
                        "VQP_ADMIN_TOKEN": _Variable("${VQP_ADMIN_TOKEN:?set it to a long random word}")},
        "ports": [f"127.0.0.1:{port}:{port}" for port in (deployment.launch.endpoint.port, deployment.admin_port)],
        "init": True,
        "restart": "on-failure:5",
        # SIGTERM drains; SIGKILL comes after the drain and the shutdown.
        "stop_grace_period": f"{deployment.stop_seconds}s",
        "shm_size": f"{SHARED_MEMORY_GIB}gb",
        "ulimits": {"nofile": 65535},
        "security_opt": ["no-new-privileges:true"],
        "cap_drop": ["ALL"],
        "volumes": mounts,
        "healthcheck": {
            "test": ["CMD", "python3", "-c", f"import urllib.request as r; r.urlopen({ready!r}, timeout=2)"],
            "interval": "10s", "timeout": "5s", "start_period": f"{int(deployment.options.startup_timeout)}s",
        },
    }  # fmt: skip
    if not deployment.on_cpu:
        devices = [{"driver": "nvidia", "count": deployment.devices, "capabilities": ["gpu"]}]
        found["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return found


def _prometheus() -> dict[str, Any]:
    return {
        "image": PROMETHEUS,
        "command": ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.retention.time=30d"],
        "configs": [
            {"source": "prometheus", "target": "/etc/prometheus/prometheus.yml"},
            {"source": "alerts", "target": "/etc/prometheus/alerts.yml"},
        ],
        "secrets": [TOKEN],
        "ports": ["127.0.0.1:9090:9090"],
        "volumes": [{"type": "volume", "source": "prometheus", "target": "/prometheus"}],
        "restart": "unless-stopped",
    }


def _grafana() -> dict[str, Any]:
    provisioning = "/etc/grafana/provisioning"
    return {
        "image": GRAFANA,
        "configs": [
            {"source": "datasource", "target": f"{provisioning}/datasources/prometheus.yml"},
            {"source": "provider", "target": f"{provisioning}/dashboards/provider.yml"},
            {"source": "dashboard", "target": "/var/lib/vllm-quant/dashboards/serve.json"},
        ],
        "ports": ["127.0.0.1:3000:3000"],
        "volumes": [{"type": "volume", "source": "grafana", "target": "/var/lib/grafana"}],
        "restart": "unless-stopped",
    }


def _scraping(deployment: Deployment) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
        "rule_files": ["/etc/prometheus/alerts.yml"],
        "scrape_configs": [
            {"job_name": "vllm", "static_configs": [{"targets": [f"server:{deployment.launch.endpoint.port}"]}]},
            {"job_name": "vllm-quant", "static_configs": [{"targets": [f"server:{deployment.admin_port}"]}],
             "authorization": {"credentials_file": f"/run/secrets/{TOKEN}"}},
        ],
    }  # fmt: skip


_DATASOURCE = {"apiVersion": 1, "datasources": [
    {"name": "Prometheus", "type": "prometheus", "uid": "prometheus", "url": "http://prometheus:9090",
     "isDefault": True}]}  # fmt: skip
_PROVIDER = {"apiVersion": 1, "providers": [
    {"name": "vllm-quant", "type": "file", "options": {"path": "/var/lib/vllm-quant/dashboards"}}]}  # fmt: skip


class _Variable(str):
    """A string in which compose replaces a variable."""


def _escape(value: Any) -> Any:
    """Compose replaces $NAME in every string; $$ is a dollar sign."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    if isinstance(value, _Variable):
        return str(value)
    return value.replace("$", "$$") if isinstance(value, str) else value
