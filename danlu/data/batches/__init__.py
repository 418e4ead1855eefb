"""Many records at once: encoded fast, packed into batches."""
