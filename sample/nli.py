"""Generated sentence pairs in the manner of MNLI, with labels that are computed from the meaning.

A premise and a hypothesis are two quantified sentences, one made from the other by one or two
edits. They are compared in all small situations (how many things of each kind there are): the
label is entailment if the hypothesis is true wherever the premise is, contradiction if the two are
never true together, and neutral otherwise. The subjects of "every", "all", "no", "most" and "not
every" are assumed to exist.
"""

import itertools
import random
import re
from collections import Counter, namedtuple
from collections.abc import Iterator
from functools import lru_cache

from sample import lexicon
from sample.lexicon import LEXICON, NAMES, Word, choose, inflect

LABELS = ("entailment", "neutral", "contradiction")

# ----------------------------------------------------------------------------- quantifiers

# plural: of the noun and verb; true(yes, no): is the sentence true if the predicate holds for `yes`
# subjects and does not for `no` others?; exist: must subjects exist?; negatable: is the scope of a
# "not" in the predicate clear? ("every dog is not wet" has two readings)
Quantifier = namedtuple("Quantifier", "plural true exist negatable")
PLAIN = {
    "every": Quantifier(False, lambda yes, no: no == 0, True, False),
    "all": Quantifier(True, lambda yes, no: no == 0, True, False),
    "no": Quantifier(False, lambda yes, no: yes == 0, True, False),
    "not every": Quantifier(False, lambda yes, no: no > 0, True, False),
    "some": Quantifier(True, lambda yes, no: yes > 0, False, True),
    "most": Quantifier(True, lambda yes, no: yes > no, True, True),
}
COUNTS = {
    "at least two": Quantifier(True, lambda yes, no: yes >= 2, False, True),
    "at most two": Quantifier(True, lambda yes, no: yes <= 2, False, False),
    "at least three": Quantifier(True, lambda yes, no: yes >= 3, False, True),
    "at most three": Quantifier(True, lambda yes, no: yes <= 3, False, False),
}
NAMED = dict.fromkeys(NAMES, Quantifier(False, lambda yes, no: yes == 1, True, True))
QUANTIFIERS = PLAIN | COUNTS | NAMED
MOST_THINGS = 5  # of each kind in a situation: enough to tell all quantifiers apart


def random_quantifier(rng: random.Random) -> str:
    """Counts are rare: little can be concluded about them."""
    return choose(rng, PLAIN if rng.random() < 0.97 else COUNTS)


# ------------------------------------------------------------------------------- sentences

# "every young DOG that is wet is (not) tired and hungry", or with a verb "… is chasing a red ball
# quietly in the barn". A name replaces quantifier and noun. What is absent is None.
EVENT = ("verb", "obj", "obj_adj", "adverb", "place", "time")
FIELDS = ("genre", "quantifier", "noun", "adj", "that", "negated", "past", "state", "conjunction",
          "state2", *EVENT)
Sentence = namedtuple("Sentence", FIELDS, defaults=[None] * (len(FIELDS) - 2))
SLOT_OF = {"noun": "who", "adj": "who_adj", "that": "who_adj", "state": "who_adj",
           "state2": "who_adj", "obj": "what", "obj_adj": "what_adj", "adverb": "adverb",
           "place": "place", "time": "time"}
REQUIRED = ("noun", "verb", "state", "obj")  # an edit replaces these but never drops them


def words_for(s: Sentence, field: str) -> dict[str, Word]:
    """The part of the lexicon from which a field is filled."""
    return LEXICON[s.genre][SLOT_OF.get(field) or ("act" if s.obj else "go")]


