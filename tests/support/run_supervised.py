"""Program of the tests: the real supervisor around the fake server. ``run_supervised.py JSON WORDS...``.

JSON holds fields of ``Options`` and optionally ``plan``; WORDS are those after ``vllm-quant serve``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from vllm_quant_plugin.cli import report as report_error
from vllm_quant_plugin.errors import VqpError
from vllm_quant_serve.flags import read_words
from vllm_quant_serve.launch import build_launch
from vllm_quant_serve.relax import Relaxer
from vllm_quant_serve.report import Report
from vllm_quant_serve.rundir import RunDirectory
from vllm_quant_serve.state import Options
from vllm_quant_serve.supervisor import Supervisor

FAKE = Path(__file__).with_name("fake_server.py")


async def run() -> int:
    fields = json.loads(sys.argv[1])
    plan = fields.pop("plan", None)
    planned = fields.pop("planned", [])
    words = read_words(sys.argv[2:])
    launch = replace(build_launch(words, planned), program=(sys.executable, str(FAKE)))
    relaxer = Relaxer.of(launch.planned, words, plan)
    return await Supervisor(launch, RunDirectory.create(), Report(as_json=True), Options(**fields), plan, relaxer).run()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(run()))
    except VqpError as error:
        report_error(error, as_json=True)
        sys.exit(error.exit_code)
