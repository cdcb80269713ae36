"""Models: the judge (any Hugging Face VLM) and the builder of the tiny built-in one."""
