"""Rationales from the answers of chat models: JSON by the schema, tolerantly read, else lines of the grammar."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jax_rele.annotation import extra
from jax_rele.annotation.types import ModelAnswer
from jax_rele.rationale import ParseFailure, parse_output
from jax_rele.types import VERDICTS, Comparison, Rationale

KINDS = ("empty", "refusal", "truncated", "not_json", "wrong_schema", "unknown_verdict", "unknown_label",
         "several_labels", "rejected")  # fmt: skip
"""The kinds of failures. `rejected` means that the server refused the request for good."""

MAX_VALUES = 16
"""Values on one side of a dimension; more are not attributes."""

MAX_VALUE_CHARACTERS = 200
MAX_CHARACTERS = 1 << 18
"""Of an answer; the rest is not read."""

# Each attempt to read an object may scan the whole text.
_MAX_OBJECTS = 64
_MAX_REPAIRED = 1 << 15
_DEEPEST = 64

JsonObject: TypeAlias = dict[str, object]
"""A JSON object."""

_SECTIONS = ("query_attributes", "item_attributes", "verdicts")
_VERDICT_ALIASES = {"匹配": "match", "一致": "match", "不匹配": "mismatch", "不一致": "mismatch"}
_VERDICT_ALIASES |= {"缺失": "absent", "未提及": "absent", "无": "absent"}
_VERDICT_ALIASES |= {"一致する": "match", "マッチ": "match", "一致しない": "mismatch", "ミスマッチ": "mismatch"}
_VERDICT_ALIASES |= dict.fromkeys(("該当なし", "記載なし", "未記載", "なし"), "absent")
_VERDICT_ALIASES |= dict.fromkeys(("coincide", "coinciden", "coincidencia"), "match")
_VERDICT_ALIASES |= dict.fromkeys(("nocoincide", "nocoinciden", "discrepancia"), "mismatch")
_VERDICT_ALIASES |= dict.fromkeys(("ausente", "noaplica", "noindicado"), "absent")
_THOUGHTS = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|analysis|reflection)"
_THINK_END = re.compile(rf"</{_THOUGHTS}>|\[/{_THOUGHTS}\]|\u25c1/think\u25b7|<\|end_of_thought\|>", re.IGNORECASE)
_THINK_START = re.compile(rf"<{_THOUGHTS}>|\[{_THOUGHTS}\]|\u25c1think\u25b7|<\|begin_of_thought\|>", re.IGNORECASE)
# Channels as gpt-oss writes them; some servers leave out the marks in angle brackets.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_BARE_FINAL = re.compile(r"assistant\s*final(?=\s*[{`])")
_SEPARATORS = re.compile(r"[\s_\-]+")
_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,15})?")
_LABEL_FIELD = re.compile(r"[\"'“”‘’]label[\"'“”‘’]\s*[:：]\s*[\"'“”‘’]([^\"'“”‘’]*)", re.IGNORECASE)
_LIST = re.compile(r"[/,|;、，；]| or | and |或|和|または| o | y ")
_REFUSAL = re.compile(
    r"(?:i(?:['’]m| am) (?:really |very )?(?:sorry|unable|not able)|sorry\b|i (?:can(?:no|['’])t|cannot|won['’]t)\b"
    r"|i must decline|as an ai\b|unfortunately, i\b|(?:很|非常)?抱歉|对不起"
    r"|我?(?:无法|不能)(?:协助|回答|提供|完成|处理|满足)"
    r"|(?:大変)?申し訳(?:ありません|ございません|ないのですが)|すみませんが|お手伝いできません"
    r"|lo (?:siento|lamento)\b|(?:disculpa|perdona)[,.]? no puedo\b|como modelo de lenguaje\b"
    r"|no puedo (?:ayudar|responder|proporcionar|cumplir))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """Why an answer holds no rationale: one of `KINDS`, and what exactly, on one line."""

    kind: str
    detail: str = ""


class _Unreadable(Exception):
    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)
        self.failure = Failure(kind, " ".join(detail.split())[:200])


def read(answer: ModelAnswer, dimensions: Sequence[str], labels: Sequence[str]) -> Rationale | Failure:
    """The rationale in an endpoint's answer (see `read_answer`), also in one cut at its length that is complete."""
    kind, _, detail = answer.failure.partition(": ")
    if kind and kind != "length":
        return Failure(kind if kind in KINDS else "rejected", detail or ("" if kind in KINDS else kind))
    read_text = read_answer(answer.text, dimensions, labels)
    if kind == "length" and isinstance(read_text, Failure):
        return Failure("truncated", detail or read_text.detail)
    return read_text


