"""The one exception type for bad input from outside: files, arrays, names and settings."""


class InputError(ValueError):
    """Bad input, described in one line: what it is (file or key), what was expected, what to do.

    Command-line programs print the message without a traceback and exit with code 2.
    """
