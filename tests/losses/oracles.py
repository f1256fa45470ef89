"""What the losses must equal: float64, by loops, with scipy where it has the formula, written apart from the losses."""

import numpy as np
import scipy.special
import scipy.stats
from scipy.spatial.distance import cosine, jensenshannon
from scipy.special import log_expit, log_softmax, softmax


def picked(logits, labels):
    """-log softmax at the labels."""
    return -np.take_along_axis(log_softmax(logits, axis=-1), labels[..., None], -1)[..., 0]


def smoothed(logits, labels, label_smoothing=0.0):
    uniform = np.mean([picked(logits, np.full(len(labels), c)) for c in range(logits.shape[-1])], axis=0)
    return (1 - label_smoothing) * picked(logits, labels) + label_smoothing * uniform


def by_questions(logits, labels):
    elements = np.zeros(len(labels))
    for b, probs in enumerate(softmax(logits, axis=-1)):
        for k in range(len(probs) - 1):
            at_most = probs[: k + 1].sum()
            elements[b] -= np.log(at_most if labels[b] <= k else 1 - at_most)
    return elements


def softened(logits, label_probs, temperature, epsilon=0.0):
    """Distributions of student and teacher."""
    teacher = np.maximum(label_probs, epsilon) ** (1 / temperature)
    return softmax(logits / temperature, axis=-1), teacher / teacher.sum(-1, keepdims=True)


def forward(logits, label_probs, temperature=1.0):
    student, teacher = softened(logits, label_probs, temperature)
    return temperature**2 * scipy.special.rel_entr(teacher, student).sum(-1)


def reverse(logits, label_probs, temperature=1.0, epsilon=1e-6):
    student, teacher = softened(logits, label_probs, temperature, epsilon)
    return temperature**2 * scipy.special.rel_entr(student, teacher).sum(-1)


def symmetric(logits, label_probs, temperature=1.0):
    return temperature**2 * jensenshannon(*softened(logits, label_probs, temperature), axis=-1) ** 2


def soft(logits, label_probs, temperature=1.0):
    _, teacher = softened(logits, label_probs, temperature)
    return -(temperature**2) * (teacher * log_softmax(logits / temperature, axis=-1)).sum(-1)


def variance_of_difference(logits, label_probs, epsilon=1e-6):
    return np.var(logits - np.log(np.maximum(label_probs, epsilon)), axis=-1)


def squares(logits, label_probs):
    return np.square(softmax(logits, axis=-1) - label_probs).sum(-1)


def others(segments, i):
    return [j for j in range(len(segments)) if j != i and segments[j] == segments[i]]


def mean(values):
    values = list(values)
    return np.mean(values) if values else 0.0


def margins(logits, label_probs, gains, segments):
    error = softmax(logits, axis=-1) @ gains - label_probs @ gains
    return np.array([mean((error[i] - error[j]) ** 2 for j in others(segments, i)) for i in range(len(segments))])


def lists(logits, label_probs, gains, segments, temperature=1.0):
    student, teacher = softmax(logits, axis=-1) @ gains, label_probs @ gains
    elements = np.zeros(len(segments))
    for segment in set(segments.tolist()):
        (members,) = np.nonzero(segments == segment)
        p, q = (softmax(scores[members] / temperature) for scores in (teacher, student))
        elements[members] = temperature**2 * p * np.log(p / q)
    return elements


def preferences(logits, label_probs, gains, segments, temperature=1.0):
    s, t = softmax(logits, axis=-1) @ gains / temperature, label_probs @ gains / temperature

    def entropy(i, j):
        wins = 1 / (1 + np.exp(t[j] - t[i]))
        return -wins * log_expit(s[i] - s[j]) - (1 - wins) * log_expit(s[j] - s[i])

    return temperature**2 * np.array([mean(entropy(i, j) for j in others(segments, i)) for i in range(len(s))])


def comparisons(logits, labels, gains, segments, temperature=1.0):
    s, g = softmax(logits, axis=-1) @ gains / temperature, gains[labels]
    pairs = [[j for j in others(segments, i) if g[j] < g[i]] for i in range(len(s))]
    return np.array([mean(-log_expit(s[i] - s[j]) for j in worse) for i, worse in enumerate(pairs)])


def shared_lists(logits, labels, gains, segments, temperature=1.0):
    s, elements = softmax(logits, axis=-1) @ gains / temperature, np.zeros(len(segments))
    for segment in set(segments.tolist()):
        (members,) = np.nonzero(segments == segment)
        elements[members] = -np.mean(gains[labels[members]] * log_softmax(s[members]))
    return elements


def soft_verdict(verdict_logits, verdict_probs):
    return -(verdict_probs * log_softmax(verdict_logits, axis=-1)).sum(-1)


def hard_verdict(verdict_logits, verdict_probs, hard=False):
    return picked(verdict_logits, verdict_probs.argmax(-1)) if hard else soft_verdict(verdict_logits, verdict_probs)


