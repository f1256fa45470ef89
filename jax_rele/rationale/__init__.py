"""Rationales: their grammar, the rule annotator, and the evidence for their values."""

from jax_rele.rationale.annotators import Annotator as Annotator
from jax_rele.rationale.annotators import RuleAnnotator as RuleAnnotator
from jax_rele.rationale.evidence import find_evidence as find_evidence
from jax_rele.rationale.evidence import token_tags as token_tags
from jax_rele.rationale.gazetteer import Gazetteers as Gazetteers
from jax_rele.rationale.gazetteer import build_gazetteers as build_gazetteers
from jax_rele.rationale.grammar import VALUE_DELIMITERS as VALUE_DELIMITERS
from jax_rele.rationale.grammar import ParseError as ParseError
from jax_rele.rationale.grammar import Segment as Segment
from jax_rele.rationale.grammar import escape as escape
from jax_rele.rationale.grammar import parse as parse
from jax_rele.rationale.grammar import prompt as prompt
from jax_rele.rationale.grammar import render as render
from jax_rele.rationale.grammar import segments as segments
from jax_rele.rationale.grammar import template as template
from jax_rele.rationale.grammar import unescape as unescape
from jax_rele.rationale.output import ParseFailure as ParseFailure
from jax_rele.rationale.output import parse_output as parse_output
from jax_rele.rationale.quality import query_quality as query_quality
