"""Check answers to maths problems: a reward that is exact, fast and cannot hang.

`math_reward` finds the final answer of a response and compares it with the gold, LaTeX or plain
text. Equal are numbers, to 180 digits, and a long decimal to what it is rounded from; expressions
with equal values at fixed points (Schwartz-Zippel testing); lists, sets, tuples, intervals,
matrices, equations and inequalities, part by part; words as written. A unit, a name ("x =") or a
choice ("(B) 17") may be on one side only. Never equal are a part of an answer and the whole; a
hedge ("16 or 17", "not 17", "17 or more") and a value; different units; sums, integrals,
derivatives and all that is not known, unless written alike. In doubt the verdict is False.
Length, nesting, digits and exponents are limited before any number is built, so nothing runs long
and there are no timers; all that is kept are bounded caches, so threads are safe.
"""
from __future__ import annotations

import math
import re
import unicodedata
import zlib
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache

import mpmath

MAX_RESPONSE = 20_000    # characters at the end of a response in which the answer is looked for
MAX_ANSWER = 2_000       # characters of an answer that is parsed; a longer one is compared as text
MAX_TOKENS = 180         # numbers, symbols and signs in an answer
MAX_DEPTH = 25           # nesting
MAX_BITS = 600           # of a number: beyond 10^180 numbers are only equal as written

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
_FUNCTIONS = {*"""sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp abs floor
    ceil max min gcd lcm""".split()}
