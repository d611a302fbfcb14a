"""Tables: how their fields become values, which columns are what, and that they come out as they went in."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from helpers.tables import table_text

from pvae.cli.data import _write_values
from pvae.config.choices import load_for, values_config
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.files import from_record, to_json
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.data.sources import read_values
from pvae.tables.column import Column
from pvae.tables.reading import Reading
from pvae.tables.schema import DataRecord, Schema, names_of

NAN = math.nan


def read_text(path, content, name="t.csv", known=(), left_out=(), **reading):
    file = path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    schema = Schema(columns=known, left_out=left_out) if known else None
    return read_values(file, Reading(**{"rules": "none", **reading}), schema)


def refusal(path, content, name="t.csv", **reading):
    with pytest.raises(InputError) as refused:
        read_text(path, content, name, **reading)
    return str(refused.value)


def test_separators_and_marks_of_numbers(tmp_path):
    wanted = [[1.5, 20_000, 5], [-2.25, 1_234_567.5, 12.5], [NAN, 950, 0]]
    english = 'a,b,c\n1.5,"20,000",5%\n-2.25,"1,234,567.5",12.5%\n,950,0%\n'
    european = "a;b;c\n1,5;20.000;5 %\n-2,25;1.234.567,5;12,5 %\n;950;0 %\n"
    cases = {
        "english.csv": english,
        "tabs.tsv": "a\tb\tc\n1.5\t20,000\t5%\n-2.25\t1,234,567.5\t12.5%\n\t950\t0%\n",
        "european.csv": european,
        "tabs.csv": european.replace(";", "\t"),
        "zipped.csv.gz": gzip.compress(european.encode()),
        "windows.csv": european.replace("\n", "\r\n").encode("utf-8-sig"),
    }
    for name, content in cases.items():
        values = read_text(tmp_path, content, name)
        assert np.array_equal(values.x["train"], wanted, equal_nan=True), name
        assert [column.name for column in values.schema.columns] == [*"abc"], name
        assert ("decimal comma" in values.schema.note) == (name not in ("english.csv", "tabs.tsv"))
    x, columns = torch.tensor(wanted), read_text(tmp_path, english).schema.columns
    assert table_text(columns, x) == "a,b,c\n1.5,20000,5%\n-2.25,1234567.5,12.5%\n,950,0%\n"
    texts = table_text(read_text(tmp_path, european).schema.columns, x)
    assert texts == "a;b;c\n1,5;20000;5%\n-2,25;1234567,5;12,5%\n;950;0%\n"
    assert np.array_equal(read_text(tmp_path, texts, known=columns).x["train"], wanted, equal_nan=True), "read again"


def test_seconds_of_a_year_keep_their_digits_in_float32(tmp_path):
    seconds = 1_577_836_800 + 631_139 * np.arange(50)
    values = read_text(tmp_path, "time,year\n" + "".join(f"{one},{1950 + one % 67}\n" for one in seconds))
    time, year = values.schema.columns
    written = torch.from_numpy(values.x["train"]).float()[:, 0].tolist()
    assert [time.text(value) for value in written] == [str(one) for one in seconds]
    assert year.origin == 0, "float32 holds all years"
    before = read_text(tmp_path, "time\n" + "".join(f"{-one}\n" for one in seconds))
    assert before.schema.columns[0].origin == -seconds[-1]


def test_a_run_says_what_a_comma_means(tmp_path):
    columns = read_text(tmp_path, "a\tb\n1,5\t20\n2,25\t3\n").schema.columns
    assert read_text(tmp_path, "a\tb\n2,345\t\n", known=columns).x["train"].tolist()[0][0] == 2.345
    assert read_text(tmp_path, "a\tb\n2\t3\n", known=columns).fields.point == ","


def test_whole_numbers_that_float64_does_not_hold(tmp_path):
    wrong = refusal(tmp_path, "a,b\n9007199254740993,1\n-9007199254740992,2\n", columns="a=real")
    assert "line 2: a is '9007199254740993'" in wrong
    assert read_text(tmp_path, "a,b\n9007199254740992,1\n-9007199254740992,2\n", columns="a=real")


def test_a_row_of_which_only_its_number_is_given_is_left_out(tmp_path):
    values = read_text(tmp_path, ",a,b\n0,1.5,2\n1,,\n2,2.5,7\n")
    assert values.x["train"].tolist() == [[1.5, 2], [2.5, 7]]
    assert "all fields are empty" in values.schema.note


def test_a_minus_is_a_text_beside_a_plus_alone(tmp_path):
    strands = read_text(tmp_path, "s,b\n+,1\n-,2\n+,4\n").schema.columns[0].categories
    several = read_text(tmp_path, "s,b\n+,1\n-,2\n++,4\n").schema.columns[0].categories
    assert (strands, several) == (("+", "-"), ("+", "++"))


def test_numbers_that_spaces_separate(tmp_path):
    values = read_text(tmp_path, "  a    b\n 1.5  20\n-2.25 1e3\n 0.5  7\n")
    assert values.x["train"].tolist() == [[1.5, 20], [-2.25, 1000], [0.5, 7]]
    assert "separated by spaces" in values.schema.note


def test_letters_that_are_not_of_utf8(tmp_path):
    rows = "city,a\nKöln,1\nKöln,2\nBonn,4\n"
    for encoding in ("utf-8", "latin-1"):
        values = read_text(tmp_path, rows.encode(encoding))
        assert values.schema.columns[0].categories == ("Bonn", "Köln")
        assert ("latin-1" in values.schema.note) == (encoding == "latin-1")
    assert "no file of texts" in refusal(tmp_path, b"\x89PNG\0\0\xff" * 9)


def test_comments_above_a_table_are_left_out_and_counted(tmp_path):
    values = read_text(tmp_path, "# a star\n# of magnitude 5, or 6\ntime,flux\n1.5,2.5\n2.5,3\n")
    assert values.x["train"].tolist() == [[1.5, 2.5], [2.5, 3]]
    assert values.names["train"] == ["line-4", "line-5"]
    assert "comments (#) that are left out: 2" in values.schema.note
    values = read_text(tmp_path, "colour,a\n#fff,1\n#000,2\n#fff,4\n")
    assert values.schema.columns[0].categories == ("#000", "#fff"), "rows of the table"
    values = read_text(tmp_path, 'text,a\n"two\nlines",1\n\none,2\none,4\n')
    assert values.schema.columns[0].categories == ("one", "two\nlines")
    assert values.names["train"] == ["line-2", "line-5", "line-6"]
    assert "line 4" in refusal(tmp_path, "time,flux\n1.5,2.5\n2.5,3\n# clouds\n3.5,4\n")


def test_rows_without_a_field_are_left_out_and_counted(tmp_path):
    values = read_text(tmp_path, "\n,\na,b\n1,2\n\n3,5\n  \n,NA\n\n\n")
    assert np.array_equal(values.x["train"], [[1, 2], [3, 5], [NAN, NAN]], equal_nan=True)
    assert "empty, and that are left out: 2" in values.schema.note


@pytest.mark.parametrize(
    ("content", "names", "rows"),
    [
        ("5.1,x\n4.9,y\n4.7,x\n", ["column-1", "column-2"], 3),
        ("5,1;3,5\n4,9;3,0\n", ["column-1", "column-2"], 2),
        ("0,1,2\n5,3,6\n4,2,5\n", ["0", "1", "2"], 2),
        ("land,2001,2002\nNorway,3,6\nSweden,2,5\nNorway,3,4\n", ["land", "2001", "2002"], 3),
        ("1100,1102,1104\n0.31,0.29,0.3\n0.27,0.26,0.28\n", ["1100", "1102", "1104"], 2),
        ("# 2020, 2021\n5.1,3.5\n4.9,3.0\n", ["column-1", "column-2"], 2),
        ("a,u\nb,v\na,u\nb,u\n", ["column-1", "column-2"], 4),
        ("a,u\nb,v\na,v\nb,w\n", ["a", "u"], 3),
    ],
)
def test_a_first_line_of_values_is_no_line_of_names(tmp_path, content, names, rows):
    values = read_text(tmp_path, content)
    assert [column.name for column in values.schema.columns] == names
    assert len(values.x["train"]) == rows
    assert ("no line of names" in values.schema.note) == (names == ["column-1", "column-2"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n3\n", ["line 3", "1 fields"]),
        ("# of two\n\na,b\n1,2\n\n1,2,\n", ["line 6", "3 fields"]),
        ('a,b\n1,"x\ny"\n2,"x\ny"\n\n3\n', ["line 7", "1 fields"]),
        ("a,b\n" + "1,2\n" * 9 + "1_000,2\n", ["line 11", "a is '1_000'"]),
        ("a,b\n", ["no rows"]),
        ("a,a\n1,2\n", ["several columns named a"]),
        ('a,b\n1,"x, y"\n1,"2\n' + '1,"2"\n' * 9, ["line 3 ", "quotation mark"]),
        ("a,b\n1,2\n1,2\n", ["no column of values is left", "a (all are '1')", "b (all are '2')"]),
        ("a,b\n" + "".join(f"{n % 7},t{n % 120}\n" for n in range(500)), ["column b", "120", "--ignore b", "b=cat"]),
    ],
)
def test_bad_tables_are_refused_by_line_and_column(tmp_path, content, words):
    message = refusal(tmp_path, content)
    assert all(word in message for word in words), message


def test_one_list_says_what_is_missing_among_numbers_and_texts(tmp_path):
    rows = "".join(f"{word},{word}\n" for word in ["NA", "nan", "NaN", "?", "", "N/A", "null", "-"])
    values = read_text(tmp_path, "a,b\n1,x\n2,y\n3.5,y\n" + rows + "5,x\n" * 9)
    assert np.isnan(values.x["train"][3:10]).all()
    assert len(values.x["train"]) == 3 + 7 + 9
    assert values.schema.columns[1].categories == ("x", "y")
    assert "NA (2)" in values.schema.note
    values = read_text(tmp_path, "a,b\n1,NA\n-999,DE\n3,DE\n-999,NA\n7,DE\n", missing_values="-999")
    assert np.array_equal(values.x["train"], [[1, 1], [NAN, 0], [3, 0], [NAN, 1], [7, 0]], equal_nan=True)
    values = read_text(tmp_path, "a,b\nNA,NA\n", known=(Column("a"), Column("b", ("DE", "NA"))))
    assert np.array_equal(values.x["train"], [[NAN, 1]], equal_nan=True), "a text of the run is no missing value"


def test_what_a_column_is(tmp_path):
    days = pandas.to_datetime("2019-12-30") + pandas.to_timedelta(np.arange(40) * 10 % 73, unit="D")
    count = np.arange(40)
    columns = {
        "patient_id": 5000 + count * 7 % 83,
        "name": [f"Name {row}" for row in count],
        "land": "Norway",
        "nothing": None,
        "row": count + 1,
        "visit": days.strftime("%d.%m.%Y"),
        "zip": [f"0{1067 + row % 4}" for row in count],
        "unix_time": 1_600_000_000 + count * 3600,
        "bjd": [f"{2458849.5 + row * 0.01:.5f}" for row in count],
        "far": [f"{10**15 + 3 * row % 11}" for row in count],
        "age": 20 + count % 30,
    }
    frame = pandas.DataFrame(columns)
    values = read_text(tmp_path, frame.to_csv(index=False))
    assert values.schema.left_out == ("patient_id", "name", "land", "nothing", "row")
    assert all(name in values.schema.note for name in ("patient_id", "name", "land"))
    columns = {column.name: column for column in values.schema.columns}
    x = dict(zip(columns, values.x["train"].T))
    assert [*columns] == ["visit", "zip", "unix_time", "bjd", "far", "age"]
    assert x["visit"].tolist() == [row * 10 % 73 for row in range(40)]
    assert (columns["visit"].unit, columns["visit"].date_format) == ("days from 2019-12-30", "%d.%m.%Y")
    assert columns["zip"].categories == ("01067", "01068", "01069", "01070")
    assert x["unix_time"].tolist() == [3600 * row for row in range(40)]
    assert columns["unix_time"].unit == "less 1,600,000,000"
    assert x["bjd"] == pytest.approx(0.5 + np.arange(40) * 0.01, abs=1e-9)
    assert columns["bjd"].unit == "less 2,458,849"
    assert x["far"].tolist() == [3 * row % 11 for row in range(40)]
    assert (columns["age"].decimals, columns["age"].least, columns["age"].greatest) == (0, 20, 49)
    single = torch.from_numpy(values.x["train"]).float()
    wanted = frame[[*columns]].to_csv(index=False)
    assert table_text(values.schema.columns, single) == wanted, "in float32 all digits come out as they went in"
    again = read_text(tmp_path, wanted, known=values.schema.columns)
    assert np.array_equal(again.x["train"], values.x["train"])


@pytest.mark.parametrize(
    ("first", "second", "days"),
    [
        ("2020-02-28", "2020-03-01", 2),
        ("02/28/2020", "03/01/2020", 2),
        ("28.02.2020", "01.03.2020", 2),
        ("28 Feb 2020", "01 Mar 2020", 2),
        ("2020-02-28T12:00:00Z", "2020-03-01T18:00:00Z", 2.25),
        ("2020-02-28 12:00:00.500000", "2020-03-01 12:00:00.500000", 2),
        ("28/02/20", "01/03/20", 2),
        ("Feb-20", "Mar-20", 29),
        ("02/28/2020 12:00 AM", "03/01/2020 06:30 PM", 2 + 18.5 / 24),
    ],
)
def test_dates(tmp_path, first, second, days):
    values = read_text(tmp_path, f"day,a\n{first},1\n{second},2\n{first},4\n")
    x = values.x["train"][:, 0]
    assert x[1] - x[0] == pytest.approx(days)
    assert [values.schema.columns[0].text(value) for value in x] == [first, second, first]
    again = read_text(tmp_path, f"a,day\n1,{second}\n2,\n", known=values.schema.columns)
    assert np.array_equal(again.x["train"][:, 0], [x[1], NAN], equal_nan=True)
    assert "line 2: day is 'soon'" in refusal(tmp_path, "a,day\n1,soon\n", known=values.schema.columns)
    assert "line 5: day is 'soon'" in refusal(tmp_path, f"day,a\n{first},1\n{second},2\n{first},4\nsoon,5\n")


def test_names_of_rows_labels_and_ignored_columns(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("id,a,b,who,kind\n" + "".join(f"{row},{row % 7},{row % 5},p{row},{row % 2}\n" for row in range(30)))
    options = {"label_column": "kind", "name_column": "who", "ignore": "id,b"}
    data = load_for(Config(dataset=f"table:{file}", **options))
    assert [column.name for column in data.columns] == ["a"]
    assert sorted(data.left_out) == ["b", "id", "kind", "who"]
    assert sorted([*data.names["train"], *data.names["test"]]) == sorted(f"p{row}" for row in range(30))
    assert [int(name[1:]) % 7 for name in data.names["test"]] == data.test[:, 0].tolist()
    assert [int(name[1:]) % 2 for name in data.names["test"]] == data.test_labels.tolist()
    values = read_text(tmp_path, "who,a\nme,3\n,4\n", known=data.columns, left_out=data.left_out, **options)
    assert values.names["train"] == ["me", "line-3"]
    for name in options:
        message = refusal(tmp_path, "id,a\n1,2\n3,4\n", **{name: "nope"})
        assert all(word in message for word in (f"--{name.replace('_', '-')}", "nope", "id, a"))
    assert "no column of values is left" in refusal(tmp_path, "kind\n1\n2\n", label_column="kind")


def test_kinds_of_single_columns(tmp_path):
    content = "id,visits,size,stage,flag,shop\n" + "".join(
        f"{row},{row % 4},{'SML'[row % 3]},{row % 3 + 1},{row % 2},{100 + row % 120}\n" for row in range(240)
    )
    (tmp_path / "t.csv").write_text(content)
    text = "id=real,visits=real,size=ordinal:S<M<L,stage=ordinal,flag=categorical,shop=categorical"
    data = load_for(Config(dataset=f"table:{tmp_path / 't.csv'}", columns=text))
    config = values_config(data, columns=text)
    assert config.likelihood == "columns"
    assert config.columns == "real*2,ordinal:3*2,categorical:2,categorical:120"
    size, stage, flag = data.columns[2:5]
    assert (size.categories, stage.categories, flag.categories) == (("S", "M", "L"), ("1", "2", "3"), ("0", "1"))
    assert data.train[:, 2].tolist() == data.train[:, 3].tolist() == [int(one) % 3 for one in data.train[:, 0]]
    for columns, said in (
        ("size=ordinal", "name the levels of size"),
        ("size=real", "size is 'S'"),
        ("real*6", "size is 'S'"),
        ("sise=real", "'sise'"),
        ("size=ordinal:S<M", "size is 'L'"),
        ("size=categorical:2", "size=categorical:3"),
    ):
        assert said in refusal(tmp_path, content, columns=columns)
    with pytest.raises(InputError, match="must be"):
        Config(dataset="table:t.csv", columns="a=number")


def mixed(path, count=60):
    cities = ["Rome", "", "Oslo", " Oslo", "7"]
    rows = [f"{i / 4},{i % 2},{cities[i % 5]},{'' if i % 9 == 4 else i % 30 // 29 * 90}" for i in range(count)]
    path.write_text("\ufeffage,is_new,city,visits\n" + "\n".join(rows) + "\n")
    return path


def test_a_table_of_numbers_and_texts(tmp_path):
    data = read(f"table:{mixed(tmp_path / 't.csv')}", rules="none")
    assert [column.name for column in data.columns] == ["age", "is_new", "city", "visits"]
    assert [column.categories for column in data.columns] == [(), (), ("7", "Oslo", "Rome"), ()]
    for split in ("train", "test"):
        for name, (age, _, city, visits) in zip(data.names[split], data.splits[split].tolist()):
            row = int(name.removeprefix("line-")) - 2
            assert age == row / 4
            assert math.isnan(visits) == (row % 9 == 4)
            assert city == [2, math.nan, 1, 1, 0][row % 5] or (row % 5 == 1 and math.isnan(city))


def test_the_columns_of_a_run_are_those_of_other_files_too(tmp_path):
    columns = read_values(mixed(tmp_path / "t.csv"), Reading(rules="none")).schema.columns
    values = read_text(tmp_path, "age,is_new,city,visits\n,1,Rome,3\n2,0,,\n", known=columns)
    assert np.array_equal(values.x["train"], [[NAN, 1, 2, 3], [2, 0, NAN, NAN]], equal_nan=True)
    assert values.names == {"train": ["line-2", "line-3"]}
    values = read_text(tmp_path, "city,visits,age,is_new\n,3,4,1\n", known=columns)  # in another order
    assert np.array_equal(values.x["train"], [[4, 1, NAN, 3]], equal_nan=True)
    for content, words in (
        ("age,is_new,city,visits\n1,1,Rome,1\n1,1,Paris,1\n", ["line 3", "city is 'Paris'", "7, Oslo, Rome"]),
        ("age,is_new,city\n1,1,Rome\n", ["no column visits"]),
        ("age,is_new,city,visits,more\n1,1,Rome,1,1\n", ["the column more"]),
        ("age,age,city,visits\n1,1,Rome,1\n", ["columns named age"]),
    ):
        message = refusal(tmp_path, content, known=columns)
        assert all(word in message for word in words), message


def test_a_table_in_an_excel_file(tmp_path):
    pytest.importorskip("openpyxl")
    columns = {
        "Datum": pandas.to_datetime(["2020-01-03", None, "2020-02-29", "2020-01-03"]),
        "Menge": [3, None, 5, 3],
        "Preis": [1.5, 0.25, None, 7],
        "PLZ": ["01067", "04109", "NA", "01067"],
    }
    with pandas.ExcelWriter(tmp_path / "t.xlsx") as file:
        pandas.DataFrame(columns).to_excel(file, index=False)
        pandas.DataFrame(columns).to_excel(file, sheet_name="more", index=False)
    values = read_values(tmp_path / "t.xlsx")
    wanted = [[0, 3, 1.5, 0], [NAN, NAN, 0.25, 1], [57, 5, NAN, NAN], [0, 3, 7, 0]]
    assert np.array_equal(values.x["train"], wanted, equal_nan=True)
    assert values.names["train"][0] == "row-2"
    assert "sheet more is not read" in values.schema.note
    text = "Datum,Menge,Preis,PLZ\n2020-01-03,3,1.5,01067\n,,0.25,04109\n2020-02-29,5,,\n2020-01-03,3,7,01067\n"
    assert table_text(values.schema.columns, torch.tensor(wanted)) == text


@pytest.mark.parametrize(
    ("column", "value", "drawn", "given"),
    [
        (Column("a"), 1 / 3, "0.333333", "0.333333333333333"),
        (Column("a", decimals=2), 12.125, "12.12", "12.125"),
        (Column("a", decimals=2), -0.001, "0.00", "-0.001"),
        (Column("a", decimals=2, least=0.5, greatest=9), 0.001, "0.01", "0.001"),
        (Column("a", decimals=2, least=0.0, greatest=9), 0.001, "0.00", "0.001"),
        (Column("a", decimals=16), float(np.float32(0.1)), "0.1", "0.1"),
        (Column("a", decimals=16, least=0.5, greatest=9.5, step=0.75), 4.1, "4.25", "4.1"),
        (Column("a", decimals=16, least=0.5, greatest=9.5, step=0.75), -3.0, "0.5", "-3.0"),
        (Column("a", decimals=0, least=18, greatest=82), 108.4, "108", "108.4"),
        (Column("a", decimals=0, origin=1.6e9, least=0, greatest=1e6), 5.2, "1600000005", "1600000005.2"),
        (Column("a", ("x", "y", "z")), 2.8, "z", "z"),
        (Column("a", decimals=1, suffix="%"), 4.96, "5.0%", "4.96%"),
        (Column("a", decimals=1, point=","), 1.5, "1,5", "1,5"),
        (Column("a", origin=18262, least=0, greatest=9, date_format="%d.%m.%Y"), 31.0, "01.02.2020", "01.02.2020"),
        (Column("a", origin=18262, date_format="%Y-%m-%d %H:%M"), 0.5 + 1e-5, "2020-01-01 12:00", "2020-01-01 12:00"),
        (Column("a", decimals=0), math.nan, "", ""),
    ],
)
def test_a_value_becomes_the_text_that_the_file_had(column, value, drawn, given):
    assert column.text(value) == drawn
    assert column.text(value, is_given=True) == given


def test_a_table_is_written_as_it_was_read():
    columns = (Column("age", decimals=1), Column("city, town", ("Oslo", "Rome")))
    values = torch.tensor([[1 / 3, 1], [2, math.nan]]).double()
    assert table_text(columns, values) == 'age,"city, town"\n0.3,Rome\n2.0,\n'
    columns = (dataclasses.replace(columns[0], point=","), columns[1])
    assert table_text(columns, values) == "age;city, town\n0,3;Rome\n2,0;\n"


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("site,age,unit,visits,empty", "A,{age},kg,{visits},"),
        ("batch,age,site,unit,visits", "{batch},{age},A,kg,{visits}"),
    ],
)
def test_columns_whose_fields_are_all_equal_come_back_in_their_places(tmp_path, head, row):
    """As `pvae sample` writes them, beside the labels; they are no part of x, and a record keeps them."""
    rows = [row.format(age=20 + number % 40 / 2, visits=number % 7, batch="xy"[number % 2]) for number in range(60)]
    file, out = tmp_path / "t.csv", tmp_path / "out.csv"
    file.write_text("\n".join([head, *rows]))
    label = "batch" if "batch" in head else ""
    config = Config(dataset=f"table:{file}", label_column=label)
    data = load_for(config)
    assert [column.name for column in data.columns] == ["age", "visits"]
    record = from_record(DataRecord, json.loads(to_json(dataclasses.asdict(data.record()))))
    assert {one.name for one in record.constants} == {*head.split(",")} - {"age", "visits", "batch"}
    labels = [data.label_names[one] for one in data.test_labels] if label else ()
    _write_values(SimpleNamespace(data=record, config=config), out, [], data.test, labels)
    first, *written = out.read_text().splitlines()
    assert first == head
    assert {*written} <= {*rows}
    assert len(written) == len(data.test)


def test_the_columns_of_a_run_are_kept_and_those_of_older_runs_open():
    columns = (Column("day", origin=18262.0, date_format="%Y", least=0.0), Column("city", ("Oslo",), decimals=None))
    data = Dataset("t", torch.ones(4, 2), torch.ones(2, 2), columns=columns, left_out=("id",))
    record = dataclasses.asdict(data.record())
    assert from_record(DataRecord, json.loads(to_json(record))) == data.record()
    record["columns"] = [{"name": "day", "categories": []}, {"name": "city", "categories": ["Oslo"]}]
    del record["left_out"]
    old = from_record(DataRecord, json.loads(to_json(record)))
    assert old.columns == (Column("day"), Column("city", ("Oslo",)))
    assert dataclasses.replace(data, columns=old.columns).sha256 == data.sha256


def test_a_table_in_a_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    days = pandas.to_datetime(["2020-01-03", None, "2020-02-29"] * 7)
    frame = pandas.DataFrame(
        {"a": [1.5, None, 0.1 + 0.2] * 7, "b": [True, False, None] * 7, "c": ["x", "y, z", None] * 7, "d": days}
    ).assign(e=np.arange(21, dtype=np.float32) / 10, f=[3.0, None, 5.0] * 7)
    frame.to_parquet(tmp_path / "t.parquet")
    values, _, names, schema, *_ = read_values(tmp_path / "t.parquet", Reading(rules="none"))
    assert [column.name for column in schema.columns] == [*"abcdef"]
    assert names["train"][:2] == ["row-1", "row-2"]
    rows = values["train"][:3].tolist()
    assert [[column.text(value, True) for column, value in zip(schema.columns, row)] for row in rows] == [
        ["1.5", "True", "x", "2020-01-03", "0.0", "3"],
        ["", "False", "y, z", "", "0.1", ""],
        ["0.30000000000000004", "", "", "2020-02-29", "0.2", "5"],
    ]
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        read_values(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "content", "wanted", "says"),
    [
        ("t.csv", "konz;temp\n0,775;18,922\n0,637;9,041\n", [[0.775, 18.922], [0.637, 9.041]], "konz, temp"),
        ("t.csv", "a;b\n18,922;3\n1234;7\n2345;9\n", [[18.922, 3], [1234, 7], [2345, 9]], "decimal comma in: a"),
        ("t.csv", "a;b\n18,922;1.5\n9,041;2.5\n", [[18_922, 1.5], [9041, 2.5]], "thousands in: a"),
        ("t.csv", "a;b\n18.922;3\n9.041;4\n", [[18.922, 3], [9.041, 4]], ""),
        ("t.csv", 'a,b\n"18,922",3\n"950",4\n', [[18_922, 3], [950, 4]], "thousands in: a"),
        (
            "us.tsv",
            "pos\tcount\trate\n12,34\t58,672\t0.5\nx\t1,004\t1.5\nx\t59,017\t2.5\nx\t60,000\t3.5\n12,34\t7,000\t0\n",
            [[0, 58_672, 0.5], [1, 1004, 1.5], [1, 59_017, 2.5], [1, 60_000, 3.5], [0, 7000, 0]],
            "thousands in: count",
        ),
    ],
)
def test_a_comma_before_three_digits_is_read_by_all_numbers_of_the_file(tmp_path, name, content, wanted, says):
    values = read_text(tmp_path, content, name)
    assert np.array_equal(values.x["train"], wanted)
    assert says in values.schema.note


def test_a_later_file_of_a_run_has_the_points_of_its_columns(tmp_path):
    european = read_text(tmp_path, "a;b;n\n0,775;18,92;1.500\n0,637;9,041;700\n").schema.columns
    english = read_text(tmp_path, "a,b,n\n0.775,18.92,1500\n0.637,9.041,700\n").schema.columns
    wanted = [[0.5, 18.922, 1500]]
    for known in european, english:
        for content in ("a;b;n\n0,5;18,922;1.500\n", "a,b,n\n0.5,18.922,1500\n"):
            assert read_text(tmp_path, content, known=known).x["train"].tolist() == wanted
    for known, content in (european, "a;b;n\n12,345;18,922;1.500\n"), (english, 'a,b,n\n12.345,18.922,"1,500"\n'):
        assert read_text(tmp_path, content, known=known).x["train"].tolist() == [[12.345, 18.922, 1500]]


def test_times_with_an_offset_are_dates_and_come_out_in_utc(tmp_path):
    day, other = "2020-02-28T00:30:00+01:00", "2020-03-01T12:00:00-05:00"
    values = read_text(tmp_path, f"when,a\n{day},1\n{other},2\n{day},4\n")
    assert values.x["train"][:2, 0] == pytest.approx([1 - 0.5 / 24, 1 + (2 * 24 + 17) / 24])
    assert values.schema.columns[0].unit == "days from 2020-02-27 UTC"
    texts = [values.schema.columns[0].text(value) for value in values.x["train"][:2, 0]]
    assert texts == ["2020-02-27T23:30:00+00:00", "2020-03-01T17:00:00+00:00"]
    again = read_text(tmp_path, f"when,a\n{texts[1]},1\n", known=values.schema.columns)
    assert again.x["train"][0, 0] == values.x["train"][1, 0]


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["00", "01", "02"], ("00", "01", "02")),
        (["1.0", "2.0", ""], ("1.0", "2.0")),
        (["9", "10", "NA"], ("9", "10")),
        (["NA", "US", "DE"], ("DE", "US")),
    ],
)
def test_classes_are_the_texts_of_their_column(tmp_path, classes, names):
    rows = [(row, classes[row * 7 % len(classes)]) for row in range(40)]
    (tmp_path / "t.csv").write_text("a,kind\n" + "".join(f"{a / 4},{kind}\n" for a, kind in rows))
    data = read(f"table:{tmp_path / 't.csv'}", label_column="kind")
    assert data.label_names == names
    for split, y in data.labels.items():
        for a, label in zip(data.splits[split][:, 0].tolist(), y.tolist()):
            assert (*names, rows[int(a * 4)][1])[label] == rows[int(a * 4)][1]
        assert (y == -1).sum() == sum(rows[int(a * 4)][1] in ("", "NA") for a in data.splits[split][:, 0].tolist())
    known = read_values(tmp_path / "t.csv", Reading(label_column="kind"), data)
    assert {*names_of(known.labels["train"])} - {""} == {*names}


def test_digits_that_are_no_numbers(tmp_path):
    long = "".join(f"{12_345_678_901_234_567 + row % 3},{row % 5}\n" for row in range(20))
    assert len(read_text(tmp_path, "item,n\n" + long).schema.columns[0].categories) == 3, "more than float64 holds"
    zeros = read_text(tmp_path, "a,b\n00,1\n10,2\n20,3\n00,5\n")
    assert zeros.schema.columns[0].categories == ("00", "10", "20"), "digits that begin with 0"
