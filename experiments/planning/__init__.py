"""Choose an algorithm and its interval from short training runs."""
