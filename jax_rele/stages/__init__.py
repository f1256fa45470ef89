"""The stages of a run: one file, one function `run(config, run_dir) -> counts`, readable from top to bottom."""
