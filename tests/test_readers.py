"""Reading GLUE's files: official layouts, their quirks, and errors that name file and line."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from tiny import refusal

import data
from data import TASKS
from support.files import UserError

MNLI = "gold_label\tindex\tsentence2\tgenre\tsentence1\n"


def write(folder, text):
    path = folder / "train.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


MNLI_TEST = ("index,promptID,pairID,genre,sentence1_binary_parse,sentence2_binary_parse,"
             "sentence1_parse,sentence2_parse,sentence1,sentence2")
STSB_TEST = "index,genre,filename,year,old_index,source1,source2,sentence1,sentence2"
LAYOUTS = {  # columns of the official training file and test file; a label and how it is read
    "mnli": (f"{MNLI_TEST},label1,gold_label", MNLI_TEST, "entailment", 1),
    "qqp": ("id,qid1,qid2,question1,question2,is_duplicate", "id,question1,question2", "1", 1),
    "sst2": ("sentence,label", "index,sentence", "1", 1),
    "qnli": ("index,question,sentence,label", "index,question,sentence", "not_entailment", 1),
    "rte": ("index,sentence1,sentence2,label", "index,sentence1,sentence2", "entailment", 0),
    "wnli": ("index,sentence1,sentence2,label", "index,sentence1,sentence2", "0", 0),
    "mrpc": ("Quality,#1 ID,#2 ID,#1 String,#2 String", "index,#1 ID,#2 ID,#1 String,#2 String",
             "1", 1),
    "cola": ("", "index,sentence", "0", 0),
    "stsb": (f"{STSB_TEST},score", STSB_TEST, "3.800", pytest.approx(3.8)),
}


def table(task, header, label=None, texts="AB"):
    """A file with two rows of these texts."""
    values = dict(zip(task.columns, texts)) | {task.label: label}
    columns = header.split(",") if header else task.header
    row = "\t".join(values.get(column, "?") for column in columns)
    return "\n".join([*[header.replace(",", "\t")][: len(header)], row, row, ""])


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_layouts(name, tmp_path):
    header, test_header, text, label = LAYOUTS[name]
    task, texts = TASKS[name], 2 * [("A", "B")[: len(TASKS[name].columns)]]
    path = write(tmp_path, table(task, header, text))
    rows = data.read_file(task, path)
    assert rows.texts == texts and rows.labels.tolist() == [label, label]
    assert rows.labels.dtype == (np.float32 if name == "stsb" else np.int64)
    assert data.read_file(task, path, labelled=False).texts == texts
    rows = data.read_file(task, write(tmp_path, table(task, test_header)), labelled=False)
    assert rows.texts == texts and rows.labels.tolist() == [0, 0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_real_rows(name, real_data):
    task = TASKS[name]
    paths = [data.file_of(task, real_data, split) for split in ("train", *task.dev)]
    for path in filter(Path.exists, paths):
        rows = data.read_file(task, path)
        lines = path.read_bytes().rstrip(b"\n").count(b"\n") + bool(task.header)
        assert len(rows) + rows.skipped == lines
        if task.labels:
            assert np.bincount(rows.labels, minlength=len(task.labels)).min() > 0.25 * len(rows)
        else:
            assert rows.labels.min() == 0 and rows.labels.max() == 5
        assert np.mean([len(text) > 5 for texts in rows.texts for text in texts]) > 0.99


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("body, texts", [
    ('"A "q" b"\t1\nA " b\t1\n', ['"A "q" b"', 'A " b']),
    ("A\t1\r\nB\t0\r\n", ["A", "B"]),
    ("A\t1\nB\t0", ["A", "B"]),
    ("A\t1\n\nB\t0\n\n\n", ["A", "B"]),
    ("\t1\nA\t1\tmore\n", ["", "A"]),
    ("A\0B\x0b\x0c\x1c\x85\u2028C\rD\t1\n", ["A\0B\x0b\x0c\x1c\x85\u2028C\rD"]),
    ("\U0001f600 é\t1\n", ["\U0001f600 é"]),
], ids=["quotes", "carriage returns", "no last line end", "blank lines", "no text, or more fields",
        "other line ends", "beyond 16 bits"])
def test_odd_but_good(body, texts, mark, tmp_path):
    end = "\r\n" if "\r\n" in body else "\n"
    rows = data.read_file(TASKS["sst2"], write(tmp_path, f"{mark}sentence\tlabel{end}{body}"))
    assert [text for (text,) in rows.texts] == texts


def test_a_mark_before_a_file_without_header(tmp_path):
    rows = data.read_file(TASKS["cola"], write(tmp_path, "\ufeffs\t1\t\tA b.\ns\t0\t*\tB a.\n"))
    assert rows.texts == [("A b.",), ("B a.",)] and rows.labels.tolist() == [1, 0]


def test_columns_are_found_by_name_and_rows_without_a_gold_label_counted(tmp_path):
    path = write(tmp_path, MNLI + "-\t0\tB\tg\tA\nneutral\t1\tD\tg\tC\n-\t2\tF\tg\tE\n")
    rows = data.read_file(TASKS["mnli"], path)
    assert rows.texts == [("C", "D")] and rows.labels.tolist() == [2] and rows.skipped == 2
    assert rows.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(data.read_file(TASKS["mnli"], path, labelled=False)) == 3  # each needs a prediction


def test_qqp_may_have_torn_rows_but_few(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    torn = '9\t1\t2\tHow\n"\tWhat?\t0\n'  # a line break inside question1
    path = write(tmp_path, header + "1\t1\t2\tA\tB\t0\n" * 20_000 + torn)
    rows = data.read_file(TASKS["qqp"], path)
    assert len(rows) == 20_000 and rows.skipped == 2
    with pytest.raises(UserError, match="20002: 4 fields"):  # every test row needs a prediction
        data.read_file(TASKS["qqp"], path, labelled=False)
    for body in ("1\t1\t2\tA\tB\t0\n" * 19_999 + torn, "1\t1\t2\tA\tB\t0\n" * 9 + torn):
        line = body.count("\n")
        with pytest.raises(UserError, match=f":{line}: 4 fields where 6"):
            data.read_file(TASKS["qqp"], write(tmp_path, header + body))


BAD = {  # task, file, part of the message
    "empty": ("sst2", b"", ":1: no column 'sentence'; the columns are: none, the file is empty"),
    "header alone": ("sst2", b"sentence\tlabel\n", "no labelled rows"),
    "no label column": ("sst2", b"sentence\nA\n", ":1: no column 'label'; the columns are: sent"),
    "no text column": ("mnli", b"gold_label\tsentence1\nneutral\tA\n", "'sentence2'"),
    "few fields": ("sst2", b"sentence\tlabel\nA\t1\nB\n", ":3: 1 fields where 2 are expected"),
    "few fields, no header": ("cola", b"s\t1\t\tA\ns\t1\tA\n", ":2: 3 fields where 4"),
    "label": ("sst2", b"sentence\tlabel\nA\t1\nB\t2\n", ":3: label '2' is none of 0, 1"),
    "label missing": ("rte", b"sentence1\tsentence2\tlabel\nA\tB\t\n", ":2: label ''"),
    "no agreement": ("rte", b"sentence1\tsentence2\tlabel\nA\tB\t-\n", ":2: label '-'"),
    "not a number": ("stsb", b"sentence1\tsentence2\tscore\nA\tB\thigh\n", ":2: score 'high'"),
    "nan": ("stsb", b"sentence1\tsentence2\tscore\nA\tB\tnan\n", ":2: score 'nan'"),
    "off the scale": ("stsb", b"sentence1\tsentence2\tscore\nA\tB\t5.1\n", "from 0 to 5"),
    "not UTF-8": ("sst2", b"sentence\tlabel\nA\t1\ncaf\xe9\t1\n", ":3: not UTF-8"),
    "UTF-16": ("sst2", "sentence\tlabel\nA\t1\n".encode("utf-16"), ":1: not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_their_line(case, tmp_path):
    name, content, message = BAD[case]
    path = write(tmp_path, content)
    said = refusal(lambda path: data.read_file(TASKS[name], path), path)
    assert said.startswith(str(path)) and message in said


def test_rows_are_drawn_the_same_each_time(tmp_path):
    body = "".join(f"text {i}\t{i % 2}\n" for i in range(50))
    rows = data.read_file(TASKS["sst2"], write(tmp_path, "sentence\tlabel\n" + body))
    some = data.draw(rows, 20)
    numbers = [int(text.split()[1]) for (text,) in some.texts]
    assert some.labels.tolist() == [number % 2 for number in numbers]
    assert numbers == sorted(set(numbers)) and len(numbers) == 20 and numbers[-1] > 30
    assert data.draw(rows, 20).texts == some.texts and some.fingerprint == rows.fingerprint
    assert data.draw(rows, None) is rows and data.draw(rows, 99) is rows
