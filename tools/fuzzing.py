"""What the fuzzers share: a sound file is edited as atheris says, and libFuzzer runs one target.

Every run begins with the same inputs and, with libFuzzer's ``-seed=N`` beside the seconds, goes the
same way; what it finds is written to a file ``crash-…``, whose path as an argument runs it again.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

_INPUT_BYTES = 256  # what edits are read from
_LONGEST = 10  # seconds that one input may take


def edited(
    seeds: Sequence[bytes],
    provider: atheris.FuzzedDataProvider,
    *further: Callable[[bytearray, atheris.FuzzedDataProvider], None],
) -> bytes:
    """One of ``seeds`` with up to six edits: a bit turned, bytes replaced, removed or put in.

    further: other edits, each as likely as one of these.
    """
    data = bytearray(seeds[provider.ConsumeIntInRange(0, len(seeds) - 1)])
    for _ in range(provider.ConsumeIntInRange(0, 6)):
        kind = provider.ConsumeIntInRange(0, 3 + len(further))
        place = provider.ConsumeIntInRange(0, max(len(data) - 1, 0))
        if kind == 0 and data:
            data[place] ^= 1 << provider.ConsumeIntInRange(0, 7)
        elif kind == 1:
            new = provider.ConsumeBytes(provider.ConsumeIntInRange(1, 8))
            data[place : place + len(new)] = new
        elif kind == 2:
            del data[place : place + provider.ConsumeIntInRange(1, 64)]
        elif kind == 3:
            data[place:place] = provider.ConsumeBytes(provider.ConsumeIntInRange(1, 32))
        elif kind > 3:
            further[kind - 4](data, provider)
    return bytes(data)


def fuzz(try_one: Callable[[bytes], None], *, megabytes: int) -> None:
    """Give inputs to ``try_one`` for as long as the command line says; does not return.

    megabytes: of memory, above which an input counts as a finding.
    """
    arguments = sys.argv[1:]
    seconds = arguments.pop(0) if arguments and arguments[0].isdigit() else "300"
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number in range(256):
        (corpus / f"{number}").write_bytes(random.Random(number).randbytes(64))
    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={_LONGEST}",
        f"-rss_limit_mb={megabytes}",
        f"-max_len={_INPUT_BYTES}",
        "-len_control=0",
    ]
    again = any(not argument.startswith("-") for argument in arguments)  # inputs of an earlier run
    places = [] if again else [str(corpus)]
    atheris.Setup([sys.argv[0], *places, *limits, *arguments], try_one)
    atheris.Fuzz()
