"""The error of a request that cannot be granted; in a file of its own, since whatever answers requests raises it."""


class Refused(Exception):
    """Something cannot be done, or is not there; the message is one sentence.

    Attributes:
      status: the HTTP status that says so.
    """

    def __init__(self, message: str, status: int = 409):
        super().__init__(message)
        self.status = status
