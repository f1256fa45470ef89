"""Prompts for chat models, from a template file and the definitions of a config.

A template is a Jinja file with the blocks `system`, `user` and `again`. Untrusted texts of queries and items reach
it only as `query` and `item`: JSON strings in tagged blocks, without any character that begins a tag or a control
token of chat models. So no text can close its block, whatever the template does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import SandboxedEnvironment

from jax_rele.annotation import definitions
from jax_rele.annotation.answers import MAX_VALUES, Failure, JsonObject, answer_form, read_answer
from jax_rele.errors import UserError
from jax_rele.io import hash_bytes
from jax_rele.names import PROMPT_LANGUAGES
from jax_rele.types import ITEM_FIELDS, VERDICTS, Item, Pair, Rationale

FIELDS = (*ITEM_FIELDS, "attributes")
"""JsonObject of an item that a prompt can show."""

BLOCKS = {
    "system": ("dimensions", "labels", "rules", "fields", "form", "reasoning"),
    "user": ("query", "item"),
    "again": ("gold", "previous"),
}
"""The blocks of a template and their variables; all have those of `system`."""

# `<` begins the tags and most control tokens of chat models (<|im_end|>), `[` the others ([/INST]).
_ESCAPED = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>[＜＞\x7f\x85\u2028\u2029"}

Message = Mapping[str, str]


@dataclass(frozen=True)
class PromptExample:
    """A pair and the answer that a prompt shows for it; the rationale has a label."""

    pair: Pair
    rationale: Rationale


@dataclass(frozen=True)
class Prompts:
    """Prompts from one template; use `load`.

    Attributes:
      name, source: of the template: its name in messages, and its text.
      dimensions, labels: {name: what it means}, in the order of the schema.
      rules: business rules in words.
      examples: shown as earlier turns of the chat.
      fields: of the item that are shown.
      reasoning: whether a sentence or two of free text is asked for, between verdicts and label.
    """

    name: str
    source: str
    dimensions: Mapping[str, str]
    labels: Mapping[str, str]
    examples: tuple[PromptExample, ...]
    fields: tuple[str, ...]
    reasoning: bool = False
    rules: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        template: str | Path,
        *,
        dimensions: Mapping[str, str],
        labels: Mapping[str, str],
        examples: Sequence[PromptExample] = (),
        fields: Sequence[str] = ("title", "brand", "color"),
        reasoning: bool = False,
        rules: Sequence[str] = (),
    ) -> Prompts:
        """Reads a template and renders it once, so that its mistakes are reported here.

        Args:
          template: a language of the package, or a path.
          dimensions, labels: {name: description}; an empty one is replaced by that of `definitions`, in the language of
            a template of the package, else in English.
          examples, fields, reasoning, rules: see `Prompts`; fields are names of `FIELDS`.

        Raises:
          UserError: the template cannot be read or rendered, has an unknown field or lacks a block; a label has no
            definition; an example does not fit; a field is unknown.
        """
        if unknown := [field for field in fields if field not in FIELDS]:
            raise UserError(f"the field {unknown[0]!r} cannot be shown in a prompt; known are {', '.join(FIELDS)}")
        text = str(template)
        packaged = text in PROMPT_LANGUAGES
        language = text if packaged else "en"
        dimensions = definitions.describe(dimensions, definitions.DIMENSIONS.get(language, {}))
        labels = definitions.describe(labels, definitions.LABELS.get(language, {}))
        if undefined := [name for name, meaning in labels.items() if not meaning]:
            raise UserError(f"the label {undefined[0]!r} has no definition; say what it means in annotate.definitions")
        for number, example in enumerate(examples, 1):
            _check_example(example, number, dimensions, labels)
        source = _read(text, packaged)
        prompts = cls(text, source, dimensions, labels, tuple(examples), tuple(fields), reasoning, tuple(rules))
        prompts._try_out()
        return prompts

    @cached_property
    def version(self) -> str:
        """Hash of the template and everything that it shows besides the pair: 16 hexadecimal digits."""
        rendered = [self.messages(_PROBE), self.messages_again(_PROBE, self._probe_answer, next(iter(self.labels)))]
        whole = [self.source, rendered, self.schema, list(self.fields)]
        return hash_bytes(json.dumps(whole, ensure_ascii=True).encode())

    @cached_property
    def schema(self) -> JsonObject:
        """JSON schema of an answer, as strict servers require it; its keys are in the order of generation."""
        values = {"type": "array", "items": {"type": "string"}}
        verdict = {"type": "string", "enum": list(VERDICTS)}
        properties: JsonObject = {
            "query_attributes": _object(dict.fromkeys(self.dimensions, values)),
            "item_attributes": _object(dict.fromkeys(self.dimensions, values)),
            "verdicts": _object(dict.fromkeys(self.dimensions, verdict)),
        }
        if self.reasoning:
            properties["reasoning"] = {"type": "string"}
        return _object({**properties, "label": {"type": "string", "enum": list(self.labels)}})

    def messages(self, pair: Pair) -> tuple[Message, ...]:
        """The chat that asks about a pair, without its label."""
        chat: list[Message] = [{"role": "system", "content": self._system}]
        for example in self.examples:
            chat += self._turn(example.pair), self._answer_message(example.rationale)
        return (*chat, self._turn(pair))

    def messages_again(self, pair: Pair, previous: Rationale, gold: str) -> tuple[Message, ...]:
        """The chat that asks again, with the previous answer and the gold label that differs from its label."""
        disagreement = self._render("again", gold=gold, previous=previous.label)
        return (*self.messages(pair), self._answer_message(previous), {"role": "user", "content": disagreement})

    def _turn(self, pair: Pair) -> Message:
        shown = {"query": delimit_query(pair.query), "item": delimit_item(pair.item, self.fields)}
        return {"role": "user", "content": self._render("user", **shown)}

    def _answer_message(self, rationale: Rationale) -> Message:
        return {"role": "assistant", "content": encode(answer_form(rationale, list(self.dimensions)))}

    @cached_property
    def _system(self) -> str:
        return self._render("system")

    @cached_property
    def _variables(self) -> JsonObject:
        """The variables of every block."""
        values = {name: ["..."] for name in self.dimensions}
        verdicts = dict.fromkeys(self.dimensions, "|".join(VERDICTS))
        form: JsonObject = {"query_attributes": values, "item_attributes": values, "verdicts": verdicts}
        form |= {"reasoning": "..."} if self.reasoning else {}
        return {
            "dimensions": [{"name": name, "description": meaning} for name, meaning in self.dimensions.items()],
            "labels": [{"name": name, "definition": meaning} for name, meaning in self.labels.items()],
            "rules": list(self.rules),
            "fields": list(self.fields),
            "form": json.dumps({**form, "label": "|".join(self.labels)}, ensure_ascii=False),
            "reasoning": self.reasoning,
        }

    @cached_property
    def _template(self) -> Template:
        environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            tree = environment.parse(self.source, self.name, self.name)
            blocks = {block.name for block in tree.find_all(nodes.Block)}
            # Rendering once would not reach every branch.
            known = {*self._variables, *(field for block in blocks for field in BLOCKS.get(block, ()))}
            unknown = sorted(meta.find_undeclared_variables(tree) - known)
            if unknown:
                line = min(name.lineno for name in tree.find_all(nodes.Name) if name.name == unknown[0])
                raise UserError(f"{self.name}:{line}: the field {unknown[0]!r} is unknown; known are {self._known()}")
            # A template without a loader cannot include other files.
            template = environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise UserError(f"{self.name}:{error.lineno}: {_one_line(error)}") from None
        if missing := [block for block in BLOCKS if block not in template.blocks]:
            raise UserError(f"{self.name}: has no block {missing[0]!r}; a template has {', '.join(BLOCKS)}")
        return template

    def _render(self, block: str, **fields: object) -> str:
        template = self._template
        try:
            return "".join(template.blocks[block](template.new_context({**self._variables, **fields}))).strip()
        except UserError:
            raise
        except Exception as error:  # a template can raise anything
            what = _one_line(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            line = _line_in(error, template)
            raise UserError(
                f"{self.name}:{line}: {' '.join(what.split())} in the block {block!r}, which knows {self._known(block)}"
            ) from None

    def _known(self, block: str | None = None) -> str:
        own = [name for other, names in BLOCKS.items() if block in (None, other) for name in names]
        return ", ".join(dict.fromkeys([*BLOCKS["system"], *own]))

    @cached_property
    def _probe_answer(self) -> Rationale:
        return Rationale((), list(self.labels)[-1])

    def _try_out(self) -> None:
        for pair in (_PROBE, Pair("probe", "", Item("probe", "t"))):
            self.messages_again(pair, self._probe_answer, next(iter(self.labels)))
        shown = self.messages(_PROBE)[-1]["content"]
        if lacking := [rule for rule in self.rules if rule not in self._system]:
            raise UserError(
                f"{self.name}: the block 'system' must show the rules, of which {lacking[0]!r} is missing: "
                "{% for rule in rules %}- {{ rule }}{% endfor %}"
            )
        if delimit_query(_PROBE.query) not in shown or delimit_item(_PROBE.item, self.fields) not in shown:
            raise UserError(f"{self.name}: the block 'user' must show {{{{ query }}}} and {{{{ item }}}} as they are")


def delimit_query(query: str) -> str:
    """A query as a tagged block that it cannot close."""
    return f"<query>{encode(query)}</query>"


def delimit_item(item: Item, fields: Sequence[str]) -> str:
    """An item's non-empty fields as a tagged block that none of them can close, one field a line."""
    lines = [f"{field}: {encode(text)}" for field, text in item.texts([f for f in fields if f != "attributes"])]
    if "attributes" in fields and item.attributes:
        lines.append(f"attributes: {encode([list(couple) for couple in item.attributes])}")
    return "\n".join(["<item>", *lines, "</item>"])


