"""Exceptions of the service: a refused request with its HTTP status, and a cancellation."""

from lite3r_jax.errors import InputError


class Refused(InputError):
    """An exception for a refused request, with a message of one line and an HTTP status."""

    def __init__(self, message: str, status: int = 400):
        """Creates the exception.

        Args:
            message: one line that says why the request is refused.
            status: status code of the HTTP response.
        """
        super().__init__(message)
        self.status = status


class Cancelled(Exception):
    """An exception that ends the computation of a scene because it was cancelled."""
