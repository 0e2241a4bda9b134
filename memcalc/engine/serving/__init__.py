"""Serving: forward passes through a cache of keys and values, their memory and their time."""
