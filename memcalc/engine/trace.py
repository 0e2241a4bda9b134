"""Trace one micro-batch, forward, loss and backward, of a decoder with given numbers of blocks.

A pipeline's stage (build.ends) begins with the stream it received instead of token ids, and ends with
the stream it sends instead of the loss; its backward begins with the gradient it received.
Checked by: oracle/test_torch_events.py, oracle/test_pipeline.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from memcalc.engine.activation_offload import HostStash
from memcalc.engine.adapters.prompt import REAL
from memcalc.engine.adapters.svd import orthogonal
from memcalc.engine.aten.pointwise import to
from memcalc.engine.aten.shape import narrow
from memcalc.engine.autograd import backward
from memcalc.engine.blocks.embedding import embed
from memcalc.engine.blocks.feedback_loss import feedback_end
from memcalc.engine.blocks.hf_bert import masked_lm_loss
from memcalc.engine.blocks.hf_loss import logits_of, loss_and_logits
from memcalc.engine.blocks.hf_model import hidden_states
from memcalc.engine.blocks.hf_t5_model import t5_loss
from memcalc.engine.blocks.litgpt_loss import litgpt_loss
from memcalc.engine.blocks.loss import chunked_loss, fused_loss, head, plain_loss
from memcalc.engine.blocks.megatron_model import megatron_model
from memcalc.engine.blocks.nanotron_model import nanotron_model
from memcalc.engine.blocks.sampling import sampled
from memcalc.engine.blocks.torchtune_loss import torchtune_logits, torchtune_loss
from memcalc.engine.blocks.vllm_layer import vllm_model
from memcalc.engine.build import Build, Handed
from memcalc.engine.injectors import aside, attach, enter_phase
from memcalc.engine.kernels import BlockKind
from memcalc.engine.saved_on_cpu import SavedOnCpu
from memcalc.engine.sizes import ONE
from memcalc.engine.split_backward import backward_input, backward_weights
from memcalc.engine.tensors import Tape, Tensor, bytes_of
from memcalc.engine.trunk import final_norm, normed_states, run_block, run_blocks


def micro_batch(build: Build, layers: list[BlockKind], has_gradients: bool) -> Tape:
    """Trace forward, loss and backward of a micro-batch; layers: each block's kind."""
    tape, megatron = build.tape, build.kernels.megatron
    tape.sums_in = "fp32" if megatron and megatron.code == "megatron" else ""
    tape.keeps_inputs = build.kernels.keeps_inputs
    build.has_gradients = has_gradients
    build.hooks = [aside(tape, injector.start(build)) for injector in build.injectors]
    attach(build.hooks, build)
    enter_phase(build.hooks, "forward")
    ids = tape.external((build["b"], build.dims.get(REAL, build["s"])), "int64")
    given = ids if build.ends[0] else _received(build)
    with _autocast_of_all(build), saved_on_cpu(build):
        out = _forward(build, given, ids, layers)
        build.prefix = None
        build.lent.clear()
    enter_phase(build.hooks, "forward end")
    tape.mark("backward", -1)
    tape.at("loss" if build.ends[1] else "stream", -1, "backward")
    seed = _seed(build, out)
    enter_phase(build.hooks, "backward")
    if has_gradients and not any(one.takes_gradients for one in build.hooks):
        for leaf in filter(lambda leaf: leaf.requires_grad, tape.leaves.values()):
            leaf.grad = tape.external(leaf.shape, leaf.dtype)
    if build.split:
        groups = backward_input(out, seed, given)
        del seed
        tape.mark("weights", -1)
        backward_weights(groups)
    else:
        backward(out, seed)
    enter_phase(build.hooks, "end")
    build.handed = _handed(build, given, out)
    if not build.split:
        del seed
    if build.kernels.adapter is not None:
        tape.mark("backward block", -1)  # nodes of LLM.int8 keep tensors of every block till here
    if all(build.ends):
        del out
    tape.mark("end", -1)  # what a stage hands on outlives its micro-batch
    return tape


def forward_only(build: Build, layers: list[BlockKind], samples: str) -> Tape:
    """Trace one forward pass without gradients, into and out of `build.cache`.

    What is alive at its end are the logits (b, 1, V) of the last position and what the cache holds; of a
    pipeline's inner stage (build.ends) the stream that it sends.
    samples: how the next token of each sequence is chosen, "" not at all (blocks/sampling.py).
    Checked by: oracle/test_serving.py, event for event against transformers.
    """
    tape = build.tape
    tape.grad_enabled = False
    build.hooks = [aside(tape, injector.start(build)) for injector in build.injectors]
    attach(build.hooks, build)
    enter_phase(build.hooks, "forward")
    ids = tape.external((build["b"], build.dims.get(REAL, build["s"])), "int64")
    given = ids if build.ends[0] else _received(build)
    with _autocast_of_all(build):
        out = _forward(build, given, ids, layers)
    enter_phase(build.hooks, "forward end")
    chosen = sampled(build, out, samples) if samples and build.ends[1] else None
    for what in ("backward", "end"):
        tape.mark(what, -1)
    del out, chosen
    return tape


