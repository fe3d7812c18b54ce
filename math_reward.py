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
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import mpmath

MAX_RESPONSE = 20_000  # only the last characters of a longer response are searched
MAX_ANSWER = 1_000  # a longer answer is compared as text only
MAX_TOKENS = 180  # an answer with more tokens is compared token by token only
MAX_DEPTH = 25  # of brackets in an answer that is parsed
MAX_BITS = 600  # larger real numbers have no value
MAX_EXACT_BITS = 20_000  # larger rational numbers have no value; 2024! has one
POINTS = 8  # where expressions are compared; at the last four, symbols are positive integers

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


def _one_of(*patterns):
    """A regular expression for any of these."""
    return "(?:" + "|".join(patterns) + ")"


# ------------------------------------------------------------------------------------ 1. extract
_END_OF_TURN = re.compile(r"<\|\w{1,40}\|>|</s>|<eos>|<end_of_turn>")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<![ap]\.m)(?<!\.)[.。](?=[\s$]|\Z)|(?<!,)\n")
_OR = r"(?:or|oder|ou|o|lub|veya|или|或|または|nor|not|if|unless|vs|versus)\b"

# A box is whole if nothing that it could be a part of stands before it or after it.
_BEFORE_BOX = re.compile(
    _one_of(
        r"\A|[=≈≡∈:.;!?\"'”’…—–。：，]|[-=]>|\n\s*>|=\s{0,3}\+|\\\$",  # punctuation, a relation, a currency
        r"\\(?:approx|simeq|equiv|in|implies|Rightarrow|rightarrow|to|therefore)",
        r"(?<![\\A-Za-z])(?:[^\W\d_]{2,20}\)?|a),?|['’]s",  # a word
        r"\\(?:text\w*|mathrm|mbox)\s?\{[^{}]*\}|(?<=\}),",  # words in a formula, another box
        r"(?<=[$)\]]),|\\[)\]]",  # the end of a formula
        r"[^-\s+*/^<>≤≥×·÷±−(,&\\{]\s*\n|\\\\|-{3}\n|\n\s*[-*]",  # the end of a line, a bullet
    )
    + r"(?:\s|\$|\*\*|&|\\[(\[,;! ]|\\q?quad)*\Z"  # spaces, the beginning of a formula
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
    r"[^.:;!?]{0,60}?(?:,|\band\b)(?:\s|\$|\\[()\[\]]|\}|\\q?quad)*(?:[^=,;.]{1,20}=)?[\s$]*"
)

