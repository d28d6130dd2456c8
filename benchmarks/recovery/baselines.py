"""Published methods of recovery without training that the project's is compared with, each in its own form.

They change a copy of the dense network so that, after the plan has removed the channels, the kept ones stand in for
them; or the weights of the pruned network. Which channels are narrowed together, :func:`fec_fast.couplings` says.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import fec_fast
from fec_fast import ChannelSet, Plan


def kept_units(channels: ChannelSet, plan: Plan) -> list[int]:
    """The units of a set that a plan keeps."""
    (tensor, axis), indices = next(iter(channels.members.items()))
    kept = plan.keep.get(tensor, {}).get(str(axis))
    if kept is None:
        return list(range(channels.units))
    members = set(kept)
    return [unit for unit, of_unit in enumerate(indices) if of_unit[0] in members]


@torch.no_grad()
def merged_neurons(
    dense: nn.Module, example: Any, plan: Plan, *, threshold: float = 0.1, share: float = 0.85
) -> nn.Module:
    """Neuron Merging: each removed filter is represented by a multiple of the most similar kept one.

    Kim et al., Neuron Merging: Compensating for Pruned Neurons, NeurIPS 2020, section 3.2, with the constants of the
    authors' scripts for VGG-16 and ResNet-56. With w the filters, and a batch norm written as ``scale * z + shift``,
    a removed filter r is S BN(k) + B with

        S = |w_r| / |w_k| * scale_r / scale_k        B = shift_r - S shift_k

    The kept filter with the least ``share * (1 - cos) + (1 - share) * |B / S|`` is chosen, |B / S| mapped to [0, 1]
    over the kept filters; S times the consumer's slice of r is added to that of k, unless cos is below the threshold.
    B is dropped. It is defined for channels that one convolution with batch norm makes and one layer reads; channels
    of other sets are removed without compensation.

    Args:
        dense: The network before pruning.
        example: An example input.
        plan: What is removed.
        threshold: The least cosine of a pair that is merged.
        share: The weight of the cosine.

    Returns:
        The pruned network.
    """
    model = copy.deepcopy(dense)
    tensors = model.state_dict()
    for channels in fec_fast.couplings(dense, example).sets:
        readers = [tensor for tensor, axis in channels.members if axis == 1]
        norms = [tensor.removesuffix(".running_var") for tensor, _ in channels.members if "running_var" in tensor]
        kept = kept_units(channels, plan)
        if len(channels.layers) != 1 or len(readers) != 1 or len(norms) != 1 or len(kept) == channels.units:
            continue
        removed = sorted(set(range(channels.units)) - set(kept))
        weight = tensors[f"{channels.name}.weight"].flatten(1).double()
        norm: dict[str, Tensor] = {
            name: tensors[f"{norms[0]}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
        }
        scale = norm["weight"] / (norm["running_var"] + model.get_submodule(norms[0]).eps).sqrt()
        bias = tensors.get(f"{channels.name}.bias", torch.zeros(len(weight), device=weight.device)).double()
        shift = norm["bias"] + scale * (bias - norm["running_mean"])
        length = weight.norm(dim=1).clamp_min(1e-12)
        cosine = (weight / length[:, None])[removed] @ (weight / length[:, None])[kept].T
        ratio = (length * scale)[removed, None] / _nonzero((length * scale)[kept])
        offset = ((shift[removed, None] - ratio * shift[kept]) / _nonzero(ratio)).abs()
        low, high = offset.amin(1, keepdim=True), offset.amax(1, keepdim=True)
        score = share * (1 - cosine) + (1 - share) * (offset - low) / (high - low).clamp_min(1e-12)
        nearest = score.argmin(1)
        reader = tensors[readers[0]]
        for row, (unit, position) in enumerate(zip(removed, nearest.tolist(), strict=True)):
            if cosine[row, position] >= threshold:
                reader[:, kept[position]] += (ratio[row, position] * reader[:, unit]).to(reader.dtype)
    fec_fast.apply_plan(model, plan)
    return model


@torch.no_grad()
def folded(dense: nn.Module, example: Any, plan: Plan, seed: int) -> nn.Module:
    """Model Folding: the channels of each set are clustered by k-means, and each cluster becomes one channel.

    Wang et al., Forget the Data and Fine-Tuning! Just Fold the Network to Compress, ICLR 2025: a channel is described
    by all weights, biases and batch norm parameters that belong to it on either side, concatenated; what makes a
    channel (filters, biases, batch norms with their statistics) is averaged over its cluster, what reads it is summed.
    There are as many clusters as the plan keeps channels, so the architecture is that of the plan. REPAIR, for a
    network with batch norm, is the re-estimation of its statistics: to be done by the caller.

    Args:
        dense: The network before pruning.
        example: An example input.
        plan: How many channels of each set are kept.
        seed: Of the k-means.

    Returns:
        The folded network.
    """
    from sklearn.cluster import KMeans

    model = copy.deepcopy(dense)
    before, tensors = dense.state_dict(), model.state_dict()
    for channels in fec_fast.couplings(dense, example).sets:
        kept = kept_units(channels, plan)
        if len(kept) == channels.units:
            continue
        device = next(iter(tensors.values())).device
        # [units, per unit]
        units = {key: torch.tensor(indices, device=device) for key, indices in channels.members.items()}
        described = torch.cat(
            [
                before[tensor].movedim(axis, 0)[indices].flatten(1)
                for (tensor, axis), indices in units.items()
                if "running_" not in tensor
            ],
            dim=1,
        ).double()
        # The distances are those of the rows of V S, which are never longer than the number of channels.
        left, singular, _ = torch.linalg.svd(described - described.mean(0), full_matrices=False)
        clusters = KMeans(len(kept), n_init=3, random_state=seed).fit_predict((left * singular).cpu().numpy())
        labels = torch.tensor(clusters, dtype=torch.int64, device=device)
        member = torch.nn.functional.one_hot(labels, len(kept)).T.double()
        average = member / member.sum(1, keepdim=True).clamp_min(1)
        for (tensor, axis), indices in units.items():
            values = tensors[tensor].movedim(axis, 0)[indices].double()  # its other axis may be merged already
            merged = torch.einsum("ku,u...->k...", average if axis == 0 else member, values)
            tensors[tensor].movedim(axis, 0)[indices[kept]] = merged.to(tensors[tensor].dtype)
    fec_fast.apply_plan(model, plan)
    return model


@torch.no_grad()
def grail(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Iterable[Tensor], *, ridge: float = 1e-3) -> None:
    """GRAIL: the input channels of each layer are reconstructed from the kept ones by one linear map, in place.

    Tang et al., GRAIL: Post-hoc Compensation by Linear Reconstruction for Compressed Networks, CPAL 2026. With G the
    Gram matrix (not centred) of the channels that a layer reads in the dense network, over all positions, and P the
    kept ones:

        B = G_:P (G_PP + ridge * mean(diag G_PP) I)^-1        W_new[:, p] = sum over c of W[:, c] B[c, p]

    with the same map at every tap. Layers that read all channels stay as they are, depthwise ones too. REPAIR after it
    is the re-estimation of batch norm: to be done by the caller.

    Args:
        dense: The network before pruning.
        pruned: The pruned network.
        plan: What was removed.
        batches: Calibration images.
        ridge: The authors' constant.
    """
    grams: dict[str, Tensor] = {}
    hooks = []
    for name, module in dense.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and "1" in plan.keep.get(f"{name}.weight", {}):

            def add(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                rows = inputs[0].movedim(1, -1).flatten(0, -2)
                grams[name] = grams.get(name, rows.new_zeros(())) + (rows.T @ rows).double()

            hooks.append(module.register_forward_pre_hook(add))
    for batch in batches:
        dense(batch)
    for hook in hooks:
        hook.remove()
    for name, gram in grams.items():
        axes = plan.keep[f"{name}.weight"]
        kept = torch.tensor(axes["1"], device=gram.device)
        full = dense.get_parameter(f"{name}.weight").double()
        full = full[axes["0"]] if "0" in axes else full
        square = gram[kept][:, kept]
        system = square + ridge * square.diagonal().mean() * torch.eye(len(kept)).to(square)
        back = torch.linalg.solve(system, gram[kept])  # [kept, all], the transpose of B
        weight = torch.einsum("oc...,kc->ok...", full, back)
        pruned.get_parameter(f"{name}.weight").copy_(weight)


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values.abs() < 1e-12, torch.full_like(values, 1e-12), values)
