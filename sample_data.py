"""Generated sample data in the GLUE layouts, and text to pretrain on, for machines without network.

MNLI: a quantified sentence and 1 to 3 edits of it, model checked over all small situations:
entailment if none makes the premise true and the hypothesis false, contradiction if none makes
both true, neutral otherwise (the subjects of every, all, no, most and not all exist).
SST-2: the polarity of the main clause (after "but", or not after "although" and "despite"); each
negator, unmet wish ("could have been") or failed comparison ("not as .. as") flips its word.
QQP: duplicate if both questions have one meaning (question type, arguments up to synonyms, and
their roles).  `python sample_data.py` prints the sizes and a few labelled rows of each task.
"""

import itertools
import random
import re
import tempfile
import zlib
from collections import Counter, namedtuple
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

SIZES = {
    "mnli": {"train": 12_000, "dev_matched": 1_500, "dev_mismatched": 1_500},
    "qqp": {"train": 8_000, "dev": 1_500},
    "sst2": {"train": 8_000, "dev": 1_500},
}
GENRES_MATCHED = ("farm", "city", "school", "hospital", "forest", "stage")
GENRES_MISMATCHED = ("sea", "castle")  # in the pretraining text, never in the training rows


def split(text: str) -> tuple[str, ...]:
    """The words of a table."""
    return tuple(text.split())


