"""The one exception a user's own input can cause."""


class UserError(ValueError):
    """Bad input, said in one line that also says what to do.

    The command line prints the message alone (no traceback) and exits with status 2;
    in Python it is an ordinary ``ValueError``.
    """
