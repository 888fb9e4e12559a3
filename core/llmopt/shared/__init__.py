"""State that several processes share: the protocol of a store, and what this process may spend of a shared quota."""
