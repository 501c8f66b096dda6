"""The table of faults and their answers, which the README shows and test_faults.py runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault, and the status (`cold`) for content that is not stored. Stored content is always served."""

    name: str
    text: str
    cold: int = 503

    @property
    def validates(self) -> bool:
        """Whether a tag past its lifetime can be validated in spite of the fault."""
        return self.name.startswith("cdn")

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The cells of the row in the README."""
        codes = {429: "429 `TOOMANYREQUESTS`", 502: "502 `UNAVAILABLE`", 503: "503 `UNAVAILABLE`", 200: "fetched"}
        stored = "served"
        stale = "served, validated" if self.validates else "served, marked stale"
        return self.text, stored, stale, codes[self.cold]


ROWS = (
    Row("registry refused", "registry refuses connections"),
    Row("registry blackholed", "registry does not answer (connect time-out)"),
    Row("registry 503", "registry answers 503"),
    Row("registry 429", "registry answers 429 (rate limit used up)", cold=429),
    Row("registry html", "registry answers 200 with HTML", cold=502),
    Row("token refused", "token service refuses connections"),
    Row("token blackholed", "token service does not answer"),
    Row("token 500", "token service answers 500"),
    Row("token 429", "token service answers 429", cold=429),
    Row("token html", "token service answers 200 with HTML"),
    Row("cdn refused", "CDN refuses connections (blobs)"),
    Row("cdn blackholed", "CDN does not answer (blobs)"),
    Row("cdn 500", "CDN answers 500 (blobs)"),
    Row("cdn html", "CDN answers 200 with HTML (blobs)", cold=502),
    Row("all refused", "everything refuses connections"),
    Row("all blackholed", "nothing answers"),
    Row("all 503", "everything answers 503"),
)


def markdown() -> str:
    """The table."""
    lines = ["| what fails | stored | stored, tag past its lifetime | not stored |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row.cells) + " |" for row in ROWS]
    return "\n".join(lines)
