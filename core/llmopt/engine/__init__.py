"""The engine: the path of one request from a call to a parsed response, through all resilience policies."""
