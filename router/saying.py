"""What a text says: its wording without its dress, the letter that it chooses, its last number, what it asks. Pure.

Owns the reading of free text, which is strict: where a text leaves open what it says, it says nothing, so that doubt
costs a call of the cloud and not a false agreement. Which texts agree is `agreement`'s.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from fractions import Fraction

from edgewise.contracts import Input
from edgewise.dialogue import Prompt

_PAIRS = {'"': '"', "'": "'", "`": "`", "*": "*", "_": "_", "(": ")", "[": "]", "{": "}", "“": "”", "‘": "’", "«": "»"}
_ENDERS = ".,;:!?。、؟،।"
_OPENERS = "¿¡"

_MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathrm)\s*\{([^{}]*)\}|[*_`\"“”$]")
_ALONE = re.compile(r"\s*\(?([A-Za-z])\)?[.:]?\s*")
# "A" and "I" before a small word are words, but for the few words that follow a choice.
_LETTER = (
    r"(?<!\w)(?:\(\s*[A-Za-z]\s*\)"
    r"|(?![AI]\s+(?!(?:because|since|as|is|and|or)\b)[a-z])[A-Z](?![\w'’+#])"
    r"|[a-z](?=[.!]?\s*$))"
)
_LETTERS = rf"({_LETTER}(?:\s*(?:,|/|&|\bor\b|\band\b)\s*{_LETTER}){{0,8}})"
# Every list and run of words has an end: a text is read again from each of them, so its time would grow by its square.
_STATED = (
    re.compile(
        r"(?i:\b(?:answer|choose|pick|select|go with)\b(?:\s+(?:is|are|would be|should be|must be|the|correct|best"
        rf"|option|choice|letter|answer)\b){{0,8}})[\s:=]*{_LETTERS}"
    ),
    re.compile(rf"{_LETTERS}\s+(?i:(?:is|are)\s+(?:the\s+)?(?:correct|right|best|true)\b)"),
)
_MARKED = (
    re.compile(r"^[ \t]*(\(?[A-Z])[.):](?!\w)", re.MULTILINE),
    re.compile(r"(?<!\w)(\([A-Z]\))"),
    re.compile(rf"(?i:\b(?:option|choice)\b)[\s:=]*{_LETTERS}"),
)

_DENIED = re.compile(
    r"(?i:\b(?:not|no|never|neither|nor|without|cannot|except|unlike|instead of|rather than|rul\w+ out|eliminat\w+"
    r"|exclud\w+|reject\w*|discard\w*|avoid\w*|incorrect\w*|wrong\w*|false|mistaken\w*|doubt\w*|hardly|if|unless"
    r"|whether)\b|n['’]t\b)[^,;:.!?\n]*$"
)
"""Before a letter, in its clause: it is not chosen."""
_REFUSED = re.compile(
    rf"{_LETTERS}[\s,]{{0,3}}(?i:(?:(?:which|but\s(?:that|this|it)|that|it)\s)?(?:is|are|was|were|seems?|would\sbe"
    r"|can|could|should)(?:n['’]t\b|not\b|\s(?:\w{1,12}\s){0,2}(?:not|never|incorrect|wrong|false|mistaken)\b))"
)
_HEDGED = re.compile(r"[\s,)]{0,4}(?:\?|(?i:or|maybe|perhaps|possibly)\b)")
_TAKEN_BACK = re.compile(
    r"(?i:\b(?:wait|actually|correction|scratch that|on second thoughts?|my mistake|sorry|oops)\b)"
)
_LOOK_BACK = 160
"""Characters before a letter that are looked at: more would read a text again from each of them."""

_GROUPED = re.compile(r"(?<![\w.,'’_:/])(?<!\w-)(?<!\d )[1-9]\d{0,2}([ '’_])\d{3}(?:\1\d{3})*(?![\d'’_:/-]| \d)")
"""Thousands that are grouped, and can be nothing else."""

_REWRITTEN = (
    (re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r" \1/\2"),
    (re.compile(r"\{,\}|\\,|(?<=\d)[\u00a0\u2009\u202f\u066c](?=\d{3})"), ","),
    (re.compile(r"\s?(?:×|\\times)\s?10\s?\^\s?\{?(-?\d{1,2})\}?(?!\d)"), r"e\1"),
)
"""LaTeX and typography that numbers are written in."""

_POWERS = "^⁰¹²³⁴⁵⁶⁷⁸⁹"
_WRITTEN_NUMBER = re.compile(
    r"(?:(?<![\w)\]%])(?P<sign>[-+]))?(?:[$€£¥₹]\s?(?P<inner>[-+])?)?"
    rf"(?<![\w^])(?<!\^\{{)(?P<digits>\.?\d(?:[\d.,{{}}/{_POWERS}]|(?<=\d)\s/\s(?=\d)|(?<=\d) (?=\d+/\d))*"
    r"(?:[eE][-+]?\d+(?!\w))?)"
)
_DECIMAL = re.compile(r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,2})?")
_FRACTION = re.compile(r"(?:(\d+) )?(\d+)\s?/\s?(\d+)")
_LONGEST_NUMBER = 400
_JOINED = re.compile(
    r"[^\S\n]*(?:(?!(?:is|are|was|were|be|equals?|makes?|gives?|leaves?|leaving|becomes?|yields?|means|so|then|costs?|has|have|had)\b)"
    r"(?:[^\W\d_]{1,15}|[%°′″'’\"])[^\S\n]*)?"
    r"(?:(?:[-–—,;'’_/\\+×÷~…&^]|\*{1,2}|:(?!\s)|\.{2,3}|and|or|of|to|by|plus|minus|times)[^\S\n]*)?"
    r"|[^\s\w=<>|()]{1,3}",
    re.IGNORECASE,
)
"""Between two numbers that say something together: a range, a time, a date, a list, a sum, feet and inches."""
_JOINT = 48
_QUALIFIED = re.compile(
    r"(?:\d[:.,]|\w['’_/])$|(?:[-–—]|√|sqrt\s?[({]?|(?<![<>])[<>]=?|[≤≥≠]|!=|\b(?:minus|negative|not))[^\S\n]{0,3}$",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"\w{1,9}\d|(?:[kmb]|bn|mn)\b|[\s-]?(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore)s?\b",
    re.IGNORECASE,
)
_GSM8K_ANSWER = "####"


def asked_by(item: Input) -> str | None:
    """The text of an item: of a prompt what its answer follows, the last message or the text; None of an image."""
    if isinstance(item, Prompt):
        return item.text if item.text is not None else item.messages[-1].content if item.messages else ""
    return item if isinstance(item, str) else None


def normalised(text: str) -> str:
    """A text without case, width, runs of blanks and outer punctuation.

    Compatibility caseless form (Unicode, definition D146) composed to NFKC; blanks joined to one; then, as often as
    there is something to take off, sentence marks at the ends and quotes, brackets and emphasis around the whole. What
    changes a value stays: a sign, a currency, a percent sign. A text of nothing but marks stays as it is.
    """
    bare = " ".join(_caseless(text).split())
    begin, end = 0, len(bare)
    while (inner := _outer_off(bare, begin, end)) != (begin, end) and inner[0] < inner[1]:
        begin, end = inner
    return bare[begin:end]


def _caseless(text: str) -> str:
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFKD", folded).casefold()
    return unicodedata.normalize("NFKC", folded)


def _outer_off(text: str, begin: int, end: int) -> tuple[int, int]:
    """Where a part of a text begins and ends without its marks and one pair around it; copies nothing."""
    begin, end = _stripped(text, begin, end, " ", " ")
    begin, end = _stripped(text, begin, end, "", _ENDERS)
    begin, end = _stripped(text, begin, end, _OPENERS, "")
    begin, end = _stripped(text, begin, end, " ", " ")
    if end - begin > 1 and _PAIRS.get(text[begin]) == text[end - 1]:
        begin, end = _stripped(text, begin + 1, end - 1, " ", " ")
    return begin, end


def _stripped(text: str, begin: int, end: int, left: str, right: str) -> tuple[int, int]:
    while begin < end and text[begin] in left:
        begin += 1
    while begin < end and text[end - 1] in right:
        end -= 1
    return begin, end


def chosen_letter(text: str) -> str | None:
    """The letter of a multiple-choice answer that a text settles on, as a capital.

    A text that is a letter is that one. Else what it states counts ("the answer is B", "Answer: (B)", "I choose B", "B
    is correct"), and where it states nothing, what it marks: "B." or "B)" at the beginning of a line, "(B)", "option
    B". Two different letters, or none, choose nothing; nor does one that is denied, doubted or taken back.
    """
    bare = _MARKUP.sub(r"\1", unicodedata.normalize("NFKC", text))
    alone = _ALONE.fullmatch(bare)
    if alone:
        return alone[1].upper()
    for patterns in (_STATED, _MARKED):
        found = [match for pattern in patterns for match in pattern.finditer(bare)]
        letters = _letters(found)
        if letters:
            return letters.pop() if len(letters) == 1 and _is_settled(bare, found) else None
    return None


def _letters(found: Iterable[re.Match[str]]) -> set[str]:
    return {letter.upper() for match in found for letter in re.findall(r"\b[A-Za-z]\b", match[1])}


def _is_settled(text: str, found: Sequence[re.Match[str]]) -> bool:
    """Whether nothing denies, doubts or takes back what was found to be chosen."""
    if _letters(found) & _letters(_REFUSED.finditer(text)):
        return False
    if _TAKEN_BACK.search(text, min(match.end() for match in found)):
        return False
    denied = (_DENIED.search(text[max(0, match.start() - _LOOK_BACK) : match.start()]) for match in found)
    return not any(denied) and not any(_HEDGED.match(text, match.end()) for match in found)


def last_number(text: str) -> Fraction | None:
    """The number that a text ends with, as answers to GSM8K are read (Cobbe et al. 2021); exact.

    The last one after the last "####", or in the whole text where nothing follows that. Thousands may be grouped by
    commas, blanks, apostrophes or underscores; 1/2, 1 1/2, ½ and 1.5e3 are numbers. Currencies, percent signs, units
    and words around it do not count. What is no plain number, such as 1/2/2024, 3,14 or 5², is none, and nothing before
    it is taken in its place; nor is one that says something only with the number before it or the word after it, such
    as 3:45, 10-15, 2 h 30 or 1.5 million.
    """
    plain = _plain_digits(text)
    for part in (plain.rpartition(_GSM8K_ANSWER)[2], plain):
        found = list(_WRITTEN_NUMBER.finditer(part))
        if found:
            return _value(found[-1]) if _stands_alone(part, found) else None
    return None


def _stands_alone(text: str, found: Sequence[re.Match[str]]) -> bool:
    """Whether the last number is the whole of what is said with it."""
    last = found[-1]
    begin, end = last.start(), last.start("digits") + len(_digits(last))
    if _QUALIFIED.search(text[max(0, begin - _JOINT) : begin]) or _GOES_ON.match(text, end):
        return False
    if len(found) == 1:
        return True
    before = found[-2].start("digits") + len(_digits(found[-2]))
    return begin - before > _JOINT or not _JOINED.fullmatch(text, before, begin)


def _plain_digits(text: str) -> str:
    """The text with ASCII digits, signs and fractions."""
    plain = "".join(_plain_character(character) for character in text)
    for pattern, replacement in _REWRITTEN:
        plain = pattern.sub(replacement, plain)
    return _GROUPED.sub(lambda match: match[0].replace(match[1], ","), plain)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if character in "−﹣－":
        return "-"
    form = unicodedata.decomposition(character)
    # The one half is "<fraction> 0031 2044 0032".
    return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/") if "<fraction>" in form else character


def _value(match: re.Match[str]) -> Fraction | None:
    digits = _digits(match)
    value = None if len(digits) > _LONGEST_NUMBER else _exact(digits)
    negative = "-" in (match["sign"], match["inner"])
    return -value if value is not None and negative else value


def _digits(match: re.Match[str]) -> str:
    return match["digits"].rstrip(".,/{}")


def _exact(digits: str) -> Fraction | None:
    if _DECIMAL.fullmatch(digits):
        return Fraction(digits.replace(",", ""))
    parts = _FRACTION.fullmatch(digits)
    if parts is None or int(parts[3]) == 0:
        return None
    return int(parts[1] or 0) + Fraction(int(parts[2]), int(parts[3]))
