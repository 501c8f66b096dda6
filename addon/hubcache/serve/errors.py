"""Turns exceptions into answers, in the error format of the distribution spec ("Error Codes")."""

from ..oci.errors import RegistryError, Unsupported
from .messages import Answer, Result

API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


def error_answer(error: RegistryError, method: str) -> Answer:
    """Return the answer for an error, as JSON: after plain text dockerd reports "invalid character"."""
    body = error.body()
    headers = API_VERSION | {"Content-Type": "application/json"} | error.headers()
    if error.status == Unsupported.status:
        headers["Allow"] = "GET, HEAD"
    shown = b"" if method == "HEAD" else body
    return Answer(error.status, headers, Result.ERROR, body=shown, length=len(body), error=error.message)
