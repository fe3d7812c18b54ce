r"""Check answers to mathematics problems: a reward that is strict, fast and cannot hang.

`math_reward(response, gold)` finds the answer of a response and compares it with the gold answer.
An answer counts only where it is marked as one: in <answer> tags, in the last \boxed{}, after
"####" or "the answer is" with nothing else in that sentence, or if it is the whole response.
Two answers are equal if they have the same value: expressions are compared exactly where they are
rational and otherwise to 180 digits, at several points if they contain symbols. If the gold is a
written number, such as 0.75, 3/4 or 6.02e23, then the answer must be one too and not a sum that is
left to be worked out. A decimal equals a fraction or a root if it is correctly rounded or cut off
after at least four decimal places, and another decimal only if both are the same number. Lists
and sets are compared in any order; tuples, intervals and matrices part by part; named values by
their names. A unit, a name such as "x =" or the letter of a choice may be missing on one side, but
where both sides have one they must agree. Words must be the same words. Whatever is not understood
equals nothing but itself. In doubt the verdict is False, because a model learns whatever is paid.
"""

from __future__ import annotations

import math
import operator
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, chain
from typing import NamedTuple

import mpmath

MAX_RESPONSE = 20_000  # only the last characters of a longer response are searched
MAX_ANSWER = 2_000  # a longer answer is compared as text only
MAX_TOKENS = 180  # an answer with more tokens is compared token by token only
MAX_DEPTH = 25  # of brackets in an answer that is parsed
MAX_BITS = 600  # larger real numbers have no value, and rational ones none with symbols
MAX_EXACT_BITS = 20_000  # larger rational numbers have no value; 2024! has one

# A context of our own in which nothing changes after these lines is safe in threads. mpmath
# caches its constants: they are computed here with more digits than are ever needed.
_MP = mpmath.MPContext()
_MP.dps = 600
_MP.ln(_MP.pi * _MP.e)
_MP.dps = 200  # 180 digits must agree, the others absorb rounding errors


def math_reward(response: str, gold: str, truncated: bool = False) -> bool:
    r"""True if the answer in `response` is equivalent to `gold`. Raises nothing on strings.

    `gold` is an answer, or a solution that has it in \boxed{} or after "####". `truncated` says
    that the response was cut off. math_reward(r"So it is \boxed{0.5}.", r"\frac12") is True.
    """
    answer = extract_answer(response, truncated)
    if answer is None:
        return False
    if re.search(r"\\(?:boxed|fbox)|####", gold):
        gold = extract_answer(gold) or gold
    if re.fullmatch(r"\s*[A-J]\s*", gold) and re.fullmatch(r"\(?[a-j]\)?", answer):
        answer = answer.upper()  # "Answer: d" to a multiple choice question
    if not is_equiv(answer, gold):
        return False
    return _is_written(_read(answer)[1]) or not _is_written(_read(gold)[1])


def _one_of(*patterns: str) -> str:
    """A regular expression for any of these."""
    return "(?:" + "|".join(patterns) + ")"


