"""Generated passages and questions in the manner and layout of SQuAD 1.1.

A passage tells of three or four events with a small cast of people, things, actions, places and
times. The words of a question therefore occur in several sentences, and only all of them together
single out one event. Questions switch between active and passive, and replace words by synonyms or
more general words. Some events are said not to have happened, and questions ask about those too.
"""

import random
from collections import namedtuple
from collections.abc import Iterator

from sample import lexicon
from sample.lexicon import GENRES_MATCHED, LEXICON, NAMES, choose, inflect

PER_PASSAGE = 4  # at most so many questions

# who, verb, what, place and time are members of the cast, any two of which differ in meaning.
# slot: the verb's in the lexicon ("meet": `what` is a person; "go": there is no `what`)
Event = namedtuple("Event", "who slot verb what count place time negated")
DETAILS = ("who", "what", "place", "time")  # what a question may mention besides the verb

NUMBERS = lexicon.TABLES["other"]["numbers"]
QUESTIONS = lexicon.TABLES["passages"]  # field that is asked for → wordings


def choose_cast(rng: random.Random, genre: str, slot: str, n: int) -> list[str]:
    """n words of a slot, none of them a kind of another."""
    words, members = LEXICON[genre][slot], []
    for word in rng.sample(list(words), len(words)):
        if not any(lexicon.overlap(words[word], words[member]) for member in members):
            members.append(word)
    return members[:n] if len(members) >= n else choose_cast(rng, genre, slot, n)


def differ(one: Event, two: Event, fields) -> bool:
    """Do both events mention one of these fields, with different words?"""
    return any(None not in (a, b) and a != b
               for a, b in ((getattr(one, field), getattr(two, field)) for field in fields))


def noun_phrase(article: str, word: str, adjective: str | None = None, plural=False) -> str:
    """A person or thing; `article` may be a number. Names have none."""
    parts = [article, adjective, inflect(word, "s") if plural else word]
    return word if word in NAMES else lexicon.fix_articles(" ".join(filter(None, parts)))


