"""Our engine against its peers: the same work, in paired runs. See README.md."""