def of_last(build: Build, hidden: Tensor) -> Tensor:
    """Hidden states of the last position (b, 1, h), the only ones whose logits a sampler asks for.

    Where drafted tokens are verified, of all new positions.
    """
    every = build.cache is not None and build.cache.kind.every
    return hidden if every else narrow(hidden, ONE, 1)


def _autocast_of_all(build: Build) -> AbstractContextManager[None]:
    """Autocast over model and loss; losses of feedback training are made outside of it."""
    return build.autocast() if build.kernels.loss_end is None else nullcontext()


@contextmanager
def saved_on_cpu(build: Build) -> Iterator[None]:
    """What the forward pass saves waits on the host; torchtune has a hook of its own."""
    if not build.kernels.offloads or build.kernels.traits.code == "torchtune":
        yield
        return
    build.tape.packing.append(SavedOnCpu(build.tape))
    yield
    build.tape.packing.pop()


def _received(build: Build) -> Tensor:
    """The stream as the stage before sends it: in a buffer that is there already."""
    kernels = build.kernels
    dtype = kernels.param_dtype if kernels.autocast else kernels.compute_dtype
    positions = build.dims.get("s_t", build["s"])  # with sequence parallelism a rank's part
    shape = (build["b"], positions, build["h"])
    if kernels.megatron is not None:
        shape = (positions, build["b"], build["h"])
    stream = build.tape.external(shape, dtype)
    stream.requires_grad = True
    return stream


def _handed(build: Build, given: Tensor, out: Tensor) -> Handed:
    """What this stage gives to its neighbours; nothing where the model is whole."""
    if given.grad is None:
        return Handed(out.storage.index)
    return Handed(out.storage.index, given.grad.storage.index, bytes_of(given.shape, given.dtype))


def _seed(build: Build, out: Tensor) -> Tensor:
    """Where backward begins: at the loss, or at the gradient that the stage after sends."""
    if build.ends[1]:
        return build.tape.empty("ones_like", out.shape, out.dtype)
    return build.tape.external(out.shape, out.dtype)


def _forward(build: Build, given: Tensor, ids: Tensor, layers: list[BlockKind]) -> Tensor:
    """The loss of token ids, or of the stream given; or the stream after the last of the layers."""
    if build.config.is_encoder_decoder:
        return t5_loss(build, ids, layers, run_block)
    if build.kernels.loss_end is not None:
        return feedback_end(build, ids, layers, normed_states)
    if build.kernels.hf:
        hidden = hidden_states(build, ids, layers, run_block)
        if build.cache is not None:
            return logits_of(build, of_last(build, hidden))
        if build.config.bidirectional:
            return masked_lm_loss(build, hidden)
        held = [hidden]
        del hidden  # the model's forward has a name for it, PEFT's around it has none
        return orthogonal(build, loss_and_logits(build, held, ids), len(layers))
    if build.kernels.traits.code == "vllm":
        return vllm_model(build, given, layers)
    if build.kernels.megatron is not None:
        nanotron = build.kernels.megatron.code == "nanotron"
        model = nanotron_model if nanotron else megatron_model
        return model(build, given, layers, run_block)
    tape = build.tape
    if build.kernels.offloads and build.kernels.traits.code == "torchtune":
        tape.packing.append(HostStash(tape))
    # what blocks read beside the stream lives until the loss is there
    x, _context = run_blocks(build, [embed(build, ids) if build.ends[0] else given], layers)
    if not build.ends[1]:
        return x
    if build.kernels.traits.code != "plain":
        stream = [x]
        del x  # the model's forward has a name for it, the loss has none
        return _own_loss(build, stream, ids)
    loss = _loss(build, x, ids)
    return loss if build.ends[0] else to(loss, "fp32")  # a pipeline's losses are gathered in fp32


def _own_loss(build: Build, stream: list[Tensor], ids: Tensor) -> Tensor:
    """Final norm, head and loss of torchtitan, litgpt, or torchtune, whose forward keeps the stream."""
    normed = final_norm(build, stream[0])
    if build.kernels.traits.code == "torchtitan":
        stream.clear()
        return plain_loss(build, head(build, normed), ids)
    if build.kernels.traits.code == "litgpt":
        stream.clear()
        logits = [head(build, normed)]
        del normed
        return litgpt_loss(build, logits, ids)
    if build.kernels.offloads:  # all but head and loss
        build.tape.packing.pop()
    logits = torchtune_logits(build, normed)
    stream.clear()
    del normed
    return torchtune_loss(build, logits, ids)


def _loss(build: Build, x: Tensor, ids: Tensor) -> Tensor:
    if build.cache is not None:
        return head(build, of_last(build, final_norm(build, x)))
    if build.kernels.loss == "chunked":
        return chunked_loss(build, final_norm(build, x), ids)
    if build.kernels.loss == "fused":
        return fused_loss(build, final_norm(build, x))
    logits = head(build, final_norm(build, x))
    return plain_loss(build, logits, ids)
