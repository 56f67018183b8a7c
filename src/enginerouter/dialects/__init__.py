"""Wire formats: pure functions from our words to bytes and back."""
