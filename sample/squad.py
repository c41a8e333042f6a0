"""Generated passages and questions in SQuAD's manner and layout.

    python -m sample.squad      prints a few

A passage tells of 3 or 4 events. They share a small cast of people, deeds, things, places and
times, so that the words of a question occur in several sentences, and only all of them together
single out one event. Questions swap active and passive, and name things by synonyms or by what
they are a kind of; some events are said not to have happened, and asked for as such.
"""

import random
from collections import namedtuple
from collections.abc import Iterator

from sample.lexicon import (
    GENRES_MATCHED,
    LEXICON,
    NAMES,
    WORDS,
    articles,
    at,
    choose,
    inflect,
    role,
    split,
)

SIZES = {"train": 6_000, "dev": 1_000}
PER_PASSAGE = 4  # at most so many questions
NUMBERS = split("two three four five six seven eight nine")

# One event. who, verb, what, place, time: members of the cast, of which any two differ in meaning;
# slot: the lexicon's, of the verb; what: a person where slot is "meet"; count: how many things
Event = namedtuple("Event", "who slot verb what count place time neg")
GIVEN = ("who", "what", "place", "time")  # what a question may tell, besides the verb

# field → wordings, the second one passive, which an event without what does not have
QUESTIONS = {
    "who": "who {past} {o}|by whom {be} {o} {no}{ven}",
    "what": "{what} did {s} {no}{v}|{what} was {no}{ven} {by}",
    "place": "where did {s} {v} {o}|where {be} {o} {ven} {by}|in what place did {s} {v} {o}",
    "time": "when did {s} {v} {o}|when {be} {o} {ven} {by}|on what day did {s} {v} {o}",
    "count": "how many {o} did {s} {v}|how many {o} were {ven} {by}",
}


def cast(rng: random.Random, genre: str, slot: str, n: int) -> list[str]:
    """n words of a slot, none of them a kind of another."""
    words, found = LEXICON[genre][slot], []
    for word in rng.sample(WORDS[genre][slot], len(words)):
        own = words[word]
        if not any(own.names[0] in words[w].ups or words[w].names[0] in own.ups for w in found):
            found.append(word)
    return found[:n] if len(found) >= n else cast(rng, genre, slot, n)


def differ(e: Event, other: Event, fields: tuple[str, ...] | list[str]) -> bool:
    """Is one of the fields told of both events, and not the same?"""
    return any(a and b and a != b for a, b in ((getattr(e, f), getattr(other, f)) for f in fields))


def with_article(word: str, article: str, adjective: str | None = None, many=False) -> str:
    """A person or thing with its article or number; names stand alone."""
    words = [article, adjective, inflect(word, "s") if many else word]
    return word if word in NAMES else articles(" ".join(filter(None, words)))


