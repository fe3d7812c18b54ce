"""Check answers to maths problems: a reward that is exact, fast and cannot hang.

    math_reward("Half of them, so \\boxed{\\frac12}.", "0.5")    -> True
    extract_answer("... so the answer is 42.")                   -> "42"
    is_equiv("(x+1)^2", "x^2+2x+1")                              -> True

`extract_answer` finds the final answer in a response. `is_equiv` reads two answers, LaTeX or plain
text, into small trees and compares them by form: numbers exactly, as fractions; constants such as
\\sqrt2\\pi to 60 digits; expressions with symbols by their values at fixed points (Schwartz-Zippel
testing); lists, intervals, matrices and equations part by part; the rest is compared as text.

Nothing here can run long: length, nesting, digits and exponents are limited before any number is
built, so there is no timer, no signal, no subprocess. All functions are pure; the only state is
bounded caches, so threads and processes are safe. In doubt the verdict is False: a wrong True
teaches a model a wrong answer. Needs mpmath, which comes with sympy.
"""
from __future__ import annotations

import math
import re
import zlib
from fractions import Fraction
from functools import lru_cache
from typing import Iterator

import mpmath

MAX_RESPONSE = 20_000    # characters at the end of a response in which the answer is looked for
MAX_ANSWER = 2_000       # characters of an answer that is parsed; a longer one is compared as text
MAX_TOKENS = 400         # numbers, symbols and signs in an answer
MAX_DEPTH = 25           # nesting
MAX_BITS = 4_096         # of an exact number: 2^4000 is built, 2^5000 only compared as written
MAX_WORK = 200_000       # bits of all results, while one expression is evaluated at one point
MAX_COMPARISONS = 3_000  # of parts, while two answers are compared

_MP = mpmath.MPContext()  # our own and never changed after these lines, hence safe in threads
_MP.dps = 400             # mpmath caches these constants, and must not extend them in a thread
_MP.ln(_MP.pi * _MP.e)
_MP.dps = 80              # 60 digits must agree, the others absorb rounding


def math_reward(response: str, gold: str) -> bool:
    """True if the final answer in `response` is equivalent to `gold`. Raises nothing on strings.

    `gold` is an answer, or a solution that holds it in \\boxed{} or after ####.

    >>> math_reward("6 times 7 is 42. #### 42", "42.0")
    True
    """
    answer = extract_answer(response)
    if "\\boxed" in gold or "\\fbox" in gold or "####" in gold:
        gold = extract_answer(gold) or gold
    return answer is not None and is_equiv(answer, gold)


# ---------------------------------------------------------------------------------- extraction

_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.S)
_FORMULA = re.compile(  # no closing $ before a digit: "$5 and $10" holds no formula
    r"\$\$([^$]+)\$\$|\$([^$]+)\$(?![0-9])|\\\(((?:[^\\]|\\(?![()]))*)\\\)"
    r"|\\\[((?:[^\\]|\\(?![\[\]]))*)\\\]")
_MARKER = re.compile(r"####|^A:|\b(?i:answers?|ans|option)\b"
                     r"(?:\W{0,4}(?i:is|are|was)\b|\W{0,3}[:=]|(?=\W{1,3}[A-Z]\b))", re.M)
_NUMBER = re.compile(r"(?<![0-9A-Za-z_.])[-−]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
                     r"(?: ?[/:] ?[0-9]+)?(?: ?(?:[ap]\.?m\b|hundred|thousand|million|billion))?")
_CHOICE = re.compile(r"\W{0,3}(?:(?i:option|choice)\W{1,3})?"
                     r"(?:([A-Z])(?:[).:,]|\W{0,9}$)|([A-Z]) (?:because|since|as)\b)")
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:and|or|sqrt|pi|ln|log|exp|sin|cos|tan)\b)[A-Za-z]{2}")
# boxes are one list if one sentence joins them: \boxed{1} papers and \boxed{2} bins
_JOINS_BOXES = r"(?s)(?=.{1,60}$)(?=.*(?:,|\band\b|\bor\b))(?!.*\.\s).*"
_JOINS_FORMULAS = r"\s*(?:[,;]|,?\s*\b(?:and|or)\b)\s*"


def extract_answer(response: str) -> str | None:
    """The final answer in a response, or None.

    In this order: the last balanced \\boxed{} or \\fbox{}, unless "final answer is 5" follows it;
    what follows "####", "A:" or "the answer is"; the last formula or number; a short response as it
    stands. Boxes or formulas joined by commas or "and" are one list. Only the last 20,000
    characters count, and only those after </think>.

    >>> extract_answer("the roots are \\\\boxed{1} and \\\\boxed{2}.")
    '1, 2'
    """
    text = response[-MAX_RESPONSE:].rpartition("</think>")[2].strip().strip("*")
    opened, boxes = [], []
    first = re.search(r"\\(?:boxed|fbox)", text)
    for m in _BRACES.finditer(text, first.start()) if first else ():
        if m[0] == "}" and opened:
            start, inner = opened.pop()
            if inner:
                boxes = [b for b in boxes[-20:] if b[0] < start]        # drop what is boxed inside
                boxes.append((start, m.end(), text[inner:m.start()]))
        elif m[0][-1] == "{" and m[0] != "\\{":
            opened.append((m.start(), m.end() if len(m[0]) > 1 else 0))
    box = _runs(boxes, text, _JOINS_BOXES)[-1:]
    marked = None
    for m in _MARKER.finditer(text, box[0][1] if box else 0):
        rest = text[m.end():m.end() + 200].lstrip(" \n\t:=*")
        final = text[m.start() - 6:m.start()] in ("final ", "Final ")
        if rest.strip(" .$") and (not box or final and re.match(r"\$|\\[(\[]|-?[0-9]", rest)):
            marked = m
    if not marked:
        return box[0][2] if box else _from_prose(text, len(text) <= 80)
    text = text[marked.end():].lstrip(" \n\t:=*")
    formulas = _formulas(text)
    if formulas and formulas[0][0] == 0:
        return formulas[0][2]
    return _from_prose(re.split(r"\n|\.\s|<\|", text, maxsplit=1)[0].rstrip(" .*"), True)


