"""SQuAD: windows and labels by hand, decoding by hand, the sample."""

import json
import random
import re
import string
from itertools import pairwise

import numpy as np
import pytest
from tiny import refusal
from tokenizers import BertWordPieceTokenizer

import data
from sample import squad as sample_squad
from support import squad
from support.files import UserError
from support.tokenizer import load_tokenizer

# The vocabulary is single letters, so tokens are easy to count: "abc" is a ##b ##c.
LETTERS = string.ascii_lowercase
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
              *LETTERS, *(f"##{x}" for x in LETTERS), *"0123456789.,-"]

FILES = ("train-v1.1.json", "dev-v1.1.json")
BETWEEN_WORDS = set(string.punctuation + string.whitespace)


def tokenizer_of(words):
    return BertWordPieceTokenizer({word: i for i, word in enumerate(words)})._tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(VOCABULARY)


def ask(context, answer, start=None, question="q", id="1"):
    """Questions of one question."""
    start = context.index(answer) if start is None else start
    return squad.Questions([squad.Question(id, question, context, [answer], [start])])


def encode(questions, tokenizer, max_length=20, doc_stride=4, max_query=8, training=False):
    arrays = squad.encode(questions, tokenizer, max_length, doc_stride, max_query, training)
    return data.SpanFeatures(**arrays, pad=0)


def labelled(questions, features, w):
    """The text that window w's labels point at; None for [CLS]."""
    if features.labels[w].tolist() == [0, 0]:
        return None
    first, last = features.starts[w] + features.labels[w]
    assert last < features.starts[w + 1]
    assert (features.offsets[[first, last]] >= 0).all()
    return squad.copy_text(questions.rows[features.row[w]].context,
                           features.offsets[first, 0], features.offsets[last, 1])


def perfect(features):
    """Logits that point at the labels."""
    logits = [np.zeros((n, 2), dtype=np.float32) for n in features.lengths]
    for w, z in enumerate(logits):
        z[features.labels[w], [0, 1]] = 9
    return logits


# -------------------------------------------------------------------------- files


def official(n=1, **changes):
    """A file of n questions with the same id."""
    qa = {"id": "x", "question": "who?", "answers": [{"text": "Ann", "answer_start": 0}]} | changes
    return {"version": "1.1", "data": [
        {"title": "t", "paragraphs": [{"context": "Ann sat.", "qas": n * [qa]}]}]}


def save(tmp_path, value):
    path = tmp_path / "train-v1.1.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_reads_the_official_layout(tmp_path):
    answers = [{"text": "Ann", "answer_start": 0}, {"text": "sat", "answer_start": 3}]
    questions = squad.read(save(tmp_path, official(answers=answers)))
    assert len(questions) == 1 and len(questions.fingerprint) == 64
    assert questions.rows[0] == ("x", "who?", "Ann sat.", ["Ann", "sat"], [0, 3])
    assert questions.unfound == 1  # "sat" is at 4
    assert questions.rows[0].answer_spans() == [(0, 3)]
    assert questions.take([0, 0]).rows == 2 * questions.rows


AT_QA = ": data[0].paragraphs[0].qas[0]"


@pytest.mark.parametrize("value, message", [
    ({}, ": no 'data' that is a list"),
    ({"data": 3}, ": no 'data' that is a list"),
    ({"data": [7]}, ": data[0]: no 'paragraphs'"),
    ({"data": [{}]}, ": data[0]: no 'paragraphs'"),
    ({"data": [{"paragraphs": [{"qas": []}]}]}, ": data[0].paragraphs[0]: no 'context'"),
    ({"data": []}, ": no questions"),
    ('{"data":\n[}', ":2: broken JSON"),
    (official(question=None), f"{AT_QA}: no 'question' that is a valid text"),
    (official(question="\ud83d"), f"{AT_QA}: no 'question' that is a valid text"),
    (official(answers=[]), f"{AT_QA}: no answer"),
    (official(answers=[{"text": "Ann"}]), f"{AT_QA}.answers[0]: no 'answer_start'"),
    (official(answers=[{"text": "Ann", "answer_start": "0"}]),
     f"{AT_QA}.answers[0]: no 'answer_start' that is a whole number"),
    (official(answers=[{"text": "Ann", "answer_start": -3}]),
     f"{AT_QA}.answers[0]: no 'answer_start' that is a whole number"),
    (official(n=2), ": data[0].paragraphs[0].qas[1]: id 'x' is there twice"),
])
def test_errors_name_file_and_place(tmp_path, value, message):
    path = save(tmp_path, value)
    assert refusal(squad.read, path).startswith(f"{path}{message}")


# ------------------------------------------------------------- windows and labels


