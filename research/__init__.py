"""Embax: elastic text embeddings in JAX. Importing it starts nothing."""