def encode(value: object) -> str:
    """Texts, lists and objects of texts as JSON on one line, whose strings have escapes for `<`, `>` and `[`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{encode(name)}: {encode(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(encode, value)) + "]"
    text = json.dumps(value, ensure_ascii=False).translate(_ESCAPED)
    # A lone surrogate has no UTF-8 form.
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)


def read_examples(
    raw: Sequence[object], dimensions: Sequence[str], labels: Sequence[str], where: str = "examples"
) -> tuple[PromptExample, ...]:
    """Examples as a config writes them: [{"query", "item": {"title", ...}, "answer": an answer as JSON}, ...].

    Raises:
      UserError: one is incomplete, or its answer does not fit the schema; `where` is the path of the examples.
    """
    examples = []
    for number, example in enumerate(raw):
        location = f"{where}[{number}]"
        if not isinstance(example, Mapping) or {"query", "item", "answer"} != set(example):
            raise UserError(f"{location}: must have query, item and answer, and nothing else")
        item = example["item"]
        if not isinstance(item, Mapping) or not item.get("title") or not set(item) <= set(FIELDS):
            raise UserError(f"{location}.item: must have a title, and otherwise only {', '.join(FIELDS)}")
        attributes = tuple((str(name), str(value)) for name, value in dict(item.get("attributes") or {}).items())
        texts = {name: str(text) for name, text in item.items() if name != "attributes"}
        answer = read_answer(json.dumps(example["answer"]), dimensions, labels)
        if isinstance(answer, Failure):
            raise UserError(f"{location}.answer: {answer.kind} ({answer.detail}); write it by the answers' schema")
        shown = Item(f"example-{number}", **texts, attributes=attributes)
        examples.append(PromptExample(Pair(f"example-{number}", str(example["query"]), shown), answer))
    return tuple(examples)


_PROBE = Pair(
    "probe",
    "A <Query>",
    Item("probe", "A <Title>", "A Brand", "A Color", "A Category", "A Bullet", "A Text", (("Name", "Value"),)),
)


def _object(properties: Mapping[str, object]) -> JsonObject:
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _check_example(example: PromptExample, number: int, dimensions: Mapping, labels: Mapping) -> None:
    rationale = example.rationale
    if rationale.label not in labels:
        raise UserError(f"example {number}: the label {rationale.label!r} is not one of {', '.join(labels)}")
    for compared in rationale.comparisons:
        if compared.dimension not in dimensions:
            raise UserError(f"example {number}: {compared.dimension!r} is not one of {', '.join(dimensions)}")
        if max(len(compared.query_values), len(compared.item_values)) > MAX_VALUES:
            raise UserError(f"example {number}: {compared.dimension} has more than {MAX_VALUES} values")


def _read(template: str, packaged: bool) -> str:
    try:
        if packaged:
            return files("jax_rele.annotation").joinpath("templates", f"{template}.j2").read_text("utf-8")
        return Path(template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        languages = " or ".join(PROMPT_LANGUAGES)
        raise UserError(f"{template}: the template cannot be read ({why}); name {languages}, or a file") from None


def _line_in(error: BaseException, template: Template) -> int:
    """The line of the template at which it raised; 1 where that is unknown."""
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("name") == template.name and "blocks" in trace.tb_frame.f_globals:
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
