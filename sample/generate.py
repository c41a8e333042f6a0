"""Sample data in the official layouts, and text to pretrain on, generated without any network.

MNLI is made in nli.py, SQuAD in squad.py, and the others here:
SST-2: the label is the polarity of the main clause (the one after "but", not the one after
"although" or "despite"). Each negation, unmet wish ("could have been") or failed comparison ("not
as … as") reverses a word's polarity.
QQP: two questions are duplicates if they mean the same (type of question, arguments up to synonyms,
and their roles).
"""

import itertools
import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sample import lexicon, nli, squad
from sample.lexicon import GENRES_MATCHED, GENRES_MISMATCHED, LEXICON, TABLES, choose, split_of
from support.files import UserError, cache_path, cached, write_atomically, write_json

VERSION = 1  # raise it when the generated text changes, so that no cache is out of date
SIZES = {  # rows of each file; the folders are the official ones
    "MNLI": {"train": 36_000, "dev_matched": 1_500, "dev_mismatched": 1_500},
    "QQP": {"train": 36_000, "dev": 1_500},
    "SST-2": {"train": 36_000, "dev": 1_500},
    "SQuAD": {"train": 6_000, "dev": 1_000},  # questions
}

# ----------------------------------------------------------------------------- SST-2

REVIEWS = TABLES["reviews"]
GOOD, BAD, ASPECTS = (REVIEWS[kind].split() for kind in ("good", "bad", "aspects"))


def clause(rng: random.Random, good: bool) -> str:
    """A clause of that polarity; many mention the opposite one."""
    if rng.random() < 0.05:
        return choose(rng, ("i do not think that ", "it is false that ")) + clause(rng, not good)
    same, opposite = (GOOD, BAD) if good else (BAD, GOOD)
    forms = REVIEWS["straight"] if rng.random() < 0.68 else (
        REVIEWS["flipped"] + ([] if good else REVIEWS["unmet"]))
    n, m = rng.sample(ASPECTS, 2)
    a, b, x = (choose(rng, words) for words in (same, opposite, GOOD + BAD))
    return choose(rng, forms).format(n=n, m=m, a=a, b=b, x=x)


def review(rng: random.Random, good: bool) -> tuple[str]:
    """A sentence whose main clause has that polarity."""
    main, other = clause(rng, good), clause(rng, good != (rng.random() < 0.6))
    aside = f"the {choose(rng, GOOD + BAD)} {choose(rng, ASPECTS)}"
    form = choose(rng, REVIEWS["joined"]) if rng.random() < 0.5 else "{m}"
    return (lexicon.fix_articles(form.format(m=main, o=other, a=aside)) + " .",)


def phrase(rng: random.Random, good: bool) -> tuple[str]:
    """A training row: half of them are a single clause, as SST-2 trains on phrases too."""
    if rng.random() < 0.5:
        return review(rng, good)
    return (lexicon.fix_articles(clause(rng, good)),)


# ------------------------------------------------------------------------------- QQP

# what a question mentions (see language.toml) → slot; aj and bj are the adjectives of a and b
ARGUMENTS = {"p": "who", "q": "who", "m": "meet", "v": "act", "a": "what", "b": "what",
             "l": "place", "t": "time", "aj": "what_adj", "bj": "what_adj"}


def question(rng: random.Random, kind: str, arguments: dict[str, str | None]) -> str:
    """Word a question of this kind in one of several ways."""
    words = arguments | {"l": lexicon.locate(arguments["l"])}
    words |= {x: f"the {arguments[x]}" for x in "pq"}
    words |= {x: f"a {arguments[x + 'j'] or ''} {arguments[x]}" for x in "ab"}
    words |= {verb + end: lexicon.inflect(arguments[verb], end)
              for verb in "mv" for end in ("ed", "en")}
    if kind.endswith("~") and rng.random() < 0.5:
        words["a"], words["b"] = words["b"], words["a"]
    text = choose(rng, kind.strip("~").split("|")).format(**words) + " ?"
    return lexicon.fix_articles(" ".join(text.split()))


