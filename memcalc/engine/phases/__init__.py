"""Memory of one GPU outside a training step: loading, evaluation, saving, the first step."""