# ------------------------------------------------------------------------------------ 1. extract
_SPECIAL_TOKEN = re.compile(r"<\|\w{1,40}\|>|</s>|<eos>|<end_of_turn>")
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,9}(?:\{|(?=\d))")
_BRACE = re.compile(r"\\.|[{}]", re.S)
_SENTENCE_END = re.compile(r"(?<![ap]\.m)(?<!\.)[.。](?=\s|$)|\n")
_OR = r"(?:or|oder|ou|o|lub|veya|или|或|または|nor|not|if|unless|vs|versus)\b"
_DELIMITERS = r"(?:\s|\$|\*\*|&|\\[(\[,;! ]|\\q?quad)*"

# A box is whole if nothing that it could be a part of stands before it or after it.
_BEFORE_BOX = re.compile(
    _one_of(
        r"\A|[=≈≡∈:.;!?>\"'”’…—–。：，]|=\s{0,3}\+|\\\$",  # punctuation, a relation, a currency
        r"\\(?:approx|simeq|equiv|in|implies|Rightarrow|rightarrow|to|therefore)",
        r"(?<![\\A-Za-z])(?:[^\W\d_]{2,20}\)?|a|['’]s),?",  # a word
        r"\\(?:text\w*|mathrm|mbox)\s?\{[^{}]*\}",  # words in a formula
        r"(?<=[$)\]]),|\\[)\]]",  # the end of a formula
        r"[^-\s+*/^<>≤≥×·÷±−(,&\\{]\s*\n|\\\\|-{3}\n|\n\s*[-*]",  # the end of a line, a bullet
        r"(?<=\}),",  # another box
    )
    + _DELIMITERS
    + r"\Z"
)
_AFTER_BOX = re.compile(
    r"(?:[ \t~]|\\[ ,;!]|\\q?quad|\*\*)*"
    + _one_of(
        r"\Z|[.,;:?\"'”’…。，、；：)](?!\d)|!(?=\s|\Z)",  # punctuation
        r"\n(?!\s*[+/^=])|\\(?:\\|end)",  # the end of a line
        rf"(?:\$+|\\[)\]])(?!\s*(?:[-+*/^=<>×·÷]\s?[\d\\$(]|[!²³]|{_OR}))",  # of a formula
        rf"=?\s?\\(?:text\w*|mbox|mathrm|operatorname)\s?(?!\{{\s*{_OR})",  # words
        r"\\(?:%|pmod|pm|AA|mu|Omega)|%|\^\s?\{?\s?\\circ|°|/\s?\$",  # a unit
        r"(?<=[\s$~])\{?\s?[mgsJNWVKCLhe~](?![A-Za-z(])|(?<=\s)\{~?[A-Za-z]{1,9}\}",
        rf"(?<=[\s$~])(?!{_OR})(?:[^\W\d_]{{2}}|a\b)",  # a word
        r"(?<=\s)\([^\W\d_]{2}|[—–]\s?[^\W\d_]|-\s[^\W\d_]{2}|[\u3040-\uffef]",
    )
)
_BETWEEN_BOXES = re.compile(
    r"[^.:;!?]{0,60}?(?:,|\b(?:and|or)\b)(?:\s|\$|\\[()\[\]]|\}|\\q?quad)*(?:[^=,;.]{1,20}=)?[\s$]*"
)

_THEREFORE = _one_of(
    r"so|thus|hence|therefore|finally|consequently|(?:we|this) (?:gives?|get|find|obtain|have)(?: that)?",
    "it is|it['’]s|in (?:conclusion|summary)|also|daher|somit|donc|ainsi|por lo tanto|así|quindi|dunque",
    "portanto|logo|итак|поэтому|следовательно|所以|因此|故|よって|したがって|따라서",
)
_ANSWER = _one_of(
    r"\b(?:answers?|ans|option|choice|antwort|respuesta|r[ée]ponse|risposta|(?:a )?resposta|ответ)\b",
    "الجواب|الإجابة|उत्तर|答案|答え|정답",
)
_IS = _one_of(
    r"[\s*_\"']{0,4}(?:[:=：]|->|→|\.(?=\s?[\dA-J]))",
    r"[\s*_\"']{0,4}(?:(?:is|are|equals|must be|comes out as|ist|es|est|è|é|هو|هي)\b|是|为|為|は|은)"
    + r"(?:,? (?:indeed|clearly|just|exactly|of course|equal to|given by|the number)\b,?)?\s?[:：]?",
)
_MARK = re.compile(
    _one_of(
        r"^\s{0,3}#{4}(?!#|[^\w\n]{0,9}(?:final )?answer)|^A:",  # GSM8K
        r"(?:\A|(?<=[.!?:;。！？：；\n])|,(?=\s(?:so|thus|hence|therefore)\b))[^\w\n]{0,12}"  # a clause
        + rf"(?:(?:{_THEREFORE}|the|our|my|final|correct|right|exact|required|die|richtige|la|le|el|"
        + rf"finale|correcta|最终|最后|최종)[\s_,*\"]{{0,4}}){{0,8}}{_ANSWER}"
        + _one_of(
            _IS + r"(?: (?:option|choice)\b)?",
            r"[^\w$\\\n]{0,6}\n",  # a heading
            r"(?=\W{1,9}(?:option\s\(?)?(?:[A-J]|\d[\d.,]{0,20})\W{0,9}(?:\Z|\n))",  # "Answer D"
        ),
    ),
    re.MULTILINE | re.IGNORECASE,
)


def extract_answer(response: str, truncated: bool = False) -> str | None:
    r"""The final answer of a response, or None: extract_answer("The answer is 4.") is "4".

    In this order: what is between <answer> and </answer>; the last \boxed{} or \fbox{}, if it is
    whole; what follows "####" or "the answer is", up to the end of the sentence; the whole
    response, if it is nothing but an answer. Only the first two count if the response was cut off.
    """
    text = response[-MAX_RESPONSE:].rpartition("</think>")[2]
    if "<think>" in text:
        return None
    text = _SPECIAL_TOKEN.split(text.strip())[0].strip()
    _, tag, tagged = text.rpartition("<answer>")
    if tag and "</answer>" in tagged:
        text, truncated = tagged.partition("</answer>")[0].strip(), False
    if _BOX.search(text):
        return _boxed(text)
    if truncated:
        return None
    return _marked(text) or _whole(text)


def _boxed(text: str) -> str | None:
    """The content of the last box, or of the last boxes if a sentence joins them to a list."""
    boxes = _boxes(text)
    last = boxes.pop()
    answers, start = [last[2]], last[0]
    whole = last[2] and _is_whole(text, *last[:2])
    is_list = True
    while boxes and whole:
        box = boxes.pop()
        between = text[box[1] : start]
        joined = _BETWEEN_BOXES.fullmatch(between[:200])
        if not joined and _SENTENCE_END.search(between):
            break
        is_list = is_list and joined is not None and not re.search(r"\bor\b", between)
        whole, start = _is_whole(text, *box[:2]), box[0]
        answers.insert(0, box[2])
    if not whole or not is_list and not all(is_equiv(answer, answers[0]) for answer in answers):
        return None
    answer = ", ".join(answers) if is_list else answers[-1]
    return _boxed(answer) if 0 < answer.count("\\boxed") < 9 else answer


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of each outermost box. The content of an unfinished box is empty."""
    boxes, end = [], 0
    for box in _BOX.finditer(text):
        if box.start() < end:
            continue
        depth, end = 1, box.end() + 1  # \boxed 5 has one digit
        if box[0].endswith("{"):
            for brace in _BRACE.finditer(text, box.end()):
                depth += {"{": 1, "}": -1}.get(brace[0], 0)
                end = brace.end()
                if depth == 0:
                    break
            else:
                return [*boxes, (box.start(), len(text), "")]
        boxes.append((box.start(), end, text[box.end() : end].removesuffix("}").strip()))
    return boxes


def _is_whole(text: str, start: int, end: int) -> bool:
    """False if an operator, a factor or a power is attached to the box in its formula."""
    before = _BEFORE_BOX.search(text, max(0, start - 60), start)
    return before is not None and _AFTER_BOX.match(text, end) is not None


def _marked(text: str) -> str | None:
    """What follows the last mark, such as "the answer is", up to the end of the sentence."""
    for mark in reversed([*_MARK.finditer(text)]):
        rest = text[mark.end() : mark.end() + MAX_ANSWER]
        if mark[0].endswith("\n") or re.match(r"[ *]*\n", rest):
            rest = re.sub(r"\A[\s*]*(?:[-*•–]\s+)?", "", rest)  # a bullet
        display = re.match(r"\s*(?:\$\$|\\\[)([^$]*?)(?:\$\$|\\\])", rest)
        if display:
            rest = display[1].replace("\n", " ") + rest[display.end() :]
        rest = rest.lstrip() + "\n"
        end = _SENTENCE_END.search(rest).start()
        sentence = re.sub("(?:です|입니다)$", "", rest[:end].rstrip(" .")).strip(" \t*`\"'_")
        is_heading = mark[0].endswith("####") and re.fullmatch(r"[^\W\d_][^\d$\\]*", sentence)
        if not is_heading or not rest[end:].strip(" .\n"):
            return sentence.removesuffix('"}') if "{" not in sentence else sentence
    return None


def _whole(text: str) -> str | None:
    """A response that is nothing but an answer, perhaps after "so" or "it is"."""
    text = re.sub(rf"(?i)\A(?:{_THEREFORE}[\s,:]+)*", "", text[: MAX_ANSWER + 1]).strip(" \t*`\n=")
    return text if _read(text)[1] is not None else None


# -------------------------------------------------------------------------------------- 2. clean
# name, pattern, replacement, and an example: what it was, and what becomes of it
CLEANING = [
    ("escaped twice", r"(?<!\\)\\\\(?=[A-Za-z]{3}|[lg]e|in|pi)", r"\\", r"\\frac12", r"\frac12"),
    ("negative space", r"\\!\s*", "", r"1,\! 000", "1,000"),
    ("bold", r"(?<![\w)}])\*\*|\*\*(?![\w({\\])|`", "", "**(B) 7**", "(B) 7"),
    ("C(n,k)", r"(?<!\w)C\(([^(),]+),([^(),]+)\)", r"\\binom{\1}{\2}", "C(n,2)", r"\binom{n}{2}"),
    ("C_n^k", r"(?<!\w)C_\{?(\w+)\}?\^\{?(\w+)\}?", r"\\binom{\1}{\2}", "C_n^2", r"\binom{n}{2}"),
    ("nCk", r"\{\}_\{?(\w+)\}?\s?C_\{?(\w+)\}?", r"\\binom{\1}{\2}", "{}_nC_2", r"\binom{n}{2}"),
]
_RULES = [(re.compile(pattern, re.ASCII), text) for _, pattern, text, _, _ in CLEANING]
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    + "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
).split()
_SIGNS = (
    r"−=- –=- —=- ⋅=\cdot ·=\cdot ’=' ′=' ″='' ×=\times ÷=/ ∗=* ≤=\le ≥=\ge ≠=\ne "
    + r"±=\pm √=\sqrt ∛=\sqrt[3] ∈=\in ∪=\cup ∅=\emptyset ∞=\infty °=\degree …=\ldots µ=\mu "
    + r"⟨=( ⟩=) ℝ=\mathbb{R} ℤ=\mathbb{Z} ℕ=\mathbb{N} ℚ=\mathbb{Q} ℂ=\mathbb{C}"
)
_CHARACTERS = dict(pair.split("=") for pair in _SIGNS.split())
_CHARACTERS |= zip(
    "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", ["\\" + name for name in _GREEK], strict=True
)
_TRANSLATION = {ord(char): text + " " for char, text in _CHARACTERS.items()}
_TYPOGRAPHY = {
    "[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿⁱˣ]+": "^{%s}",
    "[₀-₉₊₋₍₎ₐₑₒₓₕ-ₜᵢⱼ]+": "_{%s}",
    "[¼-¾⅐-⅞]": r"\frac{%s}",
    "[\xa0\u2000-\u200a\u202f\u3000\uff01-\uff5e]": "%s",
}


def _clean(answer: str) -> str:
    r"""An answer in LaTeX with ASCII characters: "5½" is 5\frac{1}{2}, "2ⁿ" is 2^{n}."""
    if not answer.isascii():
        for pattern, form in _TYPOGRAPHY.items():
            answer = re.sub(
                pattern, lambda m, form=form: form % unicodedata.normalize("NFKC", m[0]), answer
            )
        answer = answer.replace("⁄", "}{").translate(_TRANSLATION)
    for pattern, replacement in _RULES:
        answer = pattern.sub(replacement, answer)
    return answer


# ---------------------------------------------------------------------------------------- 3. lex
_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_TEXT = r"\\(?:text\w{0,6}|mathrm|operatorname\*?|[mh]box)\s*"
_ACCENT = r"\\(?:mathbb|mathbf|mathcal|boldsymbol|vec|hat|bar|tilde|d?dot|over\w+|angle|triangle)"
_SKIPPED = (
    r"left|right|middle|[bB]igg?[lrm]?|(?:display|text)style|underline|checkmark|therefore|[lL]arge"
)
_LETTER = rf"(?:[A-Za-z]|\\(?:{'|'.join(_GREEK)})(?![A-Za-z]))"
# (kind, pattern): the next token is given by the first pattern that matches
_LEXEMES = [
    ("skip", rf"\s+|~|\\[ ,;:>()\[\]]|\\(?:{_SKIPPED})(?![A-Za-z])(?:\s*\.)?"),
    ("repeating", r"\d{0,40}\.\d{0,40}\\(?:overline|bar|dot)\s*\{?\d{1,20}\}?"),  # 0.1\overline{6}
    ("repeating", r"\d{0,40}\.\d{0,40}\(\d{1,20}\)"),  # 0.1(6)
    ("repeating", r"\d{0,40}\.\d{1,40}\s?(?:\.\.\.|\\[lc]?dots)"),  # 0.1666...
    (
        "based",
        rf"\(?\d[\dA-F]*\)?\s*_\s*(?:\{{\s*(?:{_TEXT}\{{)?\w+[\s}}]*\}}|\d+(?![\d_]))",
    ),  # 101_2
    ("based", rf"{_TEXT}\{{\d[\dA-F]*\}}\s*_\s*\{{?\d+\}}?"),  # \text{3F}_{16}
    ("based", rf"\d+\s*(?:{_TEXT}\{{)?\s*in base[\s}}]*\d+"),  # 52 in base 8
    ("text", _TEXT + r"\{[^{}]*\}"),
    ("number", r"[1-9]\d{0,2}(?:(?:,|\s?\{\s?,\s?\}\s?)\d{3})+(?!,?\d)(?:\.\d+)?"),  # 1,234,567.8
    ("number", r"[1-9]\d{0,2}(?:(?: |\\,|~)\d{3})+(?! ?\d)(?:\.\d+)?"),  # 1 234 567.8
    ("number", r"[1-9]\d{0,2}(?:(?:'\d{3})+|(?:_\d{3})+|(?:\.\d{3}){2,})(?![\d.])"),  # 1'234'567
    ("number", r"[1-9]\d{0,2}(?:\.\d{3})+,\d{1,2}(?!\d)"),  # 1.234,5
    ("number", r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3}(?![\d.]))?"),  # 12, 1.5, 6.02e23
    ("symbol", r"\\frac\s*\{\s*d\s*\w?\s*\}\s*\{\s*d\s*\w\s*\}"),  # dy/dx
    ("symbol", rf"{_ACCENT}(?![a-z])\s*(?:{_BRACES}|\\[A-Za-z]+|[A-Z]+|\w)"),  # \vec a
    ("symbol", rf"{_LETTER}\s*_\s*(?:{_BRACES}|\\[A-Za-z]+|\w)'*"),  # x_1
    ("symbol", r"[A-Za-z](?:'+|\s*\^\s*\{?\s*\\prime\s*\}?)"),  # f'
    ("symbol", r"[fgh]\s*\^\s*\{\s*-\s*1\s*\}(?=\s*\()"),  # the inverse of f
    ("degree", r"\^\s*\{?\s*\\circ\s*\}?|\\degree"),
    ("am", r"[ap]\.\s?m\b\.?"),
    ("mark", r"x(?=\s?10\s?\^)|\\(?:begin|end)\{\w+\*?\}(?:\{[lcr|\s]*\})?|\\[A-Za-z]+|\\."),
    ("letters", r"[A-Za-z]{3,}(?:[-'][A-Za-z]+)+|log|[A-Za-z]+(?!\s*_)"),
    ("mark", r"\*\*|[<>!]=|[-=]>|\S"),
]
_LEXEME = re.compile("|".join(f"({pattern})" for _, pattern in _LEXEMES), re.ASCII)

# Words and commands with one meaning. The first of each entry stands for the others.
_ENTRIES = {
    "mark": r"* \cdot \ast x,\times ×,/ \div per,^ **,( \langle,) \rangle,< \lt,> \gt,= is equals,"
    + r"<= \le \leq \leqslant,>= \ge \geq \geqslant,!= \ne \neq,| \vert \lvert \rvert,and,or,"
    + r"\emptyset \varnothing,\frac \dfrac \tfrac \cfrac,\binom \dbinom \tbinom,\sqrt sqrt,"
    + r"; \quad \qquad,- minus negative",
    "symbol": r"\infty infinity,\pi pi,\phi \varphi,\epsilon \varepsilon,\hbar",
    "function": r"sin \sin,cos \cos,tan \tan,cot \cot,sec \sec,csc \csc,arcsin \arcsin,exp \exp,"
    + r"arccos \arccos,arctan \arctan,sinh \sinh,cosh \cosh,tanh \tanh,ln \ln,log \log \lg,"
    + r"max \max,min \min,gcd \gcd,lcm",
    "scale": "12 dozen,100 hundred,1000 thousand,1000000 million,1000000000 billion,1000000000000 trillion",
    "number": "0 zero,1 one,2 two,3 three,4 four,5 five,6 six,7 seven,8 eight,9 nine,10 ten",
    "unit": r"% \% percent percentage pct,$ \$ dollar dollars,€ euro euros,£,¥,₹,¢ cent cents",
}
_VOCABULARY = {
    alias: (kind, entry.split()[0])
    for kind, entries in _ENTRIES.items()
    for entry in entries.split(",")
    for alias in entry.split()
    if not alias.isdecimal()
} | {"\\" + name: ("symbol", "\\" + name) for name in _GREEK}
_PREFIXES = "=,kilo=k,centi=c,milli=m,mega=M,giga=G,micro=µ,nano=n,deci=d"
_BASE_UNITS = (
    "meter=m,metre=m,gram=g,second=s,liter=L,litre=L,hertz=Hz,watt=W,volt=V,joule=J,"
    + "newton=N,pascal=Pa,ampere=A,kelvin=K,mole=mol,byte=B,electronvolt=eV,watthour=Wh"
)
_OTHER_UNITS = (
    "in inch inches,ft foot feet,yd yard yards,mi mile miles,lb lbs pound pounds,oz ounce ounces,"
    + "min minute minutes,h hr hrs hour hours,s sec secs,mi/h mph,km/h kph,am AM,pm PM,mL ml,"
    + "° degree degrees deg,rad radian radians"
)
_UNITS = {
    name: prefix + symbol
    for long_prefix, prefix in (pair.split("=") for pair in _PREFIXES.split(","))
    for word, symbol in (pair.split("=") for pair in _BASE_UNITS.split(","))
    for name in (long_prefix + word, long_prefix + word + "s", prefix + symbol)
} | {alias: entry.split()[0] for entry in _OTHER_UNITS.split(",") for alias in entry.split()}

Token = tuple[str, str]


def _lex(answer: str, tokens: list[Token], in_text: bool = False) -> list[Token]:
    """The (kind, text) of each token, added to `tokens`.

    The kinds are number, repeating, based, symbol, function, unit, scale, word and mark.
    """
    for lexeme in _LEXEME.finditer(answer):
        kind, text = _LEXEMES[lexeme.lastindex - 1][0], lexeme[0]
        if kind == "text":
            _lex(text[text.index("{") + 1 : -1], tokens, in_text=True)
        elif kind == "letters":
            is_word = in_text or not re.search(r"[\w)}^]$", answer[: lexeme.start()][-1:])
            is_word = is_word and answer[lexeme.end() :][:1] not in ("^", "_", "(")
            tokens += _lex_letters(text, tokens[-1:], in_text, is_word)
        elif kind in ("degree", "am"):
            tokens.append(("unit", "°" if kind == "degree" else text[0] + "m"))
        elif kind == "based":
            digits, base = re.findall(r"[\dA-F]+|two|three|four|five|six|seven|eight|nine", text)
            tokens.append((kind, f"{digits}_{_VOCABULARY.get(base, (0, base))[1]}"))
        elif kind == "symbol":
            text = text.replace("overline", "bar").replace("\\prime", "'")
            tokens.append((kind, re.sub(r"\\text|[\s{}()^]", "", text)))
        elif kind != "skip":
            tokens.append(_VOCABULARY.get(text, (kind, text)))
    return tokens


def _lex_letters(letters: str, last: list[Token], in_text: bool, is_word: bool) -> list[Token]:
    """A run of letters is a unit, a word with a meaning, any other word, or a few symbols."""
    word = letters.casefold()
    unit = _UNITS.get(letters) or len(letters) > 3 and _UNITS.get(word)
    after_number = last and (
        last[0][0] in ("number", "scale", "unit", "symbol") or last[0][1] == "/"
    )
    if unit and after_number and (in_text or len(letters) > 1):
        return [("unit", unit)]
    if len(letters) > 1 and word in _VOCABULARY:
        return [_VOCABULARY[word]]
    if is_word and (len(letters) > 2 or in_text and len(letters) > 1) or letters in _SHORT_WORDS:
        return [("word", word)]
    return [("symbol", letter) for letter in letters]


_SHORT_WORDS = {*"no No an of to by it".split()}


@lru_cache(maxsize=512)
def _tokens(answer: str, split: bool) -> tuple[Token, ...]:
    """The tokens of an answer; in brackets, or if `split` says so, 1,234 is two numbers."""
    tokens = _lex(_clean(answer), [])
    if tokens.count(("unit", "$")) > 1:  # around formulas
        tokens = [token for token in tokens if token != ("unit", "$")]
    while tokens and tokens[-1][1] in (".", ",", "\\\\"):
        tokens.pop()
    if not split and not any(text in ("(", "[", "\\{") for _, text in tokens):
        return tuple(tokens)
    parts: list[Token] = []
    for kind, text in tokens:
        for number in re.split("(,)", text) if kind == "number" and "." not in text else [text]:
            parts.append(("mark" if number == "," else kind, number))
    return tuple(parts)


# -------------------------------------------------------------------------------------- 4. parse
class Value(NamedTuple):
    """A number, or an expression with symbols: its values at some points."""

    numbers: tuple  # a Fraction, a number of mpmath, or None where it has no value
    symbols: frozenset[str] = frozenset()
    unit: str = ""
    places: int = 0  # after the point of a decimal
    is_written: bool = False  # a number as people write it, with nothing left to be worked out
    is_algebraic: bool = False  # made of rational numbers by + - * / and roots
    kind = "value"


class Tree(NamedTuple):
    """Anything else. The parts are, by kind:

    "," "or" "{}": items of a list or a set, in any order; likewise "cup" and "cases"
    "()" "[)" ...: items of a tuple or ends of an interval; ":" of a ratio; "row" and "matrix"
    "name":        names, and the values that they have; "choice": a letter and its text
    "=" "<" ...:   the sides of an equation or of inequalities, such as "<<="; "words": the words
    """

    kind: str
    parts: tuple
    symbols = frozenset()


_NOT_UNDERSTOOD = (ValueError, TypeError, ArithmeticError, IndexError, AttributeError)


def _fail():
    """What is outside the grammar, or over a limit, ends here."""
    raise ValueError


@lru_cache(maxsize=512)
def _read(answer: str, split: bool = False) -> tuple[tuple[Token, ...], Value | Tree | None]:
    """The tokens of an answer, and what they mean, or None if that is not understood."""
    tokens = _tokens(answer, split)
    depths = accumulate(_depth(text) for _, text in tokens)
    if 0 < len(tokens) <= MAX_TOKENS and max(depths) <= MAX_DEPTH:
        with suppress(*_NOT_UNDERSTOOD):
            return tokens, _answer([*tokens])
    return tokens, None


def _answer(tokens: list[Token]) -> Value | Tree:
    """Words, a choice with its text, or mathematics."""
    kinds, texts = zip(*tokens, strict=True)
    if texts[0] in ("exactly", "just", "option"):
        return _answer(tokens[1:])
    if {*kinds} <= {"word", "unit"} and "word" in kinds or kinds == ("symbol", "word"):
        return Tree("words", texts[texts[0] in ("a", "an", "the") :])
    start = texts[0] == "("
    label, rest = texts[start : start + 2], tokens[start + 2 :]
    if label[0] in _CHOICES and label[1:] in ((")",), (":",), (".",)) and rest:
        if not any(text in _CHOICES for _, text in rest):
            return Tree("choice", (_symbol(label[0]), _answer(rest)))
    return _list(tokens)


def _depth(text: str) -> int:
    """1 for an opening bracket, -1 for a closing one, 0 for anything else."""
    opens = text in _OPENERS or text.startswith("\\begin")
    return opens - (text in _CLOSERS or text.startswith("\\end"))


def _split(tokens: list[Token], *marks: str) -> tuple[list[list[Token]], list[str]]:
    """The parts of tokens between these marks outside brackets, and the marks that were found."""
    parts: list[list[Token]] = [[]]
    found, depth = [], 0
    for kind, text in tokens:
        depth += _depth(text)
        if depth == 0 and kind == "mark" and text in marks:
            found.append(text)
            parts.append([])
        else:
            parts[-1].append((kind, text))
    return parts, found


def _list(tokens: list[Token]) -> Value | Tree:
    """Items between commas, "and" and "or", or one item."""
    parts, marks = _split(tokens, ",", ";", "and", "or")
    items, names = [], ()
    for part in chain(*map(_readings, filter(None, parts))):
        item = _item(part)
        if item.kind == "name":
            names = item.parts[0]
        elif names:
            item = Tree("name", (names, (item,)))  # x = 1, 2
        items += item.parts if item.kind == "," else [item]
    if len(items) == 1:
        return items[0]
    kind = "or" if "or" in marks else ","
    columns: dict[str, list] = {}
    for item in items:
        for name, value in zip(*item.parts, strict=True) if item.kind == "name" else [("", 0)]:
            columns.setdefault(name, []).append(value)
    if "" in columns or len({*map(len, columns.values())}) > 1:
        return Tree(kind, tuple(items))
    if len(columns) == 1 and all(value.kind in _INTERVALS for value in columns[names[0]]):
        union = Tree("cup", tuple(columns[names[0]]))
        return Tree("name", (names, (_intersection(*union.parts) if "and" in marks else union,)))
    rows = [Tree("name", (tuple(columns), row)) for row in zip(*columns.values(), strict=True)]
    return Tree(kind, tuple(rows)) if len(rows) > 1 else rows[0]


def _readings(tokens: list[Token]) -> list[list[Token]]:
    """An item with \\pm is two. In a set, its items are."""
    if tokens[0][1] == "\\{" or not {"\\pm", "\\mp"} & {text for _, text in tokens}:
        return [tokens]
    signs = {"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"}
    return [[(kind, sign.get(text, text)) for kind, text in tokens] for sign in signs]


def _intersection(low: Tree, high: Tree) -> Tree:
    """x > 1 and x < 3 is x in (1,3)."""
    if low.parts[0] is _MINUS_INFINITY:
        low, high = high, low
    if low.parts[1] is not _INFINITY or high.parts[0] is not _MINUS_INFINITY:
        _fail()
    return Tree(low.kind[0] + high.kind[1], (low.parts[0], high.parts[1]))


def _item(tokens: list[Token]) -> Value | Tree:
    """An equation, an inequality, or what _set reads."""
    sides, marks = _split(tokens, "=", "<", ">", "<=", ">=", "!=", "\\in")
    if marks and not _name(sides[0]) and _name(sides[-1]) and marks[0] == "=":
        sides = sides[::-1]  # 5 = x
    name = _name(sides[0])
    if not marks:
        return _set(tokens)
    if marks == ["\\in"]:
        values = _set(sides[1])
        if not name or values.kind == "value":
            _fail()
        parts = values.parts if values.kind in ("{}", ",") else (values,)
        return Tree(",", tuple(Tree("name", ((name,), (part,))) for part in parts))
    if {*marks} != {"="}:
        return _inequality(sides, marks)
    values = [_set(side) for side in (sides[1:] if name else sides)]
    if not name and len(values) == 2 and values[0].symbols | values[1].symbols:
        return Tree("=", tuple(values))
    if not all(_same(value, values[-1]) for value in values):
        _fail()  # x = 3+4 = 7 and 3+4 = 7 say 7, 3+4 = 8 says nothing
    return Tree("name", ((name,), (values[-1],))) if name else values[-1]


def _inequality(sides: list[list[Token]], marks: list[str]) -> Tree:
    """1 < x <= 3, |x| < 3 and x != 3 are sets of numbers, other inequalities are what they say."""
    if marks[0][0] == ">":
        sides, marks = sides[::-1], [mark.replace(">", "<") for mark in reversed(marks)]
    if not {*marks} <= {"<", "<=", "!="}:
        _fail()
    values = [_set(side) for side in sides]
    named = [i for i, value in enumerate(values) if value.symbols - _INFINITY.symbols]
    i = named[0] if len(named) == 1 and (named == [1] or len(values) == 2) else 0
    name = re.fullmatch(r"(\|?)(\\?[A-Za-z]\w*)\|?", "".join(text for _, text in sides[i]))
    if named != [i] or not name or len(values) > 3:
        return Tree("".join(marks), tuple(values))
    low, opener = (values[i - 1], marks[i - 1]) if i else (_MINUS_INFINITY, "<")
    high, closer = (values[i + 1], marks[i]) if i + 1 < len(values) else (_INFINITY, "<")
    if name[1]:
        low, opener = (_negative(high), closer) if i == 0 else _fail()  # |x| < 3
    brackets = ("[" if opener == "<=" else "(") + ("]" if closer == "<=" else ")")
    interval = _all_but(values[1 - i]) if marks == ["!="] else Tree(brackets, (low, high))
    return Tree("name", ((name[2],), (interval,)))


def _all_but(point: Value) -> Tree:
    return Tree("cup", (Tree("()", (_MINUS_INFINITY, point)), Tree("()", (point, _INFINITY))))


def _set(tokens: list[Token]) -> Value | Tree:
    """A union, a ratio, what is in brackets, or a value with its unit."""
    parts, marks = _split(tokens, "\\cup", "\\setminus")
    if marks:
        sets = tuple(_set(part) for part in parts)
        if marks == ["\\setminus"] and sets[0] is _REALS and len(sets[1].parts) == 1:
            return _all_but(sets[1].parts[0])
        if "\\setminus" in marks:
            _fail()
        if all(part.kind == "{}" for part in sets):
            return Tree("{}", sum((part.parts for part in sets), ()))
        return Tree("cup", sets)
    parts, marks = _split(tokens, ":")
    if marks:
        return Tree(":", tuple(map(_quantity, parts)))
    if len(tokens) == 1 and tokens[0][1] in _NAMED_SETS:
        return _NAMED_SETS[tokens[0][1]]
    depths = [*accumulate(_depth(text) for _, text in tokens)]
    if depths[0] == 1 and depths.index(0) == len(depths) - 1:
        return _bracketed(tokens[0][1], tokens[1:-1], tokens[-1][1])
    return _quantity(tokens)


def _bracketed(opener: str, inner: list[Token], closer: str) -> Value | Tree:
    """A set, a tuple or an interval, a matrix, or what is in brackets for no reason."""
    brackets = (opener + closer).replace("\\", "")
    if opener.startswith("\\begin"):
        return _matrix(opener, inner)
    if opener == "\\{":
        parts, marks = _split(inner, "\\mid", ":")
        if marks:  # {x : x > 1}
            return _list(parts[1]) if _name(parts[0][:1]) else _fail()
        items = _list(inner) if inner else Tree(",", ())
        return Tree("{}", items.parts if items.kind == "," else (items,))
    content = _list(inner)
    if content.kind == "," and brackets in _INTERVALS:
        return Tree(brackets, content.parts)
    return content if brackets in ("()", "[]", "{}") else _fail()


def _matrix(opener: str, inner: list[Token]) -> Value | Tree:
    if "aligned" in opener:  # x &= 1 \\ y &= 2
        return _list([(kind, text.replace("\\\\", ",")) for kind, text in inner if text != "&"])
    is_cases = "cases" in opener
    inner = [token for token in inner if not is_cases or token[1] not in ("if", "for", "when")]
    lines = [_split(line, "&")[0] for line in _split(inner, "\\\\")[0] if line]
    rows = tuple(Tree("row", tuple(map(_list, line))) for line in lines)
    if not re.search(r"cases|[{bp]matrix|array", opener):
        _fail()
    if not is_cases and all(len(row.parts) == 1 for row in rows):
        return Tree("()", tuple(row.parts[0] for row in rows))  # a column is a vector: (1,2)
    return Tree("cases" if is_cases else "matrix", rows)


def _quantity(tokens: list[Token]) -> Value | Tree:
    """A value and perhaps its unit, or several of them, as 5 ft 6 in."""
    currency = [text for _, text in tokens[:2] if text in _CURRENCIES]
    expression = _Expression([token for token in tokens if token[1] not in currency])
    value, rest = expression.sum(), expression.tokens[::-1]
    if currency:
        return value._replace(unit=currency[0] + "^1") if not rest else _fail()
    if not rest:
        return value
    end = 1
    while end < len(rest) and (rest[end][0] != "number" or rest[end - 1][1] in ("^", "{", "-")):
        end += 1
    value = value._replace(unit=_unit(rest[:end], value.numbers[0] == 1))
    if end == len(rest):
        return value
    others = _quantity(rest[end:])
    return Tree(",", (value, *(others.parts if others.kind == "," else [others])))


def _unit(tokens: list[Token], is_one: bool) -> str:
    """The unit after a value: "m^1 s^-2", or things that are counted: "red hat^1"."""
    powers = Counter()
    for sign, part in zip("+" + "-" * len(tokens), _split(tokens, "/")[0], strict=False):
        for factor in _split(part, "*")[0]:
            texts = [text for _, text in factor if text not in ("{", "}")]
            power = {"square": 2, "sq": 2, "cubic": 3}.get(texts[0], 1)
            texts = texts[power > 1 :]
            if "^" in texts:
                power = int("".join(texts[texts.index("^") + 1 :]))
                texts = texts[: texts.index("^")]
            name = _thing(texts, is_one or sign == "-")
            powers[name] += int(f"{sign}1") * power
    return " ".join(f"{name}^{power}" for name, power in sorted(powers.items()))


def _thing(texts: list[str], is_one: bool) -> str:
    """A unit of measure, or a noun in the plural, perhaps with words before it: "red hats"."""
    if len(texts) == 1 and texts[0] in _MEASURES:
        return texts[0]
    head = (
        texts[: texts.index("of")] if "of" in texts else texts[: -1 if texts[-1] == "old" else None]
    )
    plurals = [text in _MEASURES or _PLURAL.fullmatch(text) is not None for text in head]
    if any(plurals[:-1]) or not (plurals[-1] or is_one) or any(map(_NO_NOUN.fullmatch, texts)):
        _fail()
    return " ".join(texts).removesuffix("s") if all(len(text) > 1 for text in texts) else _fail()


_MEASURES = {*_UNITS.values(), *"%$€£¥₹¢"}
_PLURAL = re.compile(r"\w+[^s]s|people|children|teeth|mice|geese|sheep|dice|\w*men|\w*fish|\w+ese")
_NO_NOUN = re.compile(
    _one_of(
        "not?|never|none|nor|or|if|when|unless|otherwise|else|but|this|thus|is|was|were|has|does",
        "always|sometimes|perhaps|maybe|likely|more|less|fewer|least|most|than|both|either|neither",
        "wrong|false|incorrect|right|true|mod|choose|plus|minus|over|under|by|to|from|with|in|on|at",
        "about|almost|around|only|ones|tens|others?|works|fails|lies|the|an?|some|all|any|each",
        r"except|versus|squared|cubed|factorial|roots?|power|\w+ly|dozens|hundreds|thousands|naive",
        r"halves|half|thirds?|\w*(?:four|fif|x|even|eigh|nin|ten|elf|een|tie|red|and|ion)ths?",
    )
)


def _name(tokens: list[Token]) -> str:
    """What may stand before "=": x, x_1, AB, m+n, f(7), P(A|B), "the area"; or an empty string."""
    text = " ".join(text for _, text in tokens)
    if len(tokens) == 1 and tokens[0][0] == "symbol":
        return "" if text in _CONSTANTS else text
    if tokens and tokens[0][0] == "word" and _PHRASE.fullmatch(text):
        words = {text for kind, text in tokens if kind == "word"} - {"the", "of"}
        return "" if any(map(_NO_NOUN.fullmatch, words)) else text.removeprefix("the ")
    return text if _NAME.fullmatch(text) else ""


_PHRASE = re.compile(r"(?:the )?[\w-]+(?: of [\w-]+)?(?: [(\[].*[)\]])?")
_SEGMENT = "[A-Z](?: [A-Z])*"
_NAME = re.compile(
    _one_of(
        rf"{_SEGMENT}|\| [A-Z] {_SEGMENT} \||{_SEGMENT} / {_SEGMENT}",  # AB, |AB|, AB/CD
        rf"\\frac {{ {_SEGMENT} }} {{ {_SEGMENT} }}|[A-Z]\w*(?: : [A-Z]\w*)+",  # A:B
        r"[a-w](?: \+ [a-w])+|\( \S+(?: , \S+)+ \)",  # m+n, (x,y)
        r"(?:[f-hF-HPEIN]'*|f-1|\\Pr|gcd|lcm|max|min) [({\[] .* [)}\]]",  # f(x), P(A|B), E[X]
        r"\\(?:sum|prod|int|lim|det|deg|dim)(?![a-z]).*",
    )
)


class _Expression:
    """Recursive descent over the tokens of an expression, which are kept in reverse order."""

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens[::-1]

    def next(self, i: int = 1) -> Token:
        return self.tokens[-i] if i <= len(self.tokens) else ("end", "")

    def take(self, *marks: str) -> str:
        """The next token, if it is one of these marks, or else an empty string."""
        kind, text = self.next()
        return self.tokens.pop()[1] if kind == "mark" and text in marks else ""

    def whole(self) -> Value:
        value = self.in_radians(self.sum())
        return _fail() if self.tokens else value

    def in_radians(self, value: Value) -> Value:
        """Inside brackets and functions, 30 degrees is pi/6."""
        return _apply(operator.mul, value, _DEGREE) if self.skip(("unit", "°")) else value

    def skip(self, token: Token) -> bool:
        return self.next() == token and self.tokens.pop() == token

    def sum(self) -> Value:
        value = self.product()
        while mark := self.take("+", "-"):
            right = self.product()
            value = _apply(_add, value, right if mark == "+" else _negative(right))
        return value

    def product(self) -> Value:
        value = self.signed()
        while mark := self.take("*", "\\times", "/") or self.is_factor() and "*":
            if mark == "\\times" and re.match(_ACCENT, self.next()[1]):
                _fail()  # of vectors, it is not the product of numbers
            is_scientific = value.is_written and (self.next()[1], self.next(2)[1]) == ("10", "^")
            right = self.signed()
            if mark == "/":
                value = _fraction(value, right)
            else:
                value = _apply(operator.mul, value, right)._replace(is_written=is_scientific)
        return value

    def is_factor(self) -> bool:
        kind, text = self.next()
        return kind in ("symbol", "function") or text in _FACTORS

    def signed(self) -> Value:
        if self.take("-"):
            return _negative(self.signed())
        return self.signed() if self.take("+") else self.power()

    def power(self) -> Value:
        is_ten = self.next()[1] == "10"
        value = self.atom()
        while self.take("!"):
            value = _apply(_factorial, value)
        if self.take("^"):
            value = _apply(_power, value, self.signed())._replace(is_written=is_ten)
        return value

    def atom(self) -> Value:
        kind, text = self.tokens.pop()
        if kind == "number":
            return self.number(text)
        if kind == "repeating":
            return _constant(_repeating(text))
        if kind in ("symbol", "based"):
            return self.symbol(text)
        if kind == "function":
            return self.function(text)
        if text == "|":
            inner = self.tokens[::-1][: self.tokens[::-1].index(("mark", "|"))]
            del self.tokens[-len(inner) - 1 :]
            return _apply(abs, _Expression(inner).whole())
        if text in _OPENERS:
            value = _Expression(self.until_closed()).whole()
            return _unknown(text, value) if text in _ROUNDED else value
        if text == "\\frac":
            return _fraction(self.argument(), self.argument())
        if text == "\\binom":
            return _apply(_choose, self.argument(), self.argument())
        if text == "\\sqrt":
            degree = _Expression(self.until_closed()).whole() if self.take("[") else _constant(2)
            return _apply(_power, self.atom(), _fraction(_constant(1), degree))
        return _fail()

    def until_closed(self) -> list[Token]:
        """The tokens up to the bracket that closes the one just taken."""
        inner, depth = [], 1
        while depth:
            inner.append(self.tokens.pop())
            depth += _depth(inner[-1][1])
        return inner[:-1]

    def argument(self) -> Value:
        """What follows \\frac: a group, or one digit, as \\frac12 is 1/2."""
        kind, text = self.next()
        if kind == "number" and text.isdecimal():
            self.tokens[-1:] = [(kind, text[1:])] if len(text) > 1 else []
            return _number(text[0])
        return self.atom()

    def number(self, text: str) -> Value:
        """A number, perhaps with a scale (3 million) or a fraction (2 1/2) after it."""
        value = _number(text)
        while self.next()[0] == "scale":
            value = _constant(value.numbers[0] * int(self.tokens.pop()[1]))
        if self.next()[1] == "\\frac":
            fraction = self.atom()
        elif self.next()[0] == "number" and self.next(2)[1] == "/" and self.next(3)[0] == "number":
            top, _, bottom = (self.tokens.pop()[1] for _ in range(3))
            fraction = _fraction(_number(top), _number(bottom))
        else:
            return value
        if text.isdecimal() and fraction.is_written and 0 < fraction.numbers[0] < 1:
            return _constant(value.numbers[0] + fraction.numbers[0])
        return _apply(operator.mul, value, fraction)

    def symbol(self, text: str) -> Value:
        """A symbol, or a function of which only the name is known, as f(x) or P(A|B)."""
        if self.next()[1] in ("(", "[") and text.rstrip("'") in _FUNCTION_LETTERS:
            self.tokens.pop()
            inner = self.until_closed()
            if text in ("P", "E"):
                return _symbol(" ".join([text, *(token[1] for token in inner)]))
            return _unknown(text, *(_Expression(part).whole() for part in _split(inner, ",")[0]))
        while text.isupper() and self.next()[1].isupper() and self.next(2)[1] != "^":
            text += self.tokens.pop()[1]  # AB is not BA, since they may be matrices
        return _symbol(text)

    def function(self, name: str) -> Value:
        scripts = {}
        while mark := self.take("^", "_"):
            scripts[mark] = self.atom()
        if self.take("(", "[", "{", "\\{"):
            parts = _split(self.until_closed(), ",")[0]
            args = [_Expression(part).whole() for part in parts]
        else:
            args = [self.power()]
            while self.is_factor() and self.next()[0] != "function" and self.next()[1] != "(":
                args = [_apply(operator.mul, args[0], self.power())]  # sin 2x cos x
            args = [self.in_radians(*args)]
        power = scripts.get("^", _constant(1))
        if power.numbers[0] == -1 and "arc" + name in _FUNCTIONS:
            name, power = "arc" + name, _constant(1)
        if name == "log":
            args.append(scripts.get("_", _constant(10)))
        value = _apply(_FUNCTIONS[name], *args) if name in _FUNCTIONS else _unknown(name, *args)
        return _apply(_power, value, power)


# -------------------------------------------------------------------------------------- 5. values
POINTS = 8  # where expressions are compared; at the last four, symbols are positive integers


def _apply(function: Callable, *args: Value) -> Value:
    """A function of values, at every point."""
    if any(arg.unit for arg in args):
        _fail()
    symbols = frozenset().union(*(arg.symbols for arg in args))
    points = zip(*(arg.numbers for arg in args), strict=True)
    if symbols:
        numbers = tuple(_number_at(function, point, 2 * MAX_BITS) for point in points)
    else:
        numbers = (_number_at(function, next(points), MAX_EXACT_BITS),) * POINTS
    is_algebraic = function in _ALGEBRAIC and all(arg.is_algebraic for arg in args)
    return Value(numbers, symbols, is_algebraic=is_algebraic)


def _number_at(function: Callable, args: tuple, bits: int):
    """The value of a function, exactly if possible, or None if it has none or is too large."""
    if None in args:
        return None
    if not all(isinstance(arg, Fraction) for arg in args):
        args = tuple(map(_MP.convert, args))
    with suppress(ValueError, ArithmeticError, TypeError):
        number = function(*args)
        if isinstance(number, Fraction):
            return number if _bits(number) <= bits else None
        return number if not number or abs(_MP.mag(number)) <= MAX_BITS else None
    return None


def _bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()


def _constant(number: int | Fraction, places: int = 0) -> Value:
    return Value((Fraction(number),) * POINTS, places=places, is_written=True, is_algebraic=True)


def _symbol(name: str) -> Value:
    if name in _CONSTANTS:
        return Value((_CONSTANTS[name],) * POINTS)
    numbers = tuple(_at(name, point) for point in range(POINTS))
    return Value(numbers, frozenset({name}), is_written=name == "\\infty")


def _unknown(name: str, *args: Value) -> Value:
    """f(x): at every point, a value that is fixed by f and the value of x."""
    columns = enumerate(zip(*(arg.numbers for arg in args), strict=True))
    numbers = tuple(_at(f"{name} {column}", point) for point, column in columns)
    return Value(numbers, frozenset({name}).union(*(arg.symbols for arg in args)))


def _at(name: str, point: int) -> Fraction:
    """The value of a symbol at a point: pseudo-random, of both signs, and fixed by its name."""
    h = zlib.crc32(f"{name} {point}".encode("utf-8", "replace"))
    if point >= 4:
        return Fraction(h % 23 + 2)
    x = Fraction(h % 9973 + 500, 12_000)  # 0.04 to 0.87, a domain for arcsin
    return (x, 1 + 4 * x, -1 - x, 3 + 20 * x if h & 1 << 20 else -x)[point]


def _number(text: str) -> Value:
    """1.50 is 3/2 with two decimal places; 2.0 is the integer 2."""
    if re.search(r"\.\d+[.,]", text):
        text = text.replace(".", "").replace(",", ".")  # 1.234,5
    number = Fraction(re.sub(r"[^\d.eE+-]", "", text))
    return _constant(number, len(text.partition(".")[2]) if number.denominator > 1 else 0)


def _repeating(text: str) -> Fraction:
    r"""0.1\overline{6}, 0.1(6) and 0.1666... are 1/6."""
    whole, decimals, period = re.match(r"(\d*)\.(\d*)\D*(\d*)", text).groups()
    if not period:
        decimals, period = (re.fullmatch(r"(\d*?)(\d+?)\2+", decimals) or _fail()).groups()
    repeated = Fraction(int(period), 10 ** len(period) - 1)
    return (int(whole + decimals or "0") + repeated) / 10 ** len(decimals)


def _fraction(top: Value, bottom: Value) -> Value:
    """A fraction of integers is a written number, but not 4/2, which is left to be worked out."""
    value, number = _apply(operator.truediv, top, bottom), bottom.numbers[0]
    if not (top.is_written and bottom.is_written) or top.places or bottom.places or top.symbols:
        return value
    return value._replace(is_written=number == 1 or value.numbers[0].denominator > 1)


def _negative(value: Value) -> Value:
    if value is _INFINITY:
        return _MINUS_INFINITY
    numbers = _apply(operator.neg, value._replace(unit="")).numbers
    return value._replace(numbers=numbers)


def _add(a, b):
    total = a + b
    if isinstance(a, Fraction) or not _close(total, _MP.zero, a, b):
        return total
    return _MP.zero  # what cancels is 0


def _power(a, b):
    if isinstance(a, Fraction):
        if b.denominator == 1 and abs(b) * _bits(a) <= MAX_EXACT_BITS:
            return a ** int(b)
        a, b = _MP.convert(a), _MP.convert(b)
    if isinstance(a, _MP.mpf) and isinstance(b, _MP.mpf) and a < 0:
        for q in (1, 3, 5, 7):  # the real odd root
            p = _MP.nint(b * q)
            if _close(b * q, p):
                return (-a) ** b * (-1) ** int(p)
    return a**b


def _of_integers(function: Callable) -> Callable:
    """The function, for integers from 0 to 2100 only."""

    def apply(*numbers):
        if all(isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= 2100 for n in numbers):
            return Fraction(function(*map(int, numbers)))
        return _fail()

    return apply


def _of_reals(function: Callable) -> Callable:
    """The function, but 0 for what is 0 up to rounding: sin(pi)."""

    def apply(*numbers):
        value = function(*map(_MP.convert, numbers))
        return value if _MP.mag(value) > -MAX_BITS else _MP.zero

    return apply


def _close(u, v, *others) -> bool:
    """Do u and v differ only by rounding error, compared with u, v and the others?"""
    if isinstance(u, Fraction) and isinstance(v, Fraction):
        return u == v
    u, v = _MP.convert(u), _MP.convert(v)
    return u == v or _MP.mag(u - v) < max(map(_MP.mag, (u, v, *others))) - MAX_BITS


_OPENERS = {"(", "[", "{", "\\{", "\\lfloor", "\\lceil"}
_CLOSERS = {")", "]", "}", "\\}", "\\rfloor", "\\rceil"}
_ROUNDED = {"\\lfloor", "\\lceil"}
_FACTORS = {"(", "{", "\\frac", "\\sqrt", "\\binom", *_ROUNDED}
_FUNCTION_LETTERS = {*"fghFGHPEI", "f-1", "g-1", "h-1"}
_CHOICES = {*"ABCDEFGHIJ"}
_CURRENCIES = {*"$€£¥₹"}
_INTERVALS = {"()", "(]", "[)", "[]"}
_CONSTANTS = {"\\pi": +_MP.pi, "e": +_MP.e, "i": _MP.j}
_FUNCTIONS = {"log": _MP.log, "exp": _MP.exp} | {
    name: _of_reals(getattr(_MP, name.replace("arc", "a")))
    for name in "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln".split()
}
_factorial, _choose = _of_integers(math.factorial), _of_integers(math.comb)
_ALGEBRAIC = {_add, _power, operator.mul, operator.truediv, operator.neg}
_DEGREE = _apply(operator.truediv, _symbol("\\pi"), _constant(180))
_INFINITY = _symbol("\\infty")
_MINUS_INFINITY = _INFINITY._replace(numbers=_apply(operator.neg, _INFINITY).numbers)
_REALS = Tree("()", (_MINUS_INFINITY, _INFINITY))
_NAMED_SETS = {"\\mathbbR": _REALS, "\\emptyset": Tree("{}", ()), "\\infty": _INFINITY}


# ------------------------------------------------------------------------------------- 6. compare
def is_equiv(answer: str, gold: str) -> bool:
    """True if two answers mean the same. Symmetric; reflexive on every string; raises nothing."""
    if _joined(answer) == _joined(gold):
        return True
    if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
        return False
    for split in (False, True):
        (tokens_a, a), (tokens_b, b) = _read(answer, split), _read(gold, split)
        with suppress(*_NOT_UNDERSTOOD):
            if tokens_a and tokens_a == tokens_b or a and b and _same(a, b):
                return True
        if "," not in answer + gold:
            return False  # 100,200 may be a number, or a list beside a list
    return False


def _joined(answer: str) -> str:
    """The text without spaces around operators."""
    return re.sub(r"\s*([-+*/=(){},^])\s*", r"\1", answer.strip())


def _is_written(node: Value | Tree | None) -> bool:
    """True if there are written numbers only, with nothing left to be worked out."""
    if node is None or node.kind == "value":
        return node is not None and node.is_written
    parts = node.parts[1] if node.kind == "name" else node.parts[node.kind == "choice" :]
    return node.kind != "words" and bool(parts) and all(map(_is_written, parts))


def _same(a: Value | Tree, b: Value | Tree) -> bool:
    """Do the two mean the same?"""
    kinds = {a.kind, b.kind}
    if kinds == {"value"}:
        return _same_value(a, b)
    if kinds in ({"="}, {"<"}, {"<="}, {"!="}):
        return _same_relation(a, b)
    for x, y in ((a, b), (b, a)):
        if x.kind == "choice":  # (C) 7 against C, 7 or (C) 7
            return (
                y in x.parts
                if y.kind != "choice"
                else x.parts[0] == y.parts[0] and _same(x.parts[1], y.parts[1])
            )
    for x, y in ((a, b), (b, a)):
        if x.kind == "name":
            return _same_names(x, y)
    if kinds & {"value", "words"}:
        return a == b
    return _same_parts(a, b)


def _same_names(named: Tree, other: Value | Tree) -> bool:
    """x=1, y=2 is y=2, x=1, and it is 1, 2 and the point (1,2); but y=1, x=2 is no point."""
    names, values = named.parts
    if other.kind == "name":
        pairs = [
            sorted(zip(*x.parts, strict=True), key=lambda pair: pair[0]) for x in (named, other)
        ]
        return len(pairs[0]) == len(pairs[1]) and all(
            x[0] == y[0] and _same(x[1], y[1]) for x, y in zip(*pairs)
        )
    if len(names) > 1:
        in_order = other.kind == "," or list(names) == sorted(names)
        return in_order and other.kind in (",", "()") and _same_parts(Tree("()", values), other)
    if other.kind == "=" and values[0].kind == "value":  # y = 2x against y - 2x = 0
        return _same_relation(Tree("=", (_symbol(names[0]), *values)), other)
    return _same(values[0], other)


def _same_relation(a: Tree, b: Tree) -> bool:
    """Are two equations or inequalities the same, perhaps up to a factor?"""
    u, v = (_apply(_add, left, _negative(right)) for left, right in (a.parts, b.parts))
    ratios = [_MP.convert(x) / _MP.convert(y) if x and y else None for x, y in _pairs(u, v)]
    if u.symbols != v.symbols or len(ratios) < 2 or None in ratios:
        return False
    is_positive = isinstance(ratios[0], _MP.mpf) and ratios[0] > 0
    return (a.kind in ("=", "!=") or is_positive) and all(
        _close(ratio, ratios[0]) for ratio in ratios
    )


def _same_parts(a: Tree, b: Tree) -> bool:
    """Are two lists, sets, tuples ... the same?"""
    kinds = {a.kind, b.kind}
    if len(a.parts) != len(b.parts):
        return False
    if "or" in kinds and len(kinds) > 1 and any(part.symbols for part in a.parts):
        return False  # p or q is not p and q
    if kinds <= {",", "or", "{}"} or kinds in ({"cup"}, {"cases"}):  # in any order
        rest = [*b.parts]
        for part in a.parts:
            partner = next((other for other in rest if _same(part, other)), None)
            if partner is None:
                return False
            rest.remove(partner)
        return True
    return (len(kinds) == 1 or kinds == {",", "()"}) and all(map(_same, a.parts, b.parts))


def _same_value(a: Value, b: Value) -> bool:
    """Exactly where both are rational, otherwise to 180 digits, or as a rounded decimal."""
    if a.unit and b.unit and a.unit != b.unit:
        return False  # 5 m against 5 cm
    pairs = _pairs(a, b)
    if pairs and all(_close(u, v) for u, v in pairs):
        return len(pairs) > 1 or not a.symbols and not b.symbols
    return _is_rounded(a, b) or _is_rounded(b, a)


def _pairs(a: Value, b: Value) -> list[tuple]:
    """The values of two expressions at the points where both have one."""
    pairs = [pair for pair in zip(a.numbers, b.numbers, strict=True) if None not in pair]
    real = [pair for pair in pairs if not any(isinstance(number, _MP.mpc) for number in pair)]
    pairs = real if len(real) > 1 else pairs
    return pairs if a.symbols or b.symbols else pairs[:1]


def _is_rounded(decimal: Value, exact: Value) -> bool:
    """Is the decimal a fraction or root, rounded or cut off after at least four places?"""
    if decimal.places < 4 or exact.places or not exact.is_algebraic:
        return False
    digits, size = (value.numbers[0] * 10**decimal.places for value in (decimal, exact))
    if abs(digits) < 1000 or isinstance(size, _MP.mpc) or (digits < 0) != (size < 0):
        return False
    return abs(digits) in (int(abs(size)), int(abs(size) + Fraction(1, 2)))
