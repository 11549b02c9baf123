"""What can go wrong, by whose doing."""


class UserError(Exception):
    """The user's input is at fault: one line naming file, key or row, and the mend. The CLI exits with 2."""


class Interrupted(Exception):
    """Stopped by a signal at a seam; the run can be resumed. The CLI exits with 3."""
