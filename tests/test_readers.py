"""Readers of GLUE's files: the official layouts and their quirks, and one clear line for the rest.
"""

import hashlib

import numpy as np
import pytest

import data
from data import TASKS
from support.files import UserError

MNLI = "gold_label\tindex\tsentence2\tgenre\tsentence1\n"


def write(folder, text, name="train.tsv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# The header lines of the official files, train's then test's, and a row of each.
HEADS = {
    "mnli": ("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
             "sentence1_parse sentence2_parse sentence1 sentence2 label1 gold_label",
             "0 1 2 g p q r s A B neutral entailment", 1,
             "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
             "sentence1_parse sentence2_parse sentence1 sentence2", "0 1 2 g p q r s A B"),
    "qqp": ("id qid1 qid2 question1 question2 is_duplicate", "7 1 2 A B 1", 1,
            "id question1 question2", "0 A B"),
    "sst2": ("sentence label", "A 1", 1, "index sentence", "0 A"),
    "qnli": ("index question sentence label", "0 A B not_entailment", 1,
             "index question sentence", "0 A B"),
    "rte": ("index sentence1 sentence2 label", "0 A B entailment", 0,
            "index sentence1 sentence2", "0 A B"),
    "wnli": ("index sentence1 sentence2 label", "0 A B 0", 0, "index sentence1 sentence2", "0 A B"),
    "mrpc": ("Quality #1_ID #2_ID #1_String #2_String", "1 7 8 A B", 1,
             "index #1_ID #2_ID #1_String #2_String", "0 7 8 A B"),
    "cola": ("", "gj04 0 * A", 0, "index sentence", "0 A"),
    "stsb": ("index genre filename year old_index source1 source2 sentence1 sentence2 score",
             "0 g f y 1 s t A B 3.800", 3.8,
             "index genre filename year old_index source1 source2 sentence1 sentence2",
             "0 g f y 1 s t A B"),
}


def tabs(line):
    return line.replace(" ", "\t").replace("_String", " String").replace("_ID", " ID") + "\n"


@pytest.mark.parametrize("name", HEADS)
def test_official_layouts(name, tmp_path):
    header, row, label, test_header, test_row = HEADS[name]
    head = header and tabs(header)
    task, texts = TASKS[name], ("A", "B")[: len(TASKS[name].columns)]
    rows = data.read_file(task, write(tmp_path, head + 2 * tabs(row)))
    assert rows.texts == [texts] * 2 and rows.labels.tolist() == pytest.approx([label] * 2)
    assert rows.labels.dtype == (np.float32 if name == "stsb" else np.int64)
    rows = data.read_unlabelled(task, write(tmp_path, tabs(test_header) + 2 * tabs(test_row)))
    assert rows.texts == [texts] * 2 and rows.labels.tolist() == [0, 0]
    # a labelled file serves as an unlabelled one
    rows = data.read_unlabelled(task, write(tmp_path, head + tabs(row)))
    assert rows.texts == [texts]


COUNTS = {"sst2": (67349, 872), "mnli": (22560, 9815, 1000), "qqp": (19496, 4000),
          "cola": (8551, 1043), "rte": (2490, 277), "mrpc": (3667, 408), "stsb": (5749, 1500),
          "wnli": (635, 71), "qnli": (None, 5463)}


@pytest.mark.parametrize("name", COUNTS)
def test_real_rows(name, real_data):
    task = TASKS[name]
    splits = ["train", *dict(task.dev)]
    for split, count in zip(splits, COUNTS[name], strict=True):
        if count is None:
            continue
        rows = data.read(task, real_data, split)
        assert len(rows) == count and rows.skipped == 0
        if task.labels:
            shares = np.bincount(rows.labels, minlength=len(task.labels)) / count
            assert shares.min() > 0.25 and len(shares) == len(task.labels)
        else:
            assert rows.labels.min() == 0 and rows.labels.max() == 5
        assert np.mean([len(text) > 5 for texts in rows.texts for text in texts]) > 0.99


def test_columns_are_found_by_name(tmp_path):
    path = write(tmp_path, MNLI + "neutral\t0\tB\tg\tA\ncontradiction\t1\tD\tg\tC\n")
    rows = data.read_file(TASKS["mnli"], path)
    assert rows.texts == [("A", "B"), ("C", "D")] and rows.labels.tolist() == [2, 0]
    assert rows.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


ODD = {
    "quotes": ('"A "q" b"\t1\n', ['"A "q" b"']),
    "one quote": ('A " b\t1\nC\t0\n', ['A " b', "C"]),
    "carriage returns": ("A\t1\r\nB\t0\r\n", ["A", "B"]),
    "no last line end": ("A\t1\nB\t0", ["A", "B"]),
    "other line ends": ("A\x0b\x0c\x1c\x85\u2028B\rC\t1\n", ["A\x0b\x0c\x1c\x85\u2028B\rC"]),
    "blank lines": ("A\t1\n\nB\t0\n\n\n", ["A", "B"]),
    "an empty text": ("\t1\n", [""]),
    "more fields": ("A\t1\tmore\n", ["A"]),
    "zero bytes": ("A\0B\t1\n", ["A\0B"]),
    "beyond 16 bits": ("\U0001f600 é\t1\n", ["\U0001f600 é"]),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_odd_but_good(case, mark, tmp_path):
    body, texts = ODD[case]
    end = "\r\n" if "\r\n" in body else "\n"
    rows = data.read_file(TASKS["sst2"], write(tmp_path, f"{mark}sentence\tlabel{end}{body}"))
    assert [t for (t,) in rows.texts] == texts


def test_a_mark_before_a_file_without_header(tmp_path):
    rows = data.read_file(TASKS["cola"], write(tmp_path, "\ufeffs\t1\t\tA b.\ns\t0\t*\tB a.\n"))
    assert rows.texts == [("A b.",), ("B a.",)] and rows.labels.tolist() == [1, 0]


def test_rows_without_a_gold_label_are_counted(tmp_path):
    path = write(tmp_path, MNLI + "-\t0\tB\tg\tA\nneutral\t1\tD\tg\tC\n-\t2\tF\tg\tE\n")
    rows = data.read_file(TASKS["mnli"], path)
    assert rows.texts == [("C", "D")] and rows.skipped == 2
    assert len(data.read_unlabelled(TASKS["mnli"], path)) == 3  # each needs a prediction


def test_qqp_may_have_torn_rows_but_few(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    torn = '9\t1\t2\tHow\n"\tWhat?\t0\n'  # a line break inside question1
    path = write(tmp_path, header + "1\t1\t2\tA\tB\t0\n" * 20_000 + torn)
    rows = data.read_file(TASKS["qqp"], path)
    assert len(rows) == 20_000 and rows.skipped == 2
    with pytest.raises(UserError, match="20002: 4 fields"):  # rows to predict are all needed
        data.read_unlabelled(TASKS["qqp"], path)
    for body in ("1\t1\t2\tA\tB\t0\n" * 19_999 + torn, "1\t1\t2\tA\tB\t0\n" * 9 + torn):
        line = body.count("\n")
        with pytest.raises(UserError, match=f":{line}: 4 fields where 6"):
            data.read_file(TASKS["qqp"], write(tmp_path, header + body))


BAD = {  # task, file, what is said
    "empty": ("sst2", b"", ":1: no column 'sentence'; the columns are: none, the file is empty"),
    "empty, no header": ("cola", b"", "no labelled rows"),
    "header alone": ("sst2", b"sentence\tlabel\n", "no labelled rows"),
    "no label column": ("sst2", b"sentence\nA\n", ":1: no column 'label'; the columns are: sent"),
    "no text column": ("mnli", b"gold_label\tsentence1\nneutral\tA\n", "'sentence2'"),
    "commas": ("sst2", b"sentence,label\nA,1\n", ":1: no column 'sentence'"),
    "few fields": ("sst2", b"sentence\tlabel\nA\t1\nB\n", ":3: 1 fields where 2 are expected"),
    "few fields, no header": ("cola", b"s\t1\t\tA\ns\t1\tA\n", ":2: 3 fields where 4"),
    "label": ("sst2", b"sentence\tlabel\nA\t1\nB\t2\n", ":3: label '2' is none of 0, 1"),
    "label's case": ("rte", b"sentence1\tsentence2\tlabel\nA\tB\tEntailment\n", "'Entailment'"),
    "label missing": ("rte", b"sentence1\tsentence2\tlabel\nA\tB\t\n", ":2: label ''"),
    "no agreement": ("rte", b"sentence1\tsentence2\tlabel\nA\tB\t-\n", ":2: label '-'"),
    "not a number": ("stsb", b"sentence1\tsentence2\tscore\nA\tB\thigh\n", ":2: score 'high'"),
    "nan": ("stsb", b"sentence1\tsentence2\tscore\nA\tB\tnan\n", ":2: score 'nan'"),
    "off the scale": ("stsb", b"sentence1\tsentence2\tscore\nA\tB\t5.1\n", "from 0 to 5"),
    "not UTF-8": ("sst2", b"sentence\tlabel\nA\t1\ncaf\xe9\t1\n", ":3: not UTF-8"),
    "UTF-16": ("sst2", "sentence\tlabel\nA\t1\n".encode("utf-16"), ":1: not UTF-8"),
    "an archive": ("sst2", b"PK\x03\x04\x14\0\0\0\x08\0\xed\xbb", ":1: not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_their_line(case, tmp_path):
    name, content, said = BAD[case]
    path = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        data.read_file(TASKS[name], path)
    assert str(error.value).startswith(str(path)) and said in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_places(tmp_path):
    with pytest.raises(UserError, match="SST-2: no such folder"):
        data.read(TASKS["sst2"], tmp_path, "train")
    (tmp_path / "SST-2" / "dev.tsv").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train\.tsv: No such file"):
        data.read(TASKS["sst2"], tmp_path, "train")
    with pytest.raises(UserError, match=r"dev\.tsv: Is a directory"):
        data.read(TASKS["sst2"], tmp_path, "")


def test_rows_are_drawn_the_same_each_time(tmp_path):
    body = "".join(f"text {i}\t{i % 2}\n" for i in range(50))
    rows = data.read_file(TASKS["sst2"], write(tmp_path, "sentence\tlabel\n" + body))
    some, numbers = data.draw(rows, 20), []
    for (text,), label in zip(some.texts, some.labels):
        numbers.append(int(text.split()[1]))
        assert label == numbers[-1] % 2
    assert numbers == sorted(set(numbers)) and len(numbers) == 20 and numbers[-1] > 30
    assert data.draw(rows, 20).texts == some.texts and some.fingerprint == rows.fingerprint
    assert data.draw(rows, None) is rows and data.draw(rows, 99) is rows
