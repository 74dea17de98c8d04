"""How a network is trained: the step, what stands beside it, the loop, checkpoints."""