class Story:
    """A cast, what happens to it, and the text that tells of it."""

    def __init__(self, rng: random.Random, genre: str):
        self.rng, self.genre = rng, genre
        self.cast = {slot: choose_cast(rng, genre, slot, n) for slot, n in (
            ("who", 2), ("what", 2), ("act", 2), ("place", 2), ("time", 2), ("go", 1), ("meet", 1))}
        self.adjectives = {word: choose(rng, LEXICON[genre][slot + "_adj"])
                           for slot in ("who", "what") for word in self.cast[slot]
                           if rng.random() < 0.4}
        self.cast["who"] += rng.sample(NAMES, choose(rng, (1, 2)))
        self.events, self.text = {}, ""  # events: event → what tell() returns
        size = choose(rng, (3, 4))
        while len(self.events) < size:
            event = self.random_event()
            if not any(self.clash(event, other) for other in self.events):
                self.events[event] = self.tell(event)

    def clash(self, one: Event, two: Event) -> bool:
        """Does one event repeat or contradict the other?"""
        negated = one.negated or two.negated
        return not differ(one, two, ("who", "verb", "what") if negated else (*DETAILS, "verb"))

    def random_event(self) -> Event:
        rng, cast = self.rng, self.cast
        slot = choose(rng, ("act", "act", "act", "act", "meet", "meet", "go"))
        who, other = rng.sample(cast["who"], 2)
        what = {"act": choose(rng, cast["what"]), "meet": other, "go": None}[slot]
        count = choose(rng, NUMBERS) if slot == "act" and rng.random() < 0.45 else None
        place, time = (choose(rng, cast[field]) if rng.random() < 0.6 else None
                       for field in ("place", "time"))
        negated = rng.random() < 0.15
        return Event(who, slot, choose(rng, cast[slot]), what, count, place, time, negated)

    def tell(self, e: Event) -> dict[str, list[tuple[str, int]]]:
        """Append the event's sentence to the text → field → texts that answer for it, with their
        starts."""
        rng, adjectives = self.rng, self.adjectives
        who = "who", noun_phrase("the", e.who, adjectives.get(e.who))
        article = e.count or ("the" if e.slot == "meet" else "a")
        what = "what", e.what and noun_phrase(article, e.what, adjectives.get(e.what), e.count)
        clause = [who, ("", f"did not {e.verb}" if e.negated else inflect(e.verb, "ed")), what]
        if e.what and rng.random() < 0.4:
            be = ("were" if e.count else "was") + (" not" if e.negated else "")
            clause = [what, ("", f"{be} {inflect(e.verb, 'en')} by"), who]
        ends = [("place", e.place and lexicon.locate(e.place)), ("time", e.time)]
        if rng.random() < 0.3:
            front = ends.pop(choose(rng, (0, 1)))
            clause = [front, ("", front[1] and ","), *clause]
        answers = {}
        for field, words in [*clause, *ends, ("", ".")]:
            if words:
                self.text += " " if self.text else ""
                answers[field] = [(words, len(self.text))]
                if field in ("place", "time"):  # "the barn", then "in the barn"
                    answers[field].insert(0, (words[3:], len(self.text) + 3))
                self.text += words
        if e.count:
            answers["count"] = [(e.count, answers["what"][0][1])]
        return answers

    def reword(self, slot: str, word: str) -> str:
        """The word, a synonym, or a more general word that fits nothing else in the cast."""
        words, others = LEXICON[self.genre][slot], [w for w in self.cast[slot] if w != word]
        if word in NAMES or self.rng.random() < 0.7:
            return word
        if any(other in NAMES for other in others):  # nothing says what kind of person they are
            return choose(self.rng, words[word].names)
        general = [kind for kind in words[word].hypernyms
                   if not any(kind in words[other].hypernyms for other in others)]
        return choose(self.rng, words[choose(self.rng, general)].names)

    def ask(self, e: Event, field: str) -> str | None:
        """A question to which only this event's `field` is the answer; None if there is none."""
        rivals = [other for other in self.events if other != e and other.negated == e.negated]
        details = [f for f in DETAILS if f != field and getattr(e, f)]
        given = ["verb", "what"] if field == "count" else ["verb"]
        for detail in self.rng.sample(details, len(details)):
            if not all(differ(e, other, given) for other in rivals) or self.rng.random() < 0.5:
                given.append(detail)
        unique = all(differ(e, other, given) for other in rivals)
        return self.question(e, field, given) if unique else None

    def question(self, e: Event, field: str, given: list[str]) -> str:
        """The question that asks for `field` and mentions the `given` fields of the event."""
        person = e.slot == "meet"
        slots = {"who": "who", "what": "who" if person else "what", "verb": e.slot,
                 "place": "place", "time": "time"}
        words = {f: self.reword(slot, getattr(e, f)) for f, slot in slots.items() if f in given}
        who = noun_phrase("the", words["who"]) if "who" in words else "somebody"
        what = "somebody" if person else "something" if e.what else ""
        plural = bool(e.count and "what" in words)
        if "what" in words:
            what = noun_phrase("" if field == "count" else "the", words["what"], plural=plural)
        forms, verb = QUESTIONS[field], words["verb"]
        asked = choose(self.rng, forms if e.what else forms[::2]).format(
            who=who, by=f"by {who}" if "who" in words else "", what=what,
            wh="who" if person else "what", be="were" if plural else "was",
            no="not " if e.negated else "", v=verb, ven=inflect(verb, "en"),
            past=f"did not {verb}" if e.negated else inflect(verb, "ed"))
        ends = [lexicon.locate(words["place"])] if "place" in words else []
        ends += [words["time"]] if "time" in words else []
        if ends and self.rng.random() < 0.2:
            asked = f"{ends.pop()} , {asked}"
        return " ".join([*asked.split(), *ends, "?"])

    def questions(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """Questions in random order, each with the texts that answer it and their starts."""
        asked = {self.ask(e, field): answers[field]
                 for e, answers in self.events.items() for field in QUESTIONS
                 if field in answers and (not e.negated or field in ("who", "what"))}
        asked.pop(None, None)
        return self.rng.sample(list(asked.items()), len(asked))


def stories(rng: random.Random, split: str) -> Iterator[Story]:
    """Endless stories for a split, no two with the same text."""
    seen = set()
    while True:
        story = Story(rng, choose(rng, GENRES_MATCHED))
        if lexicon.split_of(story.text) == split and story.text not in seen:
            seen.add(story.text)
            yield story


def document(rng: random.Random) -> str:
    """A passage to pretrain on, most with a question and its answer before it."""
    story = next(stories(rng, "text"))
    if rng.random() < 0.7:
        for question, [(answer, _), *_] in story.questions()[:1]:
            return f"{question} {answer} . {story.text}"
    return story.text


def squad_json(split: str, n: int) -> dict:
    """n questions of the split "train" or "dev" in the official layout, one article per genre.

    As in the official files, training questions have one answer; dev questions may have more.
    """
    paragraphs, made = {genre: [] for genre in GENRES_MATCHED}, 0
    for story in stories(random.Random(f"squad {split}"), split):
        questions = []
        for question, answers in story.questions()[: min(PER_PASSAGE, n - made)]:
            answers = [{"text": text, "answer_start": start} for text, start in answers]
            questions.append({"id": f"{split}-{made}", "question": question,
                              "answers": answers if split == "dev" else answers[:1]})
            made += 1
        paragraphs[story.genre].append({"context": story.text, "qas": questions})
        if made == n:
            break
    return {"version": "1.1", "data": [{"title": genre, "paragraphs": of_genre}
                                       for genre, of_genre in paragraphs.items() if of_genre]}
