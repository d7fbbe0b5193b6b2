"""Delimited text: dialects that others write, and quotes that are none."""

import pytest

from curation.pairs.config import SourceConfig
from curation.pairs.tables import find_dialect, parse_table

NAMES = ("a.jpg", "b.jpg", "c.jpg")


def captions_of(text: str, name: str = "captions.csv", **options: str) -> dict[object, object]:
    """Image to caption, the second column to the first unless the header says otherwise."""
    table = parse_table(name, text, SourceConfig(**options))
    image = next((column for column in table.names if "image" in column or "file" in column), "0")
    caption = next(column for column in reversed(table.names) if column != image)
    return {record[image]: str(record[caption]).strip() for record in table.records}


@pytest.mark.parametrize(
    ("name", "header", "delimiter"),
    [
        ("train.csv", "title\tfilepath", "\t"),
        ("captions.csv", "image;caption", ";"),
        ("results.csv", "image_name| comment_number| comment", "|"),
        ("captions.csv", "image,caption", ","),
        ("captions.tsv", "picture\twords of it, and more", "\t"),
        ("x.csv", 'id,"a;b",file_name', ","),
    ],
)
def test_the_delimiter_is_the_one_that_cuts_out_known_fields(
    name: str, header: str, delimiter: str
) -> None:
    assert find_dialect(name, header) == (delimiter, True)


def test_open_clips_tables_have_tabs_in_a_csv() -> None:
    text = "title\tfilepath\na cat, black\ta.jpg\na dog\tb.jpg\n"
    assert parse_table("train.csv", text, SourceConfig()).records == [
        {"title": "a cat, black", "filepath": "a.jpg"},
        {"title": "a dog", "filepath": "b.jpg"},
    ]


def test_flickr30ks_blanks_around_its_delimiter_are_no_part_of_names() -> None:
    table = parse_table(
        "results.csv",
        "image_name| comment_number| comment\na.jpg| 0| A cat, so .\n",
        SourceConfig(),
    )
    assert table.names == ["image_name", "comment_number", "comment"]
    assert table.records == [
        {"image_name": "a.jpg", "comment_number": "0", "comment": "A cat, so ."}
    ]


def test_excels_line_of_the_separator_is_no_header() -> None:
    assert captions_of("sep=;\r\nimage;caption\r\na.jpg;a cat\r\n") == {"a.jpg": "a cat"}


def test_a_first_line_with_an_image_is_no_header() -> None:
    table = parse_table(
        "Flickr8k.token.txt", "a.jpg#0\ta cat\na.jpg#1\ta black cat\n", SourceConfig()
    )
    assert table.records == [{"0": "a.jpg#0", "1": "a cat"}, {"0": "a.jpg#1", "1": "a black cat"}]


def test_a_delimiter_that_is_set_is_used() -> None:
    assert captions_of("image,x|caption\na.jpg|a, b\n", delimiter="pipe") == {"a.jpg": "a, b"}


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_quotes_that_would_swallow_lines_are_text(delimiter: str) -> None:
    texts = ["plain", '"Sunrise over the bay', "between", 'a monitor 24"', "last"]
    lines = [f"{number}.jpg{delimiter}{text}" for number, text in enumerate(texts)]
    found = captions_of(f"image{delimiter}caption\n" + "\n".join(lines) + "\n")
    assert found == {f"{number}.jpg": text for number, text in enumerate(texts)}


def test_quotes_that_swallow_lines_among_others_that_are_needed_name_the_line() -> None:
    text = 'image,caption\na.jpg,"one, two"\nb.jpg,"Sunrise\nc.jpg,24"\n'
    with pytest.raises(
        ValueError, match=r"captions\.csv cannot be parsed \(a quote swallows .*line 3"
    ):
        parse_table("captions.csv", text, SourceConfig())


def test_quoted_captions_of_several_lines_are_one() -> None:
    assert captions_of('image,caption\na.jpg,"roses are red,\nviolets blue"\n') == {
        "a.jpg": "roses are red,\nviolets blue"
    }


def test_fields_may_be_long() -> None:
    assert len(str(captions_of(f'image,caption\na.jpg,"{"x" * 300_000}"\n')["a.jpg"])) == 300_000


def test_rows_wider_than_their_header_are_captions_with_delimiters_or_unreadable() -> None:
    assert captions_of("image,caption\na.jpg,a cat, a dog\n") == {"a.jpg": "a cat, a dog"}
    assert parse_table("x.csv", "caption,image\na cat, a dog,a.jpg\n", SourceConfig()).records == [
        {}
    ]