def _runs(spans: list[tuple], text: str, joint: str) -> list[tuple[int, int, str]]:
    """Spans (start, end, content), those in a row that text like `joint` ties being one list."""
    runs = []
    for span in spans:
        if runs and re.fullmatch(joint, text[runs[-1][-1][1]:span[0]]):
            runs[-1].append(span)
        else:
            runs.append([span])
    return [(run[0][0], run[-1][1], ", ".join(dict.fromkeys(span[2].strip() for span in run)))
            for run in runs]


def _formulas(text: str) -> list[tuple[int, int, str]]:
    spans = [(m.start(), m.end(), m[m.lastindex]) for m in _FORMULA.finditer(text)]
    return _runs([span for span in spans if span[2].strip()], text, _JOINS_FORMULAS)


def _from_prose(text: str, whole: bool) -> str | None:
    """The answer in text without a box; `whole` if, failing all else, that is the text itself."""
    formulas, choice = _formulas(text), _CHOICE.match(text)
    bare = re.sub(r"\\[A-Za-z]+\s?(?:\{[A-Za-z ]*\})?", "", text)       # without commands
    short = text and not formulas and "\n" not in text and not _PROSE.search(bare)
    if choice and (short or whole):
        return choice[choice.lastindex]
    if short:
        return text
    numbers = _NUMBER.findall(text, formulas[-1][1] if formulas else 0)
    if numbers:
        return numbers[-1].rstrip(",")
    return formulas[-1][2] if formulas else text if whole and text else None


# ------------------------------------------------------------------------------------- reading

def is_equiv(answer: str, gold: str) -> bool:
    """True if two answers mean the same. Symmetric; reflexive on every string; raises nothing.

    >>> is_equiv("\\\\frac{1}{2}", "0.5"), is_equiv("0.5", "50%"), is_equiv("[0,1)", "(0,1)")
    (True, False, False)
    """
    if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
        return answer.strip() == gold.strip()
    (text_a, a), (text_b, b) = _read(answer), _read(gold)
    if text_a == text_b or a is None or b is None:
        return text_a == text_b
    try:
        return _same(a, b, [MAX_COMPARISONS])
    except _Unsupported:
        return False


class _Unsupported(Exception):
    """Outside the grammar, over a limit, or without a value at a point."""


def _fail():
    raise _Unsupported


# what has one meaning gets one spelling; \ue000...\ue001 encloses words, \ue002 ends a row
_UNICODE = {ord(c): s for cs, s in {
    "\u200b\u200e\u200f\ue000\ue001\ue002€£¥": "", "\u00a0\u2009\u202f": " ", "−–—": "-",
    "×⋅·∗": "*", "÷": "/", "°": "\\degree ", "²": "^2", "³": "^3", "½": "\\frac12",
    "π": "\\pi ", "√": "\\sqrt ", "∞": "\\infty ", "≤": "<=", "≥": ">=", "≠": "!=",
    "∪": "\\cup ", "∈": "\\in ", "±": "\\pm ", "≈": "\\approx ",
    "θ": "\\theta "}.items() for c in cs}
_ALIAS = {alias: name for name, aliases in {
    "\\frac": r"\dfrac \tfrac \cfrac", "\\binom": r"\dbinom \tbinom", "*": r"\cdot \times \ast",
    "/": "\\div", "^": "**", "|": r"\lvert \rvert \vert", "<": "\\lt", ">": "\\gt", "\\log": r"\lg",
    "<=": r"\le \leq \leqslant", ">=": r"\ge \geq \geqslant", "!=": r"\ne \neq",
    "\\infty": r"\infinity \inf", "\\emptyset": "\\varnothing", ",": r"; \quad \qquad and or",
}.items() for alias in aliases.split()}
_FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp".split())
_WORDS = set("cm mm km kg mg ft hr lb oz ml mL no No".split())  # two letters, but not a product
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12}
_TEXT = re.compile(r"\\(text(?:rm|bf|it|sf|tt|normal)?|math(?:rm|bf|it|sf|cal)|operatorname\*?|mbox"
                   r"|hbox|bm|boldsymbol)\s*\{([^{}]*)\}")
_STYLE = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?|\\!\s*|\\?[$%]|\\[()\[\]]|"
    r"\\(?:displaystyle|textstyle|boxed|fbox|triangle)(?![A-Za-z])|m?\\angle(?![A-Za-z])|"
    r"^\s*(?:\\approx|[Aa]bout |[Aa]pproximately )")
_MATRIX = re.compile(r"\\(begin|end) ?\{(?:[pb]?(?:small)?matrix|array)\}((?<=y\}) ?\{[lcr| ]*\})?")
# {x | x > 1} is x > 1; 1,234 and 1 234 are numbers; 4:30 p.m. is one word
_SET = re.compile(r"\\\{ ?[A-Za-z] ?(?:\\in[^|:{}]*)?(?:\\mid|\\vert|[|:])([^{}]*)\\\}")
_THOUSANDS = re.compile(r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])|"
                        r"(?<![0-9.])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])")
_CLOCK = re.compile(
    r"\ue000?([0-9]{1,2}) ?(: ?[0-9]{2})?[ \ue000]*([ap])\.? ?m\b\.?[ \ue001]*", re.I)
