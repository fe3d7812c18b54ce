"""Check answers to maths problems: a reward that is exact, fast and cannot hang.

`extract_answer` finds the final answer in a response, `is_equiv` compares two answers, LaTeX or
plain text; `math_reward` is both. Equal are numbers, to 180 digits, and a long decimal to what it
is rounded from; expressions with equal values at fixed points (Schwartz-Zippel testing); lists,
sets, tuples, intervals, matrices, equations and inequalities, part by part; words as written. A
unit, a name ("x =") or a choice ("(B) 17") may be on one side only. Never equal are a part of an
answer and the whole; a hedge ("16 or 17", "not 17", "17 or more") and a value; different units;
sums, integrals, derivatives and all that is not known, unless written alike. In doubt the verdict
is False: a wrong True teaches a model a wrong answer.

Nothing here can run long: length, nesting, digits and exponents are limited before any number is
built, so there is no timer, no signal, no subprocess. All functions are pure; the only state is
bounded caches, so threads and processes are safe. Needs mpmath, which comes with sympy.
"""
from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterator
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

    `gold` is an answer, or a solution that holds it in \\boxed{} or after ####; `truncated` says
    that the response was cut off. math_reward("so it is 0.5.", "\\\\frac12") is True.
    """
    answer = extract_answer(response, truncated)
    if answer is None:
        return False
    if re.search(r"\\(boxed|fbox)|####", gold):
        gold = extract_answer(gold) or gold
    if re.fullmatch("[A-J]", gold.strip()) and re.fullmatch(r"\(?[a-j]\)?", answer):
        answer = answer.upper()                            # "Answer: d" to a multiple choice
    return is_equiv(answer, gold)


# --------------------------------------------------------------------------------------- words
_FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp".split())
_OF_NUMBERS = {"\\max", "\\min", "\\gcd", "\\lcm", "\\floor", "\\ceil"}
_GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ",  # the others look like Latin letters
                  "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho "
                  "sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi "
                  "Psi Omega".split()))
_SPELLINGS = {alias: name for name, aliases in {
    "*": r"\cdot \times \ast × ⋅ · ∗", "/": r"\div ÷", "-": "− – —", "^": "**", "'": r"\prime",
    "(": r"\langle", ")": r"\rangle", "<": r"\lt", ">": r"\gt",
    "<=": r"\le \leq \leqslant ≤", ">=": r"\ge \geq \geqslant ≥", "!=": r"\ne \neq ≠",
    ",": r"; \quad \qquad", "\\degree": "°", "\\pi": "pi", "\\sqrt": "sqrt √", "\\log": r"\lg",
    "\\approx": "≈", "\\in": "∈", "\\cup": "∪", "\\pm": "±", "\\emptyset": r"\varnothing ∅",
    "\\infty": r"infinity infty inf ∞", "\\epsilon": r"\varepsilon", "\\phi": r"\varphi",
    **{"\\" + name: name for name in _FUNCTIONS | {"max", "min", "gcd", "lcm"}},
}.items() for alias in aliases.split()}
_UNICODE = {ord(alias): name + " " for alias, name in _SPELLINGS.items() if not alias.isascii()}
_UNICODE |= {ord(letter): f"\\{name} " for letter, name in _GREEK.items()}
_UNICODE |= {ord(c): f"^{{{digit}}}" for c, digit in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")}
_UNICODE |= {ord(c): f"\\frac{{{ratio[0]}}}{{{ratio[1]}}}" for c, ratio in zip(
    "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "14 12 34 13 23 15 25 35 45 16 56 18 38 58 78".split())}
_UNICODE |= {code: code - 0xfee0 for code in range(0xff01, 0xff5f)}    # of full width

_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
           "trillion": 10**12, "dozen": 12}
_MEASURES = {name: names.split()[0] for names in re.split("[;\n]", """
    millimeter millimetre mm; centimeter centimetre cm; meter metre m; kilometer kilometre km
    inch in inche; foot ft feet; yard; mile mi; milligram mg; gram g; kilogram kg; pound lb
    ounce oz; ton; milliliter millilitre ml; liter litre l; gallon; second s sec; minute min
    hour h hr; day; week; month; year; dollar; cent; euro; rupee; percent percentage pct; degree
    radian; newton n; joule j; watt w; volt v; unit""") for name in names.split()}
_MEASURES |= {"mph": "mile / hour", "kph": "kilometer / hour"}
_LONG_MEASURES = "|".join(name for name in _MEASURES if len(name) > 2)
_FRACTION = (r"(?:half|halves|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|"
             r"\w*teenth|\w*tieth|\w*hundredth|\w*thousandth|\w+illionth)s?")
_NOUN = re.compile(r"\w{2,}s|people|children|teeth|mice|geese|sheep|dice|\w*men|\w*fish|\w+ese")
_NO_UNIT = re.compile(
    r"this|thus|perhaps|always|sometimes|yes|does|has|its|as|is|was|plus|minus|versus|others?|less|"
    r"unless|are|were|not?|never|if|but|when|where|while|than|because|since|otherwise|except|else|"
    r"more|fewer|least|most|maybe|possibly|probably|likely|either|neither|nor|both|wrong|incorrect|"
    r"mod|modulo|choose|divided|multiplied|over|under|above|below|by|factorial|roots?|power|guess|"
    rf"{'|'.join(scale + 's' for scale in _SCALES)}|ones|tens|{_FRACTION}")


# ---------------------------------------------------------------------------------- extraction
_GROUP = r"(?:[^{}\\]|\\.)*"
for _ in range(8):                                         # braces in braces, eight deep
    _GROUP = rf"(?:[^{{}}\\]|\\.|\{{{_GROUP}\}})*"
_BOX = re.compile(rf"\\(?:boxed|fbox)\s{{0,9}}\{{({_GROUP})\}}", re.S)
_JOINT = re.compile(  # "\boxed{1} papers and \boxed{2}", not "\boxed{1} is out. So it is \boxed{2}"
    r"[^.:]{0,30}?(?:[,;]|\band\b|\bor\b)[\s$\\()\[\]}]*(?:q?quad\s*)?(?:\w+ ?= ?)?")
_MARKER = re.compile(
    r"####|^A:|\*\*(?=\(?[A-J]\)?\.?\*\*)|(?i:\b(?:pick|choose|select)\b)(?=\W{1,3}[A-J]\b)|"
    r"(?i:\b(final )?(?:answers?|ans|option|choice|antwort|respuesta|r[ée]ponse|risposta|resposta|"
    r"ответ|الجواب|الإجابة)\b)(?:\W{0,4}(?i:is|are|was|ist|es|est|è|é|هو|هي)\b|\W{0,3}[:=：]|"
    r"(?=\W{1,3}[A-Z]\b))|(?:答案|答え|정답)\s?(?:是|为|為|は|은)?\s?[:：]?", re.M)
_CHOICE = re.compile(
    r"\W{0,3}(?:(?i:option|choice)\W{1,3})?([A-Z])"
    r"(?:[).:,*]|\W{0,9}$| ?[—–]| (?:because|since|as)\b)(?!\W{0,9}(?:(?:and|or)\W{1,9})?[A-J]\b)")

# an expression in prose: formulas, and those of the pieces between blanks that are mathematics
_FORMULA = (r"\$\$[^$]+\$\$|\$[^$]+\$(?![0-9])"            # "$5 and $10" holds no formula
            r"|\\\((?:[^\\]|\\(?![()]))*\\\)|\\\[(?:[^\\]|\\(?![\[\]]))*\\\]")
_TUPLE = r"[(\[](?:(?![A-Za-z]{2})[^()\[\]$\n]){1,80}[)\]]"
_PIECE = rf"(?:{_TUPLE}|\{{(?:[^{{}}\n]|\{{[^{{}}\n]*\}})*\}}|[^\s$])*(?<![.,;:?*\"”。、])"
_ATOM = (rf"(?:{_FORMULA}|{_TUPLE}{_PIECE}|[A-Za-z](?=\(){_PIECE}"
         rf"|(?:sqrt|sin|cos|tan|log|ln|exp)\b{_PIECE}"
         r"|(?i:minus|negative|plus|times|squared|cubed|pi)\b|[B-HJ-Zb-zα-ω](?![^\s.,;:?*)])"
         r"|A(?=,? (?:and |or )?[B-J]\b)|[A-Za-z]+(?=\s[=+*/^<>×])"
         r"|(?<=[=+*/<>×]\s)[A-Za-z]+(?![A-Za-z])"
         r"|(?!\d+(?:st|nd|rd|th)\b|\d+-[A-Za-z]{2}|[A-Za-z]+(?:[-/'’][A-Za-z]+)+[.,;:?)]*(?!\S))"
         rf"(?=\S{{0,30}}?[\d=+*/<>^_\\√π∞≤≥≠±×÷°%&∪−|-]){_PIECE})")
_UNITS = (rf"(?: (?:(?:{_LONG_MEASURES}|cm)(?:e?s)?|km|kg|ft|per|square|cubic|[ap]\.?m|"
          rf"{'|'.join(_SCALES)})\b)*")
_EXPRESSION = re.compile(
    rf"(?<![^\s(\"$。：\u3040-\uffef]){_ATOM}{_UNITS}"
    rf"(?: ?[,;]? ?(?:\b(?:and|or)\b ?)?{_ATOM}{_UNITS})*")
_BINDING = re.compile(  # words between two values that make them one answer
    r"(?i)(?:is )?(?:out of|(?:\w+ )?of|to|through|by|in|over|mod|modulo|choose|per|"
    r"(?:divided|multiplied) by)")
_DOUBT_BEFORE = re.compile(
    r"(?i)\b(?:not|never|cannot|maybe|perhaps|possibly|neither|nor)\b|n[’']t\b"
    r"|\b(?:could|might|may) (?:also )?be\b|\b(?:least|most|than|or|between|over|under|above|below|"
    r"up to|to the|otherwise|else|half|twice|double|triple|(?:root|power|exponent)(?: of)?|(?:half|"
    r"third|quarter|square|cube|logarithm|factorial|reciprocal|inverse|sine|cosine|tangent) of)"
    r"(?: the| an?| about)?$")
_DOUBT_AFTER = re.compile(
    r"(?i)(?:[\w-]+ ){0,2}(?:or|nor|if|when|unless|otherwise|maybe|perhaps|possibly|"
    rf"and (?:maybe|perhaps|possibly|an? {_FRACTION}|an? quarter))\b|{_FRACTION}\b|factorial\b"
    r"|(?:is|was|are|seems|looks) (?:too|not|wrong|incorrect|false|impossible)\b|\w+n[’']t\b"
    r"|[^.!\n]*\?")


def extract_answer(response: str, truncated: bool = False) -> str | None:
    """The final answer in a response, or None: extract_answer("so it is 4.") is "4".

    In this order: what is between <answer> and </answer>; the last balanced \\boxed{} or \\fbox{},
    unless "final answer is 5" follows it; what follows "####", "A:" or "the answer is"; the last
    expression; a short text as it stands. Expressions joined by commas or "and" are one list; a
    hedge, a denial or a part of an expression is no answer. If the response was cut off
    (`truncated`), only a complete box, or a "final answer is" that something follows, counts. Only
    the last 20,000 characters are read, and only those after </think>.
    """
    text = response[-MAX_RESPONSE:].rpartition("</think>")[2].strip()
    tagged, closed, _ = text.rpartition("</answer>")
    if closed and "<answer>" in tagged:
        text = tagged.rpartition("<answer>")[2].strip()
        return extract_answer(text) or text
    end, contents = 0, {}
    for m in _BOX.finditer(text):
        if m[1].strip():
            if not _JOINT.fullmatch(text, end, m.start()):
                contents = {}
            contents[m[1].strip()] = True                  # a dict: each once, in order
            end = m.end()
    for m in reversed([*_MARKER.finditer(text, end)]):
        rest = text[m.end():m.end() + MAX_ANSWER].lstrip(" \n\t:：=*\"'")
        if '"' in m[0]:                                    # {"answer": "42"}
            rest = rest.partition('"')[0].rstrip("} \n")
        complete = m[1] and re.match(r"[^\n]*?(?:\.\s|\n)|\$[^$]+\$", rest)
        overrules = m[1] and re.match(r"\$|\\[(\[]|-?[0-9]", rest) or \
            m[0][0] in "*Aa" and _CHOICE.match(rest)
        if not rest.strip(" .$") or end and not overrules or truncated and not complete:
            continue
        if re.search(r"(?i)(?:\bnot|n[’']t) (?:think|believe)\b[^.\n]*$", text[:m.start()][-60:]):
            return None
        return _from_prose(rest, announced=True)
    if end or truncated:
        return ", ".join(contents) or None
    return _from_prose(text, announced=False)


def _from_prose(text: str, announced: bool) -> str | None:
    """The answer at the beginning of a text that follows "the answer is", or at the end of one."""
    if text.isdecimal():                                   # most are plain integers
        return text
    text = re.sub(r"[ \t]+", " ", re.sub(r"(?<!\w)\*\*+|\*\*+(?!\w)", "", text))     # **12**
    end = len(text)
    if announced:                                          # one sentence
        end = re.search(r"\n|<\||(?<!\.m)[.!?](?=\s|$)", text + "\n").start()
    choice = _CHOICE.match(text, 0, end)
    if choice and (announced or end <= 80):
        return choice[1]
    found = [*_EXPRESSION.finditer(text)]
    if announced and found and found[0].start() == 0:
        return _unless_doubtful(text, found, 0)
    for i in reversed(range(len(found))):                  # "I get 5 for x" is 5
        if found[i].start() < end and (re.search(r"\d|\\|=", found[i][0]) or i == 0):
            return _unless_doubtful(text, found, i)
    if announced or end <= 80:
        return text[:end].strip(" .*") or None
    return None


def _unless_doubtful(text: str, found: list[re.Match], i: int) -> str | None:
    """The i-th expression, or None if the words beside it deny, hedge or bind it."""
    spans = [(0, 0), *(m.span() for m in found), (len(text), 0)]
    before = text[spans[i][1]:spans[i + 1][0]].strip()
    after = text[spans[i + 1][1]:spans[i + 2][0]].strip(" ,(")
    if i and _BINDING.fullmatch(before) or found[i + 1:] and _BINDING.fullmatch(after):
        return None
    if _DOUBT_BEFORE.search(re.split(r"[.,;:!?\n]", before)[-1]) or _DOUBT_AFTER.match(after):
        return None
    answer = found[i][0]
    if answer != text:                                     # "5 m" in prose
        answer = re.sub(r"^([\d.,]+) ?([mgsL])([²³]?)$", r"\1 \\text{ \2}\3", answer)
    return re.sub(r"\$+|\\[()\[\]]", "", answer).strip("*= \n")


# ---------------------------------------------------------------------------------------- tokens

def _quoted(m: re.Match) -> str:
    """\\text{ 5 red apples} is 5 "red" "apples"; \\text{C} is the symbol C; \\text{ or } is or."""
    word, body = m[0].casefold(), m["body"]
    if body is None:
        if word in _SPELLINGS and word not in _MEASURES or word in ("and", "or"):
            return f" {word} "
        return word if word[0] == '"' else f'"{word}"'
    before = m.string[max(0, m.start() - 9):m.start()]
    if len(re.findall("[A-Za-z]", body)) == 1:             # 5\text{m} and m/\text{s} are units,
        unit = body[0] == " " and before or re.search(r"\} ?(?:/|\\cdot) ?$", before) or \
            re.search(r"\d ?$", before) and body not in "eid"         # 5\text{i} is not
        if not unit:
            return f" {body} "
    return _BARE_WORD.sub(_quoted, body.strip())


_BARE_WORD = re.compile(r"(?P<body>(?!))|(?<![\\A-Za-z])[A-Za-z](?:[A-Za-z'’-]*[A-Za-z])?")
_QUOTED = r'"[^"]*"'
_REWRITES = [(re.compile(pattern, re.A), replacement) for pattern, replacement in (
    # what says nothing
    (r"[\"\u200b-\u200f\u202a-\u202e]|\\!\s*", ""), (r"\$\s*\n\s*\$", " , "),
    (r"\\\$ ?(\d[\d.,]*) ?$", r'\1 "dollars"'),
    (r"(?<!\\)\\[,;:> ]|~|\s+", " "), (r"([ap])\. ?m\b\.?", r"\1m"),
    (r"(?:\\?[$₹€£¥₽₩])|\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?|\\[()\[\]]|"
     r"\\(?:text)?color ?\{[^{}]*\}|m?\\angle(?!\w)|"
     r"\\(?:math(?:bf|it|sf|cal|scr)|bm|bf|it|rm|boldsymbol|displaystyle|textstyle|boxed|fbox|"
     r"triangle|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![A-Za-z])", ""),
    # structure
    (r"\\begin ?\{(?:[pb]?(?:small)?matrix|array\} ?\{[lcr| ]*)\}", r"\\mat "),
    (r"(?:\\\\ ?)?\\end ?\{(?:[pb]?(?:small)?matrix|array)\}", r"\\endmat "),
    (r"\\\} ?(?:\\cup|∪) ?\\\{", ","), (r"\\\{ ?\\\}", r"\\emptyset "),
    (r"\\mathbb ?\{?R\}?", r"(-\\infty,\\infty)"),
    (r"\\\{ ?[A-Za-z] ?(?:\\in[^|:{}]*)?(?:\\mid|\\vert|[|:])([^{}]*)\\\}", r"{\1}"),  # {x | x > 1}
    (r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))", r"\\degree "),
    (r"\^ ?(?:\{((?:[' ]|\\prime)+)\}|(?='|\\prime))", r"\1"), (r"(\^\{[-\d]+)\}\^\{(?=\d)", r"\1"),
    (r"\\l(floor|ceil)(?!\w)", r"\\\1{"), (r"\\r(floor|ceil)(?!\w)", "}"),
    (r"\\[lr]?vert(?!\w)", "|"), (r"\|([^|]+)\|", r"\\abs{\1}"),
    (r"\|([^|]+)\|", r"\\abs{\1}"),                       # twice: ||x|-1|
    # words; three letters are one, not a product, unless something is done with them
    (r"\\(?:text(?:rm|bf|it|sf|tt|up|normal)?|mathrm|operatorname\*?|[mh]box) ?"
     r"\{(?P<body>[^{}]*)\}", _quoted),
    (rf"{_QUOTED}(?P<body>(?!))?|(?<![\w)}}^\\])[A-Za-z]{{3,}}(?![-+*/^_(\w])|(?<![A-Za-z\\])(?:"
     rf"[cmk]m|[mk]g|ft|hr|lb|oz|m[lL]|[nN]o|(?<=\d )[apAP][mM]|"
     rf"(?:{_LONG_MEASURES})s?)(?![A-Za-z])", _quoted),
    (r"(?:\\?%)", '"percent"'),
    (r'"(?:minus|negative)" ?(?=[\d\\(.])', "-"), (r'"plus" ?(?=[\d\\(.])', "+"),
    (r'"times" ?(?=[\d\\(.])|(?<=\d) ?[xX] ?(?=\d)', "*"),
    (r'(?<=[\d)}"]) ?"squared"', "^2"), (r'(?<=[\d)}"]) ?"cubed"', "^3"),
    (r'"(?:square|sq)" ("\w+")', r"\1^2"), (r'"cubic" ("\w+")', r"\1^3"), (r'"per"', "/"),
    (r'(\d{1,2}(?::(?!00)\d\d)?)(?::00)? ?"([ap]m)"', r'"\1\2"'),       # 4:30 p.m. is a word
    (rf'([\d)}}] ?)"({"|".join(_SCALES)})"', lambda m: f"{m[1]}*{_SCALES[m[2]]}"),
    (r'^ ?(?:\\approx|"about"|"approximately"|(?:"the" )?(?:"final" )?"answer"(?: "is")?) ?:?(?=.)',
     ""),
    (r"^ *(?:\( ?([A-J]) ?\)|([A-J])(?: ?\)|[:.] )) *(?=[-\d\"]|\\(?:frac|sqrt|pi))",
     r"\1\2 \\choice "),
    # fractions and numbers
    (r"\\[dtc](frac|binom)", r"\\\1"),
    (r"\\frac ?\{ ?d ?([A-Za-z]?) ?\} ?\{ ?d ?([A-Za-z]) ?\}", r"\\d\1d\2 "),    # dx/dy is none
    (r"(?<=\d) (\d+) ?/ ?(\d+)(?!\d)", r"\\frac{\1}{\2}"),
    (r"\\(frac|binom) ?(\d)", r"\\\1{\2}"), (r"(\\(?:frac|binom) ?\{[^{}]*\}) ?(\d)", r"\1{\2}"),
    (r"(?<!\d)(\d*)\.(\d*) ?\\(?:overline|bar|dot) ?\{ ?(\d+) ?\}",     # 0.1\overline{6} is
     lambda m: f"({int(m[1] + m[2] + m[3]) - int('0' + m[1] + m[2])}/"   # (16-1)/90
               f"{(10 ** len(m[3]) - 1) * 10 ** len(m[2])})"),
    (r"(?<![\d.^_])(\d+) ?\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}",        # 1\frac12, not 2\frac32
     lambda m: f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else m[0]),
    (r"^(\d+) ?_ ?\{? ?(\d+) ?\}?$", r'"base \2"=\1'),     # like a name: 12_5 is 12, but not 12_6
    (r"(?<=\d) ?\{, ?\} ?(?=\d{3})", ","), (r"[\s.\\]+$", ""),     # 1{,}000
)]
_GROUPED = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:(?:,\d{3})+(?!\d|,\d)|(?: \d{3})+(?!\d))")
_TOKEN = re.compile(  # words with their powers and slashes; numbers, names, signs
    rf"{_QUOTED}(?: ?{_QUOTED}| ?\^ ?(?:-?\d|\{{-?\d\}})| ?(?:/|\*|\\cdot) ?{_QUOTED})*|"
    r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,4}(?!\d))?|[fgh]\^\{-1\}(?=\()|"
    r"(?:[A-Za-z]|\\(?:" + "|".join(_GREEK.values()) + r")) ?_ ?(?:\{[^{}]*\}|\w|\\[A-Za-z]+)|"
    r"\\[A-Za-z]+|[A-Za-z]+|\*\*|[<>!]=|\\[{}\\]|\S", re.A)
_JOINTS = {",", "and", "or"}


def _tokens(s: str, split: bool) -> list[str]:
    """The tokens of an answer; words, '"square cm^2', begin with a quotation mark.

    1,234 and 1 234 are numbers, but (1,234) is a pair, and so is 1,234 where `split` is asked for.
    """
    s = s.translate(_UNICODE).strip(" $")
    if "\\begin" not in s or "\\\\begin" in s:             # escaped twice: no rows of a matrix
        s = re.sub(r"\\\\(?=[A-Za-z{}])", r"\\", s)
    words = re.sub(r"\b(?:and|or)\b", "", s)
    if re.fullmatch("(?![A-J][.] )[A-Za-z ,.'-]*[a-z]{3}[A-Za-z ,.'-]*", words):
        s = rf"\text{{{s}}}"
    for pattern, replacement in _REWRITES:
        if "\\" in s or pattern.pattern[:2] != r"\\":     # most answers hold no commands
            s = pattern.sub(replacement, s)
    if not split and not re.search(r"[(\[]|\\\{", s):
        s = _GROUPED.sub(lambda m: re.sub("[, ]", "", m[0]), s)
    tokens = []
    for token in _TOKEN.findall(s):
        token = _SPELLINGS.get(token, token)
        last = tokens[-1] if tokens else ","
        if token in _JOINTS and last in (*_JOINTS, "{"):   # "1, 2, and 3"
            if tokens and token != ",":
                tokens[-1] = token
        elif token[0] == '"':
            tokens.append('"' + re.sub('["\\s]+', " ", token).strip())
        elif token.isalpha() and token not in _JOINTS:
            tokens += token
        elif "_" in token:                                 # x_{1} is the symbol x_1
            tokens.append(re.sub(r"[{} ]", "", token))
        elif token != "." or last[0] != '"':
            tokens.append(token)
    return tokens[:-1] if tokens[-1:] and tokens[-1] in _JOINTS else tokens


# ------------------------------------------------------------------------------------- parsing

class _Parser:
    """Recursive descent over tokens, to trees of tuples:

    ("num", Fraction, last place if written as a decimal)  ("sym", name)  ("fn", name, a, ...)
    ("add", a, b, ...)  ("mul", a, b, ...)  ("pow", a, b)  ("rel", operator, a, b)
    ("unit", a, "meter / second")  ("seq", brackets, items): "()" "[)" ... tuples or
    intervals, "{}" sets, "" bare lists, "cup" unions, "<<=" chains of inequalities, "mat" of "row"
    """

    def __init__(self, tokens: list[str]):
        self.tokens, self.at, self.depth = [*tokens, "", "", ""], 0, 0

    @property
    def now(self) -> str:
        return self.tokens[self.at]

    def take(self, *wanted: str) -> str:
        """The next token if it is one of these, else an empty string."""
        token = self.now if self.now in wanted else ""
        self.at += token != ""
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
            node = self.signed(self.power)
            if self.now[:1] == '"' and node[0] not in ("seq", "rel") and not str(node[1]).isalpha():
                return ("unit", node, _unit(self.take(self.now), single=node[1] == 1))
            return node
        operators, build = _LEVELS[n]
        parts, ops = [self.level(n + 1)], []
        while self.now in operators or "*" in operators and self.factor_follows():
            ops.append(self.take(*operators))
            parts.append(self.level(n + 1))
        return build(parts, ops) if ops else parts[0]

    def factor_follows(self) -> bool:
        if self.now[:1].isdigit():
            return self.tokens[self.at - 1] in ("}", ")")
        return (self.now.isalpha() or self.now[1:2] == "_") and self.now not in _JOINTS or \
            self.now in _CLOSER or self.now[:1] == "\\" and self.now not in _NO_FACTOR

    def signed(self, operand: Callable[[], tuple]) -> tuple:
        minus = False
        while sign := self.take("+", "-"):
            minus ^= sign == "-"
        return _negative(operand()) if minus else operand()

    def power(self) -> tuple:
        node = self.atom()
        while token := self.take("^", "!", "'", "\\degree"):
            if token == "^":
                node = _node("pow", node, self.signed(self.atom))
                if self.now == "^":                        # 2^3^4: which way?
                    _fail()
            else:
                node = _node("fn", token, node)
        return node

    def atom(self) -> tuple:
        self.depth += 1
        if self.depth > MAX_DEPTH or not self.now:
            _fail()
        node = self.bare_atom(self.take(self.now))
        self.depth -= 1
        return node

    def bare_atom(self, token: str) -> tuple:
        after, then, last = self.tokens[self.at:self.at + 3]
        if token[0].isdigit() or token[0] == ".":
            return _number(token)
        if after == "(" and (token in _CALLED or           # I(0) is not I times 0
                             token.isalpha() and then.isdigit() and last == ")"):
            return ("fn", token + "()", self.atom())
        if token in _CLOSER:
            return self.group(token)
        if token == "\\frac":
            return _arithmetic([self.atom(), self.atom()], ["/"])
        if token == "\\binom":
            return _node("fn", "binom", self.atom(), self.atom())
        if token == "\\sqrt":
            degree = self.atom() if after == "[" else _number("2")
            return _node("pow", self.atom(), _arithmetic([_number("1"), degree], ["/"]))
        if token[1:] in _FUNCTIONS:
            return self.function(token[1:])
        if token in _OF_NUMBERS:
            argument = self.atom()
            return _of_numbers(token, argument[2] if argument[0] == "seq" else (argument,))
        if token == "\\emptyset":
            return ("seq", "{}", ())
        if token in _ACCENTS and after == "{":
            return _node("fn", token, self.atom())
        if token.isalpha() or token[0] == '"' or token in _SYMBOLS or "_" in token:
            return ("sym", token)
        return _fail()                                     # \sum, \int, \mid are no symbols

    def group(self, opener: str) -> tuple:
        inner = self.level(0)
        brackets = opener + (self.take(*_CLOSER[opener]) or _fail())
        if opener == "\\mat":
            rows = inner[2] if inner[:2] == ("seq", "mat") else (inner,)
            rows = [r if r[:2] == ("seq", "row") else ("seq", "row", (r,)) for r in rows]
            if len({len(r[2]) for r in rows}) > 1:
                _fail()
            if len(rows[0][2]) == 1:                       # a column is a vector: (1,2)
                return ("seq", "()", tuple(r[2][0] for r in rows))
            return ("seq", "mat", tuple(rows))
        items = inner[2] if inner[:2] == ("seq", "") else (inner,)
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
            node = _arithmetic([node, _node("fn", "ln", scripts.get("_", _number("10")))], ["/"])
        return _node("pow", node, power) if power else node


def _fail():
    """What is outside the grammar, over a limit, or without a value at a point ends here."""
    raise ValueError


def _unit(words: str, single: bool) -> str:
    """The measures, or else a thing in the plural, in words after a value: "meter / second"."""
    names = []
    for word in re.findall(r"[^\W\d]+|[/^]|-?\d", words):
        singular = word.rstrip("s")
        if _NO_UNIT.fullmatch(word):
            _fail()
        if word in _MEASURES or singular in _MEASURES or _NOUN.fullmatch(word) and not names:
            names.append(_MEASURES.get(word, _MEASURES.get(singular, singular)))
        elif names and not word.isalpha():
            names.append(word)
    if not names and not single:
        _fail()
    return "" if "unit" in names else " ".join(names)


def _number(text: str) -> tuple:
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, decimals = mantissa.partition(".")
    shift = int(exponent or 0) - len(decimals)
    if abs(shift) > MAX_ANSWER:
        _fail()
    place = Fraction(10) ** shift
    value = int(whole + decimals) * place
    return ("num", value, place if decimals and value.denominator > 1 else None)


def _of_numbers(name: str, items: tuple) -> tuple:
    """gcd(12,18) or \\lfloor 3.7\\rfloor; with symbols, a name and its arguments like f(x)."""
    return ("fn", name + "()", *items) if any(map(_symbols, items)) else _node("fn", name, *items)


def _node(kind: str, *parts) -> tuple:
    """A scalar, sums and products being flat; or a product with a matrix or vector."""
    parts = [p[1] if p[0] == "unit" else p for p in parts]
    matrices = [p for p in parts if p[0] == "seq" and p[1] in ("mat", "row", "()")]
    if kind == "mul" and len(matrices) == 1 and len(repr(parts)) < 2_000:
        brackets, cells = matrices[0][1:]
        factors = [p for p in parts if p is not matrices[0]]
        return ("seq", brackets, tuple(_node("mul", *factors, x) for x in cells))
    two = [p[:2] for p in parts] == [("seq", "mat"), ("seq", "mat")]
    if kind == "mul" and two and len(repr(parts)) < 2_000:
        columns = [*zip(*(row[2] for row in parts[1][2]))]
        rows = [[_node("add", *(_node("mul", *pair) for pair in zip(row[2], column, strict=True)))
                 for column in columns] for row in parts[0][2]]
        return ("seq", "mat", tuple(("seq", "row", tuple(row)) for row in rows))
    if any(p[0] in ("seq", "rel") for p in parts):
        _fail()
    if kind in ("add", "mul"):
        parts = [x for p in parts for x in (p[1:] if p[0] == kind else (p,))]
    return (kind, *parts)


def _negative(a: tuple) -> tuple:
    return ("num", -a[1], a[2]) if a[0] == "num" else _node("mul", _number("-1"), a)


def _arithmetic(parts: list[tuple], ops: list[str]) -> tuple:
    """a + b - c or a * b / c; the unit of the last part is that of all"""
    terms = [parts[0]]
    for part, op in zip(parts[1:], ops):
        if op == "-":
            part = _negative(part)
        elif op in "/:" and op:
            part = _node("pow", part, _number("-1"))
        terms.append(part)
    if ":" in ops and len(ops) > 1:                        # 1:2:3 is no fraction
        _fail()
    node = _node("add" if ops[0] in ("+", "-") else "mul", *terms)
    return ("unit", node, parts[-1][2]) if parts[-1][0] == "unit" and ops[-1] != "/" else node


# ---------------------------------------------------------------------------- relations and lists

def _relation(parts: list[tuple], ops: list[str]) -> tuple:
    if set(ops) <= {"=", "\\approx"}:
        return _equation(parts, ops)
    if ops in (["\\in"], ["\\choice"]):
        op = "=" if parts[1][:2] == ("seq", "{}") else ops[0]     # x in {1,2} is x = 1,2
        return ("rel", op, *parts)
    if ops == ["!="]:                                      # x != 3 is in two rays
        rays = [_relation(pair, ["<"]) for pair in (parts, parts[::-1])]
        if rays[0][1] == "\\in":
            return (*rays[0][:3], ("seq", "cup", (rays[0][3], rays[1][3])))
        return ("rel", "!=", *parts)
    if ops[0][0] == ">":
        parts, ops = parts[::-1], [op.replace(">", "<") for op in reversed(ops)]
    if not set(ops) <= {"<", "<="}:
        _fail()
    solved = [_solved(op, *pair) for op, *pair in zip(ops, parts, parts[1:])]
    if None not in solved:
        return _both_hold(solved)
    return ("rel", ops[0], *parts) if len(ops) == 1 else ("seq", "".join(ops), tuple(parts))


def _solved(op: str, left: tuple, right: tuple) -> tuple | None:
    """x in a ray, for left < right or left <= right if that is linear in one symbol x."""
    names = _symbols(left) | _symbols(right)
    if len(names) != 1 or {"seq", "rel"} & {left[0], right[0]}:
        return None
    x = ("sym", *names)
    if left[:2] == ("fn", "\\abs") and not _symbols(right):      # |x| < 3 is -3 < x < 3
        sides = [_solved(op, _negative(right), left[2]), _solved(op, left[2], right)]
        return None if None in sides else _both_hold(sides)
    if right[:2] == ("fn", "\\abs") and not _symbols(left):
        sides = [_solved(op, right[2], _negative(left)), _solved(op, left, right[2])]
        if None in sides:
            return None
        return ("rel", "\\in", x, ("seq", "cup", (sides[0][3], sides[1][3])))
    if left == x and not _symbols(right):
        return ("rel", "\\in", x, ("seq", "(" + ")]"[op == "<="], (_negative(_INFINITY), right)))
    if right == x and not _symbols(left):
        return ("rel", "\\in", x, ("seq", "(["[op == "<="] + ")", (left, _INFINITY)))
    xs = [_at(x[1], "real", point) for point in range(3)]
    ys = [_evaluate(_arithmetic([left, right], ["-"]), "real", point) for point in range(3)]
    if None in ys or ys[0] == ys[1]:
        return None
    slope = (ys[1] - ys[0]) / (xs[1] - xs[0])
    if not _close(ys[2] - ys[0], slope * (xs[2] - xs[0])):        # not linear
        return None
    bound = ("num", xs[0] - ys[0] / slope, None)
    return _solved(op, x, bound) if slope > 0 else _solved(op, bound, x)


def _both_hold(rays: list[tuple]) -> tuple:
    """x > 1 and x < 3 is x in (1,3)."""
    if len(rays) == 1:
        return rays[0]
    for low, high in itertools.permutations([ray[3] for ray in rays]):
        if low[2][-1] == _INFINITY and high[2][0] == _negative(_INFINITY):
            ends = [_evaluate(end, "real", 0) for end in (low[2][0], high[2][1])]
            if None not in ends and ends[0] < ends[1]:
                return (*rays[0][:3], ("seq", low[1][0] + high[1][1], (low[2][0], high[2][1])))
    _fail()


def _equation(parts: list[tuple], ops: list[str]) -> tuple:
    if "\\approx" in ops:                                  # x = pi/2 \approx 1.57 says pi/2
        parts = parts[:max(ops.index("\\approx"), _is_name(parts[0])) + 1]
    if len(parts) == 1 or not any(map(_symbols, parts)):
        return parts[-1]                                   # 1+2 = 3 says 3
    if len(parts) > 2 and all(map(_is_name, parts[:-1])) and parts[-1][0] in ("num", "sym"):
        return _list([("rel", "=", p, parts[-1]) for p in parts[:-1]], [","])      # x = y = 1
    if _is_name(parts[-1]) and not _is_name(parts[0]):
        parts = parts[::-1]                                # 5 = x
    return ("rel", "=", parts[0], parts[-1])


def _is_name(a: tuple) -> bool:
    """f(x), |AB|, V_1, AB/CD, sin A, (p,q), m+n: a left-hand side that names what is asked for.

    Not x+z or 2x or xy: there the right-hand side alone is not the answer.
    """
    if a[0] == "seq":
        return all(map(_is_name, a[2]))
    if a[0] == "add":
        return all(x[0] == "sym" and re.fullmatch("[a-w]", x[1]) for x in a[1:])
    if a[0] == "mul":
        return all(_is_name(x) and (x[0] == "pow" or x[1][0].isupper()) for x in a[1:])
    if a[0] == "pow":
        return a[2] == _number("-1") and _is_name(a[1])
    return a[0] == "sym" or a[0] == "fn" and (a[1][-1] == ")" or _is_name(a[2]))


def _list(items: list[tuple], ops: list[str]) -> tuple:
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
    elif all(item[:2] == ("rel", "\\in") for item in items):        # x<1 or x>2; x>1 and x<3
        if "and" in ops:
            return _both_hold(items)
        return ("rel", "\\in", name, ("seq", "cup", tuple(values)))
    return ("rel", "=", name, ("seq", "", tuple(values)) if len(values) > 1 else values[0])


def _both(plus: tuple, minus: tuple) -> tuple:
    """The two readings of an answer with \\pm, as one list."""
    if plus[0] == "rel" and plus[:3] == minus[:3]:
        return (*plus[:3], _both(plus[3], minus[3]))
    return ("seq", "", tuple(dict.fromkeys(
        x for tree in (plus, minus) for x in (tree[2] if tree[:2] in _LISTS else (tree,)))))


_LEVELS = (
    ({"\\\\"}, lambda parts, _: ("seq", "mat", tuple(parts))),
    ({"&"}, lambda parts, _: ("seq", "row", tuple(parts))), (_JOINTS, _list),
    ({"=", "\\approx", "<", ">", "<=", ">=", "!=", "\\in", "\\choice"}, _relation),
    ({":"}, _arithmetic), ({"\\cup"}, lambda parts, _: ("seq", "cup", tuple(parts))),
    ({"+", "-"}, _arithmetic), ({"*", "/"}, _arithmetic))
_CLOSER = {"(": (")", "]"), "[": ("]", ")"), "{": ("}",), "\\{": ("\\}",), "\\mat": ("\\endmat",)}
_NO_FACTOR = {"\\cup", "\\in", "\\choice", "\\approx", "\\degree", "\\\\",
              *(closer for closers in _CLOSER.values() for closer in closers)}
_ACCENTS = {*r"\vec \hat \bar \tilde \dot \ddot \overline \overrightarrow \mathbb \abs".split()}
_SYMBOLS = {"\\" + name for name in _GREEK.values()} | {"\\infty", "\\hbar", "\\ell"}
_INFINITY = ("sym", "\\infty")
_LISTS = {("seq", ""), ("seq", "{}")}
_CALLED = {*"fghFGHP", "f^{-1}", "g^{-1}", "h^{-1}"}
_COSTLY = {"^", "!", "'", "\\sqrt", "\\degree", "\\binom"}


# ---------------------------------------------------------------------------------- comparison

def is_equiv(answer: str, gold: str) -> bool:
    """True if two answers mean the same: is_equiv("x = 0.5", "\\frac12") is True.

    Symmetric; reflexive on every string; raises nothing.
    """
    if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
        return answer.strip() == gold.strip()
    a, b = _read(answer), _read(gold)
    if "," in answer + gold:                               # 100,200 is a list beside a list
        a, b = _read(answer, _is_list(b[1])), _read(gold, _is_list(a[1]))
    (text_a, a), (text_b, b) = a, b
    times = all(re.fullmatch("[0-9]{1,2}:[0-5][0-9]", text) for text in (text_a, text_b))
    if text_a == text_b or times or a is None or b is None:    # 2:15 and 4:30 are no ratios
        return text_a == text_b
    try:
        return _same(a, b, [MAX_COMPARISONS])
    except ValueError:
        return False


def _is_list(a: tuple | None) -> bool:
    return a is not None and (a[:2] in _LISTS or a[0] == "rel" and a[3][:2] in _LISTS)


@lru_cache(maxsize=512)
def _read(s: str, split: bool = False) -> tuple[str, tuple | None]:
    """The text to compare, and the tree, or None if the parser cannot read the answer."""
    if s.isdecimal() and s.isascii():                      # most are plain integers
        return s, _number(s)
    tokens = _tokens(s, split)
    text = re.sub(r"(?<!\d) | (?!\d)", "", " ".join(tokens))
    text = re.sub(r"([_^])\{([A-Za-z])\}", r"\1\2", text)
    try:
        if not {"\\pm", "\\mp"} & {*tokens}:
            return text, _Parser(tokens).answer()
        signs = {"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"}
        readings = [_Parser([sign.get(t, t) for t in tokens]).answer() for sign in signs]
        return text, _both(*readings)
    except ValueError:
        return text, None


def _same(a: tuple, b: tuple, left: list[int]) -> bool:
    """Are two trees equivalent? `left` counts down the comparisons that may still be made."""
    left[0] -= 1
    if left[0] < 0:
        _fail()
    (a, unit_a), (b, unit_b) = _without_unit(a), _without_unit(b)
    if unit_a and unit_b and unit_a != unit_b:
        return False
    if a == b:
        return True
    if a[0] == b[0] == "rel":
        return _same_relation(a, b, left)
    for x, y in ((a, b), (b, a)):
        if x[:2] == ("rel", "\\choice"):                   # (C) 7 against C or 7
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


def _without_unit(a: tuple) -> tuple[tuple, str]:
    if a[0] == "unit":
        return a[1:]
    return (a[2], "degree") if a[:2] == ("fn", "\\degree") else (a, "")


def _same_relation(a: tuple, b: tuple, left: list[int]) -> bool:
    if a[1] != b[1]:
        return False
    if a[2] == b[2] and _same(a[3], b[3], left):
        return True
    if a[1] in ("\\in", "\\choice") or {"seq", "rel"} & {x[0] for x in (*a[2:], *b[2:])} or \
            not _symbols(a) or _symbols(a) != _symbols(b):
        return False
    u, v = (_arithmetic(r[2:], ["-"]) for r in (a, b))     # equations: equal up to a factor
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
    if not places and type(a[1]) is type(b[1]) is Fraction:
        return a[1] == b[1]
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
          "\\degree": lambda x: x * _MP.pi / 180, "\\floor": _MP.floor, "\\ceil": _MP.ceil,
          "\\max": lambda *args: max(args), "\\min": lambda *args: min(args)}
_WHOLE = {"!": math.factorial, "binom": math.comb, "\\gcd": math.gcd, "\\lcm": math.lcm}
_FIXED = {*_KNOWN, *_WHOLE, *_CONSTANTS, "\\infty"}


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
    # reals of both signs tell sqrt(x^2) from x; the rest is complex
    modes = ["complex"] if "i" in used or not symbols else ["real", "complex"]
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
        elif kind == "unit":
            value = args[0]
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
    if name in _WHOLE:
        whole = [int(_MP.nint(x.real)) for x in args]
        limit = 200 if name in ("!", "binom") else 10**12
        if not all(_close(n, x) and 0 <= n < limit for n, x in zip(whole, args)):
            _fail()
        return _MP.mpf(_WHOLE[name](*whole))
    if name not in _KNOWN:                                 # f(x): a value fixed by f and x
        return _at(name + " ".join(_MP.nstr(x, 20) for x in args), mode, point)
    if x and _MP.mag(x) > (17 if name in ("exp", "sinh", "cosh", "tanh") else 60):
        _fail()
    value = _KNOWN[name](*args)                            # sin(pi) is 0, not 1e-200
    noise = name != "exp" and all(_close(value + y, y) for y in (_MP.one, x))
    return _MP.zero if noise else value
