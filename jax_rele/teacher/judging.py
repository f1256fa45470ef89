"""Label distributions, verdicts and rationales of a teacher for pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.rows import as_pair
from jax_rele.data.tokens.prompts import AnswerEncoder, encode_prompts
from jax_rele.data.tokens.text_loss import TextLoss, summarize
from jax_rele.models import Decoder
from jax_rele.progress import every
from jax_rele.rationale import Annotator, grammar, parse_output, render
from jax_rele.teacher.continuous_batching import GeneratedText, generate, row_key
from jax_rele.teacher.decoding import Sampling, draw
from jax_rele.teacher.form import AnswerForm, check_lengths, make_form
from jax_rele.teacher.label_scores import score, score_choices
from jax_rele.teacher.perspectives import Perspective, PerspectiveAnnotator, comparison, mean_of_perspectives
from jax_rele.teacher.predictions import TeacherPredictions, average
from jax_rele.teacher.template import VERDICT
from jax_rele.teacher.verbalizers import check_verbalizers
from jax_rele.training import check_rows
from jax_rele.types import VERDICTS, LabelSchema, Pair, Rationale

GREEDY = Sampling()


@dataclass(frozen=True)
class Teacher:
    """A decoder with the settings to score pairs and generate rationales.

    Attributes:
      model, variables: the decoder and its parameters, `lora` included.
      tokenizer: the decoder's.
      schema: the labels to choose from.
      dimensions: the aspects to compare, in order.
      fields: the item's texts in the prompt.
      order: one of `names.ORDERS`.
      prompt_length, value_length: maximum tokens of a prompt, besides instructions and chat template, and of a slot of
        values.
      batch_size: rows per forward pass, and slots of the decoder.
      instructions: text before the query of every prompt.
      chat: whether prompts are chats, by the tokenizer's template.
      samples, sampling: how many rationales per pair `judge` averages over (self-consistency), and how they are drawn;
        1 for greedy decoding.
      annotator: who writes the rationales that the teacher reads before it judges, in passes that decode nothing; None
        where the teacher writes them itself.
      perspectives: further kinds of answer; `judge` gives the mean over them and the answer that the fields above
        describe.
      mesh: the devices that the variables live on; None for one device.
    """

    model: Decoder
    variables: dict
    tokenizer: PreTrainedTokenizerBase
    schema: LabelSchema
    dimensions: tuple[str, ...]
    fields: tuple[str, ...]
    order: str
    prompt_length: int
    value_length: int
    batch_size: int
    instructions: str = ""
    chat: bool = False
    samples: int = 1
    sampling: Sampling = GREEDY
    annotator: Annotator | None = None
    perspectives: tuple[Perspective, ...] = ()
    mesh: jax.sharding.Mesh | None = None

    def text_loss(self, pairs: Sequence[Pair | tuple[str, str]]) -> TextLoss:
        """What of the pairs' texts is not in their prompts."""
        losses: list[np.ndarray] = []
        asked = [as_pair(pair) for pair in pairs]
        encode_prompts(
            self.tokenizer, asked, self.fields, self.prompt_length, self.instructions, self.chat, losses=losses
        )
        return summarize(losses)

    def predict(
        self, pairs: Sequence[Pair | tuple[str, str]], *, progress: Callable[[int], None] = lambda pairs: None
    ) -> TeacherPredictions:
        """Label distributions alone, see `judge`; a pair is a `Pair`, or the texts of a query and an item."""
        return judge(self, [as_pair(pair) for pair in pairs], write=False, progress=progress)

    def explain(
        self, pairs: Sequence[Pair | tuple[str, str]], *, progress: Callable[[int], None] = lambda pairs: None
    ) -> TeacherPredictions:
        """Rationales with label distributions, see `judge`; with order `label_only` there is no rationale."""
        return judge(self, [as_pair(pair) for pair in pairs], write=self.order != "label_only", progress=progress)


