# SPDX-License-Identifier: Apache-2.0
"""Reads replies of any model, or person: reasoning, the option that is chosen, the name in it.

Reasoning is never read for an answer: `<think>...</think>` (also thinking, reasoning, ...), all
after a tag that is not closed, and all before a closing tag without an opening one, since chat
templates put the opening tag into the prompt. `<answer>` or `\\boxed{}` holds the answer if it is
there. Bold type, quotes, code and LaTeX do not count, nor do capitals, nor whether a bearing is
spelt "front-left", "front left" or "frontleft". A reply with two different answers has none.

>>> parse_choice("The correct answer is **B**.", ("left", "right"))
('B', 'lenient')
>>> parse_choice("maybe A </think> Front left", ("left", "front-left"))
('B', 'text')
"""

import re
from collections.abc import Sequence

CHOICE_LETTERS = "ABCDEFGHIJ"
KINDS = ("strict", "lenient", "text", "none")

_TAG = re.compile(
    r"[<\[](?P<end>/?)(?:think|thinking|thoughts?|reasoning|reflection|scratchpad)[>\]]",
    re.IGNORECASE,
)
_REASONING = re.compile(r"<think>(.*?)(?:</think>|<answer>|$)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_STRICT = re.compile(r"<answer>\s*[A-J]\s*</answer>")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s?\{((?:[^{}]|\{[^{}]*\})*)\}")

# Full-width characters, and dashes, quotes and degree signs as keyboards elsewhere have them.
_ASCII = str.maketrans(
    {chr(0xFF01 + k): chr(0x21 + k) for k in range(94)}
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63", "-")
    | dict.fromkeys("\u2018\u2019\u02bc", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"')
    | dict.fromkeys("\u00ba\u02da", "°")
    | {"【": "(", "】": ")", "\u2044": "/"}
)
_LATEX = re.compile(r"\\[a-zA-Z]+\s?\{([^{}]*)\}")
_INLINE_HTML = re.compile(r"</?(?:b|i|u|em|strong|span|code|mark|tt)>", re.IGNORECASE)
_HTML = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,9}\s?/?>")
_MARKUP = re.compile(r"\\[()\[\]]|[*`\"$]|(?<!\w)['_]+|['_]+(?!\w)|^#+ ", re.MULTILINE)

# Two directions in one word, "front-left", and words for one direction.
_JOIN = r"[ _-]*(?:and )?(?:to the )?"
_COMPOUND = re.compile(
    rf"(?<![a-z])(?:(front|forwards?|ahead|back|rear|behind){_JOIN}(left|right)"
    r"|(left|right)[ _-]*(front|back|rear))(?![a-z])"
)
_HAND = re.compile(r"(?<![a-z])(left|right)[ -]?hand(?: side)?(?![a-z])")
_FRONT = re.compile(r"(?<![\w-])(?:(?:straight|directly) )?(?:in front|ahead|forwards?)(?![\w-])")
_BACK = re.compile(r"(?<![\w-])(?:directly )?(?:behind|rear|backwards?)(?![\w-])")

_NOT = r"(?:\bnot|\bneither|\bnor|n't)(?: (?:at|in|on|from|to|the|a|an|of|your|my|option))* "
_DIGITS = dict(
    zip("zero one two three four five six seven eight nine ten".split(), range(11), strict=True)
)


def split_reply(text: str) -> tuple[str, str]:
    """(reasoning, the rest) of a reply; reasoning that is not closed ends before `<answer>`."""
    rest, start, is_inside, last = [], 0, False, 0
    for tag in _TAG.finditer(text):
        if tag["end"]:
            if not is_inside:
                rest.clear()
            is_inside, last = False, tag.start()
        elif not is_inside:
            rest.append(text[start : tag.start()])
            is_inside = True
        start = tag.end()
    if not is_inside:
        rest.append(text[start:])
    match = _REASONING.search(text)
    reasoning = match[1] if match else _TAG.sub(" ", text[:last])
    return reasoning.strip(), " ".join(rest)