def read_answer(text: str, dimensions: Sequence[str], labels: Sequence[str]) -> Rationale | Failure:
    """The rationale in a model's answer. Never raises.

    Ignored are think blocks (also unclosed ones, or opened in the prompt), code fences, prose around the object, slips
    of JSON (trailing commas, single quotes, comments), and case, blanks and hyphens of names. Unknown dimensions are
    dropped; one without values and verdict is absent. An answer without an object is read by `parse_output`.

    Args:
      text: what the model wrote.
      dimensions: the dimensions of the result, in its order.
      labels: the labels that there are.

    Returns:
      A rationale with a comparison for each of `dimensions` and a label of `labels`; or why there is none.
    """
    text = text[:MAX_CHARACTERS]
    # Python's own limit differs from version to version.
    if max(_depths(text), default=0) > _DEEPEST and _is_balanced(text[text.find("{") :]):
        return Failure("not_json", "nested too deeply")
    try:
        return _read(text, dimensions, labels)
    except _Unreadable as error:
        return error.failure
    except RecursionError:
        return Failure("not_json", "nested too deeply")


def answer_form(rationale: Rationale, dimensions: Sequence[str]) -> JsonObject:
    """A rationale in the form of the schema; `read_answer` reads it back."""
    parsed = {comparison.dimension: comparison for comparison in rationale.comparisons}
    compared = {name: parsed.get(name) or Comparison(name) for name in dimensions}
    return {
        "query_attributes": {name: list(comparison.query_values) for name, comparison in compared.items()},
        "item_attributes": {name: list(comparison.item_values) for name, comparison in compared.items()},
        "verdicts": {name: comparison.verdict for name, comparison in compared.items()},
        "label": rationale.label,
    }


def _read(text: str, dimensions: Sequence[str], labels: Sequence[str]) -> Rationale:
    if not text.strip():
        raise _Unreadable("empty", "")
    whole = _load(text.strip())
    if isinstance(whole, str):  # an object that was written as a JSON text
        whole = _load(whole.strip())
    if isinstance(whole, dict):
        return _rationale(_unwrap(whole), dimensions, labels)
    answer = _without_thoughts(text)
    if not answer.strip():
        raise _Unreadable("truncated", "ends in its thoughts")
    rationales = [_rationale(parsed, dimensions, labels) for parsed in _objects(answer) if _is_answer(parsed)]
    if len({rationale.label for rationale in rationales}) > 1:
        raise _Unreadable("several_labels", ", ".join(dict.fromkeys(str(each.label) for each in rationales)))
    return rationales[-1] if rationales else _read_damaged(answer, dimensions, labels)


def _read_damaged(answer: str, dimensions: Sequence[str], labels: Sequence[str]) -> Rationale:
    """An answer that holds no valid JSON object: JSON with slips, or lines of the grammar."""
    start, end = answer.find("{"), answer.rfind("}") + 1
    if start >= 0:
        body = answer[start:].rstrip().removesuffix("```").rstrip()
        closed = next((parsed for marks in ("}", "}}") if isinstance(parsed := _load(body + marks), dict)), None)
        if closed is not None and _is_answer(closed):
            return _rationale(_unwrap(closed), dimensions, labels)
    if 0 <= start < end and _is_balanced(answer[start:end]):
        repaired = _repair(answer[start:end])
        if repaired is not None and _is_answer(repaired):
            distinct = {_plain(label) for label in _LABEL_FIELD.findall(answer[start:end])}
            if len(distinct) > 1:
                raise _Unreadable("several_labels", ", ".join(sorted(distinct)))
            return _rationale(_unwrap(repaired), dimensions, labels)
    lines = parse_output(answer, dimensions=dimensions, labels=labels)
    if isinstance(lines, ParseFailure):
        raise _why_unreadable(answer, lines.reason, start, end)
    if all(each == Comparison(each.dimension) for each in lines.comparisons):
        raise _Unreadable("wrong_schema", "a label without comparisons")
    for comparison in lines.comparisons:
        for value in (*comparison.query_values, *comparison.item_values):
            _check_value(value, comparison.dimension)
    return lines


