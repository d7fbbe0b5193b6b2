"""Encodings of caption files: marks, settings, and bytes that do not fit."""

import pytest

from curation.pairs.text import clean_captions, decode_text, encoding_of, undecodable

TEXT = "the artist\u2019s caf\u00e9, \u4e00\u53ea\u732b"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marks_and_utf_8_are_known(encoding: str) -> None:
    assert decode_text(TEXT.encode(encoding)) == TEXT


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros(order: str) -> None:
    assert decode_text(f"image,{TEXT}".encode(order)) == f"image,{TEXT}"


def test_a_setting_is_used_for_text_without_a_mark() -> None:
    assert decode_text("caf\u00e9".encode("cp1252"), "cp1252") == "caf\u00e9"
    assert decode_text("\u732b".encode("gbk"), "gbk") == "\u732b"
    assert encoding_of("caf\u00e9".encode("utf-16"), "cp1252") == ("utf-16-le", 2)


def test_bytes_that_do_not_fit_are_named_and_never_replaced() -> None:
    text = decode_text(b"a caf\xe9 there")
    assert "\ufffd" not in text
    assert "0xe9" in undecodable(text)
    assert "--embed.source.encoding" in undecodable(text)
    assert undecodable(TEXT) == ""


def test_captions_are_one_clean_line() -> None:
    assert clean_captions([" a\tcat\n", "", "\x00", None, 5, "x" * 20_000]) == (
        "a cat",
        "x" * 10_000,
    )