# The slots of a genre.  dog(poodle beagle): kinds of dog; a=b: synonyms; a|b: nothing is both at
# one moment; ";" separates unrelated families.
SLOTS = split("who what go act who_adj what_adj place")
LEXICON_TEXT = """
farm / animal=creature(dog=hound(poodle terrier beagle) horse(mare pony) bird(hen duck rooster)) /
 vegetable=veggie(carrot turnip radish) fruit(apple pear plum) / run(gallop
 trot)|rest(sleep=slumber sit) / eat=consume(devour nibble) smell=sniff touch(lick nudge) /
 hungry(starving)|fed;wet=damp(soaked)|dry;black|white|brown /
 ripe=mature|rotten(moldy);sweet(sugary)|sour / village(barn(hayloft) stable(stall) meadow)
city / person(tourist=visitor(backpacker) driver=motorist(cabbie trucker) seller=vendor(grocer)) /
 item=object(bag(purse satchel) toy(doll kite) hat(beret bonnet)) / walk(stroll
 march)|stand(queue)|dance(waltz) / buy=purchase carry(haul) paint(varnish) find=discover /
 rich=wealthy|poor(penniless);late=tardy|early;angry(furious)|calm / red(scarlet
 crimson)|blue(navy);cheap=inexpensive|costly=expensive / town=city(mall(bakery kiosk)
 park(playground) station(booth))
school / person(pupil=student(freshman junior) teacher=instructor(professor) parent(mother father))
 / text(book=volume(novel atlas) essay poem(sonnet haiku)) picture=image(sketch portrait) /
 jump=leap(hop)|sit(squat)|march(parade) / study=examine(memorize) copy=duplicate(trace)
 praise=commend / bored=uninterested|curious(inquisitive);blond|brunette;sick=ill(feverish)|healthy
 / long=lengthy|short=brief;famous=renowned|unknown=obscure / school=academy(library(archive)
 classroom gym=gymnasium)
hospital / person(doctor=physician(surgeon oncologist) nurse(midwife) patient(outpatient
 inpatient)) / tool=instrument(scalpel syringe) drug=medicine(vaccine painkiller(aspirin))
 cloth(bandage) / cry=weep(sob)|laugh(giggle chuckle)|sleep=slumber(doze) / clean(scrub sterilize)
 use=employ hide=conceal bring=fetch /
 tired=weary(exhausted)|rested;scared=frightened(terrified)|fearless;bald=hairless|bearded /
 white(ivory)|gray;new|used=secondhand / clinic=infirmary(ward(nursery) laboratory=lab pharmacy)
forest / beast(bear(grizzly cub) canine(coyote jackal fox) rodent(squirrel beaver)) /
 plant(tree(oak birch maple) flower=blossom(tulip violet) shrub=bush) /
 climb(scramble)|swim(paddle)|crouch=squat / destroy=ruin(shred) watch=observe circle=orbit /
 wounded=injured|unhurt=unharmed;muddy=grimy|spotless;tame|wild=untamed /
 dead(withered)|living;thorny=prickly|smooth / forest=woods(valley=dale(gorge) cave=cavern(grotto)
 clearing=glade)
stage / artist(musician(pianist drummer violinist) actor=performer(comedian) dancer(ballerina)) /
 work(song=tune(ballad anthem) play=drama(tragedy farce) film=movie(western documentary)) /
 bow(curtsy)|skate(glide)|sit(slouch) / discuss(debate) admire(adore) criticize(slam) record=tape /
 nervous=anxious(panicky)|relaxed;young=youthful(teenage)|old=aged;masked|unmasked /
 recent|ancient(prehistoric);funny=comic(hilarious)|sad=tragic / theater=playhouse(foyer=lobby
 balcony(loge) backroom)
sea / sailor=mariner(captain=skipper deckhand) diver(snorkeler) pirate=buccaneer(corsair) /
 treasure(coin(ducat) jewel=gem(ruby emerald pearl)) boat=vessel(canoe ferry yacht) /
 swim(snorkel)|climb(clamber)|sleep=slumber(snooze) / steal(pilfer) lose=misplace guard=protect
 hide=conceal / seasick=queasy|steady;sunburned(blistered)|pale;brave(heroic)|cowardly=timid /
 shiny=gleaming(dazzling)|dull=matte;old=antique|new / harbor=port(dock=wharf(slipway) lighthouse
 cove(lagoon))
castle / noble=aristocrat(king(emperor) queen lord=baron) soldier=warrior(knight archer(bowman)) /
 weapon(sword(saber rapier) spear=lance dagger) garment(robe=gown(toga) cape=cloak) /
 ride(canter)|pray=worship|duel(joust) / burn(scorch) bless polish=buff demand /
 loyal=faithful(devoted)|treacherous;armored|unarmored;proud(haughty)|humble=modest /
 sharp=keen(jagged)|blunt;golden=gilded|silver=silvery / palace=castle(dungeon=prison(cell) chapel
 turret=tower(attic))
"""
DAYS = split("monday tuesday wednesday thursday friday saturday sunday")
SHARED = {  # in every genre
    "time": ";".join(f"on_{day}(on_{day}_morning on_{day}_evening)" for day in DAYS),
    "adverb": "quietly=silently; slowly; happily=gladly; carefully=cautiously",
    "meet": "help=assist follow=trail greet=welcome warn=alert blame=accuse visit thank call=phone",
}
NAMES = split("rosa omar lily hugo nina ivan clara jonas")
FORMS = """run ran|sleep slept|sit sat|eat ate eaten|stand stood|buy bought|find found|swim swam|
weep wept|bring brought|hide hid hidden|steal stole stolen|lose lost|ride rode|midwife midwives|
person people|bowman bowmen|freshman freshmen"""
IRREGULAR = {words[0]: words[1:] for words in map(str.split, FORMS.split("|"))}
ON = split("balcony dock wharf slipway platform")  # "on the dock", else "in the barn"

# names: synonyms, the first stands for all; ups: itself and all it is a kind of; words of one
# family on different sides exclude each other
Word = namedtuple("Word", "names ups family side")


def parse(text: str) -> dict[str, Word]:
    """Read one slot of a genre; every synonym is a key."""
    words = {}
    for family, block in enumerate(text.split(";")):
        for side, tree in enumerate(block.split("|")):
            chain, last = [], None
            for token in re.findall(r"[\w=]+|[()]", tree):
                if token == "(":
                    chain.insert(0, last)
                elif token == ")":
                    chain.pop(0)
                else:
                    names = tuple(token.replace("_", " ").split("="))
                    last = names[0]
                    words |= dict.fromkeys(names, Word(names, (last, *chain), family, side))
    return words


LEXICON = {}  # genre -> slot -> word -> Word
for _line in LEXICON_TEXT.replace("\n ", " ").strip().split("\n"):
    _genre, *_slots = _line.split(" / ")
    LEXICON[_genre] = {slot: parse(text) for slot, text in zip(SLOTS, _slots, strict=True)}
    LEXICON[_genre] |= {slot: parse(text) for slot, text in SHARED.items()}
