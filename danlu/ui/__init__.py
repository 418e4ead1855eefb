"""Pages: runs, decoding, memory, data, collections, judgements, and the start of a run. Only asks the rooms above."""
