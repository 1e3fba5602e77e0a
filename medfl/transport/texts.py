"""What others say, before it is shown or kept."""


def plain(text: str, longest: int = 400) -> str:
    """At most `longest` characters on one line, without control characters and such that change their direction: a
    peer's words must not steer a terminal, forge a line of a log or fill it."""
    found = "".join(char if char.isprintable() else " " for char in text[:longest])
    return found if len(text) <= longest else f"{found[: longest - 2]}.."