def _why_unreadable(answer: str, reason: str, start: int, end: int) -> _Unreadable:
    """Why an answer is neither JSON nor lines of the grammar, where the latter failed for `reason`."""
    plain = answer.strip().lstrip("\"'*#> ")
    if start < 0 and _REFUSAL.match(plain):
        return _Unreadable("refusal", plain)
    if start >= 0 and not _is_balanced(answer[start:]):
        return _Unreadable("truncated", f"ends in {answer.rstrip()[-40:]!r}")
    if reason.startswith("more than one label"):
        return _Unreadable("several_labels", reason)
    if reason.startswith("the label "):
        return _Unreadable("unknown_label", reason)
    if ": the verdict " in reason:
        return _Unreadable("unknown_verdict", reason)
    if 0 <= start < end and isinstance(_load(answer[start:end]), dict):
        return _Unreadable("wrong_schema", "an object without label and verdicts")
    return _Unreadable("not_json", f"begins with {plain[:40]!r}")


def _without_thoughts(text: str) -> str:
    """The text in the final channel or after the last think block, or before one that is not closed.

    A mark within a JSON object is a value that quotes it.
    """
    if channels := list(_CHANNEL.finditer(text)):
        final = [channel for channel in channels if channel[1] == "final"]
        # The call of a function is an answer too.
        final = final or [channel for channel in channels if "to=functions." in channel[0]]
        if not final:
            return ""
        text = _CHANNEL_END.split(text[final[-1].end() :])[0]
    elif text.lstrip().startswith("analysis") and (finals := list(_BARE_FINAL.finditer(text))):
        text = text[finals[-1].end() :]
    closes, opens = list(_THINK_END.finditer(text)), list(_THINK_START.finditer(text))
    spans = [span for span, _ in _spans(text)] if closes or opens else []
    closes, opens = (
        [mark for mark in marks if not any(start <= mark.start() < end for start, end in spans)]
        for marks in (closes, opens)
    )
    begin = closes[-1].end() if closes else 0
    return text[begin : next((mark.start() for mark in opens if mark.start() >= begin), len(text))]


