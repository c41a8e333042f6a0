"""Generated inference pairs in MNLI's manner, their labels computed, not written.

A quantified sentence and 1 to 3 edits of it, model checked over all small situations: entailment
if none makes the premise true and the hypothesis false, contradiction if none makes both true,
neutral otherwise (the subjects of every, all, no, most and not all exist).
"""

import itertools
import random
import re
from collections import Counter, namedtuple
from collections.abc import Iterator
from functools import lru_cache

from sample.lexicon import LEXICON, NAMES, WORDS, Word, articles, at, choose, inflect, role, split

# ---- MNLI: meaning.  Quantifier -> (plural?, truth where a subjects satisfy the predicate and b do
# not, must subjects exist?, may the verb be negated without ambiguity of scope?)
QUANTIFIERS = {
    "every": (False, lambda a, b: b == 0, True, False),
    "all": (True, lambda a, b: b == 0, True, False),
    "no": (False, lambda a, b: a == 0, True, False),
    "not every": (False, lambda a, b: b > 0, True, False),
    "some": (True, lambda a, b: a > 0, False, True),
    "most": (True, lambda a, b: a > b, True, True),
}
PLAIN = tuple(QUANTIFIERS)
for _n, _word in enumerate(("two", "three"), start=2):
    QUANTIFIERS |= {
        f"at least {_word}": (True, lambda a, b, n=_n: a >= n, False, True),
        f"at most {_word}": (True, lambda a, b, n=_n: a <= n, False, False),
    }
COUNTED = tuple(QUANTIFIERS)[len(PLAIN):]
QUANTIFIERS |= dict.fromkeys(NAMES, (False, lambda a, b: a == 1, True, True))
BOUND = 5  # at most so many things of each kind in a situation: tells all quantifiers apart

# One sentence; None where a part is absent.  quant may be a name, then without noun; that: "that is
# (not) wet"; pred, op, pred2: "is wet and tired", instead of a verb; past: only in the present,
# at one moment, do activities and places exclude each other.
EVENT = split("verb obj obj_adj adverb place time")
FIELDS = (*split("genre quant noun adj that neg past pred op pred2"), *EVENT)
Frame = namedtuple("Frame", FIELDS, defaults=[None] * (len(FIELDS) - 2))
SLOT = {"noun": "who", "obj": "what", "obj_adj": "what_adj", "adverb": "adverb", "place": "place",
        "time": "time"} | dict.fromkeys(("adj", "that", "pred", "pred2"), "who_adj")


def slot_words(f: Frame, field: str) -> dict[str, Word]:
    """The lexicon for a field of a frame."""
    return LEXICON[f.genre][SLOT.get(field) or ("act" if f.obj else "go")]


def atoms(f: Frame) -> dict[str, tuple]:
    """The properties a sentence speaks of: its nouns and adjectives, and the event as one whole."""
    words = {x: slot_words(f, x)[word] for x in (*SLOT, "verb") if (word := getattr(f, x))}
    found = {x: (SLOT[x], (word,)) for x, word in words.items() if x not in EVENT}
    if f.verb:
        found["verb"] = ("past" if f.past else "now", tuple(map(words.get, EVENT)))
    return found


def kind_of(x: tuple, y: tuple) -> bool:
    """Is every x a y?  Each part of y has to be the same, more general, or missing."""
    return x[0] == y[0] and all(
        not q or (p and q.names[0] in p.ups) for p, q in zip(x[1], y[1], strict=True))


def exclude(x: tuple, y: tuple) -> bool:
    """Is nothing both x and y?  True of opposed adjectives, activities, and separate places."""
    if x[0] != y[0] or x[0] in ("who", "past"):
        return False
    (one, obj, *more), (two, obj2, *more2) = (*x[1], None), (*y[1], None)
    if not obj and not obj2 and one.family == two.family and one.side != two.side:
        return True
    here, there = (parts[2] if x[0] == "now" else None for parts in (more, more2))
    return bool(here and there) and not (
        here.names[0] in there.ups or there.names[0] in here.ups)


def subject_and_scope(f: Frame, bits: dict[tuple, int], full: int) -> tuple[int, int]:
    """Truth tables of being a subject and of satisfying the predicate."""
    own = {field: bits[atom] for field, atom in atoms(f).items()}
    that = own.get("that", full)
    subject = own.get("noun", full) & own.get("adj", full) & that
    scope = own["verb" if f.verb else "pred"]
    if f.op:
        scope = scope & own["pred2"] if f.op == "and" else scope | own["pred2"]
    return subject, full & ~scope if f.neg else scope


@lru_cache(None)
def situations(cells: frozenset) -> list[tuple]:
    """All counts (satisfying, other) of both subjects, reached by adding one thing at a time."""
    todo = [(0, 0, 0, 0)]
    seen = set(todo)
    for state in todo:
        new = {tuple(map(int.__add__, state, cell)) for cell in cells} - seen
        new = {counts for counts in new if max(counts) <= BOUND}
        seen |= new
        todo += new
    return todo


