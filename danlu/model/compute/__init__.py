"""What computes: products, norms, activations, attention, LoRA; in torch, and the same in C."""
