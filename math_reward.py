r"""Check answers to mathematics problems: a reward that is strict, fast and cannot hang.

An answer counts only where it is marked as one: in <answer> tags, in the last \boxed{}, after
"####" or "the answer is" with nothing else in that sentence, or if it is the whole response.
Two answers are equal if they have the same value, exactly or to 180 digits; with symbols, at
several points. Where the gold is a written number, such as 0.75, 3/4 or 6.02e23, the answer must
be one too, and no sum that is left to be worked out. A decimal equals a fraction or a root if it
is that, rounded or cut off at four significant digits or more, and a decimal only the same one.
Lists and sets are compared in any order, tuples and intervals part by part, named values by name.
A unit, a name or the letter of a choice may be missing on one side, but two must agree. Words must
be the same words. What is not understood equals only itself. In doubt the verdict is False.
"""

from __future__ import annotations

import math
import operator
import re
import unicodedata
import zlib
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import mpmath

MAX_RESPONSE = 20_000  # only the last characters of a longer response are searched
MAX_ANSWER = 1_000  # a longer answer is compared as text only
MAX_TOKENS = 120  # an answer with more tokens is compared token by token only
MAX_BITS = 600  # larger real numbers have no value
MAX_EXACT_BITS = 20_000  # larger rational numbers have no value; 2024! has one
POINTS = 8  # where expressions are compared; at the last four, symbols are positive integers

# A context that nothing changes is safe in threads, and so are mpmath's constants, cached here.
_MP = mpmath.MPContext()
_MP.dps = 600
_MP.ln(_MP.pi * _MP.e)
_MP.dps = 200  # 180 digits must agree, the others absorb rounding errors


def math_reward(response: str, gold: str, truncated: bool = False) -> bool:
    r"""True if the answer in `response` is equivalent to `gold`. Raises nothing on strings.

    `gold` is an answer, or a solution that has it in \boxed{} or after "####". `truncated` says
    that the response was cut off. math_reward(r"So it is \boxed{0.5}.", r"\frac12") is True."""
    answer = extract_answer(response, truncated)
    if answer is None:
        return False
    if re.search(r"\\(?:boxed|fbox)|####", gold):
        gold = extract_answer(gold) or gold
    if re.fullmatch(r"\s*[A-J]\s*", gold) and re.fullmatch(r"\(?[a-j]\)?", answer):
        answer = answer.upper()  # "Answer: d" to a multiple choice question
    is_right = is_equiv(answer, gold)
    return is_right and (_is_written(_read(answer)[1]) or not _is_written(_read(gold)[1]))


def _one_of(*patterns, start="", end=""):
    """A regular expression for any of these."""
    return f"{start}(?:{'|'.join(patterns)}){end}"


# ------------------------------------------------------------------------------------ 1. extract
_BRACE = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<![ap]\.m)(?<!\.)[.。](?=[\s$]|\Z)|(?<!,)\n")
_OR = r"(?:or|oder|ou|o|lub|veya|или|或|または|nor|not|if|unless|vs|versus)\b"

# A box is whole if nothing that it could be a part of stands before it or after it.
_BEFORE_BOX = _one_of(
    r"\A|[=≈≡∈:.;!?\"'”’…—–。：，]|[-=]>|\n\s*>|=\s{0,3}\+|\\\$",  # punctuation, a relation
    r"\\(?:approx|simeq|equiv|in|implies|Rightarrow|rightarrow|to|therefore)|\n\s*[-*]",
    r"(?<![\\A-Za-z])(?:[^\W\d_]{2,20}\)?|a),?|['’]s|\\(?:text\w*|mathrm|mbox)\s?\{[^{}]*\}",
    r"(?<=[$)\]}]),|\\[)\]]|[^-\s+*/^<>≤≥×·÷±−(,&\\{]\s*\n|\\\\|-{3}\n",  # the end of a line
    end=r"(?:\s|\$|\*\*|&|\\[(\[,;! ]|\\q?quad)*\Z",  # spaces, the beginning of a formula
)
_AFTER_BOX = _one_of(
    r"\Z|[.,;:?\"'”’…。，、；：)](?!\d)|!(?=\s|\Z)|\n(?!\s*[+/^=])|\\(?:\\|end)",  # punctuation
    rf"(?:\$+|\\[)\]])(?!\s*(?:[-+*/^=<>×·÷]\s?[\d\\$(]|[!²³]|{_OR}))",  # the end of a formula
    rf"=?\s?\\(?:text\w*|mbox|mathrm|operatorname)\s?(?!\{{\s*{_OR})|[\u3040-\uffef]",  # words
    rf"(?<=[\s$~])(?!{_OR})(?:[^\W\d_]{{2}}|a\b)|(?<=\s)\([^\W\d_]{{2}}|[—–-] ?[^\W\d_]{{2}}",
    r"\\(?:%|pmod|pm|AA|mu|Omega)|%|\^\s?\{?\s?\\circ|°|/\s?\$|(?<=\s)\{~?[A-Za-z]{1,9}\}",
    r"(?<=[\s$~])\{?\s?[mgsJNWVKCLhe~](?![A-Za-z(])",
    start=r"(?:[ \t~]|\\[ ,;!]|\\q?quad|\*\*)*",
)
_BEFORE_BOX, _AFTER_BOX = re.compile(_BEFORE_BOX), re.compile(_AFTER_BOX)
_BETWEEN_BOXES = re.compile(
    r"[^.:;!?]{0,60}?(?:,|\band\b)(?:\s|\$|\\[()\[\]]|\}|\\q?quad)*(?:[^=,;.]{1,20}=)?[\s$]*"
)