@lru_cache(None)
def relation(cells: frozenset, quant1: str, quant2: str) -> str | None:
    """Compare two quantified sentences in all situations; None if one of them is trivial."""
    (_, true1, exists1, _), (_, true2, exists2, _) = QUANTIFIERS[quant1], QUANTIFIERS[quant2]
    most = 1 if quant1 in NAMES else 2 * BOUND
    seen = {(true1(p, q), true2(r, s)) for p, q, r, s in situations(cells)
            if exists1 <= p + q <= most and exists2 <= r + s <= most}
    if any(len({pair[i] for pair in seen}) < 2 for i in (0, 1)):
        return None
    if (True, False) not in seen:
        return "entailment"
    return "neutral" if (True, True) in seen else "contradiction"


@lru_cache(None)
def column(i: int, n: int) -> int:
    """Truth table column of atom i of n, one bit per row."""
    return sum(1 << row for row in range(1 << n) if row >> i & 1)


def label(premise: Frame, hypothesis: Frame) -> str | None:
    """The exact label: which kinds of thing can exist, then all situations made of them."""
    parts = list(dict.fromkeys((*atoms(premise).values(), *atoms(hypothesis).values())))
    bits = {atom: column(i, len(parts)) for i, atom in enumerate(parts)}
    full = allowed = (1 << (1 << len(parts))) - 1
    for x, y in itertools.permutations(parts, 2):
        if kind_of(x, y):
            allowed &= ~bits[x] | bits[y]
        if exclude(x, y):
            allowed &= ~(bits[x] & bits[y])
    tables = []
    for frame in (premise, hypothesis):
        subject, scope = subject_and_scope(frame, bits, full)
        tables.append((((1, 0), subject & scope), ((0, 1), subject & ~scope), ((0, 0), ~subject)))
    cells = frozenset(x + y for (x, one), (y, two) in itertools.product(*tables)
                      if allowed & one & two)
    return relation(cells, premise.quant, hypothesis.quant)


# ---- MNLI: sentences
def render(f: Frame, front: str = "") -> str:
    """The clause without full stop; front names the part (place, time) that comes first, if any."""
    many = QUANTIFIERS[f.quant][0]
    be = ("were" if many else "was") if f.past else "are" if many else "is"
    words = f"{f.quant} {f.adj or ''} {inflect(f.noun, 's') if many else f.noun or ''}"
    if f.that:
        words += f" that {be} {f.that}"
    if f.past:
        words += f" did not {f.verb}" if f.neg else f" {inflect(f.verb, 'ed')}"
    else:
        words += f" {be} {'not' if f.neg else ''} {f.pred or inflect(f.verb, 'ing')}"
        words += f" {f.op} {f.pred2}" if f.op else ""
    words += f" a {f.obj_adj or ''} {f.obj}" if f.obj else ""
    ends = {"place": f.place and at(f.place), "time": f.time}
    start = ends.pop(front, None)
    parts = filter(None, [start and start + " ,", words, f.adverb, *ends.values()])
    return articles(" ".join(" ".join(parts).split()))


def quantifier(rng: random.Random) -> str:
    """Counts are many, so they are chosen less often each."""
    return choose(rng, PLAIN if rng.random() < 0.97 else COUNTED)


def well_formed(f: Frame) -> bool:
    """Leave out ambiguous scope ("every .. not") and words that repeat or exclude each other."""
    if f.neg and (not QUANTIFIERS[f.quant][3] or f.op):
        return False
    adjectives = [x for x in (f.adj, f.that, f.pred, f.pred2) if x]
    return len({slot_words(f, "adj")[x].family for x in adjectives}) == len(adjectives)


def random_frame(rng: random.Random, genre: str, name: float = 0.15) -> Frame:
    """A random sentence; name is the chance that it is about a person of some name."""
    def maybe(chance: float, slot: str) -> str | None:
        return choose(rng, WORDS[genre][slot]) if rng.random() < chance else None

    part = {"genre": genre, "quant": choose(rng, NAMES)}
    if rng.random() >= name:
        part |= {"quant": quantifier(rng), "noun": maybe(1, "who"), "adj": maybe(0.25, "who_adj"),
                 "that": maybe(0.05, "who_adj")}
    part["neg"] = QUANTIFIERS[part["quant"]][3] and rng.random() < 0.4
    if rng.random() < 0.25:
        part["pred"] = maybe(1, "who_adj")
        if rng.random() < 0.3:
            part |= {"op": choose(rng, ("and", "or")), "pred2": maybe(1, "who_adj")}
    else:
        part |= {"past": rng.random() < 0.3, "obj": maybe(0.5, "what"),
                 "adverb": maybe(0.12, "adverb"), "place": maybe(0.25, "place")}
        part |= {"verb": maybe(1, "act" if part["obj"] else "go"),
                 "obj_adj": maybe(0.25 * bool(part["obj"]), "what_adj"),
                 "time": maybe(0.4 * part["past"], "time")}
    frame = Frame(**part)
    return frame if well_formed(frame) else random_frame(rng, genre, name)