WORDS = {g: {slot: tuple(d) for slot, d in slots.items()} for g, slots in LEXICON.items()}


@lru_cache(None)
def inflect(word: str, ending: str) -> str:
    """Plural (s), past (ed), participle (en) or -ing form."""
    if word in IRREGULAR and ending != "ing":
        return IRREGULAR[word][-1 if ending == "en" else 0]
    if re.search(r"[^aeiou]y$", word) and ending != "ing":
        return word[:-1] + ("ies" if ending == "s" else "ied")
    if ending == "s":
        return word + ("es" if re.search(r"(s|x|ch|sh)$", word) else "s")
    if re.fullmatch(r"[^aeiou]*(qu)?[aeiou][bdgmnpt]", word):
        word += word[-1]
    return word.removesuffix("e") + ("ing" if ending == "ing" else "ed")


def articles(text: str) -> str:
    """Turn "a" into "an" where needed."""
    return re.sub(r"\ba (?=[aeiou](?!sed))", "an ", text)


def at(place: str) -> str:
    """A place phrase."""
    return f"{'on' if place in ON else 'in'} the {place}"


def choose(rng: random.Random, items: tuple | list):
    """rng.choice, three times as fast."""
    return items[int(rng.random() * len(items))]


def role(text: str) -> str:
    """The only split in which this premise, first question, or review may occur."""
    return ("dev", "train", "train", "text", "text")[zlib.crc32(text.encode()) % 5]


# ---- MNLI: meaning.  Quantifier -> (plural?, truth where a subjects satisfy the predicate and b do
# not, must subjects exist?, may the verb be negated without ambiguity of scope?)
QUANTIFIERS = {
    "every": (False, lambda a, b: b == 0, True, False),
    "all": (True, lambda a, b: b == 0, True, False),
    "no": (False, lambda a, b: a == 0, True, False),
    "none of the": (True, lambda a, b: a == 0, True, False),
    "not every": (False, lambda a, b: b > 0, True, False),
    "not all": (True, lambda a, b: b > 0, True, False),
    "some": (True, lambda a, b: a > 0, False, True),
    "most": (True, lambda a, b: a > b, True, True),
}
PLAIN = tuple(QUANTIFIERS)
for _n, _word in enumerate(("two", "three", "four"), start=2):
    QUANTIFIERS |= {
        f"at least {_word}": (True, lambda a, b, n=_n: a >= n, False, True),
        f"more than {_word}": (True, lambda a, b, n=_n: a > n, False, False),
        f"at most {_word}": (True, lambda a, b, n=_n: a <= n, False, False),
        f"fewer than {_word}": (True, lambda a, b, n=_n: a < n, False, False),
        f"exactly {_word}": (True, lambda a, b, n=_n: a == n, False, False),
    }
COUNTED = tuple(QUANTIFIERS)[len(PLAIN):]
QUANTIFIERS |= dict.fromkeys(NAMES, (False, lambda a, b: a == 1, True, True))
BOUND = 5  # at most so many things of each kind in a situation: tells all quantifiers apart

# One sentence; None where a part is absent.  quant may be a name, then without noun; that: "that is
# (not) wet"; pred, op, pred2: "is wet and tired", instead of a verb; past: only in the present,
# at one moment, do activities and places exclude each other.
EVENT = split("verb obj obj_adj adverb place time")
FIELDS = (*split("genre quant noun adj that that_not neg past pred op pred2"), *EVENT)
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
    subject = own.get("noun", full) & own.get("adj", full) & (full & ~that if f.that_not else that)
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
    words = re.sub("^every  person", "everybody", re.sub("^no  person", "nobody", words))
    if f.that:
        words += f" that {be} {'not' if f.that_not else ''} {f.that}"
    if f.neg and f.op:
        words += f" {be} neither {f.pred} nor {f.pred2}"
    elif f.past:
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
    return choose(rng, PLAIN if rng.random() < 0.9 else COUNTED)


def well_formed(f: Frame) -> bool:
    """Leave out ambiguous scope ("every .. not") and words that repeat or exclude each other."""
    if f.neg and (not QUANTIFIERS[f.quant][3] or f.op == "and"):
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
                 "that": maybe(0.07, "who_adj")}
        part["that_not"] = bool(part["that"]) and rng.random() < 0.4
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