_THEREFORE = _one_of(
    "so|thus|hence|therefore|finally|(?:we|this) (?:gives?|get|find|obtain|have)(?: that)?|it is",
    "it['’]s|in (?:conclusion|summary)|also|daher|somit|donc|ainsi|por lo tanto|así|quindi|dunque",
    "portanto|logo|итак|поэтому|следовательно|所以|因此|故|よって|したがって|따라서",
)
_FINAL = "the|our|my|final|correct|right|exact|die|richtige|la|le|el|finale|correcta|最终|최종"
_ANSWER = _one_of(
    r"\b(?:answers?|ans|option|choice|antwort|respuesta|r[ée]ponse|risposta|(?:a )?resposta)\b",
    r"\bответ\b|الجواب|الإجابة|उत्तर|答案|答え|정답",
)
_SURELY = "indeed|clearly|just|exactly|of course|equal to|given by|the number"
_IS = _one_of(
    r"[\s*_\"']{0,4}(?:[:=：]|->|→|\.(?=\s?[\dA-J]))",
    r"[\s*_\"']{0,4}(?:(?:is|are|equals|must be|comes out as|ist|es|est|è|é|هو|هي)\b|是|为|は|은)"
    + rf"(?:,? (?:{_SURELY})\b,?)?\s?[:：]?",
    r"[^\w$\\\n]{0,6}(?=\n)|(?=\W{1,9}(?:[A-J]|\d[\d.,]{0,20})\W{0,9}(?:\Z|\n))",  # "Answer D"
)
_MARK = re.compile(
    rf"^(\s{{0,3}}#{{4}}(?!#|\W{{0,9}}(?:final )?answer)|A:)|{_ANSWER}{_IS}(?: option\b)?",
    re.MULTILINE | re.IGNORECASE,
)
_LEAD = re.compile(  # what may stand before "answer" in its sentence
    r"(?:\A|.*[.!?:;。！？：；\n]|.*,(?= (?:so|thus|hence|therefore)\b))[^\w\n]{0,12}"
    + rf"(?:(?:{_THEREFORE}|{_FINAL})[\s_,*\"]{{0,4}}){{0,8}}",
    re.DOTALL | re.IGNORECASE,
)


def extract_answer(response: str, truncated: bool = False) -> str | None:
    r"""The final answer of a response, or None: extract_answer("The answer is 4.") is "4".

    It is what is in <answer> tags, or else the last \boxed{}, or else what follows "####" or "the
    answer is", or else all of the response. If that was cut off, only the first two count."""
    text = response.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    text = re.split(r"<\|\w{1,40}\|>|</s>|<eos>|<end_of_turn>", text[-MAX_RESPONSE:])[0].strip()
    _, tag, tagged = text.rpartition("<answer>")
    if tag and "</answer>" in tagged:
        text, truncated = tagged.partition("</answer>")[0].strip(), False
    text = re.sub(r"\\boxed\s?(\d)", r"\\boxed{\1}", text)
    if re.search(r"\\(?:boxed|fbox)\s*\{", text):
        return _boxed(text)
    if truncated or (marked := _marked(text)):
        return None if truncated else marked
    text = re.sub(rf"(?i)\A(?:{_THEREFORE}[\s,:]+)*", "", text[: MAX_ANSWER + 1]).strip(" \t*`\n=")
    return text if len(text) <= MAX_ANSWER and _read(text)[1] is not None else None


def _boxed(text):
    """The content of the last box, or of the last boxes if commas join them to a list."""
    boxes = _boxes(text)
    pairs = enumerate(pairwise(boxes), 1)
    starts = [i for i, (a, b) in pairs if _SENTENCE_END.search(text, a[1], b[0])]
    boxes = boxes[max(starts, default=0) :]  # those of the last sentence
    contents = [content for _, _, content in boxes]
    if not boxes or not all(_is_whole(text, *box) for box in boxes):
        return None
    answer = contents[-1]
    if all(_BETWEEN_BOXES.fullmatch(text, a[1], b[0]) for a, b in pairwise(boxes)):
        answer = ", ".join(contents)
    elif not all(is_equiv(content, answer) for content in contents):
        return None
    return _boxed(answer) if 0 < answer.count("\\boxed") < 9 else answer or None