def related(rng: random.Random, words: dict[str, Word], word: str, far: float = 0.0) -> str:
    """A synonym, more general or more special word; with chance far another of the family."""
    own = words[word]
    near = [w for w, e in words.items() if own.names[0] in e.ups or e.names[0] in own.ups]
    others = [w for w, e in words.items() if e.family == own.family and w not in near]
    if others and rng.random() < far:
        return choose(rng, others)
    return choose(rng, [w for w in near if w != word] or [word])


SWAPPED = ("noun", "verb", "pred", "obj")  # no sentence can do without them


def edit(rng: random.Random, f: Frame) -> Frame:
    """One random change of a sentence."""
    dice = rng.random()
    if dice < 0.26 and f.noun:
        return f._replace(quant=quantifier(rng), neg=f.neg and rng.random() < 0.5)
    if dice < 0.36:
        return f._replace(neg=not f.neg)
    if dice < 0.4 and f.noun:
        return f._replace(adj=f.that, that=f.adj)
    if dice < 0.5 and f.op:
        return f._replace(op={"and": "or", "or": "and"}[f.op])
    fields = ["noun", "adj", "that"] * bool(f.noun) + ["obj", "obj_adj"] * bool(f.obj)
    fields += ["pred", "pred2"] if f.pred else ["verb", "adverb", "place"] + ["time"] * bool(f.past)
    field = choose(rng, fields)
    if rng.random() < 0.3:  # what is only added or left out is easier than what is exchanged
        field = choose(rng, [x for x in fields if x not in SWAPPED])
    word, words = getattr(f, field), slot_words(f, field)
    # "Ate an apple" against "ate a pear" and the like is debatable: no alternatives there.
    clear = SLOT.get(field) in ("who", "who_adj") or (
        not f.past and (field == "place" or (field == "verb" and not f.obj)))
    if word and (field in SWAPPED or rng.random() < 0.5):
        return f._replace(**{field: related(rng, words, word, 0.3 * clear)})
    change = {field: None if word else choose(rng, tuple(words))}
    if field == "pred2":
        change["op"] = None if word else choose(rng, ("and", "or"))
    return f._replace(**change)


def infer(rng: random.Random, genre: str, part: str) -> tuple[tuple, str, str] | None:
    """Try one ((premise, hypothesis), label, shape of the hypothesis) for a split."""
    first = second = random_frame(rng, genre)
    for _ in range(choose(rng, (1, 1, 1, 1, 1, 1, 1, 2))):
        second = edit(rng, second)
    if first == second or not well_formed(second):
        return None
    first, second = (first, second) if rng.random() < 0.5 else (second, first)
    texts = [render(f, choose(rng, ("",) * 8 + ("place", "time"))) for f in (first, second)]
    side = word = None
    if rng.random() < 0.03 and first.noun and "person" not in (first.noun, second.noun):
        side, word = choose(rng, (0, 1)), choose(rng, ("and", "but", "or"))
        one, two = rng.sample((texts[side], render(random_frame(rng, genre, name=1))), 2)
        texts[side] = f"either {one} or {two}" if word == "or" else f"{one} , {word} {two}"
    pair = tuple(f"{text} ." for text in texts)
    if role(pair[0]) != part or pair[0] == pair[1] or not (lab := label(first, second)):
        return None
    # An unrelated clause on one side changes the label only if it weakens what is given,
    # strengthens what has to follow, or gives a way out of a contradiction.
    open_end = side == 1 and lab == ("contradiction" if word == "or" else "entailment")
    lab = "neutral" if open_end or (side, word) == (0, "or") else lab
    quant = re.sub("two|three", "n", second.quant) if second.noun else "name"
    return pair, lab, f"{quant} {second.neg}"


# the labels, and how the pretraining text words them
LINKS = {"entailment": ("so", "therefore", "true :"),
         "neutral": ("maybe", "perhaps", "unknown :"),
         "contradiction": ("never", "impossible :", "false :")}


def mnli_rows(n: int, genres: tuple[str, ...], part: str) -> Iterator[tuple]:
    """n rows (genre, premise, hypothesis, label), balanced for every shape of the hypothesis."""
    rng, counts, seen = random.Random(f"mnli {part} {genres}"), Counter(), set()
    while len(seen) < n:
        genre = choose(rng, genres)
        pair, lab, shape = infer(rng, genre, part) or (None, None, None)
        rarest = min(counts[shape, x] for x in LINKS)
        fits = counts[shape, lab] <= 3 * rarest + 9 and counts[lab] * 3 < n
        if lab and fits and pair not in seen:
            seen.add(pair)
            counts.update([lab, (shape, lab)])
            yield genre, *pair, lab
