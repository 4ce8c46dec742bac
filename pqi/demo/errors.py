"""What can keep the demonstration from running."""


class DemoError(Exception):
    """The demonstration cannot start; the message says what is missing and what to do."""
