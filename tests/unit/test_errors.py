"""The error tree and the exit codes that users script against."""

import pytest

from cones_registry import errors
from cones_registry.errors import EXIT_CODES, ConesError

CLASSES = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, ConesError)
]


@pytest.mark.parametrize(
    ("name", "code", "builtin"),
    [
        ("ConesError", 1, Exception),
        ("UsageError", 2, ValueError),
        ("NotFoundError", 10, LookupError),
        ("ConflictError", 11, ValueError),
        ("BaseModelMismatchError", 12, ValueError),
        ("CorruptDataError", 13, ValueError),
        ("StoreUnavailableError", 14, OSError),
        ("MissingExtraError", 15, ImportError),
        ("LimitExceededError", 16, ValueError),
    ],
)
def test_each_class_has_its_exit_code_and_is_the_builtin_that_fits(
    name: str, code: int, builtin: type
) -> None:
    each = getattr(errors, name)

    assert each.exit_code == code
    assert issubclass(each, builtin)
    assert str(each("cannot do 'x'")) == "cannot do 'x'"


def test_exit_codes_name_every_class_once() -> None:
    named = [each for each in CLASSES if "exit_code" in vars(each)]  # kinds of one share its code
    assert sorted(each.exit_code for each in named) == sorted(set(EXIT_CODES) - {0})
