"""What fails, and what clients then get: the table that the README shows and test_faults.py runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One fault. The answers are (status, `Cache-Status` result) for stored content, and status for what is not stored.

    `fresh` is a tag within its lifetime, a manifest by digest or a blob; `stale` a tag past its lifetime.
    """

    name: str
    text: str
    fresh: int = 200
    stale: int = 200
    cold: int = 503

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The row as the README shows it."""
        codes = {429: "429 `TOOMANYREQUESTS`", 502: "502 `UNAVAILABLE`", 503: "503 `UNAVAILABLE`", 200: "fetched"}
        stored = "served"
        stale = "served, marked stale" if self.name not in _REVALIDATES else "served, validated"
        return self.text, stored, stale, codes[self.cold]


_REVALIDATES = ("cdn refused", "cdn 500")

ROWS = (
    Row("registry refused", "registry refuses connections"),
    Row("registry blackholed", "registry does not answer (connect time-out)"),
    Row("registry 503", "registry answers 503"),
    Row("registry 429", "registry answers 429 (rate limit used up)", cold=429),
    Row("registry html", "registry answers 200 with HTML", cold=502),
    Row("token refused", "token service refuses connections"),
    Row("token blackholed", "token service does not answer"),
    Row("token 500", "token service answers 500"),
    Row("cdn refused", "CDN refuses connections (blobs)"),
    Row("cdn 500", "CDN answers 500 (blobs)"),
    Row("all refused", "everything refuses connections"),
    Row("all blackholed", "nothing answers"),
)


def markdown() -> str:
    """The table."""
    lines = ["| what fails | stored | stored, tag past its lifetime | not stored |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row.cells) + " |" for row in ROWS]
    return "\n".join(lines)
