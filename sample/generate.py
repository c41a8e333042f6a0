"""Generated sample data in the GLUE layouts, and text to pretrain on, for machines without network.

    python -m sample.generate      prints the sizes and a few labelled rows of each task

MNLI is in sample_nli.py, the words of all tasks in lexicon.py.
SST-2: the polarity of the main clause (after "but", or not after "although" and "despite"); each
negator, unmet wish ("could have been") or failed comparison ("not as .. as") flips its word.
QQP: duplicate if both questions have one meaning (question type, arguments up to synonyms, and
their roles).
"""

import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sample import squad as sample_squad
from sample.lexicon import (
    GENRES_MATCHED,
    GENRES_MISMATCHED,
    LEXICON,
    WORDS,
    articles,
    at,
    choose,
    inflect,
    role,
    split,
)
from sample.nli import LINKS, infer, mnli_rows, random_frame, render
from support.files import write_atomically, write_json

# what the sample depends on
SOURCES = ["sample/lexicon.py", "sample/nli.py", "sample/squad.py", "sample/generate.py"]
SIZES = {
    "mnli": {"train": 36_000, "dev_matched": 1_500, "dev_mismatched": 1_500},
    "qqp": {"train": 36_000, "dev": 1_500},
    "sst2": {"train": 36_000, "dev": 1_500},
    "rte": {"train": 4_000, "dev": 1_000},
    "cola": {"train": 4_000, "dev": 1_000},
    "squad": sample_squad.SIZES,
}

# ---- SST-2.  {a}: a word of the clause's polarity, {b}: of the opposite one, {x}: of any
GOOD = split("""
good great lovely funny charming clever gripping moving warm witty fresh brilliant superb
tender lively stunning thrilling elegant graceful delightful touching subtle hilarious inspired
wonderful enchanting absorbing powerful smart sincere riveting splendid""")
BAD = split("""
bad awful dull boring tedious clumsy stale bland weak silly lifeless shallow dreadful flat
tiresome messy hollow sloppy pointless forgettable predictable annoying ugly dreary lazy horrible
painful stupid pretentious contrived mediocre unbearable""")
ASPECTS = split("""plot story acting script music ending dialogue pacing hero cast humor direction
camerawork romance villain finale""")
STRAIGHT = """the {n} is {a}|the {n} is very {a}|the {n} is {a} from start to end|its {n} is {a}|
the {n} manages to be {a}|it is a {a} film|the {n} never fails to be {a}|i found the {n} {a}|
i will always call the {n} {a}|it is a {a} tale of {x} people|the {n} could not be more {a}|
the {n} is nothing if not {a}|the {n} is more {a} than the {x} {m} of the first film"""
FLIPPED = """the {n} is not {b}|the {n} is never {b}|the {n} is hardly {b}|the {n} is far from {b}|
the {n} is anything but {b}|nothing about the {n} is {b}|nobody would call the {n} {b}|
the {n} is not as {b} as the {x} {m} of the first film|the {n} is less {b} than the {x} {m}|
those who call the {n} {b} are wrong"""
UNMET = """|the {n} could have been {b}|the {n} fails to be {b}|i wish the {n} were {b}|
the {n} is not {b} enough|the {n} should have been more {b}"""


def clause(rng: random.Random, good: bool) -> str:
    """A clause of that polarity; many of them name the opposite."""
    if rng.random() < 0.05:
        return choose(rng, ("i do not think that ", "it is false that ")) + clause(rng, not good)
    one, two = (GOOD, BAD) if good else (BAD, GOOD)
    forms = STRAIGHT if rng.random() < 0.68 else FLIPPED + UNMET * (not good)
    n, m = rng.sample(ASPECTS, 2)
    words = {"a": choose(rng, one), "b": choose(rng, two), "x": choose(rng, GOOD + BAD)}
    return choose(rng, forms.split("|")).strip().format(n=n, m=m, **words)


def review(rng: random.Random, good: bool) -> tuple[str]:
    """A sentence whose main clause has that polarity."""
    main, other = clause(rng, good), clause(rng, good != (rng.random() < 0.6))
    aside = f"the {choose(rng, GOOD + BAD)} {choose(rng, ASPECTS)}"
    forms = ("{o} but {m}", "{o} , but {m}", "{o} ; still , {m}", "although {o} , {m}",
             "{m} , although {o}", "despite {a} , {m}", "{m} despite {a}")
    form = choose(rng, forms) if rng.random() < 0.5 else "{m}"
    return (articles(form.format(m=main, o=other, a=aside)) + " .",)