def render(s: Sentence, front: str = "") -> str:
    """The sentence without full stop; `front` ("place", "time" or "") names what comes first."""
    plural = QUANTIFIERS[s.quantifier].plural
    be = ("were" if plural else "was") if s.past else "are" if plural else "is"
    parts = [s.quantifier, s.adj, inflect(s.noun, "s") if plural else s.noun,
             s.that and f"that {be} {s.that}"]
    if s.past:
        parts.append(f"did not {s.verb}" if s.negated else inflect(s.verb, "ed"))
    else:
        parts += [be, "not" if s.negated else "", s.state or inflect(s.verb, "ing")]
        parts += [s.conjunction, s.state2]
    parts += [s.obj and "a", s.obj_adj, s.obj]
    ends = {"place": s.place and lexicon.locate(s.place), "time": s.time}
    start = ends.pop(front, None)
    parts = [start and f"{start} ,", *parts, s.adverb, *ends.values()]
    return lexicon.fix_articles(" ".join(filter(None, parts)))


def well_formed(s: Sentence) -> bool:
    """No unclear scope, and no two adjectives that repeat or exclude each other."""
    if s.negated and (not QUANTIFIERS[s.quantifier].negatable or s.conjunction):
        return False
    adjectives = [word for word in (s.adj, s.that, s.state, s.state2) if word]
    return len({words_for(s, "adj")[word].family for word in adjectives}) == len(adjectives)


def random_sentence(rng: random.Random, genre: str, named: float = 0.15) -> Sentence:
    """`named`: the probability that it is about a person with a name."""
    def maybe(chance: float, slot: str) -> str | None:
        return choose(rng, LEXICON[genre][slot]) if rng.random() < chance else None

    s = {"genre": genre, "quantifier": choose(rng, NAMES)}
    if rng.random() >= named:
        s |= {"quantifier": random_quantifier(rng), "noun": maybe(1, "who"),
              "adj": maybe(0.25, "who_adj"), "that": maybe(0.05, "who_adj")}
    s["negated"] = QUANTIFIERS[s["quantifier"]].negatable and rng.random() < 0.4
    if rng.random() < 0.25:
        s["state"] = maybe(1, "who_adj")
        if rng.random() < 0.3:
            s |= {"conjunction": choose(rng, ("and", "or")), "state2": maybe(1, "who_adj")}
    else:
        s |= {"past": rng.random() < 0.3, "obj": maybe(0.5, "what"),
              "adverb": maybe(0.12, "adverb"), "place": maybe(0.25, "place")}
        s |= {"verb": maybe(1, "act" if s["obj"] else "go"),
              "obj_adj": maybe(0.25 if s["obj"] else 0, "what_adj"),
              "time": maybe(0.4 if s["past"] else 0, "time")}
    sentence = Sentence(**s)
    return sentence if well_formed(sentence) else random_sentence(rng, genre, named)


# ------------------------------------------------------------------------------------ labels

# A property that a thing may have. words: for an event, one for each field of EVENT (None where
# nothing is said); otherwise one word.
Property = namedtuple("Property", "kind words")


def properties(s: Sentence) -> dict[str, Property]:
    """The properties that a sentence mentions, by field; "verb" is the event as a whole.

    Activities and places exclude each other only in the present, at one moment.
    """
    words = {field: words_for(s, field)[getattr(s, field)]
             for field in (*SLOT_OF, "verb") if getattr(s, field)}
    by_field = {field: Property(SLOT_OF[field], (word,))
             for field, word in words.items() if field not in EVENT}
    if s.verb:
        by_field["verb"] = Property("past" if s.past else "now", tuple(map(words.get, EVENT)))
    return by_field


def implies(x: Property, y: Property) -> bool:
    """Is every x a y? Each word of y has to be that of x, a more general one, or missing."""
    return x.kind == y.kind and all(
        not general or (special and lexicon.is_kind(special, general))
        for special, general in zip(x.words, y.words, strict=True))


def exclude(x: Property, y: Property) -> bool:
    """Can nothing be both x and y? True of opposites, and of different places at one moment."""
    if x.kind != y.kind or x.kind in ("who", "past"):
        return False
    if x.kind == "who_adj":
        return lexicon.opposed(x.words[0], y.words[0])
    one, two = (dict(zip(EVENT, event.words)) for event in (x, y))
    if not one["obj"] and not two["obj"] and lexicon.opposed(one["verb"], two["verb"]):
        return True
    return bool(one["place"] and two["place"] and not lexicon.overlap(one["place"], two["place"]))


