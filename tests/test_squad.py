"""SQuAD: windows and labels by hand, decoding by hand, the sample."""

import json
import random
import re
import string
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer

import data
from sample import squad as sample_squad
from support import squad
from support.files import UserError

# A vocabulary of single letters: "abc" is the tokens a ##b ##c, and every text can be counted.
LETTERS = string.ascii_lowercase
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
              *LETTERS, *(f"##{x}" for x in LETTERS), *"0123456789.,-"]

FILES = ("train-v1.1.json", "dev-v1.1.json")
BETWEEN_WORDS = set(string.punctuation + string.whitespace)


@pytest.fixture(scope="module")
def tokenizer():
    return BertWordPieceTokenizer({t: i for i, t in enumerate(VOCABULARY)})._tokenizer


def ask(context, answer, start=None, question="q", id="1", more=()):
    """Questions of one question."""
    start = context.index(answer) if start is None else start
    answers = [answer, *more]
    return squad.Questions([squad.Question(id, question, context, answers, [start] * len(answers))])


def labelled(questions, features, w):
    """The text that window w's labels point at; None for [CLS]."""
    first, last = features.labels[w]
    if first == 0:
        assert last == 0
        return None
    first, last = features.starts[w] + features.labels[w]
    assert last < features.starts[w + 1]
    assert (features.offsets[[first, last]] >= 0).all()
    return squad.cut_out(questions.rows[features.row[w]].context,
                         features.offsets[first, 0], features.offsets[last, 1])


def perfect(features):
    """Logits that point at the labels."""
    logits = [np.zeros((n, 2), dtype=np.float32) for n in features.lengths]
    for w, z in enumerate(logits):
        z[features.labels[w], [0, 1]] = 9
    return logits


# -------------------------------------------------------------------------- files


def official(**changes):
    qa = {"id": "x", "question": "who?", "answers": [{"text": "Ann", "answer_start": 0}]} | changes
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [
        {"context": "Ann sat.", "qas": [qa]}]}]}


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
    assert questions.rows[0].found() == [(0, 3)]
    assert questions.take([0, 0]).rows == 2 * questions.rows


AT_QA = "data[0].paragraphs[0].qas[0]"


@pytest.mark.parametrize("value, message", [
    ({}, "no 'data'"),
    ({"data": 3}, "'data' is not a list"),
    ({"data": [7]}, "data[0]: not an object"),
    ({"data": [{}]}, "data[0]: no 'paragraphs'"),
    ({"data": [{"paragraphs": [{"qas": []}]}]}, "data[0].paragraphs[0]: no 'context'"),
    ({"data": []}, "no questions"),
    (official(question=None), f"{AT_QA}: 'question' is not a text"),
    (official(answers=[]), f"{AT_QA}: no answer"),
    (official(answers=[{"text": "Ann"}]), f"{AT_QA}.answers[0]: no 'answer_start'"),
    (official(answers=[{"text": "Ann", "answer_start": "0"}]), "'answer_start' is not a whole"),
    (official(answers=[{"text": "Ann", "answer_start": -3}]), "'answer_start' is negative"),
    (official(question="\ud83d"), f"{AT_QA}: 'question' is not valid Unicode"),
])
def test_structural_errors_name_file_and_place(tmp_path, value, message):
    path = save(tmp_path, value)
    with pytest.raises(UserError) as error:
        squad.read(path)
    assert str(error.value).startswith(f"{path}: {message}") or (
        str(error.value).startswith(f"{path}: ") and message in str(error.value))


def test_broken_json_names_the_line_and_ids_are_unique(tmp_path):
    with pytest.raises(UserError, match=r"train-v1.1.json:2: "):
        squad.read(save(tmp_path, '{"data":\n[}'))
    value = official()
    value["data"].append(value["data"][0])
    with pytest.raises(UserError, match=r"data\[1\].paragraphs\[0\].qas\[0\]: id 'x' .* twice"):
        squad.read(save(tmp_path, value))


# ------------------------------------------------------------- windows and labels