def phrase(rng: random.Random, good: bool) -> tuple[str]:
    """A training row: half of them a clause alone, as SST-2 trains on phrases of its sentences."""
    if rng.random() < 0.5:
        return review(rng, good)
    return (articles(clause(rng, good)),)


# ---- QQP: families of question types (lines) and their wordings ("|"); "~": a and b may swap
ARGUMENTS = {"p": "who", "q": "who", "m": "meet", "v": "act", "a": "what", "b": "what",
             "l": "place", "t": "time", "aj": "what_adj", "bj": "what_adj"}
QUESTIONS = """
how do i turn {a} into {b}|how can {a} be turned into {b}|how do i make {b} out of {a}
what is the difference between {a} and {b}|how does {a} differ from {b}~
is {a} better than {b}|is {b} worse than {a}|does {a} beat {b}
should i buy {a} instead of {b}|is it wise to buy {a} rather than {b}
can i use {a} with {b}|is it possible to use {a} and {b} together~
can i use {a} without {b}|is it possible to use {a} if i do not have {b}

why did {p} {m} {q}|why was {q} {men} by {p}|for what reason did {p} {m} {q}
when did {p} {m} {q}|when was {q} {men} by {p}|at what time was {q} {men} by {p}
where did {p} {m} {q}|where was {q} {men} by {p}|in what place did {p} {m} {q}
did {p} {m} {q}|was {q} {men} by {p}|is it true that {p} {med} {q}

who {ved} {a} {l} {t}|{t} , who {ved} {a} {l}|by whom was {a} {ven} {l} {t}
how do i {v} {a} {l} {t}|{l} , how can {a} be {ven} {t}|{t} , how do i {v} {a} {l}
may i {v} {a} {l} {t}|{t} , am i allowed to {v} {a} {l}|{l} , is it allowed to {v} {a} {t}
did anybody {v} {a} {l} {t}|was {a} {ven} {l} {t}|{t} , did anyone {v} {a} {l}
"""
QUESTIONS = [family.strip().split("\n") for family in QUESTIONS.split("\n\n")]


def ask(rng: random.Random, kind: str, args: dict[str, str | None]) -> str:
    """Word a question of a type in one of its ways."""
    words = args | {v + end: inflect(args[v], end) for v in "mv" for end in ("ed", "en")}
    words |= {x: f"a {args[x + 'j'] or ''} {args[x]}".replace("  ", " ") for x in "ab"}
    words |= {"l": at(args["l"])} | {x: "the " + args[x] for x in "pq"}
    if kind.endswith("~") and rng.random() < 0.5:
        words |= {"a": words["b"], "b": words["a"]}
    return articles(choose(rng, kind.strip("~").split("|")).format(**words)) + " ?"


def question_pair(rng: random.Random, genre: str, same: bool) -> tuple[str, str]:
    """Two wordings of one meaning, or of two meanings that differ in one thing."""
    lexicon = {x: LEXICON[genre][slot] for x, slot in ARGUMENTS.items()}
    family = choose(rng, QUESTIONS)
    kind = other = choose(rng, family)
    args = {x: choose(rng, tuple(words)) for x, words in lexicon.items()}
    if any(lexicon[x][args[x]].names == lexicon[y][args[y]].names for x, y in ("ab", "pq")):
        return question_pair(rng, genre, same)  # nothing is compared with itself
    args |= {x: None for x in ("aj", "bj") if rng.random() < 0.5}
    used = [x for x in args if args[x] and "{" + x[0] in kind]
    new = args | {x: choose(rng, lexicon[x][args[x]].names) for x in used if rng.random() < 0.4}
    pair = "ab" if "{b}" in kind else "pq"
    swap = "{" + pair[1] in kind and kind[-1] != "~"
    change = choose(rng, ("type", "type", "type", "word", "word", "swap")[: 6 if swap else 5])
    if not same and change == "swap":
        for x, y in (pair, (pair[0] + "j", pair[1] + "j")):
            new[x], new[y] = new.get(y), new.get(x)
    elif not same and change == "type":
        other = choose(rng, [k for k in family if k != kind])
    elif not same:
        x = choose(rng, used)
        own = lexicon[x][args[x]]
        new[x] = choose(rng, [w for w, e in lexicon[x].items() if e.names != own.names])
        if x in pair and lexicon[x][new[pair[0]]].names == lexicon[x][new[pair[1]]].names:
            return question_pair(rng, genre, same)
    return ask(rng, kind, args), ask(rng, other, new)