def answer_spans(text: str) -> list[str]:
    """The parts of a reply that may hold its answer: in tags or boxes, else all but reasoning."""
    rest = split_reply(text)[1]
    spans = _ANSWER.findall(rest) or [rest]
    return [part.strip() for span in spans for part in _BOXED.findall(span) or [span]]


def plain_text(text: str) -> str:
    """A text without markup, with ASCII punctuation, single blanks and no empty lines."""
    text = _HTML.sub(" ", _INLINE_HTML.sub("", text.translate(_ASCII)))
    for _ in range(3):  # \boxed{\textbf{\text{B}}}
        text = _LATEX.sub(r"\1", text)
    lines = (" ".join(line.split()) for line in _MARKUP.sub("", text).split("\n"))
    return "\n".join(line for line in lines if line)


def normalize_bearings(text: str) -> str:
    """A text in lower case in which directions are spelt as scene_text.SECTORS spells them."""

    def compound(match: re.Match) -> str:
        first, side = (match[1], match[2]) if match[1] else (match[4], match[3])
        return f"{'back' if first in ('back', 'rear', 'behind') else 'front'}-{side}"

    text = _COMPOUND.sub(compound, _HAND.sub(r"\1", text.lower()))
    return _BACK.sub("back", _FRONT.sub("front", text))


def parse_choice(text: str, options: Sequence[str]) -> tuple[str | None, str]:
    """The option that a reply chooses: (its letter or None, one of KINDS).

    options: two to ten. "strict" is exactly one `<answer>B</answer>`; "lenient" is a letter in
    other words or dress; "text" is the text of an option.
    """
    letters = CHOICE_LETTERS[: len(options)]
    rest = split_reply(text)[1]
    blocks = [block.strip() for block in _ANSWER.findall(rest)]
    if len(blocks) == 1 and blocks[0] in tuple(letters) and _STRICT.search(rest):
        return blocks[0], "strict"
    answers = {_choice_of_span(span, options, letters) for span in answer_spans(text)}
    if len({letter for letter, _ in answers}) != 1:
        return None, "none"
    return max(answers, key=lambda answer: KINDS.index(answer[1]))


def _choice_of_span(span: str, options: Sequence[str], letters: str) -> tuple[str | None, str]:
    """The choice in one span: a letter, unless the text names another option."""
    text = plain_text(span)
    option = match_option(text, options)
    by_text = None if option is None else letters[options.index(option)]
    chosen = _letters_of_span(span, text, letters)
    if len(chosen) == 1:
        (letter,) = chosen
        # "B. left", where left is option C, names two answers.
        return (letter, "lenient") if by_text in (None, letter) else (None, "none")
    return (by_text, "text") if by_text and not chosen else (None, "none")