@lru_cache(None)
def situations(kinds: frozenset) -> set[tuple]:
    """All situations that can be made of these kinds of thing.

    A situation is four counts: the premise's subjects for which its predicate holds, those for
    which it does not, and the same two for the hypothesis. A thing adds 0 or 1 to each count;
    things that add the same are of one kind.
    """
    possible = {(0, 0, 0, 0)}
    for kind in kinds:
        for _ in range(MOST_THINGS):
            larger = {tuple(map(int.__add__, counts, kind)) for counts in possible}
            possible |= {counts for counts in larger if max(counts) <= MOST_THINGS}
    return possible


@lru_cache(None)
def compare(kinds: frozenset, premise_quantifier: str, hypothesis_quantifier: str) -> str | None:
    """The label that follows from all situations made of these kinds of thing; None as in label().
    """
    first, second = QUANTIFIERS[premise_quantifier], QUANTIFIERS[hypothesis_quantifier]
    most = 1 if premise_quantifier in NAMES else 2 * MOST_THINGS  # there is one Rosa
    seen = {(first.true(a, b), second.true(c, d)) for a, b, c, d in situations(kinds)
            if first.exist <= a + b <= most and second.exist <= c + d <= most}
    if any(len({truths[i] for truths in seen}) < 2 for i in (0, 1)):
        return None
    if (True, False) not in seen:
        return "entailment"
    return "neutral" if (True, True) in seen else "contradiction"


def subject_and_predicate(s: Sentence, has: dict[Property, int], all_rows: int):
    """The rows of the truth table that are subjects, and those for which the predicate holds."""
    rows = {field: has[x] for field, x in properties(s).items()}
    subject = rows.get("noun", all_rows) & rows.get("adj", all_rows) & rows.get("that", all_rows)
    holds = rows["verb" if s.verb else "state"]
    if s.conjunction:
        holds = holds & rows["state2"] if s.conjunction == "and" else holds | rows["state2"]
    return subject, all_rows & ~holds if s.negated else holds


