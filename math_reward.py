"""Check answers to maths problems: a reward that is exact, fast and cannot hang.

`extract_answer` finds the final answer in a response. `is_equiv` reads two answers, LaTeX or plain
text, into small trees and compares them by form: numbers to 180 digits; expressions with symbols
by their values at fixed points (Schwartz-Zippel testing); lists, intervals, matrices and equations
part by part; the rest as text. `math_reward` is both.

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

import mpmath

MAX_RESPONSE = 20_000    # characters at the end of a response in which the answer is looked for
MAX_ANSWER = 2_000       # characters of an answer that is parsed; a longer one is compared as text
MAX_TOKENS = 400         # numbers, symbols and signs in an answer
MAX_DEPTH = 25           # nesting
MAX_BITS = 600           # of a number: beyond 10^180 numbers are only equal as written
MAX_FUNCTIONS = 40       # functions, roots and powers in an answer
MAX_COMPARISONS = 2_000  # of parts, while two answers are compared

_MP = mpmath.MPContext()  # our own and never changed after these lines, hence safe in threads
_MP.dps = 600             # mpmath caches these constants, and must not extend them in a thread
_MP.ln(_MP.pi * _MP.e)
_MP.dps = 200             # 180 digits must agree, the others absorb rounding


def math_reward(response: str, gold: str, truncated: bool = False) -> bool:
    """True if the final answer in `response` is equivalent to `gold`. Raises nothing on strings.

    `gold` is an answer, or a solution that holds it in \\boxed{} or after ####.
    """
    answer = extract_answer(response)
    if re.search(r"\\(boxed|fbox)|####", gold):
        gold = extract_answer(gold) or gold
    return answer is not None and is_equiv(answer, gold)


# ---------------------------------------------------------------------------------- extraction
_GROUP = r"(?:[^{}\\]|\\.)*"
for _ in range(8):                                         # braces in braces, eight deep
    _GROUP = rf"(?:[^{{}}\\]|\\.|\{{{_GROUP}\}})*"
_BOX = re.compile(rf"\\(?:boxed|fbox)\s{{0,9}}\{{({_GROUP})\}}", re.S)
_FORMULA = re.compile(  # no closing $ before a digit: "$5 and $10" holds no formula
    r"\$\$([^$]+)\$\$|\$([^$]+)\$(?![0-9])|\\\(((?:[^\\]|\\(?![()]))*)\\\)"
    r"|\\\[((?:[^\\]|\\(?![\[\]]))*)\\\]")
_MARKER = re.compile(r"####|^A:|\b(?i:(final )?(?:answers?|ans|option))\b"
                     r"(?:\W{0,4}(?i:is|are|was)\b|\W{0,3}[:=]|(?=\W{1,3}[A-Z]\b))", re.M)
_NUMBER = re.compile(r"(?<![0-9A-Za-z_.])[-−]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
                     r"(?: ?[/:] ?[0-9]+)?(?: ?(?:[ap]\.?m\b|hundred|thousand|million|billion))?")
_CHOICE = re.compile(r"\W{0,3}(?:(?i:option|choice)\W{1,3})?"
                     r"(?:([A-Z])(?:[).:,]|\W{0,9}$)|([A-Z]) (?:because|since|as)\b)")
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:and|or|sqrt|pi|ln|log|exp|sin|cos|tan)\b)[A-Za-z]{2}")
_JOINT = re.compile(  # "\boxed{1} papers and \boxed{2}", not "\boxed{1} is out. So it is \boxed{2}"
    r"[^.:]{0,30}?(?:[,;]|\band\b|\bor\b)[\s$\\()\[\]}]*(?:q?quad\s*)?(?:\w+ ?= ?)?")


def extract_answer(response: str) -> str | None:
    """The final answer in a response, or None: extract_answer("so it is 4.") is "4".

    In this order: the last balanced \\boxed{} or \\fbox{}, unless "final answer is 5" follows it;
    what follows "####", "A:" or "the answer is"; the last formula or number; a short response as it
    stands. Boxes or formulas joined by commas or "and" are one list. Only the last 20,000
    characters count, and only those after </think>.
    """
    text = response[-MAX_RESPONSE:].rpartition("</think>")[2].strip().strip("*")
    box = (_spans(_BOX, text) or [None])[-1]
    for m in reversed([*_MARKER.finditer(text, box[1] if box else 0)]):
        rest = text[m.end():m.end() + MAX_ANSWER].lstrip(" \n\t:=*")
        if rest.strip(" .$") and (not box or m[1] and re.match(r"\$|\\[(\[]|-?[0-9]", rest)):
            formulas = _spans(_FORMULA, rest)
            if formulas and formulas[0][0] == 0:
                return formulas[0][2]
            return _from_prose(re.split(r"\n|\.\s|<\|", rest, maxsplit=1)[0].rstrip(" .*"), True)
    return box[2] if box else _from_prose(text, len(text) <= 80)


def _spans(pattern: re.Pattern, text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of all boxes or formulas; those that a comma or "and" joins as one."""
    spans = []
    for m in pattern.finditer(text):
        if not m[m.lastindex].strip():
            continue
        if not spans or not _JOINT.fullmatch(text, spans[-1][1], m.start()):
            spans.append([m.start(), 0, {}])
        spans[-1][1] = m.end()
        spans[-1][2][m[m.lastindex].strip()] = True        # a dict: each once, in order
    return [(start, end, ", ".join(contents)) for start, end, contents in spans]