def tags(token_logits, evidence_tags):
    return picked(token_logits, evidence_tags)


def from_uniform(attention, evidence_tags, evidence_tags_mask):
    elements = np.zeros(len(attention))
    for b in range(len(attention)):
        known = np.flatnonzero(evidence_tags_mask[b])
        uniform = np.float64(evidence_tags[b, known] > 0)
        if uniform.any():
            elements[b] = scipy.stats.entropy(uniform, attention[b, known])  # normalises both
    return elements


def mean_squares(latent, rationale_embedding):
    return np.linalg.norm(latent - rationale_embedding, axis=-1) ** 2 / latent.shape[-1]


def aligned(representation, augmented_representation, temperature=0.05, stop_gradient=True):
    n = len(representation)
    near = [[1 - cosine(r, a) for a in augmented_representation] for r in representation]
    return picked(np.array(near) / temperature, np.arange(n))


def apart(query_views, item_views, verdict_probs, segments, temperature=0.05):
    verdicts = verdict_probs.argmax(-1)  # 0 match, 1 mismatch, 2 absent
    elements = np.zeros(verdicts.shape)
    for b, d in np.argwhere(verdicts == 0):
        rivals = [j for j in others(segments, b) if verdicts[j, d] == 1]
        near = [query_views[b, d] @ item_views[j, d] / temperature for j in [b, *rivals]]
        elements[b, d] = picked(np.array(near), np.array(0))
    return elements


def next_token(hidden, output_embedding, targets):
    return picked(hidden @ output_embedding.T, targets)


def log_ratio(log_prob, reference, length=1):
    return (log_prob - reference) / max(length, 1)


def preferred(
    chosen_log_probs,
    rejected_log_probs,
    reference_chosen_log_probs,
    reference_rejected_log_probs,
    beta=0.1,
    label_smoothing=0.0,
):
    elements = []
    for c, r, rc, rr in zip(
        chosen_log_probs, rejected_log_probs, reference_chosen_log_probs, reference_rejected_log_probs
    ):
        reward = beta * (log_ratio(c, rc) - log_ratio(r, rr))
        elements.append(-(1 - label_smoothing) * log_expit(reward) - label_smoothing * log_expit(-reward))
    return np.array(elements)


def preferred_hinge(
    chosen_log_probs, rejected_log_probs, reference_chosen_log_probs, reference_rejected_log_probs, beta=0.1
):
    chosen, rejected = chosen_log_probs - reference_chosen_log_probs, rejected_log_probs - reference_rejected_log_probs
    return np.array([max(0.0, 1 - beta * (c - r)) for c, r in zip(chosen, rejected)])


def preferred_by_margin(
    chosen_log_probs,
    rejected_log_probs,
    reference_chosen_log_probs,
    reference_rejected_log_probs,
    chosen_lengths,
    rejected_lengths,
    beta=0.1,
):
    chosen = map(log_ratio, chosen_log_probs, reference_chosen_log_probs, chosen_lengths)
    rejected = map(log_ratio, rejected_log_probs, reference_rejected_log_probs, rejected_lengths)
    return np.array([(c - r - 0.5 / beta) ** 2 for c, r in zip(chosen, rejected)])


def good_or_bad(log_probs, reference_log_probs, desirable, kl, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    elements = []
    for log_prob, reference, good, divergence in zip(log_probs, reference_log_probs, desirable, kl):
        advantage = log_ratio(log_prob, reference) - max(divergence, 0.0)
        value = scipy.special.expit(beta * (advantage if good else -advantage))
        elements.append((desirable_weight if good else undesirable_weight) * (1 - value))
    return np.array(elements)


def policy(log_probs, old_log_probs, reference_log_probs, advantages, clip=0.2, kl_weight=0.04):
    elements = np.empty(log_probs.shape)
    for index, ours in np.ndenumerate(log_probs):
        ratio, advantage = np.exp(ours - old_log_probs[index]), advantages[index]
        limited = min(max(ratio, 1 - clip), 1 + clip)
        apart = reference_log_probs[index] - ours
        elements[index] = -min(ratio * advantage, limited * advantage) + kl_weight * (np.exp(apart) - apart - 1)
    return elements


def odds(chosen_log_probs, rejected_log_probs, chosen_lengths, rejected_lengths, beta=0.1):
    chosen = np.exp(chosen_log_probs / np.maximum(chosen_lengths, 1))
    rejected = np.exp(rejected_log_probs / np.maximum(rejected_lengths, 1))
    ratio = scipy.special.logit(chosen) - scipy.special.logit(rejected)
    return -np.log(chosen) - beta * log_expit(ratio)


def preferred_mean(chosen_log_probs, rejected_log_probs, chosen_lengths, rejected_lengths, beta=2.0, margin=1.0):
    chosen = chosen_log_probs / np.maximum(chosen_lengths, 1)
    rejected = rejected_log_probs / np.maximum(rejected_lengths, 1)
    return -log_expit(beta * chosen - beta * rejected - margin)
