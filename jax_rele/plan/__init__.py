"""What every step of a run would cost on accelerators that are not there."""