def test_one_window_by_hand(tokenizer):
    questions = ask("ab c", "c", question="x y")
    f = data.encode(data.TASKS["squad"], questions, tokenizer, max_length=99, doc_stride=9)
    tokens = ["[CLS]", "x", "y", "[SEP]", "a", "##b", "c", "[SEP]"]
    assert f.ids.tolist() == [VOCABULARY.index(token) for token in tokens]
    assert f.starts.tolist() == [0, 8] and f.first.tolist() == [4] and f.row.tolist() == [0]
    assert f.labels.tolist() == [[6, 6]] and f.labels.dtype == np.int64 and f.pad == 0
    assert f.offsets.tolist() == 4 * [[-1, -1]] + [[0, 1], [1, 2], [3, 4], [-1, -1]]
    assert f.home.tolist() == 4 * [False] + 3 * [True] + [False]
    batch = data.collate(f, np.array([0]))
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[6, 6]]


def test_windows_advance_by_the_stride_and_hold_what_fits(tokenizer):
    context = " ".join(LETTERS[:11])  # 11 tokens
    # room for 9 − 3 − 1 = 5 tokens, stride 3: windows begin at 0, 3 and 6, and 6 + 5 is the end
    f = encode(ask(context, "e f"), tokenizer, 9, 3, 3)
    texts = [context[f.offsets[f.starts[w] + f.first[w]][0] :][:9] for w in range(len(f))]
    assert texts == ["a b c d e", "d e f g h", "g h i j k"]
    assert f.row.tolist() == [0, 0, 0] and f.lengths.tolist() == [9, 9, 9]
    # the first window ends inside "e f" and the third begins after it: both point at [CLS]
    assert f.labels.tolist() == [[0, 0], [4, 5], [0, 0]]