def question_pair(rng: random.Random, genre: str, same: bool) -> tuple[str, str]:
    """Two questions that mean the same, or that differ in one thing."""
    meanings = {x: LEXICON[genre][slot] for x, slot in ARGUMENTS.items()}

    def repetitive(words) -> bool:
        """Is something compared with itself, or does somebody meet themselves?"""
        return any(meanings[x][words[x]] == meanings[y][words[y]] for x, y in ("ab", "pq"))

    kinds = choose(rng, TABLES["questions"]["families"])
    kind = kind2 = choose(rng, kinds)
    words = {x: choose(rng, meanings[x]) for x in ARGUMENTS}
    if repetitive(words):
        return question_pair(rng, genre, same)
    words |= {x: None for x in ("aj", "bj") if rng.random() < 0.5}
    used = [x for x in ARGUMENTS if words[x] and "{" + x[0] in kind]
    words2 = words | {x: choose(rng, meanings[x][words[x]].names)
                      for x in used if rng.random() < 0.4}
    one, two = "ab" if "{b}" in kind else "pq"
    ordered = "{" + two in kind and not kind.endswith("~")
    change = choose(rng, ("kind", "kind", "kind", "word", "word") + ("swap",) * ordered)
    change = None if same else change
    if change == "kind":
        kind2 = choose(rng, [other for other in kinds if other != kind])
    elif change == "swap":
        for x, y in ((one, two), (one + "j", two + "j")):
            words2[x], words2[y] = words2.get(y), words2.get(x)
    elif change == "word":
        x = choose(rng, used)
        meaning = meanings[x][words[x]]
        words2[x] = choose(rng, [w for w in meanings[x] if meanings[x][w] != meaning])
        if x in (one, two) and repetitive(words2):
            return question_pair(rng, genre, same)
    return question(rng, kind, words), question(rng, kind2, words2)


# ------------------------------------------------------------------ pretraining text

FACTS = {"who": "noun", "what": "noun", "go": "verb", "act": "verb", "place": "place",
         "who_adj": "adjective", "what_adj": "adjective", "time": "time"}
# a genre's own words more often than those that all genres share
FACT_SLOTS = ("who", "what", "go", "act", "place") * 3 + ("who_adj", "what_adj", "time")


def facts(rng: random.Random, genre: str) -> str:
    """One to three sentences on what a word means."""
    slot = choose(rng, FACT_SLOTS)
    words = LEXICON[genre][slot]
    meaning = words[choose(rng, words)]
    word = choose(rng, meaning.names)
    options = {
        "w": [word], "n": [name for name in meaning.names if name != word],
        "u": [name for kind in meaning.hypernyms[1:] for name in words[kind].names],
        "o": sorted(other for other, its in words.items() if lexicon.opposed(its, meaning) or (
            slot == "place" and not lexicon.overlap(its, meaning)))}
    chosen = {letter: choose(rng, names) for letter, names in options.items() if names}
    forms = {letter + end: lexicon.inflect(name, end) if end else name
             for letter, name in chosen.items() for end in ("", "s", "ed", "en", "ing")}
    known = [fact for fact in TABLES["facts"][FACTS[slot]]
             if set(re.findall(r"{(\w)", fact)) <= set(chosen)]
    if not known:
        return facts(rng, genre)
    told = rng.sample(known, min(len(known), choose(rng, (1, 2, 3))))
    return lexicon.fix_articles(" ".join(told).format(**forms))


def random_document(rng: random.Random) -> tuple[str, ...] | None:
    """Facts, an inference, a passage, a review or two questions, as one text or two.

    None if there is no inference, or if the first of two texts belongs to another split.
    """
    genre, dice = choose(rng, GENRES_MATCHED + GENRES_MISMATCHED), rng.random()
    positive = rng.random() < 0.5
    if dice < 0.3:
        return (facts(rng, genre),)
    if dice < 0.75:
        (first, second), label, _ = nli.random_pair(rng, genre, "text") or (("", ""), None, None)
        if not label:
            return None
        second = f"{choose(rng, TABLES['links'][label])} {second}"
    elif dice < 0.8:
        return (squad.document(rng),)
    elif dice < 0.9:
        first, second = *review(rng, positive), f"it is {'good' if positive else 'bad'} ."
    else:
        first, second = question_pair(rng, genre, positive)
        second = f"{'in other words' if positive else 'another question is'} , {second}"
    return (first, second) if split_of(first) == "text" else None


