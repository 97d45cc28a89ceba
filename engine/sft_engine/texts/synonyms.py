"""A small table of English synonyms, written for this engine, and the reader of a user's own.

Each line is a group of words that may stand for each other in most sentences. Groups never join words
that a sentiment or a topic would tell apart: `good` and `excellent` are in different ones.
"""

from __future__ import annotations

from pathlib import Path

from sft_engine.errors import DataError

_GROUPS = """
big, large
huge, enormous, gigantic, immense
small, little
tiny, minute, miniature
quick, fast, rapid, swift
quickly, rapidly, swiftly
slow, sluggish
slowly, gradually
begin, start, commence
begins, starts, commences
began, started, commenced
end, finish, conclude
ends, finishes, concludes
ended, finished, concluded
buy, purchase
bought, purchased
show, display
shows, displays
movie, film, picture
movies, films, pictures
actor, performer
actors, performers
story, tale, narrative
stories, tales, narratives
plot, storyline
script, screenplay
scene, sequence
scenes, sequences
song, tune
songs, tunes
book, volume
picture, image
pictures, images
car, automobile
cars, automobiles
house, home
houses, homes
child, kid
children, kids
man, fellow
friend, companion, pal
friends, companions, pals
boss, chief
doctor, physician
doctors, physicians
lawyer, attorney
lawyers, attorneys
job, occupation, position
work, labour
money, cash
shop, store
shops, stores
road, street
town, city
towns, cities
country, nation
countries, nations
answer, reply, response
answers, replies, responses
ask, inquire
asked, inquired
question, query
questions, queries
help, aid, assist
helps, aids, assists
helped, aided, assisted
need, require
needs, requires
needed, required
want, desire, wish
wants, desires, wishes
wanted, desired, wished
try, attempt
tries, attempts
tried, attempted
get, obtain, acquire
gets, obtains, acquires
keep, retain
keeps, retains
kept, retained
choose, select, pick
chose, selected, picked
chosen, selected, picked
allow, permit, let
allows, permits, lets
allowed, permitted
stop, halt, cease
stops, halts, ceases
stopped, halted, ceased
happen, occur
happens, occurs
happened, occurred
look, appear, seem
looks, appears, seems
looked, appeared, seemed
talk, speak
talks, speaks
talked, spoke
say, state
says, states
said, stated
tell, inform
think, believe, reckon
thinks, believes, reckons
thought, believed, reckoned
understand, comprehend, grasp
understood, comprehended, grasped
explain, clarify
explains, clarifies
explained, clarified
build, construct
builds, constructs
built, constructed
repair, fix, mend
repaired, fixed, mended
send, dispatch
sent, dispatched
receive, get
received, got
watch, view
watched, viewed
watching, viewing
use, employ, utilise
uses, employs, utilises
used, employed, utilised
change, alter, modify
changes, alters, modifies
changed, altered, modified
increase, grow, rise
increased, grew, rose
decrease, decline, drop
decreased, declined, dropped
important, significant, crucial
whole, entire, complete
main, chief, principal
strange, odd, peculiar, weird
difficult, hard, tough
easy, simple, effortless
easily, simply, effortlessly
rich, wealthy, affluent
poor, needy
old, aged, elderly
new, recent
modern, contemporary
famous, renowned, celebrated
clever, smart, intelligent
stupid, dumb, foolish
silly, foolish
funny, amusing, humorous
happy, glad, cheerful
sad, unhappy, sorrowful
angry, furious, mad
afraid, scared, frightened
tired, weary, exhausted
calm, quiet, peaceful
loud, noisy
beautiful, lovely, gorgeous
pretty, attractive
ugly, unsightly
good, fine
excellent, superb, outstanding
great, terrific, wonderful
brilliant, splendid, magnificent
bad, poor
terrible, awful, dreadful, horrible
boring, dull, tedious
interesting, engaging, absorbing
exciting, thrilling
touching, moving
clear, plain, evident
clearly, plainly, evidently
sure, certain
surely, certainly
perhaps, maybe, possibly
often, frequently
sometimes, occasionally
usually, normally, generally
rarely, seldom
always, constantly
very, extremely, highly
really, truly, genuinely
almost, nearly
about, roughly, approximately
mostly, mainly, largely
completely, totally, entirely
only, merely, just
also, too
however, nevertheless
therefore, thus, hence
although, though
because, since
while, whereas
enough, sufficient
many, numerous
several, various
people, folks, persons
problem, issue, difficulty
problems, issues, difficulties
mistake, error
mistakes, errors
idea, notion, concept
ideas, notions, concepts
part, portion, piece
parts, portions, pieces
kind, sort, type
kinds, sorts, types
way, manner, method
ways, manners, methods
place, spot, location
places, spots, locations
area, region, zone
goal, aim, objective
goals, aims, objectives
reason, cause
reasons, causes
result, outcome
results, outcomes
danger, peril, hazard
dangerous, risky, hazardous
safe, secure
fight, battle
war, conflict
peace, harmony
law, rule
price, cost
prices, costs
company, firm, business
companies, firms, businesses
"""


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """Return the other words for each word.

    Args:
        text: One group a line, its words between commas; a word may be in several groups. Empty lines
            and those that begin with `#` are left out.

    Raises:
        ValueError: a line that is no group; its number and text are the error's arguments.
    """
    table: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = [word.strip() for word in line.split(",")]
        if len(words) == 1 or not all(words):
            raise ValueError(number, line.strip())
        for word in words:
            others = table.setdefault(word.lower(), [])
            others += [each for each in words if each != word and each not in others]
    return {word: tuple(others) for word, others in table.items()}


def builtin() -> dict[str, tuple[str, ...]]:
    """Return the table below, of some 200 groups of common English words."""
    return parse(_GROUPS)


def read(path: str) -> dict[str, tuple[str, ...]]:
    """Return the table of a user's file, in the format of `parse`, UTF-8.

    Raises:
        DataError: no such file, or a line that is no group of words.
    """
    file = Path(path).expanduser()
    try:
        return parse(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(
            f"synonyms = '{path}' cannot be read ({reason.lower()}); name a text file with one group of "
            "words a line, such as `big, large`"
        ) from error
    except ValueError as error:
        number, line = error.args
        raise DataError(
            f"'{path}', line {number}: '{line}' is no group of synonyms; write two words or more "
            "between commas, such as `big, large`"
        ) from error
