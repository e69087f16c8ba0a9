"""LaTeX to MathML at build time: browsers lay it out themselves, without a script or a font.

latex2mathml lets much pass that is wrong, so its result is checked: a command or an alignment mark
left as it was, a group left open, an operand missing.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

import latex2mathml.converter

_SPACE = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", _SPACE)
_OPENS = set("([{|=<>≤≥,+-−±·×∈→")  # behind these a sign belongs to what follows
# elements of MathML that need so many children
_ARITY = {"mfrac": 2, "mroot": 2, "msup": 2, "msub": 2, "mover": 2, "munder": 2}
_ARITY |= {"msubsup": 3, "munderover": 3}


class MathError(Exception):
    """LaTeX that did not become MathML; the message says why."""


def to_mathml(latex: str, display: bool) -> str:
    """The formula as a `<math>` element, in the line or on its own.

    Raises:
        MathError: Says what is wrong.
    """
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", latex):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            break
    if depth:
        raise MathError("braces do not match")
    # the same environment by the name that the converter knows
    known = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{align*}", latex)
    try:
        mathml = latex2mathml.converter.convert(known, display="block" if display else "inline")
        tree = ElementTree.fromstring(mathml)
    except Exception as error:
        raise MathError(f"not understood ({type(error).__name__})") from error
    for row in tree.iter():
        before = None
        for element in row:
            text, operator = (element.text or "").strip(), element.tag == f"{{{_SPACE}}}mo"
            if operator and text == "∞":
                element.tag = f"{{{_SPACE}}}mi"
            elif operator and text == "|":
                element.attrib |= {"lspace": "0", "rspace": "0"}
            elif operator and text in "-−+" and before in _OPENS:
                element.set("form", "prefix")
            before = text
    mathml = ElementTree.tostring(tree, encoding="unicode")
    # MathML Core, which Chromium follows, has no columnalign
    for side in ("left", "right"):
        style = f'style="text-align: {side}; padding-{side}: 0"'
        mathml = mathml.replace(f'columnalign="{side}"', style)
    for element in tree.iter():
        tag = element.tag.rpartition("}")[2]
        if "\\" in (element.text or ""):
            raise MathError(f"unknown command {element.text}")
        if tag in _ARITY and len(element) != _ARITY[tag]:
            raise MathError(f"an operand of {tag} is missing")
    return mathml
