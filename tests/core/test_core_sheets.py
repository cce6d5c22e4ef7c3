"""CSV files as people leave them: what changes no meaning is read, the rest is refused by line."""

import math

import pytest

from cspine_kit.core.errors import DataError
from cspine_kit.core.sheets import read_sheet, to_number

PLAIN = "Id,x\n1.2,3\n1.3,4\n"


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (PLAIN.encode(), [2, 3]),
        (("\ufeff" + PLAIN).encode(), [2, 3]),
        (PLAIN.encode("utf-16"), [2, 3]),
        (PLAIN.replace(",", ";").encode(), [2, 3]),
        (PLAIN.replace(",", "\t").encode(), [2, 3]),
        (PLAIN.replace("\n", "\r\n").encode(), [2, 3]),
        (PLAIN.replace("\n", "\r").encode(), [2, 3]),
        (PLAIN.replace("Id,x", ' "ID" , X ').encode(), [2, 3]),
        (PLAIN.replace("1.2,3", '"1.2 ", "3"').encode(), [2, 3]),
        (PLAIN.replace("1.2", "\u00a01.2").encode(), [2, 3]),
        (("\n\n" + PLAIN).encode(), [4, 5]),
        (PLAIN.replace("\n1.3", "\n\n,\n1.3").encode(), [2, 5]),
        (PLAIN.replace("\n", ",\n").encode(), [2, 3]),
        (PLAIN.rstrip().encode(), [2, 3]),
    ],
)
def test_the_same_cells_by_line(tmp_path, data, lines):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    sheet = read_sheet(path, ("Id", "x"))
    assert list(sheet.rows.columns) == ["Id", "x"] and not sheet.broken
    assert sheet.rows.index.tolist() == lines
    assert sheet.rows.to_numpy().tolist() == [["1.2", "3"], ["1.3", "4"]]


def test_short_and_long_lines(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c\n1\n1,2,3,4\n1,2,3,\n")
    sheet = read_sheet(tmp_path / "t.csv", ("a",))
    assert sheet.rows.loc[2].tolist() == ["1", "", ""] and sheet.rows.index.tolist() == [2, 4]
    assert sheet.broken == {3: "has 4 cells, the header names 3"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"t\.csv cannot be read: it is empty"),
        (b"\n \n", "it is empty"),
        (b"a,x\n", r"t\.csv lacks columns \['Id'\]; it has \['a', 'x'\]"),
        (b"Id,id\n", r"names columns twice: \['Id'\]"),
        (b'Id,x\n1,"2\n3,4\n5,6\n', r"t\.csv line 2: a quote is opened and not closed"),
        (b"Id\xff\xfe", "no UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_what_is_refused(tmp_path, data, said):
    if data is not None:
        (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=said):
        read_sheet(tmp_path / "t.csv", ("Id",))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-0.5", -0.5), ("1,5", 1.5), ("2.", 2), (".5", 0.5), ("1e3", 1000), ("+7", 7)],
)
def test_numbers(text, value):
    assert to_number(text) == value


@pytest.mark.parametrize("text", ["", "nan", "inf", "1_000", "1 000", "1,000.5", "0x1", "one", "٣"])
def test_what_is_no_number(text):
    assert math.isnan(to_number(text))