def judge(
    teacher: Teacher, pairs: Sequence[Pair], *, write: bool = True, progress: Callable[[int], None] = lambda pairs: None
) -> TeacherPredictions:
    """Predicts labels and rationales of pairs, in order.

    With `teacher.samples` of 1 decoding is greedy. Otherwise that many rationales are drawn for every pair, and its
    distributions are the means over them (self-consistency; Wang et al., arXiv 2203.11171), see `predictions.average`.
    With `teacher.annotator` nothing is decoded, see `read_rationales`. With `teacher.perspectives` all of that is done
    for every kind of answer, see `perspectives.mean_of_perspectives`.

    Args:
      teacher: the decoder and its settings.
      pairs: the pairs.
      write: whether to generate rationales. If False, orders that put the label first are scored from the prompt alone;
        `rationale_first` generates a rationale all the same, since the label is conditioned on it.
      progress: called with the number of pairs after each batch.

    Raises:
      UserError: labels or verdicts that the tokenizer does not distinguish, a context that is too short, or a batch
        that does not divide over the devices.
    """
    if teacher.perspectives:
        each = every(1 + len(teacher.perspectives), progress)
        main = judge(replace(teacher, perspectives=()), pairs, write=write, progress=each)
        others = {
            one.name: (one.lines, judge(from_perspective(teacher, one), pairs, write=write, progress=each))
            for one in teacher.perspectives
        }
        return mean_of_perspectives(main, others, teacher.schema.names, teacher.dimensions, teacher.order)
    reads = teacher.order == "rationale_first" or (write and teacher.order == "label_first")
    if teacher.annotator is not None and reads:
        return read_rationales(teacher, pairs, teacher.annotator.annotate(pairs), progress=progress)
    count = teacher.samples
    # Labels that no rationale precedes do not depend on the sample.
    if count == 1 or teacher.order == "label_only" or (teacher.order == "label_first" and not write):
        return sample(teacher, pairs, 1, GREEDY, write=write, progress=progress)[0]
    samples = sample(teacher, pairs, count, teacher.sampling, write=write, progress=every(count, progress))
    return average(samples, teacher.schema.names, teacher.dimensions)


def from_perspective(teacher: Teacher, perspective: Perspective) -> Teacher:
    """The teacher that gives one kind of answer alone."""
    annotator = teacher.annotator
    return replace(
        teacher,
        order=perspective.order,
        dimensions=perspective.lines,
        instructions=perspective.instructions,
        annotator=annotator and PerspectiveAnnotator(annotator, perspective),
        perspectives=(),
    )


def sample(
    teacher: Teacher,
    pairs: Sequence[Pair],
    samples: int,
    sampling: Sampling,
    *,
    write: bool = True,
    progress: Callable[[int], None] = lambda pairs: None,
) -> tuple[TeacherPredictions, ...]:
    """Draws several predictions for every pair: labels, verdicts and values; of the main answer alone.

    Args:
      teacher, pairs, write: as for `judge`.
      samples: number of samples per pair.
      sampling: how tokens are drawn. A sample depends on the pair's prompt, the seed and the number of the sample, not
        on the other pairs.
      progress: called with the number of predictions after each batch.

    Returns:
      For each of the samples the predictions for all pairs, in order.

    Raises:
      UserError: as `judge`.
    """
    form = _checked_form(teacher)
    prompts = encode_prompts(
        teacher.tokenizer, pairs, teacher.fields, teacher.prompt_length, teacher.instructions, teacher.chat
    )
    template, label_last = form.template, teacher.order == "rationale_first"
    written: list[list[GeneratedText]] | None = None

    def decode(prefixes):
        assert template is not None  # only an order with a rationale decodes
        return generate(
            teacher.model,
            teacher.variables,
            template,
            prompts,
            prefixes,
            sampling=sampling,
            progress=progress,
            batch_size=teacher.batch_size,
            mesh=teacher.mesh,
        )[0]

    def scored(rows):
        """[pairs, samples or 1, labels]: the label distribution after each of several rows of a pair."""
        probs = score(
            teacher.model,
            teacher.variables,
            [[*row, *form.before_label, *form.verbalizers.common] for several in rows for row in several],
            form.verbalizers,
            form.follow,
            groups=[pair.query for pair, several in zip(pairs, rows) for _ in several],
            progress=(lambda rows: None) if writes or label_last else lambda rows: progress(rows * samples),
            batch_size=teacher.batch_size,
            mesh=teacher.mesh,
        )
        return probs.reshape(len(pairs), len(rows[0]) if rows else samples, len(teacher.schema))

    writes = write and teacher.order == "label_first"
    if label_last and template is not None:
        written = decode([[template.prefix] * samples for _ in prompts])
    if written is None or template is None:
        probs = scored([[prompt] for prompt in prompts])
    elif template.decides_label:
        count = len(teacher.schema)
        probs = np.array([[one.probs[-1, :count] for one in several] for several in written], np.float32)
        probs = probs.reshape(len(pairs), samples, count)
    else:
        probs = scored(
            [[[*prompt, *template.tokens(one.slots)] for one in several] for prompt, several in zip(prompts, written)]
        )
    # Where the label comes first, all samples of a pair have the same distribution.
    probs = np.broadcast_to(probs, (len(pairs), samples, len(teacher.schema)))
    labels = _drawn_labels(prompts, probs, sampling)
    if writes and template is not None:
        before = [
            [(*form.before_label, *form.verbalizers.tokens(label), *template.prefix) for label in row] for row in labels
        ]
        written = decode(before)
    return tuple(
        _make_predictions(
            teacher, form, probs[:, one], labels[:, one], None if written is None else [row[one] for row in written]
        )
        for one in range(samples)
    )


