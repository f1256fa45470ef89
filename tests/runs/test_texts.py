"""A tokenizer that does not know the language is noticed before hours of work."""

import json

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jax_rele import config
from jax_rele.data.pairs.table import PairTable
from jax_rele.errors import UserError
from jax_rele.models import files
from jax_rele.runs import layout
from jax_rele.runs.pipeline import run
from jax_rele.runs.texts import check_student_tokenizer, check_teacher_tokenizer
from jax_rele.stages import prepare

CHINESE = ["红色跑步鞋", "不锈钢保温杯", "无线蓝牙耳机", "儿童书包"]
ENGLISH = ["red running shoes", "steel mug", "wireless headphones", "school bag"]


def settings_of(tmp_path, texts, **sections):
    labels = ("Exact", "Irrelevant")
    rows = [
        {
            "query": f"{texts[q % 4]} {q}",
            "item": {"id": f"{q}-{i}", "title": f"{texts[(q + i) % 4]} {i}"},
            "label": labels[i],
        }
        for q in range(20)
        for i in range(2)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    values = {"name": "r", "run_root": str(tmp_path / "runs"), "labels": {"names": labels, "gains": [1.0, 0.0]}}
    values["data"] = {"path": str(path), "item_fields": ["title"], **sections.pop("data", {})}
    values["student"] = {"init": "bundled:encoder"}
    return config.from_dict({**values, **sections})


def test_a_language_that_the_students_do_not_know_stops_after_prepare(tmp_path):
    settings = settings_of(tmp_path, CHINESE)
    lines = []
    with pytest.raises(UserError) as error:
        run(settings, say=lines.append)
    assert "of the characters are unknown to the tokenizer, more than data.text_loss.max_unknown" in str(error.value)
    assert "bundled:encoder" in str(error.value)
    assert "\n" not in str(error.value)
    assert [line.split()[0] for line in lines] == ["prepare", "prepare"]
    # What was prepared stays, for a config with another tokenizer.
    assert len(PairTable(settings.run_dir / layout.PAIRS)) == 40


def test_prepare_alone_tries_the_tokenizers_that_are_there(tmp_path, capsys):
    settings = settings_of(tmp_path, CHINESE)
    with pytest.raises(UserError, match=r"^student.init: .* unknown to the tokenizer.*bundled:encoder"):
        run(settings, ["prepare"], whole=False)
    mixed = settings_of(tmp_path, [*CHINESE[:1], *ENGLISH[1:]], name="mixed", data={"text_loss": {"max_unknown": 0.9}})
    run(mixed, ["prepare"], whole=False)
    assert "warning: student.init: " in capsys.readouterr().out


def test_the_teachers_tokenizer_is_tried_too(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("[UNK]", "</s>", "query"))}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>").save_pretrained(folder)
    settings = settings_of(tmp_path, ENGLISH, teacher={"init": str(folder)})
    prepare.run(settings, settings.run_dir)
    with pytest.raises(UserError, match=r"^teacher.init: .* unknown to the tokenizer.*weights"):
        check_teacher_tokenizer(settings, settings.run_dir)
    check_teacher_tokenizer(
        settings.model_copy(update={"score": settings.score.model_copy(update={"signals": "s.parquet"})}),
        settings.run_dir,
    )


def test_prepare_alone_downloads_nothing(tmp_path, monkeypatch, capsys):
    def refuse(*_, local_files_only=False, **__):
        assert local_files_only
        raise LocalEntryNotFoundError("not there")

    monkeypatch.setattr(files, "snapshot_download", refuse)
    student = {"student": {"init": "hf:org/encoder"}, "teacher": {"init": "hf:org/decoder"}}
    settings = settings_of(tmp_path, CHINESE, **student)
    run(settings, ["prepare"], whole=False)
    assert "finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^student.init: hf:org/encoder: the download failed"):
        run(settings, ["prepare", "annotate"], whole=False)


def test_a_limit_of_the_config_lets_it_pass_with_a_warning(tmp_path, capsys):
    settings = settings_of(tmp_path, CHINESE, data={"text_loss": {"max_unknown": 1.0}})
    prepare.run(settings, settings.run_dir)
    check_student_tokenizer(settings, settings.run_dir)
    assert capsys.readouterr().out.startswith("warning: student.init: ")


def test_a_language_that_is_known_is_not_mentioned(tmp_path, capsys):
    settings = settings_of(tmp_path, ENGLISH)
    prepare.run(settings, settings.run_dir)
    check_student_tokenizer(settings, settings.run_dir)
    random = settings_of(tmp_path, CHINESE, student={"init": "random"})
    check_student_tokenizer(random, random.run_dir)
    assert capsys.readouterr().out == ""
