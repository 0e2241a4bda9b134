"""transformers' ForCausalLM: head, soft cap, and the loss on labels shifted by padding.

The 16-bit logits stay alive in the output object until the loss is made. A modeling file of its own may
hand them to the cross-entropy as they are (`narrow_loss`): Qwen-1's modeling_qwen.py, QWenLMHeadModel.
Source: transformers 5.23, loss/loss_utils.py.
Checked by: oracle/test_hf_families.py, oracle/test_narrow_loss.py.
"""

from __future__ import annotations

from memcalc.engine.aten.fused import log_softmax, nll_loss
from memcalc.engine.aten.matmul import linear
from memcalc.engine.aten.pointwise import scale, tanh, to
from memcalc.engine.aten.shape import contiguous, narrow, reshape
from memcalc.engine.blocks.loss import cross_entropy
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def logits_of(build: Build, hidden: Tensor) -> Tensor:
    """Logits (b, s, V), capped where the model caps them."""
    build.at("lm_head", "head")
    config, width = build.config, build["w"]
    if config.tie_word_embeddings:
        bias = None
        if config.lm_head_bias:
            bias = build.cast_param(build.param("lm_head.bias", (build["V"],)))
        weight = build.cast_param(build.tape.leaves[f"{build.beside}embedding.weight"])
        x = to(hidden, build.kernels.compute_dtype) if build.kernels.autocast else hidden
        logits = linear(x, weight, bias)
        del x
    else:
        logits = build.linear(hidden, "lm_head", (width, build["V"]), config.lm_head_bias)
    if config.final_logit_softcapping is None:
        return logits
    build.at("logit_softcap", "head")
    logits = scale(logits, "div.Tensor")
    logits = tanh(logits)
    return scale(logits)


def loss_and_logits(build: Build, held: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the 16-bit logits that the output object has. held: the hidden states, released."""
    logits = logits_of(build, held[0])
    compute = narrow_loss if build.kernels.narrow_loss else causal_lm_loss
    loss = compute(build, logits, labels)
    held.clear()
    return loss, logits


def causal_lm_loss(build: Build, logits: Tensor, labels: Tensor) -> Tensor:
    """ForCausalLMLoss: fp32 logits, labels padded by one and shifted, mean cross-entropy."""
    tape, b, s = build.tape, build["b"], build["s"]
    tape.phase = "loss"
    build.at("loss", "loss")
    wide = to(logits, "fp32")
    padded = tape.empty("constant_pad_nd", (b, s + 1), "int64")
    shifted = contiguous(padded.view_as((b, s), None, padded.strides))
    flat = reshape(wide, (b * s, build["V"]))
    loss = nll_loss(log_softmax(flat), shifted)
    del padded
    return loss


def narrow_loss(build: Build, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the logits but the last row's, in their own dtype.

    One sequence's slice needs no copy; of several the code makes one, no larger than the gradient that
    comes later, and leaves out a row of each. Backward fills the slice's gradient up to all rows.
    Under CUDA autocast the likelihood casts the log-probabilities (`cross_entropy`).
    Source: QwenLM's modeling_qwen.py, QWenLMHeadModel.forward. Checked by: oracle/test_narrow_loss.py.
    """
    build.tape.phase = "loss"
    rows = build["b"] * build["s"]
    build.at("loss", "loss")
    flat = narrow(reshape(logits, (rows, build["V"])), rows - 1, 0)
    return cross_entropy(build, flat, labels.view_as((rows - 1,), None, None), upcast=False)
