"""Settings of other tools: memcalc's setup as DeepSpeed, accelerate, torchtitan or Megatron-LM states it."""
