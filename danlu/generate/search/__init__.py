"""Which row goes on with which token: greedy, sampling, beams, groups, forced phrases."""
