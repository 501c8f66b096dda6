"""How errors are told to clients: the one place where an exception becomes an answer."""

from ..oci.errors import RegistryError, Unsupported
from .messages import Answer, Result

API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


def error_answer(error: RegistryError, method: str) -> Answer:
    """An error in the form that registry clients read; plain text makes dockerd say "invalid character"."""
    body = error.body()
    headers = API_VERSION | {"Content-Type": "application/json"} | error.headers()
    if error.status == Unsupported.status:
        headers["Allow"] = "GET, HEAD"
    return Answer(error.status, headers, Result.ERROR, body=b"" if method == "HEAD" else body, length=len(body))
