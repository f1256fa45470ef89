"""Texts to arrays of token ids: tokenizers, prompts, student inputs, packing, the cache on disk."""
