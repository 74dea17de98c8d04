"""What a sentence for a reader must not hold."""

from __future__ import annotations

import re

from kit.attacks.table import ATTACKS, attack_label

#: Where a key belongs: commands, code blocks, code in backticks, and the targets of links.
_CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|python -m kit [^:]*?(?=\. |\.$|$)", re.DOTALL)

_WORD = re.compile(r"[\w-]+")


def attack_keys_in(text: str) -> set[str]:
    """The keys of `ATTACKS` in a text, outside code, where a reader expects the attack's label.

    "square" is an English word, too, and is not counted.
    """
    words = set(_WORD.findall(_CODE.sub(" ", text)))
    return {key for key in words & {*ATTACKS} - {"square"} if attack_label(key) != key}
