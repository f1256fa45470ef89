"""Where pairs come from: files, buckets, Hugging Face, TFDS and benchmarks."""
