"""Other servers: what is asked of them, and how one is started."""
