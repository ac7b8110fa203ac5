"""Errors that a user can fix. Each message is one line: which thing is wrong, and what to do about it."""


class VptspError(Exception):
    """Base of every error this project raises on purpose; the command line prints it and exits with status 2."""


class ConfigError(VptspError):
    """A run description that cannot be run."""


class TrainingError(VptspError):
    """This configuration cannot be trained here, another may: its loss is not finite, or it fits no memory."""


class DataError(VptspError):
    """A data set or an image that is missing, incomplete or unreadable."""


class WeightsError(VptspError):
    """Weights or a checkpoint that do not fit, or cannot be had."""


def printable(text: str) -> str:
    """One line for a terminal: names of files may hold line ends, and what a terminal would obey; both are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not allowed for an option outside `RunConfig`.

    Raises:
        ConfigError: naming the option and what it may be.
    """
    if value not in allowed:
        raise ConfigError(f"{option} = {value!r} must be one of {', '.join(allowed)}")
