"""Feedback training: PPO, GRPO, DPO and reward models as programs over several models."""