def _load(text: str) -> object:
    """Valid JSON; None for anything else."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except ValueError:
        return None


def _objects(text: str) -> Iterator[JsonObject]:
    """The outermost JSON objects in a text."""
    return (parsed for _, parsed in _spans(text))


def _spans(text: str) -> Iterator[tuple[tuple[int, int], JsonObject]]:
    """The outermost JSON objects in a text, each after its [start, end)."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    start = text.find("{")
    for _ in range(_MAX_OBJECTS):
        if start < 0:
            return
        try:
            parsed, end = decoder.raw_decode(text, start)
            yield (start, end), _unwrap(parsed)
        except ValueError:
            end = start + 1
        start = text.find("{", end)


def _repair(text: str) -> JsonObject | None:
    if len(text) > _MAX_REPAIRED or max(_depths(text), default=0) > _DEEPEST:
        return None
    extra.require("json_repair")
    import json_repair

    try:
        parsed = json_repair.loads(text, skip_json_loads=True)
    except Exception:  # What the library fails at, with its own assertions among it, is not repaired.
        return None
    return parsed if isinstance(parsed, dict) else None


def _is_balanced(text: str) -> bool:
    """Whether every brace is closed, or the first one before the text ends."""
    depth = -1
    for depth in _depths(text):
        if depth <= 0:
            return True
    return depth == 0


def _depths(text: str) -> Iterator[int]:
    """How many braces are open after each brace outside of double quotes."""
    depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[{}]', text, re.DOTALL):
        if match[0] in "{}":
            depth += 1 if match[0] == "{" else -1
            yield depth


class _Twice(tuple):
    """The different values of a key that stands twice."""


def _unique(couples: Iterable[tuple[str, object]]) -> JsonObject:
    """An object; a key that stands twice with different values has both as a `_Twice`."""
    fields: JsonObject = {}
    for key, value in couples:
        fields[key] = value if key not in fields or fields[key] == value else _Twice((fields[key], value))
    return fields


def _unwrap(parsed: JsonObject) -> JsonObject:
    """The answer within an object that holds nothing else, e.g. {"answer": {...}}."""
    inner = next(iter(parsed.values())) if len(parsed) == 1 else None
    return inner if isinstance(inner, dict) else parsed


def _is_answer(parsed: JsonObject) -> bool:
    return {"label", "verdicts"} <= {_plain(key) for key in _unwrap(parsed)}


def _rationale(parsed: JsonObject, dimensions: Sequence[str], labels: Sequence[str]) -> Rationale:
    fields = _unique((_plain(key), value) for key, value in parsed.items())
    if "label" not in fields:
        raise _Unreadable("wrong_schema", "no label")
    label = _label(fields["label"], labels)
    sections = {}
    for name in _SECTIONS:
        section = fields.get(_plain(name), {} if name != "verdicts" else None)
        if not isinstance(section, dict):
            raise _Unreadable("wrong_schema", f"{name} must be an object")
        sections[name] = _by_dimension(section, dimensions, name)
    return Rationale(tuple(_comparison(name, sections) for name in dimensions), label)


def _by_dimension(section: JsonObject, dimensions: Sequence[str], name: str) -> JsonObject:
    values: JsonObject = {}
    for key, value in section.items():
        dimension = _lookup(key, dimensions)
        if dimension is None:
            continue
        if isinstance(value, _Twice) or (dimension in values and values[dimension] != value):
            raise _Unreadable("wrong_schema", f"{name}: {dimension} stands twice")
        values[dimension] = value
    return values


def _comparison(dimension: str, sections: Mapping[str, JsonObject]) -> Comparison:
    query, item = (_values(sections[name].get(dimension), dimension) for name in _SECTIONS[:2])
    text = sections["verdicts"].get(dimension)
    if text is None and not query and not item:
        return Comparison(dimension)
    if not isinstance(text, str):
        detail = "no verdict" if text is None else "the verdict must be a text"
        raise _Unreadable("wrong_schema", f"{dimension}: {detail}")
    verdict = _lookup(text, VERDICTS) or _VERDICT_ALIASES.get(_plain(text))
    if verdict is None:
        raise _Unreadable("unknown_verdict", f"{dimension}: {text[:40]!r}")
    return Comparison(dimension, query, item, verdict)


def _values(parsed: object, dimension: str) -> tuple[str, ...]:
    if isinstance(parsed, _Twice):
        raise _Unreadable("wrong_schema", f"{dimension}: values stand twice")
    if parsed is None or isinstance(parsed, str | int | float):
        parsed = [parsed]
    if not isinstance(parsed, list) or len(parsed) > MAX_VALUES:
        raise _Unreadable("wrong_schema", f"{dimension}: values must be a list of at most {MAX_VALUES} texts")
    values: dict[str, None] = {}
    for value in parsed:
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise _Unreadable("wrong_schema", f"{dimension}: a value must be a text")
        text = "" if value is None else str(value).strip()
        _check_value(text, dimension)
        if text not in ("", "-"):
            values[text] = None
    return tuple(values)


def _check_value(text: str, dimension: str) -> None:
    if len(text) > MAX_VALUE_CHARACTERS:
        raise _Unreadable("wrong_schema", f"{dimension}: a value of {len(text)} characters")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise _Unreadable("wrong_schema", f"{dimension}: a value that is not valid Unicode")


def _label(parsed: object, labels: Sequence[str]) -> str:
    several = parsed if isinstance(parsed, _Twice | list) else [parsed]
    texts = [text for text in (_label_text(one, labels) for one in several) if text is not None]
    if not texts or len(texts) < len(several):
        raise _Unreadable("wrong_schema", "label must be a text")
    names = {_lookup(name, labels) for name in texts}
    if len(names) > 1:
        raise _Unreadable("several_labels", ", ".join(texts))
    label = names.pop()
    if label is None:
        parts = [part for part in _LIST.split(texts[0]) if _lookup(part, labels)]
        raise _Unreadable("several_labels" if len(parts) > 1 else "unknown_label", repr(texts[0][:80]))
    return label


def _label_text(label: object, labels: Sequence[str]) -> str | None:
    """A label as text; of a number or truth value only where it is a label's: `1` and `1.0` are one number."""
    if isinstance(label, bool):
        return _lookup(json.dumps(label), labels)
    if not isinstance(label, str | int | float):
        return None
    if isinstance(label, str) and _lookup(label, labels):
        return label
    same = [name for name in labels if _NUMBER.fullmatch(name) and _NUMBER.fullmatch(str(label))]
    same = [name for name in same if float(name) == float(label)]
    return same[0] if len(same) == 1 else label if isinstance(label, str) else None


def _lookup(name: str, names: Sequence[str]) -> str | None:
    """The same name among `names`, else the only one that differs in case and separators alone."""
    if name in names:
        return name
    plain = _plain(name)
    alike = [other for other in names if _plain(other) == plain]
    return alike[0] if len(alike) == 1 and plain else None


def _plain(name: str) -> str:
    return _SEPARATORS.sub("", unicodedata.normalize("NFKC", str(name)).strip(" \t\r\n*`\"'.,:").casefold())
