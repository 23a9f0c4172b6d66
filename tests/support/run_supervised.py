"""Program of the tests: the real supervisor around the fake server. ``run_supervised.py JSON WORDS...``.

JSON holds fields of ``SuperviseOptions`` and optionally ``plan``; WORDS are those after ``vllm-quant serve``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from vllm_quant_plugin.cli import report as report_error
from vllm_quant_plugin.errors import VqpError
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.launch import build_launch, hold_address
from vllm_quant_serve.supervise.fallbacks import MemoryFallbacks
from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.report import Report
from vllm_quant_serve.supervise.run_directory import RunDirectory
from vllm_quant_serve.supervise.session import Session

FAKE = Path(__file__).with_name("fake_server.py")


async def run() -> int:
    fields = json.loads(sys.argv[1])
    plan = fields.pop("plan", None)
    planned = fields.pop("planned", [])
    limits = fields.pop("limits", {})
    quiet, as_json = fields.pop("quiet", False), fields.pop("as_json", True)
    words = parse_args(sys.argv[2:])
    held = hold_address(words)
    launch = replace(build_launch(words, planned), program=(sys.executable, str(FAKE)))
    fallbacks = MemoryFallbacks(launch.planned, words, plan)
    session = Session(
        launch, RunDirectory.create(), Report(as_json=as_json), SuperviseOptions(**fields), plan, fallbacks,
        {"limits": limits}, quiet=quiet,
    )  # fmt: skip
    try:
        return await session.run()
    finally:
        held.close()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(run()))
    except VqpError as error:
        report_error(error, as_json=True)
        sys.exit(error.exit_code)
