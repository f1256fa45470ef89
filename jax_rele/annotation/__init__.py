"""Annotation by several language models: what is asked, whom, what was answered, and what the answers agree on."""
