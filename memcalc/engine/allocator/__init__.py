"""PyTorch's caching allocator, replayed."""
