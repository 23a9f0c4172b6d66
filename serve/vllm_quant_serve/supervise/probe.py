"""Asking the server over HTTP whether it is healthy, has loaded its model, and generates."""

from __future__ import annotations

from enum import Enum
from typing import Any

import httpx

from vllm_quant_serve.launch import Launch
from vllm_quant_serve.supervise.run_directory import PROBE_HEADER


class Health(Enum):
    """What ``/health`` says."""

    GOOD = "good"
    DEAD = "it answers /health with an error"
    SILENT = "it does not answer /health"


FIRST_TOKEN_TIMEOUT = 120.0


class Probe:
    """An HTTP client of the server on this machine. No call raises when the server does not answer."""

    def __init__(self, launch: Launch, *, token: bytes = b"", timeout: float = 5.0) -> None:
        """``token`` is ``probe_token()`` as the server has it."""
        self._launch = launch
        self._client = self._new_client(timeout)
        self.model: str | None = None
        self._token = token

    def _new_client(self, timeout: float) -> httpx.AsyncClient:
        launch = self._launch
        headers = {"Authorization": f"Bearer {launch.probe_key}"} if launch.probe_key else {}
        transport = httpx.AsyncHTTPTransport(uds=launch.endpoint.uds) if launch.endpoint.uds else None
        # The certificate names the public host, not loopback, and nothing secret is sent elsewhere.
        return httpx.AsyncClient(
            base_url=launch.endpoint.url, headers=headers, timeout=timeout, transport=transport, verify=False,
            trust_env=False,
        )  # fmt: skip

    async def get(self, path: str) -> httpx.Response | None:
        """The response, None when there is none."""
        try:
            return await self._client.get(path)
        except httpx.HTTPError:
            return None

    async def fresh_health(self, timeout: float) -> bool:
        """Whether ``/health`` answers anything on a connection of its own."""
        async with self._new_client(timeout) as client:
            try:
                await client.get("/health")
            except httpx.HTTPError:
                return False
            return True

    async def health(self) -> Health:
        """``/health``: vLLM answers 503 once it knows that its engine is dead."""
        answer = await self.get("/health")
        if answer is None:
            return Health.SILENT
        return Health.GOOD if answer.status_code == 200 else Health.DEAD

    async def serving(self, *, generate: bool) -> bool:
        """Whether the model is loaded and, with ``generate``, the engine makes a token.

        A model that completes no text counts as serving once it is loaded.
        """
        if not await self.loaded():
            return False
        return not generate or await self.generates(FIRST_TOKEN_TIMEOUT) is not False

    async def loaded(self) -> bool:
        """Healthy, and ``/v1/models`` lists a model."""
        if await self.health() is not Health.GOOD:
            return False
        answer = await self.get("/v1/models")
        if answer is None or answer.status_code != 200:
            return False
        try:
            models = answer.json()["data"]
            self.model = str(models[0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            return False
        return True

    async def generates(self, timeout: float) -> bool | None:
        """Whether the engine generates a token. None for a model that completes no text (400, 404, 405)."""
        body: dict[str, Any] = {"model": self.model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        headers = [(PROBE_HEADER, self._token)]
        try:
            answer = await self._client.post("/v1/completions", json=body, timeout=timeout, headers=headers)
        except httpx.HTTPError:
            return False
        return None if answer.status_code in (400, 404, 405) else answer.status_code == 200

    async def close(self) -> None:
        await self._client.aclose()
