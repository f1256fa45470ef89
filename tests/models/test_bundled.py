"""Weights that the package brings along: found by name, compared with their checksums, refused where they differ."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

import jax_rele
from jax_rele import cli, config
from jax_rele.data.tokens.tokenizers import load_tokenizer, train_tokenizer
from jax_rele.errors import UserError
from jax_rele.models import (
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    bundled,
    decoder_config,
    from_hf,
    to_hf,
)
from jax_rele.models.files import resolve
from jax_rele.models.weights import NEEDED, SIDE_FILES
from jax_rele.runs import layout
from jax_rele.stages import adapt, distill

ROWS = 320
CONFIGS = {
    "decoder": DecoderConfig(ROWS, layers=2, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=32, max_length=2048),
    "encoder": EncoderConfig(ROWS, 128, layers=2, width=32, heads=2, mlp_width=32),
}
MODELS = {"decoder": Decoder, "encoder": Encoder}
TEXTS = ("usb c cable, 2 m, braided", "red running shoes for women", *["match mismatch absent"] * 3)
RUN = """
name: one
teacher: {{init: {teacher}, dtype: float32}}
student: {{init: {student}}}
run_root: {root}
"""


def write(path: Path, kind: str, vocab_size: int = ROWS) -> Path:
    """A small folder of that kind with random weights, and a tokenizer of `vocab_size` tokens at most."""
    config, tokens = CONFIGS[kind], jnp.zeros((1, 4), jnp.int32)
    model = MODELS[kind](config)
    inputs = (tokens,) if kind == "decoder" else (tokens, tokens, tokens == 0)
    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs)))
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype), shapes)
    to_hf(model, variables, path)
    train_tokenizer(TEXTS, vocab_size, encoder=kind == "encoder").save_pretrained(path)
    for name in ("README.md", "LICENSE.txt"):
        (path / name).write_text(name, "utf-8")
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both folders, not to be changed."""
    root = tmp_path_factory.mktemp("folders")
    for kind in bundled.NAMES:
        bundled.write_checksums(write(root / kind, kind))
    return root