def _from_prose(text: str, whole: bool) -> str | None:
    """The answer in text without a box; `whole` if, failing all else, that is the text itself."""
    formulas, choice = _spans(_FORMULA, text), _CHOICE.match(text)
    bare = re.sub(r"\\[A-Za-z]+\s?(?:\{[A-Za-z ]*\})?", "", text)       # without commands
    short = text and not formulas and "\n" not in text and not _PROSE.search(bare)
    if choice and (short or whole):
        return choice[choice.lastindex]
    numbers = _NUMBER.findall(text, formulas[-1][1] if formulas else 0)
    if short or not (numbers or formulas):
        return text if short or whole and text else None
    return numbers[-1].rstrip(",") if numbers else formulas[-1][2]


# ----------------------------------------------------------------------------------- spelling
_FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp".split())
_SPELLINGS = {alias: name for name, aliases in {
    "\\frac": r"\dfrac \tfrac \cfrac", "\\binom": r"\dbinom \tbinom", "\\frac12": "½",
    "*": r"\cdot \times \ast × ⋅ · ∗", "/": r"\div ÷", "-": "− – —", "^": "**", "^2": "²",
    "^3": "³", "\\degree": "°", "\\pi": "pi π", "\\theta": "θ", "\\sqrt": "sqrt √",
    "|": r"\lvert \rvert \vert", "(": r"\langle", ")": r"\rangle", "<": r"\lt", ">": r"\gt",
    "<=": r"\le \leq \leqslant ≤", ">=": r"\ge \geq \geqslant ≥", "!=": r"\ne \neq ≠",
    "\\approx": "≈", "\\in": "∈", "\\cup": "∪", "\\pm": "±", "\\log": r"\lg",
    "\\emptyset": r"\varnothing ∅", "\\infty": r"infinity infty inf ∞",
    ",": r"; \quad \qquad and or", **{"\\" + name: name for name in _FUNCTIONS},
}.items() for alias in aliases.split()}
_UNICODE = {ord(a): name + " " for a, name in _SPELLINGS.items() if not a.isascii()}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12}


def _inline(m: re.Match) -> str:
    """\\text{(C)} is (C) and \\text{ or } a comma; other words, and units, are one token."""
    body = m[1].strip()
    letters = len(re.findall("[A-Za-z]", body))
    # 5\mathrm{m} and \text{ m} are units, 5\mathrm{i} and \text{C} are not
    unit = body.isalpha() and (m[1][0] == " " or body not in "eid" and
                               m.string[:m.start()].rstrip()[-1:].isdigit())
    if letters < 2 and not unit or body.strip(" ,") in _FUNCTIONS | {"and", "or"}:
        return f" {body} "
    return f"\ue000{body}\ue001"


