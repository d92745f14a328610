"""Errors that are shown to the user."""


class StudyError(ValueError):
    """A sentence for the user: what is wrong and what to do. It is shown without a traceback."""
