"""Which channels of a network belong together, found by following them through one forward pass.

Every index of a weight's axis is a label. A convolution ties the labels of its input's channels to those of its
weight's input axis, and its output carries the labels of the output axis; an addition ties channel by channel; a
GroupNorm ties the channels of a group; a concatenation joins the labels. What ties is decided by torch's functions
and not by the kinds of modules, so any network will do. The pass runs on the meta device: no memory, no arithmetic.

Whatever is not understood pins the labels that come near it: pinned channels are never dropped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from medfl.learning.channels import Call, Ids, Labels, NotUnderstood, Ties, read, reshaped

Found = Sequence[Labels | None]
Rule = Callable[[str, Call, list[Tensor], list[Tensor]], Found]
"""(function's name, its arguments, its tensors, what it gave) -> the labels of what it gave."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SAME = _words(
    """add radd iadd sub rsub isub mul rmul imul multiply div truediv rtruediv itruediv divide true_divide neg pow rpow
    relu relu6 leaky_relu elu celu selu gelu silu mish hardswish hardsigmoid hardtanh softplus softsign sigmoid
    logsigmoid tanh exp log sqrt rsqrt square abs clamp clip clamp_min clamp_max maximum minimum where lerp threshold
    gt ge lt le eq ne dropout alpha_dropout dropout1d dropout2d dropout3d feature_alpha_dropout float double half
    bfloat16 to type type_as contiguous clone detach requires_grad data nan_to_num"""
)
"""Functions that work value by value on tensors that are broadcast against each other."""

_SPACE = frozenset(
    [f"{kind}{dims}" for kind in ("max_pool", "avg_pool", "lp_pool") for dims in ("1d", "2d", "3d")]
    + [f"adaptive_{kind}_pool{dims}" for kind in ("max", "avg") for dims in ("1d", "2d", "3d")]
    + ["interpolate", "upsample", "pad"]
)
"""Functions that change the extent of each channel and mix no channels."""

_MOVES = _words(
    """getitem narrow select chunk split tensor_split unbind permute transpose swapaxes movedim moveaxis t unsqueeze
    squeeze expand expand_as"""
)
"""Functions that only move values, as views."""

_RESHAPES = _words("flatten unflatten reshape view reshape_as view_as")
_REDUCES = _words("mean sum amax amin max min var std logsumexp")
_WRITES = _words("setitem set")
_FINITE = {"isnan": False, "isinf": False, "isfinite": True}