@pytest.fixture
def root(folders, tmp_path, monkeypatch):
    """A copy of them in the place of the package's."""
    monkeypatch.setattr(bundled, "ROOT", shutil.copytree(folders, tmp_path / "bundled"))
    return tmp_path / "bundled"


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        bundled.verify(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- whole


def test_the_folders_are_beside_the_code():
    assert Path(jax_rele.__file__).parent / "bundled" == bundled.ROOT


@pytest.mark.parametrize("kind", bundled.NAMES)
def test_a_name_is_its_folder_bit_for_bit(kind, root):
    folder = resolve(f"bundled:{kind}", (*NEEDED, *SIDE_FILES))
    assert folder == root / kind
    model, variables = from_hf(f"bundled:{kind}", dtype=jnp.float32)
    expected, values = from_hf(root / kind, dtype=jnp.float32)
    assert model == expected
    assert isinstance(model, MODELS[kind])
    jax.tree.map(np.testing.assert_array_equal, variables, values)
    assert load_tokenizer(folder, ("pad",)).get_vocab() == load_tokenizer(root / kind, ("pad",)).get_vocab()


def test_a_config_and_the_files_beside_the_weights_come_from_there_too(root, tmp_path):
    assert decoder_config("bundled:decoder") == decoder_config(root / "decoder")
    model, variables = from_hf("bundled:decoder", dtype=jnp.float32)
    to_hf(model, variables, tmp_path / "again", source="bundled:decoder")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (root / "decoder" / name).read_bytes()


def test_checksums_are_those_of_every_other_file(folders):
    folder = folders / "decoder"
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert listed.keys() == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    assert {"README.md", "LICENSE.txt", *bundled.NEEDED} < listed.keys()
    for name, digest in listed.items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no coreutils")
def test_sha256sum_reads_what_is_written_and_the_other_way_round(root):
    folder = root / "encoder"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    names = [path.name for path in folder.iterdir() if path.name != "SHA256SUMS"]
    for option in ("--text", "--binary"):
        theirs = subprocess.run(["sha256sum", option, *names], cwd=folder, check=True, capture_output=True).stdout
        (folder / "SHA256SUMS").write_bytes(theirs)
        bundled.verify(folder)


def test_files_are_read_once_per_process(root):
    folder = resolve("bundled:encoder", ())
    (folder / "README.md").unlink()
    assert resolve("bundled:encoder", ()) == folder
    assert "README.md: no such file" in refused(folder)


def test_checksums_are_written_of_whole_folders_alone(root):
    folder = root / "encoder"
    (folder / "README.md").write_text("another")
    assert "README.md: its checksum differs" in refused(folder)
    bundled.write_checksums(folder)
    bundled.verify(folder)
    before = (folder / "SHA256SUMS").read_bytes()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        bundled.write_checksums(folder)
    assert (folder / "SHA256SUMS").read_bytes() == before


# ---- not whole


@pytest.mark.parametrize("name", ["foo", "", "Decoder", "decoder/", "../bundled/decoder", "decoder@main"])
def test_other_names_are_refused_with_those_that_there_are(name, root):
    with pytest.raises(UserError) as error:
        resolve(f"bundled:{name}", ())
    expected = f"bundled:{name}: no such weights; there are bundled:decoder and bundled:encoder"
    assert str(error.value) == expected


@given(st.data())
def test_any_changed_byte_is_found(folders, data):
    file = data.draw(
        st.sampled_from(sorted(path for path in (folders / "decoder").iterdir() if path.name != "SHA256SUMS"))
    )
    before = file.read_bytes()
    end = len(before) - 1
    position = data.draw(st.one_of(st.sampled_from([0, end]), st.integers(0, end)))
    changed = bytearray(before)
    changed[position] ^= data.draw(st.integers(1, 255))
    assert f"{file}: its checksum differs from SHA256SUMS; reinstall" in with_bytes(file, bytes(changed))


@given(st.data())
def test_any_truncation_is_found(folders, data):
    file = data.draw(
        st.sampled_from(sorted(path for path in (folders / "encoder").iterdir() if path.name != "SHA256SUMS"))
    )
    before = file.read_bytes()
    length = data.draw(st.one_of(st.sampled_from([0, len(before) - 1]), st.integers(0, len(before) - 1)))
    assert f"{file}: its checksum differs" in with_bytes(file, before[:length])


@given(st.data())
def test_damaged_checksums_are_found(folders, data):
    file = folders / "encoder" / "SHA256SUMS"
    before = file.read_bytes()
    position = data.draw(st.integers(0, len(before) - 2))  # without its last line break it says the same
    if data.draw(st.booleans()):
        with_bytes(file, before[:position])
    else:
        with_bytes(
            file, before[:position] + bytes([data.draw(st.sampled_from(b"?\x00\xff/ "))]) * 2 + before[position + 1 :]
        )


def with_bytes(file: Path, content: bytes) -> str:
    """Why the folder is refused while a file holds something else."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        return refused(file.parent)
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "README.md", "SHA256SUMS"])
def test_every_missing_file_is_named(name, root):
    (root / "decoder" / name).unlink()
    expected = f"{root / 'decoder' / name}: no such file; the installation is not complete, reinstall the package"
    assert refused(root / "decoder") == expected
    with pytest.raises(UserError, match="reinstall"):
        from_hf("bundled:decoder", dtype=jnp.float32)
    from_hf("bundled:encoder", dtype=jnp.float32)


def test_a_missing_folder_is_named(root):
    shutil.rmtree(root / "encoder")
    with pytest.raises(UserError, match=r"encoder: no such folder; the installation is not complete, reinstall"):
        resolve("bundled:encoder", ())
    shutil.rmtree(root)
    with pytest.raises(UserError, match=r"decoder: no such folder"):
        resolve("bundled:decoder", ())


def test_every_file_has_one_checksum(root):
    folder = root / "decoder"
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(lines[::-1]))
    bundled.verify(folder)
    for number, line in enumerate(lines):
        sums.write_text("".join(lines[:number] + lines[number + 1 :]))
        assert refused(folder).startswith(f"{folder / line.split()[1]}: has no checksum in SHA256SUMS")
    sums.write_text("".join([*lines, lines[0]]))
    assert f"{sums}: line {len(lines) + 1} is not a checksum" in refused(folder)
    sums.write_text("".join([*lines, f"{'0' * 64}  ../encoder/config.json\n"]))
    assert f"{sums}: line {len(lines) + 1} is not a checksum" in refused(folder)
    sums.write_text("")
    assert "config.json: has no checksum" in refused(folder)
    sums.unlink()
    sums.mkdir()
    assert f"{sums}: cannot be read" in refused(folder)


def test_what_is_added_is_not_read(root):
    """An index or more tokens would make another model of the same files."""
    folder = root / "decoder"
    (folder / ".DS_Store").write_bytes(b"")
    bundled.verify(folder)
    (folder / "added_tokens.json").write_text("{}")
    assert "added_tokens.json: has no checksum in SHA256SUMS" in refused(folder)


# ---- runs


def run(tmp_path: Path, *options, command: str = "run", teacher="bundled:decoder", student="bundled:encoder") -> int:
    file = tmp_path / "run.yaml"
    file.write_text(RUN.format(teacher=teacher, student=student, root=tmp_path / "runs"), "utf-8")
    return cli.main([command, str(file), *map(str, options)])


def error_of(tmp_path: Path, capsys, **inits) -> str:
    """The one line that a run ends with before it has written anything."""
    capsys.readouterr()
    assert run(tmp_path, **inits) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    written = {path.name for path in (tmp_path / "runs").rglob("*") if not path.is_dir()}
    assert written <= {".lock"}
    return error


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "changed": lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("kind", bundled.NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_with_damaged_weights_ends_in_one_line_before_it_writes(kind, damage, root, tmp_path, capsys):
    DAMAGES[damage](root / kind / "model.safetensors")
    error = error_of(tmp_path, capsys)
    assert f"{root / kind / 'model.safetensors'}: " in error
    assert "reinstall the package" in error


@pytest.mark.parametrize("kind", bundled.NAMES)
def test_another_tokenizer_ends_a_run(kind, root, tmp_path, capsys):
    train_tokenizer(TEXTS, 290, encoder=kind == "encoder").save_pretrained(root / kind)
    assert "tokenizer" in (error := error_of(tmp_path, capsys))
    assert "its checksum differs from SHA256SUMS" in error


@pytest.mark.parametrize(("kind", "option"), [("decoder", "teacher"), ("encoder", "student")])
def test_a_copied_folder_with_too_large_a_tokenizer_ends_a_run(kind, option, root, tmp_path, capsys):
    copy = shutil.copytree(root / kind, tmp_path / "copy")
    texts = [f"{first}{second}{third}" for first in "abcdefgh" for second in "aeiou" for third in "klmnrst"]
    tokenizer = train_tokenizer(texts * 3, 400, encoder=kind == "encoder")
    assert len(tokenizer) > ROWS
    tokenizer.save_pretrained(copy)
    error = error_of(tmp_path, capsys, **{option: copy})
    assert f"{copy}: the tokenizer has {len(tokenizer)} tokens, the embedding {ROWS} rows" in error


@pytest.mark.parametrize(
    ("inits", "message"),
    [
        ({"teacher": "bundled:foo"}, "bundled:foo: no such weights; there are bundled:decoder and bundled:encoder"),
        ({"student": "bundled:foo"}, "bundled:foo: no such weights; there are bundled:decoder and bundled:encoder"),
        ({"teacher": "bundled:encoder"}, "teacher.init: bundled:encoder is for students; set it to bundled:decoder"),
        (
            {"student": "bundled:decoder"},
            "student.init: bundled:decoder is for the teacher; set it to bundled:encoder",
        ),
    ],
)
def test_a_run_names_what_to_write_instead(inits, message, root, tmp_path, capsys):
    assert message in error_of(tmp_path, capsys, **inits)


@pytest.mark.parametrize(
    ("inits", "message"),
    [
        ({"teacher": "encoder"}, "model_type 'bert' is not supported; supported are qwen2, qwen3"),
        ({"student": "decoder"}, "model_type 'qwen3' is no encoder that is supported; these are bert"),
    ],
)
def test_copied_folders_of_the_other_kind_end_a_run(inits, message, root, tmp_path, capsys):
    assert message in error_of(tmp_path, capsys, **{name: root / kind for name, kind in inits.items()})


def test_a_run_takes_its_tokenizers_from_there(root, tmp_path):
    assert run(tmp_path, command="prepare") == 0
    run_dir = tmp_path / "runs" / "one"
    settings = config.load(run_dir / "config.yaml")
    adapt.make_tokenizer(settings, run_dir)
    distill.make_tokenizer(settings, run_dir, tmp_path / "student_tokenizer")
    folders = {"decoder": run_dir / layout.TEACHER_TOKENIZER, "encoder": tmp_path / "student_tokenizer"}
    for kind, folder in folders.items():
        ours, theirs = (load_tokenizer(path, ("pad",)).get_vocab() for path in (folder, root / kind))
        assert ours == theirs
    assert list(json.loads((run_dir / "prepare" / "manifest.json").read_text())["inputs"]) == ["data.path sample"]
    assert list(adapt.external_inputs(settings)) == ["teacher.init bundled:decoder"]
    assert list(distill.external_inputs(settings)) == ["student.init bundled:encoder"]
