"""The HTTP side: from the socket to what a route is given, and from what it answers back."""
