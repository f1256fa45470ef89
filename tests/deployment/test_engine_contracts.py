"""Contract tests: the rules by which other engines load a folder, restated, and our exported folders loaded by them.

No engine runs here. Each test says whose rules it restates and where they stand; files are read by ONNX Runtime and
the `tokenizers` library alone, and what comes out must be what our own runtime computes.
"""

import json
import re
import shutil
import zipfile

import numpy as np
import onnxruntime
import pytest
from scipy.special import expit
from tokenizers import Tokenizer

from jax_rele.data.tokens.student_inputs import pair_markers
from jax_rele.deployment import tei
from jax_rele.deployment.bundle import read_manifest, write_manifest
from jax_rele.deployment.engines import vespa_note
from jax_rele.deployment.export import write_onnx
from jax_rele.deployment.scorer import load_bundle
from jax_rele.types import Item, Pair

LONG = "red running shoes for men " * 20
TEXTS = [
    ("red shoes", "Acme red running shoes"),
    ("garden hose", "blue cotton shirt with pockets"),
    ("x", "a"),
    ("iphone charger cable", LONG),
    (LONG, "garden hose"),
    (LONG, LONG),
    ("日本語 ünïcödé", "Acme 👟 2 m"),
    ("wireless headphones black", "Acme wireless headphones black noise cancelling"),
]
PAIRS = [Pair("", query, Item("", text)) for query, text in TEXTS]
SAMPLE = [Pair(str(number), query, Item("", text)) for number, (query, text) in enumerate(TEXTS)]
FAMILIES = ("bundled", "bert", "roberta", "modernbert")


@pytest.fixture(scope="module")
def exported(student_data, tmp_path_factory):
    """(kind, family) -> the folders of the formats `tei` and `onnx`; each is written once."""
    written = {}

    def folders(kind, family):
        if (kind, family) not in written:
            data, base = student_data(kind, family), tmp_path_factory.mktemp(f"{kind}-{family}")
            for form, write in (("tei", tei.write), ("onnx", write_onnx)):
                (base / form).mkdir()
                write(data, base / form, SAMPLE)
            write_manifest(base / "onnx", data.manifest)
            written[kind, family] = base / "tei", base / "onnx"
        return written[kind, family]

    return folders


def read_json(path):
    return json.loads(path.read_text("utf-8"))


class Tei:
    """text-embeddings-inference 1.9.3, the CPU image, whose ONNX backend is tried first.

    Read in its sources: router/src/lib.rs (files, kind of model, lengths), core/src/tokenization.rs:383 (truncation),
    backends/ort/src/lib.rs (inputs and outputs by name, batches of at most 8 rows, one row without mask padding).
    """

    def __init__(self, folder):
        self.config = read_json(folder / "config.json")
        for key in ("architectures", "model_type", "max_position_embeddings", "hidden_size", "num_hidden_layers"):
            assert key in self.config or self.config["model_type"] == "distilbert", key
        # Otherwise a backend that fails is followed by one that reads these weights with a plain head.
        assert not list(folder.glob("*.safetensors"))
        most = self.config["max_position_embeddings"]
        if self.config["model_type"] in ("xlm-roberta", "camembert", "roberta"):
            most -= self.config["pad_token_id"] + 1
        self.most = read_json(folder / "sentence_bert_config.json")["max_seq_length"]
        assert self.most <= most
        self.is_classifier = self.config["architectures"][0].endswith("Classification")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.most, strategy="longest_first", direction="right")
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        inputs = {each.name: each.type for each in self.session.get_inputs()}
        assert {"input_ids", "attention_mask"} <= inputs.keys() <= {"input_ids", "attention_mask", "token_type_ids"}
        assert set(inputs.values()) == {"tensor(int64)"}
        self.inputs = inputs.keys()

    def run(self, texts, output):
        rows = []
        for start in range(0, len(texts), 8):
            encoded = [
                self.tokenizer.encode(*text) if isinstance(text, tuple) else self.tokenizer.encode(text)
                for text in texts[start : start + 8]
            ]
            length = max(len(each.ids) for each in encoded)
            feed = {
                "input_ids": [each.ids + [self.config["pad_token_id"]] * (length - len(each.ids)) for each in encoded],
                "attention_mask": [[1] * len(each.ids) + [0] * (length - len(each.ids)) for each in encoded],
                "token_type_ids": [each.type_ids + [0] * (length - len(each.ids)) for each in encoded],
            }
            feed = {name: np.array(value, np.int64) for name, value in feed.items() if name in self.inputs}
            rows.append(self.session.run([output], feed)[0])
        return np.concatenate(rows)

    def rerank(self, texts):
        """/rerank: one label makes a reranker, whose score is the sigmoid of the one logit."""
        assert self.is_classifier
        assert len(self.config["id2label"]) == len(self.config["label2id"]) == 1
        logits = self.run(texts, "logits")
        assert logits.shape == (len(texts), 1)
        return expit(logits[:, 0].astype(np.float64))

    def embed(self, texts):
        """/embed with `normalize: false`: this output is taken as it is."""
        assert not self.is_classifier
        return self.run(texts, "sentence_embedding")


