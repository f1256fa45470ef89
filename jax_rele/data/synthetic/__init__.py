"""Generated pairs: the attribute world and recombined texts."""
