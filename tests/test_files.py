"""Files and directories appear whole or not at all."""

import pytest

from jaxlm.errors import InputError
from jaxlm.files import read_json, staged, write_json


def test_nothing_is_left_after_an_error_and_the_old_file_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), staged(path) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / "directory.partial").mkdir()
    (tmp_path / "directory.partial" / "half").touch()
    with staged(tmp_path / "directory") as partial:
        partial.mkdir()
        (partial / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["directory", "whole"]


def test_json_comes_back_and_another_format_is_refused(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"words": ["Größe"]}, version=3)
    assert read_json(path, version=3) == {"words": ["Größe"]}
    with pytest.raises(InputError, match="expected format 4. Received: 3"):
        read_json(path, version=4)
    path.write_text('{"words": []}')
    assert read_json(path) == {"words": []}
    with pytest.raises(InputError, match="expected format 3. Received: None"):
        read_json(path, version=3)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"", b"\xff{}"])
def test_what_is_not_a_json_object_raises(tmp_path, content):
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(InputError, match="value.json"):
        read_json(tmp_path / "value.json")
