"""Files that are not plain text in UTF-8: what they are, where it shows, and the command that mends them."""

import codecs
import shlex
from pathlib import Path
from typing import IO

MAGIC = {  # the first bytes of compressed files
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}
SUFFIXES = {".gz": "gzip", ".xz": "xz"}
UNPACK = {"zip": "unzip -p", "bzip2": "bzip2 -dc", "zstd": "zstd -dc"}
BYTE_ORDER_MARKS = {  # the longer ones first, since UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def wrong_compression(path: Path, start: bytes) -> str | None:
    """Returns what is wrong if a file, by its first bytes, is compressed in another way than its name says."""
    found = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), "")
    named = SUFFIXES.get(path.suffix, "")
    if found == named or not start:
        return None
    name = shlex.quote(str(path))
    if found in UNPACK:
        target = shlex.quote(str(path.with_name(f"{path.stem}.unpacked.txt")))
        command = f"{UNPACK[found]} {name} > {target}"
        return f"{path} is compressed with {found}; expected text, plain, .gz or .xz. Unpack it: {command}"
    if not found:
        plain = shlex.quote(str(path.with_suffix("")))
        return f"{path} cannot be read: its name says {named}, but it is not compressed. Rename it: mv {name} {plain}"
    suffix = next(suffix for suffix, kind in SUFFIXES.items() if kind == found)
    right = shlex.quote(str(path.with_suffix(suffix) if named else f"{path}{suffix}"))
    return f"{path} is compressed with {found}, but its name does not end in {suffix}. Rename it: mv {name} {right}"


def wrong_encoding(path: Path, start: bytes) -> str | None:
    """Returns what is wrong if a text, by its first bytes, is in UTF-16 or UTF-32."""
    found = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if found is None:  # without a byte order mark, every second byte of most texts is 0
        pairs = len(start) // 2
        for name, zeros in (("UTF-16BE", start[0::2].count(0)), ("UTF-16LE", start[1::2].count(0))):
            if pairs and zeros > 0.3 * pairs and zeros >= 0.9 * start.count(0):
                found = name
    if found is None:
        return None
    return f"{path} is {found}, as its first bytes show; expected UTF-8. Convert it: {_pipe(path, _iconv(found))}"


def describe_nul(path: Path, text: str, lines: int) -> str:
    """Returns where a text has a NUL byte, given the part of it that has one, and the lines before that part."""
    line = lines + text[: text.index("\0")].count("\n") + 1
    return f"{path} has a NUL byte in line {line}, so it is not plain text. Remove such bytes: " + _pipe(
        path, "tr -d '\\000'"
    )


def describe_bytes(path: Path, file: IO[bytes], error: UnicodeDecodeError) -> str:
    """Returns where a text is not UTF-8, and what it may be.

    Args:
      path: to name.
      file: the text, at its beginning.
      error: of decoding some part of it.
    """
    decoder, line, has_utf8 = codecs.getincrementaldecoder("utf-8")(), 1, False
    try:
        while block := file.read(1 << 13):
            text = decoder.decode(block)
            line, has_utf8 = line + text.count("\n"), has_utf8 or not text.isascii()
    except UnicodeDecodeError as exact:
        error = exact
    except (EOFError, OSError):  # the file is truncated, too
        pass
    before, after = error.object[: error.start], error.object[error.start :]
    line, has_utf8 = line + before.count(b"\n"), has_utf8 or not before.isascii()
    what = f"{path} is not UTF-8: byte {after[0]:#04x} in line {line} ({error.reason})."
    if has_utf8:
        return f"{what} The text before it is UTF-8, so it may be damaged. Drop such bytes: " + _pipe(
            path, "iconv -c -f UTF-8 -t UTF-8"
        )
    encoding = "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in after[:4096]) else "LATIN1"
    return f"{what} Convert it; if it is Western European text: {_pipe(path, _iconv(encoding))}"


def _iconv(encoding: str) -> str:
    return f"iconv -f {encoding} -t UTF-8"


def _pipe(path: Path, command: str) -> str:
    """Returns the command line that sends a text, unpacked, through a command, and writes plain text."""
    unpack = {".gz": "gzip -dc", ".xz": "xz -dc"}.get(path.suffix)
    plain = path.with_suffix("") if unpack else path
    target = shlex.quote(str(plain.with_name(f"{plain.stem}.utf8{plain.suffix}")))
    name = shlex.quote(str(path))
    return f"{unpack} {name} | {command} > {target}" if unpack else f"{command} < {name} > {target}"