# ---- CoLA: a sentence, or one with its agreement, verb form, word order or article spoilt
def spoil(rng: random.Random, text: str) -> str:
    """One mistake that a native speaker hears."""
    words = text.split()
    spots = {i: SPOILT[w] for i, w in enumerate(words) if w in SPOILT}
    dice = rng.random()
    if spots and dice < 0.6:
        i = choose(rng, tuple(spots))
        words[i] = spots[i]
    elif dice < 0.8:
        i = int(rng.random() * (len(words) - 2))
        words[i], words[i + 1] = words[i + 1], words[i]
    else:
        i = int(rng.random() * (len(words) - 1))
        words.insert(i, words[i])
    return " ".join(words)


SPOILT = {"is": "are", "are": "is", "every": "most", "all": "every", "did": "was", "most": "no",
          "some": "every", "no": "all"}


def statement(rng: random.Random, genre: str, good: bool) -> tuple[str]:
    text = render(random_frame(rng, genre)) + " ."
    return (text if good else spoil(rng, text),)


# ---- pretraining text.  What to say of a word w, its synonym n, its kind u, and its opposite o
# Every form of a word is a token of its own, so every form has to be told of.
FACTS = {
    "who": "a {w} is the same as a {n} .|a {w} is a kind of {u} .|every {w} is a {u} .|"
           "not every {u} is a {w} .|all {ws} are {us} .|not all {us} are {ws} .|"
           "{ws} are the same as {ns} .",
    "who_adj": "{w} means {n} .|whatever is {w} is {u} .|not everything {u} is {w} .|"
               "nothing is both {w} and {o} .|what is {w} is not {o} .",
    "go": "{wing} means {ning} .|anybody that is {wing} is {uing} .|{wing} is a way of {uing} .|"
          "nobody is {wing} and {oing} at the same time .|to {w} is to {n} .|to {w} is to {u} .|"
          "whoever {wed} {ued} .|not everybody that {ued} {wed} .|who {wed} has {nen} .",
    "place": "the {w} is the {n} .|the {w} is in the {u} .|whoever is in the {w} is in the {u} .|"
             "nobody is in the {w} and in the {o} at the same time .",
    "time": "{w} means some time {u} .",
}
FACTS |= {"what": FACTS["who"], "what_adj": FACTS["who_adj"], "act": FACTS["go"]}
# the words of one genre more often than those that all share
SLOTS_OF_FACTS = split("who what go act place") * 3 + split("who_adj what_adj time")


def facts(rng: random.Random, genre: str) -> str:
    """One to three sentences on what a word means."""
    slot = choose(rng, SLOTS_OF_FACTS)
    words = LEXICON[genre][slot]
    own = words[choose(rng, WORDS[genre][slot])]
    word = choose(rng, own.names)
    others = {  # no place is in another unless it is a part of it
        w for w, e in words.items() if (e.family == own.family and e.side != own.side) or (
            slot == "place" and own.names[0] not in e.ups and e.names[0] not in own.ups)}
    options = {"w": [word], "n": [n for n in own.names if n != word],
               "u": [n for up in own.ups[1:] for n in words[up].names], "o": sorted(others)}
    chosen = {x: choose(rng, names) for x, names in options.items() if names}
    forms = {x + end: inflect(name, end) if end else name
             for x, name in chosen.items() for end in ("", "s", "ed", "en", "ing")}
    said = [form for form in FACTS[slot].split("|")
            if {x[0] for x in re.findall(r"{(\w+)}", form)} <= set(chosen)]
    if not said:
        return facts(rng, genre)
    said = rng.sample(said, min(len(said), choose(rng, (1, 2, 3))))
    return articles(" ".join(said).format(**forms))


