"""Detects archives and other encodings, and suggests a conversion command."""

import codecs
import os
import shlex
from pathlib import Path

ARCHIVES = {  # kind and the command that writes it unpacked, by first bytes
    b"PK\x03\x04": ("zip", "unzip -p"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -dc"),
    b"\x1f\x9d": ("compress", "gzip -dc"),
    b"7z\xbc\xaf\x27\x1c": ("7-Zip", "7z e -so"),
    b"%PDF-": ("PDF", "pdftotext"),
}
BYTE_ORDER_MARKS = {  # the longer ones first, since UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
MIN_ZEROS = 4  # a few NUL bytes in a short text are no sign of UTF-16
UNPACK = {".gz": "gzip -dc", ".xz": "xz -dc", ".bz2": "bzip2 -dc", ".zst": "zstd -dc"}


class TextSource:
    """The name of a file, a pipe or the standard input in messages, and in the commands that they suggest."""

    def __init__(self, source: str | os.PathLike[str]):
        self.path = Path(source)
        self.is_file = self.path.is_file()
        self.suffix = self.path.suffix

    def __str__(self) -> str:
        return "The standard input" if str(self.path) == "-" else str(self.path)

    def through(self, command: str) -> str:
        """Returns a shell command that sends the text, unpacked, through another."""
        unpack = UNPACK.get(self.suffix)
        if not self.is_file:  # there is nothing that could be read again
            return f"... | {command} | jaxlm ..."
        plain = self.path.with_suffix("") if unpack else self.path
        target = shlex.quote(str(plain.with_name(f"{plain.stem}.utf8{plain.suffix}")))
        name = shlex.quote(str(self.path))
        return f"{unpack} {name} | {command} > {target}" if unpack else f"{command} < {name} > {target}"


def describe_archive(source: TextSource, start: bytes) -> str | None:
    """Returns an error message if the first bytes of a text are those of an archive."""
    name = shlex.quote(str(source.path)) if source.is_file else "FILE"
    if start[257:262] == b"ustar":
        return f"{source} is a tar archive; expected text. Unpack it, and name the files in it: tar -xf {name}"
    kind, command = next((found for magic, found in ARCHIVES.items() if start.startswith(magic)), ("", ""))
    if not kind:
        return None
    if kind == "PDF":
        return f"{source} is a PDF; expected text. Extract it: {command} {name}"
    target = shlex.quote(str(source.path.with_name(f"{source.path.stem}.unpacked.txt"))) if source.is_file else "TEXT"
    return f"{source} is compressed with {kind}; expected text. Unpack it: {command} {name} > {target}"


def wrong_encoding(source: TextSource, start: bytes) -> str | None:
    """Returns an error message if a text, by its first bytes, is in UTF-16 or UTF-32."""
    found = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if found is None:  # without a byte order mark, every second byte of most texts is 0
        pairs = len(start) // 2
        for name, zeros in (("UTF-16BE", start[0::2].count(0)), ("UTF-16LE", start[1::2].count(0))):
            if zeros >= MIN_ZEROS and zeros > 0.3 * pairs and zeros >= 0.9 * start.count(0):
                found = name
    if found is None:
        return None
    return f"{source} is {found}, as its first bytes show; expected UTF-8. Convert it: {source.through(_iconv(found))}"


def describe_nul(source: TextSource, text: str, lines: int) -> str:
    """Returns an error message with the line of a NUL byte, given that part of a text, and the lines before it."""
    line = lines + text[: text.index("\0")].count("\n") + 1
    command = source.through("tr -d '\\000'")
    return f"{source} has a NUL byte in line {line}, so it is not plain text. Remove such bytes: {command}"


def describe_bytes(source: TextSource, error: UnicodeDecodeError, lines: int, has_utf8: bool) -> str:
    """Returns an error message with the line in which a text is not UTF-8, and the likely encoding.

    Args:
      source: the text.
      error: of decoding a part of it.
      lines: number of lines before that part.
      has_utf8: whether the text before that part has characters beyond ASCII.
    """
    before, after = error.object[: error.start], error.object[error.start :]
    line = lines + before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
    problem = f"{source} is not UTF-8: byte {after[0]:#04x} in line {line} ({error.reason})."
    if has_utf8 or not before.isascii():
        command = source.through("iconv -c -f UTF-8 -t UTF-8")
        return f"{problem} The text before it is UTF-8, so it may be damaged. Drop such bytes: {command}"
    encoding = "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in after[:4096]) else "LATIN1"
    return (
        f"{problem} Convert it from its encoding, such as SHIFT-JIS or GB18030 (`file -i` may tell, `iconv -l` lists"
        f" all); if it is Western European text: {source.through(_iconv(encoding))}"
    )


def _iconv(encoding: str) -> str:
    return f"iconv -f {encoding} -t UTF-8"