def label(premise: Sentence, hypothesis: Sentence) -> str | None:
    """The exact label: first which things can exist, then all situations made of their kinds.

    The truth table has a row for each combination of properties that a thing may have. None if one
    of the sentences is always true or always false.
    """
    known = dict.fromkeys((*properties(premise).values(), *properties(hypothesis).values()))
    all_rows = possible = (1 << (1 << len(known))) - 1
    # column i of the table is 2ⁱ ones, 2ⁱ zeros, and so on
    has = {x: all_rows // ((1 << (1 << i)) + 1) for i, x in enumerate(known)}
    for x, y in itertools.permutations(known, 2):
        if implies(x, y):
            possible &= ~has[x] | has[y]
        if exclude(x, y):
            possible &= ~(has[x] & has[y])
    added = []  # for each sentence: what a thing adds to its two counts, and the rows that do
    for s in (premise, hypothesis):
        subject, holds = subject_and_predicate(s, has, all_rows)
        added.append((((1, 0), subject & holds), ((0, 1), subject & ~holds), ((0, 0), ~subject)))
    kinds = frozenset(one + two for (one, rows1), (two, rows2) in itertools.product(*added)
                      if possible & rows1 & rows2)
    return compare(kinds, premise.quantifier, hypothesis.quantifier)


# ------------------------------------------------------------------------------------- pairs


def related(rng: random.Random, words: dict[str, Word], word: str, far: float) -> str:
    """A synonym, or a more general or special word; at rate `far` another word of its family."""
    near = [w for w in words if lexicon.overlap(words[w], words[word])]
    others = [w for w in words if words[w].family == words[word].family and w not in near]
    if others and rng.random() < far:
        return choose(rng, others)
    return choose(rng, [w for w in near if w != word] or [word])


def edit(rng: random.Random, s: Sentence) -> Sentence:
    """Change one thing in a sentence."""
    dice = rng.random()
    if dice < 0.26 and s.noun:
        return s._replace(quantifier=random_quantifier(rng),
                          negated=s.negated and rng.random() < 0.5)
    if dice < 0.36:
        return s._replace(negated=not s.negated)
    if dice < 0.4 and s.noun:
        return s._replace(adj=s.that, that=s.adj)
    if dice < 0.5 and s.conjunction:
        return s._replace(conjunction={"and": "or", "or": "and"}[s.conjunction])
    fields = ["noun", "adj", "that"] * bool(s.noun) + ["obj", "obj_adj"] * bool(s.obj)
    fields += ["state", "state2"] if s.state else ["verb", "adverb", "place"]
    fields += ["time"] * bool(s.past)
    field = choose(rng, fields)
    if rng.random() < 0.3:  # adding or dropping a word is easier to follow than replacing one
        field = choose(rng, [x for x in fields if x not in REQUIRED])
    word, words = getattr(s, field), words_for(s, field)
    if word and (field in REQUIRED or rng.random() < 0.5):
        # whether "ate an apple" contradicts "ate a pear" is debatable: no such pairs
        clear = SLOT_OF.get(field) in ("who", "who_adj") or (
            not s.past and (field == "place" or (field == "verb" and not s.obj)))
        return s._replace(**{field: related(rng, words, word, 0.3 if clear else 0)})
    change = {field: None if word else choose(rng, words)}
    if field == "state2":
        change["conjunction"] = None if word else choose(rng, ("and", "or"))
    return s._replace(**change)


def random_pair(rng: random.Random, genre: str, split: str) -> tuple[tuple, str, str] | None:
    """Try to make one pair for a split → (premise, hypothesis), label, kind of hypothesis."""
    first = second = random_sentence(rng, genre)
    for _ in range(choose(rng, (1, 1, 1, 1, 1, 1, 1, 2))):
        second = edit(rng, second)
    if first == second or not well_formed(second):
        return None
    first, second = (first, second) if rng.random() < 0.5 else (second, first)
    texts = [render(s, choose(rng, ("",) * 8 + ("place", "time"))) for s in (first, second)]
    side = word = None
    if rng.random() < 0.03 and first.noun and "person" not in (first.noun, second.noun):
        # join an unrelated clause about somebody else to one of them
        side, word = choose(rng, (0, 1)), choose(rng, ("and", "but", "or"))
        one, two = rng.sample((texts[side], render(random_sentence(rng, genre, named=1))), 2)
        texts[side] = f"either {one} or {two}" if word == "or" else f"{one} , {word} {two}"
    premise, hypothesis = (f"{text} ." for text in texts)
    if lexicon.split_of(premise) != split or premise == hypothesis:
        return None
    relation = label(first, second)
    # the clause matters only where it weakens the premise, asks more of the hypothesis, or makes a
    # contradiction avoidable
    undecided = "contradiction" if word == "or" else "entailment"
    if (side, word) == (0, "or") or (side == 1 and relation == undecided):
        relation = relation and "neutral"
    quantifier = re.sub("two|three", "n", second.quantifier) if second.noun else "name"
    return relation and ((premise, hypothesis), relation, f"{quantifier} {second.negated}")


def mnli_rows(n: int, genres: tuple[str, ...], split: str) -> Iterator[tuple]:
    """n different rows (genre, premise, hypothesis, label), balanced within each kind of
    hypothesis, so that the hypothesis alone does not give the label away."""
    rng, counts, seen = random.Random(f"mnli {split} {genres}"), Counter(), set()
    while len(seen) < n:
        genre = choose(rng, genres)
        pair, label, kind = random_pair(rng, genre, split) or (None, None, None)
        rarest = min(counts[kind, x] for x in LABELS)
        balanced = counts[kind, label] <= 3 * rarest + 9 and counts[label] * 3 < n
        if label and balanced and pair not in seen:
            seen.add(pair)
            counts.update([label, (kind, label)])
            yield genre, *pair, label
