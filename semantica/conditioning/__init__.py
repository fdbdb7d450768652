"""What the denoiser is told about the wanted picture: `signals.py` declares it, `values.py` holds it for a batch of pictures."""
