"""Calibration text: every file form, packing, and that the shipped text is not held-out text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize import calibration
from vllm_quant_plugin.quantize.calibration import SHIPPED, load_windows
from vllm_quant_plugin.quantize.options import Calibration
from vllm_quant_plugin.text.documents import length, read_documents
from vllm_quant_plugin.text.windows import BUNDLED, HELD_OUT, encode_document, load_tokenizer, pack_windows


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BUNDLED)


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\n\0two", ["one", "two"]),
        ("a.json", json.dumps(["one", {"text": "two"}, {"prompt": "three"}]), ["one", "two", "three"]),
        ("a.jsonl", '{"text": "one"}\n\n"two"\n', ["one", "two"]),
        ("b.jsonl", json.dumps({"messages": CHAT}), [CHAT]),
        ("b.json", json.dumps([CHAT]), [CHAT]),
        ("c.jsonl", '{"text": "one\u2028line"}\n', ["one\u2028line"]),
    ],
)
def test_file_forms(tmp_path: Path, name: str, content: str, expected: list) -> None:
    (tmp_path / name).write_text(content)
    assert read_documents(tmp_path / name) == (expected, False)


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    assert read_documents(tmp_path / "a.parquet") == (["one", "two"], False)


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "a.parquet"])
def test_of_a_long_file_the_beginning_is_read(tmp_path: Path, name: str) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    texts = ["a" * 10, "b" * 10, "c" * 10, "d" * 10]
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet.write_table(pyarrow.table({"text": texts}), path)
    elif name.endswith("json"):
        path.write_text(json.dumps(texts))
    elif name.endswith("jsonl"):
        # What lies behind is not looked at.
        path.write_text("\n".join([*map(json.dumps, texts), "{"]))
    else:
        path.write_text("\n\0".join(texts))
    found, more = read_documents(path, 27)
    assert more
    assert found[:2] == texts[:2]
    assert len(found) == 3
    assert texts[2].startswith(str(found[2]))
    assert sum(map(length, found)) <= 27


def test_a_text_that_was_cut_is_reported(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two three\n\0" * 1000)
    wanted = Calibration(str(path), 32, 8)
    assert not load_windows(wanted, tokenizer).warnings
    monkeypatch.setattr(calibration, "CHARACTERS", 5000)
    found = load_windows(wanted, tokenizer)
    assert found.documents < 1000
    assert any("first" in warning for warning in found.warnings)


def test_a_chat_is_as_long_as_its_messages() -> None:
    assert length(CHAT) == len("hi" + "hello")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.txt", None),
        ("empty.txt", " \n"),
        ("a.json", "{"),
        ("a.json", '{"text": "x"}'),
        ("a.json", "[3]"),
        ("a.jsonl", '{"text": "x"}\n{"other": 1}'),
        ("a.parquet", "no parquet"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        read_documents(tmp_path / name)
    assert caught.value.hint


def test_documents_have_bos_and_eos(tokenizer) -> None:
    ids = encode_document(tokenizer, "def f(): pass")
    assert (ids[0], ids[-1]) == (0, 1)
    assert tokenizer.decode(ids[1:-1]) == "def f(): pass"


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=40), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(0, 9),
)
def test_windows_are_cut_from_the_text_without_overlap(documents, samples, length, seed) -> None:
    stream = [token for document in documents for token in document]
    windows = pack_windows(documents, samples, length, seed)
    if len(stream) < length:
        assert windows == [stream]
        return
    every = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    assert len(windows) == min(samples, len(every))
    for window in windows:
        every.remove(window)
    assert windows == pack_windows(documents, samples, length, seed)


def test_shipped_text_is_enough_and_deterministic(tokenizer) -> None:
    first, again = (load_windows(Calibration(), tokenizer) for _ in range(2))
    assert len(first.tokens) == 128
    assert not first.warnings
    assert first.sha256 == again.sha256
    other = load_windows(Calibration(seed=1), tokenizer)
    assert other.sha256 != first.sha256


def test_few_samples_warn(tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words " * 200)
    found = load_windows(Calibration(str(tmp_path / "a.txt"), 128, 16, 0), tokenizer)
    assert any("few" in w for w in found.warnings)


def test_truncation_takes_the_beginning_of_each_document(tokenizer, tmp_path: Path) -> None:
    texts = [f"def f{i}(): return {i}\n" * (5 * i) for i in range(1, 5)]
    (tmp_path / "a.json").write_text(json.dumps(texts))
    found = load_windows(Calibration(str(tmp_path / "a.json"), 8, 64, 0, packing=False), tokenizer)
    whole = [encode_document(tokenizer, text) for text in texts]
    assert sorted(found.tokens) == sorted(ids[:64] for ids in whole if len(ids) >= 64)
    assert 0 < len(found.tokens) < 4
    with pytest.raises(UsageError, match="the longest has"):
        load_windows(Calibration(str(tmp_path / "a.json"), 8, 10_000, 0, packing=False), tokenizer)


@pytest.mark.parametrize("source", ["some-org/some-set", "some-org/some-set:test", "some-org/some-set:small:train"])
def test_a_hub_data_set_while_offline_is_one_line(tokenizer, source: str) -> None:
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE") as caught:
        load_windows(Calibration(source), tokenizer)
    assert source in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_hub_data_set_in_the_cache_is_read(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        return datasets.Dataset.from_dict({"text": ["one two three"] * 2000})

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = load_windows(Calibration("some-org/some-set:small:test", 4, 32), tokenizer)
    assert asked == [("some-org/some-set", "small", "test", False)]
    assert (found.documents, len(found.tokens)) == (1024, 4)


def test_chat_without_a_template_is_refused(tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([CHAT]))
    with pytest.raises(UsageError, match="chat"):
        load_windows(Calibration(str(tmp_path / "a.json")), tokenizer)


def test_shipped_text_shares_no_passage_with_the_held_out_texts() -> None:
    """No run of 200 characters, checked at every multiple of 100, occurs in both, licence headers aside."""
    held_out = "".join(path.read_text("utf-8") for path in HELD_OUT)
    text = SHIPPED.read_text("utf-8")
    shared = [text[i : i + 200] for i in range(0, len(text) - 200, 100) if text[i : i + 200] in held_out]
    assert shared == []


MARK = "\ufeff".encode()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", MARK + b'{"text": "one"}\r\n\r\n{"text": "two"}\r\n', ["one", "two"]),
        ("a.JSONL", b'"one"\n', ["one"]),
        ("a.json", MARK + b'["one", "two"]', ["one", "two"]),
        ("a.txt", MARK + b"one\n\0two", ["one", "two"]),
    ],
)
def test_marks_blank_lines_and_carriage_returns(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_documents(tmp_path / name)[0] == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', "line 2 is not JSON: Expecting value at column"),
        ("a.jsonl", b'{"text": "one"}\n\n{"text" "x"}\n', "line 3 is not JSON: Expecting ':' delimiter at column 9"),
        ("a.jsonl", b'{"text": "one"}\n{"text": 5}\n', "line 2: 'text' is a number, not a string"),
        ("a.jsonl", b'{"text": "one"}\n{"txt": "x"}\n', "line 2: no text in this record, its fields are 'txt'"),
        ("a.jsonl", b'"one"\n7\n', "line 2: no text in this record, it is a number"),
        ("a.jsonl", b'"one"\n"\xff"\n', "line 2 is not UTF-8"),
        ("a.txt", b"one\ntwo\n\xff", "line 3 is not UTF-8"),
        ("a.json", b'["one",\n"two",\n}', "line 3 column 1"),
        ("a.json", b'["one", {"text": null}]', "item 2: no text"),
        ("a.json", b"", "is empty"),
        ("a.jsonl", b"", "holds no text"),
        ("a.txt", "one".encode("utf-16"), "UTF-16"),
        ("a.jsonl", '"one"'.encode("utf-16"), "UTF-16"),
        ("a.json", '["one"]'.encode("utf-32"), "UTF-32"),
        ("a.parquet", b"", "is empty"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_documents(tmp_path / name)
    assert said in caught.value.message
