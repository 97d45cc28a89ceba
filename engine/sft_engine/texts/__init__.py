"""Changes of texts as pure functions: what training is hardened with and what probes test with are one."""
