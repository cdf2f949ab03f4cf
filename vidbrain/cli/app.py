"""The commands, by name: each module is loaded only when its command is called, so that help is instant."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts import config as cyclopts_config
from rich.console import Console as RichConsole
from rich.markup import escape

import vidbrain
from vidbrain.config import did_you_mean, read_toml
from vidbrain.errors import VidbrainError
from vidbrain.storage.atomic import as_storage_error

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_HELP = """Shard game-play video, stream it into VideoGPT training, and map the model's features to fMRI voxels.

Start with: `vidbrain demo`
"""

# name, import string, one-line purpose, an example to copy; groups in the order of the data flow
_COMMANDS = {
    "Whole path": [
        (
            "demo",
            "vidbrain.cli.demo:demo",
            "Run the whole path on real game play, from nothing to a brain map.",
            "vidbrain demo",
        ),
        (
            "doctor",
            "vidbrain.cli.doctor:doctor",
            "Say what this machine has, and what would fail on it.",
            "vidbrain doctor --json",
        ),
    ],
    "Video": [
        (
            "play",
            "vidbrain.cli.play:play",
            "Record real game play as .bk2 files in a BIDS tree.",
            "vidbrain play shards/demo/game --n-runs 2",
        ),
        (
            "replay",
            "vidbrain.cli.replay:replay",
            "Turn recorded game play into video and a table of each frame.",
            "vidbrain replay shards/demo/game",
        ),
        (
            "shard",
            "vidbrain.cli.shard:shard",
            "Write video as WebDataset shards with an index.",
            "vidbrain shard shards/demo/game --out shards/demo/data --size 10k",
        ),
        (
            "verify",
            "vidbrain.cli.shard:verify",
            "Check every byte of a data set of shards, and rebuild what is damaged.",
            "vidbrain verify shards/demo/data",
        ),
        (
            "subset",
            "vidbrain.cli.shards:subset",
            "Name a prefix or a filter of a data set without copying a byte.",
            "vidbrain subset shards/demo/data --size 5k --out shards/demo/small",
        ),
        (
            "stream",
            "vidbrain.cli.stream:stream",
            "Measure how fast clips stream, or say what an epoch would cost.",
            "vidbrain stream shards/demo/data --simulate",
        ),
        (
            "shards",
            "vidbrain.cli.shards:app",
            "Describe data sets of shards, and remove what nothing reads.",
            "vidbrain shards ls shards/demo",
        ),
    ],
    "Brain": [
        (
            "bold",
            "vidbrain.cli.bold:app",
            "Simulate, ingest and list fMRI data.",
            "vidbrain bold ingest shards/demo/game/derivatives/simulated-fmriprep --out shards/demo/bold",
        ),
    ],
    "Model": [
        (
            "train",
            "vidbrain.cli.train:app",
            "Train a VQ-VAE on clips, or a GPT on its codes.",
            "vidbrain train vqvae shards/demo/data --out shards/demo/runs/vqvae",
        ),
        (
            "tokenize",
            "vidbrain.cli.tokenize:tokenize",
            "Turn clips into codes with a trained VQ-VAE.",
            "vidbrain tokenize shards/demo/data --vqvae shards/demo/runs/vqvae --out shards/demo/codes",
        ),
        (
            "sample",
            "vidbrain.cli.sample:sample",
            "Let a GPT continue held-out clips, as arrays and as a film.",
            "vidbrain sample shards/demo/data --vqvae shards/demo/runs/vqvae --gpt shards/demo/runs/gpt",
        ),
        (
            "convert",
            "vidbrain.cli.convert:convert",
            "Turn a checkpoint of VideoGPT into models of ours.",
            "vidbrain convert videogpt.ckpt --out shards/videogpt",
        ),
        (
            "features",
            "vidbrain.cli.features:features",
            "Write activations and controls, one row for each TR.",
            "vidbrain features pixels --shards shards/demo/data --out shards/demo/features/pixels",
        ),
    ],
    "Result": [
        (
            "encode",
            "vidbrain.cli.encode:encode",
            "Predict every voxel from features, on held-out runs.",
            "vidbrain encode shards/demo/features/pixels shards/demo/bold --out shards/demo/results/pixels",
        ),
        (
            "compare",
            "vidbrain.cli.compare:compare",
            "Say where one feature set predicts better than another.",
            "vidbrain compare shards/demo/results/trained shards/demo/results/untrained",
        ),
        (
            "group",
            "vidbrain.cli.group:group",
            "Put results of a few subjects together.",
            "vidbrain group shards/results/sub-01 shards/results/sub-02 --out shards/results/group",
        ),
        (
            "report",
            "vidbrain.cli.report:report",
            "Write one page with maps, curves and numbers.",
            "vidbrain report shards/demo",
        ),
    ],
    "Storage": [
        (
            "push",
            "vidbrain.cli.transfer:push",
            "Copy a finished artefact to object storage.",
            "vidbrain push shards/demo/bold s3://bucket/bold",
        ),
        (
            "pull",
            "vidbrain.cli.transfer:pull",
            "Copy a finished artefact from object storage.",
            "vidbrain pull s3://bucket/bold shards/bold",
        ),
    ],
}

_NESTED = {"bold": ("simulate", "ingest", "ls", "verify", "export"), "shards": ("ls", "gc"), "train": ("vqvae", "gpt")}
_SHORT = {"simulate": "bold", "ingest": "bold", "vqvae": "train", "gpt": "train"}
"""Tables of a recipe that are settings of a subcommand, and the command it belongs to."""
_SOURCES = ("model", "pixels", "motion")
"""Tables of a recipe below ``features``."""
_EVERYWHERE = Group("Everywhere", sort_key=99)


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
        default_parameter=Parameter(negative_iterable=(), show_default=_default),
    )
    for position, (title, commands) in enumerate(_COMMANDS.items()):
        group = Group(title, sort_key=position)
        for name, target, purpose, example in commands:
            app.command(target, name=name, help=f"{purpose}\n\nExample: `{example}`", group=group)
    app["--help"].group = app["--version"].group = _EVERYWHERE
    return app


def _default(value: object) -> str | None:
    """Write a default as it is typed, and nothing for what is absent, off or empty."""
    if value is None or value is False or value == ():
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
    known = [name for commands in _COMMANDS.values() for name, *_ in commands]

    def launch(
        *command: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[Path | None, Parameter(group=_EVERYWHERE)] = None,
        debug: Annotated[bool, Parameter(group=_EVERYWHERE, negative=())] = False,
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
            values = read_toml(config)
            # A table for each command, or the settings of the one that is called.
            tables = any(name in values for name in (*known, *_SHORT))
            values = _by_command(values, command) if tables else values
            source = cyclopts_config.Dict(values, source=str(config), use_commands_as_keys=tables)
            app.config = (source,)
        app(command, exit_on_error=False, print_error=False)

    app.meta.default(launch)
    app.meta.suppress_keyboard_interrupt = False  # not inherited: it would leave without our line
    # Asked for by name here: the parser would load every command, and torch with them, to look for a near one.
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        _say(errors, f"there is no command {arguments[0]!r}{did_you_mean(arguments[0], known)}", "vidbrain --help")
        return USAGE
    try:
        app.meta(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _say(errors, str(error), " ".join(["vidbrain", *_words(arguments, known), "--help"]))
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
    except Exception as error:
        if debug:
            traceback.print_exc()
        _say(errors, str(_unforeseen(error)))
        return FAILED
    return DONE


def _unforeseen(error: Exception) -> VidbrainError:
    if isinstance(error, OSError):
        return as_storage_error(error, error.filename or Path.cwd())
    if isinstance(error, MemoryError):
        return VidbrainError(
            f"memory ran out{f': {error}' if str(error) else ''}", hint="use fewer --workers, or a machine with more"
        )
    first = (str(error).strip().splitlines() or [""])[0]
    return VidbrainError(
        f"{type(error).__name__}: {first}",
        likely="an input that vidbrain does not foresee, or a fault of vidbrain",
        hint="give the command again with --debug to see where",
    )


def _by_command(values: dict[str, Any], command: tuple[str, ...]) -> dict[str, Any]:
    """Name a recipe's tables as the parser does: ``[vqvae]`` is ``train vqvae``, ``[features.model]`` one source's."""
    values = dict(values)
    for name, parent in _SHORT.items():
        if name in values:
            values[parent] = {**values.get(parent, {}), name: values.pop(name)}
    if command[:1] == ("features",) and isinstance(values.get("features"), dict):
        tables = values["features"]
        plain = {key: value for key, value in tables.items() if key not in ("clock", *_SOURCES)}
        # Fresh weights differ from the trained ones in nothing else.
        source = next(("model" if word == "untrained" else word for word in command[1:2]), "")
        values["features"] = {**plain, **tables.get("clock", {}), **tables.get(source, {})}
    return values


def _words(arguments: list[str], known: list[str]) -> list[str]:
    """The command, and its subcommand where it has some: what --help can be asked about."""
    for position, argument in enumerate(arguments):
        if argument in known:
            following = arguments[position + 1 : position + 2]
            return [argument, *(word for word in following if word in _NESTED.get(argument, ()))]
    return []


def _say(console: RichConsole, message: str, hint: str | None = None) -> None:
    console.print(f"[red bold]error:[/] {escape(message)}")
    if hint:
        console.print(f"  try    {escape(hint)}")