def read_rationales(
    teacher: Teacher,
    pairs: Sequence[Pair],
    rationales: Sequence[Rationale],
    *,
    progress: Callable[[int], None] = lambda pairs: None,
) -> TeacherPredictions:
    """Judges pairs over rationales that are there already: nothing is decoded.

    With order `rationale_first` one pass reads prompt and rationale, with `label_first` one reads the prompt for the
    label, and another prompt, likeliest label and rationale. Each verdict's distribution is that after the rationale's
    values and verdicts before it.

    Args:
      teacher, pairs, progress: as for `judge`; the order is not `label_only`.
      rationales: of each pair. Their labels are not read, and a dimension that one does not compare is absent in it.

    Returns:
      The distributions; the rationales have the values that were read, and the likeliest verdicts and label.
    """
    form = _checked_form(teacher)
    assert form.template is not None  # only `label_only` has no template
    whole = [
        Rationale(tuple(comparison(rationale, dimension) for dimension in teacher.dimensions))
        for rationale in rationales
    ]
    encoder = AnswerEncoder(teacher.tokenizer, teacher.order, teacher.value_length, chat=teacher.chat)
    slots = [form.template.slots(encoder, grammar.segments(rationale, teacher.order)) for rationale in whole]
    label_probs, verdict_probs, tokens = score_slots(teacher, form, pairs, slots, progress=progress)
    names = teacher.schema.names
    read = [
        Rationale(
            tuple(
                replace(compared, verdict=VERDICTS[verdict])
                for compared, verdict in zip(rationale.comparisons, verdicts)
            ),
            names[label],
        )
        for rationale, verdicts, label in zip(whole, verdict_probs.argmax(-1).tolist(), label_probs.argmax(-1).tolist())
    ]
    return TeacherPredictions(
        label_probs=label_probs,
        verdict_probs=verdict_probs,
        texts=tuple(render(rationale, teacher.order) for rationale in read),
        rationales=tuple(read),
        label_scoring=form.verbalizers.scoring,
        tokens_decoded=0,
        tokens_emitted=tokens,
    )


