"""Authentication: tokens, and the keys that may have signed them."""
