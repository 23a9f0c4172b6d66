"""The admin app over a session that has no server, for tests of its page."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import vllm_quant_plugin
from vllm_quant_serve.admin.server import AdminServer, bind
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.launch import build_launch
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.report import Report
from vllm_quant_serve.supervise.run_directory import RunDirectory
from vllm_quant_serve.supervise.session import Session

# As one would type it, so that a picture names no folder of this machine.
BUNDLED = os.path.relpath(Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama")


class Served(threading.Thread):
    """The admin app over a session that has no server."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.up, self.url = folder, threading.Event(), ""
        self.loop = asyncio.new_event_loop()
        self.over = asyncio.Event()
        self.start()
        assert self.up.wait(30)

    def run(self) -> None:
        self.loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        plan = make_plan(PlanRequest(BUNDLED, gpu=("h100",), max_model_len=256))
        launch = build_launch(parse_args([BUNDLED]), plan.serve_args())
        self.session = Session(
            launch, RunDirectory(self.folder), Report(as_json=True), SuperviseOptions(), plan.to_dict()
        )
        server = AdminServer(self.session, bind("127.0.0.1", 0, 1, None), None)
        server.start()
        self.url = server.address
        self.up.set()
        await self.over.wait()
        await server.stop()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.join(30)
