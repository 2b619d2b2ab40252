"""Other forms of the frozen network, with the same results: memory layout, recomputed activations, compiled.

Each form is a context manager that is entered for training; when it is left, the model is as it was before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.models.attention import SpatialTransformer
from ldm.models.unet import ResBlock

COMPUTE_DTYPE = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}


@contextmanager
def stored_in(model: LatentDiffusion, precision: str, parts: Collection[str] | None = None) -> Iterator[None]:
    """Hold the frozen weights in the compute precision of a Lightning precision string for a while.

    Autocast would cast frozen float32 weights again at every use. v* stays float32. The UNet's are
    channels-last where convolutions are faster so: on GPUs, and in float32. Afterwards the model has
    the very weights that it had, on the device where it then is.

    Args:
        model: the model.
        precision: a Lightning precision string, or the part of it before its dash: bf16, 16, 32 or 64.
        parts: names of ``model.parts``; by default all.
    """
    dtype = COMPUTE_DTYPE[precision.partition("-")[0]]
    chosen = [part for name, part in model.parts.items() if parts is None or name in parts]
    modules = [module for part in chosen for module in part.modules()]
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    buffers = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
    # on the host: a GPU holds one of the two
    originals = [(p, p.data.cpu()) for p in parameters if p.dtype != dtype]
    whole = [(module, name, b.cpu()) for module, name, b in buffers if b.is_floating_point()]
    for part in chosen:
        part.to(dtype)
    if dtype == torch.float32 or torch.cuda.is_available():
        model.unet.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for p, data in originals:
            p.data = data.to(p.device)
        for (
            module,
            name,
            buffer,
        ) in whole:  # a cast gives a module new buffers, and its old parameters new data
            module._buffers[name] = buffer.to(module._buffers[name].device)  # type: ignore[union-attr]
        model.unet.to(memory_format=torch.contiguous_format)


@contextmanager
def drawn_in(model: LatentDiffusion, precision: str) -> Iterator[None]:
    """Hold UNet and text conditioner in ``precision`` while pictures are drawn; "model" leaves them as they
    are. The autoencoder keeps its own: half precision would show as steps of grey."""
    if precision == "model":
        yield
    else:
        with stored_in(model, precision, ("model.diffusion_model.", "cond_stage_model.")):
            yield


@contextmanager
def recomputed(unet: nn.Module, recompute: bool = True) -> Iterator[None]:
    """Activation checkpointing: the backward computes each block's activations once more, or not."""
    blocks = [m for m in unet.modules() if isinstance(m, ResBlock | SpatialTransformer)]
    before = [block.use_checkpoint for block in blocks]
    for block in blocks:
        block.use_checkpoint = recompute
    try:
        yield
    finally:
        for block, kept in zip(blocks, before, strict=True):
            block.use_checkpoint = kept


@contextmanager
def compiled(unet: nn.Module, *, cuda_graphs: bool = False) -> Iterator[None]:
    """The UNet through ``torch.compile`` where gradients are asked for.

    Pictures and measurements on the way, of other batch sizes, run as they are: they are not worth
    compiling. ``cuda_graphs``: what is compiled is recorded and replayed as a CUDA graph.

    Raises:
        UserError: CUDA graphs without a GPU.
    """
    if cuda_graphs and not torch.cuda.is_available():
        raise UserError("cuda_graphs=true needs an NVIDIA GPU, and none is seen; use compiled=true alone")
    eager = unet.forward
    fast = torch.compile(eager, mode="reduce-overhead" if cuda_graphs else None, dynamic=False)

    def forward(x: Tensor, timesteps: Tensor, context: Any = None, maps: Any = None) -> Tensor:
        if maps is not None:  # what is compiled reports nothing
            return eager(x, timesteps, context, maps)
        return (fast if torch.is_grad_enabled() else eager)(x, timesteps, context)

    unet.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del unet.forward


@contextmanager
def trained_form(
    model: LatentDiffusion,
    precision: str | None,
    *,
    checkpointing: bool | None = None,
    compiling: bool = False,
    cuda_graphs: bool = False,
) -> Iterator[None]:
    """The network in the form that it trains in; as it was before when the ``with`` ends.

    Args:
        model: the model; its UNet is frozen.
        precision: that of :func:`stored_in`, or ``None`` to leave the weights as they are.
        checkpointing: recompute the UNet's activations in the backward pass, or not; ``None`` does as
            ``use_checkpoint`` of the UNet's config says.
        compiling: train through ``torch.compile``.
        cuda_graphs: replay what is compiled as CUDA graphs.
    """
    with ExitStack() as stack:
        if precision is not None:
            stack.enter_context(stored_in(model, precision))
        if checkpointing is not None:
            stack.enter_context(recomputed(model.unet, checkpointing))
        if compiling or cuda_graphs:
            stack.enter_context(compiled(model.unet, cuda_graphs=cuda_graphs))
        yield
