"""What ends a command with one line: `error: ...` and exit code 2."""


class MeshctlError(Exception):
    """Something stands in the way; the text says what, where, and what was expected."""


class KubeError(MeshctlError):
    """The API server refused a request, or could not be asked.

    Attributes:
        status: HTTP status, 0 where there was no answer.
        reason: of the answer's Status object, such as NotFound or Forbidden.
    """

    def __init__(self, message: str, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
