"""Reads the ``data.yaml`` of YOLO data sets: the little of YAML that such files are written in, and no more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ..errors import DataError

__all__ = ["Value", "read_data_yaml"]

Value: TypeAlias = "str | list[str] | dict[str, str]"

_KEYS = ("path", "train", "val", "valid", "test", "nc", "names")
_MAX_BYTES = 1 << 20

_QUOTED = r"""(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")"""
_PLAIN = r"""[^\s'",\[\]{}#&*!|>%@`][^,\[\]{}\n]*"""
_KEY = rf"""(?:{_QUOTED}\s*|[^\s'",\[\]{{}}#&*!|>%@`:][^,\[\]{{}}\n:]*)"""
_PAIR = re.compile(rf"(?P<key>{_KEY}):(?:\s+(?P<value>.*))?")
_WORD = re.compile(rf"""{_QUOTED}|[^\s'"#&*!|>%@`\[\]{{}}].*""")
_ENTRY = re.compile(rf"\s*(?P<item>(?:{_KEY}:\s+)?(?:{_QUOTED}\s*|{_PLAIN}))(?:,|\Z)")


class _Line(NamedTuple):
    number: int
    text: str
    """Without its comment and trailing blanks."""


def read_data_yaml(file: Path) -> dict[str, Value]:
    """What a ``data.yaml`` says under path, train, val, valid, test, nc and names; other keys are passed over.

    Understood are plain and quoted text, ``[a, b]``, ``{0: a, 1: b}``, lists of ``- a`` lines and indented ``0: a``
    lines. Keys without a value are left out. Raises DataError with the line for anything else, and where the file
    cannot be read.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise DataError(f"{file}: is larger than {_MAX_BYTES >> 20} MiB: is it a data.yaml?")
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file}: is not UTF-8 text") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    found: dict[str, Value] = {}
    for key, lines in _sections(file, text):
        if key not in _KEYS:
            continue
        if key in found:
            raise _fault(file, lines[0], f"{key} is there twice")
        value = _value(file, lines)
        if value:
            found[key] = value
    return found


def _sections(file: Path, text: str) -> Iterator[tuple[str, list[_Line]]]:
    """Each key that starts in the first column, and its lines; the first is what stands behind the key."""
    key, depth = "", 0
    lines: list[_Line] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _Line(number, _bare(raw))
        if not line.text or line.text == "---":
            continue
        if not depth and line.text[0] not in " \t" and not _is_item(line.text):
            if key:
                yield key, lines
            pair = _PAIR.fullmatch(line.text)
            if pair is None:
                raise _fault(file, line, "expected 'key: value'")
            key, lines = _plain(pair["key"]), []
            line = _Line(number, pair["value"] or "")
        elif not key:
            raise _fault(file, line, "expected 'key: value' from the first column on")
        lines.append(line)
        if key in _KEYS:  # brackets may close in the first column
            bare = re.sub(_QUOTED, "", line.text)
            depth += bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}")
    if key:
        yield key, lines


def _value(file: Path, lines: list[_Line]) -> Value | None:
    first, rest = lines[0], [line for line in lines[1:] if line.text]
    if first.text[:1] in ("[", "{"):
        return _brackets(file, first, "\n".join(line.text for line in lines))
    if first.text:
        if rest:
            raise _fault(file, rest[0], "a value over several lines is not understood: write it on one")
        return _word(file, first, first.text)
    if not rest:
        return None
    if len({re.match(r"\s*", line.text)[0] for line in rest}) > 1:  # type: ignore[index]
        raise _fault(file, rest[0], "all lines of a list start in one column")
    if all(_is_item(line.text) for line in rest):
        return [_word(file, line, line.text.strip()[1:].strip()) for line in rest]
    pairs: dict[str, str] = {}
    for line in rest:
        pair = _PAIR.fullmatch(line.text.strip())
        if pair is None or not pair["value"]:
            raise _fault(file, line, "expected 'key: value' or '- value'")
        _put(file, line, pairs, _plain(pair["key"]), _word(file, line, pair["value"].strip()))
    return pairs


def _brackets(file: Path, line: _Line, text: str) -> Value:
    """``[a, 'b', "c"]`` or ``{0: a, 1: b}``, with no brackets inside."""
    text = text.strip()
    if text[-1] != {"[": "]", "{": "}"}[text[0]]:
        raise _fault(file, line, f"no bracket closes '{text[0]}'")
    inner, at = text[1:-1].strip(), 0
    items: list[str] = []
    while at < len(inner):
        entry = _ENTRY.match(inner, at)
        if entry is None:
            raise _fault(file, line, "brackets hold plain or quoted names with commas between them, nothing else")
        items.append(entry["item"].strip())
        at = entry.end()
    if text[0] == "[":
        return [_plain(item) for item in items]
    pairs: dict[str, str] = {}
    for item in items:
        pair = _PAIR.fullmatch(item)
        if pair is None or not pair["value"]:
            raise _fault(file, line, "expected {key: value, …}")
        _put(file, line, pairs, _plain(pair["key"]), _plain(pair["value"].strip()))
    return pairs


def _put(file: Path, line: _Line, pairs: dict[str, str], key: str, value: str) -> None:
    if key in pairs:
        raise _fault(file, line, f"{key} is there twice")
    pairs[key] = value


def _word(file: Path, line: _Line, text: str) -> str:
    if not _WORD.fullmatch(text):
        raise _fault(file, line, "only plain or quoted text is understood here")
    return _plain(text)


def _plain(text: str) -> str:
    """Without its quotes."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:  # YAML knows escapes that JSON does not
            return text[1:-1]
    return text


def _is_item(text: str) -> bool:
    return text.strip() == "-" or text.lstrip().startswith("- ")


def _bare(line: str) -> str:
    """Without comment and trailing blanks."""
    quote = ""
    for at, letter in enumerate(line):
        before = line[at - 1] if at else " "
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and before in " \t,[{:-":
            quote = letter
        elif letter == "#" and before in " \t":
            return line[:at].rstrip()
    return line.rstrip()


def _fault(file: Path, line: _Line, rule: str) -> DataError:
    return DataError(f"{file}, line {line.number}: '{line.text.strip()[:60]}': {rule}")
