"""What did the user get wrong?"""


class UserError(Exception):
    """A mistake that the user can mend: one line that names what was wrong, where, and the way out.

    Recipes and the `graft` command print it without a traceback and exit with code 2.
    """
