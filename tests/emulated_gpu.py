"""A device `gpu` that computes nothing and counts on what the host would wait for it: copies, `.item()`, sizes that depend on values.

Tensors are torch's fake ones, which have shapes, types and a device and no values, on the device type that torch leaves to others.
It changes torch for the whole process, so it is for jobs of the rank server alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# These take a number that lies on the CPU as an argument of their kernel.
TAKE_NUMBERS = {
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "pow", "maximum", "minimum", "lt", "le", "gt", "ge", "eq", "ne",
    "masked_fill", "masked_fill_", "fill_", "_foreach_mul_", "_foreach_add_",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Notes every operation for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            return self._copy(func, name, args, kwargs)
        on_gpu = [tensor for tensor in tensors if tensor.device.type == "gpu"]
        on_cpu = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        if on_gpu and name == "_local_scalar_dense":
            self.found.append("item")
            return 0
        if on_gpu and name.startswith(("index", "_index", "_unsafe_index")):
            if any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:]):
                self.found.append(f"{name} by a mask")
        elif on_gpu and torch.Tag.dynamic_output_shape in func.tags:
            self.found.append(name)
        if (
            on_gpu
            and on_cpu
            and not (name in TAKE_NUMBERS and all(tensor.dim() == 0 for tensor in on_cpu))
        ):
            self.found.append(f"{name} with a tensor of the CPU")
        if name == "_fused_sgd_":  # has no fake form; it works in place
            return None
        return func(*args, **kwargs)

    def _copy(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        source = args[1] if name == "copy_" else args[0]
        target = (
            args[0].device
            if name == "copy_"
            else torch.device(kwargs.get("device") or source.device)
        )
        if source.device.type == target.type:
            return func(*args, **kwargs)
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if waits or target.type == "cpu" or not getattr(source, "is_in_pinned_memory", False):
            self.found.append(f"copy from {source.device.type} to {target.type}")
        if name == "copy_":
            return args[0]
        dtype = kwargs.get("dtype") or source.dtype
        return torch.empty_strided(source.shape, source.stride(), dtype=dtype, device=target)


@contextmanager
def emulated_gpu() -> Iterator[Waits]:
    """Within, a device `gpu:0` is there, and no tensor that is made has values, also on the CPU."""
    from torch.utils import backend_registration

    module = backend_registration._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]  # of autocast
    backend_registration._setup_privateuseone_for_python_backend("gpu", module)
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    nn.Module._apply = _apply  # type: ignore[method-assign]
    torch.Tensor.pin_memory = _pin_memory  # type: ignore[assignment,method-assign]
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        yield waits


def _apply(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """torch's own swaps tensors in place, which fake ones do not allow."""
    for child in self.children() if recurse else ():
        child._apply(function)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            self._parameters[name] = nn.Parameter(
                function(parameter.detach()), parameter.requires_grad
            )
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = function(buffer)
    return self


def _pin_memory(tensor: torch.Tensor) -> torch.Tensor:
    pinned = tensor.clone()
    pinned.is_in_pinned_memory = True  # type: ignore[attr-defined]
    return pinned
