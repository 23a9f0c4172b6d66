"""Held-out text becomes the windows that the model's README counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.text.windows import BUNDLED, HELD_OUT, load_tokenizer, read_windows


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BUNDLED)


@pytest.mark.parametrize(("path", "tokens"), list(zip(HELD_OUT, (98_048, 80_384), strict=True)))
def test_whole_text_has_the_stated_number_of_tokens(tokenizer, path: Path, tokens: int) -> None:
    windows = read_windows(path, tokenizer, 256)
    assert len(windows) * 256 == tokens
    assert {len(w) for w in windows} == {256}
    assert windows[0][0] == tokenizer.bos_token_id
    assert read_windows(path, tokenizer, 256, 3) == windows[:3]


def test_documents_are_separated_by_newline_and_nul(tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\0two")
    (window,) = read_windows(tmp_path / "t.txt", tokenizer, 6)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    one, two = (tokenizer.encode(word) for word in ("one", "two"))
    assert window == [bos, *one, eos, bos, *two, eos][:6]


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"short"])
def test_unusable_texts_are_refused(tokenizer, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UsageError):
        read_windows(tmp_path / "t.txt", tokenizer, 256)
