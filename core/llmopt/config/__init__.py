"""Configuration: read in layers, checked key by key, resolved into endpoints.

`load` reads it, `tree` is what it is read into, `resolve` merges it with a provider's profile.
"""