_REPEATING = re.compile(
    r"(?<![0-9])([0-9]*)\.([0-9]*) ?\\(?:overline|bar|dot) ?\{ ?([0-9]+) ?\}")
_MIXED = re.compile(
    r"(?<![0-9.^_])([0-9]+) ?(?:\\[dtc]?frac ?(?:\{ ?([0-9]+) ?\}|([0-9])) ?"
    r"(?:\{ ?([0-9]+) ?\}|([0-9]))| ([0-9]+) ?/ ?([0-9]+)(?![0-9]))")
_TOKEN = re.compile(
    r" *((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4}(?![0-9]))?|\\[A-Za-z]+|[A-Za-z]+|"
    r"\ue000[^\ue001]*\ue001|\*\*|[<>!]=|\\[{}]|[-+*/^_!|()\[\]{},;:&'=<>\ue002])")


def _inline(m: re.Match) -> str:
    """\\text{(C)} is (C) and \\text{ or } a comma; other words, and units, are one token."""
    body = m[2].strip()
    letters = len(re.findall("[A-Za-z]", body))
    if body in _FUNCTIONS:
        return f"\\{body} "
    if body.strip(" ,") in ("and", "or"):
        return " , "
    # 5\mathrm{m} and \text{ m} are units, 5\mathrm{i} and \text{C} are not
    unit = m[2][:1] in " ~" or body not in "eid" and m[1] in ("text", "mathrm", "mbox") and \
        m.string[:m.start()].rstrip()[-1:].isdigit()
    return f"\ue000{body}\ue001" if letters > 1 or letters and unit else f" {body} "


def _improper(m: re.Match) -> str:
    """1\\frac12 and 1 1/2 are one and a half; 2\\frac32 is a product."""
    whole, top, bottom = [g for g in m.groups() if g]
    return f"({whole}+{top}/{bottom})" if int(top) < int(bottom) else m[0]


def _repeating(m: re.Match) -> str:
    """0.1\\overline{6} is (16-1)/90."""
    digits = m[1] + m[2]
    return f"({int(digits + m[3]) - int(digits or 0)}/{'9' * len(m[3]) + '0' * len(m[2])})"


def _normalise(s: str) -> str:
    s = re.sub(r"\$\s*\n\s*\$", " , ", s.translate(_UNICODE))   # formulas on lines of their own
    if re.search(r"\\\\(?:begin|frac|left|sqrt)", s):      # escaped twice
        s = s.replace("\\\\", "\\")
    s = _SET.sub(r"{\1}", s.replace("\\mathbb{R}", "(-\\infty,\\infty)"))
    s = _MATRIX.sub(lambda m: "\\mat " if m[1] == "begin" else "\\endmat ", s)
    s = re.sub(r"\\\\(?:\[[^\]]*\])?", "\ue002", s) if "\\mat " in s else re.sub(r"\\+", r"\\", s)
    s = _STYLE.sub("", _TEXT.sub(_inline, s))
    s = re.sub(r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))", r"\\degree ", s)
    s = re.sub(r"\^ ?(?:\{((?: ?\\prime)+) ?\}|\\prime(?![A-Za-z]))",
               lambda m: "'" * max(1, (m[1] or "").count("e")), s)
    s = re.sub(r"\\[,;:> ]|~|\s+", " ", re.sub(r"(?<=[0-9]) ?\{, ?\} ?(?=[0-9]{3})", "", s))
    s = _CLOCK.sub(lambda m: f"\ue000{m[1]}{m[2] or ':00'}{m[3].lower()}m\ue001", s)
    if not re.search(r"[(\[]|\\\{", s):                    # (1,234) is a pair, 1,234 a number
        s = _THOUSANDS.sub(lambda m: re.sub("[, ]", "", m[0]), s)
    return _MIXED.sub(_improper, _REPEATING.sub(_repeating, s)).strip().rstrip(".").rstrip()


@lru_cache(maxsize=256)
def _read(s: str) -> tuple[str, tuple | None]:
    """The text to compare, and the tree, or None if the parser cannot read the answer."""
    s = _normalise(s)
    text = re.sub("[\ue000\ue001]", "", re.sub("(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", s))
    if re.fullmatch("[A-Za-z ,.'-]*[a-z]{3}[A-Za-z ,.'-]*", text):
        text = text.casefold()                             # words, not symbols
    try:
        tokens = _tokenize(s)
        signs = {"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"}
        return text, _merge(*(_Parser([sign.get(t, t) for t in tokens]).answer() for sign in signs))
    except _Unsupported:
        return text, None


def _tokenize(s: str) -> list[str]:
    tokens, at = [], 0
    while at < len(s):
        m = _TOKEN.match(s, at)
        if not m or len(tokens) > MAX_TOKENS:
            _fail()
        token, before, at = m[1], s[m.start(1) - 1:m.start(1)], m.end()
        if token.isalpha() and token not in _ALIAS:
            if token in _FUNCTIONS or token in ("sqrt", "pi", "infty", "infinity", "inf"):
                token = "\\" + token
            elif token in _WORDS or len(token) > 2 and not re.match(r"[\w)}^\\]", before) and \
                    not re.match(r"[-+*/^_(0-9]", s[at:at + 1]):
                token = f"\ue000{token}\ue001"             # a word, not a product of letters
        if token[0] == "\ue000":
            token = "\ue000" + " ".join(token[1:-1].casefold().split())
            if tokens and tokens[-1][0] == "\ue000":
                token = tokens.pop() + " " + token[1:]
        token = _ALIAS.get(token, token)
        tokens += token if token.isalpha() else [token]
    return tokens


