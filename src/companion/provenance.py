"""What was read to make a record."""

READ: dict[str, str] = {}


def note(source: str, digest: str) -> None:
    """Note that a source with this digest was read."""
    READ[source] = digest
