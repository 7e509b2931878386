"""Requests that are refused, each with its HTTP status."""

from lite3r_jax.errors import InputError


class Refused(InputError):
    """A request that cannot be done: one line of text, as for any bad input, and an HTTP status."""

    def __init__(self, message: str, status: int = 400):
        """See the class.

        Args:
            message: one line.
            status: of HTTP.
        """
        super().__init__(message)
        self.status = status


class Cancelled(Exception):
    """The computation of a scene was given up because somebody asked for it."""
