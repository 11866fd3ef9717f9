"""The command line. Sub-commands are imported when they are called; `main` turns errors into exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from fastdit import __version__
from fastdit.errors import FastDitError, InvalidInputError

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

app = App(
    name="fastdit",
    help="Sparse attention for video diffusion transformers in Hugging Face Diffusers.",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    # No --empty-... beside every option that takes several values.
    default_parameter=Parameter(negative_iterable=()),
)
app.command("fastdit.cli.doctor:doctor", name="doctor")
app.command("fastdit.cli.generate:generate", name="generate")
app.command("fastdit.cli.inspect:inspect", name="inspect")
app.command("fastdit.cli.judge:judge", name="judge")
app.command("fastdit.cli.models:models", name="models")
app.command("fastdit.cli.search:search", name="search")
app.command("fastdit.cli.plan:app", name="plan")
app.command("fastdit.cli.ui:ui", name="ui")
app.command("fastdit.cli.bench:app", name="bench")
app.command("fastdit.cli.eval:app", name="eval")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after `fastdit`; default those of the process.

    Returns:
        0 done, 1 the work failed, 2 wrong usage, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _load_listed(words)
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _fail(str(error), EXIT_USAGE)
    except InvalidInputError as error:
        return _fail(str(error), EXIT_USAGE)
    except FastDitError as error:
        return _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    return EXIT_DONE


def _load_listed(words: Sequence[str]) -> None:
    """Import the commands of the group that `words` end at: its help page shows what each does."""
    _, apps, _ = app.parse_commands([word for word in words if word not in ("--help", "-h")])
    if apps[-1].default_command is None:
        for name in apps[-1]:
            apps[-1][name]


def _fail(message: str, code: int) -> int:
    print(f"fastdit: error: {' '.join(message.split())}", file=sys.stderr)
    return code
