"""Forward passes: calls on example inputs, nested tensors, and contexts that leave the model unchanged."""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .code_lines import line_of_own_fault, line_that_raised
from .compat import own_buffers, own_parameters, storage_id, tree_leaves, tree_map
from .computed_weights import computed_attributes
from .critical_section import one_thread_at_a_time, put_back_by, surely_closed
from .errors import InputError
from .model_index import ModelIndex
from .modules import modules_of
from .outputs import OF_EVERY_MODULE
from .plain_code import as_written
from .random_state import restored_torch_randomness, restorer_of

_PLAIN = {bool, int, float, str, dict, OrderedDict, set, list, tuple, type(None)}
_CONTAINERS = (list, dict, OrderedDict, set, deque)


def call_model(model: nn.Module, example_inputs: Any, what: str = "the example inputs") -> Any:
    """Calls a model on example inputs.

    Args:
        model: The model.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments.
        what: What the inputs are, for the message.

    Returns:
        The outputs of the model.

    Raises:
        InputError: The model raised an exception on these inputs, which is the cause of this one, or this library
            failed meanwhile. The message names the line.
    """
    try:
        if isinstance(example_inputs, tuple):
            return model(*example_inputs)
        if isinstance(example_inputs, dict):
            return model(**example_inputs)
        return model(example_inputs)
    except InputError:
        raise
    except Exception as error:
        if (remedy := tensor_in_place_of(example_inputs)) is not None:
            raise InputError(f"{what}: {remedy}") from error
        reason = str(error).partition(", but expected one of:")[0]  # all signatures of an operator of torch's follow
        run = f"run on {what} ({describe_tensors(example_inputs)})"
        if (own := line_of_own_fault(error)) is not None:
            raise InputError(
                f"fec_fast's own code ({own}) failed while {type(model).__name__} was {run}: {type(error).__name__}: "
                f"{reason}; this is no fault of the model or its inputs: please report it, with the traceback above"
            ) from error
        line = line_that_raised(error)
        raise InputError(
            f"{type(model).__name__} cannot be {run}: {type(error).__name__}: {reason}"
            f"{'' if line is None else f' ({line})'}{_remedy(model, example_inputs, error)}"
        ) from error


