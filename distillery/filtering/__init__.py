"""Which labelled rows are worth learning from, and the account of those that are not."""
