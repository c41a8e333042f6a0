"""The words of the generated sample: how they relate in meaning, and how they are inflected.

The tables are in language.toml, which also says how a list of words is written.
"""

import random
import re
import tomllib
import zlib
from collections import namedtuple
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

TABLES = tomllib.loads(Path(__file__).with_name("language.toml").read_text(encoding="utf-8"))
GENRES_MATCHED = ("farm", "city", "forest", "stage")
GENRES_MISMATCHED = ("sea",)  # in the pretraining documents, never in training rows
NAMES, SURFACES = TABLES["other"]["names"], TABLES["other"]["surfaces"]

# names: the word and its synonyms, the first of which stands for all; hypernyms: the first names
# of the word itself and of all that it is a kind of; words of one family but different sides are
# opposites
Word = namedtuple("Word", "names hypernyms family side")


def parse_slot(text: str) -> dict[str, Word]:
    """Read the words of one slot; each synonym is a key."""
    words = {}
    for family, family_text in enumerate(text.split(";")):
        for side, side_text in enumerate(family_text.split("|")):
            parents, latest = [], None  # parents: the words with an open bracket, innermost first
            for token in re.findall(r"[\w=]+|[()]", side_text):
                if token == "(":
                    parents.insert(0, latest)
                elif token == ")":
                    parents.pop(0)
                else:
                    names = tuple(token.replace("_", " ").split("="))
                    latest = names[0]
                    words |= dict.fromkeys(names, Word(names, (latest, *parents), family, side))
    return words


# genre → slot → word → what it means
LEXICON = {genre: {slot: parse_slot(text) for slot, text in (slots | TABLES["shared"]).items()}
           for genre, slots in TABLES["genres"].items()}


def is_kind(special: Word, general: Word) -> bool:
    """True of "poodle" and "dog", and of synonyms."""
    return general.names[0] in special.hypernyms


def overlap(one: Word, two: Word) -> bool:
    """Is one of the words a kind of the other?"""
    return is_kind(one, two) or is_kind(two, one)


def opposed(one: Word, two: Word) -> bool:
    return one.family == two.family and one.side != two.side


@lru_cache(None)
def inflect(word: str, ending: str) -> str:
    """The plural (ending "s"), past ("ed"), participle ("en") or progressive ("ing")."""
    irregular = TABLES["irregular"].get(word)
    if irregular and ending != "ing":
        return irregular[-1 if ending == "en" else 0]
    if re.search(r"[^aeiou]y$", word) and ending != "ing":
        return word[:-1] + ("ies" if ending == "s" else "ied")
    if ending == "s":
        return word + ("es" if re.search(r"(s|x|ch|sh)$", word) else "s")
    if re.fullmatch(r"[^aeiou]*(qu)?[aeiou][bdgmnpt]", word):
        word += word[-1]
    return word.removesuffix("e") + ("ing" if ending == "ing" else "ed")


def fix_articles(text: str) -> str:
    """Turn "a" into "an" before a vowel."""
    return re.sub(r"\ba (?=[aeiou](?!sed))", "an ", text)


def locate(place: str) -> str:
    return f"{'on' if place in SURFACES else 'in'} the {place}"


def choose(rng: random.Random, items: Collection):
    """rng.choice, but three times as fast, and also of a dict's keys."""
    return tuple(items)[int(rng.random() * len(items))]


def split_of(text: str) -> str:
    """The only split that may hold this premise, first question, review or passage: "train", "dev"
    or "text" (for pretraining). It depends on the text alone."""
    return ("dev", "train", "train", "text", "text")[zlib.crc32(text.encode()) % 5]