# what has one meaning gets one spelling; \ue000...\ue001 encloses words, \ue002 ends a row
_REWRITES = [(re.compile(pattern, re.A), replacement) for pattern, replacement in (
    (r"[\ue000-\ue002\u200b\u200e\u200f€£¥]", ""),
    (r"\$\s*\n\s*\$", " , "), (r"\\!\s*", ""),            # formulas on lines of their own
    (r"\\begin ?\{(?:[pb]?(?:small)?matrix|array\} ?\{[lcr| ]*)\}", r"\\mat "),
    (r"\\end ?\{(?:[pb]?(?:small)?matrix|array)\}", r"\\endmat "),
    (r"\\\\(?:\[[^\]]*\])?", "\ue002"),
    (r"(?<=\d) ?\{, ?\} ?(?=\d{3})", ""),                  # 1{,}000
    (r"\\[,;:> ]|[~\s\u00a0\u2009\u202f]+", " "),
    (r"\\mathbb ?\{R\}", r"(-\\infty,\\infty)"),
    (r"\\\{ ?[A-Za-z] ?(?:\\in[^|:{}]*)?(?:\\mid|\\vert|[|:])([^{}]*)\\\}", r"{\1}"),  # {x | x > 1}
    (r"\\\{ ?\\\}", r"\\emptyset "),
    (r"^\\(?:text|math)[a-z]*\{\(([A-E])\)\}(?=[-\\$a-z{ ]*\d)", r"\1 \\choice "),
    (r"\\(?:text(?:rm|bf|it|sf|tt|normal)?|mathrm|operatorname\*?|[mh]box) ?\{([^{}]*)\}", _inline),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?|\\?[$%]|\\[()\[\]]|m?\\angle(?!\w)|"
     r"\\(?:math(?:bf|it|sf|cal)|bm|boldsymbol|displaystyle|textstyle|boxed|fbox|triangle)(?!\w)|"
     r"^\s*(?:\\approx|[Aa]bout |[Aa]pproximately )", ""),
    (r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?!\w))", r"\\degree "),
    (r"\\prime(?!\w)", "'"), (r"\^ ?(?:\{([' ]+)\}|(?='))", r"\1"),
    (r"\ue000?(\d{1,2}) ?(:\d\d)?[ \ue000]*([apAP])\.? ?[mM]\b\.?[ \ue001]*",
     lambda m: f"\ue000{m[1]}{m[2] or ':00'}{m[3].lower()}m\ue001"),    # 4:30 p.m. is one word
    # 1,234 and 1 234 are numbers, but (1,234) is a pair
    (r"(?<![\d,.])[1-9]\d{0,2}(?:(?:,\d{3})+(?!\d|,\d)|(?: \d{3})+(?!\d))",
     lambda m: m[0] if re.search(r"[(\[]|\\\{", m.string) else re.sub("[, ]", "", m[0])),
    (r"(?<!\d)(\d*)\.(\d*) ?\\(?:overline|bar|dot) ?\{ ?(\d+) ?\}",     # 0.1\overline{6} is
     lambda m: f"({int(m[1] + m[2] + m[3]) - int('0' + m[1] + m[2])}/"   # (16-1)/90
               f"{(10 ** len(m[3]) - 1) * 10 ** len(m[2])})"),
    (r"\\[dtc]frac", r"\\frac"),
    (r"(?<=\d) (\d+) ?/ ?(\d+)(?!\d)", r"\\frac{\1}{\2}"),              # 1 1/2
    (r"(\\(?:frac|[dt]?binom)) ?(\d)", r"\1{\2}"),                      # \frac43 is 4/3
    (r"(\\(?:frac|[dt]?binom) ?\{[^{}]*\}) ?(\d)", r"\1{\2}"),
    (r"(?<![\d.^_])(\d+) ?\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}",        # 1\frac12, but not 2\frac32
     lambda m: f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else m[0]),
    (r"\\l(floor|ceil)(?!\w)", r"\\\1{"), (r"\\r(floor|ceil)(?!\w)", "}"),
    (r"\|([^|]+)\|", r"\\abs{\1}"), (r"\|([^|]+)\|", r"\\abs{\1}"),     # twice: ||x|-1|
    (r"\ue002 ?\\endmat", r"\\endmat"),
    # three letters are a word, not a product, unless something is done with them
    (r"\ue000[^\ue001]*\ue001|(?<![\w)}^\\])[A-Za-z]{3,}(?![-+*/^_(\w])|"
     r"(?<![A-Za-z\\])(?:[cmk]m|[mk]g|ft|hr|lb|oz|m[lL]|[nN]o)(?![A-Za-z])",
     lambda m: m[0] if m[0] in _SPELLINGS else f"\ue000{m[0].casefold()}\ue001"),
    (r"\ue000+", "\ue000"), (r"\ue001+", "\ue001"),
    (r"\ue001 *\ue000", " "),
    (rf"(?<=[\d}})]) ?\ue000 ?({'|'.join(_SCALES)})\b", lambda m: f"*{_SCALES[m[1]]}\ue000"),
    # words after a value are a unit, with its powers and slashes
    (r"([\d})!]\.?|\d[A-Za-z]|\\[A-Za-z]+) ?\ue000[^\ue001]*\ue001"
     r"(?: ?\^ ?(?:-?\d|\{-?\d\})| ?[/*] *(?:\ue000[^\ue001]*\ue001|[A-Za-z]\b))*", r"\1"),
)]
_TOKEN = re.compile(
    r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4}(?![0-9]))?|[fgh]\^\{-1\}(?=\()|"
    r"\\[A-Za-z]+|[A-Za-z]+|\ue000[^\ue001]*\ue001|\*\*|[<>!]=|\\[{}]|\S")


# ------------------------------------------------------------------------------------- parsing

