"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where (file, row or config path), and what to do.

    The command line prints the message without a traceback and exits with status 2. Library code raises it for input
    that a user wrote (files, configs, run folders); programming errors stay `ValueError` and `TypeError`.
    """
