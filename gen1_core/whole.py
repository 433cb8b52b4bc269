"""Files that are there whole or not at all: written beside their place, then moved there in one step."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADVICE = "free some space, or choose a folder that exists and may be written to"


@contextmanager
def whole(path: Path, *, advice: str = ADVICE, also: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """The path of a file to write, beside ``path``; it takes that place where the block ends without an error.

    Raises ValueError with the ``advice`` where the disk is full or the folder cannot be written to, which some
    libraries tell by exceptions of their own (``also``); what was at ``path`` then stays.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        yield part
        os.replace(part, path)
    except (OSError, *also) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path} could not be written ({reason}), and what was there before is unchanged; {advice}."
        ) from error
    finally:
        part.unlink(missing_ok=True)