class _Parser:
    """Recursive descent over tokens, to trees of tuples:

    ("num", Fraction, last place if written as a decimal)  ("sym", name)  ("fn", name, a, ...)
    ("add", a, b, ...)  ("mul", a, b, ...)  ("pow", a, b)  ("rel", operator, a, b)
    ("seq", brackets, items): "()" "[)" ... tuples or intervals, "{}" sets, "" bare lists,
    "cup" unions, "<<=" chains of inequalities, "mat" of "row" of cells
    """

    def __init__(self, tokens: list[str]):
        self.tokens, self.at, self.depth = [*tokens, ""], 0, 0

    @property
    def now(self) -> str:
        return self.tokens[self.at]

    def take(self, *wanted: str) -> str:
        """The next token if it is one of these, else an empty string."""
        token = self.now if self.now in wanted else ""
        self.at += bool(token)
        return token

    def answer(self) -> tuple:
        functions = sum(t in _COSTLY or t[1:] in _FUNCTIONS for t in self.tokens)
        if len(self.tokens) > MAX_TOKENS or functions > MAX_FUNCTIONS:
            _fail()
        tree = self.level(0)
        return _fail() if self.now else tree

    def level(self, n: int) -> tuple:
        """Operators of one precedence: rows, cells, lists, relations, ... sums, products."""
        if n == len(_LEVELS):
            return self.signed(self.power)
        operators, build = _LEVELS[n]
        parts, ops = [self.level(n + 1)], []
        while self.now in operators or "*" in operators and (self.factor_follows() or (
                self.now[:1].isdigit() and self.tokens[self.at - 1] in ("}", ")"))):
            ops.append(self.take(*operators))
            parts.append(self.level(n + 1))
        return build(parts, ops) if ops else parts[0]

    def factor_follows(self) -> bool:
        return self.now.isalpha() or self.now in _CLOSER or \
            self.now[:1] in ("\\", "\ue000") and self.now not in _NO_FACTOR

    def signed(self, operand) -> tuple:
        minus = False
        while sign := self.take("+", "-"):
            minus ^= sign == "-"
        return _negative(operand()) if minus else operand()

    def power(self) -> tuple:
        node = self.atom()
        while token := self.take("^", "!", "'", "\\degree", "_"):
            start = self.at
            if token == "^":
                node = _node("pow", node, self.signed(self.atom))
                if self.now == "^":                        # 2^3^4: which way?
                    _fail()
            elif token == "_":
                self.signed(self.atom)
                index = "_" + "".join(self.tokens[start:self.at]).strip("{}")
                # the base of a number is like a name: 12_5 against 12, but not 12_6
                node = ("rel", "=", ("sym", index), node) if node[0] == "num" else \
                    ("sym", node[1] + index) if node[0] == "sym" else _fail()
            else:
                node = _node("fn", token, node)
        return node

    def atom(self) -> tuple:
        token, after = self.take(self.now), self.tokens[self.at:self.at + 3]
        self.depth += 1
        if self.depth > MAX_DEPTH or not token:
            _fail()
        if token[0].isdigit() or token[0] == ".":
            node = _number(token)
        elif after[0] == "(" and (token in _CALLED or      # I(0) is not I times 0
                                  token.isalpha() and after[1].isdigit() and after[2] == ")"):
            node = ("fn", token + "()", self.atom())
        elif token in _CLOSER:
            node = self.group(token)
        elif token == "\\frac":
            node = _arithmetic([self.atom(), self.atom()], "/")
        elif token == "\\binom":
            node = _node("fn", "binom", self.atom(), self.atom())
        elif token == "\\sqrt":
            degree = self.atom() if self.now == "[" else _number("2")
            node = _node("pow", self.atom(), _arithmetic([_number("1"), degree], "/"))
        elif token[1:] in _FUNCTIONS:
            node = self.function(token[1:])
        elif token == "\\emptyset":
            node = ("seq", "{}", ())
        elif not token.isalpha() and (token[0] not in "\\\ue000" or token in _NO_FACTOR):
            _fail()
        else:                                              # \abs{a}, \vec{a}; x, \alpha
            command = token[0] == "\\" and self.now == "{"
            node = _node("fn", token, self.atom()) if command else ("sym", token)
        self.depth -= 1
        return node

    def group(self, opener: str) -> tuple:
        inner = self.level(0)
        brackets = opener + (self.take(*_CLOSER[opener]) or _fail())
        items = inner[2] if inner[:2] == ("seq", "") else (inner,)
        if opener == "\\mat":
            rows = inner[2] if inner[:2] == ("seq", "mat") else (inner,)
            rows = [r[2] if r[:2] == ("seq", "row") else (r,) for r in rows]
            if len(set(map(len, rows))) > 1:
                _fail()
            rows = [("seq", "row", r) if len(r) > 1 else r[0] for r in rows]   # a vector: (1,2)
            return ("seq", "mat" if rows[0][:2] == ("seq", "row") else "()", tuple(rows))
        if opener == "{" or len(items) == 1 and brackets in ("()", "[]"):
            return inner
        return ("seq", brackets.replace("\\", ""), items)

    def function(self, name: str) -> tuple:
        scripts = {}
        while token := self.take("^", "_"):
            scripts[token] = self.signed(self.atom)
        bracketed = self.now in _CLOSER
        arg = self.atom() if bracketed else self.power()   # sin(x)^2 is (sin x)^2
        while not bracketed and self.now not in _CLOSER and self.factor_follows() and \
                self.now[1:] not in _FUNCTIONS:            # sin 2x cos x
            arg = _node("mul", arg, self.power())
        power = scripts.get("^")
        if power == _number("-1") and name in ("sin", "cos", "tan"):
            name, power = "arc" + name, None
        node = _node("fn", "ln" if name == "log" else name, arg)
        if name == "log":                                  # without a base it is not ln
            node = _arithmetic([node, _node("fn", "ln", scripts.get("_", _number("10")))], "/")
        return _node("pow", node, power) if power else node


