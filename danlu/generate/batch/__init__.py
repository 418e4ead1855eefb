"""All requests in one pass: keys and values, admission, the step, the thread that makes it."""