def _boxes(text):
    """(start, end, content) of each outermost box; none at all if one is not finished."""
    boxes, open_braces = [], []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{" or "box" in brace[0]:
            open_braces.append(brace)
        elif brace[0] == "}" and open_braces:
            opener = open_braces.pop()
            if opener[0] != "{":
                while boxes and boxes[-1][0] > opener.start():
                    boxes.pop()
                content = text[opener.end() : brace.start()].strip()
                boxes.append((opener.start(), brace.end(), content))
    return boxes if all(brace[0] == "{" for brace in open_braces) else []


def _is_whole(text, start, end, content):
    """False if an operator, a factor or a power is attached to the box in its formula."""
    if re.fullmatch(r"\\text\w*\{\([A-J]\)\s*\}", content):
        return True  # a choice, which its text may follow
    before = _BEFORE_BOX.search(text, max(0, start - 60), start)
    return before is not None and _AFTER_BOX.match(text, end) is not None


def _marked(text):
    """What follows the last mark, such as "the answer is", up to the end of the sentence."""
    for mark in reversed([*_MARK.finditer(text)]):
        if mark[1] or _LEAD.fullmatch(text, max(0, mark.start() - 90), mark.start()):
            rest = text[mark.end() : mark.end() + MAX_ANSWER]
            rest = re.sub(r"\A[ *]*\n[\s*]*(?:[-*•–]\s+)?", "", rest)  # a bullet
            rest = re.sub(r"\A\s*(?:\$\$|\\\[)\s*([^$\n]*?)\s*(?:\$\$|\\\])", r"\1", rest)
            sentence, *others = _SENTENCE_END.split(rest.strip(), maxsplit=1)
            sentence = re.sub('(?:です|입니다|"})$', "", sentence.rstrip(" .")).strip(" \t*`\"'_")
            if not (mark[1] and others and re.fullmatch(r"[^\W\d_][^\d$\\]*", sentence)):  # heading
                return sentence if "(" in sentence else sentence.rstrip(")")
    return None


# -------------------------------------------------------------------------------------- 2. clean
_PART = r"(\d|\{[^{}]*\})"
# name, pattern, replacement, and an example: what it was, and what becomes of it
CLEANING = [
    ("escaped twice", r"(?<!\\)\\\\(?=[A-Za-z]{3}|[lg]e|in|pi)", r"\\", r"\\frac12", r"\frac12"),
    ("negative space", r"\\!\s*", "", r"1,\! 000", "1,000"),
    ("formula", r"(?<!\\)\$\$?((?:\\.|[^$\\])*?)[\s.,]{0,3}\$\$?", r" \1 ", "$5.$", " 5 "),
    ("end", r"(?<![\s.,])(?:[ ,]|\.(?!\.)|\\\\)+(\}?)$", r"\1", r"\text{Yes.}", r"\text{Yes}"),
    ("bold", r"(?<![\w)}])\*\*|\*\*(?![\w({\\])|`", "", "**(B) 7**", "(B) 7"),
    ("digits", rf"(frac|binom) ?{_PART} ?{_PART}", r"\1{\2}{\3}", "frac12", "frac{1}{2}"),
]
_RULES = [(re.compile(pattern, re.ASCII), text) for _, pattern, text, _, _ in CLEANING]
_ENVIRONMENT = re.compile(
    r"\\begin\s?\{(align\w*|cases|[pb]?matrix|array)\}(?:\s?\{[lcr| ]*\})?"
    + r"((?:[^\\]|\\(?!begin|end))*)\\end\s?\{\1\}"
)
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    + "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
).split()
_SIGNS = (
    r"−=- –=- —=- ⋅=\cdot ·=\cdot ’=' ′=' ″='' ×=\times ÷=/ ∗=* ≤=\le ≥=\ge ≠=\ne "
    + r"±=\pm √=\sqrt ∛=\sqrt[3] ∈=\in ∪=\cup ∅=\emptyset ∞=\infty °=\degree …=\ldots µ=\mu "
    + r"⟨=( ⟩=) ℝ=\mathbb{R} ℤ=\mathbb{Z} ℕ=\mathbb{N} ℚ=\mathbb{Q} ℂ=\mathbb{C} ⁄=}{"
)
_CHARACTERS = dict(pair.split("=") for pair in _SIGNS.split())
_CHARACTERS |= zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", map("\\".__add__, _GREEK), strict=True)
_TRANSLATION = {ord(char): text + " " for char, text in _CHARACTERS.items()}
_TYPOGRAPHY = r"[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿⁱˣ]+=^{%s} [₀-₉₊₋₍₎ₐₑₒₓₕ-ₜᵢⱼ]+=_{%s} [¼-¾⅐-⅞]=\frac{%s} " + (
    r"[\xa0\u2000-\u200a\u202f\u3000\uff01-\uff5e]=%s"
)


def _clean(answer):
    r"""An answer in LaTeX with ASCII characters: "5½" is 5\frac{1}{2}, "2ⁿ" is 2^{n}."""
    answer = " ".join(answer.split())
    if not answer.isascii():
        for pattern, form in (pair.split("=") for pair in _TYPOGRAPHY.split()):
            for match in {*re.findall(pattern, answer)}:
                answer = answer.replace(match, form % unicodedata.normalize("NFKC", match))
        answer = answer.translate(_TRANSLATION)
    answer = _ENVIRONMENT.sub(_environment, answer)
    for pattern, replacement in _RULES:
        answer = pattern.sub(replacement, answer)
    return answer


def _environment(match):
    """A matrix is a tuple of rows: ([1,2],[3,4]); cases are a set of rows; lines are a list."""
    name, body = match.groups()
    if name.startswith("align"):
        return body.replace("&", "").replace("\\\\", ",")
    body = re.sub(r"\\text\w*\s*\{\s*(?:if|for|when)?\s*\}|\\\\\s*$", "", body)
    rows = body.replace("\\\\", "],[").replace("&", ",")
    return rf"\{{[{rows}]\}}" if name == "cases" else f"([{rows}])"


# ---------------------------------------------------------------------------------------- 3. lex
class Token(str):
    """A piece of an answer, and its kind: number, symbol, function, unit, word or mark."""

    def __new__(cls, text, kind="mark"):
        token = super().__new__(cls, text)
        token.kind = kind
        return token


