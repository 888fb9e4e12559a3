"""Configuration: load it in layers, check every key, resolve provider entries into endpoints.

`schema` has the keys, `load` reads file, environment and argument, `resolve` merges an entry with its plugin's profile,
`credentials` chooses the key of an endpoint, and `urls` parses URLs.
"""