def edit(rng: random.Random, f: Frame) -> Frame:
    """One random change of a sentence."""
    dice = rng.random()
    if dice < 0.26 and f.noun:
        return f._replace(quant=quantifier(rng), neg=f.neg and rng.random() < 0.5)
    if dice < 0.36:
        return f._replace(neg=not f.neg)
    if dice < 0.4 and f.noun and not f.that_not:
        return f._replace(adj=f.that, that=f.adj)
    if dice < 0.5 and f.op:
        return f._replace(op={"and": "or", "or": "and"}[f.op])
    fields = ["noun", "adj", "that"] * bool(f.noun) + ["obj", "obj_adj"] * bool(f.obj)
    fields += ["pred", "pred2"] if f.pred else ["verb", "adverb", "place"] + ["time"] * bool(f.past)
    field = choose(rng, fields)
    word, words = getattr(f, field), slot_words(f, field)
    # "Ate an apple" against "ate a pear" and the like is debatable: no alternatives there.
    clear = SLOT.get(field) in ("who", "who_adj") or (
        not f.past and (field == "place" or (field == "verb" and not f.obj)))
    if word and (field in ("noun", "verb", "pred", "obj") or rng.random() < 0.5):
        return f._replace(**{field: related(rng, words, word, 0.3 * clear)})
    change = {field: None if word else choose(rng, tuple(words))}
    if field == "pred2":
        change["op"] = None if word else choose(rng, ("and", "or"))
    if field == "that":
        change["that_not"] = not word and rng.random() < 0.4
    return f._replace(**change)


def infer(rng: random.Random, genre: str, part: str) -> tuple[tuple, str, str] | None:
    """Try one ((premise, hypothesis), label, shape of the hypothesis) for a split."""
    first = second = random_frame(rng, genre)
    for _ in range(choose(rng, (1, 1, 1, 1, 1, 1, 2, 3))):
        second = edit(rng, second)
    if first == second or not well_formed(second):
        return None
    first, second = (first, second) if rng.random() < 0.5 else (second, first)
    texts = [render(f, choose(rng, ("",) * 8 + ("place", "time"))) for f in (first, second)]
    side = word = None
    if rng.random() < 0.05 and first.noun and "person" not in (first.noun, second.noun):
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
    quant = re.sub("two|three|four", "n", second.quant) if second.noun else "name"
    return pair, lab, f"{quant} {second.neg}"


# the labels, and how the pretraining text words them
LINKS = {"entailment": ("so", "therefore", "that means that"),
         "neutral": ("maybe", "that does not mean that", "it is unclear whether"),
         "contradiction": ("it is false that", "so it is not true that", "it cannot be that")}


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


def review(rng: random.Random, good: bool) -> str:
    """A sentence whose main clause has that polarity."""
    main, other = clause(rng, good), clause(rng, good != (rng.random() < 0.6))
    aside = f"the {choose(rng, GOOD + BAD)} {choose(rng, ASPECTS)}"
    forms = ("{o} but {m}", "{o} , but {m}", "{o} ; still , {m}", "although {o} , {m}",
             "{m} , although {o}", "despite {a} , {m}", "{m} despite {a}")
    form = choose(rng, forms) if rng.random() < 0.5 else "{m}"
    return articles(form.format(m=main, o=other, a=aside)) + " ."


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


# ---- pretraining text.  What to say of a word w, its synonym n, its kind u, and its opposite o
FACTS = {
    "who": "a {w} is the same as a {n} .|a {w} is a kind of {u} .|every {w} is a {u} .|"
           "not every {u} is a {w} .",
    "what_adj": "{w} means {n} .|whatever is {w} is {u} .|not everything {u} is {w} .|"
                "nothing is both {w} and {o} .",
    "go": "{w} means {n} .|anybody that is {w} is {u} .|{w} is a way of {u} .|"
          "nobody is {w} and {o} at the same time .",
    "place": "the {w} is the {n} .|the {w} is in the {u} .|whoever is in the {w} is in the {u} .",
    "time": "{w} means some time {u} .",
}
FACTS |= {"what": FACTS["who"], "who_adj": FACTS["what_adj"], "act": FACTS["go"]}


