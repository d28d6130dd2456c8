"""The paths of one call: what it writes must not be what it reads, nor two results in one place."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from ..utils.errors import InputError

# By the names of the parameters. A file is replaced by what is written; a checkpoint folder holds nothing else.
_FILES = ("json", "plot", "report")
_BESIDE = (*_FILES, "state", "log", "results", "cache")
_WITH_CHECKPOINT = ("prune", "finetune", "sweep")


class PathCheckingCommand(TyperCommand):
    """Checks before the work that no result of a command takes the place of another file that the call names."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command.

        Args:
            ctx: The context of click.

        Returns:
            What the command returns.
        """
        shown = {parameter.name: _shown(parameter) for parameter in self.params}
        check_apart(
            str(self.name),
            {
                (name, f"{shown[name]} {path}"): path
                for name, value in ctx.params.items()
                for path in (value if isinstance(value, list | tuple) else [value])
                if isinstance(path, Path) and str(path) != "-"
            },
        )
        return super().invoke(ctx)


def check_apart(command: str, paths: dict[tuple[str, str], Path]) -> None:
    """Checks the paths of a call against one another.

    Args:
        command: The name of the command.
        paths: The paths by the name of their parameter, and by how messages show them.

    Raises:
        InputError: A file to be written is another path of the call, or something is to be written into the folder of
            the checkpoint.
    """
    real = {key: Path(os.path.realpath(path)) for key, path in paths.items()}
    for first, second in itertools.permutations(real, 2):
        if first[0] in _FILES and real[first] == real[second]:
            raise InputError(f"{first[1]}: {second[1]} is the same; give another name")
        is_checkpoint = command in _WITH_CHECKPOINT and second[0] == "out"
        if is_checkpoint and first[0] in _BESIDE and real[second] in (real[first], *real[first].parents):
            raise InputError(
                f"{first[1]}: that is in the folder of {second[1]}, which holds a checkpoint and nothing else; give a "
                "name outside of it"
            )


def _shown(parameter: Any) -> str:
    option = next((each for each in parameter.opts if each.startswith("--")), None)
    return option or str(parameter.metavar or parameter.name)
