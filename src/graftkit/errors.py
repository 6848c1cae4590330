"""What ends a run early?"""


class UserError(Exception):
    """A mistake that the user can mend: one line that names what was wrong, where, and the way out.

    Recipes and the `graft` command print it without a traceback and exit with code 2. Of several processes the first
    one speaks, unless the mistake may show in another one alone: `everywhere`.
    """

    def __init__(self, message: str, *, everywhere: bool = False):
        super().__init__(message)
        self.everywhere = everywhere


class Stopped(Exception):
    """A run that was asked to stop, and saved itself: the line to print, and the exit code (128 plus the signal)."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