_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_BRACKETS = r"[(\[](?:[^()\[\]]|\([^()]*\))*[)\]]"
_TEXT = r"\\(?:text\w{0,6}|mathrm|operatorname\*?|[mh]box)\s*"
_ACCENT = r"\\(?:mathbb|mathbf|mathcal|boldsymbol|vec|hat|bar|tilde|d?dot|over\w+|angle|triangle)"
_SKIPPED = r"left|right|middle|[bB]igg?[lrm]?|(?:display|text)style|underline|checkmark|therefore"
_LETTER = rf"(?:[A-Za-z]|\\(?:{'|'.join(_GREEK)})(?![A-Za-z]))"
_DIGITS = r"\s*\{+ ?-? ?\d{1,300} ?\}+"
_TEN = rf"10 ?\^(?:{_DIGITS}|-?\d+)"
# (kind, pattern): the next token is given by the first pattern that matches
_LEXEMES = [
    ("skip", rf"\s+|~|\\[ ,;:>()\[\]]|\\(?:{_SKIPPED}|[lL]arge)(?![A-Za-z])(?:\s*\.)?"),
    ("repeating", r"\d{0,40}\.\d{0,40}\\(?:overline|bar|dot)\s*\{?\d{1,20}\}?"),  # 0.1\overline{6}
    ("repeating", r"\d{0,40}\.\d{0,40}(?:\(\d{1,20}\)|\d\s?(?:\.\.\.|\\[lc]?dots))"),  # 0.1(6)
    ("based", rf"\(?\d[\dA-F]*\)?\s*_\s*(?:\{{[^{{}}]*(?:{_BRACES})?\}}|\d+(?![\d_]))"),  # 101_2
    ("based", rf"{_TEXT}\{{\d[\dA-F]*\}}\s*_\s*\{{?\d+\}}?"),  # \text{101}_2
    ("based", r"\d+\s*(?:\\text\{)?\s*in base[\s}]*\d+"),
    ("text", _TEXT + r"\{[^{}]*\}"),
    ("fraction", rf"(?<![\^_.\d])\d+(?: |\\,|~)*\\[dtc]?frac{_DIGITS}{_DIGITS}"),  # 2\frac{1}{2}
    ("fraction", rf"\\[dtc]?frac{_DIGITS}{_DIGITS}|(?<![\^_.\d])\d+ +\d+/\d+"),  # 2 1/2
    ("fraction", r"(?<![\w)}/^.])\d+ ?/ ?\d+(?![\d.]| ?[/^!])"),  # 1/2
    ("number", rf"(?<![\w.^])(?:\d[\d.,]* ?(?:\\times|\\cdot|[*x]) ?)?{_TEN}"),  # 6 * 10^{23}
    ("number", r"[1-9]\d{0,2}(?:(?:,|\s?\{\s?,\s?\}\s?)\d{3})+(?!,?\d)(?:\.\d+)?"),  # 1,234,567.8
    ("number", r"[1-9]\d{0,2}(?:(?: |\\,|~)\d{3})+(?! ?\d)(?:\.\d+)?"),  # 1 234 567.8
    ("number", r"[1-9]\d{0,2}(?:(?:'\d{3})+|(?:_\d{3})+|(?:\.\d{3}){2,})(?![\d.])"),  # 1'234'567
    ("number", r"[1-9]\d{0,2}(?:\.\d{3})+,\d{1,2}(?!\d)"),  # 1.234,5
    ("number", r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3}(?![\d.]))?"),  # 12, 1.5, 6.02e23
    ("symbol", r"\\[dt]?frac\s*\{+\s*d\s*\w?\s*\}+\s*\{+\s*d\s*\w\s*\}+"),  # dy/dx
    ("symbol", rf"{_ACCENT}(?![a-z])\s*(?:{_BRACES}|\\[A-Za-z]+|[A-Z]+|\w)"),  # \vec a
    ("symbol", rf"(?<![A-Za-z])(?:[f-hF-HPEIN]'*|[fgh]\^\{{-1\}}|\\Pr)\s*{_BRACKETS}"),  # f(x)
    ("symbol", rf"\\?(?:max|min|gcd|lcm)\s*(?:\\?{_BRACES}|{_BRACKETS})"),  # \max(a,b)
    ("symbol", rf"{_LETTER}\s*_\s*(?:{_BRACES}|\\[A-Za-z]+|\w)'*"),  # x_1
    ("symbol", r"[A-Za-z](?:'+|\s*\^\s*\{?\s*\\prime\s*\}?)"),  # f'
    ("unit", r"\^\s*\{?\s*\\circ\s*\}?|\\degree|[ap]\.\s?m\b\.?"),
    ("mark", r"x(?=\s?10\s?\^)|\\[A-Za-z]+|\\."),
    ("word", r"(?<![\w)}^])[A-Za-z]{3,}(?:[-'][A-Za-z]+)*(?![\w^(])"),
    ("word", r"(?:No|no|an|of|to|by)\b|a(?= [a-z]{3})"),
    ("letters", r"log|[A-Za-z]+(?!\s*_)"),
    ("mark", r"\*\*|[<>!]=|[-=]>|\S"),
]
_LEXEME = re.compile("|".join(f"({pattern})" for _, pattern in _LEXEMES), re.ASCII | re.DOTALL)

_PREFIXES = dict(zip(",kilo,centi,milli,mega,micro,nano".split(","), ["", *"kcmMµn"], strict=True))
_SI_UNITS = (
    ",m meter meters metre metres,g gram grams,s second seconds,L liter liters litre,Hz hertz,"
    + "W watt watts,V volt volts,J joule joules,N newton newtons,Pa pascal pascals,A ampere,"
    + "K kelvin kelvins,mol mole moles,B byte bytes,eV electronvolt electronvolts,Wh"
)
_FUNCTION_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp".split()
# Words and commands with one meaning. The first of each entry stands for the others.
_ENTRIES = {
    "mark": r"* \cdot \ast x,\times ×,/ \div per,^ **,( \langle,) \rangle,< \lt,> \gt,= is equals,"
    + r"<= \le \leq \leqslant,>= \ge \geq \geqslant,| \vert \lvert \rvert,and,or,- minus negative,;"
    + r" \quad \qquad,\emptyset \varnothing,\frac \dfrac \tfrac,\binom \dbinom \tbinom,\sqrt sqrt",
    "symbol": r"\infty infinity,\pi pi,\phi \varphi,\epsilon \varepsilon,\hbar,\\"
    + ",\\".join(_GREEK),
    "function": ",".join(f"{name} \\{name}" for name in _FUNCTION_NAMES) + r",log \lg",
    "number": "0 zero,1 one,2 two,3 three,4 four,5 five,6 six,7 seven,8 eight,9 nine,10 ten",
    "unit": r"% \% percent percentage pct,$ \$ dollar dollars,€ euro euros,£,¥,₹,¢ cent cents,"
    + r"° ^\circ \degree degree degrees,am a.m. a.m,pm p.m. p.m",
    "measure": "in inch inches,ft foot feet,yd yard yards,mi mile miles,lb lbs pound pounds,"
    + "oz ounce ounces,min minute minutes,h hr hrs hour hours,s sec secs,am AM,pm PM,mL ml,mph,rad"
    + " radian radians"
    + "".join(_SI_UNITS.replace(" ", " " + k).replace(",", "," + v) for k, v in _PREFIXES.items()),
}
_VOCABULARY = {
    alias: Token(("~" if kind == "measure" else "") + entry.split()[0], kind)
    for kind, entries in _ENTRIES.items()
    for entry in entries.split(",")
    for alias in entry.split()
    if not alias.isdecimal()
}


