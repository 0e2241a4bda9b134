"""The PyTorch operators decoders are made of: what each allocates, saves and frees.

One function per operator. The forward half allocates outputs and says which tensors autograd keeps,
and for whose gradient; the backward rule allocates what PyTorch's formula allocates
(tools/autograd/derivatives.yaml), temporaries included. Blocks are written with these functions,
so a fact about PyTorch stands here once and a fact about a decoder stands in `engine/blocks`.
"""
