"""What the application asks for, carried out over the engine: embeddings and catalogues."""