def _remedy(model: nn.Module, inputs: Any, error: Exception) -> str:
    """What to do about wrong keys, or another dtype than the weights have; empty where something else is wrong."""
    if isinstance(inputs, dict) and isinstance(error, TypeError) and "keyword" in str(error):
        return "; a dictionary holds the model's keyword arguments, or the images under 'image'"
    weights = {each.dtype for each in model.parameters() if each.is_floating_point()}
    given = {leaf.dtype for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
    if len(weights) != 1 or len(given) != 1 or weights == given:
        return ""
    (of_weights,), (of_inputs,) = weights, given
    # Integers may be numbers of words; images are bytes.
    if not (of_inputs.is_floating_point or of_inputs == torch.uint8):
        return ""
    scaled = "; bytes are scaled and normalised as in training" if of_inputs == torch.uint8 else ""
    return f"; the weights are {_name(of_weights)}: give tensors.to({of_weights}){scaled}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor_in_place_of(inputs: Any) -> str | None:
    """What to give in the place of inputs that other libraries take: a shape, or NumPy's arrays.

    Args:
        inputs: Inputs that a model, most often, cannot be run on. One that converts arrays itself can be.

    Returns:
        A sentence; ``None`` if the inputs are something else.
    """
    sizes = list(inputs) if isinstance(inputs, tuple | list) else []
    if sizes and all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        listed = ", ".join(map(str, sizes))
        return f"({listed:.80}) is a shape, not a tensor: give torch.randn({listed:.80})"
    if inputs is None:
        return "None was given: give a tensor, such as torch.randn(1, 3, 224, 224)"
    if any(isinstance(leaf, np.ndarray) for leaf in tree_leaves(inputs)):
        return "a NumPy array is no tensor: give torch.from_numpy(array), with .float() where the weights are float32"
    return None


def copied_inputs(example_inputs: Any) -> Any:
    """Copies example inputs for a model that may write to them.

    Args:
        example_inputs: Inputs as :func:`call_model` takes them.

    Returns:
        The same structure with copies of the tensors. Other objects are copied too, where they can be.
    """

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach().clone()
        try:
            return copy.deepcopy(leaf)
        except Exception:  # what cannot be copied (a lock, a tensor with a history) is handed over as it is
            return leaf

    return tree_map(copied, example_inputs)


def describe_tensors(inputs: Any) -> str:
    """Describes the dtypes and shapes of nested tensors, for messages.

    Args:
        inputs: Inputs or outputs of a model.

    Returns:
        A description such as ``"float32 [1, 3, 224, 224]"``.
    """
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not tensors:
        return f"{type(inputs).__name__} without a tensor"
    return ", ".join(f"{_name(t.dtype)} {list(t.shape)}" for t in tensors)


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Applies a function to every tensor of nested inputs.

    Args:
        function: Takes and returns a tensor.
        inputs: Nested lists, tuples and dictionaries.

    Returns:
        The same structure, with the tensors that the function returned; other leaves are unchanged.
    """
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, inputs)


def restored_modes(*models: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Restores the mode (training or evaluation) of every module of some models at the end.

    Args:
        *models: The models; their modes are recorded now and may be changed inside the context, module by module.

    Returns:
        A context manager.
    """
    return _restored_modes([module for model in models for module in modules_of(model).values()])


@surely_closed
def _restored_modes(modules: Iterable[nn.Module]) -> Iterator[None]:
    modes = [(module, module.training) for module in modules]

    def restore() -> None:
        for module, mode in modes:
            if module.training != mode:  # setting an attribute of a module is slow
                module.training = mode

    with put_back_by(restore):
        yield


@surely_closed
def undisturbed(model: nn.Module | ModelIndex, *, training: bool = False) -> Iterator[None]:
    """Runs a model and leaves it unchanged: modes, buffers, attributes, torch's random state; no gradients.

    So are the weights that hooks of torch (weight norm, masks) leave in attributes.

    Args:
        model: The model, or its index if there is one. Inside the context it is in the mode that ``training`` says.
        training: Whether it is in training mode inside the context. Default: evaluation mode.

    Yields:
        Nothing.
    """
    with restored_attributes(model), restored_buffers(model, training=training):
        yield


@surely_closed
def restored_attributes(model: nn.Module | ModelIndex) -> Iterator[None]:
    """Restores the attributes of modules that a model's code sets in a run, such as counters and caches.

    A counter that goes on from run to run would choose other values in a copy that was run more often. Lists,
    dictionaries and sets get their elements back, and random generators their state; what other objects hold is not
    looked at. Hooks, submodules and tensors that the code has added are taken away again, as the attribute that says
    so is.

    Args:
        model: The model, or its index if there is one.

    Yields:
        Nothing.
    """
    with one_thread_at_a_time(), put_back_by(_restorer_of_attributes(model)):
        yield


def _restorer_of_attributes(model: nn.Module | ModelIndex) -> Callable[[], None]:
    modules = model.modules if isinstance(model, ModelIndex) else modules_of(model)
    before = [(vars(module), dict(vars(module))) for module in modules.values()]
    # Most containers of a module are empty. Copies of all would be so many that they start Python's garbage collection.
    empty, contents = [], []
    for _, attributes in before:
        for name, value in attributes.items():
            if type(value) in _CONTAINERS:
                if value:
                    copied = dict(value) if isinstance(value, dict) else list(value)
                    contents.append((value, copied, name in OF_EVERY_MODULE))
                else:
                    empty.append(value)
    generators = [
        restore
        for _, attributes in before
        for value in attributes.values()
        if type(value) not in _PLAIN and (restore := restorer_of(value)) is not None
    ]

    def restore_all() -> None:
        for restore in generators:
            restore()
        for own, attributes in before:
            for name in own.keys() - attributes.keys():
                del own[name]
            own.update(attributes)
        for value in empty:
            if value:
                value.clear()
        for value, elements, of_torch in contents:
            if of_torch:  # what it held before is restored where it is known what it is
                for added in [element for element in value if element not in elements]:
                    value.pop(added) if isinstance(value, dict) else value.remove(added)
            elif len(value) != len(elements) or any(map(operator.is_not, _elements(value), _elements(elements))):
                value.clear()
                (value.extend if isinstance(value, list | deque) else value.update)(elements)

    return restore_all


def _elements(container: Any) -> Iterator[Any]:
    """The elements of a list or set in order, keys and values of a dictionary."""
    return itertools.chain(container, container.values()) if isinstance(container, dict) else iter(container)


@surely_closed
def restored_buffers(model: nn.Module | ModelIndex, *, training: bool = False) -> Iterator[None]:
    """Does what :func:`undisturbed` does, but for attributes: what a run leaves behind can be looked at afterwards.

    Args:
        model: See :func:`undisturbed`.
        training: See :func:`undisturbed`.

    Yields:
        Nothing.
    """
    network, modules = (model.model, model.modules) if isinstance(model, ModelIndex) else (model, modules_of(model))
    with one_thread_at_a_time():
        buffers = [
            (own_buffers(module), name, buffer, None if buffer is None else buffer.detach().clone())
            for module in modules.values()
            for name, buffer in own_buffers(module).items()
        ]
        hooked = [(module, computed_attributes(module)) for module in modules.values()]

        def restore() -> None:
            with torch.no_grad():
                for registered, name, buffer, before in buffers:
                    if buffer is not None and before is not None:
                        buffer.copy_(before)  # always, because a version counter does not show what batch norm writes
                    registered[name] = buffer  # the model may have put another tensor in its place
            for module, attributes in hooked:
                vars(module).update(attributes)

        with (
            put_back_by(restore),
            _restored_modes(modules.values()),
            restored_torch_randomness(),
            torch.no_grad(),
        ):
            if any(module.training != training for module in modules.values()):
                network.train(training)
            yield


@surely_closed
def restored_parameters(index: ModelIndex) -> Iterator[Callable[[], list[str]]]:
    """Restores parameters that a model's code replaces, or gives other memory (``weight.data = ...``).

    Args:
        index: The index of the model.

    Yields:
        A function that returns the names of the parameters that were replaced so far.
    """
    entries = [
        (own_parameters(module), name, parameter, parameter.data)
        for module in index.modules.values()
        for name, parameter in own_parameters(module).items()
        if parameter is not None
    ]

    def replaced() -> list[str]:
        return [
            index.first_names[id(parameter)]
            for registered, name, parameter, data in entries
            if registered.get(name) is not parameter or not _shares_memory(parameter, data)
        ]

    def restore() -> None:
        for registered, name, parameter, data in entries:
            if registered.get(name) is not parameter:
                registered[name] = parameter
            if not _shares_memory(parameter, data):
                parameter.data = data

    with put_back_by(restore):
        yield replaced


def _shares_memory(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and storage_id(left) == storage_id(right)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Iterates over the tensors of nested arguments or results, in order."""
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


@surely_closed
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, without gradients; the modes of its modules are restored at the end.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    with restored_modes(model), torch.no_grad():
        model.eval()
        yield


@surely_closed
def plain_operators(index: ModelIndex) -> Iterator[None]:
    """Runs what would be hidden: attention by matrix products; compiled parts and cached functions as written.

    torch's switches are as before at the end; they are the process's, so that one thread is in at a time.

    Args:
        index: The index of the model.

    Yields:
        Nothing.
    """
    switches: Any = torch.backends.cuda
    with one_thread_at_a_time():
        fast_path = torch.backends.mha.get_fastpath_enabled()
        fused = [
            (getattr(switches, f"enable_{kind}"), getattr(switches, f"{kind}_enabled")())
            for kind in ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")
        ]

        def restore() -> None:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for switch, enabled in fused:
                switch(enabled)

        with put_back_by(restore), contextlib.ExitStack() as stack:
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(as_written(index))
            yield
