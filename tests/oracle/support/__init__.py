"""PyTorch as the judge of the engine: models, a storage tracker, whole training steps; no GPU."""