@pytest.mark.parametrize("family", FAMILIES)
def test_text_embeddings_inference_reranks_as_we_judge(exported, family):
    folder, bundle = exported("cross_encoder", family)
    engine, expected = Tei(folder), load_bundle(bundle, threads=1).predict(PAIRS).scores
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(engine.rerank(TEXTS), expected, atol=2e-6)
    single = np.concatenate([engine.rerank([text]) for text in TEXTS])
    np.testing.assert_allclose(single, expected, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_embeddings_inference_embeds_as_we_do(exported, family):
    folder, bundle = exported("two_tower", family)
    scorer = load_bundle(bundle, threads=1)
    for side, texts in (("query", [query for query, _ in TEXTS]), ("item", [text for _, text in TEXTS])):
        expected = scorer.embed(texts, side)
        engine = Tei(folder / side)
        np.testing.assert_allclose(engine.embed(texts), expected, atol=2e-5)
        np.testing.assert_allclose(engine.embed(texts[3:4]), expected[3:4], atol=2e-5)
        pooling = read_json(folder / side / "1_Pooling" / "config.json")
        # Two booleans without which the server does not start (router/src/lib.rs, PoolConfig).
        assert {pooling["pooling_mode_cls_token"], pooling["pooling_mode_mean_tokens"]} == {False, True}


@pytest.mark.parametrize("family", FAMILIES)
def test_opensearch_judges_as_we_do(exported, family, tmp_path):
    """OpenSearch ml-commons, a model of the kind TEXT_SIMILARITY.

    Read in its sources: TextSimilarityTranslator.java and SentenceTransformerTranslator.java (a pair at a time is
    encoded by `tokenizer.json`; inputs by name, token types where the graph has them; every output is returned as
    `similarity`), PR 4710; and of DJL: HuggingFaceTokenizer.java (longest first, to the length in `tokenizer.json`).
    """
    folder, bundle = exported("cross_encoder", family)
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in ("model.onnx", "tokenizer.json"):
            zipped.write(folder / name, name)
    shutil.unpack_archive(archive, tmp_path / "loaded")
    assert sorted(file.name for file in (tmp_path / "loaded").iterdir()) == ["model.onnx", "tokenizer.json"]
    tokenizer = Tokenizer.from_file(str(tmp_path / "loaded" / "tokenizer.json"))
    assert tokenizer.truncation["strategy"] == "longest_first"
    assert tokenizer.truncation["max_length"] <= 512  # a larger one is made 512
    session = onnxruntime.InferenceSession(str(tmp_path / "loaded" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert len(session.get_outputs()) == 1
    known, scores = {each.name for each in session.get_inputs()}, []
    for text in TEXTS:
        encoded = tokenizer.encode(*text)
        feed = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
        outputs = session.run(None, {key: np.array([value]) for key, value in feed.items() if key in known})
        assert [output.size for output in outputs] == [1]
        scores.append(expit(float(outputs[0].item())))
    np.testing.assert_allclose(scores, load_bundle(bundle, threads=1).predict(PAIRS).scores, atol=2e-6)


def vespa_inputs(expression, query, item):
    """What Vespa's `TokenTransformer` makes of the expression in a bundle's card.

    Its documentation (rank features; ranking with cross-encoders) and source: start + query + separator + item +
    separator + zeros; types are 1 for the item and its separator; a text's tokens are those above zero.
    """
    name, numbers = re.fullmatch(r"(\w+)\(([\d, ]+), query\(q\), attribute\(tokens\)\)", expression).groups()
    numbers = [int(number) for number in numbers.split(",")]
    start, separator = {"tokenInputIds": (101, 102), "customTokenInputIds": numbers[:2]}[name]
    length, rows = numbers[-1], [[token for token in row if token > 0] for row in (query, item)]
    ids = [start, *rows[0], separator, *rows[1], separator]
    first, padding = len(rows[0]) + 2, [0] * (length - len(ids))
    assert len(ids) <= length
    return {
        "input_ids": ids + padding,
        "attention_mask": [1] * len(ids) + padding,
        "token_type_ids": [0] * first + [1] * (len(ids) - first) + padding,
    }


@pytest.mark.parametrize(
    ("family", "function"),
    [
        ("bundled", "customTokenInputIds(1, 2, 44, "),
        ("bert", "tokenInputIds(44, "),
        ("modernbert", "customTokenInputIds(1, 2, 44, "),
    ],
)
def test_vespa_judges_as_we_do(exported, student_data, family, function):
    """Query and item are cut apart, by the sizes of their tensors in the schema of docs/engines.md."""
    _, bundle = exported("cross_encoder", family)
    scorer, manifest = load_bundle(bundle, threads=1), read_manifest(bundle)
    expression = re.search("`(.*)`", vespa_note(pair_markers(scorer.tokenizer, 2), manifest))[1]
    assert expression.startswith(function)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    known, scores, fits = {each.name for each in session.get_inputs()}, [], []
    most = manifest.query_length, manifest.item_length - 3
    for texts in TEXTS:
        query, item = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
        fits.append(len(query) <= most[0] and len(item) <= most[1])
        feed = vespa_inputs(expression, query[: most[0]], item[: most[1]])
        feed = {name: np.array([value]) for name, value in feed.items() if name in known}
        scores.append(expit(session.run(["logits"], feed)[0][0, 0]))
    assert sum(fits) >= 4
    np.testing.assert_allclose(np.array(scores)[fits], scorer.predict(PAIRS).scores[fits], atol=2e-6)


def test_vespa_cannot_write_a_pair_of_roberta(exported):
    _, bundle = exported("cross_encoder", "roberta")
    scorer = load_bundle(bundle, threads=1)
    assert vespa_note(pair_markers(scorer.tokenizer, 2), scorer.manifest).startswith("Vespa cannot write the pair")


@pytest.mark.parametrize(
    ("kind", "names"), [("cross_encoder", {"cross_encoder"}), ("two_tower", {"query", "item", "compare"})]
)
def test_triton_is_told_the_inputs_and_outputs_of_each_graph(exported, kind, names):
    """Triton's model repository: MODEL/config.pbtxt beside MODEL/1/model.onnx.

    tests/parity/test_triton_parity.py reads the configs by Triton's own schema.
    """
    _, bundle = exported(kind, "bundled")
    assert {path.name for path in (bundle / "triton").iterdir()} == names
    for name in names:
        text = (bundle / "triton" / name / "config.pbtxt").read_text("utf-8")
        graph = bundle / ("model.onnx" if name == "cross_encoder" else f"{name}.onnx")
        assert graph.name in text.splitlines()[0]
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        tensors = [each.name for each in (*session.get_inputs(), *session.get_outputs())]
        assert re.findall(r'{ name: "(\w+)"', text) == tensors