def test_one_window_by_hand(tokenizer):
    questions = ask("ab c", "c", question="x y")
    f = squad.encode(questions, tokenizer, 20, 4, 8)
    cls, sep, pad = (VOCABULARY.index(t) for t in ("[CLS]", "[SEP]", "[PAD]"))
    expected = [cls, *map(VOCABULARY.index, "xy"), sep,
                *map(VOCABULARY.index, ("a", "##b", "c")), sep]
    assert f.ids.tolist() == expected and f.starts.tolist() == [0, 8]
    assert f.first.tolist() == [4] and f.labels.tolist() == [[6, 6]] and f.pad == pad
    assert f.labels.dtype == np.int64
    assert f.offsets.tolist() == 4 * [[-1, -1]] + [[0, 1], [1, 2], [3, 4], [-1, -1]]
    assert f.home.tolist() == 4 * [False] + 3 * [True] + [False]
    batch = data.collate(f, np.array([0]))
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[6, 6]]


def test_windows_advance_by_the_stride_and_hold_what_fits(tokenizer):
    context = " ".join(LETTERS[:11])  # 11 tokens
    # room: 9 − 3 − 1 = 5 tokens, stride 3: windows at 0, 3, 6, and 6 + 5 reaches the end
    f = squad.encode(ask(context, "e f"), tokenizer, 9, 3, 3)
    texts = [context[f.offsets[f.starts[w] + f.first[w]][0]:][: 9] for w in range(len(f))]
    assert texts == ["a b c d e", "d e f g h", "g h i j k"]
    assert f.row.tolist() == [0, 0, 0] and f.lengths.tolist() == [9, 9, 9]
    # "e f" is cut by the end of the first window and absent from the third: both point at [CLS]
    assert f.labels.tolist() == [[0, 0], [4, 5], [0, 0]]


def test_a_token_is_at_home_where_it_has_most_context():
    # windows a–e, d–h, g–k of 11 tokens. Token 3 (d) has 3 left, 1 right in the first window and
    # 0 left in the second; token 4 (e) 0 right in the first, 1 left in the second.
    a, b, c = squad.home_tokens(np.array([0, 3, 6]), np.array([5, 5, 5]))
    assert a.tolist() == [True, True, True, True, False]
    assert b.tolist() == [False, True, True, True, False]
    assert c.tolist() == [False, True, True, True, True]
    # equal context, 1 and 1 of token 2: the first
    a, b = squad.home_tokens(np.array([0, 1]), np.array([4, 4]))
    assert a.tolist() == [True, True, True, False] and b.tolist() == [False, False, True, True]
    # a token of length counts 0.01: 85 + 3.0 against 86 + 1.8 at token 214, 84 against 87 at 215
    a, b = squad.home_tokens(np.array([0, 128]), np.array([300, 180]))
    assert a.tolist() == 215 * [True] + 85 * [False]
    assert b.tolist() == 87 * [False] + 93 * [True]


def test_questions_are_cut_and_short_lengths_refused(tokenizer):
    f = squad.encode(ask("a b", "b", question="x " * 30), tokenizer, 20, 4, 8)
    assert f.first.tolist() == [10] and f.labels.tolist() == [[11, 11]]
    with pytest.raises(UserError, match=r"--max-length 14 .* --doc-stride 4 .* need 15"):
        squad.encode(ask("a b", "b"), tokenizer, 14, 4, 8)
    squad.encode(ask("a b", "b"), tokenizer, 15, 4, 8)


def test_an_answer_that_occurs_twice_is_labelled_where_it_is_said_to_be(tokenizer):
    questions = ask("abc d abc", "abc", start=6)
    f = squad.encode(questions, tokenizer, 20, 4, 8)
    assert f.labels.tolist() == [[7, 9]]  # [CLS] q [SEP], then 3 + 1 tokens before it


def test_training_leaves_out_what_is_not_found(tokenizer):
    lost = ask("ab c", "c", start=0, id="lost").rows[0]
    second = squad.Question("second", "q", "ab c", ["zz", "c"], [0, 3])
    questions = squad.Questions([lost, second])
    f = squad.encode(questions, tokenizer, 20, 4, 8, training=True)
    assert questions.unfound == 2
    assert f.row.tolist() == [1] and labelled(questions, f, 0) == "c"
    f = squad.encode(questions, tokenizer, 20, 4, 8)
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
    f = squad.encode(questions, tokenizer, 40, 4, 8, training=True)
    assert labelled(questions, f, 0) == answer
    predictions, _ = squad.decode(questions, f, perfect(f))
    assert predictions == {"1": answer}


def test_an_answer_inside_a_token_gets_the_token():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "q", "in", "1973"]
    tokenizer = BertWordPieceTokenizer({t: i for i, t in enumerate(words)})._tokenizer
    questions = ask("in 1973", "97")
    f = squad.encode(questions, tokenizer, 20, 4, 8)
    assert labelled(questions, f, 0) == "1973"


