"""The words of the generated sample: what they mean to each other, and how they are inflected.

A genre has slots of words. dog(poodle beagle): kinds of dog; a=b: synonyms; a|b: nothing is both
at one moment; ";" separates unrelated families.
"""

import random
import re
import zlib
from collections import namedtuple
from functools import lru_cache

GENRES_MATCHED = ("farm", "city", "school", "hospital", "forest", "stage")
GENRES_MISMATCHED = ("sea", "castle")  # in the pretraining text, never in the training rows


def split(text: str) -> tuple[str, ...]:
    """The words of a table."""
    return tuple(text.split())


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
