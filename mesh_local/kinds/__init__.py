"""The built-in kinds: what each is called, defaulted, validated and printed. Pure."""