def test_windows_agree_with_the_tokenizers_own_overflow(tokenizer):
    """There "stride" is the overlap of two windows: what is left of the room after a step."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        context = " ".join(rng.choice(list(LETTERS), rng.integers(1, 60)))
        question = " ".join(rng.choice(list(LETTERS), rng.integers(1, 9)))
        n, stride = int(rng.integers(20, 40)), int(rng.integers(1, 9))
        f = squad.encode(ask(context, context[0], question=question), tokenizer, n, stride, 8)
        room = n - 3 - len(question.split()[:8])
        question = " ".join(question.split()[:8])
        tokenizer.enable_truncation(n, stride=room - stride, strategy="only_second")
        e = tokenizer.encode(question, context)
        tokenizer.no_truncation()
        theirs = [part.ids for part in [e, *e.overflowing]]
        assert [f.ids[a:b].tolist() for a, b in pairwise(f.starts)] == theirs


def check_windows(questions, tokenizer, max_length, stride, max_query):
    """Every window is its part of the context; → (windows with their answer, exact texts)."""
    f = squad.encode(questions, tokenizer, max_length, stride, max_query, training=True)
    assert f.lengths.max() <= max_length and (np.diff(f.row) >= 0).all()
    assert set(f.row) == set(range(len(questions)))
    with_answer = exact = 0
    for w in range(len(f)):
        text = labelled(questions, f, w)
        if text is not None:
            q = questions.rows[f.row[w]]
            answer, a = q.answers[0], q.starts[0]
            b = a + len(answer)
            assert answer in text
            # some real answers begin or end inside a word ("20" of "£20"), and get more of it
            edges = [x for x in (q.context[a - 1 : a + 1], q.context[b - 1 : b + 1]) if len(x) == 2]
            assert text == answer or any(not set(x) & BETWEEN_WORDS for x in edges)
            with_answer += 1
            exact += text == answer
    # each context token is at home in one window
    tokens = [len(tokenizer.encode(q.context, add_special_tokens=False)) for q in questions.rows]
    at_home = np.add.reduceat(f.home, f.starts[:-1], dtype=int)  # of each window
    assert np.bincount(f.row, at_home).tolist() == tokens
    return with_answer, exact


# ------------------------------------------------------------------------ decoding


def flat(n):
    """Equally bad logits for [CLS] q [SEP], n context tokens, [SEP]; to be set by hand."""
    return np.zeros((n + 4, 2))


def test_n_best_by_hand(tokenizer):
    questions = ask("a b c", "b")
    f = squad.encode(questions, tokenizer, 20, 4, 8)
    z = flat(3)
    z[:3] = z[-1] = 100  # [CLS], the question and [SEP] are no answers, however high
    z[3:6, 0] = [1, 3, 0]
    z[3:6, 1] = [0, 2, 4]
    # sums: a 1, a b 3, a b c 5, b 5, b c 7, c 4; b a and the like are none
    predictions, nbest = squad.decode(questions, f, [z], n_best=4)
    assert predictions == {"1": "b c"}
    assert [x["text"] for x in nbest["1"]] == ["b c", "a b c", "b", "c"]  # the tie: earlier first
    assert [x["start_logit"] for x in nbest["1"]] == [3, 1, 3, 0]
    assert [x["end_logit"] for x in nbest["1"]] == [4, 4, 2, 4]
    e = np.exp([7, 5, 5, 4])
    assert [x["probability"] for x in nbest["1"]] == pytest.approx((e / e.sum()).tolist())
    everything = squad.decode(questions, f, [z], n_best=20)[1]["1"]
    assert len(everything) == 6
    json.dumps(everything)
    ties = squad.decode(questions, f, [flat(3)], n_best=2)[1]["1"]
    assert [x["text"] for x in ties] == ["a", "a b"]


def test_the_longest_answer(tokenizer):
    questions = ask("a b c d", "b")
    f = squad.encode(questions, tokenizer, 20, 4, 8)
    z = flat(4)
    z[3, 0] = z[6, 1] = 5  # "a b c d" would be best
    z[4, 1] = 1
    for longest, text in ((4, "a b c d"), (3, "a b"), (1, "a")):
        assert squad.decode(questions, f, [z], max_answer=longest)[0] == {"1": text}


def test_a_span_counts_in_the_window_where_its_first_token_has_most_context(tokenizer):
    context = " ".join(LETTERS[:11])
    questions = ask(context, "e")
    f = squad.encode(questions, tokenizer, 9, 3, 3)  # a–e, d–h, g–k
    logits = [flat(5), flat(5), flat(5)]
    logits[0][3 + 4, 0] = 9  # e, which is at home in the second window
    logits[1][3 + 2] = 2  # f
    logits[2][3 + 4] = 1  # k
    predictions, nbest = squad.decode(questions, f, logits, n_best=99)
    assert predictions == {"1": "f"}
    assert [x["start_logit"] for x in nbest["1"] if x["text"] == "e"] == [0]
    # a span may end outside its first token's home: d e in the first window
    logits[0][3 + 3, 0] = logits[0][3 + 4, 1] = 9
    assert squad.decode(questions, f, logits)[0] == {"1": "d e"}


def test_decoding_against_every_span(tokenizer):
    """Random logits: the n best of all allowed spans, listed one by one."""
    rng = np.random.default_rng(1)
    context = " ".join(rng.choice(list(LETTERS), 23))
    questions = ask(context, context[0])
    f = squad.encode(questions, tokenizer, 12, 3, 3)
    logits = [rng.normal(size=(n, 2)).astype(np.float32) for n in f.lengths]
    spans = []
    for w, z in enumerate(logits):
        a = f.starts[w]
        for i in range(len(z)):
            for j in range(i, min(len(z), i + 3)):
                if f.home[a + i] and f.offsets[a + j, 0] >= 0:
                    spans.append((float(z[i, 0]) + float(z[j, 1]),
                                  context[f.offsets[a + i, 0] : f.offsets[a + j, 1]]))
    _, nbest = squad.decode(questions, f, logits, n_best=7, max_answer=3)
    assert [x["text"] for x in nbest["1"]] == [text for _, text in sorted(spans)[: -8 : -1]]
    assert sum(x["probability"] for x in nbest["1"]) == pytest.approx(1)


def test_a_context_without_tokens_is_answered_by_nothing(tokenizer, tmp_path):
    questions = ask(" \u00a0", " ")
    assert questions.unfound == 1
    f = squad.encode(questions, tokenizer, 20, 4, 8)
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
        save_as = folder / f"{part}-v1.1.json"
        save_as.write_text(json.dumps(sample_squad.squad_json(part, n)))
    return folder


def test_sample_is_exact_and_its_parts_are_apart(sample, tokenizer):
    train, dev = (squad.read(sample / name) for name in FILES)
    assert (len(train), len(dev)) == (800, 400)
    assert train.unfound == dev.unfound == 0
    assert not {q.context for q in train.rows} & {q.context for q in dev.rows}
    assert all(len(q.answers) == 1 for q in train.rows)
    assert any(len(q.answers) == 2 for q in dev.rows)
    assert all(q.question.endswith(" ?") and "{" not in q.question for q in train.rows)
    again = sample_squad.squad_json("dev", 400)
    assert json.loads((sample / "dev-v1.1.json").read_text()) == again
    # every letter is a token here, so that windows are many and cut many answers
    with_answer, exact = check_windows(train.take(range(60)), tokenizer, 120, 24, 80)
    assert exact == with_answer > 60


def test_sample_needs_more_than_the_likest_sentence(sample):
    """Were the sentence with most of the question's words always the right one, reading it would
    be enough. Each sentence ends in " ."; of equals, the first."""
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


def test_real_rows_come_back_exactly(real_data, real_model):
    tokenizer = data.load_tokenizer(real_model)
    for name in FILES:
        questions = squad.read(real_data / "SQuAD" / name).take(range(0, 10_000, 8))
        with_answer, exact = check_windows(questions, tokenizer, 384, 128, 64)
        assert with_answer >= len(questions) and exact >= 0.98 * with_answer
        assert questions.unfound == 0


def test_real_dev_rows_from_text_to_answer(real_data, real_model):
    questions = squad.read(real_data / "SQuAD" / "dev-v1.1.json")
    assert len(questions) == 10_570
    questions = questions.take(range(0, len(questions), 5))
    f = squad.encode(questions, data.load_tokenizer(real_model))
    assert len(f) > len(questions)
    predictions, _ = squad.decode(questions, f, perfect(f))
    assert squad.metrics(predictions, questions)["exact_match"] > 98