def pretraining_documents(n: int) -> Iterator[tuple[str, ...]]:
    """n documents, none of them an evaluation row or the first text of one."""
    documents = map(random_document, itertools.repeat(random.Random("pretraining text")))
    return itertools.islice(filter(None, documents), n)


# ----------------------------------------------------------------------------- files


def two_way_rows(n: int, split: str, name: str, make) -> Iterator[tuple]:
    """n different rows (text, …, label), labels 0 and 1 in turn; `make(rng, label)` → texts."""
    rng, seen = random.Random(f"{name} {split}"), set()
    while len(seen) < n:
        label = len(seen) % 2
        texts = make(rng, bool(label))
        if split_of(texts[0]) == split and texts not in seen and len(set(texts)) == len(texts):
            seen.add(texts)
            yield *texts, label


def mnli_table(name: str, n: int) -> Iterator[tuple]:
    """The official columns; the parses are left empty, and all annotators agree."""
    split, votes = name.split("_")[0], 1 if name == "train" else 5
    genres = GENRES_MISMATCHED if name == "dev_mismatched" else GENRES_MATCHED
    yield ("index", "promptID", "pairID", "genre", "sentence1_binary_parse",
           "sentence2_binary_parse", "sentence1_parse", "sentence2_parse", "sentence1", "sentence2",
           *(f"label{i + 1}" for i in range(votes)), "gold_label")
    for i, (genre, *pair, label) in enumerate(nli.mnli_rows(n, genres, split)):
        yield (i, i, i, genre, *[""] * 4, *pair, *[label] * (votes + 1))


def qqp_table(split: str, n: int) -> Iterator[tuple]:
    yield ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
    rows = two_way_rows(n, split, "question_pair", lambda rng, same: question_pair(
        rng, choose(rng, GENRES_MATCHED), same))
    for i, row in enumerate(rows):
        yield (i, 2 * i, 2 * i + 1, *row)


def sst2_table(split: str, n: int) -> Iterator[tuple]:
    name, make = ("phrase", phrase) if split == "train" else ("review", review)
    yield ("sentence", "label")
    yield from two_way_rows(n, split, name, make)


TABLES_OF = {"MNLI": mnli_table, "QQP": qqp_table, "SST-2": sst2_table}


def write_task(task_folder: str, folder: Path) -> None:
    """Write all files of a task to folder/task_folder."""
    for name, n in SIZES[task_folder].items():
        path = folder / task_folder / name
        if task_folder == "SQuAD":
            write_json(f"{path}-v1.1.json", squad.squad_json(name, n))
        else:
            rows = TABLES_OF[task_folder](name, n)
            lines = ("\t".join(map(str, row)) + "\n" for row in rows)
            write_atomically(f"{path}.tsv", "".join(lines))


def cache_entry(task_folder: str) -> tuple[str, str]:
    """Name and key of a task in the cache. UserError if no sample of it can be generated."""
    if task_folder not in SIZES:
        raise UserError(f"there is no sample of {task_folder}; give --data DIR with the official "
                        f"files in DIR/{task_folder}, or --data download")
    return f"sample-{task_folder}", f"version {VERSION}, rows {SIZES[task_folder]}"


def sample_folder(task_folder: str) -> Path:
    """The folder in which TASK_FOLDER/ ("MNLI", …) holds the files, generated on first use."""
    return cached(*cache_entry(task_folder), partial(write_task, task_folder))


def is_there(task_folder: str) -> bool:
    """Is this sample in the cache?"""
    return cache_path(*cache_entry(task_folder)).is_dir()
