"""The OpenAI completions and chat completions API over one engine."""
