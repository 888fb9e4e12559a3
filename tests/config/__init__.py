"""Configuration: layers, checks, endpoints and keys."""
