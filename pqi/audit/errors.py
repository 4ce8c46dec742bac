"""What can keep an audit from being made."""


class AuditError(Exception):
    """It cannot be audited as asked; the message says what is missing or wrong, and what to do."""