def _lex(answer, tokens, in_text=False):
    """The tokens of an answer, added to `tokens`."""
    for lexeme in _LEXEME.finditer(answer):
        kind, text = _LEXEMES[lexeme.lastindex - 1][0], lexeme[0]
        if kind == "text":
            _lex(text[text.index("{") + 1 : -1], tokens, in_text=True)
        elif kind in ("word", "letters"):
            tokens += _lex_letters(text, tokens[-1:], in_text or kind == "word", in_text)
        elif kind != "skip":
            if kind == "based":
                text = "_".join(re.findall(r"[\dA-F]+", text))
            elif kind in ("symbol", "unit"):
                text = re.sub(r"\{(\\?\w|\\[a-z]+)\}", r"\1", re.sub(r"\s|\\text", "", text))
                text = text.replace("^\\prime", "'").replace("overline", "bar")
            tokens.append(_VOCABULARY.get(text) or Token(text, kind))
    return tokens


def _lex_letters(letters, last, is_word, in_text):
    """A run of letters is a unit, a word with a meaning, any other word, or a few symbols."""
    known = _VOCABULARY.get(letters) or _VOCABULARY.get(letters.casefold())
    if known and known.kind == "measure":
        is_after_number = last and (last[0] in _BEFORE_UNIT or last[0].kind in _BEFORE_UNIT)
        known = known if is_after_number and (in_text or len(letters) > 1) else None
    if known and (len(letters) > 1 or known.kind == "measure"):
        return [known]
    if is_word and (len(letters) > 1 or letters == "a"):
        return [Token(letters.casefold(), "word")]
    return [Token(letter, "symbol") for letter in letters]


_BEFORE_UNIT = "number repeating fraction unit measure symbol / * } square cubic sq".split()


# -------------------------------------------------------------------------------------- 4. parse
def _fail():
    """What is outside the grammar, or over a limit, ends here."""
    raise ValueError


class Value(NamedTuple):
    """A number, or an expression with symbols: its values at some points."""

    numbers: tuple  # a Fraction, a number of mpmath, or None where it has no value
    symbols: frozenset = frozenset()  # with the names of constants and functions
    unit: str = ""
    places: int = 0  # of a decimal, after the point
    is_written: bool = False  # a number as people write it, with nothing left to be worked out
    kind = "value"


class Tree(NamedTuple):
    """Anything else. The parts are, by kind:

    "," "or" "{}" "cup": items of a list, a set or a union of intervals, in any order
    "()" "[)" ...: items of a tuple or ends of an interval; ":" of a ratio; "row" of points
    "name": names in order of the alphabet, and their values; "choice": a letter and its text
    "=" "<" "<<=" ...: the sides of an equation or of inequalities; "words": the words"""

    kind: str
    parts: tuple
    symbols = frozenset()


@lru_cache(maxsize=512)
def _read(answer, split=False):
    """The tokens of an answer, and its Value or Tree, or None if it is not understood."""
    text = _clean(answer)
    if split or re.search(r"(?<!\\)[(\[]|\\\{", text):
        text = re.sub(r"(?<=\d),(?=\d)", ", ", text)  # here, 1,234 is two numbers
    tokens = _lex(text, [])
    if 0 < len(tokens) <= MAX_TOKENS:
        with suppress(*_UNCLEAR):
            return tokens, _answer(tokens)
    return tokens, None


def _depths(tokens):
    """How many brackets are open after each token."""
    return [*accumulate((token in _OPENERS) - (token in _CLOSERS) for token in tokens)]


def _split(tokens, *marks):
    """The parts of tokens between these marks outside brackets, and the marks that were found."""
    parts, found = [[]], []
    for token, depth in zip(tokens, _depths(tokens), strict=True):
        if depth == 0 and token in marks:
            found.append(token)
            parts.append([])
        else:
            parts[-1].append(token)
    return parts, found


def _answer(tokens):
    """Words, a choice with its text, or mathematics."""
    kinds = [token.kind for token in tokens]
    if {*kinds} <= {"word", "unit", "measure"}:
        return Tree("words", tuple(tokens[tokens[0] in ("a", "an", "the") :]))
    start = tokens[0] == "("
    letter, *text = tokens[start:]
    if letter in _CHOICES and text[1:] and text[0] in ").:" and not _CHOICES & {*text}:
        return Tree("choice", (_symbol(letter), _answer(text[1:])))
    return _list(tokens[tokens[0] in ("exactly", "just", "option") :])


def _list(tokens):
    """A name and its values, or items between commas, "and" and "or", or one item."""
    parts, marks = _split(tokens, ",", ";", "and", "or")
    sides, equals = _split(tokens, "=", "\\in")
    if equals and _name(sides[0]) and (len(equals) == 1 or not marks):
        return Tree("name", ((_name(sides[0]),), (_last(map(_list, sides[1:])),)))
    readings = [reading for part in parts if part for reading in _readings(part)]
    items = [_item(tokens)] if readings == [tokens] else [*map(_list, readings)]
    kind = "or" if "or" in marks and any(item.symbols for item in items) else ","
    if len(items) == 1 or any(item.kind != "name" for item in items):
        return Tree(kind, tuple(items)) if len(items) > 1 else items[0]
    names, values = zip(*sorted((*item.parts[0], *item.parts[1]) for item in items), strict=True)
    if len({*names}) == 1:  # x=1, x=2; x<1 or x>2
        return Tree("name", (names[:1], (Tree(kind, values),)))
    is_point = len({*names}) == len(names)
    return Tree("name", (names, values)) if is_point else Tree("row", tuple(items))


def _readings(tokens):
    """An item with \\pm is two items. In a set, its items are."""
    if tokens[0] == "\\{" or not {"\\pm", "\\mp"} & {*tokens}:
        return [tokens]
    return [[sign.get(token, token) for token in tokens] for sign in _SIGNED]


def _last(values):
    """x = 3+4 = 7 and 3+4 = 7 say 7, but 3+4 = 8 says nothing."""
    *others, last = values
    return last if all(_same(other, last) for other in others) else _fail()


