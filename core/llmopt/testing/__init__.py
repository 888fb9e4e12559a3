"""What a test of a program built on llmopt needs: simulated time."""
