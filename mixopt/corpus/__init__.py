"""Documents, tokenizer, manifest and the embedded demo corpus. Yields documents and ids; owns no token file format."""