def facts(rng: random.Random, genre: str) -> str:
    """One or two sentences on what a word means."""
    slot = choose(rng, tuple(FACTS))
    words = LEXICON[genre][slot]
    word = choose(rng, WORDS[genre][slot])
    own = words[word]
    options = {"w": [word], "n": [n for n in own.names if n != word],
               "u": [n for up in own.ups[1:] for n in words[up].names],
               "o": [w for w, e in words.items() if e.family == own.family and e.side != own.side]}
    chosen = {x: choose(rng, names) for x, names in options.items() if names}
    if slot in ("go", "act"):
        chosen = {x: inflect(name, "ing") for x, name in chosen.items()}
    said = [form.format(**chosen) for form in FACTS[slot].split("|")
            if set(re.findall(r"{(\w)}", form)) <= set(chosen)]
    return articles(" ".join(rng.sample(said, min(len(said), 2)))) or facts(rng, genre)


def pretraining_text(n: int) -> Iterator[str]:
    """n documents of facts, inferences, descriptions, reviews and questions; no evaluation rows."""
    rng = random.Random("pretraining text")
    while n:
        genre, dice = choose(rng, GENRES_MATCHED + GENRES_MISMATCHED), rng.random()
        good = rng.random() < 0.5
        first = second = ""
        if dice < 0.15:
            second = facts(rng, genre)
        elif dice < 0.62:
            (first, second), lab, _ = infer(rng, genre, "text") or (("", ""), "", "")
            second = lab and f"{choose(rng, LINKS[lab])} {second}"
        elif dice < 0.7:
            first, second = (render(random_frame(rng, genre)) + " ." for _ in range(2))
        elif dice < 0.85:
            first, second = review(rng, good), f"it is {'good' if good else 'bad'} ."
        else:
            first, second = question_pair(rng, genre, good)
            second = f"{'in other words' if good else 'another question is'} , {second}"
        if second and (not first or role(first) == "text"):
            n -= 1
            yield f"{first} {second}".strip()


# ---- files
def two_way_rows(n: int, part: str, make, *context) -> Iterator[tuple]:
    """n distinct rows (text, .., label 0 or 1) of make(rng, [genre,] label)."""
    rng, seen = random.Random(f"{make.__name__} {part}"), set()
    while len(seen) < n:
        lab = len(seen) % 2
        texts = make(rng, *(choose(rng, genres) for genres in context), bool(lab))
        texts = texts if context else (texts,)
        if role(texts[0]) == part and texts not in seen and len(set(texts)) == len(texts):
            seen.add(texts)
            yield *texts, lab


def write_task(task: str, folder: Path) -> None:
    """Write all splits of a task in the official layout below folder."""
    for name, n in SIZES[task].items():
        part = name.split("_")[0]
        if task == "sst2":
            columns, rows = "sentence label", two_way_rows(n, part, review)
        elif task == "qqp":
            columns = "id qid1 qid2 question1 question2 is_duplicate"
            pairs = two_way_rows(n, part, question_pair, GENRES_MATCHED)
            rows = ((i, 2 * i, 2 * i + 1, *row) for i, row in enumerate(pairs))
        else:
            genres = GENRES_MISMATCHED if name == "dev_mismatched" else GENRES_MATCHED
            votes = "label1" if part == "train" else "label1 label2 label3 label4 label5"
            columns = ("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
                       f"sentence1_parse sentence2_parse sentence1 sentence2 {votes} gold_label")
            rows = ((i, i, i, genre, *[""] * 4, *pair, *[lab] * (votes.count(" ") + 2))
                    for i, (genre, *pair, lab) in enumerate(mnli_rows(n, genres, part)))
        path = folder / {"mnli": "MNLI", "qqp": "QQP", "sst2": "SST-2"}[task] / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (columns.split(), *(map(str, row) for row in rows))
        path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    print(SIZES)
    with tempfile.TemporaryDirectory() as scratch:
        for task_name in SIZES:
            write_task(task_name, Path(scratch))
        for file in sorted(Path(scratch).glob("*/dev*.tsv")):
            print(f"\n{file.parent.name}/{file.name}")
            for line in file.read_text(encoding="utf-8").split("\n")[1:7]:
                print("  ", " | ".join(filter(None, line.split("\t"))))
        print("\npretraining text", *pretraining_text(8), sep="\n   ")
