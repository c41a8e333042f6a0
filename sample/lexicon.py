"""The words of the generated sample: what they mean to each other, and how they are inflected.

A genre has slots of words. dog(poodle beagle): kinds of dog; a=b: synonyms; a|b: nothing is both
at one moment; ";" separates unrelated families.
"""

import random
import re
import zlib
from collections import namedtuple
from functools import lru_cache

GENRES_MATCHED = ("farm", "city", "forest", "stage")
GENRES_MISMATCHED = ("sea",)  # in the pretraining text, never in the training rows


def split(text: str) -> tuple[str, ...]:
    """The words of a table."""
    return tuple(text.split())


SLOTS = split("who what go act place")
LEXICON_TEXT = """
farm / animal=creature(dog(poodle beagle) horse(mare pony) bird(hen duck)) /
 vegetable=veggie(carrot turnip) fruit(apple pear) / run(gallop trot)|rest(sleep=slumber) /
 eat=consume(devour nibble) smell=sniff / village(barn(hayloft) stable meadow)
city / person(tourist=visitor(backpacker) driver=motorist(cabbie) seller=vendor(grocer)) /
 item=object(bag(purse satchel) toy(doll kite)) / walk(stroll march)|stand(queue) /
 buy=purchase carry(haul) paint / town(mall(bakery kiosk) park station)
forest / beast(bear(grizzly cub) canine(coyote jackal) rodent(squirrel)) /
 plant(tree(oak birch) flower=blossom(tulip violet)) / climb(scramble)|crouch /
 destroy=ruin(shred) watch=observe / forest=woods(valley(gorge) cave=cavern clearing)
stage / artist(musician(pianist drummer) actor=performer(comedian) dancer(ballerina)) /
 work(song=tune(ballad anthem) play=drama(tragedy)) / bow(curtsy)|skate(glide) /
 discuss(debate) admire(adore) record / theater=playhouse(foyer=lobby balcony(loge))
sea / sailor=mariner(captain=skipper deckhand) diver(snorkeler) pirate /
 treasure(coin(ducat) jewel=gem(ruby emerald)) boat=vessel(canoe) / swim(paddle)|dive /
 steal(pilfer) lose=misplace / harbor=port(dock=wharf lighthouse cove(lagoon))
"""
DAYS = split("monday tuesday wednesday thursday friday saturday sunday")
SHARED = {  # in every genre
    "who_adj": "tired=weary(exhausted)|rested;angry(furious)|calm;hungry(starving)|fed;young|old",
    "what_adj": "new|old=aged(ancient);large=big(huge)|small(tiny);wet=damp(soaked)|dry;red|blue",
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
