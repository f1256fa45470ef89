"""Finding the official files and knowing them."""

import hashlib
import os

import pytest

from jax_rele.data.sources.benchmarks import official
from jax_rele.data.sources.benchmarks.official import OfficialFile
from jax_rele.errors import UserError

CONTENT = b"a,b\n1,2\n"


def known(**facts) -> OfficialFile:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return OfficialFile(
        **{"name": "f.csv", "url": "https://x/f.csv", "columns": ("a",), "rows": 1, "size": 8}
        | facts
        | ({} if "sha256" in facts else {"sha256": sha256})
    )


@pytest.fixture
def file(tmp_path):
    (tmp_path / "f.csv").write_bytes(CONTENT)
    return tmp_path / "f.csv"


def test_size_and_checksum_make_it_official(file):
    assert official.check_content(known(), file)
    assert official.check_content(known(sha256=None), file)


def test_another_size_is_somebody_elses(file):
    assert not official.check_content(known(size=9), file)
    assert not official.check_content(known(size=None, sha256=None), file)


def test_official_size_with_another_content_is_refused(file):
    assert official.check_content(known(), file)
    before = file.stat()
    file.write_bytes(CONTENT.replace(b"1", b"3"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(
        UserError, match=r"f\.csv: the size of the official file but another content .*https://x/f\.csv"
    ):
        official.check_content(known(), file)


def test_fetched_files_must_be_the_official_ones(file):
    assert official.check_content(known(size=None, sha256=None), file, fetched=True)
    with pytest.raises(UserError, match=r"fetched 8 bytes of https://x/f\.csv, expected 9"):
        official.check_content(known(size=9), file, fetched=True)


def test_a_git_lfs_pointer_is_told(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n")
    with pytest.raises(UserError, match="git lfs pull"):
        official.check_content(known(), file)


def test_rows_and_columns(file):
    official.check_rows(known(), file, 1)
    with pytest.raises(UserError, match=r"f\.csv: 2 rows, but the official file has 1"):
        official.check_rows(known(), file, 2)
    official.check_columns(known(), file, ["b", "a"])
    with pytest.raises(UserError, match=r"lacks the columns \['a'\], it has \['b'\]"):
        official.check_columns(known(), file, ["b"])


def test_files_are_found_in_the_folder_or_where_a_clone_has_them(tmp_path):
    files = [known(), known(name="g.csv", url="https://x/g.csv")]
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "f.csv").write_bytes(CONTENT)
    with pytest.raises(UserError, match=r"lacks g\.csv \(from https://x/g\.csv\); put them there") as error:
        official.locate("name", files, tmp_path, "inside")
    assert "f.csv" not in str(error.value)
    (tmp_path / "g.csv").write_bytes(CONTENT)
    paths = official.locate("name", files, tmp_path, "inside")
    assert paths == {"f.csv": tmp_path / "inside" / "f.csv", "g.csv": tmp_path / "g.csv"}
    with pytest.raises(UserError, match="no such folder"):
        official.locate("name", files, tmp_path / "none", "inside")
