"""The command line: ``fastconv VERB``, one file per verb."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastconv.settings import VariableError

NEEDS_EXTRA = "The command line needs the packages typer and rich: pip install 'fastconv[cli]'."
FAILED, USAGE, INTERRUPTED = 1, 2, 130  # exit codes; 130 is what a shell reports after Ctrl-C


class UserError(Exception):
    """One sentence for the person at the terminal; the exit code is 2 and there is no traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""
    try:
        import rich  # noqa: F401
        import typer
    except ImportError:
        return _say(NEEDS_EXTRA, USAGE)
    from fastconv.cli.app import app

    try:
        # typer returns the code of typer.Exit, the result of the verb (None) or, when interrupted, 130.
        code = app(list(arguments) if arguments is not None else None, standalone_mode=False)
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (UserError, VariableError) as error:
        return _say(str(error), USAGE)
    except ImportError as error:
        return _say(str(error), FAILED)
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        # typer's own complaints about arguments, whichever package it takes them from.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        return _say(message, USAGE) if message else USAGE
    return _say("Interrupted.", INTERRUPTED) if code == INTERRUPTED else code or 0


def _say(sentence: str, code: int) -> int:
    print(f"fastconv: {' '.join(sentence.split())}", file=sys.stderr)
    return code
