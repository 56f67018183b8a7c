"""The wire formats: OpenAI, Ollama, Anthropic. Bytes and dicts in, bytes and dicts out."""