_OPERATORS = ({"=", "\\approx", "<", ">", "<=", ">=", "!=", "\\in"}, {":"}, {"\\cup"}, {"+", "-"})
_CLOSER = {"(": (")", "]"), "[": ("]", ")"), "{": ("}",), "\\{": ("\\}",), "|": ("|",),
           "\\lfloor": ("\\rfloor",), "\\lceil": ("\\rceil",), "\\langle": ("\\rangle",)}
_NOT_FACTORS = {"\\cup", "\\in", "\\approx", "\\}", "\\rfloor", "\\rceil", "\\rangle", "\\endmat",
                "\\degree", "\\begin", "\\end"}


class _Parser:
    """Recursive descent over tokens, to trees of tuples:

    ("num", Fraction, last place if written as a decimal)  ("sym", name)  ("const", name)
    ("add", a, b, ...)  ("mul", a, b, ...)  ("pow", a, b)  ("fn", name, a, ...)
    ("rel", operator, a, b)
    ("seq", brackets, items): "()" "[)" ... tuples or intervals, "{}" sets, "" bare lists,
    "cup" unions, "<<=" chains of inequalities, "mat" rows, which are "row" of cells
    """

    def __init__(self, tokens: list[str]):
        self.tokens, self.at, self.depth, self.in_bars = [*tokens, ""], 0, 0, False

    @property
    def now(self) -> str:
        return self.tokens[self.at]

    def take(self, *wanted: str) -> str:
        token = self.now if self.now in wanted else ""
        self.at += bool(token)
        return token

    def answer(self) -> tuple:
        node = self.items("")
        return _fail() if self.now else node

    def items(self, *closers: str) -> tuple:
        """A bare list; a list of one is its item."""
        items = []
        while not items or self.now == ",":
            while self.take(","):
                pass
            if self.now in closers:
                break
            items.append(self.level(0))
        return _labelled(items) if len(items) > 1 else items[0] if items else _fail()

    def level(self, n: int) -> tuple:
        """Operators of one precedence: relations, ratios, unions, sums."""
        if n == len(_OPERATORS):
            return self.product()
        start, parts, ops = self.at, [self.level(n + 1)], []
        while self.now in _OPERATORS[n]:
            ops.append(self.take(self.now))
            parts.append(self.level(n + 1))
        if n == 2 and self.now[:1] == "\ue000":
            parts[-1] = self.unit(parts[-1], "".join(self.tokens[start:self.at]))
        return _BUILDERS[n](parts, ops) if ops else parts[0]

    def unit(self, node: tuple, written: str) -> tuple:
        """Words after a value, with powers and slashes, are a unit. But 5 million is 5*10^6."""
        if not re.search(r"[0-9\\]", written):             # "it is so" holds no value
            _fail()
        node = _mul(node, _num(_SCALES.get(self.now[1:].split(" ")[0], 1)))
        while self.now[:1] == "\ue000" or self.now in ("*", "/", "^"):
            token = self.take(self.now)
            if token == "^":
                self.signed(self.atom)
            elif token in "*/" and self.now.isalpha():     # m/s
                self.at += 1
        return node

    def product(self) -> tuple:
        node = self.signed(self.power)
        while True:
            before = self.tokens[self.at - 1]
            if self.take("*"):
                node = _mul(node, self.signed(self.power))
            elif self.take("/"):
                node = _mul(node, _inv(self.signed(self.power)))
            elif before[0] != "\ue000" and (self.now.isalpha() or self.is_command() or (
                    not self.in_bars if self.now == "|" else self.now in _CLOSER) or
                    before in ("}", ")") and self.now[:1].isdigit()):
                node = _mul(node, self.power())
            else:
                return node

    def is_command(self) -> bool:
        return self.now[:1] == "\\" and self.now not in _NOT_FACTORS

    def signed(self, operand) -> tuple:
        sign = 1
        while token := self.take("+", "-"):
            sign = -sign if token == "-" else sign
        return operand() if sign == 1 else _mul(_num(-1), operand())

    def power(self) -> tuple:
        node = self.atom()
        for _ in range(4):
            if self.take("^"):
                node = _pow(node, self.signed(self.atom))
                if self.now == "^":                        # 2^3^4: which way?
                    _fail()
            elif token := self.take("!", "'", "\\degree"):
                node = ("fn", token, _scalar(node))
            elif self.take("_"):
                start = self.at
                self.signed(self.atom)
                index = "".join(self.tokens[start:self.at]).strip("{}")
                # the base of a number is like a name: 12_5 against 12, but not 12_6
                node = ("rel", "=", ("sym", "_" + index), node) if node[0] == "num" else \
                    ("sym", node[1] + "_" + index) if node[0] in ("sym", "const") else _fail()
            else:
                return node
        return _fail()

    def argument(self) -> tuple:
        """Of \\frac: a group or one symbol, so \\frac43 is 4/3."""
        if len(self.now) > 1 and self.now.isdigit():
            digit, self.tokens[self.at] = self.now[0], self.now[1:]
            return _num(int(digit))
        return self.atom()

    def atom(self) -> tuple:
        self.depth += 1
        if self.depth > MAX_DEPTH or not self.now:
            _fail()
        token = self.take(self.now)
        after = self.tokens[self.at:self.at + 6]
        if token[0].isdigit() or token[0] == ".":
            node = _number(token)
        elif token in "fgh" and after == [*"^{-1}("]:
            self.at += 5
            node = ("fn", token + "^-1()", self.atom())
        elif token.isalpha() and after[0] == "(" and (     # I(0) is not I times 0
                token in "fghFGHP" or after[1].isdigit() and after[2] == ")"):
            node = ("fn", token + "()", self.atom())
        elif token in "ei" or token in ("\\pi", "\\infty"):
            node = ("const", token)
        elif token.isalpha() or token[0] == "\ue000":
            node = ("sym", token)
        elif token in _CLOSER:
            node = self.group(token)
        elif token == "\\frac":
            node = _mul(self.argument(), _inv(self.argument()))
        elif token == "\\binom":
            node = ("fn", "binom", _scalar(self.argument()), _scalar(self.argument()))
        elif token == "\\sqrt":
            degree = self.atom() if self.now == "[" else _num(2)
            node = _pow(self.atom(), _inv(degree))
        elif token[1:] in _FUNCTIONS:
            node = self.function(token[1:])
        elif token == "\\mat":
            node = self.matrix()
        elif token == "\\emptyset":
            node = ("seq", "{}", ())
        elif token[0] == "\\" and token not in _NOT_FACTORS:  # \vec{a} and \alpha are only names
            node = ("fn", token, _scalar(self.atom())) if self.now == "{" else ("sym", token)
        else:
            _fail()
        self.depth -= 1
        return node

    def group(self, opener: str) -> tuple:
        outer, self.in_bars = self.in_bars, opener == "|"
        empty = opener == "\\{" and self.now == "\\}"
        inner = ("seq", "", ()) if empty else self.items(*_CLOSER[opener])
        closer, self.in_bars = self.take(*_CLOSER[opener]) or _fail(), outer
        items = inner[2] if inner[:2] == ("seq", "") else (inner,)
        if opener in ("|", "\\lfloor", "\\lceil"):
            return ("fn", opener, _scalar(inner))
        if opener == "{" or len(items) == 1 and opener + closer in ("()", "[]"):
            return inner
        brackets = {"\\{": "{}", "\\langle": "()"}.get(opener, opener + closer)
        return ("seq", brackets, items)

    def function(self, name: str) -> tuple:
        scripts = {}
        while token := self.take("^", "_"):
            scripts[token] = self.signed(self.atom)
        bracketed = self.now in _CLOSER
        arg = self.atom() if bracketed else self.power()   # sin(x)^2 is (sin x)^2
        while not bracketed and (self.now.isalpha() or self.is_command() and
                                 self.now[1:] not in _FUNCTIONS):      # sin 2x cos x
            arg = _mul(arg, self.power())
        power = scripts.get("^")
        if power == _num(-1) and name in ("sin", "cos", "tan"):
            name, power = "arc" + name, None
        node = ("fn", "ln" if name == "log" else name, _scalar(arg))
        if name == "log":                                  # without a base it is not ln
            node = _mul(node, _inv(("fn", "ln", _scalar(scripts.get("_", _num(10))))))
        return _pow(node, power) if power else node

    def matrix(self) -> tuple:
        rows, row = [], []
        while not self.take("\\endmat"):
            row.append(self.level(0))
            if not self.take("&"):
                rows.append(row)
                row = []
                if not self.take("\ue002") and self.now != "\\endmat":
                    _fail()
        return _matrix(rows) if len(set(map(len, rows))) == 1 else _fail()