class _LetterPatterns:
    """Patterns of answers by letter, from the surest to the loosest, for some letters."""

    def __init__(self, letters: str):
        upper, lower = f"[{letters}]", f"[{letters.lower()}]"
        end = r"(?![\w'])"
        # A lower-case letter amid a sentence is an article.
        letter = rf"[(\[]?({upper}{end}|{lower}(?=[)\]]|[.,;!]?\s*$|[.,;!]?\n))"
        verb = r"(?:(?: (?:is|was|would be|should be|must be))? ?(?::|=|-+>?|→|是|为)? ?){1,2}"
        option = r"(?:option |choice )?"
        self.alone = re.compile(rf"[(\[ ]*({upper}|{lower})[)\] .:,;!]*")
        self.labelled = re.compile(
            rf"(?:[(\[]({upper}|{lower})[)\]][.:,;]*|({upper})[.:,;)\]]+|({lower})[.:)\]]+"
            rf"|({upper}) -+) (.+)",
            re.DOTALL,
        )
        self.stated = re.compile(
            rf"(?i:\b(?:answer|choice|i choose|i pick|i select|go with)|答案)(?i:{verb}{option})"
            rf"{letter}|(?<![\w'-])\(?({upper})\)? (?:is|would be|must be) (?:the |my )?"
            r"(?:correct|right|best|final|answer|choice)\b"
        )
        self.option = re.compile(rf"(?i:\b(?:option|correct){verb}){letter}")
        self.marked = re.compile(rf"(?:\*\*|`|\"|\()({upper})(?:\*\*|`|\"|\))")
        self.joined = re.compile(
            rf"[)\]]*(?: ?[,/&] ?(?:or |and )?| or | and )(?i:{option})[(\[]?({upper}){end}"
        )

    def find(self, pattern: re.Pattern, text: str) -> set[str]:
        """The letters in the matches of a pattern, and those joined to them ("A or B")."""
        letters = set()
        for match in pattern.finditer(text):
            letters |= {group.upper() for group in match.groups() if group}
            end = match.end()
            while joined := self.joined.match(text, end):
                letters.add(joined[1])
                end = joined.end()
        return letters


_PATTERNS = {n: _LetterPatterns(CHOICE_LETTERS[:n]) for n in range(1, len(CHOICE_LETTERS) + 1)}


def _letters_of_span(span: str, text: str, letters: str) -> set[str]:
    """The letters that a span names as its answer. text: the span without markup."""
    if not letters:
        return set()
    patterns = _PATTERNS[len(letters)]
    if alone := patterns.alone.fullmatch(text):
        return {alone[1].upper()}
    stated = patterns.find(patterns.stated, text)
    lines = text.split("\n")
    # "B" on a line of its own, before or after an explanation.
    ends = {m[1].upper() for m in map(patterns.alone.fullmatch, (lines[0], lines[-1])) if m}
    if labelled := patterns.labelled.fullmatch(text):
        ends |= {group.upper() for group in labelled.groups()[:-1] if group}
        if other := patterns.alone.fullmatch(labelled[5].partition(" ")[0]):
            ends |= {other[1]} if other[1].isupper() else set()
    if stated or ends:
        return stated | ends
    return patterns.find(patterns.option, text) or patterns.find(
        patterns.marked, span.translate(_ASCII)
    )


def match_option(text: str, options: Sequence[str]) -> str | None:
    """The one option that `text` contains as whole words; None if there is none, or several.

    Capitals, hyphens, blanks, markup and the spelling of bearings do not count. An option that is
    denied ("not left") is no match. A number in words matches an option in digits.
    """
    text, texts = plain_text(text).replace("\n", " "), [plain_text(o) for o in options]
    normal = [normalize_bearings(t) for t in texts]
    if len(set(normal)) < len({t.lower() for t in texts}):  # "back" and "rear" are both options
        text, normal = text.lower(), [t.lower() for t in texts]
    else:
        text = normalize_bearings(text)
    whole = text.strip(" .!")
    if whole and whole in normal:
        return options[normal.index(whole)]
    rest, matches = text, set()
    # Longest first, each removed once matched, so that "front-left" does not also match "left".
    for place in sorted(range(len(normal)), key=lambda k: -len(normal[k])):
        words = re.split(r"(?<=\w)[ _-]+(?=\w)", normal[place])
        if not any(words):
            continue
        pattern = r"[\s_-]+".join(map(re.escape, words))
        pattern = rf"(?<![\w-])(?<!\d[.,]){pattern}(?![\w-]|[.,]\d)"
        rest = re.sub(_NOT + pattern, "|", rest)
        rest, count = re.subn(pattern, "|", rest)
        if count:
            matches.add(options[place])
    if not matches:
        numbers = {str(n) for word, n in _DIGITS.items() if re.search(rf"\b{word}\b", text)}
        matches = {options[normal.index(n)] for n in numbers if n in normal}
    return matches.pop() if len(matches) == 1 else None
