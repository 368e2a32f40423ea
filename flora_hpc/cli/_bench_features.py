"""x."""


def features() -> None: ...
