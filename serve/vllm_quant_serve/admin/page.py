"""The status page: the shared style, the shared script and its own in one document, and the policy for these."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vllm_quant_plugin.pages.document import asset, policy


def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


@cache
def status_page() -> tuple[str, str]:
    """The page and its Content-Security-Policy: it asks its own server only, and no other page may frame it."""
    style, shared, script = asset("page.css"), asset("page.js"), _own("status.js")
    text = _own("page.html")
    for name, content in (("page.css", style), ("page.js", shared), ("status.js", script)):
        text = text.replace(f"<!--{name}-->", content)
    return text, policy([style], [shared, script], "; connect-src 'self'; frame-ancestors 'none'")
