"""What can keep a measurement from being made."""


class MeasureError(Exception):
    """It cannot be measured as asked; the message says what is missing and what to do."""