def score_slots(
    teacher: Teacher,
    form: AnswerForm,
    pairs: Sequence[Pair],
    slots: Sequence[Sequence[Sequence[int]]],
    *,
    progress: Callable[[int], None] = lambda pairs: None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """The distributions where the template's slots are filled with given tokens.

    Args:
      teacher, pairs, progress: as for `judge`.
      form: of the teacher's answers.
      slots: of each pair the tokens of each decision's slot; those of a last slot that is the label are not read.

    Returns:
      [N, C] of the labels, [N, D, V] of the verdicts, and the tokens of the rationales that were read.
    """
    template, schema = form.template, teacher.schema
    assert template is not None
    prompts = encode_prompts(
        teacher.tokenizer, pairs, teacher.fields, teacher.prompt_length, teacher.instructions, teacher.chat
    )
    groups = [pair.query for pair in pairs]
    one_pass = template.decides_label

    def score_labels(rows):
        return score(
            teacher.model,
            teacher.variables,
            [[*row, *form.before_label, *form.verbalizers.common] for row in rows],
            form.verbalizers,
            form.follow,
            groups=groups,
            batch_size=teacher.batch_size,
            mesh=teacher.mesh,
        )

    if one_pass:
        label_probs, prefixes = None, prompts
    elif teacher.order == "rationale_first":
        label_probs = score_labels([[*prompt, *template.tokens(each)] for prompt, each in zip(prompts, slots)])
        prefixes = prompts
    else:
        label_probs = score_labels(prompts)
        likeliest = label_probs.argmax(-1).tolist()
        prefixes = [
            [*prompt, *form.before_label, *form.verbalizers.tokens(label)] for prompt, label in zip(prompts, likeliest)
        ]
    filled = [template.before_choices(each) for each in slots]
    before = [[len(prefix) + count for count in counts] for prefix, (_, counts) in zip(prefixes, filled)]
    probs = score_choices(
        teacher.model,
        teacher.variables,
        [[*prefix, *tokens] for prefix, (tokens, _) in zip(prefixes, filled)],
        np.array(before, np.int32).reshape(len(pairs), int(template.is_choice.sum())),
        template.verbalizers[template.choice[template.is_choice], :, 0],
        groups=groups,
        batch_size=teacher.batch_size,
        mesh=teacher.mesh,
        progress=progress,
    )
    if label_probs is None:
        label_probs, probs = probs[:, -1, : len(schema)], probs[:, :-1]
    return label_probs, probs[..., : len(VERDICTS)], sum(len(tokens) for tokens, _ in filled)


def _checked_form(teacher: Teacher) -> AnswerForm:
    config = teacher.model.config
    check_verbalizers(teacher.tokenizer, teacher.schema.names)
    check_lengths(
        teacher.tokenizer,
        teacher.schema.names,
        teacher.dimensions,
        order=teacher.order,
        prompt_length=teacher.prompt_length,
        value_length=teacher.value_length,
        max_length=config.max_length,
        instructions=teacher.instructions,
        chat=teacher.chat,
    )
    if teacher.mesh is not None:
        check_rows(teacher.batch_size, teacher.mesh, "score.batch_size", "take a multiple of it, or change `mesh`")
    return make_form(
        teacher.tokenizer,
        teacher.schema.names,
        teacher.dimensions,
        teacher.order,
        teacher.value_length,
        config.vocab_size,
        teacher.chat,
    )


def _drawn_labels(prompts: Sequence[Sequence[int]], probs: np.ndarray, sampling: Sampling) -> np.ndarray:
    """[N, samples] labels, from [N, samples, C] distributions."""
    count, samples, labels = probs.shape
    rows = max(1, count * samples)
    # Rows are padded to a power of two, so that few shapes are compiled.
    padded = np.ones((1 << (rows - 1).bit_length(), labels), np.float32)
    padded[: count * samples] = probs.reshape(-1, labels)
    keys = np.zeros((len(padded), 2), np.uint32)
    for row in range(count * samples):
        keys[row] = row_key(prompts[row // samples], row % samples)
    # A number that no decision of the decoder has.
    number = np.full(len(padded), 2**32 - 1, np.uint32)
    drawn = np.asarray(draw(np.log(padded), keys, number, **sampling.arguments))
    return drawn[: count * samples].reshape(count, samples)


def _make_predictions(
    teacher: Teacher, form: AnswerForm, probs: np.ndarray, labels: np.ndarray, written: list[GeneratedText] | None
) -> TeacherPredictions:
    count, template = len(probs), form.template
    order, dimensions = (teacher.order, teacher.dimensions) if written is not None else ("label_only", ())
    segments = grammar.template(dimensions, order)
    decoded = cache(lambda ids: str(teacher.tokenizer.decode(ids, clean_up_tokenization_spaces=False)))
    names = [grammar.escape(name) for name in teacher.schema.names]
    verdict_probs = np.full((count, len(teacher.dimensions), len(VERDICTS)), np.nan, np.float32)
    texts, emitted = [], 0
    for row, label in enumerate(labels.tolist()):
        one = written[row] if written is not None else None
        texts.append(_text(segments, names[label], one, decoded))
        label_ids = len(form.verbalizers.rests[label])
        fixed = len(form.before_label) + len(form.verbalizers.common)
        emitted += label_ids + 1
        if one is None or template is None:
            emitted += fixed
            continue
        verdict_probs[row] = one.probs[template.choice == VERDICT, : len(VERDICTS)]
        if template.decides_label:
            emitted += len(template.tokens(one.slots[:-1]))
        else:
            emitted += len(template.tokens(one.slots)) + fixed
    return TeacherPredictions(
        label_probs=np.array(probs),
        verdict_probs=verdict_probs,
        texts=tuple(texts),
        # Without a generated rationale, dimensions are omitted instead of having the verdict `absent`.
        rationales=tuple(parse_output(text, dimensions=dimensions, labels=teacher.schema.names) for text in texts),
        label_scoring=form.verbalizers.scoring,
        tokens_decoded=sum(one.decided for one in written or ()),
        tokens_emitted=emitted,
        slots=tuple(one.slots for one in written) if written is not None else ((),) * count,
    )


def _text(segments, label: str, written: GeneratedText | None, decoded: Callable[[tuple[int, ...]], str]) -> str:
    """The text of a grammar template, its slots filled with the generated tokens."""
    parts = []
    slots = iter(zip(written.slots, written.choices) if written else ())
    for segment in segments:
        if segment.kind == "fixed":
            parts.append(segment.text)
            continue
        if segment.kind == "label":
            text = label
        else:
            ids, choice = next(slots)
            # The tokenizer may fold case, so a verdict's name is looked up by its index.
            text = decoded(ids) if choice < 0 else VERDICTS[choice]
        # Some tokenizers drop the leading space when they decode.
        parts.append(text if text.startswith(" ") else " " + text)
    return "".join(parts)
