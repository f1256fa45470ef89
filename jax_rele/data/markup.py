"""HTML in product texts to plain text."""

from __future__ import annotations

import html
import re

# Only elements of HTML are markup: `<5 lbs` or `<unknown>` is what the seller wrote. Token by token, and not one
# pattern from an opening to a closing tag, so that the time is linear in the length whatever the text.
_INLINE = "a|abbr|b|big|center|code|em|font|i|img|ins|label|mark|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
_BLOCK = (
    "article|blockquote|body|br|caption|dd|div|dl|dt|figure|footer|h[1-6]|head|header|hr|html|li|main|meta|ol|p|pre|"
    "section|table|tbody|td|tfoot|th|thead|title|tr|ul"
)
_TOKEN = re.compile(rf"<!--|-->|<(/?)(?:({_INLINE})|({_BLOCK})|(script|style))((?:[\s/][^<>]*)?)>", re.IGNORECASE)
_CLOSING = re.compile(r"</(script|style)(?:[\s/][^<>]*)?>", re.IGNORECASE)
_ATTRIBUTES = re.compile(r"\s*/?\s*|\s.*=.*", re.DOTALL)
# With its semicolon only: HTML also takes `&gt` for one, in `black&gt-style`.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")


def plain_text(text: str) -> str:
    """HTML -> text: tags, comments, scripts and styles go, a block element starts a line, entities are decoded once.

    What is no HTML element stays (`<5 lbs`), and a text without any markup stays as it is. Otherwise runs of white
    space become one space and empty lines go.
    """
    if "<" not in text and "&" not in text:
        return text
    pieces = []
    start, hidden = 0, ""
    # What is never closed hides nothing: `<style>` is then a word of the seller's.
    last = {"-->": text.rfind("-->")} | {match[1].lower(): match.start() for match in _CLOSING.finditer(text)}
    for token in _TOKEN.finditer(text):
        closing, _, block, silent, attributes = token.groups()
        if attributes is not None and not _ATTRIBUTES.fullmatch(attributes):
            continue
        if hidden:
            if token[0] == "-->" if hidden == "-->" else (closing and silent and silent.lower() == hidden):
                start, hidden = token.end(), ""
        elif token[0] != "-->":
            opened = "-->" if token[0] == "<!--" else silent.lower() if silent and not closing else ""
            if opened and last.get(opened, -1) < token.end():
                continue
            pieces += [text[start : token.start()], "\n" if block else ""]
            start, hidden = token.end(), opened
    if not pieces and not _ENTITY.search(text):
        return text
    pieces.append(text[start:])
    decoded = _ENTITY.sub(lambda entity: html.unescape(entity[0]), "".join(pieces))
    lines = (" ".join(line.split()) for line in decoded.split("\n"))
    return "\n".join(line for line in lines if line)
