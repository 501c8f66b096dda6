"""Image names in completion by bash, for which a colon separates words (`COMP_WORDBREAKS`).

`hubcache show debian:1` arrives as the words `debian`, `:` and `1`, and bash replaces only what follows the colon.
"""

import io
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout

_COMPLETES = "_HUBCACHE_COMPLETE", "complete_bash"
_WORDS, _NUMBER = "COMP_WORDS", "COMP_CWORD"


@contextmanager
def whole_names(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Let the command complete names with colons: it reads whole words, and bash gets what follows the last colon."""
    if not _join_words(environment):
        yield
        return
    completions = io.StringIO()
    try:
        with redirect_stdout(completions):
            yield
    finally:
        sys.stdout.writelines(f"{line.rpartition(':')[2]}\n" for line in completions.getvalue().splitlines())


def _join_words(environment: MutableMapping[str, str]) -> bool:
    """Join what bash separated at colons; return whether there is a colon in the word that it completes."""
    name, value = _COMPLETES
    number = environment.get(_NUMBER, "")
    if environment.get(name) != value or not number.isdecimal():
        return False
    words = re.split(r"\s", environment.get(_WORDS, ""))[: int(number) + 1]
    joined = re.sub(r"\n:(\n|$)", ":", "\n".join(words)).split("\n")
    environment.update({_WORDS: "\n".join(joined), _NUMBER: str(len(joined) - 1)})
    return joined[-1] != words[-1]
