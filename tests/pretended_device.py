"""A device beside the processor that every machine has: its tensors say so, and mix with no others.

As on a GPU, an operation refuses tensors of two places (single numbers and lists of indices from the processor
excepted, as CUDA excepts them), a generator of the other place and numpy's look at its tensors. So code that forgets
to move a tensor fails here as it would there, on a machine without GPU. The arithmetic is the processor's: kernels,
speed and rounding are not imitated, autocast casts nothing, and random numbers come from the processor's generator.

Importing this changes the process for good (torch allows one such device, and inference mode allows no wrappers):
import it first, in a process of its own.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch._dynamo  # else it is imported inside the modes below, and cannot be
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
_MOVING = {aten.copy_.default, aten._to_copy.default}


class _DeviceModule:
    """What torch asks a device's module for: one device, half precisions, no random state of its own."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        """Nothing: the processor's generator was seeded with it."""

    def _is_in_bad_fork(self) -> bool:
        return False


_setup_privateuseone_for_python_backend("pretended", _DeviceModule())
_fallbacks = torch.library.Library("_", "IMPL")
_fallbacks.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
torch.inference_mode = lambda mode=True: torch.no_grad()
DEVICE = torch.device("pretended", 0)


class DeviceTensor(Tensor):
    """A tensor of the processor under the name of the device."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        wrapper.inner = inner
        return wrapper

    def __repr__(self) -> str:
        return f"DeviceTensor({self.inner!r})"

    def __reduce_ex__(self, protocol: int):
        return self.inner.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class Operations:
    """How many ran on the device since the process began."""

    count = 0


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """Within, torch knows the device."""
    with _Dispatch(), _Functions():
        yield


class _Dispatch(TorchDispatchMode):
    """New tensors are made on the device where they are wanted there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_wanted_there(kwargs) or any(isinstance(leaf, DeviceTensor) for leaf in tree_leaves((args, kwargs))):
            return _compute(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Functions that torch decides by what a device's library can do, or that look into memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_wanted_there(kwargs):
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if args and isinstance(args[0], DeviceTensor):
            # Looked up here: Tensor.data.__set__ is another object at every look.
            if func == Tensor.data.__set__:
                args[0].inner = args[1].inner
            elif func in _INSTEAD:
                return _INSTEAD[func](*args, **kwargs)
        return func(*args, **kwargs)


def _attention(query, key, value, *args, enable_gqa: bool = False, **kwargs) -> Tensor:
    return aten._scaled_dot_product_attention_math(query, key, value, *args, **kwargs)[0]


_INSTEAD: dict[Callable, Callable] = {
    F.scaled_dot_product_attention: _attention,
    Tensor.new_tensor: lambda like, *args, **kwargs: like.inner.new_tensor(*args, **kwargs).to(DEVICE),
    Tensor.tolist: lambda tensor: tensor.inner.tolist(),
    Tensor.untyped_storage: lambda tensor: tensor.inner.untyped_storage(),
}


def _is_wanted_there(kwargs: dict) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == DEVICE.type


def _compute(func, args: tuple, kwargs: dict):
    Operations.count += 1
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_there = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    _refuse_mixing(func, args, tensors)
    if "device" in kwargs:
        to_there = _is_wanted_there(kwargs)
        inner = {**kwargs, "device": torch.device("cpu")}
    else:
        to_there = isinstance(args[0], DeviceTensor) if func is aten.copy_.default else is_there
        inner = kwargs
    generator = kwargs.get("generator")
    if to_there and generator is not None:
        raise RuntimeError(f"{func}: expected a generator of the device, but found one of {generator.device}.")
    if torch.Tag.inplace_view in func.tags:
        raise NotImplementedError(f"{func} changes a wrapper's shape in place; this device cannot.")
    out = func(*tree_map(_unwrapped, args), **tree_map(_unwrapped, inner))
    if not to_there:
        return out
    wrapped = tree_map(lambda leaf: DeviceTensor(leaf) if isinstance(leaf, Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if is_there else wrapped


def _unwrapped(leaf):
    return leaf.inner if isinstance(leaf, DeviceTensor) else leaf


def _refuse_mixing(func, args: tuple, tensors: list[Tensor]) -> None:
    """Raise RuntimeError where CUDA would."""
    there = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    if func in _MOVING or not there:
        return
    if func in _INDEXING and isinstance(args[0], DeviceTensor):
        tensors = [
            tensor for tensor in (args[0], *args[2:3]) if isinstance(tensor, Tensor)
        ]  # indices may be anywhere
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.dim() > 0]
    if elsewhere:
        shapes = [[tuple(tensor.shape) for tensor in some] for some in (there, elsewhere)]
        raise RuntimeError(
            f"{func}: tensors on two devices, of shapes {shapes[0]} on {DEVICE}, {shapes[1]} on the CPU."
        )