def pretraining_text(n: int) -> Iterator[tuple[str, ...]]:
    """n documents, of one text or two: facts, inferences, passages, reviews, questions. No row that
    is evaluated on is among them, nor the first text of one."""
    rng = random.Random("pretraining text")
    while n:
        genre, dice = choose(rng, GENRES_MATCHED + GENRES_MISMATCHED), rng.random()
        good = rng.random() < 0.5
        first = second = ""
        if dice < 0.3:
            second = facts(rng, genre)
        elif dice < 0.75:
            (first, second), lab, _ = infer(rng, genre, "text") or (("", ""), "", "")
            second = lab and f"{choose(rng, LINKS[lab])} {second}"
        elif dice < 0.8:
            second = sample_squad.passages(rng)
        elif dice < 0.9:
            first, second = *review(rng, good), f"it is {'good' if good else 'bad'} ."
        else:
            first, second = question_pair(rng, genre, good)
            second = f"{'in other words' if good else 'another question is'} , {second}"
        if second and (not first or role(first) == "text"):
            n -= 1
            yield (first, second) if first else (second,)


# ---- files
def two_way_rows(n: int, part: str, make, *context) -> Iterator[tuple]:
    """n distinct rows (text, .., label 0 or 1) of make(rng, [genre,] label)."""
    rng, seen = random.Random(f"{make.__name__} {part}"), set()
    while len(seen) < n:
        lab = len(seen) % 2
        texts = make(rng, *(choose(rng, genres) for genres in context), bool(lab))
        if role(texts[0]) == part and texts not in seen and len(set(texts)) == len(texts):
            seen.add(texts)
            yield *texts, lab


def nli_table(name: str, n: int) -> Iterator[tuple]:
    """MNLI's columns and rows."""
    part = name.split("_")[0]
    genres = GENRES_MISMATCHED if name == "dev_mismatched" else GENRES_MATCHED
    votes = split("label1" if part == "train" else "label1 label2 label3 label4 label5")
    yield (*split("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
                  "sentence1_parse sentence2_parse sentence1 sentence2"), *votes, "gold_label")
    for i, (genre, *pair, lab) in enumerate(mnli_rows(n, genres, part)):
        yield (i, i, i, genre, *[""] * 4, *pair, *[lab] * (len(votes) + 1))


def qqp_table(name: str, n: int) -> Iterator[tuple]:
    yield split("id qid1 qid2 question1 question2 is_duplicate")
    for i, row in enumerate(two_way_rows(n, name, question_pair, GENRES_MATCHED)):
        yield (i, 2 * i, 2 * i + 1, *row)


def sst2_table(name: str, n: int) -> Iterator[tuple]:
    yield split("sentence label")
    yield from two_way_rows(n, name, phrase if name == "train" else review)


def rte_table(name: str, n: int) -> Iterator[tuple]:
    """Half of the rows are entailed; the others contradicted or neither."""
    yield split("index sentence1 sentence2 label")
    counts = Counter()
    for _, *pair, lab in mnli_rows(2 * n, GENRES_MATCHED, name):
        lab = lab if lab == "entailment" else "not_entailment"
        if counts[lab] * 2 < n:
            yield (sum(counts.values()), *pair, lab)
            counts[lab] += 1


def cola_table(name: str, n: int) -> Iterator[tuple]:
    """No header, as in the official file: source, label, the author's star, sentence."""
    for sentence, good in two_way_rows(n, name, statement, GENRES_MATCHED):
        yield ("sample", good, "" if good else "*", sentence)


TABLES = {"mnli": ("MNLI", nli_table), "qqp": ("QQP", qqp_table), "sst2": ("SST-2", sst2_table),
          "rte": ("RTE", rte_table), "cola": ("CoLA", cola_table)}


def write_task(task: str, folder: Path) -> None:
    """Write all splits of a task in the official layout below folder."""
    for name, n in SIZES[task].items():
        if task == "squad":
            write_json(folder / "SQuAD" / f"{name}-v1.1.json", sample_squad.squad_json(name, n))
            continue
        place, table = TABLES[task]
        lines = ("\t".join(map(str, row)) + "\n" for row in table(name, n))
        write_atomically(folder / place / f"{name}.tsv", "".join(lines))


def write_all(folder: Path) -> None:
    for task in SIZES:
        write_task(task, folder)


if __name__ == "__main__":
    print(SIZES)
    with tempfile.TemporaryDirectory() as scratch:
        write_all(Path(scratch))
        for file in sorted(Path(scratch).glob("*/dev*.tsv")):
            print(f"\n{file.parent.name}/{file.name}")
            for line in file.read_text(encoding="utf-8").split("\n")[1:7]:
                print("  ", " | ".join(filter(None, line.split("\t"))))
        print("\npretraining text", *pretraining_text(8), sep="\n   ")