def _item(tokens):
    """An equation, an inequality, or what _set reads."""
    sides, marks = _split(tokens, "=", "<", ">", "<=", ">=")
    if marks and ">" in marks[0]:
        sides, marks = sides[::-1], [mark.replace(">", "<") for mark in reversed(marks)]
    values = tuple(map(_set, sides))
    named = [i for i, side in enumerate(sides) if _name(side)]
    name = _name(sides[named[-1]]) if named else ""
    if {*marks} <= {"="}:
        is_equation = len(marks) == 1 and (values[0].symbols | values[1].symbols) - _KNOWN
        return Tree("=", values) if is_equation else _last(values)
    if len(named) != 1 or len(sides) > 2 and named != [1]:
        return Tree("".join(marks), values) if {*marks} <= {"<", "<="} else _fail()
    ends, marks = [_negative(_INFINITY), *values, _INFINITY], ["<", *marks, "<"]
    brackets = "(["["=" in marks[named[0]]] + ")]"["=" in marks[named[0] + 1]]
    return Tree("name", ((name,), (Tree(brackets, (ends[named[0]], ends[named[0] + 2])),)))


def _set(tokens):
    """A union, a ratio, what is in brackets, or a value with its unit."""
    parts, marks = _split(tokens, "\\cup", ":")
    if marks:
        return Tree("cup" if "\\cup" in marks else ":", tuple(map(_set, parts)))
    depths, inner = _depths(tokens), tokens[1:-1]
    if depths[0] != 1 or depths.index(0) < len(inner) + 1:
        expression = _Expression(tokens)
        value, rest = expression.operators(), expression.tokens[:0:-1]
        return value._replace(unit=_unit(rest, value.numbers[0] == 1)) if rest else value
    brackets = (tokens[0] + tokens[-1]).replace("\\", "")
    content = _list(inner) if inner else Tree(",", ())
    if tokens[0] == "\\{":
        return Tree(brackets, content.parts if content.kind == "," else (content,))
    if content.kind == "," and brackets in _INTERVALS:
        return Tree(brackets, content.parts)
    return content if brackets in ("()", "[]", "{}") and inner else _fail()


def _unit(tokens, is_one):
    """The unit after a value: "m/s ^ 2", or things that are counted: "red hat"."""
    text = re.sub(r"\^ \{ ((?:- )?\d) \}", r"^ \1", " ".join(tokens))
    text = re.sub(r"(?:square|sq) (\S+)", r"\1 ^ 2", text.replace("~mph", "~mi / ~h"))
    return re.sub("[^/*]+", lambda m: _thing(m[0].strip(), is_one or m.start() > 0), text)


def _thing(text, is_one):
    """A unit of measure, or a noun in the plural, perhaps with another word: "red hats"."""
    name = re.sub(r" \^ (?:- )?\d$", "", text)
    *others, head = name.partition(" of ")[0].removesuffix(" old").split()
    is_plural = head in _MEASURES or _PLURAL.fullmatch(head) or is_one
    is_thing = is_plural and len(others) < 2 and not any(map(_PLURAL.fullmatch, others))
    if name not in _MEASURES and (not is_thing or re.search(_NO_NOUN, name)):
        _fail()
    return text if name in _MEASURES else text.removesuffix("s")


_MEASURES = {token for token in _VOCABULARY.values() if token.kind in ("unit", "measure")}
_PLURAL = re.compile(r"\w+[^s]s|people|children|teeth|mice|geese|sheep|dice|\w*men|\w*fish|\w+ese")
_NO_NOUN = _one_of(
    r"\w|not?|none|nor|or|if|but|this|is|was|has|does|more|less|fewer|least|most|both|\w+ly|false",
    r"perhaps|maybe|wrong|incorrect|right|true|ones|tens|others?|works|fails|lies|the|an?|some|all",
    r"any|each|squared|cubed|factorial|roots?|power|\w+illions?|dozens?|hundreds?|thousands?|halves|half|thirds?",
    r"in|on|at|by|to|about|almost|\w*(?:four|fif|x|even|eigh|nin|ten|red|and|ion)ths?",
    start=r"[^a-z~ -]|(?<![\w-])",
    end=r"(?![\w-])",
)


def _name(tokens):
    """What may stand before "=": x, x_1, f(7), AB, m+n, "the area"; or an empty string."""
    text = " ".join(tokens)
    if len(tokens) == 1 and tokens[0].kind == "symbol":
        return "" if text in _CONSTANTS else text
    return text if re.fullmatch(_NAME, text) else ""


_NAME = _one_of(
    r"[A-Z](?: [A-Z])+|[a-w](?: \+ [a-w])+|\( \S+(?: , \S+)+ \)",  # AB, m+n, (x,y)
    r"(?:the )?(?!not )[a-z-]{2,}(?: of [a-z-]{2,})?(?: \( .* \))?",  # the area, rank(A)
    r"\\(?:sum|prod|int|lim|det|deg|dim)(?![a-z]).*",
)


