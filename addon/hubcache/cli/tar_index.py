"""Finds the files in a tar archive that may be hostile, without extracting it.

The library's `tarfile` reads extended headers of any size into memory and follows links. This reads what writers of OCI
image layouts produce: the formats ustar, pax and GNU (POSIX.1-2024, pax, "ustar Interchange Format" and "pax Extended
Header"), with regular files and directories, and refuses everything else.
"""

import os
import re
from dataclasses import dataclass
from typing import BinaryIO

from .errors import CommandError

MAX_ENTRIES = 50_000
"""Entries of one archive. An image index of 20 platforms with 100 layers each has some 2,000."""

_BLOCK = 512
_MAX_EXTENDED = 64 << 10
"""Largest extended header in bytes: it has names and times."""

_REGULAR, _DIRECTORY = (b"0", b"\0", b"7"), b"5"
_PAX, _GNU_NAME = (b"x", b"g"), b"L"
_OTHERS = {
    **{b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"},
    **{b"K": "a link with a long name", b"S": "a sparse file", b"M": "a part of another archive"},
}
_NUMBER = re.compile(rb"[0-7]{1,12}")


class ArchiveError(CommandError):
    """An archive is not one, is damaged, or has an entry that no image layout has."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the archive: where its bytes begin, and how many it has."""

    offset: int
    size: int


def index_tar(file: BinaryIO) -> dict[str, Entry]:
    """Return the regular files of an archive by their names; raises `ArchiveError` and `OSError`."""
    length = os.fstat(file.fileno()).st_size
    found: dict[str, Entry] = {}
    offset = entries = 0
    extended: dict[str, str] = {}
    while offset + _BLOCK <= length:
        header = _read(file, offset, _BLOCK)
        offset += _BLOCK
        if not any(header):
            break  # the archive ends with two empty blocks
        name, size, kind = _parse(header)
        entries += 1
        if entries > MAX_ENTRIES:
            raise ArchiveError(f"it has more than {MAX_ENTRIES} entries")
        if kind in _PAX or kind == _GNU_NAME:
            if _pax_size({}, size) > _MAX_EXTENDED:
                raise ArchiveError(f"an extended header has {size} bytes")
            data = _read(file, offset, size)
            if kind != b"g":  # a global header has comments
                extended |= {"path": _text(data.rstrip(b"\0"))} if kind == _GNU_NAME else _pax_fields(data)
            offset += _padded(size)
            continue
        name = _checked(extended.get("path", name))
        size = _pax_size(extended, size)
        if any(key.startswith("GNU.sparse") for key in extended):
            raise ArchiveError(f"{name!r} is a sparse file")
        extended = {}
        if kind == _DIRECTORY:
            size = 0
        elif kind not in _REGULAR:
            raise ArchiveError(f"{name!r} is {_OTHERS.get(kind, 'of an unknown kind')}")
        elif offset + size > length:
            raise ArchiveError(f"it ends within {name!r}: it is not complete")
        elif name in found:
            raise ArchiveError(f"it has {name!r} twice")
        else:
            found[name] = Entry(offset, size)
        offset += _padded(size)
    return found


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    data = file.read(count)
    if len(data) < count:
        raise ArchiveError("it is not complete")
    return data


def _parse(header: bytes) -> tuple[str, int, bytes]:
    """Return the name, size and type of a header whose checksum is right; raises `ArchiveError`."""
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    if _number(header[148:156]) != total:
        raise ArchiveError("it is not a tar archive, or it is compressed or damaged")
    name = _text(header[:100].split(b"\0")[0])
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = f"{_text(header[345:500].split(b'\0')[0])}/{name}"
    return name, _number(header[124:136]), header[156:157]


def _number(field: bytes) -> int:
    """Return an octal number or, with the first bit set, GNU's binary one; -1 for a malformed one."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    return int(digits, 8) if _NUMBER.fullmatch(digits) else -1 if digits else 0


def _pax_fields(data: bytes) -> dict[str, str]:
    """Return the records of a pax header, each `LENGTH KEY=VALUE` and a newline; raises `ArchiveError`."""
    fields = {}
    while data:
        digits, space, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) <= 6 else 0
        record = data[len(digits) + 1 : length]
        if not space or not len(digits) + 2 < length <= len(data) or record[-1:] != b"\n" or b"=" not in record:
            raise ArchiveError("an extended header is malformed")
        key, _, value = record[:-1].partition(b"=")
        fields[_text(key)] = _text(value)
        data = data[length:]
    return fields


def _pax_size(fields: dict[str, str], size: int) -> int:
    text = fields.get("size")
    if text is not None:
        size = int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else -1
    if size < 0:
        raise ArchiveError("an entry has a malformed size")
    return size


def _checked(name: str) -> str:
    """Return a relative name without a leading `./`; raises `ArchiveError` for a name outside of the archive."""
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or ".." in parts or not name.isprintable():
        raise ArchiveError(f"it has the name {name[:200]!r}, which is outside of the archive or malformed")
    return "/".join(part for part in parts if part not in ("", "."))


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
