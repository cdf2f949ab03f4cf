"""VQ-VAE and GPT over its codes."""
