"""Who is asking: the token, and the keys that may have signed it."""