_THEREFORE = _one_of(
    "so|thus|hence|therefore|finally|(?:we|this) (?:gives?|get|find|obtain|have)(?: that)?|it is",
    "it['’]s|in (?:conclusion|summary)|also|daher|somit|donc|ainsi|por lo tanto|así|quindi|dunque",
    "portanto|logo|итак|поэтому|следовательно|所以|因此|故|よって|したがって|따라서",
)
_THE_FINAL = _one_of(
    "the|our|my|final|correct|right|exact|required|die|richtige|la|le|el|finale|correcta|最终|최종"
)
_ANSWER = _one_of(
    r"\b(?:answers?|ans|option|choice|antwort|respuesta|r[ée]ponse|risposta|(?:a )?resposta|ответ)\b",
    "الجواب|الإجابة|उत्तर|答案|答え|정답",
)
_IS = _one_of(
    r"[\s*_\"']{0,4}(?:[:=：]|->|→|\.(?=\s?[\dA-J]))",
    r"[\s*_\"']{0,4}(?:(?:is|are|equals|must be|comes out as|ist|es|est|è|é|هو|هي)\b|是|为|為|は|은)"
    + r"(?:,? (?:indeed|clearly|just|exactly|of course|equal to|given by|the number)\b,?)?\s?[:：]?",
    r"[^\w$\\\n]{0,6}(?=\n)",  # a heading
    r"(?=\W{1,9}(?:option\s\(?)?(?:[A-J]|\d[\d.,]{0,20})\W{0,9}(?:\Z|\n))",  # "Answer D"
)
_MARK = re.compile(
    rf"^(\s{{0,3}}#{{4}}(?!#|[^\w\n]{{0,9}}(?:final )?answer)|A:)|{_ANSWER}{_IS}(?: (?:option|choice)\b)?",
    re.MULTILINE | re.IGNORECASE,
)
# what may stand before "answer" in its sentence
_LEAD = re.compile(
    rf"(?:\A|.*[.!?:;。！？：；\n]|.*,(?= (?:so|thus|hence|therefore)\b))[^\w\n]{{0,12}}"
    + rf"(?:(?:{_THEREFORE}|{_THE_FINAL})[\s_,*\"]{{0,4}}){{0,8}}",
    re.DOTALL | re.IGNORECASE,
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
    text = _END_OF_TURN.split(text.strip())[0].strip()
    _, tag, tagged = text.rpartition("<answer>")
    if tag and "</answer>" in tagged:
        text, truncated = tagged.partition("</answer>")[0].strip(), False
    text = re.sub(r"\\boxed\s?(\d)", r"\\boxed{\1}", text)
    if re.search(r"\\(?:boxed|fbox)\s*\{", text):
        return _boxed(text)
    return None if truncated else _marked(text) or _whole(text)


def _boxed(text):
    """The content of the last box, or of the last boxes if commas join them to a list."""
    boxes = _boxes(text)
    group = boxes[-1:]
    for box in reversed(boxes[:-1]):
        if _SENTENCE_END.search(text, box[1], group[0][0]):
            break
        group.insert(0, box)
    if not group or not all(_is_whole(text, *box) for box in group):
        return None
    between = [text[a[1] : b[0]] for a, b in pairwise(group)]
    answer = group[-1][2]
    if all(map(_BETWEEN_BOXES.fullmatch, between)):
        answer = ", ".join(content for _, _, content in group)
    elif not all(is_equiv(content, answer) for _, _, content in group):
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
            is_heading = mark[1] and others and re.fullmatch(r"[^\W\d_][^\d$\\]*", sentence)
            if not is_heading:
                return sentence if "(" in sentence else sentence.rstrip(")")
    return None


def _whole(text):
    """A response that is nothing but an answer, perhaps after "so" or "it is"."""
    text = re.sub(rf"(?i)\A(?:{_THEREFORE}[\s,:]+)*", "", text[: MAX_ANSWER + 1]).strip(" \t*`\n=")
    return text if len(text) <= MAX_ANSWER and _read(text)[1] is not None else None


# -------------------------------------------------------------------------------------- 2. clean
# name, pattern, replacement, and an example: what it was, and what becomes of it
CLEANING = [
    ("escaped twice", r"(?<!\\)\\\\(?=[A-Za-z]{3}|[lg]e|in|pi)", r"\\", r"\\frac12", r"\frac12"),
    ("negative space", r"\\!\s*", "", r"1,\! 000", "1,000"),
    (
        "formula",
        r"(?<!\\)\$\$?((?:\\.|[^$\\])*?)[\s.,]{0,3}\$\$?",
        r" \1 ",
        "$5.$ or 6",
        " 5  or 6",
    ),
    ("end", r"(?<![\s.,])(?:[ ,]|\.(?!\.)|\\\\)+(\}?)$", r"\1", r"\text{Yes.}", r"\text{Yes}"),
    (
        "x > a and x < b",
        r"^(\w) *> *(\S+?)[ }]*(?:\\text\{ *)?and[ }]*\1 *<(.+)$",
        r"\2<\1<\3",
        "x > 1 and x < 3",
        "1<x< 3",
    ),
    ("bold", r"(?<![\w)}])\*\*|\*\*(?![\w({\\])|`", "", "**(B) 7**", "(B) 7"),
    ("fraction", r"(frac|binom)\s*(\d|\{[^{}]*\})\s*(\d)", r"\1{\2}{\3}", "frac12", "frac{1}{2}"),
    ("|x| < a", r"^\|(\w)\|\s*(<|\\leq?)\s*(\w+)$", r"-\3\2 \1\2 \3", "|x|<3", "-3< x< 3"),
    ("C(n,k)", r"(?<!\w)C\(([^(),]+),([^(),]+)\)", r"\\binom{\1}{\2}", "C(n,2)", r"\binom{n}{2}"),
    ("C_n^k", r"(?<!\w)C_\{?(\w+)\}?\^\{?(\w+)\}?", r"\\binom{\1}{\2}", "C_n^2", r"\binom{n}{2}"),
    ("nCk", r"\{\}_\{?(\w+)\}?\s?C_\{?(\w+)\}?", r"\\binom{\1}{\2}", "{}_nC_2", r"\binom{n}{2}"),
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
_TYPOGRAPHY = {
    "[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿⁱˣ]+": "^{%s}",
    "[₀-₉₊₋₍₎ₐₑₒₓₕ-ₜᵢⱼ]+": "_{%s}",
    "[¼-¾⅐-⅞]": r"\frac{%s}",
    "[\xa0\u2000-\u200a\u202f\u3000\uff01-\uff5e]": "%s",
}


def _clean(answer):
    r"""An answer in LaTeX with ASCII characters: "5½" is 5\frac{1}{2}, "2ⁿ" is 2^{n}."""
    answer = " ".join(answer.split())
    if not answer.isascii():
        for pattern, form in _TYPOGRAPHY.items():
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
    body = re.sub(r"\\text\w*\s*\{\s*(?:if|for|when)?\s*\}", "", body)
    rows = "],[".join(re.sub(r"\\\\\s*$", "", body).split("\\\\")).replace("&", ",")
    return rf"\{{[{rows}]\}}" if name == "cases" else f"([{rows}])"


# ---------------------------------------------------------------------------------------- 3. lex
_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_BRACKETS = r"[(\[](?:[^()\[\]]|\([^()]*\))*[)\]]"
_TEXT = r"\\(?:text\w{0,6}|mathrm|operatorname\*?|[mh]box)\s*"
_ACCENT = r"\\(?:mathbb|mathbf|mathcal|boldsymbol|vec|hat|bar|tilde|d?dot|over\w+|angle|triangle)"
_SKIPPED = r"left|right|middle|[bB]igg?[lrm]?|(?:display|text)style|underline|checkmark|therefore"
_LETTER = rf"(?:[A-Za-z]|\\(?:{'|'.join(_GREEK)})(?![A-Za-z]))"
# (kind, pattern): the next token is given by the first pattern that matches
_LEXEMES = [
    ("skip", rf"\s+|~|\\[ ,;:>()\[\]]|\\(?:{_SKIPPED}|[lL]arge)(?![A-Za-z])(?:\s*\.)?"),
    ("repeating", r"\d{0,40}\.\d{0,40}\\(?:overline|bar|dot)\s*\{?\d{1,20}\}?"),  # 0.1\overline{6}
    ("repeating", r"\d{0,40}\.\d{0,40}\(\d{1,20}\)"),  # 0.1(6)
    ("repeating", r"\d{0,40}\.\d{1,40}\s?(?:\.\.\.|\\[lc]?dots)"),  # 0.1666...
    ("based", rf"\(?\d[\dA-F]*\)?\s*_\s*(?:\{{[^{{}}]*(?:{_BRACES})?\}}|\d+(?![\d_]))"),  # 101_2
    ("based", rf"{_TEXT}\{{\d[\dA-F]*\}}\s*_\s*\{{?\d+\}}?"),  # \text{3F}_{16}
    ("based", rf"\d+\s*(?:{_TEXT}\{{)?\s*in base[\s}}]*\d+"),  # 52 in base 8
    ("text", _TEXT + r"\{[^{}]*\}"),
    (
        "mixed",
        r"(?<![\^_.\d])\d+(?:\s|\\,|~)*\\[dtc]?frac\s*\{+\s?\d+\}+\s*\{+\s?\d+\}+",
    ),  # 2\frac{1}{2}
    ("mixed", r"(?<![\^_.\d])\d+ +\d+/\d+"),  # 2 1/2
    ("number", r"[1-9]\d{0,2}(?:(?:,|\s?\{\s?,\s?\}\s?)\d{3})+(?!,?\d)(?:\.\d+)?"),  # 1,234,567.8
    ("number", r"[1-9]\d{0,2}(?:(?: |\\,|~)\d{3})+(?! ?\d)(?:\.\d+)?"),  # 1 234 567.8
    ("number", r"[1-9]\d{0,2}(?:(?:'\d{3})+|(?:_\d{3})+|(?:\.\d{3}){2,})(?![\d.])"),  # 1'234'567
    ("number", r"[1-9]\d{0,2}(?:\.\d{3})+,\d{1,2}(?!\d)"),  # 1.234,5
    ("number", r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3}(?![\d.]))?"),  # 12, 1.5, 6.02e23
    ("symbol", r"\\frac\s*\{\s*d\s*\w?\s*\}\s*\{\s*d\s*\w\s*\}"),  # dy/dx
    ("symbol", rf"{_ACCENT}(?![a-z])\s*(?:{_BRACES}|\\[A-Za-z]+|[A-Z]+|\w)"),  # \vec a
    (
        "symbol",
        rf"(?<![A-Za-z])(?:[f-hF-HPEIN]'*|[fgh]\^\{{-1\}}|\\Pr)\s*{_BRACKETS}",
    ),  # f(x), P(A|B)
    ("symbol", rf"\\?(?:max|min|gcd|lcm)\s*(?:\\?{_BRACES}|{_BRACKETS})"),  # \max(a,b)
    ("symbol", r"\\lfloor.{0,60}?\\rfloor|\\lceil.{0,60}?\\rceil"),
    ("symbol", rf"{_LETTER}\s*_\s*(?:{_BRACES}|\\[A-Za-z]+|\w)'*"),  # x_1
    ("symbol", r"[A-Za-z](?:'+|\s*\^\s*\{?\s*\\prime\s*\}?)"),  # f'
    ("unit", r"\^\s*\{?\s*\\circ\s*\}?|\\degree|[ap]\.\s?m\b\.?"),
    ("mark", r"x(?=\s?10\s?\^)|\\(?:begin|end)\{\w+\*?\}(?:\{[lcr|\s]*\})?|\\[A-Za-z]+|\\."),
    ("word", r"(?<![\w)}^])[A-Za-z]{3,}(?:[-'][A-Za-z]+)*(?![\w^(])|(?:No|no|an|of|to|by)\b"),
    ("letters", r"log|[A-Za-z]+(?!\s*_)"),
    ("mark", r"\*\*|[<>!]=|[-=]>|\S"),
]
_LEXEME = re.compile("|".join(f"({pattern})" for _, pattern in _LEXEMES), re.ASCII | re.DOTALL)
_KINDS = ["", *(kind for kind, _ in _LEXEMES)]

# Words and commands with one meaning. The first of each entry stands for the others.
_ENTRIES = {
    "mark": r"* \cdot \ast x,\times ×,/ \div per,^ **,( \langle,) \rangle,< \lt,> \gt,= is equals,"
    + r"<= \le \leq \leqslant,>= \ge \geq \geqslant,| \vert \lvert \rvert,and,or,- minus negative,"
    + r"\emptyset \varnothing,\frac \dfrac \tfrac \cfrac,\binom \dbinom \tbinom,\sqrt sqrt,"
    + r"; \quad \qquad",
    "symbol": r"\infty infinity,\pi pi,\phi \varphi,\epsilon \varepsilon,\hbar",
    "function": r"sin \sin,cos \cos,tan \tan,cot \cot,sec \sec,csc \csc,arcsin \arcsin,exp \exp,"
    + r"arccos \arccos,arctan \arctan,sinh \sinh,cosh \cosh,tanh \tanh,ln \ln,log \log \lg",
    "scale": "12 dozen,100 hundred,1000 thousand,1000000 million,1000000000 billion,"
    + "1000000000000 trillion",
    "number": "0 zero,1 one,2 two,3 three,4 four,5 five,6 six,7 seven,8 eight,9 nine,10 ten",
    "unit": r"% \% percent percentage pct,$ \$ dollar dollars,€ euro euros,£,¥,₹,¢ cent cents,"
    + r"° ^\circ \degree,am a.m. a.m,pm p.m. p.m",
}
_VOCABULARY = {
    alias: (kind, entry.split()[0])
    for kind, entries in _ENTRIES.items()
    for entry in entries.split(",")
    for alias in entry.split()
    if not alias.isdecimal()
} | {"\\" + name: ("symbol", "\\" + name) for name in _GREEK}
_PREFIXES = "=,kilo=k,centi=c,milli=m,mega=M,giga=G,micro=µ,nano=n"
_BASE_UNITS = (
    "meter=m,metre=m,gram=g,second=s,liter=L,litre=L,hertz=Hz,watt=W,volt=V,joule=J,"
    + "newton=N,pascal=Pa,ampere=A,kelvin=K,mole=mol,byte=B,electronvolt=eV,watthour=Wh"
)
_OTHER_UNITS = (
    "in inch inches,ft foot feet,yd yard yards,mi mile miles,lb lbs pound pounds,oz ounce ounces,"
    + "min minute minutes,h hr hrs hour hours,s sec secs,am AM,pm PM,mL ml,"
    + "° degree degrees deg,rad radian radians"
)
_UNITS = (
    {
        name: prefix + symbol
        for long_prefix, prefix in (pair.split("=") for pair in _PREFIXES.split(","))
        for word, symbol in (pair.split("=") for pair in _BASE_UNITS.split(","))
        for name in (long_prefix + word, long_prefix + word + "s", prefix + symbol)
    }
    | {"mph": "mi / h", "kph": "km / h"}
    | {alias: entry.split()[0] for entry in _OTHER_UNITS.split(",") for alias in entry.split()}
)


def _lex(answer, tokens, in_text=False):
    """The (kind, text) of each token of an answer, added to `tokens`."""
    for lexeme in _LEXEME.finditer(answer):
        kind, text = _KINDS[lexeme.lastindex], lexeme[0]
        if kind == "text":
            _lex(text[text.index("{") + 1 : -1], tokens, in_text=True)
        elif kind in ("word", "letters"):
            tokens += _lex_letters(
                text, tokens[-1] if tokens else (), in_text or kind == "word", in_text
            )
        elif kind == "based":
            tokens.append((kind, "_".join(re.findall(r"[\dA-F]+", text.replace("two", "2")))))
        elif kind in ("symbol", "unit"):
            text = re.sub(r"\{(\\?\w|\\[a-z]+)\}", r"\1", re.sub(r"\s|\\text", "", text))
            text = text.replace("^\\prime", "'").replace("overline", "bar")
            tokens.append(_VOCABULARY.get(text, (kind, text)))
        elif kind != "skip":
            tokens.append(_VOCABULARY.get(text, (kind, text)))
    return tokens


def _lex_letters(letters, last, is_word, in_text):
    """A run of letters is a unit, a word with a meaning, any other word, or a few symbols."""
    word = letters.casefold()
    unit = _UNITS.get(letters) or len(letters) > 3 and _UNITS.get(word)
    if unit and (in_text or len(letters) > 1) and {*last} & _BEFORE_UNIT:
        return [("unit", unit)]
    if len(letters) > 1 and word in _VOCABULARY:
        return [_VOCABULARY[word]]
    if is_word and (len(letters) > 1 or letters == "a"):
        return [("word", word)]
    return [("symbol", letter) for letter in letters]


_BEFORE_UNIT = {*"number repeating mixed scale unit symbol / * } square cubic sq".split()}


@lru_cache(maxsize=512)
def _tokens(answer, split):
    """The tokens of an answer; in brackets, or if `split` says so, 1,234 is two numbers."""
    text = _clean(answer)
    if split or re.search(r"(?<!\\)[(\[]|\\\{", text):
        text = re.sub(r"(?<=\d),(?=\d)", ", ", text)
    return tuple(_lex(text, []))


# -------------------------------------------------------------------------------------- 4. parse
class Value(NamedTuple):
    """A number, or an expression with symbols: its values at some points."""

    numbers: tuple  # a Fraction, a number of mpmath, or None where it has no value
    symbols: frozenset = frozenset()
    unit: str = ""
    places: int = 0  # of a decimal, after the point; -1 for a power of ten
    is_written: bool = False  # a number as people write it, with nothing left to be worked out
    is_algebraic: bool = False  # made of rational numbers by + - * / and roots
    kind = "value"


class Tree(NamedTuple):
    """Anything else. The parts are, by kind:

    "," "or" "{}": items of a list or a set, in any order; likewise "cup" and "cases"
    "()" "[)" ...: items of a tuple or ends of an interval; ":" of a ratio; "row" and "matrix"
    "name":        names in order of the alphabet and their values; "choice": a letter and its text
    "=" "<" ...:   the sides of an equation or of inequalities, such as "<<="; "words": the words
    """

    kind: str
    parts: tuple
    symbols = frozenset()


def _fail():
    """What is outside the grammar, or over a limit, ends here."""
    raise ValueError


@lru_cache(maxsize=512)
def _read(answer, split=False):
    """The tokens of an answer, and its Value or Tree, or None if it is not understood."""
    tokens = _tokens(answer, split)
    depths = accumulate(_depth(text) for _, text in tokens)
    if 0 < len(tokens) <= MAX_TOKENS and max(depths) <= MAX_DEPTH:
        with suppress(*_NOT_UNDERSTOOD):
            return tokens, _answer(tokens)
    return tokens, None


def _answer(tokens):
    """Words, a choice with its text, or mathematics."""
    kinds, texts = zip(*tokens, strict=True)
    if {*kinds} <= {"word", "unit"} and "word" in kinds or kinds == ("symbol", "word"):
        return Tree("words", texts[texts[0] in ("a", "an", "the") :])
    start = texts[0] == "("
    letter, text = texts[start], tokens[start + 2 :]
    if letter in _CHOICES and text and texts[start + 1] in (")", ":", "."):
        if not _CHOICES & {*texts[start + 1 :]}:
            return Tree("choice", (_symbol(letter), _answer(text)))
    return _list(tokens[texts[0] in ("exactly", "just", "option") :])


def _depth(text):
    """1 for an opening bracket, -1 for a closing one, 0 for anything else."""
    return (text in _OPENERS) - (text in _CLOSERS)


def _split(tokens, *marks):
    """The parts of tokens between these marks outside brackets, and the marks that were found."""
    parts, found, depth = [[]], [], 0
    for kind, text in tokens:
        depth += _depth(text)
        if depth == 0 and kind == "mark" and text in marks:
            found.append(text)
            parts.append([])
        else:
            parts[-1].append((kind, text))
    return parts, found


def _list(tokens):
    """A name and its values, or items between commas, "and" and "or"; with \\pm, one is two."""
    parts, marks = _split(tokens, ",", ";", "and", "or")
    sides, equals = _split(tokens, "=", "\\in")
    if equals and _name(sides[0]) and (len(equals) == 1 or not marks):
        values = [*map(_list, sides[1:])]
        if not all(_same(value, values[-1]) for value in values):
            _fail()  # x = 3+4 = 7 says 7, x = 3+4 = 8 says nothing
        return Tree("name", ((_name(sides[0]),), (values[-1],)))
    items = []
    for part in filter(None, parts):
        signs = {text for _, text in part} & {"\\pm", "\\mp"} if part[0][1] != "\\{" else ()
        for sign in _PLUS_MINUS[: 2 if signs else 1]:
            item = [(kind, sign.get(text, text)) for kind, text in part]
            items.append(_list(item) if marks or signs else _item(item))
    if items[0].kind == "()":
        items = [*dict.fromkeys(items)]  # a point listed twice is one point
    kind = "or" if "or" in marks and any(item.symbols for item in items) else ","
    if len(items) == 1 or any(item.kind != "name" for item in items):
        return Tree(kind, tuple(items)) if len(items) > 1 else items[0]
    names, values = zip(*sorted((*item.parts[0], *item.parts[1]) for item in items), strict=True)
    if len({*names}) == len(names):
        return Tree("name", (names, values))
    if values[0].kind in _INTERVALS and "or" in marks:
        kind = "cup"  # x < 1 or x > 3
    return (
        Tree("row", tuple(items))
        if names[0] != names[-1]
        else Tree("name", (names[:1], (Tree(kind, values),)))
    )


def _item(tokens):
    """An equation, an inequality, or what _set reads."""
    sides, marks = _split(tokens, "=", "<", ">", "<=", ">=")
    if marks and ">" in marks[0]:
        sides, marks = sides[::-1], [mark.replace(">", "<") for mark in reversed(marks)]
    values = tuple(map(_set, sides))
    if len(marks) == 1 == len(sides[1]) and marks == ["="] and sides[1][0][0] == "symbol":
        return Tree("name", ((_name(sides[1]),), values[:1]))  # 5 = x
    if {*marks} <= {"="}:
        if len(marks) == 1 and values[0].symbols | values[1].symbols:
            return Tree("=", values)
        return values[-1] if all(_same(value, values[-1]) for value in values) else _fail()
    named = [i for i, side in enumerate(sides) if _name(side)]
    if len(named) != 1 or len(sides) > 2 and named != [1] or not {*marks} <= {"<", "<="}:
        return Tree("".join(marks), values)
    ends, marks, i = [_MINUS_INFINITY, *values, _INFINITY], ["<", *marks, "<"], named[0]
    brackets = "(["["=" in marks[i]] + ")]"["=" in marks[i + 1]]
    return Tree("name", ((_name(sides[i]),), (Tree(brackets, (ends[i], ends[i + 2])),)))


def _set(tokens):
    """A union, a ratio, what is in brackets, or a value with its unit."""
    parts, marks = _split(tokens, "\\cup")
    if marks:
        sets = tuple(map(_set, parts))
        if all(part.kind == "{}" for part in sets):
            return Tree("{}", sum((part.parts for part in sets), ()))
        return Tree("cup", sets)
    parts, marks = _split(tokens, ":")
    if marks:
        return Tree(":", tuple(map(_quantity, parts)))
    texts = [text for _, text in tokens]
    if len(texts) == 1 and texts[0] in _NAMED_SETS:
        return _NAMED_SETS[texts[0]]
    depths = [*accumulate(map(_depth, texts))]
    if depths[0] == 1 and depths.index(0) == len(depths) - 1:
        return _bracketed(texts[0], tokens[1:-1], texts[-1])
    return _quantity(tokens)


def _bracketed(opener, inner, closer):
    """A matrix, a set, a tuple or an interval, or what is in brackets for no reason."""
    brackets = (opener + closer).replace("\\", "")
    content = _list(inner) if inner else Tree(",", ())
    if opener == "\\{":
        return Tree(brackets, content.parts if content.kind == "," else (content,))
    if content.kind == "," and brackets in _INTERVALS and inner:
        return Tree(brackets, content.parts)
    return content if brackets in ("()", "[]", "{}") and inner else _fail()


def _quantity(tokens):
    """A value and perhaps its unit."""
    expression = _Expression(tokens)
    value, rest = expression.operators(), expression.tokens[:0:-1]
    if not rest:
        return value
    return value._replace(unit=_unit(rest, value.numbers[0] == 1)) if not value.unit else _fail()


def _unit(tokens, is_one):
    """The unit after a value: "m/s ^ 2", or things that are counted: "red hat"."""
    text = " ".join(text for _, text in tokens if text not in ("{", "}"))
    text = re.sub(r"(?:square|sq) (\S+)", r"\1 ^ 2", text)
    text = re.sub(r"cubic (\S+)", r"\1 ^ 3", text)
    return re.sub("[^/*]+", lambda m: _thing(m[0].strip(), is_one or m.start() > 0), text)


def _thing(text, is_one):
    """A unit of measure, or a noun in the plural, perhaps with words around it: "red hats"."""
    name = re.sub(r" \^ (?:- )?\d$", "", text)
    if name in _MEASURES:
        return text
    *others, head = name.partition(" of ")[0].removesuffix(" old").split()
    is_plural = head in _MEASURES or _PLURAL.fullmatch(head)
    if not is_plural and not is_one or any(map(_PLURAL.fullmatch, others)):
        _fail()
    if any(
        _NO_NOUN.fullmatch(word) or not word[1:].replace("-", "").isalpha() for word in name.split()
    ):
        _fail()
    return text.removesuffix("s")


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


def _name(tokens):
    """What may stand before "=": x, x_1, f(7), AB, m+n, "the area"; or an empty string."""
    text = " ".join(text for _, text in tokens)
    if len(tokens) == 1 and tokens[0][0] == "symbol":
        return "" if text in _CONSTANTS else text
    return text.removeprefix("the ") if _NAME.fullmatch(text) else ""


_SEGMENT = "[A-Z](?: [A-Z])*"
_NAME = re.compile(
    _one_of(
        rf"{_SEGMENT}|\| [A-Z] {_SEGMENT} \||{_SEGMENT} / {_SEGMENT}",  # AB, |AB|, AB/CD
        rf"\\frac {{ {_SEGMENT} }} {{ {_SEGMENT} }}|[A-Z]\w*(?: : [A-Z]\w*)+",  # A:B
        r"[a-w](?: \+ [a-w])+|\( \S+(?: , \S+)+ \)",  # m+n, (x,y)
        r"(?:the )?(?!not )[a-z-]{2,}(?: of [a-z-]{2,})?(?: \( .* \))?",  # the area, rank(A)
        r"\\(?:sum|prod|int|lim|det|deg|dim)(?![a-z]).*",
    )
)


class _Expression:
    """Recursive descent over the tokens of an expression, which are kept in reverse order."""

    def __init__(self, tokens):
        self.tokens = [("end", ""), *tokens[::-1]]

    def take(self, *marks):
        """The next token, if it is one of these marks, or else an empty string."""
        return self.tokens.pop()[1] if self.tokens[-1][1] in marks else ""

    def operators(self, level=0):
        """A value, and the operators after it that bind more tightly than `level`."""
        if sign := self.take("-", "+"):
            value = self.operators(2)
            value = _negative(value) if sign == "-" else value
        else:
            value = self.atom()
        while True:
            kind, mark = self.tokens[-1]
            is_factor = kind in ("symbol", "function", "scale") or mark in _FACTORS
            strength = 2 if is_factor else _STRENGTHS.get(mark, 0)
            if strength <= level:
                return value
            if not is_factor:
                self.tokens.pop()
            if mark == "!":
                value = _apply(_factorial, value)
            elif mark == "\\times" and re.match(_ACCENT, self.tokens[-1][1]):
                _fail()  # of vectors, it is not the product of numbers
            else:
                right = self.operators(strength - (mark == "^"))  # 2^3^2 is 2^(3^2)
                value = _OPERATIONS.get(mark, _product)(value, right)

    def brackets(self):
        """What is in the brackets that were just opened."""
        value = self.operators()
        return value if self.take(*_CLOSERS, "|") else _fail()

    def atom(self):
        kind, text = self.tokens.pop()
        if kind in _READERS:
            return _READERS[kind](text)
        if kind == "symbol":
            while text.isupper() and self.tokens[-1][1].isupper() and self.tokens[-2][1] != "^":
                text += self.tokens.pop()[1]  # AB is not BA, since they may be matrices
            return _symbol(text)
        if kind == "function":
            return self.function(text)
        if kind == "scale":
            return _constant(int(text), places=-1)
        if text in _CURRENCIES:
            return self.operators(2)._replace(unit=text)
        if text == "|":
            return _apply(abs, self.brackets())
        if text in _OPENERS:
            return self.brackets()
        if text in _OF_TWO:
            return _OF_TWO[text](self.atom(), self.atom())
        if text == "\\sqrt":
            degree = self.brackets() if self.take("[") else _constant(2)
            return _power(self.atom(), _fraction(_constant(1), degree))
        return _fail()

    def function(self, name):
        scripts = {}
        while mark := self.take("^", "_"):
            scripts[mark] = self.atom()
        is_bracketed = self.take("(", "[", "{")
        value = self.brackets() if is_bracketed else self.operators(3)
        while not is_bracketed and self.tokens[-1][0] == "symbol":
            value = _product(value, self.operators(3))  # sin 2x cos x
        if self.take("°"):
            value = _product(value, _DEGREE)
        base = [scripts.get("_", _constant(10))] if name == "log" else []
        value = _apply(_FUNCTIONS[name], value, *base)
        return _power(value, scripts["^"]) if "^" in scripts else value


# -------------------------------------------------------------------------------------- 5. values
def _apply(function, *args):
    """A function of values, at every point."""
    if any(arg.unit for arg in args):
        _fail()
    symbols = frozenset().union(*(arg.symbols for arg in args))
    points = [*zip(*(arg.numbers for arg in args), strict=True)][: POINTS if symbols else 1]
    numbers = tuple(_number_at(function, point, bool(symbols)) for point in points)
    is_algebraic = function in _ALGEBRAIC and all(arg.is_algebraic for arg in args)
    return Value(numbers * (POINTS // len(points)), symbols, is_algebraic=is_algebraic)


def _number_at(function, args, with_symbols):
    """The value of a function, exactly if possible, or None if it has none or is too large."""
    with suppress(*_NOT_UNDERSTOOD):
        if not all(isinstance(arg, Fraction) for arg in args):
            args = map(_MP.convert, args)
        number = function(*args)
        if isinstance(number, Fraction):
            return (
                number if _bits(number) <= MAX_EXACT_BITS // (10 if with_symbols else 1) else None
            )
        return number if not number or abs(_MP.mag(number)) <= MAX_BITS else None


def _bits(number):
    return number.numerator.bit_length() + number.denominator.bit_length()


def _constant(number, places=0):
    return Value((Fraction(number),) * POINTS, places=places, is_written=True, is_algebraic=True)


def _symbol(name):
    if name in _CONSTANTS:
        return Value((_CONSTANTS[name],) * POINTS)
    numbers = tuple(_at(name, point) for point in range(POINTS))
    return Value(numbers, frozenset({name}), is_written=name == "\\infty")


def _at(name, point):
    """The value of a symbol at a point: pseudo-random, of both signs, and fixed by its name."""
    h = zlib.crc32(f"{name} {point}".encode("utf-8", "replace"))
    x = Fraction(h % 9973 + 500, 12_000)  # 0.04 to 0.87, a domain for arcsin
    if point >= POINTS // 2:
        return Fraction(h % 23 + 2)
    return (x, 1 + 4 * x, -1 - x, 3 - 8 * x)[point]


def _number(text):
    """1.50 is 3/2 with two decimal places; 2.0 is the integer 2."""
    if re.search(r"\.\d+[.,]", text):
        text = text.replace(".", "").replace(",", ".")  # 1.234,5
    number = Fraction(re.sub(r"[^\d.eE+-]", "", text))
    return _constant(number, len(text.partition(".")[2]) if number.denominator > 1 else 0)


def _mixed(text):
    """2 1/2 is 5/2, but 2 3/2 is nothing."""
    whole, top, bottom = map(int, re.findall(r"\d+", text))
    return _constant(whole + Fraction(top, bottom)) if 0 < top < bottom else _fail()


def _repeating(text):
    r"""0.1\overline{6}, 0.1(6) and 0.1666... are 1/6."""
    whole, decimals, period = re.match(r"(\d*)\.(\d*)\D*(\d*)", text).groups()
    if not period:
        decimals, period = re.fullmatch(r"(\d*?)(\d+?)\2+", decimals).groups()
    repeated = Fraction(int(period), 10 ** len(period) - 1)
    return _constant((int(whole + decimals or "0") + repeated) / 10 ** len(decimals))


def _fraction(top, bottom):
    """A fraction of integers is a written number, but not 4/2, which is left to be worked out."""
    value = _apply(operator.truediv, top, bottom)
    if not (top.is_written and bottom.is_written) or top.places or bottom.places or top.symbols:
        return value
    return value._replace(is_written=bottom.numbers[0] == 1 or value.numbers[0].denominator > 1)


def _product(left, right):
    """The product of a written number and a power of ten, or a million, is a written number."""
    is_written = left.is_written and right.places == -1
    return _apply(operator.mul, left, right)._replace(is_written=is_written)


def _negative(value):
    return value._replace(numbers=_apply(operator.neg, value._replace(unit="")).numbers)


def _power(base, exponent):
    value = _apply(_raise, base, exponent)
    if base.is_written and base.numbers[0] == 10 and exponent.is_written and not exponent.places:
        return value._replace(is_written=True, places=-1)
    return value


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
_CURRENCIES = {*"$€£¥₹"}
_INTERVALS = {"()", "(]", "[)", "[]"}
_PLUS_MINUS = {"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"}
_NOT_UNDERSTOOD = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)
_CONSTANTS = {"\\pi": +_MP.pi, "e": +_MP.e, "i": _MP.j}
_FUNCTIONS = {
    name: getattr(_MP, name.replace("arc", "a"))
    for name in "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp".split()
}
_READERS = {"number": _number, "mixed": _mixed, "repeating": _repeating, "based": _symbol}
_factorial = partial(_of_integers, math.factorial)
_choose = partial(_of_integers, math.comb)
_ALGEBRAIC = {operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, _raise}
_OPERATIONS = {
    "+": partial(_apply, operator.add),
    "-": partial(_apply, operator.sub),
    "/": _fraction,
    "^": _power,
}
_OF_TWO = {"\\frac": _fraction, "\\binom": partial(_apply, _choose)}
_DEGREE = _apply(operator.truediv, _symbol("\\pi"), _constant(180))
_INFINITY = _symbol("\\infty")
_MINUS_INFINITY = _negative(_INFINITY)
_REALS = Tree("()", (_MINUS_INFINITY, _INFINITY))
_NAMED_SETS = {"\\mathbbR": _REALS, "\\emptyset": Tree("{}", ())}


# ------------------------------------------------------------------------------------- 6. compare
def is_equiv(answer: str, gold: str) -> bool:
    """True if two answers mean the same. Symmetric; reflexive on every string; raises nothing."""
    if answer.strip() == gold.strip():
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


def _is_written(node):
    """True if there are written numbers only, with nothing left to be worked out."""
    if node is None or node.kind == "words":
        return False
    if node.kind == "value":
        return node.is_written
    parts = node.parts[1] if node.kind == "name" else node.parts[node.kind == "choice" :]
    return bool(parts) and all(map(_is_written, parts))


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
    u, v = (_apply(operator.sub, *x.parts) for x in (a, b))
    ratios = [_MP.convert(x) / _MP.convert(y) if x and y else None for x, y in _pairs(u, v)]
    if u.symbols != v.symbols or len(ratios) < 2 or None in ratios:
        return False
    return all(_close(ratio, ratios[0]) for ratio in ratios)


def _same_parts(a, b):
    """Are two lists, sets, tuples ... the same?"""
    kinds = {a.kind, b.kind}
    if len(a.parts) != len(b.parts):
        return False
    if kinds <= {",", "{}"} or kinds in ({"cup"}, {"or"}):  # in any order
        rest = [*b.parts]
        for part in a.parts:
            partners = [other for other in rest if _same(part, other)]
            if not partners:
                return False
            rest.remove(partners[0])
        return True
    return (len(kinds) == 1 or kinds == {",", "()"}) and all(map(_same, a.parts, b.parts))


def _same_value(a, b):
    """Exactly where both are rational, otherwise to 180 digits, or as a rounded decimal."""
    if a.unit and b.unit and a.unit != b.unit:
        return False  # 5 m against 5 cm
    pairs = _pairs(a, b)
    if pairs and all(_close(u, v) for u, v in pairs):
        return len(pairs) > 1 or not a.symbols and not b.symbols
    return _is_rounded(a, b) or _is_rounded(b, a)


def _pairs(a, b):
    """The values of two expressions at the points where both have one."""
    pairs = [pair for pair in zip(a.numbers, b.numbers, strict=True) if None not in pair]
    real = [pair for pair in pairs if not any(isinstance(number, _MP.mpc) for number in pair)]
    pairs = real if len(real) > 1 else pairs
    return pairs if a.symbols or b.symbols else pairs[:1]


def _is_rounded(decimal, exact):
    """Is the decimal a fraction or root, rounded or cut off after at least four places?"""
    if decimal.places < 4 or exact.places > 0 or not exact.is_algebraic or exact.symbols:
        return False
    digits, size = (value.numbers[0] * 10**decimal.places for value in (decimal, exact))
    if abs(digits) < 1000 or (digits < 0) != (size < 0):
        return False
    return abs(digits) in (int(abs(size)), int(abs(size) + Fraction(1, 2)))