_GREEK = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma
    tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega""".split()
_SPELLINGS = {alias: name for name, aliases in {
    **{"\\" + name: name for name in _FUNCTIONS},
    "*": r"\cdot \times \ast × ⋅ · ∗", "/": r"\div ÷ per", "-": "− – — minus negative", "+": "plus",
    "^": "**", "^2": "squared", "^3": "cubed", "'": r"\prime ′", "(": r"\langle", ")": r"\rangle",
    "<": r"\lt", "<=": r"\le \leq \leqslant ≤", ">": r"\gt", ">=": r"\ge \geq \geqslant ≥",
    "!=": r"\ne \neq ≠", "\\degree": "°", "\\pi": "pi", "\\sqrt": "sqrt √", r"\text{cent}": "¢",
    "\\log": r"log \lg", "=": r"\approx ≈", "\\in": "∈", "\\cup": "∪", "\\pm": "±",
    "\\emptyset": r"\varnothing ∅", "\\infty": r"infinity infty inf ∞", "\\phi": r"\varphi",
    "\\epsilon": r"\varepsilon", "and": "and", "or": "or", "*12": "dozen", "*100": "hundred",
    "*10^3": "thousand", "*10^6": "million", "*10^9": "billion", "*10^12": "trillion",
}.items() for alias in aliases.split()}
_SPELLINGS |= zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", ["\\" + name for name in _GREEK])
_SCALES = [alias for alias, name in _SPELLINGS.items() if name[:2] == "*1"]
_UNICODE = {ord(alias): name + " " for alias, name in _SPELLINGS.items() if not alias.isascii()}
_MEASURES = {name: names.split()[0] for names in re.split("[;\n]", """
    millimeter millimetre mm; centimeter centimetre cm; meter metre m; kilometer kilometre km; base
    inch in inche; foot ft feet; yard; mile mi; milligram mg; gram g; kilogram kg; pound lb; ton
    ounce oz; milliliter millilitre ml; liter litre l; gallon; second s sec; minute min; radian
    hour h hr; day d; week; month; year; dollar; cent; euro; am; pm; percent percentage pct; degree
    newton n; joule j; watt w; volt v; unit; degreec; degreef; mile/hour mph; kilometer/hour kph""")
    for name in names.split()}
_LONG_MEASURES = "|".join(name for name in _MEASURES if len(name) > 2)
_FRACTION = r"(?:half|halves|third|\w*(?:four|fif|x|even|eigh|nin|ten|elf|een|tie|red|and|ion)th)s?"
_NOUN = re.compile(r"\w{2,}s|people|children|teeth|mice|geese|sheep|dice|\w*men|\w*fish|\w+ese")
_HEDGE = "maybe|perhaps|possibly|probably|likely|neither|nor|or|if|when|unless|otherwise|else"
_NO_UNIT = re.compile(
    rf"{_HEDGE}|{_FRACTION}|{'|'.join(scale + 's' for scale in _SCALES)}|ones|tens|not?|never|but|"
    r"this|thus|always|sometimes|does|is|was|are|were|has|others?|more|less|fewer|least|most|than|"
    r"both|wrong|incorrect|mod|choose|divided|multiplied|over|under|by|factorial|roots?|power")

# ---------------------------------------------------------------------------------- extraction
_GROUP = ""
for _ in range(9):                                         # braces in braces, eight deep
    _GROUP = rf"(?:[^{{}}\\]|\\.|\{{{_GROUP}\}})*"
_BOX = rf"\\(?:boxed|fbox)\s{{0,9}}\{{\s*(?!\s|\}})({_GROUP})\}}"
_BOXES = re.compile(  # "\boxed{1} papers and \boxed{2}", not "\boxed{1} is out. So it is \boxed{2}"
    _BOX + r"(?:[^.:]{0,30}?(?:[,;]|\band\b|\bor\b)[\s$\\()\[\]}]*(?:q?quad\s*)?(?:\w+ ?= ?)?"
    rf"{_BOX})*", re.S)
_MARKER = re.compile(
    r"####|^A:|\*\*(?=\(?[A-J]\)?\.?\*\*)|(?i:\b(?:pick|choose|select)\b)(?=\W{1,3}[A-J]\b)|"
    r"(?i:(?:\b|_)(final )?(?:answers?|ans|option|choice|antwort|respuesta|r[ée]ponse|risposta|"
    r"resposta|ответ|الجواب|الإجابة)\b)(?:\W{0,4}(?i:is|are|was|ist|es|est|è|é|هو|هي)\b|"
    r"\W{0,3}[:=：]|(?=\W{1,3}[A-Z]\b))|(?:答案|答え|정답)\s?(?:是|为|為|は|은)?\s?[:：]?", re.M)
_CHOICE = re.compile(
    r"\W{0,3}(?:(?i:option|choice)\W{1,3})?([A-Z])"
    r"(?:[).:,*]|\W{0,9}$| ?[—–]| (?:because|since|as)\b)(?!\W{0,9}(?:(?:and|or)\W{1,9})?[A-J]\b)")
# an expression in prose: formulas, and those of the pieces between blanks that are mathematics
_FORMULA = (r"\$\$[^$]+\$\$|\$[^$]+\$(?![0-9])"            # "$5 and $10" holds no formula
            r"|\\\((?:[^\\]|\\(?![()]))*\\\)|\\\[(?:[^\\]|\\(?![\[\]]))*\\\]")
_TUPLE = r"[(\[](?:(?![A-Za-z]{2})[^()\[\]$\n]){1,80}[)\]]"
_PIECE = rf"(?:{_TUPLE}|\{{(?:[^{{}}\n]|\{{[^{{}}\n]*\}})*\}}|[^\s$])*(?<![.,;:?*\"”。、])"
_ATOM = (rf"(?:{_FORMULA}|{_TUPLE}{_PIECE}"
         rf"|(?:[A-Za-z](?=\()|(?:sqrt|sin|cos|tan|log|ln|exp)\b){_PIECE}"
         r"|(?i:minus|negative|plus|times|squared|cubed|pi)\b|A(?=,? (?:and |or )?[B-J]\b)"
         r"|[B-HJ-Zb-zα-ω](?![^\s.,;:?*)]|\.[a-z])|[A-Za-z]+(?=\s[=+*/^<>×])"
         r"|(?<=[=+*/<>×]\s)[A-Za-z]+(?![A-Za-z])"
         r"|(?!\d+(?:st|nd|rd|th)\b|\d+-[A-Za-z]{2}|[A-Za-z]+(?:[-/'’][A-Za-z]+)+[.,;:?)]*(?!\S))"
         rf"(?!\$)(?=\S{{0,30}}?[\d=+*/<>^_\\√π∞≤≥≠±×÷°%&∪−|-]){_PIECE})"
         rf"(?: (?:(?:{_LONG_MEASURES}|cm)(?:e?s)?|km|kg|ft|per (?:{_LONG_MEASURES})|square|cubic|"
         rf"[ap]\.?m|{'|'.join(_SCALES)})\b)*")
_BINDING = (r"(?:and|or|(?:is )?(?:out of|(?:\w+ )?of|to|through|by|in|over|mod|modulo|choose|per|"
            r"(?:divided|multiplied) by))")           # words that make two values one answer
_EXPRESSION = re.compile(
    rf"(?<![^\s(\"$。：\u3040-\uffef]){_ATOM}(?: ?[,;]? ?(?:\b{_BINDING}\b ?)?{_ATOM})*")
_DOUBT_BEFORE = re.compile(
    rf"(?i)\b(?:not|never|cannot|{_HEDGE}|(?:could|might|may) (?:also )?be)\b|n[’']t\b|"
    r"\b(?:nicht|keine?|nie|no es|non è|n[’']est pas|não|не|mindestens|al menos|au moins)\b|"
    r"\b(?:least|(?:al)?most|nearly|close to|than|between|over|under|above|below|up to|to the|"
    r"half|twice|double|triple|root|power|(?:half|third|quarter|square|cube|root|power|factorial|"
    r"inverse|sine|cosine) of)(?: the| an?| about)?$")
_IS_WRONG = (r"(?:is|was|are|seems|looks) (?:too|not|wrong|incorrect|false|impossible)\b|cannot\b|"
             r"\w+n[’']t\b")
_DOUBT_AFTER = re.compile(
    rf"(?i)(?:[\w-]+ ){{0,2}}(?:{_HEDGE})\b|(?:and an? )?(?:{_FRACTION}|quarter|factorial)\b|"
    rf"(?:raised )?to the\b|times itself|oder\b|или\b|{_IS_WRONG}|[^.!\n]*\?")

def extract_answer(response: str, truncated: bool = False) -> str | None:
    """The final answer in a response, or None: extract_answer("so it is 4.") is "4".

    In this order: what is between <answer> and </answer>; the last \\boxed{} or \\fbox{}, unless
    "final answer is 5" follows it; what follows "####" or "the answer is"; the last expression; a
    short text. If the response was cut off (`truncated`), only a complete box, or a "final answer
    is" that something follows, counts.
    """
    text = response[-MAX_RESPONSE:].rpartition("</think>")[2].strip()
    tagged, closed, _ = text.rpartition("<answer>")[2].partition("</answer>")
    if closed:
        return extract_answer(tagged) or tagged.strip()
    end, contents = 0, []
    for m in _BOXES.finditer(text):
        end, contents = m.end(), re.findall(_BOX, m[0], re.S)
    for m in reversed([*_MARKER.finditer(text, end)]):
        rest = text[m.end():m.end() + MAX_ANSWER].lstrip(" \n\t:：=*\"'`")
        if re.search("[\"'] ?:$", m[0]):                    # {"answer": "42"}
            rest = re.match(r"(?:[^\"'{}]|\{[^{}]*\})*", rest)[0].strip()
        complete = m[1] and re.match(r"[^\n]*?(?:\.\s|\n)|\$[^$]+\$", rest)
        overrules = m[1] and re.match(r"\$|\\[(\[]|-?[0-9]", rest) or \
            m[0][0] in "*Aa" and _CHOICE.match(rest)
        if not rest.strip(" .$") or end and not overrules or truncated and not complete:
            continue
        if re.search(r"(?i)(?:\bnot|n[’']t) (?:think|believe)\b[^.\n]*$", text[:m.start()][-60:]):
            return None
        return rest if rest.isdecimal() else _from_prose(rest, announced=True)
    if end or truncated:
        return ", ".join(content.strip() for content in contents) or None
    return _from_prose(text, announced=False)

def _from_prose(text: str, announced: bool) -> str | None:
    """The answer at the beginning of a text that follows "the answer is", or at the end of one."""
    text = re.sub(r"[ \t]+", " ", re.sub(r"(?<!\w)\*\*+|\*\*+(?!\w)|`", "", text))   # **12**
    end = len(text)
    if announced:                                          # one sentence
        end = re.search(r"\n|<\||(?<!\.[me])[.!?](?=\s|$)", text + "\n").start()
    choice = _CHOICE.match(text, 0, end)
    if choice and (announced or end <= 80):
        rest = text[choice.end():end].strip(" .*")
        if re.match(_IS_WRONG, rest.lstrip(" )")):
            return None
        value = choice[0][-1] in ").:" and _EXPRESSION.fullmatch(rest)                 # (B) 17
        return f"({choice[1]}) {value[0]}" if value else choice[1]
    found = [*_EXPRESSION.finditer(text)]
    likely = [i for i, m in enumerate(found)               # "I get 5 for x" is 5
              if m.start() < end and (i == 0 or re.search(r"\d|\\|=", m[0]))]
    if not likely:
        return text[:end].strip(" .*") or None if announced or end <= 80 else None
    i = 0 if announced and found[0].start() == 0 else likely[-1]
    before = text[found[i - 1].end() if i else 0:found[i].start()].strip()
    after = text[found[i].end():].lstrip(" ,(")
    if _DOUBT_BEFORE.search(re.split(r"[.,;:!?\n]", before)[-1]) or _DOUBT_AFTER.match(after):
        return None
    answer = re.sub(r"^([\d.,]*\d) ?([mgsL])([²³]?)$", r"\1 \\text{ \2}\3", found[i][0])     # 5 m
    return re.sub(r"\$+|\\[()\[\]]|(?:です|입니다|[个個元円개])+$", "", answer).strip("*= \n")

# ---------------------------------------------------------------------------------------- tokens
_TEXT = r"\\(?:text(?:rm|bf|it|sf|tt|up|normal)?|mathrm|operatorname\*?|[mh]box) ?"
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?:[A-Za-z'’-]*[A-Za-z])?")
_REWRITES = [(re.compile(pattern, re.A), replacement) for pattern, replacement in (
    (r"(?<!\\)\\\\(?=[A-Za-z]{3}|le|ge|ne|in|pi|pm|ln|[{}])", r"\\"),         # escaped twice
    (r"[\"\u200b-\u200f\u202a-\u202e]|\\!\s*", ""), (r"(?<!\\)\\[,;:> ]|~|\s+", " "),
    (r"\\\$ ?(\d[\d.,]*) ?$", r"\1\\text{ dollars}"),
    (r"\\?[$₹€£¥₽₩]|\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?|\\[()\[\]]|"
     r"\\(?:text)?color ?\{[^{}]*\}|m?\\angle(?!\w)|"
     r"\\(?:math(?:bf|it|sf|cal|scr)|bm|bf|it|rm|boldsymbol|displaystyle|textstyle|boxed|fbox|"
     r"triangle|underline|checkmark|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![A-Za-z])", ""),
    (r"^\\\{ ?[a-z] ?(?:\\in ?\\mathbb ?\{?R\}? ?)?(?:\\mid(?!\w)|[:|]) ?(.*)\\\}$", r"\1"),
    (r"\\begin ?\{(?:\w*matrix|array\} ?\{[lcr| ]*)\}", r"\\mat "),
    (r"(?:\\\\ ?)?\\end ?\{(?:\w*matrix|array)\}", r"\\endmat "),
    (r"\\\} ?(?:\\cup|∪) ?\\\{", ","), (r"\\\{ ?\\\}", r"\\emptyset "),
    (r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))", r"\\degree "),
    (r"\^ ?\{? ?(?:\\prime|') ?\}?", "'"), (r"\\mathbb ?\{?R\}?", r"(-\\infty,\\infty)"),
    (r"\\l(floor|ceil)(?!\w)", r"\\\1{"), (r"\\r(floor|ceil)(?!\w)", "}"),
    (r"\\[lr]?vert(?!\w)", "|"), (r"\|([^|]+)\|", r"\\abs{\1}"), (r"\b([ap])\.m\b\.?", r"\1m"),
    (r"\\degree ?\{?(?:\\(?:text|mathrm) ?\{ ?)?([CF])(?!\w) ?\}?", r'"degree\1"'),
    # words; three letters are one, not a product, unless something is done with them
    (r"^(?=[A-Za-z ,.'-]+$)(?![A-J]\. ).*?\b(?!and\b)[A-Za-z]*[a-z]{3}.*", r"\\text{\g<0>}"),
    (rf"(?<=[\w}}/]) ?{_TEXT}\{{ ?([mgshlLnjwv]) ?\}}", r' "\1"'),      # 5\text{m}, not \text{C}
    (_TEXT + r"\{([^A-Za-z{}]*[A-Za-z]?[^A-Za-z{}]*)\}", r" \1 "),
    (_TEXT + r"\{([^{}]*)\}", lambda m: _WORD.sub(r'"\g<0>"', m[1].strip())),
    (r"(?<![\w)}^\\\"'’-])[A-Za-z]{3,}(?![-+*/^_(\w])|(?<![A-Za-z\\\"'’-])(?:[acmkp]m|[mk]g|ft|hr|"
     rf"lb|oz|m[lL]|[nN]o|(?:{_LONG_MEASURES})s?)(?![A-Za-z])", r'"\g<0>"'),
    (r'"(?!min")([^"]+)"', lambda m: f" {_SPELLINGS.get(m[1].casefold(), m[0].casefold())} "),
    (r"\\?%", '"percent"'), (r"(?<=\d) ?[xX] ?(?=\d)", "*"),
    (r'"(?:square|sq)" *("\w+")', r"\1^2"), (r'"cubic" *("\w+")', r"\1^3"),
    (r"^(.{3,}?)(?:\\approx|≈).*", r"\1"),                 # x = pi/2 \approx 1.57 says pi/2
    (r'^ *(?:=|"about"|"approximately"|"exactly"|(?:"the" *|"final" *)*"answer"(?: *"is")?|'
     r'"(?:an?|the)"(?= *")) *:?(?=.)', ""),
    (r"^ *(?:\( ?([A-J]) ?\)|([A-J])(?: ?\)|[:.] )) *(?=[-\d\"]|\\(?:frac|sqrt|pi))",
     r"\1\2 \\choice "),
    (r"(\d{0,20})\.(\d{0,20})\\overline ?\{? ?(\d{1,20}) ?\}?", lambda m:    # 0.1\overline{6}
     f"(({m[1]}{m[2]}{m[3]}-0{m[1]}{m[2]})/{10**len(m[2] + m[3]) - 10**len(m[2])})"),
    (r"(?<=\d) ?_ ?(?:(\d+)|\{ ?(\d+) ?\})", r'"base\1\2"'),
    (r"(\d)⁄(\d+)", r"\\frac{\1}{\2}"), (r"\\[dtc](frac|binom)", r"\\\1"),
    (r"\\frac ?\{ ?d ?([A-Za-z]?) ?\} ?\{ ?d ?([A-Za-z]) ?\}", r"\\d\1d\2 "),    # dx/dy is none
    (r"(?<=\d) (\d+) ?/ ?(\d+)(?!\d)", r"\\frac{\1}{\2}"), (r"(?<=\d) ?\{, ?\} ?(?=\d{3})", ","),
    (r"\\(frac|binom) ?(\d)", r"\\\1{\2}"), (r"(\\(?:frac|binom) ?\{[^{}]*\}) ?(\d)", r"\1{\2}"),
    (r"(?<![\d.^_])(\d+) ?\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}",        # 1\frac12, not 2\frac32
     lambda m: f"({m[1]}+{m[2]}/{m[3]})" if int(m[2]) < int(m[3]) else m[0]),
    (r"\\?\b(sin|cos|tan) *\^ *(?:\{ ?- ?1 ?\}|-1\b)", r"\\arc\1 "),
    (r'(?<=") ?\.|[\s.\\]+$', ""), (r"([_^]) ?\{ ?([A-Za-z]) ?\}", r"\1\2"),
)]
_GROUPED = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:(?:,\d{3})+(?!\d|,\d)|(?: \d{3})+(?!\d))")
_TOKEN = re.compile(  # words with their powers and slashes; numbers, names, signs
    r'"\w[^"]*"(?: *"\w[^"]*"| *\^ ?(?:-?\d|\{-?\d\})| *(?:/|\*|\\cdot) *"\w[^"]*")*|'
    r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,4}(?!\d))?|[fgh]\^\{-1\}(?=\()|"
    r"(?:[A-Za-z]|\\(?:" + "|".join(_GREEK) + r")) ?_ ?(?:\{[^{}]*\}|\w|\\[A-Za-z]+)|"
    r"\\[A-Za-z]+|(?<![A-Za-z])(?:" + "|".join(filter(str.isalpha, _SPELLINGS)) + ")(?![A-Za-z])|"
    r"\*\*|[<>!]=|\\[{}\\]|\S", re.A)

def _tokens(s: str, split: bool) -> list[str]:
    """The tokens of an answer; 1,234 is a number, but in a list (or where `split` says so) two."""
    s = re.sub("[²³¹⁰⁴-⁹⁻]+", r"^{\g<0>}", s)              # of which NFKC makes mere digits
    s = unicodedata.normalize("NFKC", s).translate(_UNICODE).strip(" $")
    for pattern, replacement in _REWRITES:
        s = pattern.sub(replacement, s)
    if not split and not re.search(r"[(\[]|\\\{", s):
        s = _GROUPED.sub(lambda m: re.sub("[, ]", "", m[0]), s)
    joined = r"(?:[,;] *|\\q?quad *|\b(and|or)\b *)+"      # "1, 2, and 3"
    s = re.sub(joined, lambda m: f" {m[1] or ','} ", s).strip(" ,")
    tokens = [_SPELLINGS.get(token, token) for token in _TOKEN.findall(s)]
    return [re.sub("[{} ]", "", t) if len(t) > 2 else t for t in tokens]     # x_{1} is x_1

# ------------------------------------------------------------------------------------- parsing
class _Parser:
    """Recursive descent over tokens, to trees of tuples:

    ("num", Fraction, last place if written as a decimal)  ("sym", name)  ("fn", name, a, ...)
    ("add", a, b, ...)  ("mul", a, b, ...)  ("pow", a, b)  ("rel", operator, a, b)
    ("unit", a, "meter/second")  ("seq", brackets, items): "()" "[)" ... tuples or intervals,
    "{}" sets, "" bare lists, "cup" unions, "<<=" chains, ":" ratios, "mat" of "row"
    """

    def __init__(self, tokens: list[str]):
        self.tokens, self.depth = ["", *reversed(tokens)], 0
        self.now = self.tokens.pop()

    def take(self, *wanted: str) -> str:
        """The next token if it is one of these, else an empty string."""
        token = ""
        if self.now and self.now in wanted:
            token, self.now = self.now, self.tokens.pop()
        return token

    def answer(self) -> tuple:
        tree = self.level(0) if len(self.tokens) <= MAX_TOKENS else _fail()
        return _fail() if self.now else tree

    def level(self, n: int) -> tuple:
        """Operators of one precedence: rows, cells, lists, relations, ... sums, products."""
        if n == len(_LEVELS):
            node = self.signed()
            if self.now[:1] == '"' and node[0] not in ("seq", "rel") and not str(node[1]).isalpha():
                return ("unit", node, _unit(self.take(self.now), single=node[1] == 1))
            return node
        operators, build = _LEVELS[n]
        parts, ops = [self.level(n + 1)], []
        while self.now in operators or "*" in operators and self.factor_follows(parts[-1]):
            ops.append(self.take(*operators))
            parts.append(self.level(n + 1))
        if not ops:
            return parts[0]
        return ("seq", build, tuple(parts)) if isinstance(build, str) else build(parts, ops)

    def factor_follows(self, node: tuple) -> bool:
        if self.now[:1].isdigit():
            return node[0] in ("add", "mul", "pow")        # 2x and x(x+1) are products, x2 is not
        return _FACTOR.match(self.now) is not None

    def signed(self) -> tuple:
        if self.take("-"):
            return _negative(self.signed())
        return self.signed() if self.take("+") else self.power()

    def power(self) -> tuple:
        node = self.atom()
        while token := self.take("!", "'", "\\degree"):
            node = ("unit", node, "degree") if token == "\\degree" else _node("fn", token, node)
        return _node("pow", node, self.signed()) if self.take("^") else node

    def atom(self) -> tuple:
        token = self.take(self.now) or _fail()
        if token[0].isdigit() or token[0] == ".":
            return _number(token)
        if token[0] in "fghFGHPEI" and self.now == "(":    # I(0) is not I times 0
            return ("fn", token + "()", self.atom())
        if token in _CLOSER:
            return self.group(token)
        if token == "\\frac":
            return _arithmetic([self.atom(), self.atom()], ["/"])
        if token == "\\binom":
            return _node("fn", "binom", self.atom(), self.atom())
        if token == "\\sqrt":
            degree = self.atom() if self.now == "[" else _number("2")
            return _node("pow", self.atom(), _node("pow", degree, _number("-1")))
        if token[1:] in _FUNCTIONS:
            return self.function(token[1:])
        if token.isalpha() or token[0] == '"' or token in _SYMBOLS or "_" in token:
            return ("sym", token)
        return _fail()                                     # \sum, \int, \mid are no symbols

    def group(self, opener: str) -> tuple:
        self.depth += 1
        inner = self.level(0) if self.depth <= MAX_DEPTH else _fail()
        self.depth -= 1
        brackets = opener + (self.take(*_CLOSER[opener]) or _fail())
        if inner[:2] == ("seq", "mat") and inner[2][0][:2] != ("seq", "row"):
            return ("seq", "()", inner[2])                 # a column is a vector: (1,2)
        items = inner[2] if inner[:2] == ("seq", "") else (inner,)
        if opener in ("{", "\\mat") or len(items) == 1 and brackets in ("()", "[]"):
            return inner
        return ("seq", brackets.replace("\\", ""), items)

    def function(self, name: str) -> tuple:
        scripts = {}
        while token := self.take("^", "_"):
            scripts[token] = self.atom()
        bracketed = self.now in _CLOSER
        arg = self.atom() if bracketed else self.power()   # sin(x)^2 is (sin x)^2
        while not bracketed and self.now not in _CLOSER and self.factor_follows(arg) and \
                self.now[1:] not in _FUNCTIONS:            # sin 2x cos x
            arg = _node("mul", arg, self.power())
        args = arg[2] if arg[0] == "seq" else [arg]
        if name in ("floor", "ceil", "gcd", "lcm", "max", "min") and any(map(_symbols, args)):
            name += "()"                                   # with symbols, a name like f(x)
        if name == "log":                                  # without a base it is not ln
            args = [*args, scripts.get("_", _number("10"))]
        node = _node("fn", name, *args)
        return _node("pow", node, scripts["^"]) if "^" in scripts else node

def _fail():
    """What is outside the grammar, over a limit, or without a value at a point ends here."""
    raise ValueError

def _unit(words: str, single: bool) -> str:
    """The measures, or else a thing in the plural, in words after a value: "meter/second"."""
    names = []
    for word in re.findall(r"[^\W\d]+|[/^]|-?\d", words):
        measure = _MEASURES.get(word, _MEASURES.get(word.rstrip("s")))
        if _NO_UNIT.fullmatch(word):
            _fail()
        if measure or (_NOUN.fullmatch(word) and not names) or (names and not word.isalpha()):
            names.append(measure or word.rstrip("s"))
    if not names and not single:
        _fail()
    return "" if "unit" in names else "".join(names)

def _number(text: str) -> tuple:
    """1.50 is 3/2, in places of 1/100; 2.0 is exact."""
    value, decimals = Fraction(text), text.partition(".")[2]
    inexact = decimals.isdigit() and value.denominator > 1
    return ("num", value, Fraction(1, 10 ** len(decimals)) if inexact else None)

def _node(kind: str, *parts) -> tuple:
    """A scalar, sums and products being flat; or the product of two matrices."""
    if kind == "mul" and [p[:2] for p in parts] == 2 * [("seq", "mat")] and len(repr(parts)) < 2000:
        columns = [*zip(*(row[2] for row in parts[1][2]))]
        rows = [tuple(_dot(row[2], column) for column in columns) for row in parts[0][2]]
        return ("seq", "mat", tuple(("seq", "row", row) for row in rows))
    if any(p[0] in ("seq", "rel") for p in parts):
        _fail()
    if kind in ("add", "mul"):
        parts = [x for p in parts for x in (p[1:] if p[0] == kind else (p,))]
    return (kind, *parts)

def _dot(row: tuple, column: tuple) -> tuple:
    return _node("add", *(_node("mul", *pair) for pair in zip(row, column, strict=True)))

def _negative(a: tuple) -> tuple:
    return ("num", -a[1], a[2]) if a[0] == "num" else _node("mul", _number("-1"), a)

def _arithmetic(parts: list[tuple], ops: list[str]) -> tuple:
    """a + b - c or a * b / c; the unit of the last part is that of all."""
    terms = [parts[0]]
    for part, op in zip(parts[1:], ops):
        if op == "-":
            part = _negative(part)
        elif op == "/":
            part = _node("pow", part, _number("-1"))
        terms.append(part)
    node = _node("add" if ops[0] in ("+", "-") else "mul", *terms)
    return ("unit", node, parts[-1][2]) if parts[-1][0] == "unit" and ops[-1] != "/" else node

# ---------------------------------------------------------------------------- relations and lists
def _relation(parts: list[tuple], ops: list[str]) -> tuple:
    if set(ops) == {"="}:
        return _equation(parts)
    if ops in (["\\in"], ["\\choice"]):
        op = "=" if parts[1][:2] == ("seq", "{}") else ops[0]     # x in {1,2} is x = 1,2
        return ("rel", op, *parts)
    if ops[0][0] == ">":
        parts, ops = parts[::-1], [op.replace(">", "<") for op in reversed(ops)]
    if not set(ops) <= {"<", "<=", "!="}:
        _fail()
    with suppress(ValueError, TypeError, ZeroDivisionError):
        [name] = set().union(*map(_symbols, parts))
        rays = [_solved(op, *pair) for op, *pair in zip(ops, parts, parts[1:])]
        return ("rel", "\\in", ("sym", name), _intersection(rays) if len(rays) > 1 else rays[0])
    return ("rel", ops[0], *parts) if len(ops) == 1 else ("seq", "".join(ops), tuple(parts))

def _solved(op: str, left: tuple, right: tuple) -> tuple:
    """The x with left < right, <= or !=: an interval or two. Raises unless linear in x alone."""
    if op == "!=":
        return ("seq", "cup", (_solved("<", left, right), _solved("<", right, left)))
    if left[:2] == ("fn", "abs"):                          # |x| < 3 is x < 3 and -x < 3
        return _intersection([_solved(op, x, right) for x in (left[2], _negative(left[2]))])
    if right[:2] == ("fn", "abs"):                         # 3 < |x| is 3 < x or 3 < -x
        return ("seq", "cup", tuple(_solved(op, left, x) for x in (right[2], _negative(right[2]))))
    [name] = _symbols(left) | _symbols(right)
    difference = _arithmetic([left, right], ["-"])
    xs = [_at(name, point) for point in range(3)]
    ys = [_evaluate(difference, point) for point in range(3)]
    slope = (ys[1] - ys[0]) / (xs[1] - xs[0])
    if not _close(ys[2] - ys[0], slope * (xs[2] - xs[0])):
        _fail()
    bound = ("num", xs[0] - ys[0] / slope, None)
    closed = op == "<="
    if slope > 0:
        return ("seq", "(]" if closed else "()", (_negative(_INFINITY), bound))
    return ("seq", "[)" if closed else "()", (bound, _INFINITY))

def _intersection(rays: list[tuple]) -> tuple:
    """x > 1 and x < 3 is x in (1,3)."""
    for low, high in (rays, rays[::-1]):
        start, end = low[2][0], high[2][-1]
        if low[2][-1] == _INFINITY and high[2][0] == _negative(_INFINITY) and \
                _evaluate(start, 0) < _evaluate(end, 0):
            return ("seq", low[1][0] + high[1][1], (start, end))
    _fail()

def _equation(parts: list[tuple]) -> tuple:
    if not any(map(_symbols, parts)):
        return parts[-1]                                   # 1+2 = 3 says 3
    if len(parts) > 2 and all(map(_is_name, parts[:-1])) and parts[-1][0] in ("num", "sym"):
        return _list([("rel", "=", p, parts[-1]) for p in parts[:-1]], [","])      # x = y = 1
    if _is_name(parts[-1]) and not _is_name(parts[0]):
        parts = parts[::-1]                                # 5 = x
    return ("rel", "=", parts[0], parts[-1])

def _is_name(a: tuple) -> bool:
    """f(x), |AB|, V_1, AB/CD, (p,q), m+n name what is asked for; x+z, 2x, xy do not."""
    kind, name = a[:2]
    if kind == "seq":
        return all(map(_is_name, a[2]))
    if kind == "add":
        return all(x[0] == "sym" and re.fullmatch("[a-w]", x[1]) for x in a[1:])
    if kind == "mul":
        return all(_is_name(x) and (x[0] == "pow" or x[1][0].isupper()) for x in a[1:])
    if kind == "pow":
        return a[2] == _number("-1") and _is_name(name)
    return kind == "sym" or kind == "fn" and (name[-1] == ")" or _is_name(a[2]))

def _list(items: list[tuple], ops: list[str]) -> tuple:
    """x=1, x=2 and x=1, 2 are a list named x; x=1, y=2 is (x,y) = (1,2)."""
    if all(item[0] == "seq" for item in items):            # a point listed twice is one point,
        items = [*dict.fromkeys(items)]                    # but equal numbers may be two things
    columns, name = {}, None
    for item in items:
        if item[0] == "rel" and item[1] in ("=", "\\in") and _is_name(item[2]):
            name, item = item[2:]
        columns.setdefault(name, []).append(item)
    if None in columns or len({*map(len, columns.values())}) > 1:
        return ("seq", "", tuple(items))
    values = columns[name]
    if len(columns) > 1:
        name = ("seq", "()", tuple(columns))
        values = [("seq", "()", row) for row in zip(*columns.values())]
    elif all(item[1] == "\\in" and item[3][0] == "seq" for item in items):
        union = ("seq", "cup", tuple(values))              # x<1 or x>2; x>1 and x<3
        return ("rel", "\\in", name, _intersection(values) if "and" in ops else union)
    return ("rel", "=", name, ("seq", "", tuple(values)) if len(values) > 1 else values[0])

def _both(plus: tuple, minus: tuple) -> tuple:
    """The two readings of an answer with \\pm, as one list."""
    if plus[0] == "rel" and plus[:3] == minus[:3]:
        return (*plus[:3], _both(plus[3], minus[3]))
    return ("seq", "", tuple(dict.fromkeys(
        x for tree in (plus, minus) for x in (tree[2] if tree[:2] in _LISTS else (tree,)))))

_LEVELS = (
    ({"\\\\"}, "mat"), ({"&"}, "row"), ({",", "and", "or"}, _list),
    ({"=", "<", ">", "<=", ">=", "!=", "\\in", "\\choice"}, _relation),
    ({":"}, ":"), ({"\\cup"}, "cup"), ({"+", "-"}, _arithmetic), ({"*", "/"}, _arithmetic))
_CLOSER = {"(": (")", "]"), "[": ("]", ")"), "{": ("}",), "\\{": ("\\}",), "\\mat": ("\\endmat",)}
_FACTOR = re.compile(
    r"(?!(?:and|or|\\cup|\\in|\\choice|\\degree|\\endmat|\\\\|\\\})$)(?:[^\W\d_]|[(\[{\\])")
_SYMBOLS = {"\\" + name for name in _GREEK} | {"\\infty", "\\emptyset", "\\hbar"}
_INFINITY, _LISTS = ("sym", "\\infty"), {("seq", ""), ("seq", "{}")}
_SIGNS = {"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"}

# ---------------------------------------------------------------------------------- comparison
def is_equiv(answer: str, gold: str) -> bool:
    """True if two answers mean the same. Symmetric; reflexive on every string; raises nothing."""
    if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
        return answer.strip() == gold.strip()
    for split in (False, True):
        (text_a, a), (text_b, b) = _read(answer, split), _read(gold, split)
        with suppress(ValueError):
            if text_a == text_b or a and b and _same(a, b):
                return True
        if "," not in text_a + text_b or not _GROUPED.search(f"{answer};{gold}"):
            return False                                   # 100,200 is a list beside a list
    return False

@lru_cache(maxsize=512)
def _read(s: str, split: bool = False) -> tuple[str, tuple | None]:
    """The text to compare, and the tree, or None if the parser cannot read the answer."""
    if s.isdecimal() and s.isascii():                      # most are plain integers
        return s, _number(s)
    tokens = _tokens(s, split)
    text = re.sub(r'(?<!\d) | (?!\d)|"', "", " ".join(tokens))
    plus, minus = ([sign.get(t, t) for t in tokens] for sign in _SIGNS)
    with suppress(ValueError, TypeError, IndexError):      # 1 < i; a matrix with short rows
        tree = _Parser(plus).answer()
        return text, tree if plus == minus else _both(tree, _Parser(minus).answer())
    return text, None

def _same(a: tuple, b: tuple) -> bool:
    """Are two trees equivalent?"""
    if len({x[2] for x in (a, b) if x[0] == "unit"} - {""}) > 1:
        return False                                       # 5 m against 5 cm
    a, b = (x[1] if x[0] == "unit" else x for x in (a, b))
    if a == b:
        return True
    if a[0] == b[0] == "rel":
        return _same_relation(a, b)
    for x, y in ((a, b), (b, a)):
        if x[0] == "rel" and x[1] == "\\choice":           # (C) 7 against C or 7
            return _same(x[2], y) or _same(x[3], y)
        if x[0] == "rel":                                  # x = 5 against 5
            return x[1] in ("=", "\\in") and _is_name(x[2]) and _same(x[3], y)
        if x[:2] in _LISTS and y[:2] not in _LISTS and y[0] != "rel":
            same_lists = y[0] == "seq" and _same_seq(x, y)
            return same_lists or all(_same(z, y) for z in x[2])         # 5 said twice against 5
    return _same_seq(a, b) if a[0] == b[0] == "seq" else _same_value(a, b)

def _same_relation(a: tuple, b: tuple) -> bool:
    if a[1:3] == b[1:3] and _same(a[3], b[3]):
        return True
    if a[1] != b[1] or _symbols(a) != _symbols(b) or "seq" in {x[0] for x in (*a[2:], *b[2:])}:
        return False
    u, v = (_arithmetic(r[2:], ["-"]) for r in (a, b))     # equations: equal up to a factor
    ratios = [x / y if x and y else None for x, y in _values(u, v)]
    return len(ratios) > 1 and None not in ratios and \
        all(_close(ratio, ratios[0]) for ratio in ratios) and \
        (a[1] in ("=", "!=") or isinstance(ratios[0], _MP.mpf) and ratios[0] > 0)

def _same_seq(a: tuple, b: tuple) -> bool:
    kinds = {a[1], b[1]}
    if kinds <= {"", "{}"} or kinds == {"cup"}:            # has each its partner, in any order?
        rest = [*b[2]]
        for x in a[2]:
            partners = [y for y in rest if _same(x, y)]
            if not partners:
                return False
            rest.remove(partners[0])
        return not rest
    return (len(kinds) == 1 or kinds == {"", "()"}) and len(a[2]) == len(b[2]) and \
        all(_same(x, y) for x, y in zip(a[2], b[2]))

def _same_value(a: tuple, b: tuple) -> bool:
    """Scalars; 0.33333333 against 1/3: right in every place written and to 1e-6, no integer."""
    if type(a[1]) is type(b[1]) is Fraction and a[2] is b[2] is None:
        return a[1] == b[1]                                # most are plain integers
    symbols, values = _symbols(a) | _symbols(b), _values(a, b)
    if all(_close(u, v) for u, v in values):
        return len(values) > (1 if symbols else 0)
    places = [x[2] for x in (a, b) if x[0] == "num" and x[2]]
    u, v = values[0]
    if symbols or not places or any(_close(x, _MP.nint(x)) for x in (u, v)):
        return False
    gap = abs(u - v)                                       # the noise of floats; rounded; cut off
    return gap <= abs(u) * 1e-12 or len(places) == 1 and \
        gap <= min(abs(u) * 1e-6, _MP.convert(places[0]))

# ---------------------------------------------------------------------------------- evaluation
_CONSTANTS = {"\\pi": +_MP.pi, "e": +_MP.e, "i": _MP.j, "\\infty": _MP.inf}
_WHOLE = {"!": math.factorial, "binom": math.comb, "gcd": math.gcd, "lcm": math.lcm}
_KNOWN = {"abs": abs, "max": max, "min": min}
_KNOWN |= {f: getattr(_MP, f.replace("arc", "a")) for f in _FUNCTIONS - {*_KNOWN, *_WHOLE}}

@lru_cache(maxsize=256)
def _symbols(a: tuple) -> frozenset[str]:
    """All symbols and unknown functions in a tree."""
    parts = a[2] if a[0] == "seq" else a[1:]
    names = {a[1]} - {*_CONSTANTS, *_KNOWN, *_WHOLE} if a[0] in ("sym", "fn") else ()
    return frozenset(names).union(*(_symbols(x) for x in parts if isinstance(x, tuple)))

def _values(a: tuple, b: tuple) -> list[tuple]:
    """The pairs of values of two expressions, at the points where both have one."""
    points = range(4) if _symbols(a) or _symbols(b) else [0]
    pairs = [(_evaluate(a, point), _evaluate(b, point)) for point in points]
    pairs = [pair for pair in pairs if None not in pair]
    real = [pair for pair in pairs if {*map(type, pair)} == {_MP.mpf}]
    return real if len(real) > 1 else pairs

def _close(u, v, *others) -> bool:
    """Is the difference but rounding error beside u, v and the others?"""
    return u == v or _MP.mag(u - v) < max(map(_MP.mag, (u, v, *others))) - MAX_BITS

@lru_cache(maxsize=4096)
def _evaluate(a: tuple, point: int):
    """The value of an expression at a fixed point, None where it has none."""
    if a[0] in ("seq", "rel"):
        return None
    args = [_evaluate(x, point) for x in a[1:] if isinstance(x, tuple)]
    with suppress(ArithmeticError, ValueError, TypeError):
        value = None if None in args else _value(a, args, point)
        if not value or abs(_MP.mag(value)) <= MAX_BITS:
            return value
    return None

def _value(a: tuple, args: list, point: int):
    """The value of an expression from those of its parts."""
    kind, name = a[:2]
    if kind == "num":
        return _MP.convert(name)
    if kind == "sym":
        return _CONSTANTS[name] if name in _CONSTANTS else _at(name, point)
    if kind == "unit":
        return args[0] * _MP.pi / 180 if a[2] == "degree" else args[0]
    if kind == "mul":
        return _MP.fprod(args)
    if kind == "add":
        total = _MP.fsum(args)
        return _MP.zero if _close(total, _MP.zero, *args) else total        # what cancels is 0
    if kind == "pow":
        return _power(*args)
    if name in _WHOLE:
        numbers = [int(_MP.nint(x.real)) for x in args]
        limit = 200 if name in ("!", "binom") else 10**12
        if not all(_close(n, x) and 0 <= n < limit for n, x in zip(numbers, args)):
            _fail()
        return _MP.mpf(_WHOLE[name](*numbers))
    if name not in _KNOWN:                                 # f(x): a value fixed by f and x
        return _at(name + " ".join(_MP.nstr(x, 20) for x in args), point)
    value = _KNOWN[name](*args)
    if name != "exp" and _MP.mag(value) < -MAX_BITS:       # sin(pi) is 0, not 1e-200
        return _MP.zero
    return value

def _at(name: str, point: int):
    """The value of a symbol: pseudo-random, of both signs, and fixed by the name."""
    h = zlib.crc32(f"{name} {point}".encode("utf-8", "replace"))
    x = _MP.mpf(h % 9973 + 500) / 12_000                   # 0.04 to 0.87, a domain for arcsin
    return (x, 1 + 4 * x, -1 - x, 3 + 20 * x if h & 1 << 20 else -x)[point]

def _power(a, b):
    if isinstance(a, _MP.mpf) and isinstance(b, _MP.mpf) and a < 0:
        for q in (1, 3, 5, 7):                             # the real odd root
            p = _MP.nint(b * q)
            if _close(b * q, p):
                return (-a) ** b * (-1) ** int(p)
    return a ** b