class Story:
    """A cast, the events it goes through, and the text that tells of them."""

    def __init__(self, rng: random.Random, genre: str):
        self.rng, self.genre = rng, genre
        self.cast = {slot: cast(rng, genre, slot, 2) for slot in split("who what act place time")}
        self.cast |= {slot: cast(rng, genre, slot, 1) for slot in ("go", "meet")}
        self.adjectives = {word: choose(rng, WORDS[genre][slot + "_adj"])
                           for slot in ("who", "what") for word in self.cast[slot]
                           if rng.random() < 0.4}
        self.cast["who"] += rng.sample(NAMES, choose(rng, (1, 2)))
        self.events, self.text = [], ""
        self.spans = []  # of each event: field → the texts that answer for it, and their starts
        size = choose(rng, (3, 4))
        while len(self.events) < size:
            e = self.draw()
            # no event repeats or contradicts another
            if all(differ(e, x, ("who", "verb", "what") if e.neg or x.neg else (*GIVEN, "verb"))
                   for x in self.events):
                self.events.append(e)
                self.spans.append(self.tell(e))

    def draw(self) -> Event:
        """A random event of the cast."""
        rng = self.rng
        slot = choose(rng, ("act", "act", "act", "act", "meet", "meet", "go"))
        who, other = rng.sample(self.cast["who"], 2)
        what = {"act": choose(rng, self.cast["what"]), "meet": other, "go": None}[slot]
        count = choose(rng, NUMBERS) if slot == "act" and rng.random() < 0.45 else None
        place, time = (choose(rng, self.cast[x]) if rng.random() < 0.6 else None
                       for x in ("place", "time"))
        neg = rng.random() < 0.15
        return Event(who, slot, choose(rng, self.cast[slot]), what, count, place, time, neg)

    def tell(self, e: Event) -> dict[str, list[tuple[str, int]]]:
        """Add an event's sentence to the text → the texts that answer for its fields."""
        rng, adjective = self.rng, self.adjectives.get
        who = "who", with_article(e.who, "the", adjective(e.who))
        article = e.count or ("the" if e.slot == "meet" else "a")
        what = "what", e.what and with_article(e.what, article, adjective(e.what), bool(e.count))
        verb = f"did not {e.verb}" if e.neg else inflect(e.verb, "ed")
        parts = [who, ("", verb), what]
        if e.what and rng.random() < 0.4:
            be = ("were" if e.count else "was") + " not" * e.neg
            parts = [what, ("", f"{be} {inflect(e.verb, 'en')} by"), who]
        ends = [("place", e.place and at(e.place)), ("time", e.time)]
        if rng.random() < 0.3:
            front = ends.pop(choose(rng, (0, 1)))
            parts = [front, ("", front[1] and ","), *parts]
        spans = {}
        for field, words in [*parts, *ends, ("", ".")]:
            if words:
                self.text += " " * bool(self.text)
                spans[field] = [(words, len(self.text))]
                if field in ("place", "time"):  # "the barn", then "in the barn"
                    spans[field].insert(0, (words[3:], len(self.text) + 3))
                self.text += words
        if e.count:
            spans["count"] = [(e.count, spans["what"][0][1])]
        return spans

    def other_word(self, slot: str, word: str) -> str:
        """The word, a synonym, or what it is a kind of if nothing else in the cast is."""
        words, others = LEXICON[self.genre][slot], [w for w in self.cast[slot] if w != word]
        if word in NAMES or self.rng.random() < 0.7:
            return word
        if any(w in NAMES for w in others):  # they may be of any kind
            return choose(self.rng, words[word].names)
        ups = [up for up in words[word].ups if not any(up in words[w].ups for w in others)]
        return choose(self.rng, words[choose(self.rng, ups)].names)

    def ask(self, e: Event, field: str) -> str | None:
        """A question that this event alone answers by that field; None if there is none."""
        rivals = [x for x in self.events if x is not e and x.neg == e.neg]
        more = [f for f in GIVEN if f != field and getattr(e, f)]
        given = ["verb"] + ["what"] * (field == "count")
        for f in self.rng.sample(more, len(more)):
            if not all(differ(e, x, given) for x in rivals) or self.rng.random() < 0.5:
                given.append(f)
        return self.word(e, field, given) if all(differ(e, x, given) for x in rivals) else None

    def word(self, e: Event, field: str, given: list[str]) -> str:
        """Word the question for a field of an event, of which some others are given."""
        someone = e.slot == "meet"
        slots = {"who": "who", "what": "who" if someone else "what", "verb": e.slot,
                 "place": "place", "time": "time"}
        w = {f: self.other_word(slot, getattr(e, f)) for f, slot in slots.items() if f in given}
        many, v = bool(e.count and "what" in w), w["verb"]
        who = with_article(w["who"], "the") if "who" in w else "somebody"
        what = "somebody" if someone else "something" if e.what else ""
        if "what" in w:
            what = with_article(w["what"], "the" * (field != "count"), None, many)
        forms = QUESTIONS[field].split("|")
        question = choose(self.rng, forms if e.what else forms[::2]).format(
            s=who, by="by " + who if "who" in w else "", o=what, what="who" if someone else "what",
            be="were" if many else "was", no="not " * e.neg, v=v, ven=inflect(v, "en"),
            past=f"did not {v}" if e.neg else inflect(v, "ed"))
        ends = [at(w[f]) if f == "place" else w[f] for f in ("place", "time") if f in w]
        if ends and self.rng.random() < 0.2:
            question = f"{ends.pop()} , {question}"
        return " ".join(" ".join([question, *ends, "?"]).split())

    def questions(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """Questions with the texts that answer them and their starts, in random order."""
        asked = {self.ask(e, field): spans[field] for e, spans in zip(self.events, self.spans)
                 for field in QUESTIONS
                 if field in spans and (not e.neg or field in ("who", "what"))}
        asked.pop(None, None)
        return self.rng.sample(list(asked.items()), len(asked))


def stories(rng: random.Random, part: str) -> Iterator[Story]:
    """Stories of a role without end, each text once."""
    seen = set()
    while True:
        story = Story(rng, choose(rng, GENRES_MATCHED))
        if role(story.text) == part and story.text not in seen:
            seen.add(story.text)
            yield story


def passages(rng: random.Random) -> str:
    """A passage for the pretraining text; before most, a question and its answer."""
    story = next(stories(rng, "text"))
    for question, [(answer, _), *_] in story.questions()[:1] if rng.random() < 0.7 else ():
        return f"{question} {answer} . {story.text}"
    return story.text


def squad_json(part: str, n: int) -> dict:
    """n questions of part "train" or "dev" in the official v1.1 layout, an article per genre.

    As in the official files, training questions have one answer, and dev questions may have more.
    """
    made, found = 0, {genre: [] for genre in GENRES_MATCHED}
    for story in stories(random.Random(f"squad {part}"), part):
        qas = []
        for question, answers in story.questions()[: min(PER_PASSAGE, n - made)]:
            qas.append({"id": f"{part}-{made}", "question": question, "answers": [
                {"text": text, "answer_start": start}
                for text, start in answers[: None if part == "dev" else 1]]})
            made += 1
        found[story.genre].append({"context": story.text, "qas": qas})
        if made == n:
            break
    return {"version": "1.1", "data": [
        {"title": genre, "paragraphs": some} for genre, some in found.items() if some]}


if __name__ == "__main__":
    for shown in squad_json("dev", 24)["data"]:
        print("\n" + shown["title"], shown["paragraphs"][0]["context"], sep=": ")
        for qa in shown["paragraphs"][0]["qas"]:
            print("  ", qa["question"], "→", " | ".join(a["text"] for a in qa["answers"]))
