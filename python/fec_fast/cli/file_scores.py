"""``fec-fast score --weights FILE``: a tensor at a time, so that the model need not have room in memory."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from ..scoring.formula import Formula
from ..scoring.model_scores import ModelScores, score_model
from ..scoring.stored_weights import NotInFileError
from ..utils.errors import InputError
from ..utils.user_warnings import warn_user
from ..vision import zoo
from ..vision.weights import check_stored_weights, load_weights


def scores_of_file(name: str, file: Path, formula: Formula) -> ModelScores:
    """Scores a network with the weights of a file.

    A safetensors file is read a tensor at a time for a network on the meta device. If that is not possible, it is
    loaded whole, as files of other formats are, and a warning says why.

    Args:
        name: The name of the network, as in ``MODEL``.
        file: The file of the weights.
        formula: The formula of the entropy.

    Returns:
        The scores.

    Raises:
        FecError: There is no such network, or the weights do not fit it or cannot be scored.
    """
    whole = ""
    if file.suffix == ".safetensors":
        try:
            with torch.device("meta"), warnings.catch_warnings():
                # A factory that loads weights itself: here they have no place, and the file has others.
                warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
                model = zoo.build(name)
        except InputError as error:
            whole = f"the network cannot be built on the meta device: {error}"
        else:
            check_stored_weights(model, file)
            try:
                return score_model(model, formula=formula, weights=file)
            except NotInFileError as error:
                whole = error.what
    model = zoo.build(name)  # a name that is wrong is an error here
    if whole:
        warn_user(f"{file} is loaded whole, and not a tensor at a time: {whole}")
    return score_model(load_weights(model, file), formula=formula)
