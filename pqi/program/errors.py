"""Errors of compilation and of programs read from files."""


class ProgramError(Exception):
    """A model cannot be compiled as asked, or a stored program is not one; the message says what and what to do."""