# A tree that is built is already in normal form, as far as that is cheap.

def _num(value: int | Fraction) -> tuple:
    return ("num", Fraction(value), None)


def _number(text: str) -> tuple:
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, decimals = mantissa.partition(".")
    shift = int(exponent or 0) - len(decimals)
    if (len(whole) + len(decimals) + abs(shift)) * 3.33 > MAX_BITS:
        _fail()
    place = Fraction(10) ** shift
    value = int(whole + decimals) * place
    return ("num", value, place if decimals and value.denominator > 1 else None)


def _scalar(a: tuple) -> tuple:
    return _fail() if a[0] in ("seq", "rel") else a


def _matrix(rows) -> tuple:
    return ("seq", "mat", tuple(("seq", "row", tuple(row)) for row in rows))


def _rows(a: tuple) -> list[tuple] | None:
    return [row[2] for row in a[2]] if a[:2] == ("seq", "mat") else None


def _sum(terms: list[tuple], ops: list[str]) -> tuple:
    terms = [terms[0]] + [_mul(_num(-1), t) if op == "-" else t for t, op in zip(terms[1:], ops)]
    if not all(map(_rows, terms)):
        return ("add", *map(_scalar, terms))
    if len({(len(t[2]), len(t[2][0][2])) for t in terms}) > 1:
        _fail()
    return _matrix([_sum(list(cells), "+" * len(ops)) for cells in zip(*rows)]
                   for rows in zip(*map(_rows, terms)))


def _mul(a: tuple, b: tuple) -> tuple:
    rows, columns = _rows(a), _rows(b)
    if rows and columns:                                   # of rationals: trees would grow as 2^n
        values = [[[_value(x, "complex", 0) for x in row] for row in m] for m in (rows, columns)]
        rational = all(isinstance(x, Fraction) for m in values for row in m for x in row)
        if len(rows[0]) != len(columns) or not rational or _symbols(a) | _symbols(b):
            _fail()
        return _matrix([_num(sum(map(Fraction.__mul__, row, column))) for column in zip(*values[1])]
                       for row in values[0])
    if rows or columns:
        if len(repr(b if rows else a)) > 1_000:            # it is copied into every cell
            _fail()
        return _matrix([_mul(x, b) if rows else _mul(a, x) for x in row] for row in rows or columns)
    if _scalar(a) == _num(-1) and b[0] == "num":           # -0.5 is a decimal like 0.5
        return ("num", -b[1], b[2])
    if b == _num(1):
        return a
    return ("mul", *(x for f in (a, _scalar(b)) for x in (f[1:] if f[0] == "mul" else (f,))))


def _pow(a: tuple, b: tuple) -> tuple:
    return ("pow", _scalar(a), _scalar(b))