@pytest.mark.parametrize("begins, ends, home", [
    # windows a–e, d–h, g–k. Token 3 (d) has 3 neighbours left and 1 right in the first window, and
    # 0 left in the second; token 4 (e) has 0 right in the first, and 1 left in the second
    ([0, 3, 6], [5, 8, 11], [[1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]),
    # token 2 has 1 neighbour in either window: the first wins
    ([0, 1], [4, 5], [[1, 1, 1, 0], [0, 0, 1, 1]]),
    # a window's token counts 0.01: 85 + 3.0 is more than 86 + 1.8 for token 214, 84 + 3.0 is less
    # than 87 + 1.8 for token 215
    ([0, 128], [300, 308], [215 * [1] + 85 * [0], 87 * [0] + 93 * [1]]),
])
def test_a_token_is_at_home_where_it_has_most_context(begins, ends, home):
    masks = squad.home_tokens(np.array(begins), np.array(ends))
    assert [mask.astype(int).tolist() for mask in masks] == home


def test_questions_are_cut_and_short_lengths_refused(tokenizer):
    f = encode(ask("a b", "b", question="x " * 30), tokenizer, 15)
    assert f.first.tolist() == [10] and f.labels.tolist() == [[11, 11]]
    with pytest.raises(UserError, match=r"--max-length 14 .* --doc-stride 4 .* need 15"):
        encode(ask("a b", "b"), tokenizer, 14)


def test_an_answer_that_occurs_twice_is_labelled_where_it_is_said_to_be(tokenizer):
    f = encode(ask("abc d abc", "abc", start=6), tokenizer)
    assert f.labels.tolist() == [[7, 9]]  # after [CLS] q [SEP] and 4 tokens


def test_training_leaves_out_what_is_not_found(tokenizer):
    lost = ask("ab c", "c", start=0, id="lost").rows[0]
    second = squad.Question("second", "q", "ab c", ["zz", "c"], [0, 3])
    questions = squad.Questions([lost, second])
    f = encode(questions, tokenizer, training=True)
    assert questions.unfound == 2
    assert f.row.tolist() == [1] and labelled(questions, f, 0) == "c"
    f = encode(questions, tokenizer)
    assert f.row.tolist() == [0, 1] and f.labels[0].tolist() == [0, 0]


@pytest.mark.parametrize("context, answer", [
    ("un caf\u00e9 noir", "caf\u00e9"),
    ("un cafe\u0301 noir", "cafe\u0301"),  # the accent as a character of its own
    ("un cafe\u0301", "cafe\u0301"),
    ("cafe\u0301 noir", "noir"),
    ("so \u2764\ufe0f much", "\u2764\ufe0f"),  # a heart and its variation selector
    ("a \U0001f469\u200d\U0001f467 b", "\U0001f469\u200d\U0001f467"),  # two joined faces
    ("x\u00a0b\u00a0c", "b"), ("x\u00a0b\u00a0c", "b\u00a0c"),  # non-breaking spaces
    ("\u200bab cd", "cd"), ("\u0130stanbul ab", "ab"), ("\ufb01ne ab", "ab"),
    ("\u6771\u4eac\u90fd", "\u4eac"), ("ab\tcd\r\nef", "cd"), ("about 1.5-2 km", "1.5-2"),
])
def test_unicode_answers_come_back_to_the_character(tokenizer, context, answer):
    questions = ask(context, answer)
    f = encode(questions, tokenizer, 40, training=True)
    assert labelled(questions, f, 0) == answer
    predictions, _ = squad.decode(questions, f, perfect(f))
    assert predictions == {"1": answer}


def test_an_answer_inside_a_token_gets_the_token():
    tokenizer = tokenizer_of([*VOCABULARY, "in", "1973"])
    questions = ask("in 1973", "97")
    assert labelled(questions, encode(questions, tokenizer), 0) == "1973"


def test_windows_equal_the_tokenizers_own_overflow(tokenizer):
    """The library's "stride" is the overlap of two windows: the room less our stride."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        context = " ".join(rng.choice(list(LETTERS), rng.integers(1, 60)))
        words = rng.choice(list(LETTERS), rng.integers(1, 9)).tolist()
        n, stride = int(rng.integers(20, 40)), int(rng.integers(1, 9))
        f = encode(ask(context, context[0], question=" ".join(words)), tokenizer, n, stride)
        overlap = n - 3 - len(words) - stride
        tokenizer.enable_truncation(n, stride=overlap, strategy="only_second")
        expected = tokenizer.encode(" ".join(words), context)
        tokenizer.no_truncation()
        assert [f.ids[a:b].tolist() for a, b in pairwise(f.starts)] == [
            part.ids for part in [expected, *expected.overflowing]]


def check_windows(questions, tokenizer, *lengths):
    """Every window is its part of the context; → (windows with their answer, exact texts)."""
    f = encode(questions, tokenizer, *lengths, training=True)
    assert f.lengths.max() <= lengths[0] and (np.diff(f.row) >= 0).all()
    assert set(f.row) == set(range(len(questions)))
    with_answer = exact = 0
    for w in range(len(f)):
        text = labelled(questions, f, w)
        if text is not None:
            q = questions.rows[f.row[w]]
            answer, start = q.answers[0], q.starts[0]
            assert answer in text
            # some real answers begin or end inside a word ("20" of "£20") and get all of it
            edges = [q.context[x - 1 : x + 1] for x in (start, start + len(answer))]
            assert text == answer or any(
                len(edge) == 2 and not set(edge) & BETWEEN_WORDS for edge in edges)
            with_answer += 1
            exact += text == answer
    # each token of the context is at home in one window
    tokens = [len(tokenizer.encode(q.context, add_special_tokens=False)) for q in questions.rows]
    at_home = np.add.reduceat(f.home, f.starts[:-1], dtype=int)  # (windows,)
    assert np.bincount(f.row, at_home).tolist() == tokens
    return with_answer, exact


# ------------------------------------------------------------------------ decoding


def flat(n):
    """Logits of 0 for [CLS] q [SEP], n tokens of the context, [SEP]."""
    return np.zeros((n + 4, 2))


def test_n_best_by_hand(tokenizer):
    questions = ask("a b c", "b")
    f = encode(questions, tokenizer)
    z = flat(3)
    z[:3] = z[-1] = 100  # [CLS], the question and [SEP] are never answers
    z[3:6, 0] = [1, 3, 0]
    z[3:6, 1] = [0, 2, 4]
    # sums: a 1, a b 3, a b c 5, b 5, b c 7, c 4
    predictions, nbest = squad.decode(questions, f, [z], n_best=4)
    assert predictions == {"1": "b c"}
    assert [x["text"] for x in nbest["1"]] == ["b c", "a b c", "b", "c"]  # of a tie, the earlier
    assert [x["start_logit"] for x in nbest["1"]] == [3, 1, 3, 0]
    assert [x["end_logit"] for x in nbest["1"]] == [4, 4, 2, 4]
    e = np.exp([7, 5, 5, 4])
    assert [x["probability"] for x in nbest["1"]] == pytest.approx((e / e.sum()).tolist())
    assert len(squad.decode(questions, f, [z], n_best=20)[1]["1"]) == 6
    ties = squad.decode(questions, f, [flat(3)], n_best=2)[1]["1"]
    assert [x["text"] for x in ties] == ["a", "a b"]


def test_a_span_counts_in_the_window_where_its_first_token_has_most_context(tokenizer):
    context = " ".join(LETTERS[:11])
    questions = ask(context, "e")
    f = encode(questions, tokenizer, 9, 3, 3)  # a–e, d–h, g–k
    logits = [flat(5), flat(5), flat(5)]
    logits[0][3 + 4, 0] = 9  # e, whose home is the second window
    logits[1][3 + 2] = 2  # f
    logits[2][3 + 4] = 1  # k
    predictions, nbest = squad.decode(questions, f, logits, n_best=99)
    assert predictions == {"1": "f"}
    assert [x["start_logit"] for x in nbest["1"] if x["text"] == "e"] == [0]
    # only the first token has to be at home: d e, in the first window
    logits[0][3 + 3, 0] = logits[0][3 + 4, 1] = 9
    assert squad.decode(questions, f, logits)[0] == {"1": "d e"}


def test_decoding_against_every_span(tokenizer):
    """Random logits: the n best of all allowed spans, listed one by one."""
    rng = np.random.default_rng(1)
    context = " ".join(rng.choice(list(LETTERS), 23))
    questions = ask(context, context[0])
    f = encode(questions, tokenizer, 12, 3, 3)
    logits = [rng.normal(size=(n, 2)).astype(np.float32) for n in f.lengths]
    spans = []
    for start, z in zip(f.starts, logits):
        for i in range(len(z)):
            for j in range(i, min(len(z), i + 3)):
                if f.home[start + i] and f.offsets[start + j, 0] >= 0:
                    text = context[f.offsets[start + i, 0] : f.offsets[start + j, 1]]
                    spans.append((float(z[i, 0]) + float(z[j, 1]), text))
    _, nbest = squad.decode(questions, f, logits, n_best=7, max_answer=3)
    assert [x["text"] for x in nbest["1"]] == [text for _, text in sorted(spans)[:-8:-1]]
    assert sum(x["probability"] for x in nbest["1"]) == pytest.approx(1)


def test_a_context_without_tokens_is_answered_by_nothing(tokenizer, tmp_path):
    questions = ask(" \u00a0", " ")
    assert questions.unfound == 1
    f = encode(questions, tokenizer)
    predictions, nbest = squad.decode(questions, f, perfect(f))
    assert (predictions, nbest) == ({"1": ""}, {"1": []})
    squad.write(tmp_path, {"1": "caf\u00e9"}, nbest)
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"1": "caf\u00e9"}
    assert json.loads((tmp_path / "nbest_predictions.json").read_text()) == {"1": []}


# -------------------------------------------------------------------- sample, real rows


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad")
    for part, n in (("train", 800), ("dev", 400)):
        (folder / f"{part}-v1.1.json").write_text(json.dumps(sample_squad.squad_json(part, n)))
    return folder


def test_sample_is_exact_and_its_parts_are_apart(sample, tokenizer):
    train, dev = (squad.read(sample / name) for name in FILES)
    assert (len(train), len(dev)) == (800, 400)
    assert train.unfound == dev.unfound == 0
    assert not {q.context for q in train.rows} & {q.context for q in dev.rows}
    assert all(len(q.answers) == 1 for q in train.rows)
    assert any(len(q.answers) == 2 for q in dev.rows)
    assert all(q.question.endswith(" ?") and "{" not in q.question for q in train.rows)
    assert json.loads((sample / FILES[1]).read_text()) == sample_squad.squad_json("dev", 400)
    # every letter is a token here, so there are many windows, and many end inside an answer
    with_answer, exact = check_windows(train.take(range(60)), tokenizer, 120, 24, 80)
    assert exact == with_answer > 60


def test_sample_needs_more_than_the_likest_sentence(sample):
    """The sentence that shares most words with the question (the first, of several) is not always
    the one with the answer. Each sentence ends in " ."."""
    dev = squad.read(sample / "dev-v1.1.json")
    right = 0
    for q in dev.rows:
        ends = [m.end() for m in re.finditer(r" \.", q.context)]
        spans = list(zip([0, *ends], ends))
        asked = set(q.question.split())
        a, b = max(spans, key=lambda s: len(asked & set(q.context[s[0] : s[1]].split())))
        right += a <= q.starts[0] < b
    assert 0.2 < right / len(dev) < 0.85


def test_pretraining_passages_are_neither_train_nor_dev(sample):
    rng = random.Random(0)
    texts = [sample_squad.document(rng) for _ in range(300)]
    known = {q.context for name in FILES for q in squad.read(sample / name).rows}
    assert len(set(texts)) == 300
    assert not any(context in text for text in texts for context in known)


@pytest.mark.parametrize("name", FILES)
def test_real_answers_come_back(name, real_data, real_model):
    tokenizer = load_tokenizer(real_model)
    questions = squad.read(real_data / "SQuAD" / name).take(range(0, 10_000, 8))
    assert questions.unfound == 0
    with_answer, exact = check_windows(questions, tokenizer, 384, 128, 64)
    assert with_answer >= len(questions) and exact >= 0.98 * with_answer
    f = data.encode(data.TASKS["squad"], questions, tokenizer, 384)
    predictions, _ = squad.decode(questions, f, perfect(f))
    assert squad.metrics(predictions, questions)["exact_match"] > 98
