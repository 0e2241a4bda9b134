"""PyTorch as the judge of the engine: models, a storage tracker and whole training steps, no GPU."""