class Follower(TorchFunctionMode):
    """Follows channels through what runs inside the context.

    parameters: the network's, by name, as the network sees them. ties: what was found. axes: the labels of each axis
    of a parameter that met a channel. producers: the labels of what each weight makes. opaque: parameters that met a
    function that is not understood, and why.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.ties = Ties()
        self.axes: dict[tuple[str, int], Ids] = {}
        self.producers: dict[str, Ids] = {}
        self._parameters = {id(tensor): (name, tensor) for name, tensor in parameters.items()}
        self.opaque: dict[str, str] = {}
        # the tensors are kept, else an id could be another tensor's later
        self._labels: dict[int, tuple[Tensor, Labels]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, _name(func)
        if name in _FINITE:
            return torch.full((), _FINITE[name], dtype=torch.bool, device="cpu")
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(map(self._known, inputs)):
            return result
        if name in _WRITES:
            self._lose(inputs, "parts of it are overwritten")
        if not outputs:
            return result
        try:
            found = self._rule(name)(name, Call(func, args, kwargs), inputs, outputs)
        except NotUnderstood as reason:
            self._lose(inputs, str(reason) or f"{name} is not understood")
            found = [None] * len(outputs)
        for output, labels in zip(outputs, found, strict=True):
            self._set(output, labels, name)
        return result

    def source(self, tensor: Tensor, why: str) -> None:
        """Label the channels of an input [B, C, ..], which are never dropped."""
        ids = self.ties.new(tensor.shape[1])
        self.ties.pin(ids, why)
        self._labels[id(tensor)] = tensor, Labels(1, ids)

    def sink(self, tensors: Iterable[Tensor], why: str) -> None:
        """Pin what the network gives out, and everything about parameters that met a function not understood."""
        self._lose(tensors, why)
        for (name, _), ids in self.axes.items():
            if name in self.opaque:
                self.ties.pin(ids, self.opaque[name])

    def _known(self, tensor: Tensor) -> bool:
        return id(tensor) in self._labels or id(tensor) in self._parameters

    def _of(self, tensor: Tensor) -> Labels | None:
        found = self._labels.get(id(tensor))
        return None if found is None else found[1]

    def _axis(self, tensor: Tensor, axis: int) -> Ids:
        """The labels of a parameter's axis; NotUnderstood when the tensor is none."""
        name, _ = self._parameters.get(id(tensor), ("", None))
        if not name:
            raise NotUnderstood("its weight is computed from other values")
        if (name, axis) not in self.axes:
            self.axes[name, axis] = self.ties.new(tensor.shape[axis])
        return self.axes[name, axis]

    def _set(self, tensor: Tensor, labels: Labels | None, name: str) -> None:
        if labels is not None and labels.ids.size != tensor.shape[labels.axis]:
            self.ties.pin(labels.ids, f"{name} changes the number of channels")
            labels = None
        if labels is None:
            self._labels.pop(id(tensor), None)
        else:
            self._labels[id(tensor)] = tensor, labels

    def _lose(self, tensors: Iterable[Tensor], why: str) -> None:
        for tensor in tensors:
            labels = self._of(tensor)
            if labels is not None:
                self.ties.pin(labels.ids, why)
            if id(tensor) in self._parameters:
                self.opaque.setdefault(self._parameters[id(tensor)][0], why)

    def _rule(self, name: str) -> Rule:
        for names, rule in ((_SAME, self._same), (_MOVES, self._move), (_RESHAPES, self._move), (_SPACE, self._space)):
            if name in names:
                return rule
        if name in _REDUCES:
            return self._reduce
        named: dict[str, Rule] = {
            "linear": self._linear,
            "cat": self._cat,
            "concat": self._cat,
            "concatenate": self._cat,
            "group_norm": self._group_norm,
            "instance_norm": self._channel_norm,
            "batch_norm": self._channel_norm,
            "prelu": self._prelu,
            "softmax": self._softmax,
            "log_softmax": self._softmax,
        }
        named |= {f"conv{dims}d": self._conv for dims in (1, 2, 3)}
        named |= {f"conv_transpose{dims}d": self._conv_transpose for dims in (1, 2, 3)}
        return named.get(name, self._unknown)

    def _unknown(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        raise NotUnderstood

    def _same(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        space = outputs[0].ndim
        if any(output.shape != outputs[0].shape for output in outputs):
            raise NotUnderstood
        aligned = []
        for tensor in inputs:
            labels = self._of(tensor)
            if labels is not None:
                axis = labels.axis + space - tensor.ndim
                if labels.ids.size != outputs[0].shape[axis]:
                    self.ties.pin(labels.ids, "one channel of it meets all of another layer")
                else:
                    aligned.append(Labels(axis, labels.ids))
        if not aligned or any(other.axis != aligned[0].axis for other in aligned[1:]):
            raise NotUnderstood("it is combined with values that have no channels")
        first = aligned[0]
        for other in aligned[1:]:
            self.ties.tie(first.ids, other.ids)
        for tensor in inputs:
            axis = first.axis - space + tensor.ndim
            if id(tensor) in self._parameters and axis >= 0 and tensor.shape[axis] == first.ids.size > 1:
                self.ties.tie(first.ids, self._axis(tensor, axis))
        return [first] * len(outputs)

    def _space(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        labels = self._one(inputs)
        if any(output.ndim != inputs[0].ndim for output in outputs):
            raise NotUnderstood
        if name == "pad":
            padded = list(call.get(1, "pad"))
            place = 2 * (inputs[0].ndim - 1 - labels.axis)
            if any(padded[place : place + 2]):
                raise NotUnderstood("its channels are padded")
        return [labels] * len(outputs)

    def _move(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        tensor, labels = inputs[0], self._one(inputs[:1])
        shape = [1] * tensor.ndim
        shape[labels.axis] = -1
        shadow = torch.from_numpy(labels.ids).view(shape).expand(tensor.shape)
        if name in _RESHAPES:
            return [read(reshaped(shadow, outputs[0].shape))]
        if not call.args or (len(inputs) > 1 and name != "expand_as"):
            raise NotUnderstood("it is indexed by computed positions")
        with torch._C.DisableTorchFunction():
            moved = call.function(shadow, *call.args[1:], **call.kwargs)
        return [read(leaf) for leaf in tree_leaves(moved)]

    def _reduce(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        labels, dims = self._one(inputs), call.get(1, "dim", None)
        if isinstance(dims, Tensor) or dims is None:
            raise NotUnderstood("its channels are reduced to one value")
        gone = {dim % inputs[0].ndim for dim in ([dims] if isinstance(dims, int) else dims)}
        if labels.axis in gone or not gone:
            raise NotUnderstood("its channels are reduced to one value")
        kept = outputs[0].ndim == inputs[0].ndim
        axis = labels.axis if kept else labels.axis - sum(dim < labels.axis for dim in gone)
        return [Labels(axis, labels.ids)] * len(outputs)

    def _softmax(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        labels, dim = self._one(inputs), call.get(1, "dim", None)
        if not isinstance(dim, int) or dim % inputs[0].ndim == labels.axis:
            raise NotUnderstood("its channels are normalised together")
        return [labels]

    def _cat(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        if any(id(tensor) in self._parameters for tensor in inputs):
            raise NotUnderstood
        dim = call.get(1, "dim", 0) % inputs[0].ndim
        found = [self._of(tensor) for tensor in inputs]
        axes = {labels.axis for labels in found if labels is not None}
        if len(axes) != 1:
            raise NotUnderstood
        axis = axes.pop()
        if axis != dim:
            parts = [labels.ids for labels in found if labels is not None]
            for other in parts[1:]:
                self.ties.tie(parts[0], other)
            return [Labels(axis, parts[0])]
        joined = [
            self._pinned(tensor.shape[dim]) if labels is None else labels.ids
            for tensor, labels in zip(inputs, found, strict=True)
        ]
        return [Labels(axis, np.concatenate(joined))]

    def _pinned(self, count: int) -> Ids:
        ids = self.ties.new(count)
        self.ties.pin(ids, "its channels are not a layer's")
        return ids

    def _one(self, inputs: Sequence[Tensor]) -> Labels:
        labels = self._of(inputs[0]) if inputs else None
        if labels is None or (len(inputs) > 1 and any(map(self._known, inputs[1:]))):
            raise NotUnderstood
        return labels

    def _channels(self, tensor: Tensor, axis: int) -> Ids:
        labels = self._of(tensor)
        if labels is None:
            return self._pinned(tensor.shape[axis])
        if labels.axis != axis % tensor.ndim:
            raise NotUnderstood("its channels are not on the usual axis")
        return labels.ids

    def _affine(self, ids: Ids, *parameters: Tensor | None) -> None:
        for parameter in parameters:
            if parameter is not None:
                self.ties.tie(ids, self._axis(parameter, 0))

    def _made(self, weight: Tensor, ids: Ids) -> None:
        name = self._parameters[id(weight)][0]
        self.producers[name] = ids

    def _linear(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        tensor, weight = call.get(0, "input"), call.get(1, "weight")
        made = self._axis(weight, 0)
        self.ties.tie(self._channels(tensor, -1), self._axis(weight, 1))
        self._affine(made, call.get(2, "bias", None))
        self._made(weight, made)
        return [Labels(outputs[0].ndim - 1, made)]

    def _conv(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        tensor, weight, groups = call.get(0, "input"), call.get(1, "weight"), call.get(6, "groups", 1)
        made, read = self._axis(weight, 0), self._channels(tensor, tensor.ndim - weight.ndim + 1)
        if groups == 1:
            self.ties.tie(read, self._axis(weight, 1))
        else:
            self._join(read, made, groups)
        self._affine(made, call.get(2, "bias", None))
        self._made(weight, made)
        return [Labels(outputs[0].ndim - weight.ndim + 1, made)]

    def _conv_transpose(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        tensor, weight, groups = call.get(0, "input"), call.get(1, "weight"), call.get(6, "groups", 1)
        axis = tensor.ndim - weight.ndim + 1
        read, rows = self._channels(tensor, axis), self._axis(weight, 0)
        self.ties.tie(read, rows)
        if groups == 1:
            made = self._axis(weight, 1)
        else:
            made = self.ties.new(weight.shape[1] * groups)
            self._join(rows, made, groups)
        self._affine(made, call.get(2, "bias", None))
        self._made(weight, made)
        return [Labels(axis, made)]

    def _join(self, read: Ids, made: Ids, groups: int) -> None:
        """The channels of each group of a grouped convolution go together, those it reads and those it makes."""
        for one, other in zip(np.split(read, groups), np.split(made, groups), strict=True):
            both = np.concatenate([one, other])
            self.ties.tie(both[1:], both[:-1])

    def _group_norm(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        labels = self._of(inputs[0])
        if labels is None or labels.axis != 1:
            raise NotUnderstood
        for group in np.split(labels.ids, call.get(1, "num_groups")):
            self.ties.tie(group[1:], group[:-1])
        self._affine(labels.ids, call.get(2, "weight", None), call.get(3, "bias", None))
        return [labels]

    def _channel_norm(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        labels = self._of(inputs[0])
        if labels is None or labels.axis != 1:
            raise NotUnderstood
        self._affine(labels.ids, call.get(3, "weight", None), call.get(4, "bias", None))
        return [labels]

    def _prelu(self, name: str, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> Found:
        labels, weight = self._of(inputs[0]), call.get(1, "weight")
        if labels is None or labels.axis != 1:
            raise NotUnderstood
        if weight.numel() > 1:
            self._affine(labels.ids, weight)
        return [labels]


def _name(function: Any) -> str:
    """Of a function, a method ("add" for `add_` and `__add__`) or a property."""
    name: str = getattr(function, "__name__", str(function))
    if name == "__get__":
        name = getattr(function.__self__, "__name__", name)
    return name.strip("_")
