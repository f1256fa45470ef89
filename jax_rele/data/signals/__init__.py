"""Tables of a teacher's signals, our own and external ones."""
