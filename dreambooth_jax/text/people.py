"""Which English prompts name people.

A word of the list names a person wherever it stands, in any number, alone or as the end of another word (policewoman),
unless it only says more about a thing: before the name of a thing (baby doll), as an owner (a man's hat), or made of
something (gingerbread man). In doubt it is a person: that costs a setting, and the other mistake would leave out the
question whether somebody has agreed. People named in another language, or by their names alone, are not found.
"""

import re

_NOUNS = frozenset(
    """
    person people human individual adult adolescent teenager teen youth toddler infant newborn baby child kid
    man woman boy girl guy dude bloke lad lass lady gentleman gent male female
    mother father mum mom mummy mommy dad daddy parent son daughter brother sister sibling husband wife spouse fiance
    fiancee bride groom couple grandma grandpa grandparent granny grandson granddaughter grandchild uncle aunt auntie
    nephew niece cousin boyfriend girlfriend friend colleague neighbour neighbor crowd
    face selfie headshot mugshot
    celebrity actor actress singer musician dancer athlete politician president influencer supermodel student teacher
    pupil doctor nurse soldier worker chef astronaut
    """.split()
)
# Whoever ends in one of these is one, except for those below.
_ENDINGS = ('person', 'people', 'man', 'boy', 'girl', 'child', 'mother', 'father')
_NO_PEOPLE = frozenset(
    'caiman cayman doberman discman gameboy german norman ottoman roman snowman talisman tallboy walkman'.split()
)
_PLURALS = {'men': 'man', 'children': 'child', 'babies': 'baby', 'ladies': 'lady', 'wives': 'wife', 'kids': 'kid'}
_OF_PLURALS = tuple(sorted(_PLURALS, key=len, reverse=True))
# What a word for people says more about if it stands before one of these.
_THINGS = frozenset(
    """
    backpack bag blanket boot bottle bun carriage cave chair clothes coat costume cream crib dinosaur doll dress
    figure figurine food hat helmet knife mask monitor outfit powder robot shampoo shirt shoe shower sneaker statue
    stroller toy uniform yoda
    """.split()
)
_MADE_OF = frozenset('gingerbread lego snow stick toy'.split())
_WORD = re.compile(r"[^\W\d_]+(?:'s|s')?")


def person_in(prompt: str) -> str | None:
    """Returns the first word of a prompt that names a person, as it stands there; None if there is none.

    Args:
      prompt: English text, such as a class prompt: 'a photo of a young woman' gives 'woman'.
    """
    words = _WORD.findall(prompt.replace('\u2019', "'"))
    for i, word in enumerate(words):
        before, after = (words[j].lower() if 0 <= j < len(words) else '' for j in (i - 1, i + 1))
        noun = _singular(word.lower())
        is_owner = "'" in word
        counts = noun == 'couple' and after == 'of'  # of dogs
        if _is_person(noun) and not (is_owner or counts or _singular(after) in _THINGS or before in _MADE_OF):
            return word
    return None


def _is_person(noun: str) -> bool:
    return noun in _NOUNS or (noun.endswith(_ENDINGS) and noun not in _NO_PEOPLE)


def _singular(word: str) -> str:
    for plural in _OF_PLURALS:
        if word.endswith(plural):
            return word.removesuffix(plural) + _PLURALS[plural]
    if word.endswith('ies') and word[:-3] + 'y' in _NOUNS:
        return word[:-3] + 'y'
    known = [one for one in (word, word.removesuffix('s'), word.removesuffix('es')) if one in _NOUNS | _THINGS]
    return known[0] if known else word.removesuffix('s')