def _inv(a: tuple) -> tuple:
    return _pow(a, _num(-1))


def _relation(parts: list[tuple], ops: list[str]) -> tuple:
    if set(ops) <= {"=", "\\approx"}:
        if "\\approx" in ops:                              # x = pi/2 \approx 1.57 says pi/2
            parts = parts[:max(ops.index("\\approx"), _is_name(parts[0])) + 1]
        if not any(map(_symbols, parts)):
            return parts[-1]                               # 1+2 = 3 says 3
        if len(parts) > 2 and all(map(_is_name, parts[:-1])) and parts[-1][0] in ("num", "sym"):
            return _labelled([("rel", "=", p, parts[-1]) for p in parts[:-1]])     # x = y = 1
        if len(parts) > 1 and _is_name(parts[-1]) and not _is_name(parts[0]):
            parts = parts[::-1]                            # 5 = x
        return ("rel", "=", parts[0], parts[-1]) if len(parts) > 1 else parts[0]
    if ops[0] in ("\\in", "!="):
        op = "=" if parts[1][:2] == ("seq", "{}") else ops[0]  # x in {1,2} is x = 1,2
        return ("rel", op, *parts) if len(ops) == 1 else _fail()
    if ops[0][0] == ">":
        parts, ops = parts[::-1], [op.replace(">", "<") for op in reversed(ops)]
    if not set(ops) <= {"<", "<="}:
        _fail()
    names = [i for i, part in enumerate(parts) if _symbols(part)]
    infinity = ("const", "\\infty")
    if (len(ops), *names) in ((1, 0), (1, 1), (2, 1)) and parts[names[0]][0] == "sym":
        low, left, right, high = _mul(_num(-1), infinity), "(", ")", infinity
        if names[0] > 0:                                   # 1 < x <= 2 is x in (1,2]
            low, left = parts[0], "(["[ops[0] == "<="]
        if names[0] < len(ops):
            high, right = parts[-1], ")]"[ops[-1] == "<="]
        return ("rel", "\\in", parts[names[0]], ("seq", left + right, (low, high)))
    return ("rel", ops[0], *parts) if len(ops) == 1 else ("seq", "".join(ops), tuple(parts))


def _is_name(a: tuple) -> bool:
    """f(x), |AB|, V_1, AB/CD, sin A, (p,q): a left-hand side that names what is asked for.

    Not x+z or 2x or xy: there the right-hand side alone is not the answer.
    """
    if a[0] == "seq":
        return all(map(_is_name, a[2]))
    if a[0] == "mul":
        return all(_is_name(x) and (x[0] == "pow" or x[1][0].isupper()) for x in a[1:])
    if a[0] == "pow":
        return a[2] == _num(-1) and _is_name(a[1])
    return a[0] in ("sym", "const") or a[0] == "fn" and (a[1][-1] == ")" or _is_name(a[2]))