def _fail():
    """What is outside the grammar, over a limit, or without a value at a point ends here."""
    raise ValueError


def _number(text: str) -> tuple:
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, decimals = mantissa.partition(".")
    shift = int(exponent or 0) - len(decimals)
    if abs(shift) > MAX_ANSWER:
        _fail()
    place = Fraction(10) ** shift
    value = int(whole + decimals) * place
    return ("num", value, place if decimals and value.denominator > 1 else None)


def _node(kind: str, *parts) -> tuple:
    """A scalar, sums and products being flat; or a sum or product of matrices and vectors."""
    matrices = [p for p in parts if p[0] == "seq" and p[1] in ("mat", "row", "()")]
    if len(matrices) == len(parts) and kind == "add" and len({len(p[2]) for p in parts}) == 1:
        return (*parts[0][:2], tuple(_node("add", *cells) for cells in zip(*(p[2] for p in parts))))
    if len(matrices) == 1 and kind == "mul" and len(repr(parts)) < 2_000:
        brackets, cells = matrices[0][1:]
        factors = [p for p in parts if p is not matrices[0]]
        return ("seq", brackets, tuple(_node("mul", *factors, x) for x in cells))
    if len(matrices) == len(parts) == 2 and kind == "mul" and len(repr(parts)) < 2_000:
        (_, left, rows), (_, right, cells) = parts
        if left == "mat":
            return ("seq", right, tuple(_node("mul", row, parts[1]) for row in rows))
        if left == "row" and len(rows) == len(cells):      # times a vector, or all columns
            columns = zip(*(row[2] for row in cells)) if right == "mat" else [cells]
            dots = [_node("add", *(_node("mul", *pair) for pair in zip(rows, c))) for c in columns]
            return ("seq", "row", tuple(dots)) if right == "mat" else dots[0]
    if any(p[0] in ("seq", "rel") for p in parts):
        _fail()
    if kind in ("add", "mul"):
        parts = [x for p in parts for x in (p[1:] if p[0] == kind else (p,))]
    return (kind, *parts)


def _negative(a: tuple) -> tuple:
    return ("num", -a[1], a[2]) if a[0] == "num" else _node("mul", _number("-1"), a)


def _arithmetic(parts: list[tuple], ops: list[str]) -> tuple:
    """a + b - c or a * b / c"""
    return _node("add" if ops[0] in ("+", "-") else "mul", parts[0], *(
        _negative(part) if op == "-" else _node("pow", part, _number("-1")) if op == "/" else part
        for part, op in zip(parts[1:], ops)))


