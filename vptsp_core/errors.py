"""The errors that this project raises on purpose, because the user can fix their cause.

Each message is one line. It names the thing that is wrong and says what to do about it.
"""

from collections.abc import Mapping


class VptspError(Exception):
    """The base class of this project's errors. The command line prints the message and exits with status 2."""


class ConfigError(VptspError):
    """Settings that are invalid, or that do not fit together."""


class TrainingError(VptspError):
    """Training stopped: its loss is not finite, or the memory is too small. Other settings may work on this machine."""


class DataError(VptspError):
    """A data set or an image that is missing, incomplete or unreadable.

    Args:
        fault: what is wrong. The attribute ``fault`` keeps it, so that a caller can give another cure.
        cure: what the user can do about it. If it is empty, ``fault`` is the whole message.
    """

    def __init__(self, fault: str, cure: str = "") -> None:
        super().__init__(f"{fault}; {cure}" if cure else fault)
        self.fault = fault


class WeightsError(VptspError):
    """Weights or a checkpoint that are missing, unreadable, or do not fit the model."""


def printable(text: str) -> str:
    """Return ``text`` as one line that is safe to print: line ends and control characters are escaped.

    The names of files may contain both.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Check the value of an option that is not a key of `RunConfig` (`RunConfig` checks the values of its keys).

    Raises:
        ConfigError: ``value`` is not in ``allowed``. The message names ``option``.
    """
    if value not in allowed:
        raise ConfigError(f"{option} = {value!r} must be one of {', '.join(allowed)}")


def refuse_empty(options: Mapping[str, object]) -> None:
    """Refuse an option of the command line whose value is empty, for example an unset shell variable.

    Raises:
        ConfigError: a value in ``options``, {name: value}, is "".
    """
    for name, value in options.items():
        if value == "":
            raise ConfigError(f"--{name.replace('_', '-')} is empty; give a value, or leave it out")
