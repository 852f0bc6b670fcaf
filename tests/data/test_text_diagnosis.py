"""Files that are not plain UTF-8 text: named, with the place, and with a command that mends them."""

import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from jaxlm.data.text_files import read_chunks
from jaxlm.errors import InputError

TEXT = "".join(f"line {n} of the text\n" for n in range(3000))
LINE = TEXT[:40_000].count("\n") + 1
ACCENTS = TEXT + "café à l’Œuvre\n"


def in_zip(text: str) -> bytes:
    with zipfile.ZipFile("archive.zip", "w") as archive:
        archive.writestr("text.txt", text)
    return Path("archive.zip").read_bytes()


def in_tar(text: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("text.txt")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    return file.getvalue()


CASES = [  # name, content, what is said, the text that the command gives
    ("utf16.txt", ACCENTS.encode("utf-16"), "is UTF-16,", ACCENTS),
    ("utf32.txt", ACCENTS.encode("utf-32"), "is UTF-32,", ACCENTS),
    ("no mark.txt", ACCENTS.encode("utf-16-le"), "is UTF-16LE,", ACCENTS),
    ("big.txt", ACCENTS.encode("utf-16-be"), "is UTF-16BE,", ACCENTS),
    ("utf16.gz", gzip.compress(ACCENTS.encode("utf-16")), "is UTF-16,", ACCENTS),
    (
        "nul.txt",
        (TEXT[:40_000] + "\0" + TEXT[40_000:]).encode(),
        f"has a NUL byte in line {LINE},",
        TEXT,
    ),
    ("short.txt", b"a\0b\n", "has a NUL byte in line 1,", "ab\n"),
    ("nul.txt.xz", lzma.compress(("\0" + TEXT).encode()), "has a NUL byte in line 1,", TEXT),
    ("zip.txt", in_zip, "is compressed with zip", TEXT),
    ("corpus.tar.gz", gzip.compress(in_tar(TEXT)), "is a tar archive", TEXT),
    ("latin1.txt", (TEXT + "café\n").encode("latin-1"), "byte 0xe9 in line 3001", TEXT + "café\n"),
    ("latin1.txt.gz", gzip.compress(b"a\ncaf\xe9"), "byte 0xe9 in line 2", "a\ncafé\n"),
    ("windows.txt", (TEXT + "“it’s”\n").encode("cp1252"), "byte 0x93 in line 3001", TEXT + "“it’s”\n"),
    ("damaged.txt", ACCENTS.encode() + b"caf\xe9 it\n", "byte 0xe9 in line 3002", ACCENTS + "caf it\n"),
    ("cut.txt", ACCENTS.encode() + "é".encode()[:1], "byte 0xc3 in line 3002", ACCENTS),
]


@pytest.mark.parametrize(("name", "content", "message", "mended"), CASES, ids=[case[0] for case in CASES])
def test_what_is_not_plain_text_is_named_with_the_command_that_mends_it(
    tmp_path, monkeypatch, name, content, message, mended
):
    monkeypatch.chdir(tmp_path)
    data = content if isinstance(content, bytes) else content(TEXT)
    Path(name).write_bytes(data)
    with pytest.raises(InputError) as error:
        list(read_chunks([Path(name)]))
    assert message in str(error.value) and str(error.value).startswith(name) and "\n" not in str(error.value)
    command = str(error.value).rpartition(": ")[2]
    if not shutil.which(command.split()[0]):
        pytest.skip(f"{command.split()[0]} is not installed")
    before = set(os.listdir())
    subprocess.run(command, shell=True, capture_output=True)  # iconv -c exits with 1 where it drops something
    (new,) = set(os.listdir()) - before
    assert "".join(read_chunks([Path(new)])) == mended
    if not command.startswith("mv"):
        assert Path(name).read_bytes() == data


def test_a_file_that_is_truncated_and_not_utf8_is_named(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(os.urandom(9) + (TEXT + "caf\xe9\n" * 9000).encode("latin-1"))[:-30])
    with pytest.raises(InputError, match=r"a\.gz"):
        list(read_chunks([path]))
