"""Pre-training: what an encoder learns from raw text, objective by objective."""