def _relation(parts: list[tuple], ops: list[str]) -> tuple:
    if set(ops) <= {"=", "\\approx"}:
        if "\\approx" in ops:                              # x = pi/2 \approx 1.57 says pi/2
            parts = parts[:max(ops.index("\\approx"), _is_name(parts[0])) + 1]
        if len(parts) == 1 or not any(map(_symbols, parts)):
            return parts[-1]                               # 1+2 = 3 says 3
        if len(parts) > 2 and all(map(_is_name, parts[:-1])) and parts[-1][0] in ("num", "sym"):
            return _list([("rel", "=", p, parts[-1]) for p in parts[:-1]])     # x = y = 1
        if _is_name(parts[-1]) and not _is_name(parts[0]):
            parts = parts[::-1]                            # 5 = x
        return ("rel", "=", parts[0], parts[-1])
    if ops[0] in ("\\in", "!=", "\\choice"):
        op = "=" if parts[1][:2] == ("seq", "{}") else ops[0]  # x in {1,2} is x = 1,2
        return ("rel", op, *parts) if len(ops) == 1 else _fail()
    if ops[0][0] == ">":
        parts, ops = parts[::-1], [op.replace(">", "<") for op in reversed(ops)]
    if not set(ops) <= {"<", "<="}:
        _fail()
    names = [i for i, part in enumerate(parts) if _symbols(part)]
    if (len(ops), *names) in ((1, 0), (1, 1), (2, 1)) and parts[names[0]][0] == "sym":
        low, (name, *high) = parts[:names[0]], parts[names[0]:]        # 1 < x <= 2 is x in (1,2]
        brackets = "(["[low != [] and ops[0] == "<="] + ")]"[high != [] and ops[-1] == "<="]
        low, high = low or [_negative(("sym", "\\infty"))], high or [("sym", "\\infty")]
        return ("rel", "\\in", name, ("seq", brackets, (*low, *high)))
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
        return a[2] == _number("-1") and _is_name(a[1])
    return a[0] == "sym" or a[0] == "fn" and (a[1][-1] == ")" or _is_name(a[2]))


