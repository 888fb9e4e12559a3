"""The checks of the conformance kit, and what they have in common."""
