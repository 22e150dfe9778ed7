# SPDX-License-Identifier: Apache-2.0
"""Texts that the language models learn from, read from files of this machine; nothing is downloaded here.

==================  ====================================================================================================
data set            files
==================  ====================================================================================================
``austen``          six novels of Jane Austen: ``Rdata.rdb`` of the R package janeaustenr, public domain
``shakespeare``     ``train.txt`` and ``test.txt``, or one ``.txt`` file whose first 80 % of lines are for training
``tinyShakespeare``  the same
``wikiText2``       ``wiki.train.tokens`` and ``wiki.test.tokens``
==================  ====================================================================================================
"""

from __future__ import annotations

import os
import re
import string
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from data import DataError
from torch import Tensor

AUSTEN_VARIABLE = "LATH_AUSTEN"
AUSTEN_FOLDERS = (
    Path("/usr/lib/R/site-library/janeaustenr/data"),  # the Debian package r-cran-janeaustenr
    Path(__file__).resolve().parents[2] / "data" / "austen",  # where tools/fetch.py unpacks it without root
)
AUSTEN_TRAINING = 0.9  # of the lines of each novel
SHAKESPEARE_TRAINING = 0.8

CHARACTERS = string.printable  # 100 of them
UNKNOWN, END = "<ukn>", "<eos>"
separate = re.compile(r"\w+|[^\w\s]").findall  # words and marks of running text
_QUOTES = str.maketrans({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})

Text = tuple[str, str]  # for training, for testing
Split = Callable[[str], list[str]]  # a line into words


def austen() -> Text:
    """The end of each novel, a tenth of its lines, is for testing.

    Raises:
        DataError: no folder has the novels, or the file is damaged.
    """
    path = find_austen() / "Rdata.rdb"
    train, test = [], []
    for lines in _novels(path):
        cut = int(AUSTEN_TRAINING * len(lines))
        train += lines[:cut]
        test += lines[cut:]
    return "\n".join(train), "\n".join(test)


def find_austen() -> Path:
    """The folder with the novels; DataError if there is none."""
    named = os.environ.get(AUSTEN_VARIABLE)
    folders = (Path(named),) if named else AUSTEN_FOLDERS
    for folder in folders:
        if (folder / "Rdata.rdb").is_file():
            return folder
    where = f"{AUSTEN_VARIABLE}={named}" if named else " or ".join(map(str, folders))
    raise DataError(
        f"the Austen novels were not found: no Rdata.rdb in {where}. Run `python3 tools/fetch.py austen`, which "
        f"fetches the Debian package r-cran-janeaustenr, or set {AUSTEN_VARIABLE} to the folder that has it."
    )


def _novels(path: Path) -> list[list[str]]:
    """The lines of each novel: R's lazy-load database, records of a length and a compressed vector of strings."""
    try:
        data = path.read_bytes()
        novels = [lines for record in _records(data) if len(lines := _strings(record)) > 1]
    except (OSError, zlib.error, struct.error, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not novels:
        raise DataError(f"{path} holds no novel")
    return novels


def _records(data: bytes) -> Iterator[bytes]:
    while len(data) > 4:
        stream = zlib.decompressobj()
        record = stream.decompress(data[4:])  # the first four bytes are the length without compression
        if len(record) != int.from_bytes(data[:4], "big"):
            raise ValueError("a record is shorter than it says")
        yield record
        data = stream.unused_data


def _strings(record: bytes) -> list[str]:
    """Of a serialized character vector; none of anything else."""
    if record[:2] != b"X\n":
        return []
    at = 14  # after the versions of the format, of the writer and of the oldest reader
    (size,) = struct.unpack_from(">i", record, at)  # the name of the encoding
    kind, count = struct.unpack_from(">ii", record, at + 4 + size)
    if kind & 0xFF != 16:
        return []
    at += 12 + size
    strings = []
    for _ in range(count):
        _, size = struct.unpack_from(">ii", record, at)
        at += 8
        strings.append(record[at : at + size].decode("utf-8") if size >= 0 else "")
        at += max(0, size)
    return strings


def shakespeare(folder: Path) -> Text:
    """``train.txt`` and ``test.txt`` of the folder, or its only ``.txt`` file, split by lines.

    Raises:
        DataError: the folder has neither.
    """
    both = folder / "train.txt", folder / "test.txt"
    if all(path.is_file() for path in both):
        train, test = (_read(path) for path in both)
        return train, test
    found = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if len(found) != 1:
        raise DataError(
            f"no Shakespeare in {folder}: expected train.txt and test.txt, or one .txt file, found {len(found)} files"
        )
    lines = _read(found[0]).splitlines(keepends=True)
    test_lines = int((1 - SHAKESPEARE_TRAINING) * len(lines))  # 7,999 of 40,000, as the reference has it
    return "".join(lines[: len(lines) - test_lines]), "".join(lines[len(lines) - test_lines :])


def wikitext2(folder: Path) -> Text:
    """``wiki.train.tokens`` and ``wiki.test.tokens``; DataError if the folder lacks one."""
    train, test = (_read(folder / f"wiki.{part}.tokens") for part in ("train", "test"))
    return train, test


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


# ---- from text to numbers --------------------------------------------------------------------------------------------


def characters(text: str) -> Tensor:
    """Index of each character among the 100 printable ones, uint8.

    Of several blanks one is left, line breaks become blanks, accents are dropped, and so is what has no printable form.
    """
    text = re.sub(" {2,}", " ", text.translate(_QUOTES)).replace("\n", " ")
    table = bytearray([255] * 256)
    for i, character in enumerate(CHARACTERS):
        table[ord(character)] = i
    codes = unicodedata.normalize("NFKD", text).encode("ascii", errors="ignore").translate(bytes(table), b"")
    return torch.frombuffer(bytearray(codes.replace(b"\xff", b"")), dtype=torch.uint8)


def vocabulary(text: str, split: Split = str.split) -> dict[str, int]:
    """Number of each word of the training text, in order of appearance, after those for the unknown and line ends."""
    numbers = {UNKNOWN: 0, END: 1}
    for line in text.splitlines():
        for word in split(line):
            numbers.setdefault(word, len(numbers))
    return numbers


def tokens(text: str, numbers: dict[str, int], split: Split = str.split) -> Tensor:
    """The numbers of all words of a text, int64, with one more at the end of each line that has any."""
    found: list[int] = []
    for line in text.splitlines():
        of_line = [numbers.get(word, numbers[UNKNOWN]) for word in split(line)]
        if of_line:
            found += [*of_line, numbers[END]]
    return torch.tensor(found)