def _list(items: list[tuple], _=None) -> tuple:
    """x=1, x=2 and x=1, 2 are a list named x; x=1, y=2 is (x,y) = (1,2)."""
    names, values = [], []
    for item in items:
        named = item[0] == "rel" and item[1] in ("=", "\\in") and _is_name(item[2])
        names.append(item[2] if named else names[-1] if names else None)
        values.append(item[3] if named else item)
    width = len(set(names))
    if None in names or names != names[:width] * (len(names) // width):
        return ("seq", "", tuple(items))
    name = names[0]
    if width > 1:
        name = ("seq", "()", tuple(names[:width]))
        values = [("seq", "()", tuple(values[i:i + width])) for i in range(0, len(values), width)]
    elif all(item[:2] == ("rel", "\\in") for item in items):
        return ("rel", "\\in", name, ("seq", "cup", tuple(values)))    # x<1 or x>2
    return ("rel", "=", name, ("seq", "", tuple(values)) if len(values) > 1 else values[0])


def _both(plus: tuple, minus: tuple) -> tuple:
    """The two readings of an answer with \\pm, as one list."""
    if plus[0] == "rel" and plus[:3] == minus[:3]:
        return (*plus[:3], _both(plus[3], minus[3]))
    return ("seq", "", tuple(dict.fromkeys(
        x for tree in (plus, minus) for x in (tree[2] if tree[:2] in _LISTS else (tree,)))))


_LEVELS = (
    ({"\ue002"}, lambda parts, _: ("seq", "mat", tuple(parts))),
    ({"&"}, lambda parts, _: ("seq", "row", tuple(parts))),
    ({","}, _list),
    ({"=", "\\approx", "<", ">", "<=", ">=", "!=", "\\in", "\\choice"}, _relation),
    ({":"}, lambda parts, ops: _arithmetic(parts, "/") if len(ops) == 1 else _fail()),
    ({"\\cup"}, lambda parts, _: ("seq", "cup", tuple(parts))),
    ({"+", "-"}, _arithmetic), ({"*", "/"}, _arithmetic))
_CLOSER = {"(": (")", "]"), "[": ("]", ")"), "{": ("}",), "\\{": ("\\}",),
           "\\mat": ("\\endmat",)}
_NO_FACTOR = {"\\cup", "\\in", "\\approx", "\\choice", "\\degree", "\\begin", "\\end",
              *(closer for closers in _CLOSER.values() for closer in closers)}
_LISTS = {("seq", ""), ("seq", "{}")}
_CALLED = {*"fghFGHP", "f^{-1}", "g^{-1}", "h^{-1}"}
_COSTLY = {"^", "!", "'", "\\sqrt", "\\degree", "\\binom"}


# ---------------------------------------------------------------------------------- comparison

def is_equiv(answer: str, gold: str) -> bool:
    """True if two answers mean the same. Symmetric; reflexive on every string; raises nothing."""
    if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
        return answer.strip() == gold.strip()
    (text_a, a), (text_b, b) = _read(answer), _read(gold)
    times = all(re.fullmatch("[0-9]{1,2}:[0-5][0-9]", text) for text in (text_a, text_b))
    if text_a == text_b or times or a is None or b is None:    # 2:15 and 4:30 are no ratios
        return text_a == text_b
    try:
        return _same(a, b, [MAX_COMPARISONS])
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _read(s: str) -> tuple[str, tuple | None]:
    """The text to compare, and the tree, or None if the parser cannot read the answer."""
    s = s.translate(_UNICODE)
    if "\\begin" not in s or "\\\\begin" in s:             # escaped twice: no rows of a matrix
        s = s.replace("\\\\", "\\")
    for pattern, replacement in () if s.isdecimal() else _REWRITES:    # most are plain integers
        s = pattern.sub(replacement, s)
    s = s.strip().rstrip(".").rstrip()
    text = re.sub("[\ue000\ue001]", "", re.sub("(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", s))
    if re.fullmatch("[A-Za-z ,.'-]*[a-z]{3}[A-Za-z ,.'-]*", text):
        text = text.casefold()                             # words, not symbols
    tokens = []
    for token in _TOKEN.findall(s):
        token = _SPELLINGS.get(token, token)
        if token != "," or tokens[-1:] not in ([], [","], ["{"]):    # 1, 2, and 3
            tokens += token if token.isalpha() else [token]
    tokens = tokens[:-1] if tokens[-1:] == [","] else tokens
    try:
        plus = _Parser([{"\\pm": "+", "\\mp": "-"}.get(token, token) for token in tokens]).answer()
        if not {"\\pm", "\\mp"} & {*tokens}:
            return text, plus
        minus = _Parser([{"\\pm": "-", "\\mp": "+"}.get(token, token) for token in tokens]).answer()
        return text, _both(plus, minus)
    except ValueError:
        return text, None


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
        if x[:2] == ("rel", "\\choice"):                   # \textbf{(C)} 7 against C or 7
            return _same(x[2], y, left) or _same(x[3], y, left)
        if x[0] == "rel":                                  # x = 5 against 5
            return x[1] in ("=", "\\in") and _is_name(x[2]) and _same(x[3], y, left)
    for x, y in ((a, b), (b, a)):                          # {5}, or 5 said twice, against 5
        if x[:2] in _LISTS and y[:2] not in _LISTS:
            return x[2] != () and all(_same(z, y, left) for z in x[2]) or \
                y[0] == "seq" and _same_seq(x, y, left)
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
        return a[3][1] == b[3][1] == "()" and _same_seq(*(("seq", "", p) for p in pairs), left)
    if a[1] in ("\\in", "\\choice") or {"seq", "rel"} & {x[0] for x in (*a[2:], *b[2:])} or \
            not _symbols(a) or _symbols(a) != _symbols(b):
        return False
    u, v = (_arithmetic(r[2:], "-") for r in (a, b))              # equations: equal up to a factor
    ratios = [x / y if x and y else None for x, y in _values(u, v)]
    return len(ratios) > 1 and None not in ratios and \
        all(_close(ratio, ratios[0]) for ratio in ratios) and \
        (a[1] in ("=", "!=") or isinstance(ratios[0], _MP.mpf) and ratios[0] > 0)


def _same_seq(a: tuple, b: tuple, left: list[int]) -> bool:
    kinds = {a[1], b[1]}
    if kinds <= {"", "{}"} or kinds == {"cup"}:            # has each its partner, in any order?
        # a point listed twice is one point, but two equal numbers may be two quantities
        items, rest = ([*dict.fromkeys(s[2])] if all(x[0] == "seq" for x in s[2]) else [*s[2]]
                       for s in (a, b))
        for x in items:
            partner = next((i for i, y in enumerate(rest) if _same(x, y, left)), None)
            if partner is None:
                return False
            del rest[partner]
        return not rest
    return (len(kinds) == 1 or kinds == {"", "()"}) and len(a[2]) == len(b[2]) and \
        all(_same(x, y, left) for x, y in zip(a[2], b[2]))


def _same_value(a: tuple, b: tuple) -> bool:
    """Scalars; 0.33333333 against 1/3: right in every place written and to 1e-6, no integer."""
    found, symbols = 0, _symbols(a) or _symbols(b)
    places = [x[2] for x in (a, b) if x[0] == "num" and x[2]]
    for u, v in _values(a, b):
        found += 1
        if not _close(u, v):
            if symbols or not places or any(_close(x, _MP.nint(x)) for x in (u, v)):
                return False
            decimal, exact = (abs(x) for x in ((u, v) if places[0] in a else (v, u)))
            gap, place = abs(u - v), _MP.convert(places[0])
            return gap <= exact * 1e-12 or (               # the noise of floats; rounded; cut off
                len(places) == 1 and gap <= exact * 1e-6 and
                gap <= (place / 2 if decimal > exact else place))
    return found > (1 if symbols else 0)


# ---------------------------------------------------------------------------------- evaluation
_CONSTANTS = {"\\pi": +_MP.pi, "e": +_MP.e, "i": _MP.j}
_KNOWN = {"sin": _MP.sin, "cos": _MP.cos, "tan": _MP.tan, "arcsin": _MP.asin, "arccos": _MP.acos,
          "arctan": _MP.atan, "sinh": _MP.sinh, "cosh": _MP.cosh, "tanh": _MP.tanh, "ln": _MP.ln,
          "exp": _MP.exp, "sec": _MP.sec, "csc": _MP.csc, "cot": _MP.cot, "\\abs": abs,
          "\\degree": lambda x: x * _MP.pi / 180, "!": math.factorial,
          "binom": math.comb}
_FIXED = {*_KNOWN, *_CONSTANTS, "\\infty"}


@lru_cache(maxsize=256)
def _names(a: tuple) -> frozenset[str]:
    """All symbols, constants and functions in a tree."""
    parts = a[2] if a[0] == "seq" else a[1:]
    return frozenset({a[1]} if a[0] in ("sym", "fn") else ()).union(
        *(_names(x) for x in parts if isinstance(x, tuple)))


def _symbols(a: tuple) -> frozenset[str]:
    return _names(a) - _FIXED


def _values(a: tuple, b: tuple):
    """The pairs of values of two expressions, at the points where both have one."""
    used = _names(a) | _names(b)
    symbols = used - _FIXED
    # reals of both signs tell sqrt(x^2) from x; n! needs integers; the rest is complex
    modes = ["integer"] if used & {"!", "binom"} else \
        ["complex"] if "i" in used or not symbols else ["real", "complex"]
    found = 0
    for mode in modes:
        for point in range(5 if symbols else 1) if found < 2 else ():
            pair = _evaluate(a, mode, point), _evaluate(b, mode, point)
            if None not in pair:
                found += 1
                yield pair


def _at(name: str, mode: str, point: int):
    """The value of a symbol: a constant's own, else pseudo-random and fixed by the name."""
    if name in _FIXED:
        return _CONSTANTS[name] if name in _CONSTANTS else _fail()
    h = zlib.crc32(f"{name} {point}".encode("utf-8", "replace"))
    if mode == "integer":
        return _MP.mpf(2 + h % 60)
    x = _MP.mpf(h % 9973 + 500) / 12_000                   # 0.04 to 0.87, a domain for arcsin
    return (x, 1 + 4 * x, -1 - x, 3 + 20 * x, x if h & 1 << 20 else -x)[point]


def _close(u, v, *others) -> bool:
    """Is the difference but rounding error beside u, v and the others?"""
    return u == v or _MP.mag(u - v) < max(map(_MP.mag, (u, v, *others))) - MAX_BITS


@lru_cache(maxsize=4096)
def _evaluate(a: tuple, mode: str, point: int):
    """The value of an expression at a fixed point; None where it has none, or no real one."""
    kind = a[0]
    args = [_evaluate(x, mode, point) for x in a[1:] if isinstance(x, tuple) and kind != "seq"]
    if kind in ("seq", "rel") or None in args:
        return None
    try:
        if kind == "num":
            value = _MP.convert(a[1])
        elif kind == "sym":
            value = _at(a[1], mode, point)
        elif kind == "add":
            value = _MP.fsum(args)
            value = _MP.zero if _close(value, _MP.zero, *args) else value      # what cancels is 0
        elif kind == "mul":
            value = _MP.fprod(args)
        else:
            value = _power(*args) if kind == "pow" else _call(a[1], args, mode, point)
    except (ArithmeticError, ValueError):
        return None
    large = not _MP.isfinite(value) or value and abs(_MP.mag(value)) > MAX_BITS
    return None if large or mode == "real" and isinstance(value, _MP.mpc) else value


def _power(a, b):
    if not a:
        return a if isinstance(b, _MP.mpf) and b > 0 else _fail()
    if _MP.mag(b) > 17:
        _fail()
    for q in (1, 3, 5, 7):                                 # the real odd root
        if isinstance(a, _MP.mpf) and isinstance(b, _MP.mpf) and a < 0 and \
                _close(b * q, _MP.nint(b * q)):
            return (-a) ** b * (-1) ** int(_MP.nint(b * q))
    return a ** b


def _call(name: str, args: list, mode: str, point: int):
    x = args[0]
    if name not in _KNOWN:                                 # f(x): a value fixed by f and x
        return _at(name + _MP.nstr(x, 20), mode, point)
    if name in ("!", "binom"):
        whole = [int(_MP.nint(x.real)) for x in args]
        if not all(_close(n, x) and 0 <= n < 200 for n, x in zip(whole, args)):
            _fail()
        return _MP.mpf(_KNOWN[name](*whole))
    if x and _MP.mag(x) > (17 if name in ("exp", "sinh", "cosh", "tanh") else 60):
        _fail()
    value = _KNOWN[name](x)                                # sin(pi) is 0, not 1e-200
    noise = name != "exp" and all(_close(value + y, y) for y in (_MP.one, x))
    return _MP.zero if noise else value