class _Expression:
    """Recursive descent over the tokens of an expression, which are kept in reverse order."""

    def __init__(self, tokens):
        self.tokens = [Token("", "end"), *tokens[::-1]]

    def take(self, *marks):
        """The next token, if it is one of these, or else an empty string."""
        return self.tokens.pop() if self.tokens[-1] in marks else ""

    def operators(self, level=0):
        """A value, and the operators after it that bind more tightly than `level`."""
        sign = self.take("-", "+")
        value = self.operators(2) if sign else self.atom()
        value = _negative(value) if sign == "-" else value
        while True:
            mark = self.tokens[-1]
            is_factor = mark.kind in ("symbol", "function") or mark in _FACTORS
            strength = 2 if is_factor else _STRENGTHS.get(mark, 0)
            if strength <= level:
                return value
            if not is_factor:
                self.tokens.pop()
            if mark == "!":
                value = _factorial(value)
            elif mark == "\\times" and re.match(_ACCENT, self.tokens[-1]):
                _fail()  # of vectors, it is not the product of numbers
            else:
                right = self.operators(strength - (mark == "^"))  # 2^3^2 is 2^(3^2)
                value = _OPERATIONS.get(mark, _product)(value, right)

    def brackets(self):
        """What is in the brackets that were just opened."""
        value = self.operators()
        return value if self.take(*_CLOSERS) else _fail()

    def atom(self):
        token = self.tokens.pop()
        if token.kind in _READERS:
            return _READERS[token.kind](token)
        if token.kind == "symbol":
            while token.isupper() and self.tokens[-1].isupper() and self.tokens[-2] != "^":
                token += self.tokens.pop()  # AB is not BA, since they may be matrices
            return _symbol(token)
        if token.kind == "function":
            return self.function(token)
        if token in "$€£¥₹":
            return self.operators(2)._replace(unit=token)
        if token in _OPENERS:
            return self.brackets()
        if token in _OF_TWO:
            return _OF_TWO[token](self.atom(), self.atom())
        if token == "\\sqrt":
            degree = self.brackets() if self.take("[") else _constant(2)
            return _power(self.atom(), _fraction(_constant(1), degree))
        return _fail()

    def function(self, name):
        base = self.atom() if self.take("_") else _constant(10)
        power = self.atom() if self.take("^") else None
        is_bracketed = self.take("(", "[", "{")
        value = self.brackets() if is_bracketed else self.operators(3)
        while not is_bracketed and self.tokens[-1].kind == "symbol":
            value = _product(value, self.operators(3))  # sin 2x cos x
        if self.take("°"):
            value = _product(value, _fraction(_symbol("\\pi"), _constant(180)))
        value = _apply(_FUNCTIONS[name], *([value, base] if name == "log" else [value]))
        value = value._replace(symbols=value.symbols | {name})
        return _power(value, power) if power else value


# -------------------------------------------------------------------------------------- 5. values
def _apply(function, *args):
    """A function of values, at every point."""
    if any(arg.unit for arg in args):
        _fail()
    points = [*zip(*(arg.numbers for arg in args), strict=True)]
    numbers = {point: _number_at(function, point) for point in {*points}}
    symbols = frozenset().union(*(arg.symbols for arg in args))
    return Value(tuple(numbers[point] for point in points), symbols)


def _number_at(function, args):
    """The value of a function, exactly if possible, or None if it has none or is too large."""
    with suppress(*_UNCLEAR):
        if not all(isinstance(arg, Fraction) for arg in args):
            args = map(_MP.convert, args)
        number = function(*args)
        if isinstance(number, Fraction):
            return number if _bits(number) <= MAX_EXACT_BITS else None
        return number if not number or abs(_MP.mag(number)) <= MAX_BITS else None


def _bits(number):
    return number.numerator.bit_length() + number.denominator.bit_length()


def _constant(number, places=0):
    return Value((Fraction(number),) * POINTS, places=places, is_written=True)


def _symbol(name):
    numbers = (_CONSTANTS.get(name) or _at(name, point) for point in range(POINTS))
    return Value(tuple(numbers), frozenset({name}), is_written=name == "\\infty")


def _at(name, point):
    """The value of a symbol at a point: pseudo-random, of both signs, and fixed by its name."""
    h = zlib.crc32(f"{name} {point}".encode("utf-8", "replace"))
    x = Fraction(h % 97 + 5, 120)  # 0.04 to 0.84, a domain for arcsin
    return (x, 1 + 4 * x, -1 - x, 3 - 8 * x)[point] if point < 4 else Fraction(h % 23 + 2)


def _number(text):
    """1.50 is 3/2 with two decimal places; 2.0 is the integer 2; 3 * 10^{4} is 3e4."""
    text = re.sub(r"^e", "1e", re.sub(r"\D*10 ?\^", "e", text) if "^" in text else text)
    if re.search(r"\.\d+[.,]", text):
        text = text.replace(".", "").replace(",", ".")  # 1.234,5
    number, decimals = Fraction(re.sub(r"[^\d.eE+-]", "", text)), text.partition(".")[2]
    return _constant(number, len(decimals) if number.denominator > 1 else 0)


def _fraction_of_integers(text):
    """3/4 and 2 3/4 are written numbers, but 8/4 is left to be worked out."""
    *whole, top, bottom = map(int, re.findall(r"-?\d+", text.replace("- ", "-")))
    if whole and not 0 < top < bottom:
        _fail()
    value = _constant(sum(whole) + Fraction(top, bottom))
    return value._replace(is_written=bottom == 1 or top % bottom > 0)


def _repeating(text):
    r"""0.1\overline{6}, 0.1(6) and 0.1666... are 1/6."""
    whole, decimals, period = re.match(r"(\d*)\.(\d*)\D*(\d*)", text).groups()
    if not period:
        decimals, period = re.fullmatch(r"(\d*?)(\d+?)\2+", decimals).groups()
    repeated = Fraction(int(period), 10 ** len(period) - 1)
    return _constant((int(whole + decimals or "0") + repeated) / 10 ** len(decimals))


def _negative(value):
    return value._replace(numbers=_apply(operator.neg, value._replace(unit="")).numbers)


def _raise(base, exponent):
    if isinstance(exponent, Fraction):
        if exponent.denominator == 1 and abs(exponent) * _bits(base) <= MAX_EXACT_BITS:
            return base ** int(exponent)
        if exponent.denominator % 2 and base < 0:  # the real odd root
            return _raise(-base, exponent) * (-1) ** exponent.numerator
        base, exponent = _MP.convert(base), _MP.convert(exponent)
    return base**exponent


def _of_integers(function, *numbers):
    """The value of the function, for integers from 0 to 2100 only."""
    is_defined = all(n.denominator == 1 and 0 <= n <= 2100 for n in numbers)
    return Fraction(function(*map(int, numbers))) if is_defined else _fail()


