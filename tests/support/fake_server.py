"""A stand-in for vLLM behind the supervisor: an OpenAI-compatible server that starts in half a second.

Run as a program with the words of a ``vllm serve`` line. It keeps the process shape of vLLM (a child
that stands for EngineCore and ignores SIGTERM) and the drain gate, and answers /health, /v1/models,
/metrics and streaming /v1/completions. Its behaviour is set by ``--fake-*`` flags.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time

from vllm_quant_serve.gate import DrainGate
from vllm_quant_serve.server import SUPERVISOR_PID, die_with_parent
from vllm_quant_serve.supervise.run_directory import attach

ENGINE = "import signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(3600)"


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("verb")
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--kv-cache-memory-bytes", type=int, default=0)
    parser.add_argument("--fake-memory", type=int, default=None, help="fail like vLLM when the KV cache needs more")
    parser.add_argument("--fake-fail", default=None, help="print this line and exit 1 before listening")
    parser.add_argument("--fake-load", type=float, default=0.0, help="seconds before listening")
    parser.add_argument("--fake-die-after", type=float, default=None, help="exit 1 this long after listening")
    parser.add_argument("--fake-ignore-term", action="store_true")
    parser.add_argument("--fake-argv", default=None, help="write the argument list to this file")
    return parser.parse_known_args(words)[0]


class App:
    """The ASGI application behind the gate."""

    def __init__(self, model: str) -> None:
        self.model, self.healthy, self.tokens, self.paused = model, True, 0, False
        self.running = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/health":
            # Switches for tests, on a path that the gate leaves open: ?unhealthy, ?hang, ?resume, ?say=words.
            switch = scope["query_string"]
            if switch.startswith(b"say="):
                print(switch[4:].decode(), flush=True)
            self.healthy = self.healthy and switch != b"unhealthy"
            if switch.startswith(b"block="):  # the event loop, as a long tokenization does
                time.sleep(float(switch[6:]))
            self.paused = (self.paused or switch == b"hang") and switch != b"resume"
            await reply(send, 200 if self.healthy else 503, b"")
        elif path == "/v1/models":
            await reply(send, 200, json.dumps({"object": "list", "data": [{"id": self.model}]}).encode())
        elif path == "/metrics":
            text = f"vllm:generation_tokens_total {self.tokens}\nvllm:num_requests_running {self.running}\n"
            await reply(send, 200, text.encode())
        elif path == "/v1/completions":
            await self.complete(receive, send)
        else:
            await reply(send, 404, b"{}")

    async def complete(self, receive, send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = json.loads(body or b"{}")
        count, pause = int(request.get("max_tokens", 16)), float(request.get("pause", 0.0))
        side = attach()
        self.running += 1
        try:
            if not request.get("stream"):
                for _ in range(count):
                    await self.token(side, pause)
                text = json.dumps({"choices": [{"text": "x" * count, "finish_reason": "length"}]})
                await reply(send, 200, text.encode())
                return
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for index in range(count):
                await self.token(side, pause)
                last = index + 1 == count
                # As vLLM does when it shuts down under a request.
                aborted = index == request.get("abort_after")
                chunk = {
                    "choices": [{"text": "x", "finish_reason": "abort" if aborted else "length" if last else None}]
                }
                data = f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n".encode()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                if aborted:
                    break
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            self.running -= 1

    async def token(self, side, pause: float) -> None:
        while self.paused:
            await asyncio.sleep(0.05)
        if pause:
            await asyncio.sleep(pause)
        self.tokens += 1
        if side is not None:
            side.step()


async def reply(send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    if "--fake-argv" in sys.argv:
        with open(sys.argv[sys.argv.index("--fake-argv") + 1], "w") as file:
            json.dump(sys.argv[1:], file)
    options = parse(sys.argv[1:])
    if SUPERVISOR_PID in os.environ:
        die_with_parent(int(os.environ[SUPERVISOR_PID]))
    engine = subprocess.Popen([sys.executable, "-I", "-S", "-c", ENGINE])
    print(f"fake engine {engine.pid}", flush=True)
    time.sleep(options.fake_load)
    if options.fake_memory is not None and options.kv_cache_memory_bytes > options.fake_memory:
        print("ValueError: Available memory on node 0 (0.10/24.0 GiB) on kv cache allocation is less than", flush=True)
        os._exit(1)
    if options.fake_fail is not None:
        print(options.fake_fail, flush=True)
        os._exit(1)

    import uvicorn

    app = App(options.model)
    server = uvicorn.Server(
        uvicorn.Config(DrainGate(app), host=options.host, port=options.port, log_level="warning", lifespan="off")
    )

    async def run() -> None:
        loop = asyncio.get_running_loop()
        if options.fake_die_after is not None:
            loop.call_later(options.fake_die_after, os._exit, 1)
        task = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        if options.fake_ignore_term:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        await task

    asyncio.run(run())
    # As vLLM does, the engine is ended by its parent.
    engine.kill()
    engine.wait()


if __name__ == "__main__":
    main()
