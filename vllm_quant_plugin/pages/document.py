"""A whole page: head, policy, style, body, script. Nothing is loaded, and nothing but the page's own script runs."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from functools import cache
from html import escape
from pathlib import Path

from vllm_quant_plugin import __version__
from vllm_quant_plugin.pages.markup import Html, join, tag
from vllm_quant_plugin.writing import replace_text, writing


@cache
def asset(name: str) -> str:
    """A file of this package, ``page.css`` or ``page.js``."""
    return Path(__file__).with_name(name).read_text("utf-8")


def policy(styles: list[str], scripts: list[str], more: str = "") -> str:
    """A Content-Security-Policy under which these inline texts work, and no others; ``more`` are further directives."""

    def hashes(texts: list[str]) -> str:
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; style-src {hashes(styles)}; script-src {hashes(scripts)}; img-src data:;"
        f" base-uri 'none'; form-action 'none'{more}"
    )


def document(title: str, body: Html) -> str:
    """A page of its own: it works from a file, under its own policy, without scripts, and on paper."""
    style, script = asset("page.css"), asset("page.js")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy([style], [script])}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>{style}</style>\n</head>\n'
        f'<body>\n<div class="sheet">\n{body}\n</div>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def made_by(*facts: str) -> Html:
    """The footer: version, date and ``facts``."""
    now = datetime.now(UTC)
    date = tag("time", f"{now.day} {now:%B %Y, %H:%M} UTC", datetime=now.isoformat(timespec="seconds"))
    return tag("footer", join(f"vllm-quant {__version__}, ", date, "".join(f" · {fact}" for fact in facts)))


def write_text(text: str, path: Path) -> None:
    """Write a page, complete or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    with writing(path):
        replace_text(path, text)