def _close(u, v):
    """Do u and v differ only by rounding error?"""
    if isinstance(u, Fraction) and isinstance(v, Fraction):
        return u == v
    u, v = _MP.convert(u), _MP.convert(v)
    return u == v or _MP.mag(u - v) < max(_MP.mag(u), _MP.mag(v)) - MAX_BITS


_OPENERS = {"(", "[", "{", "\\{"}
_CLOSERS = {")", "]", "}", "\\}"}
_FACTORS = {"(", "{", "\\frac", "\\sqrt", "\\binom"}
_STRENGTHS = {"+": 1, "-": 1, "*": 2, "\\times": 2, "/": 2, "^": 4, "!": 5}
_CHOICES = {*"ABCDEFGHIJ"}
_INTERVALS = {"()", "(]", "[)", "[]"}
_SIGNED = [{"\\pm": Token(sign), "\\mp": Token(other)} for sign, other in ("+-", "-+")]
_UNCLEAR = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
_CONSTANTS = {"\\pi": +_MP.pi, "e": +_MP.e, "i": _MP.j}
_FUNCTIONS = {name: getattr(_MP, name.replace("arc", "a")) for name in _FUNCTION_NAMES}
_READERS = dict(number=_number, fraction=_fraction_of_integers, repeating=_repeating, based=_symbol)
_KNOWN = {*_CONSTANTS, *_FUNCTIONS, "\\infty"}
_sum, _difference = partial(_apply, operator.add), partial(_apply, operator.sub)
_product, _fraction = partial(_apply, operator.mul), partial(_apply, operator.truediv)
_power = partial(_apply, _raise)
_OPERATIONS = {"+": _sum, "-": _difference, "/": _fraction, "^": _power}
_OF_TWO = {"\\frac": _fraction, "\\binom": partial(_apply, partial(_of_integers, math.comb))}
_factorial = partial(_apply, partial(_of_integers, math.factorial))
_INFINITY = _symbol("\\infty")


# ------------------------------------------------------------------------------------- 6. compare
def is_equiv(answer: str, gold: str) -> bool:
    """True if two answers mean the same. Symmetric; reflexive on every string; raises nothing."""
    if answer.strip() == gold.strip():
        return True
    if max(len(answer), len(gold)) > MAX_ANSWER:
        return False
    for split in [False, True] if "," in answer + gold else [False]:  # 100,200 may be a list
        (tokens_a, a), (tokens_b, b) = _read(answer, split), _read(gold, split)
        with suppress(*_UNCLEAR):
            if tokens_a == tokens_b != [] or a and b and _same(a, b):
                return True
    return False


def _is_written(node):
    """True if there are written numbers only, with nothing left to be worked out."""
    if node is None or node.kind == "value":
        return node is not None and node.is_written
    parts = node.parts[1] if node.kind == "name" else node.parts[node.kind == "choice" :]
    return node.kind != "words" and bool(parts) and all(map(_is_written, parts))


def _same(a, b):
    """Do the two mean the same?"""
    a, b = sorted((a, b), key=lambda node: (node.kind != "choice", node.kind != "name"))
    if a.kind == b.kind == "value":
        return _same_value(a, b)
    if a.kind == b.kind == "=":
        return _same_equation(a, b)
    if a.kind == "choice" != b.kind:  # (C) 7 is C and 7
        return any(_same(part, b) for part in a.parts)
    if a.kind == "name":
        return _same_names(a, b)
    return a == b if {a.kind, b.kind} & {"value", "words"} else _same_parts(a, b)


def _same_names(named, other):
    """x=1, y=2 is y=2, x=1, and the point (1,2): names in order of the alphabet."""
    names, values = named.parts
    if other.kind == "name":
        return names == other.parts[0] and all(map(_same, values, other.parts[1]))
    if len(names) > 1:
        return other.kind in (",", "()") and _same_parts(Tree("()", values), other)
    if other.kind == "=":  # y = 2x against y - 2x = 0
        return _same_equation(Tree("=", (_symbol(names[0]), *values)), other)
    return _same(values[0], other)


def _same_equation(a, b):
    """Are two equations the same up to a factor?"""
    u, v = _difference(*a.parts), _difference(*b.parts)
    ratios = [_MP.convert(x) / _MP.convert(y) for x, y in _pairs(u, v) if x and y]
    is_enough = u.symbols == v.symbols and len(ratios) == len(_pairs(u, v)) > 1
    return is_enough and all(_close(ratio, ratios[0]) for ratio in ratios)


def _same_parts(a, b):
    """Are two lists, sets, tuples ... the same?"""
    kinds, rest = {a.kind, b.kind}, [*b.parts]
    if len(a.parts) != len(rest):
        return False
    if not kinds <= {",", "{}"} and kinds not in ({"cup"}, {"or"}):
        return (len(kinds) == 1 or kinds == {",", "()"}) and all(map(_same, a.parts, rest))
    for part in a.parts:  # in any order
        partners = [other for other in rest if _same(part, other)]
        if not partners:
            return False
        rest.remove(partners[0])
    return True


def _same_value(a, b):
    """Exactly where both are rational, otherwise to 180 digits, or as a rounded decimal."""
    if a.unit and b.unit and a.unit != b.unit:
        return False  # 5 m against 5 cm
    pairs = _pairs(a, b)
    is_same = len(pairs) > 1 and all(_close(u, v) for u, v in pairs)
    return is_same or _is_rounded(a, b) or _is_rounded(b, a)


def _pairs(a, b):
    """The values of two expressions at the points where both have one."""
    return [pair for pair in zip(a.numbers, b.numbers, strict=True) if None not in pair]


def _is_rounded(decimal, exact):
    """Is the decimal a fraction or root, rounded or cut off at four significant digits or more?"""
    if decimal.places < 1 or exact.places or exact.symbols:
        return False
    digits, size = (value.numbers[0] * 10**decimal.places for value in (decimal, exact))
    sizes = int(abs(size)), int(abs(size) + Fraction(1, 2))
    return abs(digits) >= 1000 and digits * size > 0 and abs(digits) in sizes
