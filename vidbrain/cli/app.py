"""The commands, by name: each module is loaded only when its command is called, so that help is instant."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts import config as cyclopts_config
from rich.console import Console as RichConsole

import vidbrain
from vidbrain.config import read_toml
from vidbrain.errors import VidbrainError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_HELP = """Shard game-play video, stream it into VideoGPT training, and map the model's features to fMRI voxels.

Start with: `vidbrain demo`
"""

# name, import string, one-line purpose; groups in the order of the data flow
_COMMANDS = {
    "Whole path": [
        ("demo", "vidbrain.cli.demo:demo", "Run the whole path on real game play, from nothing to a brain map."),
        ("doctor", "vidbrain.cli.doctor:doctor", "Say what this machine has, and what would fail on it."),
    ],
    "Video": [
        ("play", "vidbrain.cli.play:play", "Record real game play as .bk2 files in a BIDS tree."),
        ("replay", "vidbrain.cli.replay:replay", "Turn recorded game play into video and a table of each frame."),
        ("shard", "vidbrain.cli.shard:shard", "Write video as WebDataset shards with an index."),
        ("verify", "vidbrain.cli.shard:verify", "Check every byte of a data set of shards."),
    ],
    "Brain": [
        ("bold", "vidbrain.cli.bold:app", "Simulate, ingest and list fMRI data."),
    ],
    "Model": [
        ("train", "vidbrain.cli.train:app", "Train a VQ-VAE on clips, or a GPT on its codes."),
        ("tokenize", "vidbrain.cli.tokenize:tokenize", "Turn clips into codes with a trained VQ-VAE."),
        ("features", "vidbrain.cli.features:features", "Write activations and controls, one row for each TR."),
    ],
    "Result": [
        ("encode", "vidbrain.cli.encode:encode", "Predict every voxel from features, on held-out runs."),
        ("report", "vidbrain.cli.report:report", "Write one page with maps, curves and numbers."),
    ],
}


def build() -> App:
    """Make the command-line application."""
    app = App(
        name="vidbrain",
        help=_HELP,
        help_format="markdown",
        version=vidbrain.__version__,
        version_flags=["--version"],
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for group, commands in _COMMANDS.items():
        for name, target, purpose in commands:
            app.command(target, name=name, help=purpose, group=group)
    app.meta.group_parameters = "Everywhere"
    return app


def run(tokens: list[str] | None = None) -> int:
    """Run a command line and return its exit status: 0 done, 1 an error, 2 usage, 130 interrupted.

    Parameters
    ----------
    tokens
        Arguments without the program's name; default those of the process.
    """
    app = build()
    errors = RichConsole(stderr=True, highlight=False, soft_wrap=True)
    arguments = sys.argv[1:] if tokens is None else list(tokens)
    debug = "--debug" in arguments

    def launch(
        *command: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Path | None = None,
        debug: bool = False,
    ) -> None:
        """Run one command.

        Parameters
        ----------
        config
            TOML file with settings; a flag beats the file.
        debug
            Show the traceback of an error.
        """
        if config is not None:
            # A table named after the command, or settings at the top level, as the user prefers.
            app.config = (cyclopts_config.Dict(read_toml(config), source=str(config)),)
        app(command, exit_on_error=False, print_error=False)

    app.meta.default(launch)
    try:
        app.meta(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _say(errors, str(error), f"vidbrain {' '.join(_words(arguments))} --help")
        return USAGE
    except VidbrainError as error:
        if debug:
            traceback.print_exc()
        _say(errors, str(error))
        return FAILED
    except KeyboardInterrupt:
        errors.print("interrupted: what is finished stays; give the same command again to go on", markup=False)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, for instance `| head`.
        return DONE
    return DONE


def _words(arguments: list[str]) -> list[str]:
    words = []
    for argument in arguments:
        if argument.startswith("-"):
            break
        words.append(argument)
    known = {name for commands in _COMMANDS.values() for name, _, _ in commands}
    return [w for i, w in enumerate(words[:2]) if (i == 0 and w in known) or (i == 1 and words[0] in ("bold", "train"))]


def _say(console: RichConsole, message: str, hint: str | None = None) -> None:
    console.print(f"[red bold]error:[/] {_escape(message)}")
    if hint:
        console.print(f"  try    {_escape(' '.join(hint.split()))}")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