def _labelled(items: list[tuple]) -> tuple:
    """x=1, x=2 and x=1, 2 are a list named x; x=1, y=2 is (x,y) = (1,2)."""
    names = [i[2] if i[0] == "rel" and i[1] in ("=", "\\in") and _is_name(i[2]) else None
             for i in items]
    values = tuple(i[3] if name else i for i, name in zip(items, names))
    if names[0] and set(names) <= {names[0], None}:
        if all(i[:2] == ("rel", "\\in") for i in items):   # x<1 or x>2
            return ("rel", "\\in", names[0], ("seq", "cup", values))
        return ("rel", "=", names[0], ("seq", "", values))
    width = len(dict.fromkeys(names))
    if all(names) and names == names[:width] * (len(names) // width):
        records = tuple(("seq", "()", values[i:i + width]) for i in range(0, len(names), width))
        return ("rel", "=", ("seq", "()", tuple(names[:width])),
                records[0] if len(records) == 1 else ("seq", "", records))
    return ("seq", "", tuple(items))


def _merge(plus: tuple, minus: tuple) -> tuple:
    """The two readings of an answer with \\pm, as one list."""
    if plus == minus:
        return plus
    if plus[:3] == minus[:3] and plus[:2] == ("rel", "="):
        return (*plus[:3], _merge(plus[3], minus[3]))
    if plus[:2] == minus[:2] and plus[:2] in (("seq", ""), ("seq", "{}")):
        return (*plus[:2], tuple(x for pair in zip(plus[2], minus[2]) for x in dict.fromkeys(pair)))
    return ("seq", "", (plus, minus))


def _ratio(parts: list[tuple], ops: list[str]) -> tuple:
    return _mul(parts[0], _inv(parts[1])) if len(ops) == 1 else _fail()


_BUILDERS = (_relation, _ratio, lambda parts, ops: ("seq", "cup", tuple(parts)), _sum)


# ---------------------------------------------------------------------------------- comparison

def _same(a: tuple, b: tuple, left: list[int]) -> bool:
    """Are two trees equivalent? `left` counts down the comparisons that may still be made."""
    left[0] -= 1
    if left[0] < 0:
        _fail()
    a, b = (x[2] if x[:2] == ("fn", "\\degree") else x for x in (a, b))    # degrees are a unit
    if a == b:
        return True
    if a[0] == b[0] == "rel":
        return _same_relation(a, b, left)
    for x, y in ((a, b), (b, a)):
        if x[0] == "rel":                                  # x = 5 against 5
            return x[1] in ("=", "\\in") and _is_name(x[2]) and _same(x[3], y, left)
    for x, y in ((a, b), (b, a)):
        if x[0] == "seq" and x[1] in ("", "{}") and not (y[0] == "seq" and y[1] in ("", "{}")):
            if x[2] and all(_same(item, y, left) for item in x[2]):    # {5}, or 5 said twice
                return True
    if a[0] == b[0] == "seq":
        return _same_seq(a, b, left)
    return "seq" not in (a[0], b[0]) and _same_value(a, b)


def _same_relation(a: tuple, b: tuple, left: list[int]) -> bool:
    if a[1] != b[1]:
        return False
    if a[2] == b[2] and _same(a[3], b[3], left):
        return True
    if a[2][0] == b[2][0] == a[3][0] == b[3][0] == "seq":  # (x,y) = (1,2) against (y,x) = (2,1)
        pairs = ([("rel", "=", *pair) for pair in zip(r[2][2], r[3][2])] for r in (a, b))
        return a[3][1] == b[3][1] == "()" and _same_set(*pairs, left)
    if a[1] == "\\in" or {"seq", "rel"} & {x[0] for x in (*a[2:], *b[2:])}:
        return False
    u, v = (_sum([r[2], r[3]], "-") for r in (a, b))       # equations: equal up to a factor
    ratios = []
    for x, y in _pairs(u, v):
        if not x or not y:
            return False
        ratios.append(_mp(x) / _mp(y))
        if not _equal(ratios[0], ratios[-1]):
            return False
    positive = ratios and isinstance(ratios[0], _MP.mpf) and ratios[0] > 0
    return len(ratios) > 1 and bool(_symbols(u)) and (a[1] in ("=", "!=") or positive)


def _same_set(a, b, left: list[int]) -> bool:
    """Has every item its partner, in any order?"""
    rest = list(b)
    for x in a:
        partner = next((i for i, y in enumerate(rest) if _same(x, y, left)), None)
        if partner is None:
            return False
        del rest[partner]
    return not rest


def _same_seq(a: tuple, b: tuple, left: list[int]) -> bool:
    kinds = {a[1], b[1]}
    if kinds <= {"", "{}"} or kinds == {"cup"}:
        # a point listed twice is one point, but two equal numbers may be two quantities
        return _same_set(*(dict.fromkeys(s[2]) if all(x[0] == "seq" for x in s[2]) else s[2]
                           for s in (a, b)), left)
    if kinds == {"mat", "()"}:                             # a row or a column is a vector
        a, b = (("seq", "()", tuple(x for row in s[2] for x in row[2]))
                if s[1] == "mat" and 1 in (len(s[2]), len(s[2][0][2])) else s for s in (a, b))
    return (a[1] == b[1] or kinds == {"", "()"}) and len(a[2]) == len(b[2]) and \
        all(_same(x, y, left) for x, y in zip(a[2], b[2]))


def _same_value(a: tuple, b: tuple) -> bool:
    found, symbols = 0, _symbols(a) or _symbols(b)
    for found, (u, v) in enumerate(_pairs(a, b), 1):
        if not _equal(u, v):
            return not symbols and _rounds(a, b, u, v)
    return found > (1 if symbols else 0)


def _rounds(a: tuple, b: tuple, u, v) -> bool:
    """0.33333333 against 1/3: right in every place written and to a millionth, but no integer."""
    places = [x[2] for x in (a, b) if x[0] == "num" and x[2]]
    if not places or any(isinstance(x, Fraction) and x.denominator == 1 for x in (u, v)):
        return False
    decimal, exact = (abs(_mp(x)) for x in ((u, v) if places[0] in a else (v, u)))
    gap = abs(_mp(u) - _mp(v))
    if gap <= exact * 1e-12:                               # the noise of floats
        return True
    return len(places) == 1 and gap <= exact * 1e-6 and \
        gap <= _mp(places[0]) / (2 if decimal > exact else 1)      # rounded, or cut off


# ---------------------------------------------------------------------------------- evaluation

@lru_cache(maxsize=256)
def _names(a: tuple) -> frozenset[str]:
    """All symbols, constants and functions in a tree."""
    found = {a[1]} if a[0] in ("sym", "const", "fn") else set()
    parts = a[2] if a[0] == "seq" else a[1:]
    return frozenset(found.union(*(_names(x) for x in parts if isinstance(x, tuple))))


def _symbols(a: tuple) -> frozenset[str]:
    return _names(a) - _FIXED


def _pairs(a: tuple, b: tuple) -> Iterator[tuple]:
    """The values of two expressions at the points where both have one."""
    used = _names(a) | _names(b)
    symbols = used - _FIXED
    # reals of both signs tell sqrt(x^2) from x; integers suit n! and floors; the rest is complex
    modes = ["integer"] if used & {"!", "binom", "\\lfloor", "\\lceil"} else \
        ["complex"] if "i" in used or not symbols else ["real", "complex"]
    for mode in modes:
        found = 0
        for point in range(5 if symbols else 1):
            pair = _value(a, mode, point), _value(b, mode, point)
            if None not in pair:
                found += 1
                yield pair
        if found > 1:
            return


@lru_cache(maxsize=1024)
def _value(a: tuple, mode: str, point: int):
    """The value of an expression at a fixed point; None where it has none, or no real one."""
    try:
        return _eval(a, mode, point, [MAX_WORK])
    except (_Unsupported, ArithmeticError, ValueError):
        return None


def _at(name: str, mode: str, point: int):
    """The value of a symbol: pseudo-random, fixed by its name."""
    h = zlib.crc32(f"{name} {point}".encode("utf-8", "replace"))
    if mode == "integer":                                  # n is an integer, x is not
        return Fraction(2 + h % 60) + Fraction(h % 7 + 1, 9) * (name[0] in "tuvwxyz")
    x = Fraction(h % 9973 + 500, 12_000)                   # 0.04 to 0.87, a domain for arcsin
    return _mp((x, 1 + 4 * x, -x - Fraction(1, 3), x / 2, x if h & 1 << 20 else -x)[point])


def _mp(x):
    return _MP.convert(x) if isinstance(x, Fraction) else x


def _equal(u, v) -> bool:
    if isinstance(u, Fraction) and isinstance(v, Fraction):
        return u == v
    return _negligible(_mp(u) - _mp(v), u, v)


def _negligible(x, *others) -> bool:
    """Is x but rounding error beside the others?"""
    return not x or _MP.mag(x) < max(_MP.mag(_mp(o)) for o in others) - 200


def _eval(a: tuple, mode: str, point: int, work: list[int]):
    """The value of a tree: a Fraction as long as that is exact, else an 80-digit number."""
    kind = a[0]
    args = [_eval(x, mode, point, work) for x in a[1:] if isinstance(x, tuple)]
    if kind == "num":
        value = a[1]
    elif kind == "sym":
        value = _at(a[1], mode, point)
    elif kind == "const":
        value = {"\\pi": _MP.pi, "e": _MP.e, "i": _MP.j}[a[1]] * 1 if a[1] != "\\infty" else _fail()
    elif kind in ("add", "mul"):
        value = args[0]
        for x in args[1:]:
            if isinstance(value, Fraction) != isinstance(x, Fraction):
                value, x = _mp(value), _mp(x)
            before, value = value, value * x if kind == "mul" else value + x
            if kind == "add" and not isinstance(value, Fraction) and _negligible(value, before, x):
                value = Fraction(0)                        # what cancels cancels exactly
            _charge(value, work)
    elif kind == "pow":
        value = _power(*args)
    elif kind == "fn":
        value = _call(a[1], args, mode, point)
    else:
        _fail()
    _charge(value, work, 5_000 if kind in ("pow", "fn") else 200)
    if mode == "real" and isinstance(value, _MP.mpc):
        _fail()
    return value


def _charge(value, work: list[int], inexact: int = 200) -> None:
    """Stop before the numbers grow, or the time spent on them."""
    if isinstance(value, Fraction):
        bits = value.numerator.bit_length() + value.denominator.bit_length()
    else:
        bits = inexact if _MP.isfinite(value) and abs(_MP.mag(value or 1)) < 1 << 17 else _fail()
    work[0] -= bits
    if bits > 2 * MAX_BITS or work[0] < 0:
        _fail()


def _power(a, b):
    if not a and not (isinstance(b, Fraction) and b > 0):
        _fail()
    exact = isinstance(a, Fraction)
    size = max(a.numerator.bit_length(), a.denominator.bit_length()) if exact else \
        abs(_MP.mag(a)) + 1
    if not isinstance(b, Fraction):
        return _mp(a) ** b if _MP.mag(b) < 18 and size < MAX_BITS else _fail()
    n, q = b.numerator, b.denominator
    if abs(n) * size > (MAX_BITS if exact else 1 << 17) and a not in (0, 1, -1) or abs(n) > 1 << 64:
        _fail()
    if q == 1:
        return a ** n
    if q % 2 and not isinstance(a, _MP.mpc) and a < 0:     # the real odd root
        return _power(-a, b) * (-1) ** n
    if exact and a > 0 and q < size:                       # sqrt(4) is 2 exactly
        top, bottom = _root(a.numerator, q), _root(a.denominator, q)
        if top ** q == a.numerator and bottom ** q == a.denominator:
            return Fraction(top, bottom) ** n
    return _mp(a) ** _mp(b)


def _root(n: int, q: int) -> int:
    """The q-th root of n, rounded down, by Newton's method from above."""
    y = 1 << -(-n.bit_length() // q)
    x = y + 1
    while y < x:
        x, y = y, ((q - 1) * y + n // y ** (q - 1)) // q
    return x


_KNOWN = {"sin": _MP.sin, "cos": _MP.cos, "tan": _MP.tan, "arcsin": _MP.asin, "arccos": _MP.acos,
          "arctan": _MP.atan, "sinh": _MP.sinh, "cosh": _MP.cosh, "tanh": _MP.tanh, "ln": _MP.ln,
          "exp": _MP.exp, "sec": lambda x: 1 / _MP.cos(x), "csc": lambda x: 1 / _MP.sin(x),
          "cot": lambda x: 1 / _MP.tan(x), "\\degree": lambda x: x * _MP.pi / 180, "|": abs,
          "!": math.factorial, "binom": math.comb, "\\lfloor": _MP.floor, "\\lceil": _MP.ceil}
_FIXED = {*_KNOWN, "\\pi", "e", "i", "\\infty"}


def _call(name: str, args: list, mode: str, point: int):
    x = args[0]
    if name not in _KNOWN:                                 # f(x): a value fixed by f and x
        return _at(name + _MP.nstr(_mp(x), 20), mode, point)
    if name in ("!", "binom"):
        limit = 500 if name == "!" else MAX_BITS
        if not all(isinstance(v, Fraction) and v % 1 == 0 <= v <= limit for v in args):
            _fail()
        return Fraction(_KNOWN[name](*map(int, args)))
    if name in ("\\lfloor", "\\lceil"):
        if not isinstance(x, (Fraction, _MP.mpf)) or abs(x) > 1e30:
            _fail()
        near = _MP.nint(_mp(x))                            # log_2 8 is 3, not 2.999...
        return Fraction(int(near if _equal(near, x) else _KNOWN[name](_mp(x))))
    if name == "|":
        return abs(x)
    if x and _MP.mag(_mp(x)) > (17 if name in ("exp", "sinh", "cosh", "tanh") else 60):
        _fail()
    value = _KNOWN[name](_mp(x))
    return Fraction(0) if x and _negligible(value, Fraction(1)) and _negligible(value, x) else value
