"""The values that travel between the application, the engine and the plugins. All are frozen."""
