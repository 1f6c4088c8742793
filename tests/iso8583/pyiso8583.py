"""Our dialects as specifications of pyiso8583, a library that others keep: the oracle of our codec."""

from __future__ import annotations

from typing import Any

from streams.authorize.dialect import Dialect


def spec_of(dialect: Dialect) -> dict[str, Any]:
    """The dialect as a specification of pyiso8583, but for what it cannot express (a sign before packed digits)."""
    text = {"ascii": "ascii", "ebcdic": "cp500"}[dialect.text]
    packed = dialect.numeric == "packed"
    length = {"text": text, "packed": "bcd", "binary": "b"}[dialect.length]
    fixed = {"len_enc": text, "len_type": 0, "desc": ""}
    spec: dict[str, Any] = {
        "h": {"data_enc": text, "max_len": dialect.prefix_bytes} | fixed,
        "t": {"data_enc": "b" if packed else text, "max_len": 4} | fixed,
        "p": {"data_enc": "b" if dialect.bitmap == "binary" else text, "max_len": 8} | fixed,
    }
    spec["1"] = spec["p"]
    for number, (kind, digits, size_max) in dialect.fields.items():
        width = {"text": digits, "packed": (digits + 1) // 2, "binary": 0 if not digits else 1 if digits == 2 else 2}[dialect.length]
        row = {"data_enc": text, "len_enc": length, "len_type": width, "max_len": size_max, "desc": ""}
        if kind == "b":
            row["data_enc"] = "b"
        elif packed and kind in ("n", "z"):
            row |= {"data_enc": "b", "len_count": "nibbles", "left_pad": "0"}
        elif kind == "x+n":
            row["max_len"] = size_max + 1
        spec[str(number)] = row
    return spec
